//! The settings of a compression.

use std::path::{Path, PathBuf};

use bitnet_compress::{Float, Granularity, Options, Rule};
use bitnet_convert::{GgufType, HfFormat, Placement, Policy, SubNormGain};
use bitnet_lrc::{Init, LrcConfig};
use bitnet_quant::{ActivationQuant, Quantization};
use bitnet_text::TokenSource;
use bitnet_train::{
    BatchConfig, DataConfig, DistillConfig, EvalConfig, ModelConfig, RunConfig, SnapshotConfig, TrainConfig,
    Trainable,
};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::PipelineError;

/// How a checkpoint is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// `model` where settings ask for something that only it does, else `tensors`: see [`choose`](crate::choose).
    #[default]
    Auto,
    /// Tensor by tensor, by names and shapes.
    Tensors,
    /// As a model that is known, with calibration data.
    Model,
}

/// What to do with a checkpoint. Written in TOML; everything has a default.
///
/// ```
/// let config: bitnet_pipeline::Config = toml::from_str(r#"
///     dtype = "f16"
///     [data]
///     source = { text = ["books"] }
///     [train]
///     steps = 500
///     [export]
///     gguf = "auto"
/// "#)?;
/// config.validate()?;
/// assert_eq!(config.verdict.max_ratio, 1.1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which mode; chosen if it is left out.
    pub mode: Mode,
    /// How weights become codes. In mode `model` by absmean alone.
    pub rule: Rule,
    /// The type of all floats in the dense files; the source's if it is left out.
    pub dtype: Option<Float>,
    /// Whether packed files are written too. Mode `model` writes them anyway where a weight has one scale.
    pub packed: bool,
    /// Globs on full names of matrices that are ternarized though name tables leave them alone. Mode `tensors` only.
    pub include: Vec<String>,
    /// Globs on full names of what is left alone: of tensors, in mode `model` of slots, as in `*.down_proj`.
    pub exclude: Vec<String>,
    /// Decides which windows are calibrated on, and the order of training. Mode `model` only, as all that follows.
    pub seed: u64,
    /// `flex`, `ndarray`, `wgpu`, `vulkan` or `cuda`, with an index as in `cuda:1`; else the program's own choice.
    pub device: Option<String>,
    /// What the model is calibrated, trained and measured on.
    pub data: Option<Data>,
    /// How much of that is calibrated on.
    pub calibration: Calibration,
    /// What conversion does.
    pub convert: Convert,
    /// Low-rank corrections beside the ternary weights; none if it is left out.
    pub lrc: Option<LrcConfig>,
    /// Fine-tuning, with the settings of `bitnet train`; none if it is left out.
    pub train: Option<TrainConfig>,
    /// What fine-tuning compares the model with; the data alone if it is left out. The teacher is the source.
    pub distill: Option<DistillConfig>,
    /// How much of the data a training step sees, and how much is measured at once.
    pub batch: BatchConfig,
    /// When training looks at the held-out data, and how many windows every perplexity is measured on.
    pub eval: EvalConfig,
    /// After how many evaluations without a better one training ends; only after its last step if it is left out.
    pub patience: Option<u64>,
    /// When training is saved.
    pub snapshots: SnapshotConfig,
    /// What else is written.
    pub export: Export,
    /// What counts as success.
    pub verdict: Verdict,
}

/// Text or tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Text, JSONL or tokens.
    pub source: TokenSource,
    /// The tokenizer.json to use; the model's own if it is left out.
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
    /// The token that follows each document, as the vocabulary spells it; none if it is left out.
    #[serde(default)]
    pub separator: Option<String>,
    /// Tokens of a window. 256 if it is left out.
    #[serde(default = "window")]
    pub window: usize,
    /// The share of the windows, from the end, that is measured on alone. 0.1 if it is left out.
    #[serde(default = "held_out")]
    pub held_out: f64,
    /// The folder for the tokens of text. `token-cache` if it is left out.
    #[serde(default = "cache")]
    pub cache: PathBuf,
}

fn window() -> usize {
    256
}

fn held_out() -> f64 {
    0.1
}

fn cache() -> PathBuf {
    "token-cache".into()
}

/// What is calibrated on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Calibration {
    /// How many windows; all of the training side if there are fewer. 32 if it is left out.
    pub windows: usize,
}

impl Default for Calibration {
    fn default() -> Self {
        Self { windows: 32 }
    }
}

/// What conversion does, beside the rule and what it excludes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Convert {
    /// Where a sub-norm is inserted: `none`, `output` (before o_proj and down_proj) or `all`. `output` if it is left out.
    pub sub_norm: Placement,
    /// How inputs are quantized: `off`, `{ per_token = BITS }`, `{ per_tensor = BITS }`. 8 bits per token if it is left
    /// out.
    pub activation: ActivationQuant,
    /// Whether o_proj and down_proj are turned by a Hadamard matrix first.
    pub hadamard: bool,
    /// The share of columns that the other slots keep in full precision; none if it is left out.
    pub salient: Option<f64>,
    /// What inserted sub-norms begin with: `ones`, or `calibrated`, the size of what enters them. `calibrated` if it is
    /// left out.
    pub sub_norm_gain: SubNormGain,
}

impl Default for Convert {
    fn default() -> Self {
        Self {
            sub_norm: Placement::Output,
            activation: ActivationQuant::default(),
            hadamard: false,
            salient: None,
            sub_norm_gain: SubNormGain::Calibrated,
        }
    }
}

/// What is written beside the dense folder and the packed one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Export {
    /// `latent/`: the model with the weights that its codes are made from. Written anyway where it cannot be packed.
    pub latent: bool,
    /// `hf/`: a folder for transformers, `bitlinear`, `autobitlinear` or `online`.
    pub hf: Option<HfFormat>,
    /// `model.gguf` for llama.cpp or bitnet.cpp: `auto`, `tq1_0`, `tq2_0`, `q2_0`, `f16`, `f32`, `i2s_x86`, `i2s_arm`.
    pub gguf: Option<GgufType>,
}

/// What counts as success.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Verdict {
    /// How many times the dense model's perplexity the result may have. 1.1 if it is left out.
    pub max_ratio: f64,
}

impl Default for Verdict {
    fn default() -> Self {
        Self { max_ratio: 1.1 }
    }
}

impl Config {
    /// Reads a file of settings and adds those of the command line, a table of the same form.
    ///
    /// # Errors
    /// [`PipelineError::File`] names file, line and setting, [`PipelineError::Twice`] a setting with two values; those of
    /// [`validate`](Self::validate).
    pub fn read(path: Option<&Path>, flags: Table) -> Result<Self, PipelineError> {
        let shown = path.unwrap_or(Path::new("the command line")).to_owned();
        let wrong = |line, error: toml::de::Error| PipelineError::File {
            path: shown.clone(),
            line,
            reason: error.message().replace('\n', ": "),
        };
        let mut settings = Table::new();
        if let Some(path) = path {
            let read = |source| PipelineError::Read { path: path.into(), source };
            let text = std::fs::read_to_string(path).map_err(read)?;
            let line = |error: &toml::de::Error| {
                error
                    .span()
                    .and_then(|span| text.get(..span.start))
                    .map(|text| text.matches('\n').count() + 1)
            };
            settings = toml::from_str(&text).map_err(|error| wrong(line(&error), error))?;
            if !flags.contains_key("data") {
                // Only here lines are known.
                toml::from_str::<Self>(&text).map_err(|error| wrong(line(&error), error))?;
            }
        }
        merge(&mut settings, flags, "")?;
        let config: Self = settings.try_into().map_err(|error| wrong(None, error))?;
        config.validate()?;
        Ok(config)
    }

    /// The options of mode `tensors`.
    pub fn options(&self) -> Options {
        Options {
            rule: self.rule,
            dtype: self.dtype,
            packed: self.packed,
            include: self.include.clone(),
            exclude: self.exclude.clone(),
        }
    }

    /// How many weights share a scale in mode `model`.
    pub(crate) fn granularity(&self) -> Granularity {
        self.rule.granularity()
    }

    /// The policy of conversion.
    pub(crate) fn policy(&self) -> Policy {
        Policy {
            sub_norm: self.convert.sub_norm,
            sub_norm_gain: self.convert.sub_norm_gain,
            exclude: self.exclude.clone(),
            quantization: Quantization { weight: self.granularity(), activation: self.convert.activation },
            hadamard: self.convert.hadamard,
            salient: self.convert.salient,
        }
    }

    /// Whether conversion needs batches of data.
    pub(crate) fn needs_batches(&self) -> bool {
        let calibrated = |lrc: &LrcConfig| matches!(lrc.init, Init::Calibrated { .. });
        self.policy().needs_data() || self.lrc.as_ref().is_some_and(calibrated)
    }

    /// The run that fine-tuning is; the data of one without fine-tuning are the same.
    pub(crate) fn run(&self, data: &Data, out: &Path, model: &Path, device: &str) -> RunConfig {
        let Data { source, tokenizer, separator, window, held_out, cache } = data.clone();
        let model = model.to_string_lossy().into_owned();
        RunConfig {
            more_devices: Vec::new(),
            shard_optimizer: false,
            out: out.into(),
            seed: self.seed,
            device: Some(device.into()),
            explosion: 3.0,
            model: ModelConfig {
                source: model,
                policy: self.policy(),
                calibration: self.calibration.windows,
                trainable: Trainable::All,
            },
            data: DataConfig { source, tokenizer, separator, window, held_out, cache },
            batch: self.batch.clone(),
            train: self.train.clone().unwrap_or_else(|| TrainConfig::new(1)),
            distill: self.distill.clone(),
            eval: self.eval.clone(),
            snapshots: self.snapshots.clone(),
        }
    }
}

/// Adds settings to others; the same one twice must have one value.
fn merge(into: &mut Table, from: Table, prefix: &str) -> Result<(), PipelineError> {
    for (name, value) in from {
        match (into.get_mut(&name), value) {
            (Some(Value::Table(inner)), Value::Table(more)) => {
                merge(inner, more, &format!("{prefix}{name}."))?;
            }
            (Some(found), value) if *found != value => {
                let setting = format!("{prefix}{name}");
                return Err(PipelineError::Twice {
                    setting,
                    in_file: found.to_string(),
                    flag: value.to_string(),
                });
            }
            (_, value) => {
                into.insert(name, value);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, flags: &str) -> Result<Config, PipelineError> {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), file).unwrap();
        Config::read(Some(path.path()), toml::from_str(flags).unwrap())
    }

    const DATA: &str = "data = { source = { text = ['a'] } }";

    #[test]
    fn flags_stand_beside_a_file() {
        let config = read("dtype = 'f16'\n[data]\nwindow = 64", DATA).unwrap();
        let data = config.data.unwrap();
        assert_eq!((config.dtype, data.window), (Some(Float::F16), 64));
        assert_eq!(data.source, TokenSource::Text(vec!["a".into()]));
        assert!(read("dtype = 'f16'", "dtype = 'f16'").is_ok(), "the same twice");
        for (file, flags, name) in [
            ("dtype = 'f16'", "dtype = 'bf16'", "`dtype` is \"f16\""),
            (
                "[data]\nwindow = 64\nsource = { text = ['a'] }",
                "data = { window = 32 }",
                "`data.window` is 64",
            ),
            ("exclude = ['a']", "exclude = ['b']", "`exclude`"),
        ] {
            let error = read(file, flags).unwrap_err();
            assert!(
                matches!(error, PipelineError::Twice { .. }) && error.to_string().contains(name),
                "{error}"
            );
        }
    }

    #[test]
    fn errors_name_the_line() {
        for (file, line) in [
            ("dtype = 'f16'\npakced = true", 2),
            ("\n\n[data]\nsource = 3", 4),
            ("[train]\nsteps = 4\nrate = 1", 3),
            ("dtype = 'f16", 1),
        ] {
            match read(file, "").unwrap_err() {
                PipelineError::File { line: found, reason, .. } => assert_eq!(found, Some(line), "{reason}"),
                other => panic!("{other}"),
            }
        }
    }
}
