use bitnet_layers::{Slots, set_lambda};
use bitnet_warmup::LambdaWarmup;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use serde::Serialize;

use crate::clip::{clip, global_norm};
use crate::loss::read;
use crate::{TrainConfig, TrainError};

/// What one optimizer step did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepReport {
    /// Which step, from 0.
    pub step: u64,
    /// Mean loss of the micro-batches, before the update.
    pub loss: f64,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// λ of the forward and backward pass.
    pub lambda: f32,
    /// Learning rate of the update.
    pub learning_rate: f64,
}

/// A model in training: AdamW, its learning rate, global clipping, and λ in the model's slots.
#[derive(Clone)]
pub struct Trainer<M> {
    model: M,
    optimizer: ModuleOptimizer,
    schedule: ModuleLrScheduler,
    warmup: LambdaWarmup,
    clip_norm: Option<f64>,
    step: u64,
}

impl<M: Module + Slots> Trainer<M> {
    /// Takes a model over; gradients are recorded from here on.
    ///
    /// # Errors
    /// Those of [`TrainConfig::validate`].
    pub fn new(model: M, config: &TrainConfig) -> Result<Self, TrainError> {
        config.validate()?;
        let warmup = config.lambda.init()?;
        let mut model = model.train();
        set_lambda(&mut model, Some(warmup.lambda()));
        Ok(Self {
            model,
            optimizer: config.optimizer(),
            schedule: config.lr_scheduler()?,
            warmup,
            clip_norm: config.clip_norm,
            step: 0,
        })
    }

    /// One optimizer step on the mean gradient of the micro-batches; λ moves on once, after it.
    ///
    /// # Errors
    /// - [`TrainError::NoBatch`] without a micro-batch, and the errors of `loss`
    /// - [`TrainError::NotFinite`] where loss or gradient is not finite: the model is not updated
    pub fn step<B>(
        &mut self,
        micro_batches: &[B],
        loss: impl Fn(&M, &B) -> Result<Tensor<1>, TrainError>,
    ) -> Result<StepReport, TrainError> {
        let step = self.step;
        if micro_batches.is_empty() {
            return Err(TrainError::NoBatch { step });
        }
        let finite = |what, found: f64| {
            if found.is_finite() { Ok(found) } else { Err(TrainError::NotFinite { what, step, found }) }
        };
        let share = (micro_batches.len() as f64).recip();
        let mut accumulator = GradientsAccumulator::new();
        let mut mean_loss = 0.0;
        for batch in micro_batches {
            let loss = loss(&self.model, batch)? * share;
            let grads = GradientsParams::from_grads(loss.backward(), &self.model);
            mean_loss += finite("loss", read(loss)?)?;
            accumulator.accumulate(&self.model, grads);
        }
        let grads = accumulator.grads();
        let grad_norm = finite("gradient norm", global_norm(&self.model, &grads)?)?;
        let grads = match self.clip_norm {
            Some(max_norm) => clip(&self.model, grads, grad_norm, max_norm),
            None => grads,
        };
        let learning_rate = self.schedule.step();
        let report = StepReport {
            step,
            loss: mean_loss,
            grad_norm,
            lambda: self.warmup.lambda(),
            learning_rate: learning_rate.base(),
        };
        self.model = self.optimizer.step(learning_rate, self.model.clone(), grads);
        self.warmup.step();
        set_lambda(&mut self.model, Some(self.warmup.lambda()));
        self.step += 1;
        Ok(report)
    }

    /// The model as it is now, with autodiff; `.valid()` gives one to evaluate.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// λ as the next step will use it.
    pub fn warmup(&self) -> &LambdaWarmup {
        &self.warmup
    }

    /// Ends training. The slots keep the λ that was reached.
    pub fn into_model(self) -> M {
        self.model.valid()
    }
}
