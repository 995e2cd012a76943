//! What a run may need on the disk.

use std::fs;

use bitnet_compress::{Float, Header};
use bitnet_convert::HfFormat;

use crate::pipeline::Pipeline;
use crate::write::packs;

/// Bytes of a tensor's entry in a header, and of what reports say of it.
const PER_TENSOR: u64 = 2048;
/// Bytes of whatever does not grow with the model: settings, the page.
const PAGES: u64 = 1 << 20;

/// Bytes that a run has on the disk at once, at most. The log of a training and what a teacher says about the data, which
/// grow with the data, come to it.
pub(crate) fn bytes(pipeline: &Pipeline) -> u64 {
    let config = &pipeline.config;
    // The model in f32, and in the types that artifacts have; and what stands beside it in each folder.
    let (mut latent, mut stored, mut beside) = (0u64, 0u64, 0u64);
    for tensor in &pipeline.headers.tensors {
        let values = values(pipeline, tensor);
        let width = match config.dtype.or(tensor.float) {
            Some(Float::F16 | Float::Bf16) if tensor.shape.len() > 1 => 2,
            _ => 4, // also biases, which packed folders hold divided
        };
        latent = latent.saturating_add(values.saturating_mul(4));
        stored = stored.saturating_add(values.saturating_mul(width));
        beside = beside.saturating_add(PER_TENSOR);
    }
    for path in &pipeline.headers.companions {
        let bytes = fs::metadata(pipeline.source.join(path)).map_or(0, |metadata| metadata.len());
        beside = beside.saturating_add(bytes);
    }
    // The converted model, the dense folder, and what is asked for.
    let mut folders = vec![latent, stored];
    folders.extend(packs(config).then_some(stored));
    folders.extend((config.export.latent || !packs(config)).then_some(latent));
    folders.extend(config.export.hf.map(|format| if format == HfFormat::Online { latent } else { stored }));
    folders.extend(config.export.gguf.map(|_| latent));
    if let Some(train) = &config.train {
        folders.extend([latent, latent]); // the last model and the best
        let due = |every: u64| train.steps.div_ceil(every);
        // Beside those that are kept, the best and the one that is being written.
        let kept = (config.snapshots.keep as u64).saturating_add(2);
        let snapshots = kept.min(due(config.snapshots.every).saturating_add(due(config.eval.every)));
        // Weights and two moments.
        folders.push(latent.saturating_mul(3).saturating_add(beside).saturating_mul(snapshots));
    }
    folders.into_iter().fold(PAGES, |sum, bytes| sum.saturating_add(bytes).saturating_add(beside))
}

/// Values of a tensor; of a slot's weight with what conversion adds to the slot.
fn values(pipeline: &Pipeline, tensor: &Header) -> u64 {
    let config = &pipeline.config;
    let product = |shape: &[usize]| shape.iter().fold(1u64, |n, &axis| n.saturating_mul(axis as u64));
    let slot = tensor.name.strip_suffix(".weight");
    let is_slot = slot.is_some_and(|slot| pipeline.slots.iter().any(|known| known == slot));
    let (true, &[d_output, d_input]) = (is_slot, &tensor.shape[..]) else { return product(&tensor.shape) };
    let d_input = if config.convert.hadamard { d_input.next_power_of_two() } else { d_input };
    let rules = config.lrc.iter().flat_map(|lrc| &lrc.slots);
    let rank = rules.map(|rule| rule.rank_for([d_output, d_input])).max().unwrap_or(0);
    let sub_norm = d_input as u64;
    let low_rank = product(&[rank, d_output]).saturating_add(product(&[rank, d_input]));
    product(&[d_output, d_input]).saturating_add(low_rank).saturating_add(sub_norm)
}
