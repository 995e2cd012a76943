//! From a checkpoint to a folder that transformers runs.

use std::path::Path;

use bitnet_format::HfScale;
use serde::{Deserialize, Serialize};

use crate::checkpoint::copy_companions;
use crate::json::{write_folder, write_json};
use crate::progress::Progress;
use crate::shards::write_shards;
use crate::source::{Content, Source};
use crate::{ConvertError, HfConfig, Tensors, WeightType};

/// The forms in which transformers knows BitNet weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HfFormat {
    /// Packed, `linear_class: bitlinear`: the scale divides.
    BitLinear,
    /// Packed, `linear_class: autobitlinear`: the scale multiplies.
    AutoBitLinear,
    /// Latent weights that are quantized as they are used: for training on.
    Online,
}

impl HfFormat {
    /// What a stored scale does to the codes; none where there are no codes.
    fn scale(self) -> Option<HfScale> {
        match self {
            Self::BitLinear => Some(HfScale::Divide),
            Self::AutoBitLinear => Some(HfScale::Multiply),
            Self::Online => None,
        }
    }
}

/// How a folder for transformers is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HfOptions {
    /// How the weights of BitNet slots stand in it.
    pub format: HfFormat,
    /// The type of the tensors that stay float; `None` keeps the source's.
    pub weight_type: Option<WeightType>,
    /// Whether to replace what stands under the name.
    pub overwrite: bool,
    /// Whether a model that is not at λ = 1 is exported all the same, as if it were.
    pub any_lambda: bool,
}

impl HfOptions {
    /// A format with the defaults: the source's types, nothing replaced, λ = 1 only.
    pub fn new(format: HfFormat) -> Self {
        Self { format, weight_type: None, overwrite: false, any_lambda: false }
    }
}

/// Writes a checkpoint as a folder for transformers, one tensor in memory at a time, under its name whole or not at all.
/// `progress` is called with the weights written and their total number.
///
/// # Errors
/// - [`ConvertError::NotExportable`] where transformers has no words for the model, with the reason
/// - [`ConvertError::Lambda`] for a slot that is not at λ = 1, unless `any_lambda`
/// - [`ConvertError::Format`] for a tensor that the format cannot hold
/// - [`ConvertError::Exists`] where something stands under the name, unless `overwrite`
/// - those of reading the source; [`ConvertError::Write`]
pub fn export_hf(
    tensors: &Tensors,
    dst: impl AsRef<Path>,
    options: &HfOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), ConvertError> {
    let (source, dst, format) = (tensors.source(), dst.as_ref(), options.format);
    if let Some((name, found)) = tensors.unfinished_slot()
        && !options.any_lambda
    {
        return Err(ConvertError::Lambda { name, found });
    }
    let mut progress = Progress::new(source, &mut progress);
    let config = hf_config(source, format)?;
    let layout = match options.weight_type {
        Some(weight_type) => source.layout().with_type(weight_type),
        None => source.layout(),
    };
    write_folder(dst, options.overwrite, |folder| {
        let mut json = config.to_json();
        if let Some(weight_type) = options.weight_type {
            json.insert(config.dtype_key().into(), weight_type.torch_name().into());
        }
        write_json(&folder.join("config.json"), &json)?;
        write_shards(folder, &layout, source, format.scale(), &mut progress)?;
        match source.tokenizer_folder() {
            Some(from) => copy_companions(from, folder),
            None => Ok(()),
        }
    })
}

/// The config of the exported folder.
fn hf_config(source: &dyn Source, format: HfFormat) -> Result<HfConfig, ConvertError> {
    let refused = |reason: &str| {
        Err(ConvertError::NotExportable { format: "a folder for transformers", reason: reason.into() })
    };
    let mut config = source.config().clone();
    if let Some(loss) = config.additions.loss() {
        return refused(&format!(
            "it has no words for {loss}; low-rank maps can be exported as an adapter for PEFT, beside the model without them"
        ));
    }
    let Some(state) = &mut config.bitnet else {
        return refused("the model is dense: convert it first");
    };
    let has_codes_only = source.entries().iter().any(|entry| matches!(entry.content, Content::Packed(_)));
    state.packed = match (format, has_codes_only) {
        (HfFormat::Online, true) => return refused("packed weights hold no latent weights"),
        _ => format.scale(),
    };
    if !config.fits_transformers() {
        let state = config.bitnet.as_ref().map(ToString::to_string).unwrap_or_default();
        return refused(&format!(
            "it has no words for {state} in a {} model; it knows weights per tensor, int8 activations per token, and \
             sub-norms before no projection, before all, or, for Llama, before the output projections",
            config.model_type.name(),
        ));
    }
    Ok(config)
}
