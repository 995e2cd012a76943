//! What is in a checkpoint folder, a safetensors file or a GGUF file, without loading it.

mod checkpoint;
mod gguf;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use bitnet_format::HfScale;
use serde::Serialize;

use crate::ConvertError;

/// What [`inspect`] found.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// What was looked at.
    pub path: PathBuf,
    /// Its kind.
    pub container: Container,
    /// The model, as far as the configuration or the metadata say; `None` for a bare safetensors file.
    pub architecture: Option<Architecture>,
    /// How the configuration or the metadata say that it is quantized.
    pub quantization: Option<String>,
    /// The scales beside packed weights, if there are any.
    pub scales: Option<ScaleReport>,
    /// The tokenizer, if there is one.
    pub tokenizer: Option<Tokens>,
    /// Tensors of one role, form and type, added up.
    pub totals: Vec<Total>,
    /// Every tensor, by name.
    pub tensors: Vec<TensorEntry>,
    /// Whatever is wrong or looks wrong.
    pub problems: Vec<Problem>,
}

impl Inspection {
    fn new(path: &Path, container: Container) -> Self {
        Self {
            path: path.into(),
            container,
            architecture: None,
            quantization: None,
            scales: None,
            tokenizer: None,
            totals: Vec::new(),
            tensors: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn problem(&mut self, kind: ProblemKind, message: impl Into<String>) {
        self.problems.push(Problem { kind, message: message.into() });
    }

    /// Adds the tensors up and puts them in order.
    fn finish(mut self) -> Self {
        self.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let mut totals: BTreeMap<(Role, Form, String), Total> = BTreeMap::new();
        for TensorEntry { role, form, dtype, bytes, .. } in &self.tensors {
            let empty =
                Total { role: *role, form: *form, dtype: dtype.clone(), tensors: 0, weights: 0, bytes: 0 };
            let total = totals.entry((*role, *form, dtype.clone())).or_insert(empty);
            total.tensors += 1;
            total.bytes += bytes;
        }
        for tensor in &self.tensors {
            if let Some(total) = totals.get_mut(&(tensor.role, tensor.form, tensor.dtype.clone())) {
                total.weights += tensor.n_weights();
            }
        }
        self.totals = totals.into_values().collect();
        self
    }
}

/// The kind of what was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Container {
    /// A folder as transformers writes it.
    Folder,
    /// A safetensors file alone.
    Safetensors,
    /// A GGUF file.
    Gguf,
}

/// A model's sizes; `None` for those that are not written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Architecture {
    /// `model_type`, or `general.architecture`.
    pub name: String,
    /// Rows of the embedding.
    pub vocab_size: Option<u64>,
    /// Width of the residual stream.
    pub d_model: Option<u64>,
    /// Width inside the MLP.
    pub d_ff: Option<u64>,
    /// Number of blocks.
    pub n_layers: Option<u64>,
    /// Query heads.
    pub n_heads: Option<u64>,
    /// Key and value heads.
    pub n_kv_heads: Option<u64>,
    /// Size of a head.
    pub head_dim: Option<u64>,
    /// The longest sequence.
    pub max_positions: Option<u64>,
    /// Whether the embedding serves as the head.
    pub tied_head: Option<bool>,
}

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The linear maps of the blocks.
    Projection,
    /// One vector per token.
    Embedding,
    /// The output head.
    Head,
    /// The gain of a norm.
    Norm,
    /// The gain of a norm before a projection.
    SubNorm,
    /// A bias.
    Bias,
    /// The scale of a packed weight.
    Scale,
    /// The configuration has no place for it, or there is none that is understood.
    Other,
}

/// How a tensor's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Floats that are used as they are.
    Float,
    /// Floats that a BitNet layer ternarizes whenever it runs.
    Latent,
    /// Packed ternary codes.
    Ternary,
    /// Packed in another way.
    Quantized,
    /// Integers.
    Integer,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorEntry {
    /// Its name in the file.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// How its values are stored.
    pub form: Form,
    /// The file's name of its type.
    pub dtype: String,
    /// Of the weights: a packed matrix has the shape that it unpacks to.
    pub shape: Vec<usize>,
    /// In the file.
    pub bytes: u64,
}

impl TensorEntry {
    fn n_weights(&self) -> u64 {
        self.shape.iter().map(|&axis| axis as u64).fold(1, u64::saturating_mul)
    }
}

/// Tensors of one role, form and type, added up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Total {
    /// What they are for.
    pub role: Role,
    /// How their values are stored.
    pub form: Form,
    /// The file's name of their type.
    pub dtype: String,
    /// How many.
    pub tensors: u64,
    /// Their weights.
    pub weights: u64,
    /// Their bytes in the file.
    pub bytes: u64,
}

/// The scales beside packed weights, and what their size says about their direction.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScaleReport {
    /// What the configuration says that a scale does to the codes; `None` where there is none.
    pub claimed: Option<HfScale>,
    /// What the size of the scales suggests ([`HfScale::likely`]); `None` where they disagree.
    pub likely: Option<HfScale>,
    /// How many scales were read.
    pub n_scales: usize,
    /// The smallest.
    pub smallest: f32,
    /// The largest.
    pub largest: f32,
}

/// A tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tokens {
    /// `tokenizer.json`, or the kind that a GGUF file names.
    pub kind: String,
    /// The highest id, plus 1.
    pub n_tokens: usize,
}

/// What a problem is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// `config.json` or the metadata cannot be used.
    Config,
    /// The weight files cannot be used.
    Weights,
    /// The model needs a tensor that is not there.
    MissingTensor,
    /// A tensor is there that the model has no place for.
    UnexpectedTensor,
    /// A tensor has another shape than the model.
    Shape,
    /// A tensor has a type that its place does not take.
    Dtype,
    /// A scale is missing, or no scale.
    Scale,
    /// The scales' size speaks against the direction that the configuration gives them.
    ScaleDirection,
    /// The tokenizer is missing or cannot be used.
    Tokenizer,
}

/// Something that is wrong, or looks wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What it is about.
    pub kind: ProblemKind,
    /// In words.
    pub message: String,
}

/// Looks at a checkpoint folder, a safetensors file or a GGUF file: which model it is, which tensors are quantized and
/// how, and what is wrong with it. Only headers and scales are read.
///
/// What is wrong stands in [`Inspection::problems`] as far as possible.
///
/// # Errors
/// - [`ConvertError::Read`] where the path cannot be read
/// - [`ConvertError::Safetensors`], [`ConvertError::Gguf`] for a file that is neither
/// - [`ConvertError::NoWeights`] for a folder with neither weights nor `config.json`
pub fn inspect(path: impl AsRef<Path>) -> Result<Inspection, ConvertError> {
    let path = path.as_ref();
    let read = |source| ConvertError::Read { path: path.into(), source };
    if fs::metadata(path).map_err(read)?.is_dir() {
        return match only_gguf(path) {
            Some(file) => gguf::file(&file),
            None => checkpoint::folder(path),
        };
    }
    let mut magic = Vec::new();
    File::open(path).map_err(read)?.take(4).read_to_end(&mut magic).map_err(read)?;
    if magic == *b"GGUF" { gguf::file(path) } else { checkpoint::file(path) }
}

/// The one GGUF file of a folder that has no `config.json`.
fn only_gguf(folder: &Path) -> Option<PathBuf> {
    if folder.join("config.json").exists() {
        return None;
    }
    let entries = fs::read_dir(folder).ok()?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files = paths.filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    files.next().filter(|_| files.next().is_none())
}
