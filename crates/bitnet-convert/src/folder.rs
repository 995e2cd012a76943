//! A Hugging Face folder as a source of tensors: names, shapes and types are checked before a byte is read.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bitnet_format::{HfScale, TernaryMatrix, hf};
use safetensors::Dtype;

use crate::names::Names;
use crate::shards::Shards;
use crate::source::{Content, Entry, Sink, Source, entries_of, weight_of_bias};
use crate::{ConvertError, HfConfig, Layout, LoadOptions, TensorProblem};

/// A checkpoint folder, memory-mapped.
pub(crate) struct Folder {
    path: PathBuf,
    config: HfConfig,
    pub(crate) shards: Shards,
    entries: Vec<Entry>,
    /// Names in the files that the model has no place for.
    pub(crate) unexpected: Vec<String>,
}

impl Folder {
    /// Opens a folder and compares its tensors with those that its config implies.
    pub(crate) fn open(path: &Path, options: &LoadOptions) -> Result<Self, ConvertError> {
        let config = HfConfig::read(path)?;
        let shards = Shards::open(path)?;
        check_depth(&config, &shards)?;
        let entries = entries_of(&config)?;
        let mut expected = BTreeSet::new();
        let mut problems = Vec::new();
        for entry in &entries {
            problems.extend(problem(entry, &shards));
            expected.insert(entry.name.clone());
            if let Content::Packed(_) = entry.content {
                let scale = scale_name(entry);
                problems.extend(scale_problem(&scale, &shards));
                expected.insert(scale);
            }
        }
        let unexpected: Vec<String> =
            shards.names().filter(|name| !expected.contains(*name)).map(str::to_owned).collect();
        if options.strict {
            problems.extend(unexpected.iter().map(|name| TensorProblem::Unexpected { name: name.clone() }));
        }
        if !problems.is_empty() {
            return Err(ConvertError::Tensors { problems });
        }
        Ok(Self { path: path.into(), config, shards, entries, unexpected })
    }

    /// Packed tensors whose scale has a size that suggests the other direction than the config says.
    pub(crate) fn suspicious_scales(&self) -> Result<Vec<String>, ConvertError> {
        let mut suspicious = Vec::new();
        let Some(direction) = self.direction() else {
            return Ok(suspicious);
        };
        for entry in &self.entries {
            if matches!(entry.content, Content::Packed(_))
                && HfScale::likely(self.stored_scale(entry)?) != direction
            {
                suspicious.push(scale_name(entry));
            }
        }
        Ok(suspicious)
    }

    /// What a stored scale does to the codes; none where the folder holds no codes.
    fn direction(&self) -> Option<HfScale> {
        self.config.bitnet.as_ref().and_then(|state| state.packed)
    }

    fn stored_scale(&self, entry: &Entry) -> Result<f32, ConvertError> {
        let scale = self.shards.read(&scale_name(entry))?.unwrap_or_default();
        scale.first().copied().ok_or_else(|| ConvertError::absent(entry))
    }
}

impl Source for Folder {
    fn config(&self) -> &HfConfig {
        &self.config
    }

    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn layout(&self) -> Layout {
        self.shards.layout()
    }

    fn tokenizer_folder(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn floats(&self, entry: &Entry, sink: &mut Sink) -> Result<(), ConvertError> {
        match weight_of_bias(&self.entries, entry) {
            // transformers multiplies the sum of product and bias.
            Some(weight) if self.direction() == Some(HfScale::Multiply) => {
                let scale = self.stored_scale(weight)?;
                self.shards.read_pieces(&entry.name, &mut |piece| {
                    sink(&piece.iter().map(|value| value * scale).collect::<Vec<_>>())
                })
            }
            _ => self.shards.read_pieces(&entry.name, sink),
        }
    }

    fn packed(&self, entry: &Entry) -> Result<TernaryMatrix, ConvertError> {
        let wrong = |source| ConvertError::Format { name: entry.name.clone(), source };
        let direction = self.direction().ok_or_else(|| ConvertError::absent(entry))?;
        let scale = direction.load(self.stored_scale(entry)?).map_err(wrong)?;
        let shape = entry.matrix_shape()?;
        let unpack = |bytes: &[u8]| hf::unpack(bytes, shape, scale);
        self.shards.with_bytes(&entry.name, unpack).ok_or_else(|| ConvertError::absent(entry))?.map_err(wrong)
    }
}

/// `X.weight` → `X.weight_scale`.
pub(crate) fn scale_name(entry: &Entry) -> String {
    format!("{}_scale", entry.name)
}

/// Refuses more layers than the files have tensors, before a structure is made for them.
pub(crate) fn check_depth(config: &HfConfig, shards: &Shards) -> Result<(), ConvertError> {
    let names = Names::new(&config.model, config.sub_norm_names());
    let found: BTreeSet<&str> = shards.names().collect();
    let n_layers = config.model.n_layers;
    if n_layers <= found.len() {
        return Ok(());
    }
    let mut norms =
        (0..n_layers).filter_map(|layer| names.tensor(&format!("layers.{layer}.attention_norm.gain")));
    let missing = norms.find(|name| !found.contains(name.as_str()));
    Err(ConvertError::Tensors {
        problems: missing.map(|name| TensorProblem::Missing { name }).into_iter().collect(),
    })
}

/// What is wrong with a tensor, if anything.
fn problem(entry: &Entry, shards: &Shards) -> Option<TensorProblem> {
    let name = entry.name.clone();
    let Some((found, dtype)) = shards.info(&name) else {
        return Some(TensorProblem::Missing { name });
    };
    let (expected, type_fits) = match entry.content {
        Content::Packed(_) => (packed_shape(&entry.shape), dtype == Dtype::U8),
        Content::Float | Content::Latent(_) => (entry.shape.clone(), is_float(dtype)),
    };
    if !type_fits {
        let expected = if matches!(entry.content, Content::Packed(_)) { "U8" } else { FLOATS };
        Some(TensorProblem::DType { name, found: format!("{dtype:?}"), expected })
    } else if found != expected {
        Some(TensorProblem::Shape { name, found: found.into(), expected })
    } else {
        None
    }
}

fn scale_problem(name: &str, shards: &Shards) -> Option<TensorProblem> {
    let name = name.to_owned();
    match shards.info(&name) {
        None => Some(TensorProblem::Missing { name }),
        Some((_, dtype)) if !is_float(dtype) => {
            Some(TensorProblem::DType { name, found: format!("{dtype:?}"), expected: FLOATS })
        }
        Some((shape, _)) if shape.iter().product::<usize>() != 1 => {
            Some(TensorProblem::Shape { name, found: shape.into(), expected: vec![1] })
        }
        Some(_) => None,
    }
}

/// The types that values are read from.
pub(crate) const FLOATS: &str = "F32, F16 or BF16";

pub(crate) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Four rows of codes per row of bytes.
pub(crate) fn packed_shape(shape: &[usize]) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some(rows) = shape.first_mut() {
        *rows = rows.div_ceil(4);
    }
    shape
}
