//! What can go wrong in a task.

use std::path::PathBuf;

/// Why a task failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// `--device` or `--backend` names nothing that exists.
    #[error(
        "unknown device `{name}`, known are {known} (with an index where there are several, as in `cuda:1`)"
    )]
    UnknownDevice { name: String, known: String },

    /// A flag that takes a value is the last word of the command line.
    #[error("`{flag}` needs a value")]
    NoValue { flag: &'static str },

    /// A program could not be started.
    #[error("cannot run `{program}`")]
    Start { program: String, source: std::io::Error },

    /// The command of a task ended with this status; it has said why itself.
    #[error("{what} failed")]
    Failed { what: String, status: u8 },

    /// Tests failed, or a required backend is absent; the summary says which.
    #[error("tests failed: {}", .names.join(", "))]
    Tests { names: Vec<String> },

    /// A crate depends on a crate that it may not depend on.
    #[error("{} against the order in ARCHITECTURE.md:\n  {}", count(.edges.len(), "dependency", "dependencies"), .edges.join("\n  "))]
    Edges { edges: Vec<String> },

    /// A program of the workspace that xtask relies on was not built.
    #[error("cargo built no program `{name}`")]
    NoProgram { name: &'static str },

    /// `cargo metadata` printed something unexpected.
    #[error("cannot read the output of `cargo metadata`: {reason}")]
    Metadata { reason: String },

    /// Neither HOME nor a variable that names the folder is set.
    #[error("no folder for the Python environment: set BITNET_INTEROP_ENV")]
    NoCacheFolder,

    /// A package without a version in the requirements file.
    #[error("tests/interop/requirements.txt has no line `{package}==VERSION`")]
    NotPinned { package: String },

    /// A file of the workspace could not be read or written.
    #[error("cannot access {}", .path.display())]
    File { path: PathBuf, source: std::io::Error },

    /// The workspace's manifest is not TOML.
    #[error("cannot parse {}", .path.display())]
    Manifest { path: PathBuf, source: Box<toml::de::Error> },
}

impl Error {
    /// The exit status of xtask: that of the command that failed, else 1.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Failed { status, .. } => *status,
            _ => 1,
        }
    }
}

fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}
