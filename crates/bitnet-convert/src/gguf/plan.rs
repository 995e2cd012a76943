//! What is written for each tensor of a source, decided before a byte is.

use bitnet_format::gguf::TensorType;
use bitnet_format::{FormatError, Granularity, ScaleHome};

use super::architecture::Architecture;
use super::names::{self, Part, Slot};
use super::options::{GgufOptions, GgufType};
use super::packing::Packing;
use super::rotation::Order;
use crate::source::{Content, Entry, Source};
use crate::{ConvertError, WeightType};

/// A tensor of the file and where its data come from.
#[derive(Debug)]
pub(super) struct Step<'a> {
    pub(super) entry: &'a Entry,
    /// Its name in the file.
    pub(super) name: String,
    pub(super) slot: Option<(Slot, Part)>,
    pub(super) data: Data,
    /// Whether rows of queries and keys move.
    pub(super) order: Order,
    /// Why it is not what was asked for.
    pub(super) because: Option<String>,
}

/// The form of a tensor's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    /// Float values; for a BitNet slot, codes times scale.
    Floats(WeightType),
    /// Codes, and scales in the blocks or in a tensor of their own, which follows.
    Ternary(Packing, ScaleHome),
}

impl Step<'_> {
    /// The type in the file.
    pub(super) fn kind(&self) -> TensorType {
        match self.data {
            Data::Floats(weight_type) => tensor_type(weight_type),
            Data::Ternary(packing, _) => packing.kind(),
        }
    }

    /// The name of the tensor with the scale, where it is one of its own.
    pub(super) fn scale_name(&self) -> Option<String> {
        match self.data {
            // I2_S holds its scale exactly.
            Data::Floats(_) | Data::Ternary(Packing::I2S(_), _) | Data::Ternary(_, ScaleHome::Block) => None,
            Data::Ternary(_, ScaleHome::Tensor) => {
                self.name.strip_suffix("weight").map(|slot| format!("{slot}scale"))
            }
        }
    }

    /// Whether rows move on their way into the file.
    pub(super) fn is_reordered(&self) -> bool {
        self.order == Order::Pairs && self.slot.is_some_and(|(slot, _)| slot.is_rotated())
    }
}

fn tensor_type(weight_type: WeightType) -> TensorType {
    match weight_type {
        WeightType::F32 => TensorType::F32,
        WeightType::F16 => TensorType::F16,
        WeightType::BF16 => TensorType::Bf16,
    }
}

/// Granularity and width of a BitNet slot's weight; `None` for any other tensor.
fn ternary(entry: &Entry) -> Result<Option<(Granularity, usize)>, ConvertError> {
    match entry.content {
        Content::Float => Ok(None),
        Content::Latent(granularity) | Content::Packed(granularity) => {
            let [_, d_input] = entry.matrix_shape()?;
            Ok(Some((granularity, d_input)))
        }
    }
}

/// Whether a block of this type can have one scale.
fn fits_blocks(granularity: Granularity, block: usize) -> bool {
    !matches!(granularity, Granularity::Group(group) if group % block != 0)
}

/// The type of the BitNet slots' weights, where `Auto` is replaced by what the widths and the scales allow.
///
/// # Errors
/// [`ConvertError::NotExportable`] for a ternary type of a model without BitNet slots.
pub(super) fn weights(source: &dyn Source, asked: GgufType) -> Result<GgufType, ConvertError> {
    let mut slots = Vec::new();
    for entry in source.entries() {
        slots.extend(ternary(entry)?);
    }
    if slots.is_empty() && asked.packing().is_some() {
        let reason = "the model is dense, and its weights would lose their values: convert and train it first, or \
                      export F16 or F32";
        return Err(ConvertError::NotExportable { format: "a ternary GGUF file", reason: reason.into() });
    }
    if asked != GgufType::Auto {
        return Ok(asked);
    }
    let all = |block: usize| {
        slots.iter().all(|(granularity, d_input)| d_input % block == 0 && fits_blocks(*granularity, block))
    };
    let some = |block: usize| {
        slots.iter().all(|(granularity, _)| fits_blocks(*granularity, block))
            && slots.iter().any(|(_, d_input)| d_input % block == 0)
    };
    Ok(match () {
        () if slots.is_empty() => GgufType::F16,
        () if all(Packing::Tq2_0.block()) => GgufType::Tq2_0,
        () if some(Packing::Q2_0.block()) => GgufType::Q2_0,
        () => GgufType::F16,
    })
}

/// The steps for every tensor, in the source's order, biases last: some need the scale of their weight.
///
/// `weights` is not `Auto`.
///
/// # Errors
/// [`ConvertError::NotExportable`] for a tensor that GGUF has no name for, [`ConvertError::Format`] for scales that
/// the type cannot hold.
pub(super) fn steps<'a>(
    source: &'a dyn Source,
    architecture: &Architecture,
    weights: GgufType,
    options: &GgufOptions,
) -> Result<Vec<Step<'a>>, ConvertError> {
    let mut steps = Vec::new();
    for entry in source.entries() {
        let Some(name) = names::to_gguf(&entry.path) else {
            let reason = format!("llama.cpp has no name for the tensor `{}`", entry.name);
            return Err(ConvertError::NotExportable { format: "GGUF", reason });
        };
        let slot = names::slot(&entry.path);
        let (data, because) = data(entry, slot, architecture, weights, options)?;
        steps.push(Step { entry, name, slot, data, order: architecture.order, because });
    }
    steps.sort_by_key(|step| step.slot.is_some_and(|(_, part)| part == Part::Bias));
    Ok(steps)
}

/// The form of one tensor, and why it is not what was asked for.
fn data(
    entry: &Entry,
    slot: Option<(Slot, Part)>,
    architecture: &Architecture,
    weights: GgufType,
    options: &GgufOptions,
) -> Result<(Data, Option<String>), ConvertError> {
    let float = if weights == GgufType::F32 { WeightType::F32 } else { WeightType::F16 };
    let floats = |weight_type| (Data::Floats(weight_type), None);
    let Some((granularity, d_input)) = ternary(entry)? else {
        return Ok(match slot {
            _ if entry.shape.len() < 2 => floats(WeightType::F32),
            None => floats(options.embedding.unwrap_or(float)),
            Some(_) => {
                let because = weights.packing().map(|_| "the slot is dense".to_owned());
                (Data::Floats(float), because)
            }
        });
    };
    let (Some(packing), Some((slot, _))) = (weights.packing(), slot) else {
        return Ok(floats(float));
    };
    let (kind, block) = (packing.kind(), packing.block());
    if d_input % block != 0 {
        let because = format!("d_input = {d_input} is no multiple of {kind}'s {block}");
        return Ok((Data::Floats(WeightType::F16), Some(because)));
    }
    let one_scale = granularity == Granularity::Tensor;
    let beside = options.scale.map_or(one_scale, |home| home == ScaleHome::Tensor);
    if matches!(packing, Packing::I2S(_)) || (beside && architecture.applies_scale(slot)) {
        if !one_scale {
            let expected = "one scale per tensor";
            let source = FormatError::Granularity { format: kind.name(), found: granularity, expected };
            return Err(ConvertError::Format { name: entry.name.clone(), source });
        }
        return Ok((Data::Ternary(packing, ScaleHome::Tensor), None));
    }
    let because = beside.then(|| {
        format!(
            "{} reads no scale tensor here: the scale is in the blocks, rounded to f16",
            architecture.name
        )
    });
    Ok((Data::Ternary(packing, ScaleHome::Block), because))
}
