use std::path::PathBuf;

use bitnet_layers::LayerError;
use bitnet_lrc::LrcError;
use bitnet_model::ModelError;
use thiserror::Error;

/// What a checkpoint, or a wish about one, can have wrong.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// A file or folder cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file or folder cannot be written.
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The folder to be written holds something already.
    #[error("`{}` exists: expected a new or empty folder", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A JSON file is damaged, or a field is missing or has the wrong type.
    #[error("`{}`: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the field's name.
        reason: String,
    },
    /// The folder holds no weights.
    #[error("`{}` holds neither model.safetensors nor model.safetensors.index.json", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// The index names a shard that is not there.
    #[error("`{}` names the shard `{shard}`, which is not there", index.display())]
    AbsentShard {
        /// The index file.
        index: PathBuf,
        /// The shard's file name.
        shard: String,
    },
    /// A file is no safetensors file, or is cut short.
    #[error("`{}` is not a sound safetensors file: {reason}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The architecture is not one that this project computes.
    #[error("model_type `{found}`: expected one of {known}")]
    UnknownModelType {
        /// The config's `model_type`.
        found: String,
        /// The known ones.
        known: String,
    },
    /// The config asks for something that this project does not compute.
    #[error("config `{field}` is {found}: {reason}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What is supported.
        reason: String,
    },
    /// The config describes no possible model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tensors are not those that the config implies.
    #[error("{}", list(problems))]
    Tensors {
        /// All that is wrong, not only the first.
        problems: Vec<TensorProblem>,
    },
    /// A weight is NaN or infinite, or would be in the type that it is stored in.
    #[error("tensor `{name}` holds {value} at element {index}: expected finite weights")]
    NotFinite {
        /// The tensor.
        name: String,
        /// The first such element, in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The conversion policy does not fit a slot.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A name pattern cannot be read, or matches nothing.
    #[error("exclude pattern `{pattern}`: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Some slots are BitNet in another way than the policy asks for the rest: one config cannot say both.
    #[error("the model is BitNet in part, with {found}: expected the same for the rest, not {asked}")]
    MixedPolicy {
        /// How the BitNet slots are quantized and normed.
        found: String,
        /// What the policy asks for.
        asked: String,
    },
    /// The policy has salient columns, which are chosen on calibration data.
    #[error("the policy keeps salient columns or calibrates gains: expected calibration data")]
    NeedsData,
    /// A correction, adapter or treatment of outliers does not fit, or its calibration failed.
    #[error(transparent)]
    Lrc(#[from] LrcError),
    /// The policy excludes every projection.
    #[error("every projection is excluded: expected at least one to convert")]
    NothingToConvert,
    /// The model is BitNet already.
    #[error("`{}` is a BitNet checkpoint already", folder.display())]
    AlreadyBitNet {
        /// The folder.
        folder: PathBuf,
    },
    /// The tokenizer can give tokens that the embedding has no row for.
    #[error(
        "the tokenizer has {tokens} tokens, the embedding {rows} rows: expected no more tokens than rows"
    )]
    TokenizerTooLarge {
        /// Tokens of the tokenizer, added ones included.
        tokens: usize,
        /// Rows of the embedding.
        rows: usize,
    },
    /// A file is no GGUF file, or is cut short, or could not be one.
    #[error("`{}`: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: bitnet_format::FormatError,
    },
    /// A GGUF file's metadata lack something or describe what is not computed here.
    #[error("`{}`: key `{key}` is {found}, expected {expected}", path.display())]
    GgufKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What is read.
        expected: String,
    },
    /// The tokenizer has something that GGUF files cannot say.
    #[error("`{}`: {field} is {found}, expected {expected}", path.display())]
    Tokenizer {
        /// The tokenizer's file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What can be written.
        expected: &'static str,
    },
    /// llama.cpp has no pre-tokenizer that splits text as this tokenizer does.
    #[error("`{}`: llama.cpp has no such pre-tokenizer: {found}", path.display())]
    PreTokenizer {
        /// The tokenizer's file.
        path: PathBuf,
        /// How it splits text.
        found: String,
    },
    /// A slot of the model is not what `config.json` would say of it.
    #[error("slot `{name}` is {found}, the checkpoint's config says {expected}")]
    Slot {
        /// The slot.
        name: String,
        /// Its form.
        found: &'static str,
        /// The form that the config describes.
        expected: &'static str,
    },
    /// A format cannot hold this model.
    #[error("cannot export as {format}: {reason}")]
    NotExportable {
        /// The format.
        format: &'static str,
        /// Why, and what would do.
        reason: String,
    },
    /// A slot is not at λ = 1, so its codes are not what it computes with.
    #[error("slot `{name}` is at λ = {found}: expected λ = 1, where it computes with its codes alone")]
    Lambda {
        /// The slot.
        name: String,
        /// Its λ.
        found: f32,
    },
    /// A tensor that should be a linear map's weight is no matrix.
    #[error("tensor `{name}` has shape {found:?}: expected a matrix")]
    NoMatrix {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A weight cannot be ternarized.
    #[error("tensor `{name}`: {source}")]
    Ternarize {
        /// The tensor.
        name: String,
        /// What does not fit.
        source: bitnet_cpu::CpuError,
    },
    /// A ternary weight cannot be packed, or its packed bytes are wrong.
    #[error("tensor `{name}`: {source}")]
    Format {
        /// The tensor.
        name: String,
        /// What is wrong.
        source: bitnet_format::FormatError,
    },
    /// A text is no name of a model on the hub.
    #[cfg(feature = "hub")]
    #[error("`{found}` is no hub id: expected org/name or org/name@revision")]
    HubId {
        /// The text.
        found: String,
    },
    /// A model cannot be had from the hub.
    #[cfg(feature = "hub")]
    #[error("hub model `{id}`: {problem}")]
    Hub {
        /// The model.
        id: String,
        /// Why.
        #[source]
        problem: HubProblem,
    },
    /// The device failed while weights were read from it.
    #[error("device, at tensor `{name}`: {reason}")]
    Device {
        /// The tensor.
        name: String,
        /// The device's reason.
        reason: String,
    },
}

/// Why a model cannot be had from the hub.
#[cfg(feature = "hub")]
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HubProblem {
    /// Neither a variable nor a home says where the cache is.
    #[error("no folder to keep it in: set HF_HOME")]
    NoCache,
    /// The hub is not to be asked, and the cache lacks a file.
    #[error("the cache lacks a file of it, and HF_HUB_OFFLINE forbids to ask the hub")]
    NotCached,
    /// The hub does not know it.
    #[error("{endpoint} has no such model or revision, or it is private (HF_TOKEN lets one in)")]
    NoModel {
        /// The hub.
        endpoint: String,
    },
    /// The hub knows the model, which lacks a file that is needed.
    #[error("it has no file `{file}`")]
    NoFile {
        /// The file.
        file: String,
    },
    /// The hub does not answer, or not now, and the cache lacks a file.
    #[error("cannot reach {endpoint}, and the cache lacks a file of it")]
    Unreachable {
        /// The hub.
        endpoint: String,
        /// The network's reason.
        source: Box<ureq::Error>,
    },
    /// The hub answers something else than a hub does.
    #[error("the hub's answer cannot be used")]
    Answer {
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The hub names a commit that is none.
    #[error("the hub names the commit `{found}`: expected letters and digits")]
    Commit {
        /// The name.
        found: String,
    },
    /// The cache cannot be read or written, or the connection broke in the middle of a file.
    #[error("the cache cannot be filled")]
    Cache {
        /// The system's reason.
        source: std::io::Error,
    },
}

/// One thing wrong with one tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TensorProblem {
    /// The config implies it, the files lack it.
    #[error("tensor `{name}` is missing")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// The files hold it, the config does not imply it.
    #[error("tensor `{name}` is unexpected")]
    Unexpected {
        /// The tensor.
        name: String,
    },
    /// Its shape is not the one that the config implies.
    #[error("tensor `{name}` has shape {found:?}, the config implies {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that the config implies.
        expected: Vec<usize>,
    },
    /// Its type in a GGUF file is none that is read for it.
    #[error(
        "tensor `{name}` has type {found}: expected F32, F16 or BF16, for a slot's weight also TQ1_0, TQ2_0, Q2_0 or I2_S"
    )]
    GgufType {
        /// The tensor.
        name: String,
        /// The type in the file.
        found: String,
    },
    /// Its type is none that weights are read from.
    #[error("tensor `{name}` has dtype {found}: expected {expected}")]
    DType {
        /// The tensor.
        name: String,
        /// The type in the file.
        found: String,
        /// The types that would do.
        expected: &'static str,
    },
}

impl ConvertError {
    /// A tensor asked for in a form that its source does not hold.
    pub(crate) fn absent(entry: &crate::source::Entry) -> Self {
        let problem = TensorProblem::Missing { name: entry.name.clone() };
        Self::Tensors { problems: vec![problem] }
    }
}

fn list(problems: &[TensorProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
