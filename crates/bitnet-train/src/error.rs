use std::path::PathBuf;

use bitnet_convert::ConvertError;
use bitnet_lrc::LrcError;
use bitnet_model::ModelError;
use bitnet_quant::DeviceError;
use bitnet_text::TextError;
use bitnet_warmup::WarmupError;
use thiserror::Error;

/// Why training cannot start or go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting out of range.
    #[error("training `{field}` is {found}: expected {expected}")]
    Config {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A file of settings cannot be used.
    #[error("`{}`{}: {reason}", path.display(), line.map(|line| format!(", line {line}")).unwrap_or_default())]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// The line, from 1, where the setting stands in the file.
        line: Option<usize>,
        /// What is wrong.
        reason: String,
    },
    /// The model cannot be loaded or saved.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// Calibration on the run's data failed.
    #[error(transparent)]
    Lrc(#[from] LrcError),
    /// The device cannot be had.
    #[error(transparent)]
    NoDevice(#[from] DeviceError),
    /// The λ schedule is not sound.
    #[error(transparent)]
    Warmup(#[from] WarmupError),
    /// The batch does not suit the model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The text does not suit the run.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A step was asked for without data.
    #[error("step {step} has no batch")]
    NoBatch {
        /// The step.
        step: u64,
    },
    /// The loss or the gradient is NaN or infinite; the model is as it was before this step.
    #[error("{what} of step {step} is {found}: expected a finite number")]
    NotFinite {
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// The step.
        step: u64,
        /// The value.
        found: f64,
    },
    /// The mean loss of an evaluation is NaN or infinite.
    #[error("evaluation loss is {found}: expected a finite number")]
    EvaluationNotFinite {
        /// The value.
        found: f64,
    },
    /// A teacher's logarithmic probability of a token that is to be kept is NaN or infinite.
    #[error(
        "the teacher gives one of its `top_k` likeliest tokens the logarithmic probability {found}: expected a finite number"
    )]
    Teacher {
        /// The value.
        found: f64,
    },
    /// The loss left the range of the steps before.
    #[error("loss of step {step} is {found:.4}, more than {limit} times the {mean:.4} of the steps before")]
    Explosion {
        /// The step.
        step: u64,
        /// Its loss.
        found: f64,
        /// The moving mean before it.
        mean: f64,
        /// The factor that was allowed.
        limit: f64,
    },
    /// A run ended before its last step.
    #[error("{source}; {}", advice(*snapshot))]
    Stopped {
        /// The steps of its last good snapshot, if there is one.
        snapshot: Option<u64>,
        /// Why.
        source: Box<TrainError>,
    },
    /// Another process is working on the run.
    #[error("run `{}` is in use by another process", path.display())]
    InUse {
        /// The run's folder.
        path: PathBuf,
    },
    /// The run was begun with other settings or other data.
    #[error("run `{}` was begun with {field} = {found}, not {expected}: choose another `out`", path.display())]
    OtherRun {
        /// The run's folder.
        path: PathBuf,
        /// The first setting that differs.
        field: String,
        /// Its value in the run.
        found: String,
        /// Its value now.
        expected: String,
    },
    /// A snapshot cannot be read, or is not of this model.
    #[error("snapshot `{}`: {reason}", path.display())]
    Snapshot {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The checkpoint of the best evaluation cannot be written.
    #[error("{source}: that was the best evaluation's; the model of the last step is in `{}`", model.display())]
    Best {
        /// The trained checkpoint, which is written.
        model: PathBuf,
        /// What is wrong with the snapshot.
        source: Box<TrainError>,
    },
    /// All snapshots of a run are damaged.
    #[error("every snapshot in `{}` is damaged: remove the folder to begin again", path.display())]
    NoGoodSnapshot {
        /// The folder.
        path: PathBuf,
    },
    /// The device failed.
    #[error("device: {0}")]
    Device(String),
    /// A file of a run cannot be read.
    #[error("cannot read `{}`: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file of the run cannot be written.
    #[error("cannot write `{}`: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's or the plotter's reason.
        reason: String,
    },
}

impl TrainError {
    pub(crate) fn snapshot(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::Snapshot { path: path.into(), reason: reason.to_string() }
    }
}

fn advice(snapshot: Option<u64>) -> String {
    match snapshot {
        Some(steps) => format!("the last good snapshot has {steps} steps, and the same run goes on from it"),
        None => "there is no snapshot yet".into(),
    }
}
