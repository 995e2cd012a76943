//! `bitnet compress`

use std::path::PathBuf;

use bitnet_compress::{Float, Granularity, Options, Plan, Rule, STATS, Stage};
use clap::Args;

use crate::bar::Bar;
use crate::commands::convert::granularity;
use crate::error::CliError;
use crate::flags::Global;
use crate::output::{print, print_line};
use crate::source::resolve;

const EXAMPLES: &str = "\
Examples:
  bitnet compress SmolLM2-135M smollm2-ternary
  bitnet compress gpt2 gpt2-ternary --packed --dtype f16
  bitnet compress SRC DST --granularity group:128 --exclude '*.layers.0.*'
  bitnet compress SRC DST --threshold 0.1";

/// Make the linear weights of any safetensors checkpoint ternary, without training
///
/// The mode is `tensors`: tensor by tensor, without knowing what the model computes, so that any
/// architecture will do: GPT-2, encoders, mixtures of experts, vision. Names and shapes decide
/// which tensors are linear weights. Biases, norms, embeddings, position tables, heads, routers,
/// convolutions and adapters stay as they are. Memory does not grow with the checkpoint.
///
/// DST becomes a folder like SRC in which each linear weight is codes · scale: transformers loads
/// it as an ordinary dense model. compression_stats.json has every tensor with what was done to
/// it and why, errors and true sizes. In the end everything is read again and compared.
///
/// DST appears whole or not at all. A run that is killed leaves a hidden folder .DST.partial
/// beside it; the same command goes on from there.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = EXAMPLES)]
pub(crate) struct Flags {
    /// The checkpoint: a folder, a safetensors file, or a hub id
    src: String,

    /// The folder to write: new or empty
    dst: PathBuf,

    /// How a checkpoint is read: `tensors`, or `auto`, which is that
    #[arg(long, default_value = "auto", value_parser = ["auto", "tensors"])]
    mode: String,

    /// Options in a TOML file, instead of the flags below
    #[arg(long, value_name = "FILE")]
    #[arg(conflicts_with_all = ["granularity", "threshold", "dtype", "packed", "include", "exclude"])]
    config: Option<PathBuf>,

    /// How many weights share a scale, their mean size: tensor, row, or group:N for N inputs of
    /// a row; tensor if it is not given
    #[arg(long, value_name = "G", value_parser = granularity, conflicts_with = "threshold")]
    #[arg(verbatim_doc_comment)]
    granularity: Option<Granularity>,

    /// Another rule: zero below this share of a row's mean size, else the sign
    #[arg(long, value_name = "T")]
    threshold: Option<f32>,

    /// The type of all floats in DST: f32, f16 or bf16; the source's if it is not given
    #[arg(long, value_name = "TYPE", value_parser = float)]
    dtype: Option<Float>,

    /// Write DST/packed too: two bits a code, f32 scales
    #[arg(long)]
    packed: bool,

    /// Leave the tensors that match this glob as they are; may be repeated
    ///
    /// Globs are on full names, as in 'model.layers.0.*', and '*' crosses dots. One that matches
    /// nothing is an error.
    #[arg(long, value_name = "GLOB", verbatim_doc_comment)]
    exclude: Vec<String>,

    /// Make the matrices that match this glob ternary, whatever their names; may be repeated
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
}

pub(crate) fn run(flags: &Flags, global: &Global) -> Result<(), CliError> {
    let options = options(flags)?;
    let src = resolve(&flags.src, global.quiet)?;
    let plan = Plan::new(&src, &flags.dst, &options)?;
    if !global.quiet {
        let why = if flags.mode == "auto" { "chosen automatically" } else { "as asked for" };
        eprintln!("note: mode `tensors`, {why}: by names and shapes, without a model");
    }
    let mut bar = Bar::new("ternarizing", global.quiet);
    let stats = plan.run(&mut |stage, done, total| {
        bar.relabel(if stage == Stage::Write { "ternarizing" } else { "verifying" });
        bar.set(done, total);
    })?;
    drop(bar);
    if global.quiet {
        return Ok(());
    }
    print(&format!("{stats}\n"))?;
    let (dst, stats) = (flags.dst.display(), flags.dst.join(STATS));
    Ok(print_line(&format!("{dst} is written; {} has every tensor", stats.display()))?)
}

fn options(flags: &Flags) -> Result<Options, CliError> {
    if let Some(path) = &flags.config {
        let text =
            std::fs::read_to_string(path).map_err(|source| CliError::Read { path: path.clone(), source })?;
        return toml::from_str(&text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let (line, message) = (before.matches('\n').count() + 1, error.message().replace('\n', ", "));
            CliError::Settings { path: path.clone(), reason: format!("line {line}: {message}") }
        });
    }
    Ok(Options {
        rule: match flags.threshold {
            Some(threshold) => Rule::Threshold(threshold),
            None => Rule::Absmean(flags.granularity.unwrap_or_default()),
        },
        dtype: flags.dtype,
        packed: flags.packed,
        include: flags.include.clone(),
        exclude: flags.exclude.clone(),
    })
}

fn float(name: &str) -> Result<Float, String> {
    let floats = [Float::F32, Float::F16, Float::Bf16];
    floats.into_iter().find(|float| float.name() == name).ok_or_else(|| "expected f32, f16 or bf16".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_written_in_words() {
        assert_eq!(float("bf16"), Ok(Float::Bf16));
        assert!(float("F16").is_err() && float("").is_err());
        let read = |text| toml::from_str::<Options>(text);
        let all = read(
            "rule = { absmean = { group = 64 } }\ndtype = 'f16'\npacked = true\nexclude = ['*.a']\ninclude = ['*.b']",
        );
        let expected = Options {
            rule: Rule::Absmean(Granularity::Group(64)),
            dtype: Some(Float::F16),
            packed: true,
            include: vec!["*.b".into()],
            exclude: vec!["*.a".into()],
        };
        assert_eq!(all.unwrap(), expected);
        assert_eq!(read("rule = { threshold = 0.1 }").unwrap().rule, Rule::Threshold(0.1));
        assert_eq!(read("").unwrap(), Options::default());
        assert!(read("pakced = true").is_err());
    }
}
