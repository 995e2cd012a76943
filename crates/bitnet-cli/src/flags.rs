//! The command line that all subcommands share.

use std::num::NonZeroUsize;

use clap::{Args, Parser, Subcommand};

use crate::commands::{
    bench, completions, compress, convert, eval, export, generate, inspect, logits, lrc, report, train,
};

/// The first backend that is compiled in.
const DEFAULT_DEVICE: &str = if cfg!(feature = "flex") {
    "flex"
} else if cfg!(feature = "cuda") {
    "cuda"
} else if cfg!(feature = "vulkan") {
    "vulkan"
} else if cfg!(feature = "wgpu") {
    "wgpu"
} else {
    "ndarray"
};

/// Takes language models to BitNet b1.58, and runs them.
///
/// A model is a folder as Hugging Face's transformers writes it: config.json, safetensors files,
/// tokenizer files. Wherever a command takes SRC, that is such a folder, a GGUF file (not for
/// convert and compress), or the id of a model on the hub, org/name or org/name@revision, which is
/// fetched into the hub's ordinary cache:
///
///   HF_HOME, HF_HUB_CACHE   where the cache is (default: ~/.cache/huggingface)
///   HF_HUB_OFFLINE=1        use the cache alone
///   HF_ENDPOINT, HF_TOKEN   another hub, and what lets one into private models
///
/// Four stages, four commands:
///
///   convert   turns a dense model's linear maps into BitNet layers, with latent float weights
///             that are ternarized as they are used: this is what is trained
///   lrc       puts low-rank corrections beside the ternary weights, if that is wanted
///   train     converts and trains, as a file of settings says
///   export    packs the ternary codes of a trained model into files for other engines
///   generate  runs a model, at any stage
///
/// And one for all of it, and for checkpoints of any architecture:
///
///   compress  with data converts, trains, packs and exports in one call, and judges the result;
///             without makes linear weights ternary as they are
#[derive(Debug, Parser)]
#[command(name = "bitnet", version, verbatim_doc_comment, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  bitnet inspect HuggingFaceTB/SmolLM2-135M
  bitnet convert HuggingFaceTB/SmolLM2-135M smollm2-bitnet
  bitnet train run.toml
  bitnet export smollm2-trained smollm2.gguf --format gguf
  bitnet generate smollm2-trained --prompt 'Once upon a time'

Exit status: 0 done, 1 failed, 2 a command line that cannot be read, 3 compressed into a model that
is worse than asked for.
`bitnet COMMAND --help` explains each command.";

/// Flags of every subcommand.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Where the model runs: flex, ndarray, wgpu, vulkan or cuda, with an index as in cuda:1
    ///
    /// `bitnet devices` says which of them this build has and this machine answers for.
    #[arg(long, global = true, value_name = "NAME", default_value = DEFAULT_DEVICE, verbatim_doc_comment)]
    pub(crate) device: String,

    /// How many threads compute; all processors if it is not given
    #[arg(long, global = true, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,

    /// Print results and errors only: no progress, no notes
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Inspect(inspect::Flags),
    Convert(convert::Flags),
    Compress(compress::Flags),
    Lrc(lrc::Flags),
    Train(train::Flags),
    Report(report::Flags),
    Eval(eval::Flags),
    Export(export::Flags),
    Logits(logits::Flags),
    Generate(generate::Flags),
    Bench(bench::Flags),
    /// Say which devices this build has and this machine answers for
    ///
    /// One line per backend: its name, and `present`, or why it is absent.
    #[command(verbatim_doc_comment)]
    Devices,
    Completions(completions::Flags),
    /// Print this reference as Markdown, the file docs/bitnet.md
    #[command(hide = true)]
    Reference,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Long help is written by hand to this width: nothing wraps it.
    #[test]
    fn help_fits_a_hundred_columns() {
        let mut commands = vec![Cli::command()];
        while let Some(mut command) = commands.pop() {
            commands.extend(command.get_subcommands().cloned());
            let help = command.render_long_help().to_string();
            for line in help.lines() {
                assert!(line.chars().count() <= 100, "{}: {line}", command.get_name());
            }
        }
    }
}
