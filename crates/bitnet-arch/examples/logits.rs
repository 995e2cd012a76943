//! Writes a checkpoint's logits of given tokens as JSON, to compare them with another implementation's.
//!
//! ```sh
//! cargo run -p bitnet-arch --example logits -- FOLDER TOKENS.json LOGITS.json
//! ```
//! TOKENS.json holds equally long sequences, `[[0, 5, 7], [1, 2, 3]]`; LOGITS.json gets one list per sequence, with
//! `vocab_size` numbers per token.

use std::path::PathBuf;
use std::process::ExitCode;

use bitnet_arch::convert::{LoadOptions, load};
use bitnet_arch::quant::device;
use burn::tensor::DType;
use clap::Parser;

/// Writes a checkpoint's logits of given tokens as JSON.
#[derive(Parser)]
struct Flags {
    /// The checkpoint's folder.
    folder: PathBuf,
    /// A JSON file of token sequences.
    tokens: PathBuf,
    /// The JSON file to write.
    logits: PathBuf,
    /// Where the model runs.
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
    let model = load(&flags.folder, &device(&flags.device)?, &LoadOptions { strict: true })?.model;
    let sequences: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(&flags.tokens)?)?;
    let logits = model.forward(model.batch(&sequences)?);
    let [_, n_tokens, vocab_size] = logits.dims();
    let logits: Vec<f32> = logits.cast(DType::F32).try_into_vec_as().map_err(|error| error.to_string())?;
    let rows: Vec<&[f32]> = logits.chunks(n_tokens * vocab_size).collect();
    std::fs::write(&flags.logits, serde_json::to_vec(&rows)?)?;
    Ok(())
}
