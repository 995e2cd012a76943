use std::path::PathBuf;

use bitnet_model::ModelError;
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
    /// The device failed.
    #[error("device: {0}")]
    Device(String),
    /// A file of the run cannot be written.
    #[error("cannot write `{}`: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's or the plotter's reason.
        reason: String,
    },
}
