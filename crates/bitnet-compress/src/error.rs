//! What can be wrong with a checkpoint, a target or the options.

use std::io;
use std::path::PathBuf;

use bitnet_cpu::CpuError;
use bitnet_format::FormatError;

/// Why a checkpoint was not compressed. Nothing stands under the target's name then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompressError {
    /// A file or folder cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or folder cannot be written, as on a read-only disk.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There are no safetensors files.
    #[error("`{}` holds no safetensors files", path.display())]
    NoWeights {
        /// The source.
        path: PathBuf,
    },
    /// A safetensors file is cut off or damaged.
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A GGUF file: only safetensors are compressed.
    #[error("`{}` is a GGUF file, expected a safetensors file or a folder with some", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
    },
    /// A JSON file does not say what it should.
    #[error("`{}`: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The index names a tensor that its file lacks.
    #[error("tensor `{name}` is missing: the index says that it is in `{file}`")]
    MissingTensor {
        /// The tensor.
        name: String,
        /// The file.
        file: String,
    },
    /// Two files have a tensor of the same name.
    #[error("tensor `{name}` is in `{first}` and in `{second}`, expected one of them")]
    TwiceInSource {
        /// The tensor.
        name: String,
        /// The one file.
        first: String,
        /// The other file.
        second: String,
    },
    /// A glob cannot be read.
    #[error("glob `{glob}`: {reason}")]
    Glob {
        /// The glob.
        glob: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A glob matches no tensor that it could be about.
    #[error("glob `{glob}` matches no {expected}")]
    GlobMatchesNothing {
        /// The glob.
        glob: String,
        /// What it was to match.
        expected: &'static str,
    },
    /// One glob includes what another one excludes.
    #[error("tensor `{name}` is excluded by `{exclude}` and included by `{include}`, expected one of them")]
    Contradiction {
        /// The tensor.
        name: String,
        /// The glob that excludes it.
        exclude: String,
        /// The glob that includes it.
        include: String,
    },
    /// An option is out of its range.
    #[error("{option} is {found}, expected {expected}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        found: String,
        /// What it can be.
        expected: &'static str,
    },
    /// No tensor would be ternarized.
    #[error("none of {tensors} tensors is a linear weight that may be ternarized (include globs name more)")]
    NothingToDo {
        /// How many tensors there are.
        tensors: usize,
    },
    /// A weight's rows cannot be split into groups.
    #[error("tensor `{name}` has shape {shape:?}: groups of {group} do not fit d_input = {d_input}")]
    Group {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The size of a group.
        group: usize,
        /// The length of a row.
        d_input: usize,
    },
    /// A weight is NaN or infinite.
    #[error("tensor `{name}` is {found} at {index:?}, expected finite weights")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Where, in the tensor's own shape.
        index: Vec<usize>,
        /// The weight.
        found: f32,
    },
    /// Weights so large that their mean is infinite.
    #[error("tensor `{name}`: the sum of its weights is beyond f32")]
    Overflow {
        /// The tensor.
        name: String,
    },
    /// A number that the target's type cannot hold.
    #[error("tensor `{name}`: {found:e} cannot be written as {dtype} without loss of its size")]
    Range {
        /// The tensor.
        name: String,
        /// The scale or value.
        found: f32,
        /// The type.
        dtype: &'static str,
    },
    /// Something stands under the target's name.
    #[error("`{}` exists already", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// The target is the source, or inside of it.
    #[error("`{}` is inside of the source, expected a folder outside", path.display())]
    InsideSource {
        /// The target.
        path: PathBuf,
    },
    /// The source lies in the folder in which the target is built, which is cleared.
    #[error("`{}` is inside of `{}`, where the target is built: move it out of there", path.display(), folder.display())]
    SourceInUnfinished {
        /// The source.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
    },
    /// A run in the other mode was not finished.
    #[error(
        "`{}` holds an unfinished run in mode `{found}`, this one is in mode `{expected}`: finish that one, or remove \
         the folder", path.display()
    )]
    OtherMode {
        /// The folder in which the target is built.
        path: PathBuf,
        /// The mode of the run that was not finished.
        found: String,
        /// The mode of this run.
        expected: &'static str,
    },
    /// Another process writes to the same target.
    #[error("another process is writing `{}`", path.display())]
    Busy {
        /// The target.
        path: PathBuf,
    },
    /// The disk is too small. Nothing was written.
    #[error("`{}` needs {needed} bytes, the disk has {free} left", path.display())]
    Space {
        /// The target.
        path: PathBuf,
        /// Bytes that are still to be written.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A file of the source changed while it was read.
    #[error("`{}` changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// What was written is not what the source gives. It is removed.
    #[error("tensor `{name}`: {found} values in `{file}` differ from what its source gives")]
    Verification {
        /// The tensor.
        name: String,
        /// The file of the artifact.
        file: String,
        /// How many differ.
        found: u64,
    },
    /// A packed file does not hold what it says.
    #[error("tensor `{name}` in `{}`: {reason}", path.display())]
    Packed {
        /// The tensor.
        name: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A weight cannot be ternarized.
    #[error("tensor `{name}` cannot be ternarized")]
    Ternarize {
        /// The tensor.
        name: String,
        /// Why.
        source: CpuError,
    },
    /// A plot of the report cannot be drawn.
    #[error("cannot draw a plot: {reason}")]
    Plot {
        /// The plotter's reason.
        reason: String,
    },
    /// Codes and scales are invalid.
    #[error("tensor `{name}`")]
    Format {
        /// The tensor.
        name: String,
        /// Why.
        source: FormatError,
    },
}

impl CompressError {
    /// Whether the same run may succeed later, from where it is.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { .. } | Self::Busy { .. } | Self::OtherMode { .. })
    }
}
