//! A checkpoint in memory: loaded whole and checked, saved as it came.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bitnet_layers::{LayerError, Projection, RmsNormConfig, SubLn, for_each_slot, for_each_slot_mut};
use bitnet_lrc::remove;
use bitnet_model::CausalLm;
use bitnet_quant::check_granularity;
use bitnet_text::Tokenizer;
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::Serialize;

use crate::additions::insert_additions;
use crate::bitnet_state::BitNetState;
use crate::json::{write_folder, write_json};
use crate::names::{Names, is_output_slot};
use crate::param_path::ParamPath;
use crate::progress::Progress;
use crate::shards::write_shards;
use crate::source::{Content, Entry, InMemory, Source, read_floats};
use crate::{ConvertError, HfConfig, Layout, Tensors, WeightType};

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
    /// Scales of packed weights whose size suggests the other direction than the config says: the model may be wrong.
    pub suspicious_scales: Vec<String>,
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
pub(crate) const COMPANIONS: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
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
    Tensors::open(folder, options)?.load(device)
}

/// The model that a source describes.
pub(crate) fn load_model(
    source: &dyn Source,
    device: &Device,
    progress: &mut Progress,
) -> Result<CausalLm, ConvertError> {
    let config = source.config();
    let mut model = config.model.init(device)?;
    insert_sub_norms(&mut model, config);
    insert_additions(&mut model, config)?;
    check_granularities(&model, config)?;
    let entries = source.entries().iter().map(|entry| (entry.path.as_str(), entry)).collect();
    let mut loader = Loader { path: ParamPath::default(), source, entries, progress, error: None };
    let mut model = model.map(&mut loader);
    let Loader { error, entries, progress, .. } = loader;
    if let Some(error) = error {
        return Err(error);
    }
    let mut failed = Ok(());
    for_each_slot_mut(&mut model, |path, slot| {
        let entry = entries.get(format!("{path}.weight").as_str());
        if let (Some(entry), Some(state), Ok(())) = (entry, &config.bitnet, &failed) {
            failed = fill_slot(slot, source, entry, state);
            if let Content::Packed(_) = entry.content {
                progress.advance(entry);
            }
        }
    });
    failed.map(|()| model)
}

/// Gives a slot the form that its source holds.
fn fill_slot(
    slot: &mut Projection,
    source: &dyn Source,
    entry: &Entry,
    state: &BitNetState,
) -> Result<(), ConvertError> {
    match entry.content {
        Content::Float => {}
        Content::Latent(_) => {
            slot.convert(state.quantization)?;
        }
        Content::Packed(_) => {
            let ternary = source.packed(entry)?;
            slot.set_packed(&ternary, state.quantization.activation)?;
        }
    }
    Ok(())
}

/// Writes a checkpoint as a folder that loads again: `config.json`, the weights in the source's files and types, and
/// the source's tokenizer files. It appears under its name whole or not at all.
///
/// # Errors
/// [`ConvertError::Exists`] where the folder holds something, [`ConvertError::Slot`] where the model is not what the
/// config says, [`ConvertError::NotFinite`] for a weight that is not finite in the type it is stored in,
/// [`ConvertError::Write`] and [`ConvertError::Device`].
pub fn save(checkpoint: &Checkpoint, folder: impl AsRef<Path>) -> Result<(), ConvertError> {
    write_folder(folder.as_ref(), false, |partial| save_into(checkpoint, partial, &mut |_, _| ()))
}

/// [`save`], with `report.json` beside, in place of what stands under the name if `overwrite`.
///
/// # Errors
/// Those of [`save`]; with `overwrite` not [`ConvertError::Exists`].
pub fn save_with_report(
    checkpoint: &Checkpoint,
    folder: impl AsRef<Path>,
    report: &impl Serialize,
    overwrite: bool,
) -> Result<(), ConvertError> {
    write_folder(folder.as_ref(), overwrite, |partial| {
        save_into(checkpoint, partial, &mut |_, _| ())?;
        write_json(&partial.join("report.json"), report)
    })
}

/// Fills the folder of [`save`], which is not yet under its final name.
pub(crate) fn save_into(
    checkpoint: &Checkpoint,
    folder: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), ConvertError> {
    checkpoint.check_slots()?;
    let source = InMemory::new(checkpoint);
    write_json(&folder.join("config.json"), &source.config().to_json())?;
    let direction = checkpoint.config.bitnet.as_ref().and_then(|state| state.packed);
    write_shards(folder, &checkpoint.layout, &source, direction, &mut Progress::new(&source, progress))?;
    copy_companions(&checkpoint.source, folder)
}

/// Copies the files beside the weights.
pub(crate) fn copy_companions(from: &Path, to: &Path) -> Result<(), ConvertError> {
    for name in COMPANIONS {
        let (from, to) = (from.join(name), to.join(name));
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
            suspicious_scales: Vec::new(),
            source: tokenizer_folder.into(),
        }
    }

    /// The same checkpoint with another model of the same structure: the trained one.
    pub fn with_model(mut self, model: CausalLm) -> Self {
        self.model = model;
        self
    }

    /// The same checkpoint without its corrections and adapters: what a file of them alone goes with.
    pub fn without_adapters(&self) -> Self {
        let (model, _) = remove(self.model.clone());
        self.clone().with_model(model)
    }

    /// The type that the head's weight is stored in: the embedding's where they are tied.
    pub fn head_type(&self) -> WeightType {
        let path = if self.config.model.tied_head { "embedding.weight" } else { "head.weight" };
        let name = self.names().tensor(path).unwrap_or_default();
        self.layout.place(&name).1
    }

    /// Stores all float weights in one type from now on.
    pub fn with_type(mut self, weight_type: WeightType) -> Self {
        self.layout = self.layout.with_type(weight_type);
        self.config.raw.insert(self.config.dtype_key().into(), weight_type.torch_name().into());
        self
    }

    /// Stores all tensors in the files and types of another checkpoint of the same model.
    pub fn with_layout_of(mut self, other: &Tensors) -> Self {
        let other = other.source();
        self.layout = other.layout();
        let key = self.config.dtype_key();
        match other.config().raw.get(other.config().dtype_key()) {
            Some(name) => self.config.raw.insert(key.into(), name.clone()),
            None => self.config.raw.remove(key),
        };
        self
    }

    /// The full name of a slot, by its path in the model.
    pub fn slot_name(&self, path: &str) -> String {
        self.names().slot(path).unwrap_or_else(|| path.into())
    }

    /// Refuses a model whose slots are not what `config.json` says: it would load as another one.
    fn check_slots(&self) -> Result<(), ConvertError> {
        let names = self.names();
        let mut wrong = None;
        for_each_slot(&self.model, |path, slot| {
            let name = names.slot(path).unwrap_or_else(|| path.into());
            let expected = match &self.config.bitnet {
                Some(state) if state.is_dense(&name) => "dense",
                Some(state) if state.packed.is_some() => "packed",
                Some(_) => "BitNet",
                None => "dense",
            };
            let found = slot.form.name();
            if found != expected {
                wrong.get_or_insert(ConvertError::Slot { name, found, expected });
            }
        });
        wrong.map_or(Ok(()), Err)
    }
}

/// Gives a fresh model the sub-norms that its checkpoint has beyond the architecture's own.
pub(crate) fn insert_sub_norms(model: &mut CausalLm, config: &HfConfig) {
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

/// Refuses a granularity that does not fit a slot's weight, before anything is read.
fn check_granularities(model: &CausalLm, config: &HfConfig) -> Result<(), ConvertError> {
    let names = Names::new(&config.model, config.sub_norm_names());
    let Some(state) = &config.bitnet else {
        return Ok(());
    };
    let mut misfit = None;
    for_each_slot(model, |path, slot| {
        let name = names.slot(path).unwrap_or_else(|| path.into());
        let shape = [slot.d_output(), slot.form.d_input()];
        if let Err(source) = check_granularity(state.quantization.weight, shape) {
            misfit.get_or_insert(LayerError::Quantization { name, source });
        }
    });
    misfit.map_or(Ok(()), |error| Err(error.into()))
}

struct Loader<'a, 'b> {
    path: ParamPath,
    source: &'a dyn Source,
    entries: BTreeMap<&'a str, &'a Entry>,
    progress: &'a mut Progress<'b>,
    error: Option<ConvertError>,
}

impl ModuleMapper for Loader<'_, '_> {
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
        // Every path of the structure has an entry; packed weights are filled in later.
        let entry = self.entries.get(self.path.path().as_str());
        let Some(entry) = entry.filter(|entry| !matches!(entry.content, Content::Packed(_))) else {
            return param;
        };
        let values = match read_floats(self.source, entry) {
            Ok(values) => values,
            Err(error) => {
                self.error = Some(error);
                return param;
            }
        };
        self.progress.advance(entry);
        let shape = self.path.stored_shape(&param.lazy_shape());
        let tensor =
            Tensor::<D>::from_data(TensorData::new(values, shape), (&param.lazy_device(), DType::F32));
        let tensor = if self.path.is_transposed() { tensor.transpose() } else { tensor };
        let id = param.id;
        param.transform_for_load(tensor, id)
    }
}
