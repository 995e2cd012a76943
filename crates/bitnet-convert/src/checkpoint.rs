//! A checkpoint in memory: loaded whole and checked, saved as it came.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bitnet_layers::{LayerError, RmsNormConfig, SubLn, for_each_slot, for_each_slot_mut};
use bitnet_model::CausalLm;
use bitnet_quant::check_granularity;
use bitnet_text::Tokenizer;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::json::{write_folder, write_json};
use crate::names::{Names, is_output_slot};
use crate::shards::{Pending, Shards, write_shards};
use crate::{ConvertError, HfConfig, Layout, TensorProblem};

/// A model with the files that it came with.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The model.
    pub model: CausalLm,
    /// Its `config.json`.
    pub config: HfConfig,
    /// Where its tensors stand, and in which type.
    pub layout: Layout,
    /// Names in the files that the model has no place for.
    pub unexpected: Vec<String>,
    /// The folder that it was read from; its tokenizer files are copied from here.
    pub(crate) source: PathBuf,
}

/// How a checkpoint is loaded.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// Whether a tensor that the model has no place for is an error.
    pub strict: bool,
}

/// The files beside the weights that belong to a checkpoint.
const COMPANIONS: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
];

/// Loads a Hugging Face folder: one safetensors file or shards, in f32, f16 or bf16, widened to f32.
///
/// Files are memory-mapped and read tensor by tensor: the peak is the f32 model and one tensor. A checkpoint whose
/// `quantization_config` says so comes out with BitNet slots.
///
/// # Errors
/// Those of [`HfConfig::read`]; [`ConvertError::NoWeights`], [`ConvertError::AbsentShard`],
/// [`ConvertError::Safetensors`] for the files; [`ConvertError::Tensors`] with everything that is missing, of
/// another shape or type or, if `strict`, unexpected; [`ConvertError::NotFinite`] for a NaN or infinite weight.
pub fn load(
    folder: impl AsRef<Path>,
    device: &Device,
    options: &LoadOptions,
) -> Result<Checkpoint, ConvertError> {
    let folder = folder.as_ref();
    let config = HfConfig::read(folder)?;
    let shards = Shards::open(folder)?;
    let names = Names::new(&config.model, config.sub_norm_names());
    check_depth(config.model.n_layers, &names, &shards)?;
    let mut model = config.model.init(device)?;
    insert_sub_norms(&mut model, &config);
    let unexpected = check_tensors(&model, &names, &shards, options)?;
    check_granularities(&model, &names, &config)?;
    let mut loader = Loader { path: ParamPath::default(), names, shards: &shards, error: None };
    let mut model = model.map(&mut loader);
    if let Some(error) = loader.error {
        return Err(error);
    }
    if let Some(state) = &config.bitnet {
        let mut failed = None;
        for_each_slot_mut(&mut model, |path, slot| {
            let name = names.slot(path).unwrap_or_default();
            if !state.is_dense(&name)
                && let Err(error) = slot.convert(state.quantization)
            {
                failed.get_or_insert(error);
            }
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
    }
    Ok(Checkpoint { model, config, layout: shards.layout(), unexpected, source: folder.into() })
}

/// Writes a checkpoint as a folder that loads again: `config.json`, the weights in the source's files and types, and
/// the source's tokenizer files. It appears under its name whole or not at all.
///
/// # Errors
/// [`ConvertError::Exists`] where the folder holds something, [`ConvertError::Slot`] where the model is not what the
/// config says, [`ConvertError::NotFinite`] for a weight that is not finite in the type it is stored in,
/// [`ConvertError::Write`] and [`ConvertError::Device`].
pub fn save(checkpoint: &Checkpoint, folder: impl AsRef<Path>) -> Result<(), ConvertError> {
    write_folder(folder.as_ref(), |partial| save_into(checkpoint, partial))
}

pub(crate) fn save_into(checkpoint: &Checkpoint, folder: &Path) -> Result<(), ConvertError> {
    checkpoint.check_slots()?;
    write_json(&folder.join("config.json"), &checkpoint.config.to_json())?;
    let names = checkpoint.names();
    let mut tensors = BTreeMap::new();
    let mut collector = Collector { path: ParamPath::default(), names, tensors: &mut tensors };
    checkpoint.model.visit(&mut collector);
    write_shards(folder, &checkpoint.layout, &tensors)?;
    for name in COMPANIONS {
        let (from, to) = (checkpoint.source.join(name), folder.join(name));
        if from.is_file() {
            std::fs::copy(&from, &to).map_err(|source| ConvertError::Write { path: to, source })?;
        }
    }
    Ok(())
}

/// # Errors
/// [`ConvertError::TokenizerTooLarge`] where a token could have no row in the model's embedding.
pub fn check_tokenizer(tokenizer: &Tokenizer, model: &CausalLm) -> Result<(), ConvertError> {
    let (tokens, rows) = (tokenizer.vocab_size(), model.config().vocab_size);
    if tokens <= rows { Ok(()) } else { Err(ConvertError::TokenizerTooLarge { tokens, rows }) }
}

impl Checkpoint {
    /// A checkpoint of a model that came from no folder: `config` describes it, `tokenizer_folder` holds its
    /// tokenizer files.
    pub fn new(model: CausalLm, config: HfConfig, tokenizer_folder: impl Into<PathBuf>) -> Self {
        Self {
            model,
            config,
            layout: Layout::default(),
            unexpected: Vec::new(),
            source: tokenizer_folder.into(),
        }
    }

    /// The same checkpoint with another model of the same structure: the trained one.
    pub fn with_model(mut self, model: CausalLm) -> Self {
        self.model = model;
        self
    }

    /// Stores all float weights in one type from now on.
    pub fn with_type(mut self, weight_type: crate::WeightType) -> Self {
        self.layout = self.layout.with_type(weight_type);
        let key = if self.config.raw.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
        self.config.raw.insert(key.into(), weight_type.torch_name().into());
        self
    }

    /// Refuses a model whose slots are not what `config.json` says: it would load as another one.
    fn check_slots(&self) -> Result<(), ConvertError> {
        let form = |is_bit| if is_bit { "BitNet" } else { "dense" };
        let names = self.names();
        let mut wrong = None;
        for_each_slot(&self.model, |path, slot| {
            let name = names.slot(path).unwrap_or_else(|| path.into());
            let expected = self.config.bitnet.as_ref().is_some_and(|state| !state.is_dense(&name));
            if slot.is_bit() != expected {
                wrong.get_or_insert(ConvertError::Slot {
                    name,
                    found: form(slot.is_bit()),
                    expected: form(expected),
                });
            }
        });
        wrong.map_or(Ok(()), Err)
    }
}

/// Gives a fresh model the sub-norms that its checkpoint has beyond the architecture's own.
fn insert_sub_norms(model: &mut CausalLm, config: &HfConfig) {
    let Some(state) = &config.bitnet else {
        return;
    };
    let names = Names::new(&config.model, config.sub_norm_names());
    let eps = state.sub_norm_eps.unwrap_or(config.model.norm_eps);
    for_each_slot_mut(model, |path, slot| {
        let wanted = state.sub_norm.wants(is_output_slot(path));
        let dense = names.slot(path).is_some_and(|name| state.is_dense(&name));
        if wanted && !dense && slot.sub_norm.is_none() {
            let norm = RmsNormConfig::new(slot.d_input()).with_eps(eps).init(&slot.device());
            slot.sub_norm = Some(SubLn { norm, origin: state.origin });
        }
    });
}

/// Refuses more layers than the files have tensors, before anything is allocated for them.
fn check_depth(n_layers: usize, names: &Names, shards: &Shards) -> Result<(), ConvertError> {
    let found: BTreeSet<&str> = shards.names().collect();
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

/// Refuses a granularity that does not fit a slot's weight, before anything is read.
fn check_granularities(model: &CausalLm, names: &Names, config: &HfConfig) -> Result<(), ConvertError> {
    let Some(state) = &config.bitnet else {
        return Ok(());
    };
    let mut misfit = None;
    for_each_slot(model, |path, slot| {
        let name = names.slot(path).unwrap_or_else(|| path.into());
        let shape = [slot.d_output(), slot.d_input()];
        if let Err(source) = check_granularity(state.quantization.weight, shape) {
            misfit.get_or_insert(LayerError::Quantization { name, source });
        }
    });
    misfit.map_or(Ok(()), |error| Err(error.into()))
}

/// Compares the model's tensors with the files' and returns the unexpected ones.
fn check_tensors(
    model: &CausalLm,
    names: &Names,
    shards: &Shards,
    options: &LoadOptions,
) -> Result<Vec<String>, ConvertError> {
    let mut checker = Checker {
        path: ParamPath::default(),
        names,
        shards,
        expected: BTreeSet::new(),
        problems: Vec::new(),
    };
    model.visit(&mut checker);
    let Checker { expected, mut problems, .. } = checker;
    let unexpected: Vec<String> =
        shards.names().filter(|name| !expected.contains(*name)).map(str::to_owned).collect();
    if options.strict {
        problems.extend(unexpected.iter().map(|name| TensorProblem::Unexpected { name: name.clone() }));
    }
    if problems.is_empty() { Ok(unexpected) } else { Err(ConvertError::Tensors { problems }) }
}

/// The path of the parameter that a visitor stands at.
#[derive(Debug, Default)]
struct ParamPath {
    fields: Vec<String>,
    containers: Vec<String>,
}

impl ParamPath {
    fn enter(&mut self, name: &str, container: &str) {
        self.fields.push(name.into());
        self.containers.push(container.into());
    }

    fn exit(&mut self) {
        self.fields.pop();
        self.containers.pop();
    }

    /// Its name in the files: its own path where the table has none.
    fn name(&self, names: &Names) -> String {
        let path = self.fields.join(".");
        names.tensor(&path).unwrap_or(path)
    }

    /// Whether this is the weight of Burn's linear layer, stored transposed.
    fn is_transposed(&self) -> bool {
        self.containers.last().is_some_and(|container| container == "Struct:Linear")
            && self.fields.last().is_some_and(|field| field == "weight")
    }

    /// The shape that a checkpoint stores a parameter in.
    fn stored_shape(&self, mut shape: Vec<usize>) -> Vec<usize> {
        if self.is_transposed() {
            shape.reverse();
        }
        shape
    }
}

struct Checker<'a> {
    path: ParamPath,
    names: &'a Names,
    shards: &'a Shards,
    expected: BTreeSet<String>,
    problems: Vec<TensorProblem>,
}

impl ModuleVisitor for Checker<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.path.name(self.names);
        let expected = self.path.stored_shape(param.lazy_shape().to_vec());
        match self.shards.info(&name) {
            None => self.problems.push(TensorProblem::Missing { name: name.clone() }),
            Some((_, Err(found))) => self.problems.push(TensorProblem::DType { name: name.clone(), found }),
            Some((found, _)) if found != expected => {
                self.problems.push(TensorProblem::Shape {
                    name: name.clone(),
                    found: found.into(),
                    expected,
                });
            }
            Some(_) => {}
        }
        self.expected.insert(name);
    }
}

struct Loader<'a> {
    path: ParamPath,
    names: Names,
    shards: &'a Shards,
    error: Option<ConvertError>,
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let name = self.path.name(&self.names);
        let values = match self.shards.read(&name) {
            Ok(Some(values)) => values,
            Ok(None) => return param, // `check_tensors` has seen every name
            Err(error) => {
                self.error = Some(error);
                return param;
            }
        };
        let shape = self.path.stored_shape(param.lazy_shape().to_vec());
        let tensor =
            Tensor::<D>::from_data(TensorData::new(values, shape), (&param.lazy_device(), DType::F32));
        let tensor = if self.path.is_transposed() { tensor.transpose() } else { tensor };
        let id = param.id;
        param.transform_for_load(tensor, id)
    }
}

struct Collector<'a> {
    path: ParamPath,
    names: Names,
    tensors: &'a mut BTreeMap<String, Pending<'static>>,
}

impl ModuleVisitor for Collector<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.path.name(&self.names);
        let shape = self.path.stored_shape(param.lazy_shape().to_vec());
        let transposed = self.path.is_transposed();
        let (param, tensor_name) = (param.clone(), name.clone());
        let read = move || {
            let tensor = param.val().inner().cast(DType::F32);
            let tensor = if transposed { tensor.transpose() } else { tensor };
            tensor.try_into_vec_as::<f32>().map_err(|error| ConvertError::Device {
                name: tensor_name.clone(),
                reason: error.to_string(),
            })
        };
        self.tensors.insert(name, Pending { shape, read: Box::new(read) });
    }
}
