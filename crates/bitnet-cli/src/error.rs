//! What can go wrong, and how it is told.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use bitnet_compress::CompressError;
use bitnet_convert::ConvertError;
use bitnet_model::ModelError;
use bitnet_pipeline::{Outcome, PipelineError};
use bitnet_quant::DeviceError;
use bitnet_text::TextError;
use bitnet_train::TrainError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CliError {
    #[error(transparent)]
    Convert(#[from] ConvertError),
    #[error(transparent)]
    Compress(#[from] CompressError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Neither a path nor a hub id.
    #[error("`{found}` is no file or folder, and no hub id either: expected org/name or org/name@revision")]
    Source { found: String },
    /// What `compress` made is there, and no success.
    #[error("the result is written and {verdict}")]
    Worse { verdict: Outcome },
    /// Flags that do not go together, in a way that the parser cannot know.
    #[error("{reason}")]
    Usage { reason: String },
    /// There was nothing for `lrc` to do.
    #[error(
        "no projection got a correction: {dense} are dense (convert comes first), {corrected} have a correction or adapter"
    )]
    NothingCorrected { dense: usize, corrected: usize },
    /// The device failed while a model ran.
    #[error("the device failed: {reason}")]
    Run { reason: String },
    #[error("cannot start {threads} threads")]
    Threads { threads: usize, source: rayon::ThreadPoolBuildError },
    #[error("there is no tokenizer: `{}` does not exist (--tokenizer names another)", path.display())]
    NoTokenizer { path: PathBuf },
    #[error(
        "the model has no chat template: expected chat_template.jinja, or `chat_template` in tokenizer_config.json; --prompt does without"
    )]
    NoChatTemplate,
    #[error("the chat template cannot be used: {reason}")]
    ChatTemplate { reason: String },
    /// A file of token ids is not what it should be.
    #[error("`{}`: {reason}", path.display())]
    Ids { path: PathBuf, reason: String },
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// What stands under the target's name is not what this program writes.
    #[error("`{}` is not replaced, --force or not: {reason}", path.display())]
    NotReplaced { path: PathBuf, reason: &'static str },
    #[error("cannot write to the standard output")]
    Output(#[from] io::Error),
}

impl CliError {
    /// Prints the error and what it comes from, unless nobody reads any more, and gives the exit status.
    pub(crate) fn report(&self) -> ExitCode {
        if let Self::Output(error) = self
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            return ExitCode::SUCCESS; // `bitnet .. | head`: who wanted the rest is gone
        }
        eprintln!("error: {}", self.message());
        ExitCode::from(self.exit_status())
    }

    /// 2 for what is wrong with the command line alone, 3 for a result that is no success, else 1.
    fn exit_status(&self) -> u8 {
        match self {
            Self::Usage { .. } | Self::Device(DeviceError::Unknown { .. }) => 2,
            Self::Worse { .. } => 3,
            _ => 1,
        }
    }

    /// The error and its sources, without those whose text stands in the message already.
    fn message(&self) -> String {
        let mut message = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            let text = error.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = error.source();
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_everything_once() {
        let source = || io::Error::other("disk on fire");
        let error = CliError::Write { path: "a".into(), source: source() };
        assert_eq!(error.message(), "cannot write `a`: disk on fire");
        let error = CliError::Convert(ConvertError::Write { path: "a".into(), source: source() });
        assert_eq!(error.message(), "cannot write `a`: disk on fire");
    }

    #[test]
    fn the_status_tells_a_wrong_command_line_from_a_failure() {
        let unknown = DeviceError::Unknown { name: "tpu".into() };
        assert_eq!(CliError::Device(unknown).exit_status(), 2);
        let absent = DeviceError::NotPresent { name: "wgpu".into(), feature: "wgpu", found: 0 };
        assert_eq!(CliError::Device(absent).exit_status(), 1);
    }
}
