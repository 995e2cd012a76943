//! Stage `convert`: the dense model becomes a BitNet model.

use bitnet_convert::{
    Checkpoint, ConversionReport, GgufOptions, HfOptions, Tensors, WeightType, convert_calibrated, correct,
    export_gguf, export_hf, save,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::calibrate::Calibrated;
use crate::pipeline::Context;
use crate::{PipelineError, Stage};

/// The folder of the converted model, with latent weights in f32.
pub(crate) const CONVERTED: &str = "converted";

/// What stage `convert` leaves, beside the folder.
#[derive(Serialize, Deserialize)]
pub(crate) struct Converted {
    pub(crate) perplexity: f64,
    pub(crate) report: ConversionReport,
    /// What was done to each slot.
    pub(crate) lrc: Option<Value>,
}

pub(crate) fn run(context: &mut Context) -> Result<(), PipelineError> {
    let _: Calibrated = context.work.result(Stage::Calibrate, Stage::Convert)?;
    for name in [CONVERTED, crate::fine_tune::RUN] {
        context.work.clear(name)?; // of an earlier run of this stage
    }
    let config = &context.pipeline.config;
    let dense = context.dense()?;
    context.forget_dense();
    let batches = if config.needs_batches() { context.batches(&dense.model)? } else { Vec::new() };
    let (mut checkpoint, report) = convert_calibrated(dense, &config.policy(), &batches)?;
    let mut lrc = None;
    if let Some(config) = &config.lrc {
        let (corrected, calibration) = correct(checkpoint, config, &batches)?;
        checkpoint = corrected;
        lrc = serde_json::to_value(calibration.report.slots).ok();
    }
    let checkpoint = checkpoint.with_type(WeightType::F32); // a coarser type would change codes
    refuse_impossible_exports(context, &checkpoint)?;
    let perplexity = context.perplexity(&checkpoint.model)?;
    save(&checkpoint, context.work.path(CONVERTED))?;
    context.work.finish(Stage::Convert, &Converted { perplexity, report, lrc })
}

/// Exports now what will be exported in the end: a refusal must not come after days of training.
fn refuse_impossible_exports(context: &Context, checkpoint: &Checkpoint) -> Result<(), PipelineError> {
    let (export, trial) = (&context.pipeline.config.export, context.work.path("trial"));
    context.work.clear("trial")?;
    if let Some(format) = export.hf {
        export_hf(&Tensors::of(checkpoint), &trial, &HfOptions::new(format), |_, _| ())?;
        context.work.clear("trial")?;
    }
    if let Some(weights) = export.gguf {
        let options = GgufOptions { weights, ..GgufOptions::default() };
        export_gguf(&Tensors::of(checkpoint), &trial, &options, |_, _| ())?;
        context.work.clear("trial")?;
    }
    Ok(())
}
