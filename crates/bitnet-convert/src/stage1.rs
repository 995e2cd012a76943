//! Conversion of folders.

use std::path::Path;

use burn::tensor::Device;
use serde_json::json;

use crate::checkpoint::save_into;
use crate::json::{read_json, write_folder, write_json};
use crate::shards::Shards;
use crate::{ConversionReport, ConvertError, LoadOptions, Policy, convert, load};

/// Converts a checkpoint folder into a new one that loads again: `config.json` in transformers' own words where it
/// has them, shards and types as in the source, the tokenizer files, and `report.json` with every tensor and what
/// was done to it.
///
/// # Errors
/// - [`ConvertError::AlreadyBitNet`] where the source is one
/// - those of [`load`] and [`convert`]; [`ConvertError::Exists`] where `dst` holds something
pub fn stage1(
    src: impl AsRef<Path>,
    dst: impl AsRef<Path>,
    policy: &Policy,
    device: &Device,
    options: &LoadOptions,
) -> Result<ConversionReport, ConvertError> {
    let src = src.as_ref();
    if is_bitnet_folder(src)? {
        return Err(ConvertError::AlreadyBitNet { folder: src.into() });
    }
    let (checkpoint, report) = convert(load(src, device, options)?, policy)?;
    write_folder(dst.as_ref(), false, |folder| {
        save_into(&checkpoint, folder)?;
        let json = json!({
            "policy": policy,
            "n_converted": report.n_converted(),
            "tensors": report.tensors,
            "unexpected": checkpoint.unexpected,
        });
        write_json(&folder.join("report.json"), &json)
    })?;
    Ok(report)
}

/// [`stage1`], unless the source is BitNet already: then nothing is written, and the report is `None`.
///
/// # Errors
/// Those of [`stage1`].
pub fn auto_stage1(
    src: impl AsRef<Path>,
    dst: impl AsRef<Path>,
    policy: &Policy,
    device: &Device,
    options: &LoadOptions,
) -> Result<Option<ConversionReport>, ConvertError> {
    match stage1(src, dst, policy, device, options) {
        Err(ConvertError::AlreadyBitNet { .. }) => Ok(None),
        result => result.map(Some),
    }
}

/// Whether a folder holds a checkpoint with BitNet layers, by its `config.json` and the names of its tensors. A model
/// that only has BitNet's sub-norms (`model_type: bitnet` without a `quantization_config`) is a dense one.
///
/// # Errors
/// [`ConvertError::Read`], [`ConvertError::Json`] and those of the weight files.
pub fn is_bitnet_folder(folder: impl AsRef<Path>) -> Result<bool, ConvertError> {
    let folder = folder.as_ref();
    let config = read_json(&folder.join("config.json"))?;
    let method = config.get("quantization_config").and_then(|inner| inner.get("quant_method"));
    if config.get("bitnet_arch").is_some() || method == Some(&json!("bitnet")) {
        return Ok(true);
    }
    let shards = Shards::open(folder)?;
    let is_packed = shards.names().any(|name| name.ends_with(".weight_scale"));
    Ok(is_packed)
}
