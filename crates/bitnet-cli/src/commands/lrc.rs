//! `bitnet lrc`

use std::path::PathBuf;

use bitnet_convert::{WeightType, correct, save_with_report};
use bitnet_lrc::{
    Calibration, Init, LeftBecause, LrcConfig, LrcStats, PERCENTAGE, SlotAction, SlotRule, stats,
};
use bitnet_quant::GroupQuant;
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::calibration::{CalibrationFlags, batches};
use crate::error::CliError;
use crate::flags::Global;
use crate::model::load;
use crate::output::{bytes, grouped, print_line};
use crate::target::check_replaceable;

const EXAMPLES: &str = "\
Examples:
  bitnet lrc smollm2-trained smollm2-lrc --data books/
  bitnet lrc smollm2-trained smollm2-lrc --data books/ --percentage 0.3 --rounds 4
  bitnet lrc SRC DST --init svd --rank 32 --slots '*.mlp.*' --exclude '*.down_proj'
  bitnet lrc SRC DST --data text.txt --bits 8 --pack";

/// Put low-rank corrections beside the ternary weights of a BitNet model
///
/// A corrected projection computes Q(w) Qa(x) + U (V x), where U and V are narrow float matrices
/// that make up for what quantization loses (LRC, arXiv 2412.07902). With --data, they are fitted
/// to what the model computes with its latent weights on that text, block by block; without, to
/// the weights alone. The ternary weights stay as they are, unless --rounds fits them too.
///
/// DST becomes a folder that loads again, with report.json, which names every projection with its
/// error before and after. Other engines take such a model in two files: see `bitnet export
/// --part`.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = EXAMPLES)]
pub(crate) struct Flags {
    /// The BitNet model: a folder or a hub id
    src: String,

    /// The folder to write: new or empty
    dst: PathBuf,

    #[command(flatten)]
    calibration: CalibrationFlags,

    /// How U and V begin [default: calibrated with --data, else svd]
    #[arg(long, value_enum, value_name = "INIT")]
    init: Option<InitName>,

    /// How often the ternary weight is fitted to what the correction leaves, and the correction
    /// to it again; it needs its latent weight
    #[arg(long, value_name = "N", requires = "data", verbatim_doc_comment)]
    rounds: Option<usize>,

    /// The rank of U and V, for each projection the same
    #[arg(long, value_name = "N", conflicts_with = "percentage")]
    rank: Option<usize>,

    /// The rank as a share of the smaller size of each projection
    #[arg(long, value_name = "SHARE", default_value_t = PERCENTAGE)]
    percentage: f64,

    /// Correct the projections that match this glob, as in '*.mlp.*'; may be repeated
    /// [default: all]
    #[arg(long, value_name = "GLOB", verbatim_doc_comment)]
    slots: Vec<String>,

    /// Leave the projections that match this glob; may be repeated
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,

    /// Quantize U and V to 4 or 8 bits whenever they are used (QLRC)
    #[arg(long, value_name = "BITS")]
    bits: Option<u8>,

    /// Values of U and V that share a scale
    #[arg(long, value_name = "N", default_value_t = GroupQuant::GROUP, requires = "bits")]
    group: usize,

    /// Keep the ternary codes only, at two bits a weight, and not the weights they are made from
    #[arg(long)]
    pack: bool,

    /// Replace the model that stands under DST
    #[arg(long)]
    force: bool,
}

/// The beginnings by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum InitName {
    /// The best fit to the text of --data
    Calibrated,
    /// The best fit to what ternarization takes from the weight
    Svd,
    /// V at random, U zero: no correction until it is trained
    Kaiming,
    /// Both zero: a place to load values into, which cannot be trained
    Zeros,
}

pub(crate) fn run(flags: &Flags, global: &Global) -> Result<(), CliError> {
    let config = config(flags)?;
    let (src, checkpoint) = load(&flags.src, global)?;
    if flags.force {
        check_replaceable(&src, &flags.dst)?;
    }
    let windows = flags.calibration.windows(&src.join("tokenizer.json"))?;
    let batches = batches(&checkpoint.model, &windows)?;
    let (checkpoint, calibration) = correct(checkpoint, &config, &batches)?;
    if calibration.report.n_added() == 0 {
        return Err(nothing_added(&calibration));
    }
    // In a coarser type the factors would be others than those that were fitted, and so would the codes after rounds.
    let checkpoint = checkpoint.with_type(WeightType::F32);
    let stats = stats(&checkpoint.model);
    let report = json!({
        "config": config,
        "tokens": calibration.tokens,
        "calibration_bytes": calibration.peak_bytes,
        "slots": calibration.report.slots,
    });
    save_with_report(&checkpoint, &flags.dst, &report, flags.force)?;
    if global.quiet { Ok(()) } else { print_summary(&calibration, &stats, flags) }
}

/// What the flags say, with what the parser cannot know checked.
fn config(flags: &Flags) -> Result<LrcConfig, CliError> {
    let has_data = !flags.calibration.data.is_empty();
    let default = if has_data { InitName::Calibrated } else { InitName::Svd };
    let init = match flags.init.unwrap_or(default) {
        InitName::Calibrated => Init::Calibrated { rounds: flags.rounds.unwrap_or(0) },
        InitName::Svd => Init::SvdResidual,
        InitName::Kaiming => Init::Kaiming,
        InitName::Zeros => Init::Zeros,
    };
    let usage = |reason: String| Err(CliError::Usage { reason });
    match (init, has_data) {
        (Init::Calibrated { .. }, false) => return usage("--init calibrated needs --data".into()),
        (Init::Calibrated { .. }, true) | (_, false) => {}
        (_, true) => return usage("--data says nothing about this --init".into()),
    }
    let quant = flags.bits.map(|bits| GroupQuant::new(bits, flags.group)).transpose();
    let factors = quant.map_err(|error| CliError::Usage { reason: error.to_string() })?;
    let rule = SlotRule { rank: flags.rank, percentage: flags.percentage, ..SlotRule::default() };
    let slots = match flags.slots.as_slice() {
        [] => vec![rule],
        globs => globs.iter().map(|glob| rule.clone().on(glob)).collect(),
    };
    let exclude = flags.exclude.clone();
    Ok(LrcConfig { slots, exclude, init, factors, keep_latent: !flags.pack, ..LrcConfig::default() })
}

fn nothing_added(calibration: &Calibration) -> CliError {
    let count = |wanted: LeftBecause| {
        let left = SlotAction::Left(wanted);
        calibration.report.slots.iter().filter(|slot| slot.action == left).count()
    };
    CliError::NothingCorrected { dense: count(LeftBecause::Dense), corrected: count(LeftBecause::HasOne) }
}

fn print_summary(calibration: &Calibration, stats: &LrcStats, flags: &Flags) -> Result<(), CliError> {
    let mut errors = Vec::new();
    for slot in &calibration.report.slots {
        if let SlotAction::Added { error: Some(error), .. } = &slot.action {
            let kept = error.after.iter().copied().fold(f64::INFINITY, f64::min);
            errors.push((error.before, kept));
        }
    }
    print_line(&format!("projections corrected     {:>10}", calibration.report.n_added()))?;
    if calibration.tokens > 0 {
        print_line(&format!("tokens of calibration     {:>10}", grouped(calibration.tokens as u64)))?;
    }
    if !errors.is_empty() {
        let mean = |values: &dyn Fn(&(f64, f64)) -> f64| {
            100.0 * errors.iter().map(values).sum::<f64>() / errors.len() as f64
        };
        let (before, after) = (mean(&|error| error.0), mean(&|error| error.1));
        print_line(&format!("mean error, before        {before:>8.1} %"))?;
        print_line(&format!("mean error, after         {after:>8.1} %"))?;
    }
    let (factors, codes) = (stats.bytes() as u64, stats.packed_weight_bytes() as u64);
    print_line(&format!("size of U and V           {:>10}", bytes(factors)))?;
    print_line(&format!("size of the codes         {:>10}", bytes(codes)))?;
    let (dst, report) = (flags.dst.display(), flags.dst.join("report.json"));
    Ok(print_line(&format!("{dst} is written; {} has every projection", report.display()))?)
}
