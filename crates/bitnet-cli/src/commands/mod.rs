//! The subcommands.

pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod compress;
pub(crate) mod convert;
mod devices;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod lrc;
pub(crate) mod report;
pub(crate) mod train;

use crate::error::CliError;
use crate::flags::{Cli, Command, Global};
use crate::{output, reference};

/// Does what the command line asks for.
pub(crate) fn run(cli: Cli) -> Result<(), CliError> {
    let global = &cli.global;
    if let Some(threads) = global.threads {
        let threads = threads.get();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build_global().map_err(|source| CliError::Threads { threads, source })?;
    }
    // On a thread of the pool: handing each of a token's many small products over to it would cost more than they do.
    rayon::scope(|_| dispatch(&cli.command, global))
}

fn dispatch(command: &Command, global: &Global) -> Result<(), CliError> {
    match command {
        Command::Inspect(flags) => inspect::run(flags, global),
        Command::Compress(flags) => compress::run(flags, global),
        Command::Convert(flags) => convert::run(flags, global),
        Command::Lrc(flags) => lrc::run(flags, global),
        Command::Train(flags) => train::run(flags, global),
        Command::Report(flags) => report::run(flags, global),
        Command::Eval(flags) => eval::run(flags, global),
        Command::Export(flags) => export::run(flags, global),
        Command::Logits(flags) => logits::run(flags, global),
        Command::Generate(flags) => generate::run(flags, global),
        Command::Bench(flags) => bench::run(flags, global),
        Command::Devices => devices::run(),
        Command::Completions(flags) => completions::run(flags),
        Command::Reference => Ok(output::print(&reference::markdown())?),
    }
}
