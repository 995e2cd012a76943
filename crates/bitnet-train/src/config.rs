use bitnet_warmup::{LambdaWarmupConfig, Schedule};
use burn::lr_scheduler::composed::ComposedLrSchedulerConfig;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use serde::{Deserialize, Serialize, Serializer};

use crate::TrainError;

/// What the learning rate does after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrDecay {
    /// It stays.
    Constant,
    /// It falls to zero along a cosine, over all steps.
    #[default]
    Cosine,
    /// A cosine over all steps, lower by a factor in its second stage, in which weights do not decay either: what
    /// BitNet b1.58 was trained with.
    TwoStage(StageTwo),
}

/// The second stage of [`LrDecay::TwoStage`].
///
/// # Source
/// "The Era of 1-bit LLMs: Training Tips, Code and FAQ" (Microsoft, 2024); arXiv 2504.12285, §2.2.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StageTwo {
    /// Where it begins, as a share of all steps, above 0 and below 1.
    pub at: f64,
    /// The factor of the learning rate, above 0, at most 1.
    pub rate: f64,
}

impl Default for StageTwo {
    /// From half of the steps on, two thirds of the learning rate.
    fn default() -> Self {
        Self { at: 0.5, rate: 2.0 / 3.0 }
    }
}

/// What a step computes in. Weights, their moments and the mean of the gradients are f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// bf16: activations, their gradients, and copies of all parameters but the latent weights of BitNet layers. Those are
    /// quantized in f32, so that a step computes with the codes that an export writes.
    Bf16,
}

/// Which parameters weight decay reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// All but norms, biases and embeddings: parameters of one axis, and those of Burn's `Embedding`.
    #[default]
    Matrices,
    /// Every parameter.
    All,
}

/// How a model is trained.
///
/// In a file everything but `steps` may be left out, and is then as in [`new`](Self::new).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "InFile")]
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
    /// Which parameters it reaches.
    pub decay: Decay,
    /// The largest norm of all gradients together; larger ones are scaled down to it. `None`, in a file `inf`, for no
    /// limit.
    #[serde(serialize_with = "limit")]
    pub clip_norm: Option<f64>,
    /// λ, from the first step on.
    pub lambda: LambdaWarmupConfig,
    /// What a step computes in.
    pub precision: Precision,
    /// Whether the backward pass computes what is cheap again (sums, norms, activations) instead of keeping it.
    pub gradient_checkpointing: bool,
}

/// [`TrainConfig`] as people write it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InFile {
    steps: u64,
    learning_rate: Option<f64>,
    lr_warmup_steps: Option<u64>,
    lr_decay: Option<LrDecay>,
    betas: Option<[f32; 2]>,
    adam_eps: Option<f32>,
    weight_decay: Option<f32>,
    decay: Option<Decay>,
    clip_norm: Option<f64>,
    lambda: Option<LambdaWarmupConfig>,
    precision: Option<Precision>,
    gradient_checkpointing: Option<bool>,
}

impl From<InFile> for TrainConfig {
    fn from(file: InFile) -> Self {
        let default = Self::new(file.steps);
        Self {
            steps: file.steps,
            learning_rate: file.learning_rate.unwrap_or(default.learning_rate),
            lr_warmup_steps: file.lr_warmup_steps.unwrap_or(default.lr_warmup_steps),
            lr_decay: file.lr_decay.unwrap_or(default.lr_decay),
            betas: file.betas.unwrap_or(default.betas),
            adam_eps: file.adam_eps.unwrap_or(default.adam_eps),
            weight_decay: file.weight_decay.unwrap_or(default.weight_decay),
            decay: file.decay.unwrap_or(default.decay),
            clip_norm: file
                .clip_norm
                .map_or(default.clip_norm, |norm| (norm != f64::INFINITY).then_some(norm)),
            lambda: file.lambda.unwrap_or(default.lambda),
            precision: file.precision.unwrap_or(default.precision),
            gradient_checkpointing: file.gradient_checkpointing.unwrap_or(default.gradient_checkpointing),
        }
    }
}

/// A limit in a file, where there is no `None`: infinity.
fn limit<S: Serializer>(limit: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(limit.unwrap_or(f64::INFINITY))
}

impl TrainConfig {
    /// Defaults for a short run: cosine learning rate from 1e-3 after a twentieth of the steps, λ rising linearly
    /// over the first half, gradients clipped to 1, no weight decay, all in f32.
    pub fn new(steps: u64) -> Self {
        Self {
            steps,
            learning_rate: 1e-3,
            lr_warmup_steps: steps / 20,
            lr_decay: LrDecay::Cosine,
            betas: [0.9, 0.95],
            adam_eps: 1e-8,
            weight_decay: 0.0,
            decay: Decay::Matrices,
            clip_norm: Some(1.0),
            lambda: LambdaWarmupConfig::new(Schedule::Linear, steps / 2),
            precision: Precision::F32,
            gradient_checkpointing: false,
        }
    }

    /// # Errors
    /// [`TrainError::Config`] names the first setting out of range, [`TrainError::Warmup`] is about λ.
    pub fn validate(&self) -> Result<(), TrainError> {
        let lr = self.learning_rate;
        check("steps", self.steps, self.steps > 0, "above 0")?;
        check("learning_rate", lr, lr > 0.0 && lr <= 1.0, "above 0, at most 1")?;
        let lr_warmup = self.lr_warmup_steps;
        check("lr_warmup_steps", lr_warmup, lr_warmup <= self.steps, "at most the steps")?;
        if let LrDecay::TwoStage(StageTwo { at, rate }) = self.lr_decay {
            check("lr_decay.two_stage.at", at, at > 0.0 && at < 1.0, "above 0, below 1")?;
            check("lr_decay.two_stage.rate", rate, rate > 0.0 && rate <= 1.0, "above 0, at most 1")?;
        }
        let betas = self.betas.iter().all(|beta| (0.0..1.0).contains(beta));
        check("betas", format!("{:?}", self.betas), betas, "from 0, below 1")?;
        let eps = self.adam_eps;
        check("adam_eps", eps, eps > 0.0 && eps.is_finite(), "a positive number")?;
        let decay = self.weight_decay;
        check("weight_decay", decay, decay >= 0.0 && decay.is_finite(), "from 0")?;
        let clip = self.clip_norm.unwrap_or(1.0);
        check("clip_norm", clip, clip > 0.0 && clip.is_finite(), "a positive number")?;
        Ok(self.lambda.validate()?)
    }

    /// The step with which the second stage begins, and its factor of the learning rate.
    pub(crate) fn stage_two(&self) -> Option<(u64, f64)> {
        match self.lr_decay {
            LrDecay::TwoStage(StageTwo { at, rate }) => Some(((self.steps as f64 * at).round() as u64, rate)),
            LrDecay::Constant | LrDecay::Cosine => None,
        }
    }

    /// Burn's schedulers, multiplied: the decay times a rise from `1 / warm-up` to 1.
    pub(crate) fn lr_scheduler(&self) -> Result<ModuleLrScheduler, TrainError> {
        let mut config = ComposedLrSchedulerConfig::new();
        config = match self.lr_decay {
            LrDecay::Constant => config.constant(self.learning_rate),
            LrDecay::Cosine | LrDecay::TwoStage(_) => {
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

/// One condition of a setting.
pub(crate) fn check(
    field: &'static str,
    found: impl ToString,
    holds: bool,
    expected: &str,
) -> Result<(), TrainError> {
    if holds {
        return Ok(());
    }
    Err(TrainError::Config { field, found: found.to_string(), expected: expected.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_leave_out_everything_but_the_steps() {
        let read = |text: &str| toml::from_str::<TrainConfig>(text);
        assert_eq!(read("steps = 40").unwrap(), TrainConfig::new(40));
        let found =
            read("steps = 40\nclip_norm = inf\nlr_decay = { two_stage = { at = 0.25 } }\ndecay = 'all'");
        let expected = TrainConfig {
            clip_norm: None,
            lr_decay: LrDecay::TwoStage(StageTwo { at: 0.25, ..StageTwo::default() }),
            decay: Decay::All,
            ..TrainConfig::new(40)
        };
        assert_eq!(found.unwrap(), expected);
        let written = toml::to_string(&expected).unwrap();
        assert_eq!(read(&written).unwrap(), expected, "{written}");
        for bad in ["", "steps = 40\nstep = 3", "steps = 40\nlr_decay = 'sudden'", "steps = -1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        type Change = fn(&mut TrainConfig);
        let bad: [(&str, Change); 9] = [
            ("steps", |config| config.steps = 0),
            ("learning_rate", |config| config.learning_rate = f64::NAN),
            ("lr_warmup_steps", |config| config.lr_warmup_steps = 41),
            ("lr_decay.two_stage.at", |c| c.lr_decay = LrDecay::TwoStage(StageTwo { at: 1.0, rate: 0.5 })),
            ("lr_decay.two_stage.rate", |c| c.lr_decay = LrDecay::TwoStage(StageTwo { at: 0.5, rate: 0.0 })),
            ("betas", |config| config.betas = [1.0, 0.9]),
            ("adam_eps", |config| config.adam_eps = 0.0),
            ("weight_decay", |config| config.weight_decay = -0.1),
            ("clip_norm", |config| config.clip_norm = Some(0.0)),
        ];
        for (expected, change) in bad {
            let mut config = TrainConfig { lr_warmup_steps: 0, ..TrainConfig::new(40) };
            change(&mut config);
            let error = config.validate().unwrap_err();
            assert!(matches!(error, TrainError::Config { field, .. } if field == expected), "{error}");
        }
    }
}
