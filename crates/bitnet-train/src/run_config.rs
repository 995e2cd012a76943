//! The file of settings of a whole run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bitnet_convert::Policy;
use bitnet_text::TokenSource;
use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::config::check;
use crate::{DistillConfig, TrainConfig, TrainError};

/// A whole run: which model, on which data, how, and what is kept of it. Written in TOML.
///
/// ```
/// # use bitnet_train::RunConfig;
/// let config: RunConfig = toml::from_str(r#"
///     out = "runs/first"
///     [model]
///     source = "SmolLM2-135M"
///     [data]
///     source = { text = ["books"] }
///     window = 256
///     [train]
///     steps = 2000
/// "#)?;
/// assert_eq!(config.batch.micro_batch, 8);
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The folder of the run. One that holds an interrupted run of the same settings is gone on with.
    pub out: PathBuf,
    /// Decides the order of the data, and whatever else is random. 0 if it is left out.
    #[serde(default)]
    pub seed: u64,
    /// `flex`, `ndarray`, `wgpu`, `vulkan` or `cuda`, with an index as in `cuda:1`; if it is left out, the program's
    /// own choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Devices that compute micro-batches beside that one, each on a copy of the model, which has no dropout; none if it is
    /// left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_devices: Vec<String>,
    /// Whether the optimizer's state is dealt out to all devices instead of lying on the first: with two, each has the moments
    /// of half of the parameters. No if it is left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shard_optimizer: bool,
    /// A loss above this many times the moving mean of the steps before ends the run. 3 if it is left out.
    #[serde(default = "explosion")]
    pub explosion: f64,
    /// What is trained.
    pub model: ModelConfig,
    /// What it is trained on.
    pub data: DataConfig,
    /// How much of that a step sees.
    #[serde(default)]
    pub batch: BatchConfig,
    /// The optimizer, its learning rate, and λ.
    pub train: TrainConfig,
    /// What the student is compared with, beside the data; nothing if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distill: Option<DistillConfig>,
    /// When the held-out data are looked at.
    #[serde(default)]
    pub eval: EvalConfig,
    /// When the run is saved.
    #[serde(default)]
    pub snapshots: SnapshotConfig,
}

fn explosion() -> f64 {
    3.0
}

/// What a run trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A checkpoint folder; for the `bitnet` command also an id on the hub.
    pub source: String,
    /// How a dense source is converted; one that is BitNet already is trained as it is.
    #[serde(default)]
    pub policy: Policy,
    /// Sequences of the training data that a policy with salient columns or calibrated gains looks at. 32 if it is left
    /// out.
    #[serde(default = "calibration")]
    pub calibration: usize,
    /// What of it changes. Everything if it is left out.
    #[serde(default)]
    pub trainable: Trainable,
}

fn calibration() -> usize {
    32
}

/// What of a model is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trainable {
    /// Everything.
    #[default]
    All,
    /// The sub-norms before projections alone, as conversion inserts them: to realign a converted model with its
    /// source, in a run of its own with `hidden_mse`.
    SubNorms,
}

/// The data of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Text, JSONL or tokens.
    pub source: TokenSource,
    /// The tokenizer.json to use; the model's own if it is left out. Tokens need none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// The token that follows each document, as the vocabulary spells it; none if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// Tokens of a sequence. Documents are packed: a sequence may hold the end of one and the beginning of the next.
    pub window: usize,
    /// The share of the sequences, from the end, that is never trained on. 0.05 if it is left out.
    #[serde(default = "held_out")]
    pub held_out: f64,
    /// The folder for the tokens of text. `token-cache` if it is left out.
    #[serde(default = "cache")]
    pub cache: PathBuf,
}

fn held_out() -> f64 {
    0.05
}

fn cache() -> PathBuf {
    "token-cache".into()
}

/// The sequences of one optimizer step: `micro_batch · accumulation`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Sequences that are computed at once. 8 if it is left out.
    pub micro_batch: usize,
    /// Of those, per step: their gradients are averaged. 1 if it is left out.
    pub accumulation: usize,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { micro_batch: 8, accumulation: 1 }
    }
}

/// When the held-out data are looked at, always at λ = 1: what counts is the ternary model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// After every so many steps, and after the last. 100 if it is left out.
    pub every: u64,
    /// On so many sequences at most. 64 if it is left out.
    pub windows: u64,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self { every: 100, windows: 64 }
    }
}

/// When the run is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotConfig {
    /// After every so many steps, after the last, and after each that is the best so far. 100 if it is left out.
    pub every: u64,
    /// So many are kept, and the best. 3 if it is left out.
    pub keep: usize,
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self { every: 100, keep: 3 }
    }
}

/// A step's sequences are in memory together.
const MAX_SEQUENCES: usize = 1 << 20;

impl RunConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`TrainError::ConfigFile`] names the file, the line and the setting.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, TrainError> {
        let path = path.as_ref();
        let wrong = |line, reason: String| TrainError::ConfigFile { path: path.into(), line, reason };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(None, error.to_string()))?;
        let line_at = |offset: usize| text[..offset].matches('\n').count() + 1;
        let config: Self = toml::from_str(&text).map_err(|error| {
            wrong(error.span().map(|span| line_at(span.start)), error.message().replace('\n', ": "))
        })?;
        config.validate().map_err(|error| {
            let field = match &error {
                TrainError::Config { field, .. } => field,
                _ => "train.lambda",
            };
            wrong(offset_of(&text, field).map(line_at), error.to_string())
        })?;
        Ok(config)
    }

    /// Every setting with its value, as a file that [`read`](Self::read) reads.
    ///
    /// # Errors
    /// [`TrainError::Config`] for a seed that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, TrainError> {
        toml::to_string(self).map_err(|error| TrainError::Config {
            field: "seed",
            found: self.seed.to_string(),
            expected: format!("what TOML can hold: {error}"),
        })
    }

    /// # Errors
    /// [`TrainError::Config`] names the first setting out of range, with its table.
    pub fn validate(&self) -> Result<(), TrainError> {
        let (data, batch) = (&self.data, &self.batch);
        check("out", self.out.display(), self.out.file_name().is_some(), "the name of a folder")?;
        check("explosion", self.explosion, self.explosion > 1.0, "above 1")?;
        let calibration = self.model.calibration;
        check("model.calibration", calibration, calibration > 0, "at least 1")?;
        check("data.window", data.window, data.window >= 2, "at least 2 tokens, one to predict")?;
        check(
            "data.held_out",
            data.held_out,
            data.held_out > 0.0 && data.held_out < 1.0,
            "above 0, below 1",
        )?;
        check("batch.micro_batch", batch.micro_batch, batch.micro_batch > 0, "at least 1")?;
        check("batch.accumulation", batch.accumulation, batch.accumulation > 0, "at least 1")?;
        let sequences = batch.micro_batch.checked_mul(batch.accumulation);
        let few = sequences.is_some_and(|n| n <= MAX_SEQUENCES);
        let expected = format!("at most {MAX_SEQUENCES} sequences in a step, micro_batch · accumulation");
        check("batch.accumulation", batch.accumulation, few, &expected)?;
        let n_devices = 1 + self.more_devices.len();
        let expected =
            format!("a multiple of the {n_devices} devices, among which micro-batches are dealt out");
        let even = batch.accumulation.is_multiple_of(n_devices);
        check("batch.accumulation", batch.accumulation, even, &expected)?;
        let shards = !self.shard_optimizer || n_devices > 1;
        check("shard_optimizer", self.shard_optimizer, shards, "false, or several devices: `more_devices`")?;
        check("eval.every", self.eval.every, self.eval.every > 0, "at least 1")?;
        check("eval.windows", self.eval.windows, self.eval.windows > 0, "at least 1")?;
        check("snapshots.every", self.snapshots.every, self.snapshots.every > 0, "at least 1")?;
        check("snapshots.keep", self.snapshots.keep, self.snapshots.keep > 0, "at least 1")?;
        self.distill.as_ref().map_or(Ok(()), DistillConfig::validate)?;
        self.train.validate()
    }

    /// Sequences of one optimizer step.
    pub(crate) fn windows_per_step(&self) -> u64 {
        self.batch.micro_batch as u64 * self.batch.accumulation as u64
    }

    /// The first setting that makes this another run than `other`: its name and the two values. Where a run is saved,
    /// when it is evaluated and what it runs on may change on the way.
    pub(crate) fn difference(&self, other: &Self) -> Result<Option<(String, String, String)>, TrainError> {
        let settings = |config: &Self| -> Result<BTreeMap<String, Value>, TrainError> {
            let mut settings = BTreeMap::new();
            flatten("", toml::from_str::<Table>(&config.to_toml()?).unwrap_or_default(), &mut settings);
            settings.retain(|name, _| {
                !(["out", "device", "more_devices", "shard_optimizer", "explosion", "data.cache"]
                    .contains(&name.as_str())
                    || name.starts_with("eval.")
                    || name.starts_with("snapshots."))
            });
            Ok(settings)
        };
        let (mine, others) = (settings(self)?, settings(other)?);
        let name = mine.keys().chain(others.keys()).find(|name| mine.get(*name) != others.get(*name));
        let value =
            |of: &BTreeMap<String, Value>, name| of.get(name).map_or("nothing".into(), Value::to_string);
        Ok(name.map(|name| (name.clone(), value(&mine, name), value(&others, name))))
    }
}

/// Settings by their full names.
fn flatten(prefix: &str, table: Table, settings: &mut BTreeMap<String, Value>) {
    for (name, value) in table {
        let name = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(table) => flatten(&name, table, settings),
            value => {
                settings.insert(name, value);
            }
        }
    }
}

/// Where a setting stands in a file: `field` is a full name, or one in `train`.
fn offset_of(text: &str, field: &str) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let find = |path: &str| {
        let mut table = root.get_ref();
        let mut found = None;
        for key in path.split('.') {
            let (name, value) = table.iter().find(|(name, _)| name.get_ref() == key)?;
            found = Some(name.span().start);
            match value.get_ref() {
                DeValue::Table(inner) => table = inner,
                _ => return found.filter(|_| path.ends_with(key)),
            }
        }
        found
    };
    find(field).or_else(|| find(&format!("train.{field}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: &str = "out = 'runs/a'\n[model]\nsource = 'm'\n[data]\nsource = { text = ['t'] }\nwindow = 16\n\
        [train]\nsteps = 10\n";

    fn read(text: &str) -> Result<RunConfig, TrainError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        RunConfig::read(file.path())
    }

    #[test]
    fn a_resolved_file_is_the_same_run() {
        let config = read(SHORT).unwrap();
        assert_eq!((config.eval.every, config.snapshots.keep, config.data.held_out), (100, 3, 0.05));
        let resolved = config.to_toml().unwrap();
        for name in ["explosion", "learning_rate", "sub_norm", "warmup_steps", "accumulation", "keep"] {
            assert!(resolved.contains(name), "{name}: {resolved}");
        }
        assert_eq!(read(&resolved).unwrap(), config, "{resolved}");
    }

    #[test]
    fn errors_name_the_line() {
        let line = |text: &str, expected: usize, word: &str| match read(text).unwrap_err() {
            TrainError::ConfigFile { line, reason, .. } => {
                assert_eq!(line, Some(expected), "{reason}");
                assert!(reason.contains(word), "{reason}");
            }
            other => panic!("{other}"),
        };
        line(&SHORT.replace("window = 16", "window = 1"), 6, "`data.window` is 1: expected at least 2");
        line(&format!("{SHORT}learning_rate = 2"), 9, "`learning_rate` is 2");
        line(&format!("{SHORT}lambda = {{ schedule = 'linear', warmup_steps = 3, max = 2.0 }}"), 9, "2");
        line(
            &format!("{SHORT}\n[train.lambda]\nschedule = 'linear'\nwarmup_steps = 3\nmin = 0.9\nmax = 0.1"),
            10,
            "0.9",
        );
        line(
            &format!("more_devices = ['cuda:1']\n{SHORT}\n[batch]\naccumulation = 3"),
            12,
            "`batch.accumulation` is 3: expected a multiple of the 2",
        );
        line(
            &format!("shard_optimizer = true\n{SHORT}"),
            1,
            "`shard_optimizer` is true: expected false, or several",
        );
        line(
            &format!("{SHORT}\n[batch]\naccumulation = 4611686018427387904"),
            11,
            "at most 1048576 sequences in a step",
        );
        line(&format!("{SHORT}\n[eval]\nevery = 0"), 11, "`eval.every` is 0");
        line(
            &format!("{SHORT}\n[distill]\nlogit_kl = {{ temperature = 0 }}"),
            11,
            "`distill.logit_kl.temperature` is 0",
        );
        line(&format!("{SHORT}\n[batch]\nmicro_batches = 3"), 11, "micro_batches");
        line(&SHORT.replace("steps = 10", "steps = 'ten'"), 8, "ten");
        line(&SHORT.replace("[train]", "[train"), 7, "");
        assert!(matches!(RunConfig::read("no such file"), Err(TrainError::ConfigFile { line: None, .. })));
    }

    #[test]
    fn runs_are_told_apart_by_what_decides_their_steps() {
        let config = read(SHORT).unwrap();
        let mut other = config.clone();
        other.out = "runs/b".into();
        other.device = Some("wgpu".into());
        other.more_devices = vec!["wgpu:1".into()];
        other.shard_optimizer = true;
        other.data.cache = "elsewhere".into();
        other.eval.every = 7;
        other.snapshots.keep = 7;
        assert_eq!(config.difference(&other).unwrap(), None);
        other.train.learning_rate = 0.5;
        let (name, mine, others) = config.difference(&other).unwrap().unwrap();
        assert_eq!((name.as_str(), mine.as_str(), others.as_str()), ("train.learning_rate", "0.001", "0.5"));
        other.train = config.train.clone();
        other.data.separator = Some("<end>".into());
        assert_eq!(config.difference(&other).unwrap().unwrap().0, "data.separator");
    }
}
