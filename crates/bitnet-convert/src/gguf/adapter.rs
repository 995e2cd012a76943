//! Corrections and adapters as a GGUF LoRA adapter for llama.cpp.

use std::collections::BTreeMap;
use std::io::BufWriter;
use std::path::Path;

use bitnet_format::FormatError;
use bitnet_format::gguf::{Header, TensorType};

use super::architecture::Architecture;
use super::export::{choose, failure};
use super::names::Slot;
use super::options::GgufOptions;
use super::plan::{self, Step};
use super::report::{GgufReport, GgufTensor};
use super::rotation::{Order, reorder};
use crate::adapter::{AdapterSlot, adapter_slots};
use crate::json::write_file;
use crate::source::{Source, read_ternary};
use crate::{Checkpoint, ConvertError, Tensors, WeightType};

const FORMAT: &str = "a GGUF adapter";

/// The two factors of a slot in the file.
struct Pair {
    /// In Hugging Face's words.
    source: String,
    /// Of the weight in the base file.
    name: String,
    /// `A` with its shape, and `B`.
    factors: [(Vec<usize>, Vec<f32>); 2],
}

impl Pair {
    /// Name in the file, shape and values of each factor.
    fn tensors(&self) -> impl Iterator<Item = (String, &[usize], &[f32])> {
        self.factors.iter().zip(["lora_a", "lora_b"]).map(|((shape, values), part)| {
            (format!("{}.{part}", self.name), shape.as_slice(), values.as_slice())
        })
    }
}

/// Writes the corrections and adapters of a model as a GGUF LoRA adapter, in F32, under its name whole or not at all. It
/// goes with the file that [`export_gguf`](crate::export_gguf) writes of the same model without them, with the same
/// options: the order of rows and the place of the scales follow that file.
///
/// # Errors
/// - [`ConvertError::NotExportable`] where there is nothing to write, where no architecture of llama.cpp computes the model,
///   and with slots that treat outliers apart
/// - [`ConvertError::Lambda`] for a correction that is not at λ = 1
/// - [`ConvertError::Exists`] where something stands under the name, unless `overwrite`
/// - those of reading the model; [`ConvertError::Write`]
///
/// # Source
/// docs/formats.md#gguf-adapters
pub fn export_gguf_adapter(
    checkpoint: &Checkpoint,
    dst: impl AsRef<Path>,
    options: &GgufOptions,
) -> Result<GgufReport, ConvertError> {
    let dst = dst.as_ref();
    let slots = adapter_slots(checkpoint, FORMAT)?;
    let bare = checkpoint.without_adapters();
    let tensors = Tensors::of(&bare);
    let source = tensors.source();
    if let Some(loss) = source.config().additions.loss() {
        let reason = format!("llama.cpp has no words for {loss} beside it");
        return Err(ConvertError::NotExportable { format: FORMAT, reason });
    }
    let weights = plan::weights(source, options.weights)?;
    let architecture = choose(source, weights)?;
    let steps = plan::steps(source, architecture, weights, options)?;
    let steps: BTreeMap<&str, &Step> = steps.iter().map(|step| (step.entry.path.as_str(), step)).collect();
    let mut pairs = Vec::with_capacity(slots.len());
    for slot in slots {
        let step = steps.get(format!("{}.weight", slot.path).as_str());
        let step = step.ok_or_else(|| ConvertError::NotExportable {
            format: FORMAT,
            reason: format!("llama.cpp has no name for the slot `{}`", slot.name),
        })?;
        pairs.push(pair(slot, step, source, architecture)?);
    }
    let header = header(&pairs, architecture).map_err(|error| failure(dst, error))?;
    write_file(dst, options.overwrite, |file| {
        let mut out = header.write_to(BufWriter::new(file)).map_err(|error| failure(dst, error))?;
        for (name, _, values) in pairs.iter().flat_map(Pair::tensors) {
            out.tensor(&name, &WeightType::F32.encode(values)).map_err(|error| failure(dst, error))?;
        }
        out.finish().map(drop).map_err(|error| failure(dst, error))
    })?;
    Ok(report(&pairs, architecture))
}

/// The factors as the file that they go with wants them.
fn pair(
    slot: AdapterSlot,
    step: &Step,
    source: &dyn Source,
    architecture: &Architecture,
) -> Result<Pair, ConvertError> {
    let AdapterSlot { name, rank, d_input, d_output, a, mut b, scale, .. } = slot;
    // The loader multiplies by alpha / rank of each tensor, or, at alpha 0, by nothing: the scale goes into B.
    let mut factor = scale;
    if scales_adapter(step, architecture) {
        let ternary = read_ternary(source, step.entry)?.ok_or_else(|| ConvertError::absent(step.entry))?;
        if let [scale] = ternary.scales() {
            factor /= scale.get();
        }
    }
    b.iter_mut().for_each(|value| *value *= factor);
    if step.is_reordered() {
        b = reorder(&b, d_output, source.config().model().head_dim(), Order::Pairs);
    }
    if let Some(index) = b.iter().position(|value| !value.is_finite()) {
        return Err(ConvertError::NotFinite { name: format!("{name}.lrc_u"), index, value: b[index] });
    }
    let factors = [(vec![rank, d_input], a), (vec![d_output, rank], b)];
    Ok(Pair { source: name, name: step.name.clone(), factors })
}

/// Whether the graph multiplies the adapter's output by the weight's `.scale` too: in the MLP, except for `bitnet`'s down
/// projection.
fn scales_adapter(step: &Step, architecture: &Architecture) -> bool {
    let after_the_scale =
        |slot: Slot| !slot.is_mlp() || (architecture.name == "bitnet" && slot == Slot::Down);
    step.scale_name().is_some() && step.slot.is_some_and(|(slot, _)| !after_the_scale(slot))
}

fn header(pairs: &[Pair], architecture: &Architecture) -> Result<Header, FormatError> {
    let mut header = Header::new();
    header.set("general.architecture", architecture.name)?;
    header.set("general.type", "adapter")?;
    header.set("adapter.type", "lora")?;
    header.set("adapter.lora.alpha", 0.0f32)?;
    for (name, shape, _) in pairs.iter().flat_map(Pair::tensors) {
        header.tensor(&name, TensorType::F32, shape)?;
    }
    Ok(header)
}

fn report(pairs: &[Pair], architecture: &Architecture) -> GgufReport {
    let mut tensors = Vec::new();
    for pair in pairs {
        tensors.extend(pair.tensors().map(|(name, shape, values)| GgufTensor {
            source: pair.source.clone(),
            name,
            kind: TensorType::F32.to_string(),
            shape: shape.into(),
            bytes: 4 * values.len(),
            because: None,
        }));
    }
    let notes = vec!["it belongs to the file that the same options give of the model without it".to_owned()];
    GgufReport {
        architecture: architecture.name.into(),
        weights: TensorType::F32.to_string(),
        tensors,
        notes,
    }
}
