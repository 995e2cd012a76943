//! Corrections and adapters as a folder for PEFT.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use crate::adapter::{AdapterSlot, adapter_slots};
use crate::additions::Additions;
use crate::json::{write_folder, write_json};
use crate::{Checkpoint, ConvertError};

/// Writes the corrections and adapters of a model as a LoRA for PEFT: `adapter_config.json` and
/// `adapter_model.safetensors`, in f32. It goes with a folder for transformers that holds the same weights: exported from
/// this model without its adapters. Returns the names of the slots.
///
/// A correction becomes a LoRA of scale 1; quantized factors are written as the values that they stand for.
///
/// # Errors
/// - [`ConvertError::NotExportable`] where there is nothing to write, or where PEFT cannot say it: with slots that treat
///   outliers apart, and with several shares of dropout
/// - [`ConvertError::Lambda`] for a correction that is not at λ = 1, [`ConvertError::NotFinite`], [`ConvertError::Device`]
/// - [`ConvertError::Exists`] where the folder holds something, unless `overwrite`; [`ConvertError::Write`]
pub fn export_peft(
    checkpoint: &Checkpoint,
    dst: impl AsRef<Path>,
    overwrite: bool,
) -> Result<Vec<String>, ConvertError> {
    const FORMAT: &str = "a folder for PEFT";
    let slots = adapter_slots(checkpoint, FORMAT)?;
    let refused = |reason: String| Err(ConvertError::NotExportable { format: FORMAT, reason });
    let bare = checkpoint.without_adapters();
    if let Some(loss) = Additions::of(&bare.model, &bare.names()).loss() {
        return refused(format!("transformers has no words for {loss} beside it"));
    }
    let dropout = slots[0].dropout;
    if slots.iter().any(|slot| slot.dropout != dropout) {
        return refused("its slots have several shares of dropout, PEFT has one".into());
    }
    let config = config(&slots, dropout);
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = slots.iter().flat_map(tensors).collect();
    write_folder(dst.as_ref(), overwrite, |folder| {
        write_json(&folder.join("adapter_config.json"), &config)?;
        let path = folder.join("adapter_model.safetensors");
        let write =
            |error: String| ConvertError::Write { path: path.clone(), source: std::io::Error::other(error) };
        let views: Vec<(&str, TensorView)> = bytes
            .iter()
            .map(|(name, shape, bytes)| {
                Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?))
            })
            .collect::<Result<_, safetensors::SafeTensorError>>()
            .map_err(|error| write(error.to_string()))?;
        let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
        safetensors::serialize_to_file(views, metadata, &path).map_err(|error| write(error.to_string()))
    })?;
    Ok(slots.into_iter().map(|slot| slot.name).collect())
}

/// Names in PEFT's words, shapes and little-endian values of `A` and `B`.
fn tensors(slot: &AdapterSlot) -> [(String, Vec<usize>, Vec<u8>); 2] {
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let name = |factor: &str| format!("base_model.model.{}.{factor}.weight", slot.name);
    [
        (name("lora_A"), vec![slot.rank, slot.d_input], bytes(&slot.a)),
        (name("lora_B"), vec![slot.d_output, slot.rank], bytes(&slot.b)),
    ]
}

/// Ranks and scales of each slot by its own name, beside those of the first as the defaults that PEFT asks for.
fn config(slots: &[AdapterSlot], dropout: f64) -> serde_json::Value {
    let alpha = |slot: &AdapterSlot| f64::from(slot.scale) * slot.rank as f64;
    let ranks: BTreeMap<&str, usize> = slots.iter().map(|slot| (slot.name.as_str(), slot.rank)).collect();
    let alphas: BTreeMap<&str, f64> = slots.iter().map(|slot| (slot.name.as_str(), alpha(slot))).collect();
    let targets: BTreeSet<&str> = slots.iter().map(|slot| slot.name.as_str()).collect();
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": null,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "r": slots[0].rank,
        "lora_alpha": alpha(&slots[0]),
        "lora_dropout": dropout,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": targets,
        "use_rslora": false,
        "use_dora": false,
    })
}
