use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bitnet_layers::{Slots, set_lambda};
use bitnet_warmup::LambdaWarmup;
use burn::lr_scheduler::LrSchedulerRecord;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::{Module, ModuleDisplay};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::store::ModuleRecord;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::clip::{clip, global_norm};
use crate::files::{read_json, write_json};
use crate::loss::read;
use crate::optimizer::ModuleAdamW;
use crate::replicas::{Pass, Passed, Replicas};
use crate::working::{InOrder, Lowered, check_bf16, gradients};
use crate::{Precision, TrainConfig, TrainError};

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
    /// None only while the optimizer has it: held once, it is updated where it lies.
    model: Option<M>,
    optimizer: ModuleAdamW,
    schedule: ModuleLrScheduler,
    warmup: LambdaWarmup,
    clip_norm: Option<f64>,
    precision: Precision,
    /// First step of the second stage, and its factor of the learning rate.
    stage_two: Option<(u64, f64)>,
    step: u64,
}

/// A loss that the threads of several devices share.
pub type Loss<M, B> = Arc<dyn Fn(&M, &B) -> Result<Tensor<1>, TrainError> + Send + Sync>;

/// One of `n` micro-batches: its share of the mean loss, and of the gradients.
fn pass<M: Module, B>(
    model: &M,
    batch: &B,
    loss: &(impl Fn(&M, &B) -> Result<Tensor<1>, TrainError> + ?Sized),
    n: usize,
) -> Passed {
    let loss = loss(model, batch)? * (n as f64).recip();
    let grads = gradients(&loss, model);
    Ok((read(loss)?, grads))
}

/// What is saved beside the records.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    step: u64,
    /// AdamW's updates of each parameter, by its id.
    updates: BTreeMap<u64, usize>,
}

const MODEL: &str = "model.bpk";
const SCHEDULE: &str = "schedule.bpk";
const SAVED: &str = "trainer.json";

impl<M: Module + Slots> Trainer<M> {
    /// Takes a model over; gradients are recorded from here on.
    ///
    /// # Errors
    /// Those of [`TrainConfig::validate`].
    pub fn new(model: M, config: &TrainConfig) -> Result<Self, TrainError> {
        config.validate()?;
        let warmup = config.lambda.init()?;
        let mut model = model.train().map(&mut InOrder { checkpointing: config.gradient_checkpointing });
        if config.precision == Precision::Bf16 {
            check_bf16(&model.devices())?;
        }
        set_lambda(&mut model, Some(warmup.lambda()));
        Ok(Self {
            optimizer: ModuleAdamW::new(config, &model),
            model: Some(model),
            schedule: config.lr_scheduler()?,
            warmup,
            clip_norm: config.clip_norm,
            precision: config.precision,
            stage_two: config.stage_two(),
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
        let model = self.working();
        let passes = micro_batches.iter().map(|batch| pass(&model, batch, &loss, micro_batches.len()));
        let (loss, grads) = self.sum(passes)?;
        drop(model); // the update needs the only handle
        self.update(loss, grads)
    }

    /// [`step`](Self::step) with the micro-batches dealt out to several devices, of which the first is the model's. The
    /// gradients are added in the order of the micro-batches.
    ///
    /// # Errors
    /// Those of [`step`](Self::step); [`TrainError::Device`] where a device fails.
    pub fn step_on<B: Send + 'static>(
        &mut self,
        replicas: &Replicas<M>,
        micro_batches: Vec<B>,
        loss: &Loss<M, B>,
    ) -> Result<StepReport, TrainError>
    where
        M: ModuleDisplay + 'static,
    {
        let n = micro_batches.len();
        let passes = micro_batches.into_iter().map(|batch| {
            let loss = loss.clone();
            Box::new(move |model: &M| pass(model, &batch, &*loss, n)) as Pass<M>
        });
        let groups = replicas.run(&self.working(), passes.collect())?;
        let sums = groups.into_iter().map(|group| self.sum(group.into_iter()));
        let (losses, grads): (Vec<f64>, Vec<_>) = sums.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let grads = replicas.gathered(self.model(), grads);
        self.update(losses.iter().sum(), grads)
    }

    fn finite(&self, what: &'static str, found: f64) -> Result<f64, TrainError> {
        if found.is_finite() {
            Ok(found)
        } else {
            Err(TrainError::NotFinite { what, step: self.step, found })
        }
    }

    /// The sum of what the passes over a step's micro-batches give.
    fn sum(&self, passes: impl Iterator<Item = Passed>) -> Passed {
        let mut accumulator = GradientsAccumulator::new();
        let mut mean_loss = None;
        for pass in passes {
            let (loss, grads) = pass?;
            mean_loss = Some(mean_loss.unwrap_or(0.0) + self.finite("loss", loss)?);
            accumulator.accumulate(self.model(), grads);
        }
        let loss = mean_loss.ok_or(TrainError::NoBatch { step: self.step })?;
        Ok((loss, accumulator.grads()))
    }

    /// Updates the model by the gradients of a step.
    fn update(&mut self, loss: f64, grads: GradientsParams) -> Result<StepReport, TrainError> {
        let step = self.step;
        let model = self.model();
        let grad_norm = self.finite("gradient norm", global_norm(model, &grads)?)?;
        let grads = match self.clip_norm {
            Some(max_norm) => clip(model, grads, grad_norm, max_norm),
            None => grads,
        };
        let stage_two = self.stage_two.filter(|(first, _)| step >= *first);
        let learning_rate = self.schedule.step().base() * stage_two.map_or(1.0, |(_, rate)| rate);
        let report = StepReport { step, loss, grad_norm, lambda: self.warmup.lambda(), learning_rate };
        self.warmup.step();
        self.model = self.model.take().map(|model| {
            let mut model = self.optimizer.step(learning_rate, stage_two.is_none(), model, grads);
            set_lambda(&mut model, Some(self.warmup.lambda()));
            model
        });
        self.step += 1;
        Ok(report)
    }

    /// The norm of all gradients of a loss together, for the model as it is; nothing is updated.
    ///
    /// # Errors
    /// Those of `loss`, [`TrainError::Device`]
    pub fn gradient_norm(
        &self,
        loss: impl FnOnce(&M) -> Result<Tensor<1>, TrainError>,
    ) -> Result<f64, TrainError> {
        let model = self.working();
        global_norm(&model, &gradients(&loss(&model)?, &model))
    }

    /// The model as steps compute with it.
    fn working(&self) -> M {
        match self.precision {
            Precision::F32 => self.model().clone(),
            Precision::Bf16 => self.model().clone().map(&mut Lowered::default()),
        }
    }

    /// Writes everything that the next step depends on, besides its data, into a folder that exists.
    ///
    /// # Errors
    /// [`TrainError::Write`]
    pub fn save(&self, folder: &Path) -> Result<(), TrainError> {
        let failed = |name: &str, reason: String| TrainError::Write { path: folder.join(name), reason };
        let record = self.model().clone().into_record();
        record.save(folder.join(MODEL)).map_err(|error| failed(MODEL, error.to_string()))?;
        let updates = self.optimizer.save(self.model(), folder)?;
        let schedule = self.schedule.to_record();
        schedule.save(folder.join(SCHEDULE)).map_err(|error| failed(SCHEDULE, error.to_string()))?;
        write_json(&folder.join(SAVED), &Saved { step: self.step, updates })
    }

    /// Goes on from a folder that [`save`](Self::save) wrote. With the same settings and the same data the steps that
    /// follow are those of the run without the interruption; on flex, bit by bit.
    ///
    /// `model` is any model of the same structure; its weights are replaced.
    ///
    /// # Errors
    /// Those of [`new`](Self::new); [`TrainError::Snapshot`] where a file cannot be read or is of another structure.
    pub fn load(model: M, config: &TrainConfig, folder: &Path) -> Result<Self, TrainError> {
        let Saved { step, updates } = read_json(&folder.join(SAVED))?;
        let wrong =
            |name: &str, error: burn::store::RecordError| TrainError::snapshot(folder.join(name), error);
        let record = ModuleRecord::load(folder.join(MODEL)).map_err(|error| wrong(MODEL, error))?;
        let model = model.try_load_record(record).map_err(|error| wrong(MODEL, error))?;
        let mut trainer = Self::new(model, config)?;
        let mut optimizer = trainer.optimizer.clone();
        optimizer.load(trainer.model(), folder, &updates)?;
        trainer.optimizer = optimizer;
        let schedule =
            LrSchedulerRecord::load(folder.join(SCHEDULE)).map_err(|error| wrong(SCHEDULE, error))?;
        trainer.schedule = trainer.schedule.load_record(schedule);
        for _ in 0..step {
            trainer.warmup.step();
        }
        if let Some(model) = &mut trainer.model {
            set_lambda(model, Some(trainer.warmup.lambda()));
        }
        trainer.step = step;
        Ok(trainer)
    }

    /// The model as it is now, with autodiff; `.valid()` gives one to evaluate.
    pub fn model(&self) -> &M {
        match &self.model {
            Some(model) => model,
            None => unreachable!("the optimizer gives the model back, unless it panics"),
        }
    }

    /// λ as the next step will use it.
    pub fn warmup(&self) -> &LambdaWarmup {
        &self.warmup
    }

    /// Number of steps taken, and the index of the next one.
    pub fn steps_taken(&self) -> u64 {
        self.step
    }

    /// Ends training. The slots keep the λ that was reached.
    pub fn into_model(self) -> M {
        self.model().valid()
    }
}
