//! The report, the verdict, and the last step of a run.

use std::fmt;
use std::fs;
use std::path::Path;

use bitnet_compress::{PAGE, STATS, Stats, Totals};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::calibrate::Calibrated;
use crate::convert::Converted;
use crate::fine_tune::Trained;
use crate::page::page;
use crate::pipeline::{Context, Loaded, Validated};
use crate::verify::Verified;
use crate::work::{write_error, write_json, write_text};
use crate::write::{DENSE, Written, parts};
use crate::{Checks, Config, PipelineError, SlotStatistics, Stage};

/// `compression_stats.json` of mode `model`. It depends on source, data and settings alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What mode `tensors` reports too.
    #[serde(flatten)]
    pub stats: Stats,
    /// What only a model has.
    pub model: ModelReport,
}

/// What was found out about a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// transformers' `model_type`.
    pub architecture: String,
    /// All settings.
    pub settings: Config,
    /// Windows of data: to train and calibrate on, and held out.
    pub windows: [u64; 2],
    /// Tokens of each.
    pub window: usize,
    /// Tokens of calibration.
    pub calibration_tokens: u64,
    /// What enters every slot of the dense model.
    pub calibration: Vec<SlotStatistics>,
    /// Low-rank corrections, slot by slot.
    pub lrc: Option<Value>,
    /// Fine-tuning.
    pub training: Option<Training>,
    /// On the held-out windows.
    pub perplexity: Perplexities,
    /// Tensors of the source that the model has no place for: no artifact has them.
    pub not_carried: Vec<String>,
    /// Bytes of the packed model that the source has nothing for: sub-norms, corrections, salient columns.
    pub added_bytes: u64,
    /// What the export to GGUF says.
    pub gguf: Option<Value>,
    /// What was compared at the end, beside codes.
    pub checks: Checks,
    /// Whether the result is good enough.
    pub verdict: Outcome,
}

/// What fine-tuning did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Steps that were taken.
    pub steps: u64,
    /// Steps of the best model.
    pub best_steps: u64,
    /// Whether it is better than the converted model. If it is not, that one was packed.
    pub kept: bool,
}

/// Perplexities on the held-out windows. The best model of training was chosen on the same windows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Perplexities {
    /// Of the dense source.
    pub dense: f64,
    /// After conversion.
    pub converted: f64,
    /// After fine-tuning, of the best model.
    pub trained: Option<f64>,
    /// Of the result, as it was read again.
    pub result: f64,
    /// Of the dense folder: ternary weights alone, without sub-norms and quantized activations. Another model than the one
    /// that was trained.
    pub weights_alone: f64,
}

/// Whether the result counts as a success.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// How many times the dense model's perplexity the result has.
    pub ratio: f64,
    /// How many times it may have.
    pub max_ratio: f64,
    /// Whether it stays below.
    pub success: bool,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ratio, max_ratio, success } = self;
        let word = if *success { "good enough" } else { "WORSE than asked for" };
        write!(f, "{word}: {ratio:.3} times the dense model's perplexity, at most {max_ratio} asked for")
    }
}

impl fmt::Display for Report {
    /// A summary of a few lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.stats)?;
        let ModelReport { perplexity, training, checks, verdict, .. } = &self.model;
        writeln!(f, "logits      packed and dense weights differ by {:.1e}", checks.difference)?;
        writeln!(f, "perplexity  {:.3} dense", perplexity.dense)?;
        writeln!(f, "            {:.3} converted", perplexity.converted)?;
        if let (Some(trained), Some(training)) = (perplexity.trained, training) {
            let note = if training.kept { "" } else { ": not kept" };
            writeln!(f, "            {trained:.3} trained, after {} steps{note}", training.best_steps)?;
        }
        writeln!(f, "            {:.3} packed and read again", perplexity.result)?;
        writeln!(f, "            {:.3} dense folder: weights alone", perplexity.weights_alone)?;
        write!(f, "verdict     {verdict}")
    }
}

/// Puts the target together and gives it its name. Each step may have been done by a process that was killed.
pub(crate) fn finish(context: Context) -> Result<Report, PipelineError> {
    let report = report(&context)?;
    let (target, dense) = (&context.pipeline.target, context.work.path(DENSE));
    // Not in their place: what is left of a killed process is cleared away here only.
    let (stats, html) = (context.work.path(STATS), context.work.path(PAGE));
    write_json(&stats, &report)?;
    write_text(&html, &page(&report)?)?;
    for (path, name) in parts(&context).into_iter().chain([(stats, STATS), (html, PAGE)]) {
        if path.exists() {
            fs::rename(&path, dense.join(name)).map_err(write_error(&path))?;
        }
    }
    if target.is_dir() {
        fs::remove_dir(target).map_err(write_error(target))?;
    }
    fs::rename(&dense, target).map_err(write_error(target))?;
    context.work.end()?;
    Ok(report)
}

/// Everything that the stages left, as it stands on the disk: the same whether they ran now or earlier.
fn report(context: &Context) -> Result<Report, PipelineError> {
    let (work, config) = (&context.work, &context.pipeline.config);
    let last = Stage::Verify;
    let validated: Validated = work.result(Stage::Validate, last)?;
    let loaded: Loaded = work.result(Stage::Load, last)?;
    let calibrated: Calibrated = work.result(Stage::Calibrate, last)?;
    let converted: Converted = work.result(Stage::Convert, last)?;
    let trained: Option<Trained> =
        config.train.as_ref().map(|_| work.result(Stage::FineTune, last)).transpose()?;
    let written: Written = work.result(Stage::Write, last)?;
    let verified: Verified = work.result(Stage::Verify, last)?;
    let [result, weights_alone] = verified.perplexity;
    let (ratio, max_ratio) = (result / loaded.perplexity, config.verdict.max_ratio);
    let total = Totals::of(&written.tensors, config.granularity(), &written.sums.into());
    let stats = Stats {
        version: 1,
        mode: "model".into(),
        options: config.options(),
        tensors: written.tensors,
        files: written.files,
        copied: written.copied,
        skipped: written.skipped,
        total,
        verification: verified.verification,
    };
    let model = ModelReport {
        architecture: validated.architecture,
        settings: config.clone(),
        windows: [loaded.train_windows, loaded.held_out_windows],
        window: loaded.window,
        calibration_tokens: calibrated.tokens,
        calibration: calibrated.slots,
        lrc: converted.lrc,
        training: trained.as_ref().map(|trained| Training {
            steps: trained.steps,
            best_steps: trained.best.steps,
            kept: trained.kept,
        }),
        perplexity: Perplexities {
            dense: loaded.perplexity,
            converted: converted.perplexity,
            trained: trained.map(|trained| trained.best.perplexity),
            result,
            weights_alone,
        },
        not_carried: loaded.unexpected,
        added_bytes: written.added_bytes,
        gguf: written.gguf,
        checks: verified.checks,
        verdict: Outcome { ratio, max_ratio, success: ratio <= max_ratio },
    };
    Ok(Report { stats, model })
}

/// Reads a report.
pub(crate) fn read(path: &Path) -> Result<Report, PipelineError> {
    let text = fs::read(path).map_err(|source| PipelineError::Read { path: path.into(), source })?;
    serde_json::from_slice(&text)
        .map_err(|error| PipelineError::Damaged { path: path.into(), reason: error.to_string() })
}
