//! Conversion of folders.

use std::path::Path;

use burn::tensor::Device;
use serde_json::json;

use crate::checkpoint::save_into;
use crate::json::{read_json, refuse_full, write_folder, write_json};
use crate::shards::Shards;
use crate::{ConversionReport, ConvertError, LoadOptions, Policy, Tensors, convert, convert_calibrated};

/// Windows that go through a model together.
const BATCH: usize = 4;

/// Converts a checkpoint folder into a new one that loads again: `config.json` in transformers' own words where it
/// has them, shards and types as in the source, the tokenizer files, and `report.json` with every tensor and what
/// was done to it.
///
/// # Errors
/// - [`ConvertError::AlreadyBitNet`] where the source is one
/// - [`ConvertError::NothingToConvert`] where the policy excludes every projection
/// - those of [`load`](crate::load) and [`convert`]; [`ConvertError::Exists`] where `dst` holds something
pub fn stage1(
    src: impl AsRef<Path>,
    dst: impl AsRef<Path>,
    policy: &Policy,
    device: &Device,
    options: &LoadOptions,
) -> Result<ConversionReport, ConvertError> {
    let options = Stage1Options { load: *options, overwrite: false };
    stage1_watched(src, dst, policy, device, &options, |_, _| ())
}

/// How [`stage1_watched`] reads and writes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stage1Options {
    /// How the source is loaded.
    pub load: LoadOptions,
    /// Whether to replace what stands under the name.
    pub overwrite: bool,
}

/// [`stage1`], which calls `progress` with the weights read and written, and the number of both that there are.
///
/// # Errors
/// Those of [`stage1`]; with `overwrite` not [`ConvertError::Exists`].
pub fn stage1_watched(
    src: impl AsRef<Path>,
    dst: impl AsRef<Path>,
    policy: &Policy,
    device: &Device,
    options: &Stage1Options,
    progress: impl FnMut(u64, u64),
) -> Result<ConversionReport, ConvertError> {
    stage1_calibrated(src, dst, policy, &[], device, options, progress)
}

/// [`stage1_watched`] for a policy that looks at calibration data: windows of tokens of one length.
///
/// # Errors
/// Those of [`stage1_watched`]; [`ConvertError::Model`] for tokens that do not suit the model, [`ConvertError::Lrc`] for
/// what it computes of them.
pub fn stage1_calibrated(
    src: impl AsRef<Path>,
    dst: impl AsRef<Path>,
    policy: &Policy,
    windows: &[Vec<u32>],
    device: &Device,
    options: &Stage1Options,
    mut progress: impl FnMut(u64, u64),
) -> Result<ConversionReport, ConvertError> {
    let (src, dst) = (src.as_ref(), dst.as_ref());
    refuse_full(dst, options.overwrite)?;
    if is_bitnet_folder(src)? {
        return Err(ConvertError::AlreadyBitNet { folder: src.into() });
    }
    let mut n_weights = 0;
    let checkpoint = Tensors::open(src, &options.load)?.load_watched(device, |read, total| {
        n_weights = total;
        progress(read, 2 * total);
    })?;
    let (checkpoint, report) = if windows.is_empty() {
        convert(checkpoint, policy)?
    } else {
        let batches = windows
            .chunks(BATCH)
            .map(|batch| checkpoint.model.batch(batch))
            .collect::<Result<Vec<_>, _>>()?;
        convert_calibrated(checkpoint, policy, &batches)?
    };
    if report.n_converted() == 0 {
        return Err(ConvertError::NothingToConvert);
    }
    write_folder(dst, options.overwrite, |folder| {
        save_into(&checkpoint, folder, &mut |written, total| {
            progress(n_weights + written, n_weights + total)
        })?;
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
