//! A GGUF file as a source of tensors: names, shapes and types are checked before a weight is read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use bitnet_format::gguf::{Gguf, Tensor, TensorType};
use bitnet_format::{Granularity, HfScale, I2sLayout, TernaryMatrix, WeightScale};
use bitnet_layers::SubLnOrigin;
use bitnet_quant::{ActivationQuant, Quantization};

use super::architecture::Architecture;
use super::metadata::wrong;
use super::names::{self, FREQUENCY_FACTORS, Part, Slot};
use super::packing::{GRANULARITY_KEY, I2S_KEY, Packing, granularity_named, i2_s_named};
use super::rotation::{Order, reorder, reorder_matrix};
use super::{config, ternary_floats};
use crate::bitnet_state::BitNetState;
use crate::mapped::Mapped;
use crate::source::{Content, Entry, Sink, Source, entries_of};
use crate::{ConvertError, HfConfig, Layout, LoadOptions, Placement, TensorProblem, WeightType};

/// A GGUF file, memory-mapped.
///
/// Weights of slots that are ternary are codes and scales, whatever type they have; a file that holds them as floats
/// alone has activations that are not quantized, as in llama.cpp. Tokenizers are not made of the file's metadata.
pub(crate) struct GgufFile {
    mapped: Mapped,
    architecture: &'static Architecture,
    config: HfConfig,
    entries: Vec<Entry>,
    /// By path.
    tensors: BTreeMap<String, Found>,
    /// The `.scale` beside a weight, by the path of its slot.
    scales: BTreeMap<String, WeightScale>,
    /// Names in the file that the model has no place for.
    pub(crate) unexpected: Vec<String>,
}

/// Where a tensor stands in the file.
#[derive(Debug, Clone)]
struct Found {
    form: Form,
    range: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Floats(WeightType),
    Packed(Packing),
}

impl Form {
    /// The form of a type that is read; `layout` is that of I2_S.
    fn of(kind: TensorType, layout: I2sLayout) -> Option<Self> {
        let weight_type = match kind {
            TensorType::F32 => WeightType::F32,
            TensorType::F16 => WeightType::F16,
            TensorType::Bf16 => WeightType::BF16,
            _ => return Packing::of(kind, layout).map(Self::Packed),
        };
        Some(Self::Floats(weight_type))
    }
}

impl GgufFile {
    /// Opens a file and compares its tensors with those that its metadata imply.
    ///
    /// I2_S digits are in the order that this project's own key names, without one in that of x86, which bitnet.cpp's
    /// converter writes everywhere.
    ///
    /// # Errors
    /// [`ConvertError::Read`], [`ConvertError::Gguf`] for the file, [`ConvertError::GgufKey`] for its metadata,
    /// [`ConvertError::Tensors`] with everything that is missing, of another shape or type or, if `strict`, unexpected.
    pub(crate) fn open(path: &Path, options: &LoadOptions) -> Result<Self, ConvertError> {
        let mapped = Mapped::open(path.into())?;
        let file =
            Gguf::read(mapped.bytes()).map_err(|source| ConvertError::Gguf { path: path.into(), source })?;
        let (architecture, config) = config::read(path, &file)?;
        check_depth(&config, &file)?;
        let layout = own_key(path, &file, I2S_KEY, "x86 or arm", i2_s_named)?.unwrap_or(I2sLayout::X86);
        let granularity = own_key(path, &file, GRANULARITY_KEY, "tensor, row or group N", granularity_named)?;
        let entries = entries_of(&config)?;
        let start = mapped.bytes().as_ptr() as usize;
        let (mut by_path, mut unexpected) = (BTreeMap::new(), Vec::new());
        for tensor in file.tensors() {
            match names::to_path(tensor.name) {
                Some(path) => drop(by_path.insert(path, tensor)),
                None if tensor.name == FREQUENCY_FACTORS => {}
                None => unexpected.push(tensor.name.to_owned()),
            }
        }
        let (mut tensors, mut scales, mut problems) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for entry in &entries {
            match check(entry, by_path.remove(&entry.path), layout) {
                Ok((form, data)) => {
                    let from = data.as_ptr() as usize - start;
                    tensors.insert(entry.path.clone(), Found { form, range: from..from + data.len() });
                }
                Err(problem) => problems.push(problem),
            }
            let Some((slot, _)) =
                weight_of(&entry.path).filter(|(_, slot)| architecture.applies_scale(*slot))
            else {
                continue;
            };
            if let Some(tensor) = by_path.remove(&format!("{slot}.scale")) {
                match read_scale(&tensor)? {
                    Ok(scale) => drop(scales.insert(slot.to_owned(), scale)),
                    Err(problem) => problems.push(problem),
                }
            }
        }
        unexpected.extend(by_path.into_values().map(|tensor| tensor.name.to_owned()));
        if options.strict {
            problems.extend(unexpected.iter().map(|name| TensorProblem::Unexpected { name: name.clone() }));
        }
        if !problems.is_empty() {
            return Err(ConvertError::Tensors { problems });
        }
        let mut file = Self { mapped, architecture, config, entries, tensors, scales, unexpected };
        file.find_bitnet_slots(granularity)?;
        Ok(file)
    }

    /// Finds which slots are BitNet, and how finely they are scaled: as the file says, else as coarsely as it allows.
    fn find_bitnet_slots(&mut self, granularity: Option<Granularity>) -> Result<(), ConvertError> {
        let mut found = BTreeMap::new();
        for entry in &self.entries {
            if weight_of(&entry.path).is_some()
                && let Some(granularity) = self.granularity(entry, granularity)?
            {
                found.insert(entry.path.clone(), granularity);
            }
        }
        let Some(granularity) = found.values().copied().max_by_key(|granularity| match granularity {
            Granularity::Tensor => (0, 0),
            Granularity::Row => (1, 0),
            Granularity::Group(group) => (2, usize::MAX - group),
        }) else {
            return Ok(());
        };
        let mut dense = Vec::new();
        for entry in &mut self.entries {
            if found.contains_key(&entry.path) {
                entry.content = Content::Packed(granularity);
            } else if weight_of(&entry.path).is_some() {
                dense.push(entry.name.trim_end_matches(".weight").to_owned());
            }
        }
        // Beside floats llama.cpp does not quantize activations, and a file is what it computes with it.
        let is_packed = |path: &String| matches!(self.tensors[path].form, Form::Packed(_));
        let activation = match found.keys().any(is_packed) {
            true => ActivationQuant::default(),
            false => ActivationQuant::Off,
        };
        self.config.bitnet = Some(BitNetState {
            quantization: Quantization { weight: granularity, activation },
            sub_norm: Placement::None,
            origin: SubLnOrigin::Native,
            sub_norm_eps: None,
            packed: Some(HfScale::Multiply),
            dense,
        });
        Ok(())
    }

    /// How finely a slot's weight is scaled; `None` for a dense one.
    fn granularity(
        &self,
        entry: &Entry,
        named: Option<Granularity>,
    ) -> Result<Option<Granularity>, ConvertError> {
        let found = self.found(entry)?;
        let candidates = named.map_or(vec![Granularity::Tensor, Granularity::Row], |named| vec![named]);
        let has_scale = weight_of(&entry.path).is_some_and(|(slot, _)| self.scales.contains_key(slot));
        match found.form {
            Form::Packed(_) if named.is_some() => Ok(named),
            Form::Packed(Packing::I2S(_)) => Ok(Some(Granularity::Tensor)),
            Form::Packed(_) if has_scale => Ok(Some(Granularity::Tensor)),
            Form::Packed(packing) => {
                let matrix = self.unpack(entry, found, packing)?;
                let fits = |granularity: &Granularity| matrix.clone().regroup(*granularity).is_ok();
                Ok(candidates.into_iter().find(fits).or(Some(matrix.granularity())))
            }
            Form::Floats(weight_type) => {
                let shape @ [_, d_input] = entry.matrix_shape()?;
                let read = |range: Range<usize>| {
                    let mut values = Vec::with_capacity(range.len() / weight_type.bytes());
                    self.mapped.floats(&entry.name, range, weight_type, &mut |piece| {
                        values.extend_from_slice(piece);
                        Ok(())
                    })?;
                    Ok::<_, ConvertError>(values)
                };
                // One row tells almost every dense weight.
                let Range { start, end } = found.range.clone();
                let row = read(start..start + d_input * weight_type.bytes())?;
                let may_be =
                    |granularity: &Granularity| ternary_floats::is_ternary(&row, [1, d_input], *granularity);
                if !candidates.iter().any(may_be) {
                    return Ok(None);
                }
                let values = read(start..end)?;
                let fits =
                    |granularity: &Granularity| ternary_floats::is_ternary(&values, shape, *granularity);
                Ok(candidates.into_iter().find(fits).filter(|_| values.iter().any(|value| *value != 0.0)))
            }
        }
    }

    fn found(&self, entry: &Entry) -> Result<&Found, ConvertError> {
        self.tensors.get(&entry.path).ok_or_else(|| ConvertError::absent(entry))
    }

    fn unpack(&self, entry: &Entry, found: &Found, packing: Packing) -> Result<TernaryMatrix, ConvertError> {
        let shape = entry.matrix_shape()?;
        let matrix = self.mapped.with(found.range.clone(), |bytes| packing.unpack(bytes, shape));
        matrix.map_err(|source| ConvertError::Format { name: entry.name.clone(), source })
    }

    /// The scale tensor of the slot that a weight or a bias belongs to.
    fn scale(&self, path: &str) -> Option<f32> {
        let (slot, _) = path.rsplit_once('.')?;
        self.scales.get(slot).map(|scale| scale.get())
    }

    /// Whether the rows of a tensor stand in another order than here.
    fn is_reordered(&self, path: &str) -> bool {
        let rotated = names::slot(path).is_some_and(|(slot, _)| slot.is_rotated());
        rotated && self.architecture.order == Order::Pairs
    }
}

impl Source for GgufFile {
    fn config(&self) -> &HfConfig {
        &self.config
    }

    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn layout(&self) -> Layout {
        let types =
            self.entries.iter().map(|entry| match self.tensors.get(&entry.path).map(|found| found.form) {
                Some(Form::Floats(weight_type)) => (entry.name.clone(), weight_type),
                _ => (entry.name.clone(), WeightType::F32),
            });
        Layout::of_one_file(types)
    }

    fn tokenizer_folder(&self) -> Option<&Path> {
        None
    }

    fn floats(&self, entry: &Entry, sink: &mut Sink) -> Result<(), ConvertError> {
        let Found { form: Form::Floats(weight_type), range } = self.found(entry)?.clone() else {
            return Err(ConvertError::absent(entry));
        };
        let is_gain = entry.path.ends_with(".gain");
        let offset = if is_gain { self.config.model.norm_gain_offset as f32 } else { 0.0 };
        let scale = match names::slot(&entry.path) {
            Some((_, Part::Weight)) => self.scale(&entry.path),
            // llama.cpp adds this bias before it multiplies by the scale.
            Some((slot, Part::Bias)) if slot.is_mlp() => self.scale(&entry.path),
            _ => None,
        };
        let mut changed = Vec::new();
        let mut change = |piece: &[f32], sink: &mut Sink| {
            if (offset, scale) == (0.0, None) {
                return sink(piece);
            }
            changed.clear();
            changed.extend(piece.iter().map(|value| value * scale.unwrap_or(1.0) - offset));
            sink(&changed)
        };
        if !self.is_reordered(&entry.path) {
            return self.mapped.floats(&entry.name, range, weight_type, &mut |piece| change(piece, sink));
        }
        let mut values = Vec::new();
        self.mapped.floats(&entry.name, range, weight_type, &mut |piece| {
            values.extend_from_slice(piece);
            Ok(())
        })?;
        change(&reorder(&values, entry.shape[0], self.config.model.head_dim(), Order::Halves), sink)
    }

    fn packed(&self, entry: &Entry) -> Result<TernaryMatrix, ConvertError> {
        let Content::Packed(granularity) = entry.content else {
            return Err(ConvertError::absent(entry));
        };
        let found = self.found(entry)?;
        let shape = entry.matrix_shape()?;
        let wrong = |source| ConvertError::Format { name: entry.name.clone(), source };
        let matrix = match found.form {
            Form::Packed(packing) => self.unpack(entry, found, packing)?.regroup(granularity),
            Form::Floats(weight_type) => {
                let mut values = Vec::with_capacity(shape.iter().product());
                self.mapped.floats(&entry.name, found.range.clone(), weight_type, &mut |piece| {
                    values.extend_from_slice(piece);
                    Ok(())
                })?;
                ternary_floats::matrix(&values, shape, granularity)
            }
        };
        let mut matrix = matrix.map_err(wrong)?;
        if let Some(factor) = self.scale(&entry.path) {
            let scales = matrix.scales().iter().map(|scale| WeightScale::new(scale.get() * factor));
            let scales = scales.collect::<Result<_, _>>().map_err(wrong)?;
            matrix = TernaryMatrix::new(matrix.into_codes(), shape, granularity, scales).map_err(wrong)?;
        }
        if self.is_reordered(&entry.path) {
            matrix = reorder_matrix(matrix, self.config.model.head_dim(), Order::Halves).map_err(wrong)?;
        }
        Ok(matrix)
    }
}

/// The path of the slot that this is the weight of, and the slot.
fn weight_of(path: &str) -> Option<(&str, Slot)> {
    match names::slot(path)? {
        (slot, Part::Weight) => Some((path.trim_end_matches(".weight"), slot)),
        _ => None,
    }
}

/// Refuses more layers than the file has tensors, before anything is allocated for them.
fn check_depth(config: &HfConfig, file: &Gguf) -> Result<(), ConvertError> {
    let n_layers = config.model.n_layers;
    let missing = |layer: &usize| file.tensor(&format!("blk.{layer}.attn_norm.weight")).is_none();
    match (0..n_layers).find(missing).filter(|_| n_layers > file.tensors().count()) {
        Some(layer) => {
            let name = format!("blk.{layer}.attn_norm.weight");
            Err(ConvertError::Tensors { problems: vec![TensorProblem::Missing { name }] })
        }
        None => Ok(()),
    }
}

/// Form and data of a tensor that is there as it should be.
fn check<'a>(
    entry: &Entry,
    tensor: Option<Tensor<'a>>,
    layout: I2sLayout,
) -> Result<(Form, &'a [u8]), TensorProblem> {
    let name = names::to_gguf(&entry.path).unwrap_or_else(|| entry.path.clone());
    let Some(Tensor { kind, shape: found, data, .. }) = tensor else {
        return Err(TensorProblem::Missing { name });
    };
    if found != entry.shape {
        return Err(TensorProblem::Shape { name, found, expected: entry.shape.clone() });
    }
    match Form::of(kind, layout) {
        Some(form @ Form::Floats(_)) => Ok((form, data)),
        Some(form @ Form::Packed(_)) if weight_of(&entry.path).is_some() => Ok((form, data)),
        _ => Err(TensorProblem::GgufType { name, found: kind.to_string() }),
    }
}

/// The value of a `.scale` tensor.
fn read_scale(tensor: &Tensor) -> Result<Result<WeightScale, TensorProblem>, ConvertError> {
    let name = tensor.name.to_owned();
    if tensor.kind != TensorType::F32 {
        return Ok(Err(TensorProblem::GgufType { name, found: tensor.kind.to_string() }));
    }
    match tensor.data.as_chunks().0 {
        [bytes] => WeightScale::new(f32::from_le_bytes(*bytes))
            .map(Ok)
            .map_err(|source| ConvertError::Format { name, source }),
        _ => Ok(Err(TensorProblem::Shape { name, found: tensor.shape.clone(), expected: vec![1] })),
    }
}

/// The value of one of this project's own keys.
fn own_key<T>(
    path: &Path,
    file: &Gguf,
    key: &str,
    expected: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, ConvertError> {
    let Some(value) = file.get(key) else {
        return Ok(None);
    };
    let found = value.as_str().and_then(read);
    found.map(Some).ok_or_else(|| wrong(path, key.into(), &value, expected))
}
