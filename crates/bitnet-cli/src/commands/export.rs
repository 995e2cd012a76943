//! `bitnet export`

use std::path::PathBuf;

use bitnet_convert::{ExportFormat, ExportOptions, HfFormat, LoadOptions, Tensors, export};
use clap::{Args, ValueEnum};

use crate::bar::Bar;
use crate::error::CliError;
use crate::flags::Global;
use crate::output::print_line;
use crate::source::resolve;
use crate::target::check_replaceable;

const EXAMPLES: &str = "\
Examples:
  bitnet export smollm2-trained smollm2-packed --format hf-bitlinear";

/// Write a trained BitNet model for another engine
///
/// The ternary codes of each BitNet layer are packed, tensor by tensor, so that a model of any
/// size needs little memory. A model that the format cannot hold is refused with the reason, and
/// nothing is written. DST appears whole or not at all.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = EXAMPLES)]
pub(crate) struct Flags {
    /// The BitNet model: a folder or a hub id
    src: String,

    /// The folder or file to write
    dst: PathBuf,

    /// What to write
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Format,

    /// Replace what stands under DST
    #[arg(long)]
    force: bool,
}

/// The formats by name.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// A folder for transformers: packed, the scale divides
    HfBitlinear,
    /// A folder for transformers: packed, the scale multiplies
    HfAutobitlinear,
    /// A folder for transformers: latent weights, for training on
    HfOnline,
}

pub(crate) fn run(flags: &Flags, global: &Global) -> Result<(), CliError> {
    let src = resolve(&flags.src, global.quiet)?;
    if flags.force {
        check_replaceable(&src, &flags.dst)?;
    }
    let format = match flags.format {
        Format::HfBitlinear => ExportFormat::Hf(HfFormat::BitLinear),
        Format::HfAutobitlinear => ExportFormat::Hf(HfFormat::AutoBitLinear),
        Format::HfOnline => ExportFormat::Hf(HfFormat::Online),
    };
    let options = ExportOptions { overwrite: flags.force, ..ExportOptions::new(format) };
    let tensors = Tensors::open(&src, &LoadOptions::default())?;
    let mut bar = Bar::new("exporting", global.quiet);
    export(&tensors, &flags.dst, &options, |done, total| bar.set(done, total))?;
    drop(bar);
    if global.quiet { Ok(()) } else { Ok(print_line(&format!("{} is written", flags.dst.display()))?) }
}
