//! `bitnet completions`

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::error::CliError;
use crate::flags::Cli;
use crate::output::print;

const EXAMPLES: &str = "\
Examples:
  bitnet completions bash > ~/.local/share/bash-completion/completions/bitnet
  bitnet completions zsh > ~/.zfunc/_bitnet
  bitnet completions fish > ~/.config/fish/completions/bitnet.fish";

/// Print a script that completes `bitnet` commands in a shell
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Flags {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(flags: &Flags) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(flags.shell, &mut Cli::command(), "bitnet", &mut script);
    Ok(print(&String::from_utf8_lossy(&script))?)
}
