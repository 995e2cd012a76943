//! `bitnet convert`

use std::path::PathBuf;

use bitnet_convert::{
    Action, ConversionReport, LeftBecause, LoadOptions, Placement, Policy, Stage1Options, SubNormGain,
    stage1_calibrated,
};
use bitnet_quant::{ActivationQuant, Bits, Granularity, Quantization, device};
use clap::Args;

use crate::bar::Bar;
use crate::calibration::CalibrationFlags;
use crate::error::CliError;
use crate::flags::Global;
use crate::output::print_line;
use crate::source::resolve;
use crate::target::check_replaceable;

const EXAMPLES: &str = "\
Examples:
  bitnet convert SmolLM2-135M smollm2-bitnet
  bitnet convert HuggingFaceTB/SmolLM2-135M smollm2-bitnet --sub-norm all
  bitnet convert SRC DST --exclude '*.down_proj' --exclude 'model.layers.0.*'
  bitnet convert SRC DST --granularity row --activations off
  bitnet convert SRC DST --hadamard --salient 0.01 --data books/";

/// Convert a dense model to BitNet b1.58, to be trained
///
/// Every linear map in the model's blocks becomes a BitNet layer. Its float weights stay as they
/// are; whenever the layer runs they are ternarized, and its input is quantized to 8 bits. The
/// embedding, the head and the norms stay dense. The model computes something else afterwards:
/// it is to be trained, not to be used as it is.
///
/// DST becomes a folder that loads again, with the source's tokenizer files, in transformers'
/// words as far as they can express the model. Its report.json names every tensor that was
/// converted or left alone, and why. DST appears whole or not at all.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = EXAMPLES)]
pub(crate) struct Flags {
    /// The dense model: a folder or a hub id
    src: String,

    /// The folder to write: new or empty
    dst: PathBuf,

    /// Where a norm is inserted before the projections: nowhere, before o_proj and down_proj, or
    /// before all
    #[arg(long, value_name = "WHERE", default_value = "output", value_parser = ["none", "output", "all"])]
    #[arg(verbatim_doc_comment)]
    sub_norm: String,

    /// What the gains of those norms start with: ones, or the size of what enters each in the
    /// dense model, calibrated on the text of --data
    #[arg(long, value_name = "G", default_value = "ones", value_parser = ["ones", "calibrated"])]
    #[arg(verbatim_doc_comment)]
    sub_norm_gain: String,

    /// Leave the slots that match this glob dense, as in '*.down_proj'; may be repeated
    ///
    /// Globs are on full names, as in 'model.layers.0.*', and '*' crosses dots. One that matches
    /// nothing is an error.
    #[arg(long, value_name = "GLOB", verbatim_doc_comment)]
    exclude: Vec<String>,

    /// How many weights share a scale: tensor, row, or group:N for N inputs of a row
    ///
    /// Anything but `tensor` is a model that transformers cannot express.
    #[arg(long, value_name = "G", default_value = "tensor", value_parser = granularity, verbatim_doc_comment)]
    granularity: Granularity,

    /// How inputs are quantized: token, tensor or off, with 2 to 8 bits as in token:4
    ///
    /// Anything but `token`, which is token:8, is a model that transformers cannot express.
    #[arg(long, value_name = "A", default_value = "token", value_parser = activations, verbatim_doc_comment)]
    activations: ActivationQuant,

    /// Turn o_proj and down_proj by a Hadamard matrix before they become BitNet layers
    ///
    /// It spreads large inputs over all, so that the others keep their codes. transformers cannot
    /// express such a model.
    #[arg(long, verbatim_doc_comment)]
    hadamard: bool,

    /// Keep this share of each projection's columns in full precision: those that matter most for
    /// what the model computes on the text of --data
    ///
    /// transformers cannot express such a model.
    #[arg(long, value_name = "SHARE", verbatim_doc_comment)]
    salient: Option<f64>,

    #[command(flatten)]
    calibration: CalibrationFlags,

    /// Refuse tensors that the model has no place for, instead of reporting them
    #[arg(long)]
    strict: bool,

    /// Replace the model that stands under DST
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(flags: &Flags, global: &Global) -> Result<(), CliError> {
    let device = device(&global.device)?;
    let src = resolve(&flags.src, global.quiet)?;
    if flags.force {
        check_replaceable(&src, &flags.dst)?;
    }
    let policy = Policy {
        sub_norm: match flags.sub_norm.as_str() {
            "none" => Placement::None,
            "all" => Placement::All,
            _ => Placement::Output,
        },
        sub_norm_gain: match flags.sub_norm_gain.as_str() {
            "calibrated" => SubNormGain::Calibrated,
            _ => SubNormGain::Ones,
        },
        exclude: flags.exclude.clone(),
        quantization: Quantization { weight: flags.granularity, activation: flags.activations },
        hadamard: flags.hadamard,
        salient: flags.salient,
    };
    let reason = match (policy.needs_data(), flags.calibration.data.is_empty()) {
        (true, true) => "--salient and --sub-norm-gain calibrated need --data",
        (false, false) => "--data says nothing without --salient or --sub-norm-gain calibrated",
        _ => "",
    };
    if !reason.is_empty() {
        return Err(CliError::Usage { reason: reason.into() });
    }
    let windows = flags.calibration.windows(&src.join("tokenizer.json"))?;
    let options = Stage1Options { load: LoadOptions { strict: flags.strict }, overwrite: flags.force };
    let mut bar = Bar::new("converting", global.quiet);
    let report = stage1_calibrated(&src, &flags.dst, &policy, &windows, &device, &options, |done, total| {
        bar.set(done, total);
    })?;
    drop(bar);
    if global.quiet { Ok(()) } else { print_summary(&report, flags) }
}

fn print_summary(report: &ConversionReport, flags: &Flags) -> Result<(), CliError> {
    let count =
        |wanted: fn(&Action) -> bool| report.tensors.iter().filter(|tensor| wanted(&tensor.action)).count();
    for (what, n) in [
        ("projections made BitNet layers", report.n_converted()),
        ("norms inserted before them", count(|action| *action == Action::InsertedSubNorm)),
        ("projections excluded", count(|action| matches!(action, Action::Left(LeftBecause::Excluded(_))))),
        (
            "embedding and head left as they are",
            count(|action| matches!(action, Action::Left(LeftBecause::Embedding | LeftBecause::Head))),
        ),
        (
            "norms and biases left as they are",
            count(|action| matches!(action, Action::Left(LeftBecause::Norm | LeftBecause::Bias))),
        ),
    ] {
        if n > 0 {
            print_line(&format!("{what:<38}{n:>6}"))?;
        }
    }
    let (dst, report) = (flags.dst.display(), flags.dst.join("report.json"));
    Ok(print_line(&format!("{dst} is written; {} has every tensor", report.display()))?)
}

pub(crate) fn granularity(text: &str) -> Result<Granularity, String> {
    let group = || text.strip_prefix("group:")?.parse::<usize>().ok().filter(|group| group.is_power_of_two());
    match text {
        "tensor" => Ok(Granularity::Tensor),
        "row" => Ok(Granularity::Row),
        _ => group()
            .map(Granularity::Group)
            .ok_or_else(|| "expected tensor, row, or group:N, N a power of two".into()),
    }
}

pub(crate) fn activations(text: &str) -> Result<ActivationQuant, String> {
    let (kind, bits) = text.split_once(':').unwrap_or((text, "8"));
    let bits = bits.parse::<u8>().ok().and_then(|bits| Bits::try_from(bits).ok());
    match (kind, bits) {
        ("off", _) if text == "off" => Ok(ActivationQuant::Off),
        ("token", Some(bits)) => Ok(ActivationQuant::PerToken(bits)),
        ("tensor", Some(bits)) => Ok(ActivationQuant::PerTensor(bits)),
        _ => Err("expected token, tensor or off, with 2 to 8 bits as in token:4".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_written_in_words() {
        assert_eq!(granularity("group:64"), Ok(Granularity::Group(64)));
        assert_eq!(granularity("row"), Ok(Granularity::Row));
        let bits = |bits| Bits::try_from(bits).unwrap();
        assert_eq!(activations("token"), Ok(ActivationQuant::default()));
        assert_eq!(activations("token:4"), Ok(ActivationQuant::PerToken(bits(4))));
        assert_eq!(activations("tensor:2"), Ok(ActivationQuant::PerTensor(bits(2))));
        assert_eq!(activations("off"), Ok(ActivationQuant::Off));
        for bad in ["", "group", "group:", "group:3", "group:0", "rows"] {
            assert!(granularity(bad).is_err(), "{bad}");
        }
        for bad in ["", "token:", "token:1", "token:9", "off:8", "int8", "token:8:8"] {
            assert!(activations(bad).is_err(), "{bad}");
        }
    }
}
