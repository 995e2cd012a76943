//! `bitnet report`

use std::path::PathBuf;

use bitnet_convert::Unfinished;
use bitnet_train::report;
use clap::Args;

use crate::error::CliError;
use crate::flags::Global;
use crate::output::print_line;

const EXAMPLES: &str = "\
Examples:
  bitnet report runs/first                       # writes runs/first/report.html
  bitnet report runs/first runs/second --out both.html";

/// Write a page about training runs: plots, codes, settings
///
/// One HTML file that needs no other: losses, perplexity, the quantization strength, learning
/// rate, gradient norms, the terms of a distillation, and the shares of the codes -1, 0 and 1.
/// Several runs are drawn into the same plots. A run may still be going on.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = EXAMPLES)]
pub(crate) struct Flags {
    /// Folders of runs
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,

    /// The file to write; report.html in the first run if it is not given
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) fn run(flags: &Flags, global: &Global) -> Result<(), CliError> {
    let page = report(&flags.runs)?;
    let path = match (&flags.out, &flags.runs[..]) {
        (Some(path), _) => path.clone(),
        (None, [first, ..]) => first.join("report.html"),
        (None, []) => return Err(CliError::Usage { reason: "no run is given".into() }),
    };
    Unfinished::write(&path, page.as_bytes())
        .map_err(|source| CliError::Write { path: path.clone(), source })?;
    if global.quiet { Ok(()) } else { Ok(print_line(&format!("{} is written", path.display()))?) }
}
