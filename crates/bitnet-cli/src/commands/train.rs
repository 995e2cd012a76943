//! `bitnet train`

use std::path::PathBuf;

use bitnet_quant::keep_freed_memory;
use bitnet_train::{Opening, Progress, Run, RunConfig};
use clap::Args;

use crate::bar::Bar;
use crate::error::CliError;
use crate::flags::Global;
use crate::interrupt::{be_polite, stop_requested};
use crate::output::{print, print_line};
use crate::source::resolve;

/// Every setting, in the order of its importance. A test reads it.
const SETTINGS: &str = "\
Settings, those that may be left out with what they are then:
  out = 'runs/first'             # the folder of the run
  seed = 0                       # decides the order of the data
  device = 'flex'                # else --device
  more_devices = []              # as ['cuda:1']: they take micro-batches too
  shard_optimizer = false        # deal the optimizer's state out to all of them
  explosion = 3.0                # a loss above so many times the mean of those before ends the run

  [model]
  source = 'SmolLM2-135M'        # a folder or a hub id; dense ones are converted
  calibration = 32               # training sequences that gains and columns are calibrated on
  trainable = 'all'              # all, sub_norms: the sub-norms alone, to realign them first
  [model.policy]
  sub_norm = 'output'            # where a norm is inserted: none, output (o_proj, down_proj), all
  sub_norm_gain = 'ones'         # what its gain starts with: ones, calibrated
  exclude = []                   # globs of projections that stay dense, as '*.down_proj'
  hadamard = false               # turn o_proj and down_proj by a Hadamard matrix first
  salient = 0.01                 # share of columns that other slots keep as they are; else none
  [model.policy.quantization]
  weight = 'tensor'              # what shares a scale: tensor, row, { group = 64 }
  activation = { per_token = 8 } # off, { per_token = BITS }, { per_tensor = BITS }

  [data]
  source = { text = ['books'] }  # text files and folders; or
                                 # { jsonl = { paths = ['a.jsonl'], field = 'text' } }, or
                                 # { tokens = { path = 'a.safetensors', tensor = 'tokens' } }
  tokenizer = 'tokenizer.json'   # else the model's own
  separator = '<|endoftext|>'    # the token after each document; else none
  window = 256                   # tokens of a sequence
  held_out = 0.05                # the share of the data that is evaluated on, from the end
  cache = 'token-cache'          # where the tokens of text are kept

  [batch]
  micro_batch = 8                # sequences computed at once
  accumulation = 1               # of those, per step

  [train]
  steps = 2000                   # optimizer steps
  learning_rate = 1e-3           # the highest
  lr_warmup_steps = 100          # over which it rises; a twentieth of the steps
  lr_decay = 'cosine'            # constant, cosine, { two_stage = { at = 0.5, rate = 0.667 } }:
                                 # from there on lower by a factor, and no weight decay
  betas = [0.9, 0.95]            # AdamW's
  adam_eps = 1e-8
  weight_decay = 0.0
  decay = 'matrices'             # what decays: matrices (no norms, biases, embeddings), all
  clip_norm = 1.0                # the largest norm of all gradients together; inf for no limit
  precision = 'f32'              # what a step computes in: f32, bf16; weights and moments stay f32
  gradient_checkpointing = false # compute again what is cheap in the backward pass, for less memory
  [train.lambda]                 # the quantization strength; from 0 to 1 over half of the steps
  schedule = 'linear'            # linear, cosine, exponential:K, sigmoid:K
  warmup_steps = 1000            # from min to max
  min = 0.0
  max = 1.0

  [distill]                      # compares with a teacher; without this table, with the data alone
  teacher = 'SmolLM2-135M'       # a folder; else the source before its conversion
  cross_entropy = 1.0            # weight of the loss on the data
  logit_kl = { weight = 10.0, temperature = 5.0 } # next tokens compared; else not. With top_k = 64
                                 # too the likeliest of the teacher's, asked once and kept on disk
  relation_kl = { weight = 1e-5, layer = 29, heads = 8 } # relations of tokens in a layer, the last
                                 # if none is given; else not
  hidden_mse = { weight = 1.0 }  # the stream after every layer compared; else not

  [eval]
  every = 100                    # steps between evaluations, which are at λ = 1
  windows = 64                   # sequences of one, at most

  [snapshots]
  every = 100                    # steps between snapshots
  keep = 3                       # how many are kept beside the best";

/// Train a model as a file of settings says, or go on with a run that was interrupted
///
/// The settings are printed with all defaults first. A run that ended early, for whatever reason,
/// goes on from its newest snapshot when the same command is given again; on the device flex it
/// then takes the very steps that it would have taken, to the last bit. Ctrl-C saves and ends the
/// run with status 0; a second one ends it at once.
///
/// The folder of the run holds metrics.jsonl with a line per step, snapshots, and in the end the
/// trained checkpoint as `model`, and as `best` that of the best evaluation, if it was another.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = SETTINGS)]
pub(crate) struct Flags {
    /// The settings, in TOML
    config: PathBuf,
}

pub(crate) fn run(flags: &Flags, global: &Global) -> Result<(), CliError> {
    keep_freed_memory();
    let mut config = RunConfig::read(&flags.config)?;
    config.device.get_or_insert_with(|| global.device.clone());
    if !global.quiet {
        print(&config.to_toml()?)?;
    }
    let source = resolve(&config.model.source, global.quiet)?;
    let mut bar = Bar::new("loading", global.quiet);
    let mut run = Run::open(&config, &source, |opening| match opening {
        Opening::Loading(done, total) => bar.set(done, total),
        Opening::Tokenizing(done, total) => {
            bar.relabel("tokenizing");
            bar.set(done, total);
        }
        Opening::Asking(done, total) => {
            bar.relabel("asking the teacher");
            bar.set(done, total);
        }
        Opening::Warning(warning) => eprintln!("warning: {warning}"),
    })?;
    drop(bar);
    if run.steps_taken() > 0 && !global.quiet {
        eprintln!("note: the run goes on after step {}", run.steps_taken());
    }
    be_polite();
    let tokens_per_step = config.batch.micro_batch * config.batch.accumulation * config.data.window;
    let progress = (!global.quiet).then(|| {
        Progress::new("training", config.train.steps, tokens_per_step).resumed_at(run.steps_taken())
    });
    while !run.is_done() && !stop_requested() {
        let report = run.step();
        if let Some(progress) = &progress {
            report.as_ref().map_or_else(|_| progress.finish(), |report| progress.show(report));
        }
        report?;
    }
    let rate = progress.map(|progress| {
        progress.finish();
        progress.tokens_per_second()
    });
    if !run.is_done() {
        run.save()?;
        print_line(&format!("stopped after step {}: the same command goes on", run.steps_taken()))?;
        return Ok(());
    }
    let (best, steps) = (run.best(), run.steps_taken());
    let folder = run.finish()?;
    if let (Some(rate), false) = (rate, global.quiet) {
        print_line(&format!("{steps} steps, {rate:.0} tokens/s"))?;
    }
    if let Some(best) = best {
        print_line(&format!("best perplexity {:.3} after step {}", best.perplexity, best.steps))?;
    }
    Ok(print_line(&format!("{} is written", folder.display()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings in the help are all that there are, with their defaults.
    #[test]
    fn the_help_has_every_setting() {
        let (_, text) = SETTINGS.split_once('\n').unwrap();
        let full: RunConfig = toml::from_str(text).unwrap();
        full.validate().unwrap();
        let names = |text: &str| -> Vec<String> {
            let name = |line: &str| line.trim().split(['=', '#']).next().unwrap().trim().to_owned();
            let mut names: Vec<String> = text.lines().map(name).filter(|name| !name.is_empty()).collect();
            names.sort();
            names
        };
        let resolved = full.to_toml().unwrap();
        for name in names(&resolved) {
            let name = name.trim_matches(['[', ']']);
            assert!(SETTINGS.contains(name.rsplit('.').next().unwrap()), "{name}");
        }
        let short = "out = 'runs/first'\ndevice = 'flex'\n[model]\nsource = 'SmolLM2-135M'\npolicy = { salient = 0.01 }\n[data]\nwindow = 256\n\
            source = { text = ['books'] }\ntokenizer = 'tokenizer.json'\nseparator = '<|endoftext|>'\n\
            [train]\nsteps = 2000\n[distill]\nteacher = 'SmolLM2-135M'\nlogit_kl = {}\n\
            relation_kl = { layer = 29 }\nhidden_mse = {}";
        let mut short: RunConfig = toml::from_str(short).unwrap();
        short.train.lambda = full.train.lambda;
        assert_eq!(short, full);
        assert_eq!((full.train.lambda.warmup_steps, full.train.lambda.max), (1000, 1.0));
    }
}
