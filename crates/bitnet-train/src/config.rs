use bitnet_warmup::{LambdaWarmupConfig, Schedule};
use burn::lr_scheduler::composed::ComposedLrSchedulerConfig;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::optim::{AdamWConfig, ModuleOptimizer};
use serde::{Deserialize, Serialize};

use crate::TrainError;

/// What the learning rate does after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrDecay {
    /// It stays.
    Constant,
    /// It falls to zero along a cosine, over all steps.
    #[default]
    Cosine,
}

/// How a model is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises linearly; 0 or 1 for none.
    pub lr_warmup_steps: u64,
    /// What the learning rate does then.
    pub lr_decay: LrDecay,
    /// AdamW's decay of the first and the second moment.
    pub betas: [f32; 2],
    /// AdamW's epsilon.
    pub adam_eps: f32,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f32,
    /// The largest norm of all gradients together; larger ones are scaled down to it. `None` for no limit.
    pub clip_norm: Option<f64>,
    /// λ, from the first step on.
    pub lambda: LambdaWarmupConfig,
}

impl TrainConfig {
    /// Defaults for a short run: cosine learning rate from 1e-3 after a twentieth of the steps, λ rising linearly
    /// over the first half, gradients clipped to 1, no weight decay.
    pub fn new(steps: u64) -> Self {
        Self {
            steps,
            learning_rate: 1e-3,
            lr_warmup_steps: steps / 20,
            lr_decay: LrDecay::Cosine,
            betas: [0.9, 0.95],
            adam_eps: 1e-8,
            weight_decay: 0.0,
            clip_norm: Some(1.0),
            lambda: LambdaWarmupConfig::new(Schedule::Linear, steps / 2),
        }
    }

    /// # Errors
    /// [`TrainError::Config`] names the first setting out of range, [`TrainError::Warmup`] is about λ.
    pub fn validate(&self) -> Result<(), TrainError> {
        let check = |field, found: String, holds: bool, expected: &str| {
            if holds { Ok(()) } else { Err(TrainError::Config { field, found, expected: expected.into() }) }
        };
        let lr = self.learning_rate;
        check("steps", self.steps.to_string(), self.steps > 0, "above 0")?;
        check("learning_rate", lr.to_string(), lr > 0.0 && lr <= 1.0, "above 0, at most 1")?;
        let lr_warmup = self.lr_warmup_steps;
        check("lr_warmup_steps", lr_warmup.to_string(), lr_warmup <= self.steps, "at most the steps")?;
        let betas = self.betas.iter().all(|beta| (0.0..1.0).contains(beta));
        check("betas", format!("{:?}", self.betas), betas, "from 0, below 1")?;
        let eps = self.adam_eps;
        check("adam_eps", eps.to_string(), eps > 0.0 && eps.is_finite(), "a positive number")?;
        let decay = self.weight_decay;
        check("weight_decay", decay.to_string(), decay >= 0.0 && decay.is_finite(), "from 0")?;
        let clip = self.clip_norm.unwrap_or(1.0);
        check("clip_norm", clip.to_string(), clip > 0.0 && clip.is_finite(), "a positive number")?;
        Ok(self.lambda.validate()?)
    }

    pub(crate) fn optimizer(&self) -> ModuleOptimizer {
        AdamWConfig::new()
            .with_beta_1(self.betas[0])
            .with_beta_2(self.betas[1])
            .with_epsilon(self.adam_eps)
            .with_weight_decay(self.weight_decay)
            .init()
    }

    /// Burn's schedulers, multiplied: the decay times a rise from `1 / warm-up` to 1.
    pub(crate) fn lr_scheduler(&self) -> Result<ModuleLrScheduler, TrainError> {
        let mut config = ComposedLrSchedulerConfig::new();
        config = match self.lr_decay {
            LrDecay::Constant => config.constant(self.learning_rate),
            LrDecay::Cosine => {
                config.cosine(CosineAnnealingLrSchedulerConfig::new(self.learning_rate, self.steps as usize))
            }
        };
        if self.lr_warmup_steps > 1 {
            let first = (self.lr_warmup_steps as f64).recip();
            config =
                config.linear(LinearLrSchedulerConfig::new(first, 1.0, self.lr_warmup_steps as usize - 1));
        }
        config.init().map_err(|reason| TrainError::Config {
            field: "learning_rate",
            found: self.learning_rate.to_string(),
            expected: reason,
        })
    }
}
