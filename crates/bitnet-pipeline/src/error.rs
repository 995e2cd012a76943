use std::io;
use std::path::PathBuf;

use bitnet_compress::CompressError;
use bitnet_convert::ConvertError;
use bitnet_layers::LayerError;
use bitnet_lrc::LrcError;
use bitnet_model::ModelError;
use bitnet_quant::DeviceError;
use bitnet_text::TextError;
use bitnet_train::TrainError;
use thiserror::Error;

/// Why a checkpoint was not compressed. Nothing stands under the target's name then.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// A setting out of range, or one that contradicts another.
    #[error("`{field}` is {found}: expected {expected}")]
    Setting {
        /// The setting, with its table.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it can be.
        expected: String,
    },
    /// A file of settings cannot be read as one.
    #[error("`{}`{}: {reason}", path.display(), line.map(|line| format!(", line {line}")).unwrap_or_default())]
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: Option<usize>,
        /// What is wrong.
        reason: String,
    },
    /// A setting stands in the file and, with another value, among the flags.
    #[error("`{setting}` is {in_file} in the file and {flag} as a flag: expected one of them")]
    Twice {
        /// The setting.
        setting: String,
        /// Its value in the file.
        in_file: String,
        /// Its value among the flags.
        flag: String,
    },
    /// A setting of mode `model` is given for a source that is no model that is known.
    #[error("`{setting}` needs mode `model`, for which the source is not fit: {source}")]
    NoModel {
        /// The setting.
        setting: &'static str,
        /// Why the source is not fit.
        source: Box<ConvertError>,
    },
    /// A checkpoint, a policy, a correction or an export is wrong.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The target, the disk, or the source's files are wrong.
    #[error(transparent)]
    Compress(#[from] CompressError),
    /// Training, or measuring, failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The data are wrong.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The data do not suit the model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The device cannot be had.
    #[error(transparent)]
    NoDevice(#[from] DeviceError),
    /// A layer cannot be changed as it should.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The device failed.
    #[error("device, at slot `{slot}`: {reason}")]
    Device {
        /// The slot.
        slot: String,
        /// The device's reason.
        reason: String,
    },
    /// The calibration data do not suit the model.
    #[error(transparent)]
    Lrc(#[from] LrcError),
    /// A stage was to run alone, without what it starts from.
    #[error("stage `{stage}` starts from the result of `{missing}`, which is not there")]
    NotReady {
        /// The stage.
        stage: &'static str,
        /// The stage before.
        missing: &'static str,
    },
    /// What was written, read again, is not what was meant.
    #[error("`{artifact}`: {what} differ by {found:e}, expected at most {expected:e}")]
    Differs {
        /// The artifact.
        artifact: &'static str,
        /// What was compared.
        what: String,
        /// How far it is off, or how many values are.
        found: f64,
        /// What is allowed.
        expected: f64,
    },
    /// A file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The result of a stage is damaged.
    #[error("`{}` is damaged: {reason}; without the folder that it is in, the run begins anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl PipelineError {
    pub(crate) fn setting(field: &'static str, found: impl ToString, expected: impl Into<String>) -> Self {
        Self::Setting { field, found: found.to_string(), expected: expected.into() }
    }
}
