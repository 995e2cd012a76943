//! Converts a Hugging Face checkpoint folder to BitNet b1.58 and prints what was done to each tensor.
//!
//! ```sh
//! cargo run -p bitnet-arch --example convert -- SRC DST --subln output --exclude '*.down_proj'
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use bitnet_arch::convert::{LoadOptions, Placement, Policy, stage1};
use bitnet_arch::quant::device;
use clap::Parser;

/// Converts a Hugging Face checkpoint folder to BitNet b1.58.
#[derive(Parser)]
struct Flags {
    /// The folder of the dense checkpoint.
    src: PathBuf,
    /// The folder to write: new or empty.
    dst: PathBuf,
    /// Where a SubLN is inserted: none, output or all.
    #[arg(long, default_value = "output")]
    subln: Placement,
    /// A glob of slots that stay dense, as in `model.layers.0.*`; repeatable.
    #[arg(long)]
    exclude: Vec<String>,
    /// Refuses a checkpoint with tensors that the model has no place for.
    #[arg(long)]
    strict: bool,
    /// Where the weights pass through.
    #[arg(long, default_value = "flex")]
    device: String,
}

fn main() -> ExitCode {
    match run(Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Flags) -> Result<(), Box<dyn std::error::Error>> {
    let policy = Policy { sub_norm: flags.subln, exclude: flags.exclude, ..Policy::default() };
    let options = LoadOptions { strict: flags.strict };
    let report = stage1(&flags.src, &flags.dst, &policy, &device(&flags.device)?, &options)?;
    print!("{report}");
    println!("{} slots converted: {}", report.n_converted(), flags.dst.display());
    Ok(())
}
