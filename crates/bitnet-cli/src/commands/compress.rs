//! `bitnet compress`

use std::path::{Path, PathBuf};

use bitnet_compress::{Float, Granularity, PAGE, Plan, STATS, Stage};
use bitnet_convert::{GgufType, HfFormat};
use bitnet_pipeline::{Config, Event, Mode, Pipeline, choose};
use bitnet_quant::ActivationQuant;
use clap::Args;
use serde::Serialize;
use toml::{Table, Value};

use crate::bar::Bar;
use crate::commands::convert::{activations, granularity};
use crate::error::CliError;
use crate::flags::Global;
use crate::output::{print, print_line};
use crate::source::resolve;

const EXAMPLES: &str = "\
Examples:
  bitnet compress SmolLM2-135M smollm2-ternary
  bitnet compress gpt2 gpt2-ternary --packed --dtype f16
  bitnet compress SRC DST --granularity group:128 --exclude '*.layers.0.*'
  bitnet compress SRC DST --threshold 0.1
  bitnet compress SmolLM2-135M out --data books/ --steps 2000 --gguf auto
  bitnet compress SmolLM2-135M out --config settings.toml --data books/

Settings, all of which may be left out:

  mode = 'auto'                  # tensors, model
  rule = { absmean = 'tensor' }  # what shares a scale: tensor, row, { group = 64 }; or
                                 # { threshold = 0.1 }, in mode tensors
  dtype = 'f16'                  # of the dense files: f32, f16, bf16; else as in SRC
  packed = false                 # mode tensors: packed files too
  include = []                   # mode tensors: matrices that are made ternary all the same
  exclude = []                   # what is left alone: tensors, in mode model slots
                                 # all that follows asks for mode model
  seed = 0                       # which windows are calibrated on, and the order of training
  device = 'flex'                # else that of --device
  patience = 5                   # evaluations without a better one that end training; else none

  [data]
  source = { text = ['books'] }  # as for `bitnet train`, and so all of [data]
  tokenizer = 'tokenizer.json'   # else the model's own
  separator = '<|endoftext|>'    # the token after each document; else none
  window = 256                   # tokens of a window
  held_out = 0.1                 # the share that perplexities are measured on, from the end
  cache = 'token-cache'          # where the tokens of text are kept

  [calibration]
  windows = 32                   # that statistics, salient columns and corrections are made on

  [convert]
  sub_norm = 'output'            # before o_proj and down_proj; none, all
  activation = { per_token = 8 } # off, { per_token = BITS }, { per_tensor = BITS }
  hadamard = false               # o_proj and down_proj turned by a Hadamard matrix first
  salient = 0.01                 # the share of other columns kept in full precision; else none
  sub_norm_gain = 'calibrated'   # sub-norms begin with the size of what enters them; ones

  [lrc]                          # low-rank corrections; without this table, none
  init = { calibrated = { rounds = 0 } }

  [train]                        # fine-tuning, as for `bitnet train`; without this table, none
  steps = 2000

  [distill]                      # as for `bitnet train`; the teacher is SRC
  logit_kl = { weight = 10.0 }

  [batch]                        # as for `bitnet train`, also for measuring
  micro_batch = 8
  accumulation = 1

  [eval]
  every = 100                    # steps between evaluations
  windows = 64                   # held-out windows that every perplexity is measured on

  [snapshots]
  every = 100                    # steps between snapshots of the training
  keep = 3

  [export]
  latent = false                 # DST/latent: the weights that the codes are made from
  hf = 'bitlinear'               # DST/hf: bitlinear, autobitlinear, online; else none
  gguf = 'auto'                  # DST/model.gguf: auto, tq1_0, tq2_0, q2_0, f16, f32, i2s_x86,
                                 # i2s_arm; else none

  [verdict]
  max_ratio = 1.1                # times the dense model's perplexity that is still a success";

/// Make the linear weights of any safetensors checkpoint ternary
///
/// There are two modes. The mode `tensors` goes tensor by tensor, without knowing what the model
/// computes, so that any architecture will do: GPT-2, encoders, mixtures of experts, vision. Names
/// and shapes decide which tensors are linear weights. Biases, norms, embeddings, position tables,
/// heads, routers, convolutions and adapters stay as they are. Memory does not grow with the
/// checkpoint.
///
/// The mode `model` is for architectures that `convert` knows, and needs --data: it calibrates,
/// converts, fine-tunes if --steps says so, packs, exports, and measures the perplexity of the
/// result beside that of the dense model. A result that is worse than --max-ratio allows is written
/// and ends with status 3. It is chosen if --data or another setting of its own is given.
///
/// DST becomes a folder like SRC in which each linear weight is codes · scale: transformers loads
/// it as an ordinary dense model. In mode `model` it has no sub-norms and quantized activations;
/// the model itself is DST/packed, which the other commands take. compression_stats.json has every
/// tensor with what was done to it and why, errors and true sizes; report.html shows it. In the end
/// everything is read again and compared.
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

    /// How the checkpoint is read: `tensors`, `model`, or `auto`, which chooses and says so
    /// [default: auto]
    #[arg(long, value_parser = ["auto", "tensors", "model"], hide_possible_values = true)]
    #[arg(verbatim_doc_comment)]
    mode: Option<String>,

    /// Settings in a TOML file, beside the flags; no setting may have two values
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// How many weights share a scale, their mean size: tensor, row, or group:N for N inputs of
    /// a row; tensor if it is not given
    #[arg(long, value_name = "G", value_parser = granularity, conflicts_with = "threshold")]
    #[arg(verbatim_doc_comment)]
    granularity: Option<Granularity>,

    /// Another rule: zero below this share of a row's mean size, else the sign
    #[arg(long, value_name = "T")]
    threshold: Option<f64>,

    /// The type of all floats in DST: f32, f16 or bf16; the source's if it is not given
    #[arg(long, value_name = "TYPE", value_parser = float)]
    dtype: Option<Float>,

    /// Write DST/packed too: two bits a code, f32 scales
    #[arg(long)]
    packed: bool,

    /// Leave what matches this glob as it is; may be repeated
    ///
    /// Globs are on full names, as in 'model.layers.0.*', and '*' crosses dots: in mode `tensors`
    /// on those of tensors, as in '*.down_proj.*', in mode `model` of slots, as in '*.down_proj'.
    /// One that matches nothing is an error.
    #[arg(long, value_name = "GLOB", verbatim_doc_comment)]
    exclude: Vec<String>,

    /// Make the matrices that match this glob ternary, whatever their names; may be repeated
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,

    /// Text to calibrate, train and measure on: a file, or a folder of them; may be repeated
    #[arg(long, value_name = "PATH")]
    data: Vec<PathBuf>,

    /// Tokens in a window of that text; 256 if it is not given
    #[arg(long, value_name = "N")]
    window: Option<i64>,

    /// How many windows are calibrated on; 32 if it is not given
    #[arg(long, value_name = "N")]
    windows: Option<i64>,

    /// What the choice of windows and the order of training depend on; 0 if it is not given
    #[arg(long, value_name = "N")]
    seed: Option<i64>,

    /// Fine-tune for so many steps; not at all if it is not given
    #[arg(long, value_name = "N")]
    steps: Option<i64>,

    /// Where a norm is inserted before projections: none, output or all; output if it is not
    /// given
    #[arg(long, value_name = "WHERE", verbatim_doc_comment)]
    sub_norm: Option<String>,

    /// How inputs are quantized: token, tensor or off, with 2 to 8 bits as in token:4; token:8 if
    /// it is not given
    #[arg(long, value_name = "A", value_parser = activations, verbatim_doc_comment)]
    activations: Option<ActivationQuant>,

    /// Write DST/model.gguf: auto, tq1_0, tq2_0, q2_0, f16, f32, i2_s-x86 or i2_s-arm
    #[arg(long, value_name = "TYPE")]
    gguf: Option<GgufType>,

    /// Write DST/hf for transformers: bitlinear, autobitlinear or online
    #[arg(long, value_name = "FORMAT", value_parser = hf_format)]
    hf: Option<HfFormat>,

    /// Write DST/latent: the model with the weights that its codes are made from, to train on
    #[arg(long)]
    latent: bool,

    /// How many times the dense model's perplexity counts as a success; 1.1 if it is not given
    #[arg(long, value_name = "X")]
    max_ratio: Option<f64>,
}

pub(crate) fn run(flags: &Flags, global: &Global) -> Result<(), CliError> {
    let mut config = Config::read(flags.config.as_deref(), settings(flags))?;
    let src = resolve(&flags.src, global.quiet)?;
    let (mode, why) = choose(&src, &config)?;
    if mode == Mode::Model {
        config.device.get_or_insert_with(|| global.device.clone());
        let pipeline = Pipeline::new(&src, &flags.dst, &config)?;
        if !global.quiet {
            eprintln!("note: mode `model`, {why}");
        }
        return run_model(&pipeline, &config, &flags.dst, global);
    }
    let plan = Plan::new(&src, &flags.dst, &config.options())?;
    if !global.quiet {
        eprintln!("note: mode `tensors`, {why}");
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
    say_where(&flags.dst)
}

fn run_model(pipeline: &Pipeline, config: &Config, dst: &Path, global: &Global) -> Result<(), CliError> {
    let steps = config.train.as_ref().map_or(0, |train| train.steps);
    let mut bar = Bar::new("loading", global.quiet);
    let report = pipeline.run(&mut |event| match event {
        Event::Stage { stage, done: false } => bar.relabel(&stage.name().replace('_', "-")),
        Event::Stage { stage, done: true } if !global.quiet => {
            eprintln!("note: stage `{}` was done before", stage.name());
        }
        Event::Stage { .. } => {}
        Event::Part(done, total) => bar.set(done, total),
        Event::Step(report) => bar.set(report.step + 1, steps),
        Event::Note(note) if !global.quiet => eprintln!("note: {note}"),
        Event::Note(_) => {}
    })?;
    drop(bar);
    if !global.quiet {
        print(&format!("{report}\n"))?;
        say_where(dst)?;
    }
    let verdict = report.model.verdict;
    if verdict.success { Ok(()) } else { Err(CliError::Worse { verdict }) }
}

fn say_where(dst: &Path) -> Result<(), CliError> {
    let (stats, page) = (dst.join(STATS), dst.join(PAGE));
    let (dst, stats, page) = (dst.display(), stats.display(), page.display());
    Ok(print_line(&format!("{dst} is written; {stats} has every tensor, {page} shows them"))?)
}

/// The flags that are given, as a file would have them.
fn settings(flags: &Flags) -> Table {
    let mut settings = Table::new();
    let mut set = |table: &str, name: &str, value: Option<Value>| {
        let Some(value) = value else { return };
        if table.is_empty() {
            settings.insert(name.into(), value);
        } else if let Value::Table(table) =
            settings.entry(table.to_owned()).or_insert_with(|| Value::Table(Table::new()))
        {
            table.insert(name.into(), value);
        }
    };
    let list = |globs: &[String]| (!globs.is_empty()).then(|| Value::from(globs.to_vec()));
    set("", "mode", flags.mode.clone().map(Value::from));
    set("rule", "absmean", flags.granularity.and_then(value));
    set("rule", "threshold", flags.threshold.map(Value::from));
    set("", "dtype", flags.dtype.and_then(value));
    set("", "packed", flags.packed.then_some(true.into()));
    set("", "exclude", list(&flags.exclude));
    set("", "include", list(&flags.include));
    set("", "seed", flags.seed.map(Value::from));
    if !flags.data.is_empty() {
        let paths: Vec<String> = flags.data.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        set("data", "source", Some(Table::from_iter([("text".to_owned(), Value::from(paths))]).into()));
    }
    set("data", "window", flags.window.map(Value::from));
    set("calibration", "windows", flags.windows.map(Value::from));
    set("train", "steps", flags.steps.map(Value::from));
    set("convert", "sub_norm", flags.sub_norm.clone().map(Value::from));
    set("convert", "activation", flags.activations.and_then(value));
    set("export", "gguf", flags.gguf.and_then(value));
    set("export", "hf", flags.hf.and_then(value));
    set("export", "latent", flags.latent.then_some(true.into()));
    set("verdict", "max_ratio", flags.max_ratio.map(Value::from));
    settings
}

/// A value as a file would have it.
fn value(value: impl Serialize) -> Option<Value> {
    Value::try_from(value).ok()
}

fn hf_format(name: &str) -> Result<HfFormat, String> {
    let formats = [
        ("bitlinear", HfFormat::BitLinear),
        ("autobitlinear", HfFormat::AutoBitLinear),
        ("online", HfFormat::Online),
    ];
    let found = formats.into_iter().find(|(known, _)| *known == name);
    found.map(|(_, format)| format).ok_or_else(|| "expected bitlinear, autobitlinear or online".into())
}

fn float(name: &str) -> Result<Float, String> {
    let floats = [Float::F32, Float::F16, Float::Bf16];
    floats.into_iter().find(|float| float.name() == name).ok_or_else(|| "expected f32, f16 or bf16".into())
}

#[cfg(test)]
mod tests {
    use bitnet_pipeline::Calibration;

    use super::*;

    #[test]
    fn types_are_written_in_words() {
        assert_eq!(float("bf16"), Ok(Float::Bf16));
        assert!(float("F16").is_err() && float("").is_err());
        assert!(hf_format("bitlinear").is_ok() && hf_format("gguf").is_err());
    }

    /// The settings in the help are all that there are, with their defaults.
    #[test]
    fn the_help_has_every_setting() {
        let (_, text) = EXAMPLES.split_once("left out:\n").unwrap();
        let full: Config = toml::from_str(text).unwrap();
        full.validate().unwrap();
        let names = toml::from_str::<Table>(&toml::to_string(&full).unwrap()).unwrap();
        for (name, value) in names {
            assert!(text.contains(&name), "{name}");
            let tables_of_their_own = ["rule", "lrc", "train", "distill"];
            for inner in value.as_table().into_iter().flatten().map(|(inner, _)| inner) {
                assert!(
                    tables_of_their_own.contains(&name.as_str()) || text.contains(inner),
                    "{name}.{inner}"
                );
            }
        }
        let short: Config = toml::from_str("data = { source = { text = ['books'] } }").unwrap();
        assert_eq!(full.calibration, Calibration::default());
        assert_eq!((&full.batch, &full.eval, &full.snapshots), (&short.batch, &short.eval, &short.snapshots));
        assert_eq!(full.verdict, short.verdict);
        assert_eq!(full.convert.sub_norm_gain, short.convert.sub_norm_gain);
        let data = short.data.unwrap();
        let full = full.data.unwrap();
        assert_eq!((full.window, full.held_out, full.cache), (data.window, data.held_out, data.cache));
    }
}
