//! Stages `pack` and `write`: the artifacts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bitnet_compress::{CompressError, FileStats, Float, Granularity, Sums, TensorStats, headers};
use bitnet_convert::{
    Checkpoint, GgufOptions, HfConfig, HfFormat, HfOptions, LoadOptions, Tensors, WeightType, export_gguf,
    export_hf, pack, save,
};
use bitnet_layers::{Form, LayerError, Projection, SubLnOrigin, for_each_slot, for_each_slot_mut};
use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fine_tune::chosen;
use crate::pipeline::{Context, Pipeline};
use crate::tensors::tensors;
use crate::work::write_error;
use crate::{Config, PipelineError, Stage};

/// What stands in the work folder, and later in the target: the folder that becomes the target itself, ...
pub(crate) const DENSE: &str = "dense";
/// ... and what comes into it.
pub(crate) const PACKED: &str = "packed";
pub(crate) const LATENT: &str = "latent";
pub(crate) const HF: &str = "hf";
pub(crate) const GGUF: &str = "model.gguf";

/// What stage `pack` leaves, beside the folders.
#[derive(Serialize, Deserialize)]
pub(crate) struct Packed {
    /// The folder that holds the model itself.
    pub(crate) model: String,
}

/// What stage `write` leaves, beside the folders.
#[derive(Serialize, Deserialize)]
pub(crate) struct Written {
    pub(crate) tensors: Vec<TensorStats>,
    pub(crate) sums: SumsOnDisk,
    pub(crate) files: Vec<FileStats>,
    pub(crate) copied: Vec<String>,
    pub(crate) skipped: Vec<String>,
    /// Bytes in the model that the source has nothing for: sub-norms, corrections, salient columns.
    pub(crate) added_bytes: u64,
    /// The export's own report.
    pub(crate) gguf: Option<Value>,
}

/// [`Sums`], which has no form on the disk.
#[derive(Serialize, Deserialize, Clone, Copy)]
pub(crate) struct SumsOnDisk {
    /// As bits: decimal digits need not come back as the same number.
    pub(crate) errors: u64,
    pub(crate) squares: u64,
    pub(crate) before: u64,
    pub(crate) after: u64,
    pub(crate) packed: Option<u64>,
}

impl From<SumsOnDisk> for Sums {
    fn from(sums: SumsOnDisk) -> Self {
        Self {
            errors: f64::from_bits(sums.errors),
            squares: f64::from_bits(sums.squares),
            file_bytes_before: sums.before,
            file_bytes_after: sums.after,
            file_bytes_packed: sums.packed,
        }
    }
}

/// Whether packed weights can stand in a folder: those with one scale can.
pub(crate) fn packs(config: &Config) -> bool {
    config.granularity() == Granularity::Tensor
}

pub(crate) fn pack_stage(context: &mut Context) -> Result<(), PipelineError> {
    let folder = chosen(context, Stage::Pack)?;
    for name in [PACKED, LATENT] {
        context.work.clear(name)?;
    }
    context.forget_dense();
    let checkpoint = context.open_model(&folder)?;
    let config = &context.pipeline.config;
    if packs(config) {
        let (packed, _) = pack(stored(context.pipeline, checkpoint.clone())?)?;
        save(&packed, context.work.path(PACKED))?;
    }
    if config.export.latent || !packs(config) {
        save(&checkpoint.with_type(WeightType::F32), context.work.path(LATENT))?;
    }
    let model = if packs(config) { PACKED } else { LATENT };
    context.work.finish(Stage::Pack, &Packed { model: model.into() })
}

/// The checkpoint in the files and types that the artifacts have.
fn stored(pipeline: &Pipeline, checkpoint: Checkpoint) -> Result<Checkpoint, PipelineError> {
    let source = Tensors::open(&pipeline.source, &LoadOptions::default())?;
    let checkpoint = checkpoint.with_layout_of(&source);
    Ok(match pipeline.config.dtype {
        Some(Float::F32) => checkpoint.with_type(WeightType::F32),
        Some(Float::F16) => checkpoint.with_type(WeightType::F16),
        Some(Float::Bf16) => checkpoint.with_type(WeightType::BF16),
        None => checkpoint,
    })
}

pub(crate) fn run(context: &mut Context) -> Result<(), PipelineError> {
    let Packed { model } = context.work.result(Stage::Pack, Stage::Write)?;
    for name in [DENSE, HF, GGUF] {
        context.work.clear(name)?;
    }
    let pipeline = context.pipeline;
    let bitnet = context.open_model(&context.work.path(&model))?;
    let latent = context.open_model(&chosen(context, Stage::Write)?)?;
    // Packed folders hold biases divided by scales: not to the last bit what they were.
    let mut biases = BTreeMap::new();
    for_each_slot(&latent.model, |path, slot| drop(biases.insert(path.to_owned(), slot.bias().cloned())));
    let mut dense = bitnet.model.clone();
    let mut failed = Ok(());
    for_each_slot_mut(&mut dense, |path, slot| {
        if failed.is_ok() && slot.is_bit() {
            failed = make_dense(slot);
            set_bias(slot, biases.remove(path).flatten());
        }
    });
    failed?;
    let folder = context.work.path(DENSE);
    let config = HfConfig::read(&pipeline.source)?;
    let dense = Checkpoint::new(dense, config, &pipeline.source);
    save(&stored(pipeline, dense)?, &folder)?;
    let (copied, skipped) = copy_companions(pipeline, &folder)?;
    // Exports bear the source's name.
    let named = |checkpoint: &Checkpoint| {
        let (model, config) = (checkpoint.model.clone(), checkpoint.config.clone());
        stored(pipeline, Checkpoint::new(model, config, &pipeline.source))
    };
    let gguf = export(context, &named(&bitnet)?, &named(&latent)?)?;
    let written = headers(&folder)?;
    let packed = (model == PACKED).then(|| headers(&context.work.path(PACKED))).transpose()?;
    let (tensors, [errors, squares]) = tensors(context, &bitnet, &latent, &written, packed.as_ref())?;
    let size = |files: &[(String, u64)]| files.iter().map(|(_, bytes)| bytes).sum::<u64>();
    let of = |name: &str| pipeline.headers.files.iter().find(|(known, _)| known == name).map_or(0, |f| f.1);
    let listed = |folder: &str, files: &[(String, u64)]| -> Vec<FileStats> {
        let stats = files.iter().map(|(name, bytes)| FileStats {
            path: format!("{folder}{name}"),
            bytes_before: of(name),
            bytes_after: *bytes,
        });
        stats.collect()
    };
    let mut files = listed("", &written.files);
    let (mut packed_bytes, mut added_bytes) = (None, 0);
    if let Some(packed) = &packed {
        files.extend(listed("packed/", &packed.files));
        packed_bytes = Some(size(&packed.files));
        let known = |name: &str| {
            let weight = name.strip_suffix("_scale").unwrap_or(name);
            pipeline.headers.tensors.iter().any(|tensor| tensor.name == weight)
        };
        added_bytes = packed.tensors.iter().filter(|tensor| !known(&tensor.name)).map(|t| t.bytes).sum();
    }
    let sums = SumsOnDisk {
        errors: f64::to_bits(errors),
        squares: f64::to_bits(squares),
        before: size(&pipeline.headers.files),
        after: size(&written.files),
        packed: packed_bytes,
    };
    context.work.finish(Stage::Write, &Written { tensors, sums, files, copied, skipped, added_bytes, gguf })
}

/// The dense slot that computes a BitNet slot's weights, and a correction beside them, on an input that is neither normed
/// nor quantized.
pub(crate) fn make_dense(slot: &mut Projection) -> Result<(), LayerError> {
    if !slot.is_bit() {
        return Ok(());
    }
    let mut weight = slot.quantized_weight()?;
    if let Some(low_rank) = &slot.low_rank {
        weight = weight + low_rank.product(1.0).inner();
    }
    let bias = slot.bias().cloned();
    slot.form = Form::Dense(Linear { weight: Param::from_tensor(weight.transpose()), bias });
    remove_additions(slot);
    slot.low_rank = None;
    slot.outliers = None;
    Ok(())
}

/// Gives a slot's map another bias.
pub(crate) fn set_bias(slot: &mut Projection, bias: Option<Param<Tensor<1>>>) {
    match &mut slot.form {
        Form::Dense(linear) => linear.bias = bias,
        Form::Bit(linear) => linear.bias = bias,
        Form::Packed(linear) => linear.bias = bias,
    }
}

/// Takes away what conversion inserted before a map.
pub(crate) fn remove_additions(slot: &mut Projection) {
    if slot.sub_norm.as_ref().is_some_and(|norm| norm.origin == SubLnOrigin::Inserted) {
        slot.sub_norm = None;
    }
}

/// Copies the source's other files, byte for byte. The config only where its type of weights still holds.
fn copy_companions(pipeline: &Pipeline, folder: &Path) -> Result<(Vec<String>, Vec<String>), PipelineError> {
    let (mut copied, mut skipped) = (Vec::new(), pipeline.headers.skipped.clone());
    for path in &pipeline.headers.companions {
        let name = path.to_string_lossy().into_owned();
        let first = path.components().next().map(|first| first.as_os_str().to_string_lossy().into_owned());
        if [PACKED, LATENT, HF].contains(&first.unwrap_or_default().as_str()) {
            skipped.push(name); // its name is taken
            continue;
        }
        if name == "config.json" && pipeline.config.dtype.is_some() {
            continue;
        }
        let (from, to) = (pipeline.source.join(path), folder.join(path));
        fs::create_dir_all(to.parent().unwrap_or(folder)).map_err(write_error(&to))?;
        let bytes = fs::read(&from).map_err(|source| PipelineError::Read { path: from, source })?;
        fs::write(&to, bytes).map_err(write_error(&to))?;
        copied.push(name);
    }
    Ok((copied, skipped))
}

/// What is asked for beside the folders.
fn export(
    context: &mut Context,
    bitnet: &Checkpoint,
    latent: &Checkpoint,
) -> Result<Option<Value>, PipelineError> {
    let (export, events) = (&context.pipeline.config.export, &mut *context.events);
    let mut progress = |done, total| events(crate::Event::Part(done, total));
    if let Some(format) = export.hf {
        // A coarser type would change the codes of latent weights.
        let online = format == HfFormat::Online;
        let weight_type = online.then_some(WeightType::F32);
        let options = HfOptions { weight_type, ..HfOptions::new(format) };
        let tensors = Tensors::of(if online { latent } else { bitnet });
        export_hf(&tensors, context.work.path(HF), &options, &mut progress)?;
    }
    let Some(weights) = export.gguf else { return Ok(None) };
    let options = GgufOptions { weights, ..GgufOptions::default() };
    let report = export_gguf(&Tensors::of(bitnet), context.work.path(GGUF), &options, &mut progress)?;
    Ok(serde_json::to_value(report).ok())
}

/// The paths of everything that comes into the target.
pub(crate) fn parts(context: &Context) -> Vec<(PathBuf, &'static str)> {
    [PACKED, LATENT, HF, GGUF].map(|name| (context.work.path(name), name)).into()
}

/// The source is as it was.
pub(crate) fn check_unchanged(pipeline: &Pipeline) -> Result<(), PipelineError> {
    if headers(&pipeline.source)?.fingerprint != pipeline.headers.fingerprint {
        return Err(CompressError::Changed { path: pipeline.source.clone() }.into());
    }
    Ok(())
}
