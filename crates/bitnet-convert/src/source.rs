//! A checkpoint as a list of tensors that are read one at a time: what loading, packing and exporting start from.

use std::collections::BTreeMap;
use std::path::Path;

use bitnet_cpu::Kernel;
use bitnet_format::{Granularity, TernaryMatrix, WeightScale};
use bitnet_layers::{Form, PackedLinear, for_each_slot};
use bitnet_model::CausalLm;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor};

use crate::additions::{Additions, insert_additions};
use crate::checkpoint::insert_sub_norms;
use crate::names::Names;
use crate::param_path::ParamPath;
use crate::{Checkpoint, ConvertError, HfConfig, Layout};

/// What a source holds of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Float values.
    Float,
    /// Float values: the latent weight of a BitNet slot, ternarized this finely.
    Latent(Granularity),
    /// Codes and scales: the weight of a packed slot.
    Packed(Granularity),
}

/// One tensor of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its path in the model, without the slot's form: `layers.0.attention.query.weight`.
    pub(crate) path: String,
    /// Its name in Hugging Face's words.
    pub(crate) name: String,
    /// Its shape as checkpoints store it: `[d_output, d_input]` for a linear map.
    pub(crate) shape: Vec<usize>,
    /// What there is of it.
    pub(crate) content: Content,
}

impl Entry {
    /// The shape of a linear map's weight.
    pub(crate) fn matrix_shape(&self) -> Result<[usize; 2], ConvertError> {
        self.shape
            .as_slice()
            .try_into()
            .map_err(|_| ConvertError::NoMatrix { name: self.name.clone(), found: self.shape.clone() })
    }
}

/// A sink for consecutive pieces of a tensor.
pub(crate) type Sink<'a> = dyn FnMut(&[f32]) -> Result<(), ConvertError> + 'a;

/// A checkpoint read tensor by tensor: a folder, a GGUF file, or a model in memory.
pub(crate) trait Source {
    /// The model that the tensors belong to.
    fn config(&self) -> &HfConfig;

    /// Every tensor, in the model's order.
    fn entries(&self) -> &[Entry];

    /// The files and types that its float tensors stand in.
    fn layout(&self) -> Layout;

    /// The folder that holds tokenizer files, where there is one.
    fn tokenizer_folder(&self) -> Option<&Path>;

    /// Gives the values of a tensor with float content, row-major, in consecutive pieces, so that no tensor need be in
    /// memory as a whole.
    fn floats(&self, entry: &Entry, sink: &mut Sink) -> Result<(), ConvertError>;

    /// Codes and scales of a tensor with packed content.
    fn packed(&self, entry: &Entry) -> Result<TernaryMatrix, ConvertError>;
}

/// The values of a tensor with float content.
pub(crate) fn read_floats(source: &dyn Source, entry: &Entry) -> Result<Vec<f32>, ConvertError> {
    let mut values = Vec::with_capacity(entry.shape.iter().product());
    source.floats(entry, &mut |piece| {
        values.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(values)
}

/// Codes and scales of a BitNet slot's weight; none for a tensor that is neither latent nor packed.
///
/// A latent weight is ternarized by absmean, to the codes that the layer computes with.
pub(crate) fn read_ternary(
    source: &dyn Source,
    entry: &Entry,
) -> Result<Option<TernaryMatrix>, ConvertError> {
    let granularity = match entry.content {
        Content::Float => return Ok(None),
        Content::Packed(_) => return source.packed(entry).map(Some),
        Content::Latent(granularity) => granularity,
    };
    let shape @ [d_output, d_input] = entry.matrix_shape()?;
    let values = read_floats(source, entry)?;
    let ternary = Kernel::new()
        .absmean_ternarize(&values, d_output, d_input, granularity)
        .map_err(|source| ConvertError::Ternarize { name: entry.name.clone(), source })?;
    let scales = ternary.scales.into_iter().map(WeightScale::new).collect::<Result<_, _>>();
    scales
        .and_then(|scales| TernaryMatrix::new(ternary.codes, shape, granularity, scales))
        .map(Some)
        .map_err(|source| ConvertError::Format { name: entry.name.clone(), source })
}

/// The weight of the BitNet slot that a bias belongs to.
pub(crate) fn weight_of_bias<'a>(entries: &'a [Entry], bias: &Entry) -> Option<&'a Entry> {
    let slot = bias.path.strip_suffix(".bias")?;
    let is_weight = |entry: &&Entry| entry.path.strip_suffix(".weight") == Some(slot);
    entries.iter().find(is_weight).filter(|entry| entry.content != Content::Float)
}

/// The tensors that a config implies, before any of them is read.
pub(crate) fn entries_of(config: &HfConfig) -> Result<Vec<Entry>, ConvertError> {
    // Parameters are allocated when they are first used: this is the model's structure alone.
    let mut model = config.model.init(&Device::default())?;
    insert_sub_norms(&mut model, config);
    insert_additions(&mut model, config)?;
    let names = Names::new(&config.model, config.sub_norm_names());
    let mut entries = Vec::new();
    visit(&model, &mut |path, shape, _| {
        let name = names.tensor(path).unwrap_or_else(|| path.into());
        let content = config.content(&names, path);
        entries.push(Entry { path: path.into(), name, shape, content });
    });
    Ok(entries)
}

impl HfConfig {
    /// What a checkpoint of this config holds of the parameter at a path.
    fn content(&self, names: &Names, path: &str) -> Content {
        let Some(state) = &self.bitnet else {
            return Content::Float;
        };
        match path.strip_suffix(".weight").and_then(|slot| names.slot(slot)) {
            Some(slot) if !state.is_dense(&slot) => match state.packed {
                Some(_) => Content::Packed(state.quantization.weight),
                None => Content::Latent(state.quantization.weight),
            },
            _ => Content::Float,
        }
    }
}

type Read = Box<dyn Fn() -> Result<Vec<f32>, ConvertError>>;

/// A model in memory.
pub(crate) struct InMemory<'a> {
    checkpoint: &'a Checkpoint,
    /// The checkpoint's, with what the slots have now.
    config: HfConfig,
    entries: Vec<Entry>,
    /// By path: from the device, only when its turn comes.
    reads: BTreeMap<String, Read>,
    /// By the path of the slot's weight.
    packed: BTreeMap<String, PackedLinear>,
}

impl<'a> InMemory<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint) -> Self {
        let (mut latent, mut packed) = (BTreeMap::new(), BTreeMap::new());
        for_each_slot(&checkpoint.model, |path, slot| {
            let path = format!("{path}.weight");
            match &slot.form {
                Form::Dense(_) => {}
                Form::Bit(linear) => {
                    latent.insert(path, linear.quantization().weight);
                }
                Form::Packed(linear) => {
                    packed.insert(path, linear.clone());
                }
            }
        });
        let names = checkpoint.names();
        let (mut entries, mut reads) = (Vec::new(), BTreeMap::new());
        visit(&checkpoint.model, &mut |path, shape, read| {
            // A packed weight's words are integers, which are not visited: its scales stand for it.
            let weight = path.strip_suffix(".scales").map(|slot| format!("{slot}.weight"));
            let packed = weight.and_then(|path| packed.get_key_value(&path));
            let (path, shape, content) = match packed {
                Some((path, linear)) => (
                    path.as_str(),
                    vec![linear.d_output(), linear.d_input()],
                    Content::Packed(linear.granularity()),
                ),
                None => (path, shape, latent.get(path).map_or(Content::Float, |g| Content::Latent(*g))),
            };
            let name = names.tensor(path).unwrap_or_else(|| path.into());
            reads.insert(path.to_owned(), in_words(read, name.clone()));
            entries.push(Entry { path: path.into(), name, shape, content });
        });
        let additions = Additions::of(&checkpoint.model, &names);
        let config = HfConfig { additions, ..checkpoint.config.clone() };
        Self { checkpoint, config, entries, reads, packed }
    }

    /// The first BitNet slot that is not at λ = 1, and its λ.
    pub(crate) fn unfinished_slot(&self) -> Option<(String, f32)> {
        let names = self.checkpoint.names();
        let mut found = None;
        for_each_slot(&self.checkpoint.model, |path, slot| {
            let lambda = slot.effective_lambda();
            if slot.is_bit() && lambda != 1.0 {
                found.get_or_insert((names.slot(path).unwrap_or_else(|| path.into()), lambda));
            }
        });
        found
    }
}

/// Puts a tensor's name into the error of its device.
fn in_words(read: Box<dyn Fn() -> Result<Vec<f32>, String>>, name: String) -> Read {
    Box::new(move || read().map_err(|reason| ConvertError::Device { name: name.clone(), reason }))
}

impl Source for InMemory<'_> {
    fn config(&self) -> &HfConfig {
        &self.config
    }

    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn layout(&self) -> Layout {
        self.checkpoint.layout.clone()
    }

    fn tokenizer_folder(&self) -> Option<&Path> {
        Some(&self.checkpoint.source)
    }

    fn floats(&self, entry: &Entry, sink: &mut Sink) -> Result<(), ConvertError> {
        match self.reads.get(&entry.path) {
            Some(read) => sink(&read()?),
            None => Err(ConvertError::absent(entry)),
        }
    }

    fn packed(&self, entry: &Entry) -> Result<TernaryMatrix, ConvertError> {
        let linear = self.packed.get(&entry.path).ok_or_else(|| ConvertError::absent(entry))?;
        Ok(linear.ternary()?)
    }
}

/// A parameter's path, shape as stored, and values.
type OnParam<'a> = dyn FnMut(&str, Vec<usize>, Box<dyn Fn() -> Result<Vec<f32>, String>>) + 'a;

/// Calls `on_param` for every float parameter, in the model's order.
fn visit(model: &CausalLm, on_param: &mut OnParam) {
    model.visit(&mut Visitor { path: ParamPath::default(), on_param });
}

struct Visitor<'a, 'b> {
    path: ParamPath,
    on_param: &'a mut OnParam<'b>,
}

impl ModuleVisitor for Visitor<'_, '_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let shape = self.path.stored_shape(&param.lazy_shape());
        let (param, transposed) = (param.clone(), self.path.is_transposed());
        let read = move || {
            let tensor = param.val().inner().cast(DType::F32);
            let tensor = if transposed { tensor.transpose() } else { tensor };
            tensor.try_into_vec_as::<f32>().map_err(|error| error.to_string())
        };
        (self.on_param)(&self.path.path(), shape, Box::new(read));
    }
}
