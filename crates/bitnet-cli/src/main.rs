//! The `bitnet` command: looks at models, converts and exports them, and runs them.
//!
//! Each subcommand is a file in `commands`: its flags, and what it does with the libraries of this workspace. Results
//! go to the standard output; progress, notes and errors to the standard error.

mod bar;
mod calibration;
mod chat;
mod commands;
mod error;
mod flags;
mod interrupt;
mod json;
mod model;
mod output;
mod reference;
mod source;
mod stop_text;
mod strftime;
mod target;

use std::process::ExitCode;

use clap::Parser;

use crate::flags::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse(); // ends the process with status 2 for a command line that it cannot read
    interrupt::clean_up();
    let result = commands::run(cli);
    interrupt::wait_if_interrupted();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
