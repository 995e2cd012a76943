//! Trains the repository's small dense checkpoint: a tokenizer and a Llama on the repository's own text.
//!
//! `cargo xtask make-small-model` writes `assets/small-model`, which `cargo xtask smoke-train` starts from.

use std::error::Error;
use std::path::PathBuf;

use bitnet_arch::convert::{Checkpoint, HfConfig, WeightType, save};
use bitnet_arch::model::{CausalLmConfig, GenerateOptions};
use bitnet_arch::quant::device;
use bitnet_arch::text::{TokenWindows, Tokenizer, read_text};
use bitnet_arch::train::{Progress, TrainConfig, Trainer, next_token_loss, perplexity};
use clap::Parser;

#[path = "smoke_train/repository.rs"]
mod repository;

#[derive(Parser)]
struct Flags {
    /// Device: flex, ndarray, wgpu, vulkan or cuda, with an index as in cuda:1
    #[arg(long, default_value = "flex")]
    device: String,
    /// Optimizer steps
    #[arg(long, default_value_t = 1000)]
    steps: u64,
    /// Seed of weights and batches
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder to write; it must not exist
    #[arg(long, default_value_os_t = repository::small_model())]
    out: PathBuf,
}

const VOCAB_SIZE: usize = 512;
const END_OF_TEXT: &str = "<|endoftext|>";
const WINDOW: usize = 128;
const BATCH: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let flags = Flags::parse();
    let device = device(&flags.device)?;
    device.seed(flags.seed);

    let files = repository::text_files();
    let tokenizer = Tokenizer::train_byte_level_bpe(&files, VOCAB_SIZE, &[END_OF_TEXT])?;
    let mut tokens = Vec::new();
    for file in read_text(&files)? {
        tokens.extend(tokenizer.encode(&format!("{}{END_OF_TEXT}", file.text))?);
    }
    let (train, held_out) = TokenWindows::new(tokens, WINDOW)?.split(0.05)?;
    println!("{} windows of {WINDOW} tokens to train on, {} held out", train.len(), held_out.len());

    // Every width is a multiple of 256, so that each export format fits.
    let mut config = CausalLmConfig::new(VOCAB_SIZE, 256, 512, 2, 4)
        .with_n_kv_heads(Some(2))
        .with_head_dim(Some(64))
        .with_max_positions(512)
        .with_tied_head(true);
    config.rope.theta = 10_000.0;
    let model = config.init(&device)?;
    let settings = TrainConfig { learning_rate: 2e-3, weight_decay: 0.05, ..TrainConfig::new(flags.steps) };
    let mut trainer = Trainer::new(model, &settings)?;
    let progress = Progress::new("dense", flags.steps, WINDOW * BATCH);
    for batch in train.batches(BATCH, flags.seed)?.take(flags.steps as usize) {
        progress.show(&trainer.step(&[batch], next_token_loss)?);
    }
    progress.finish();
    let model = trainer.into_model();
    println!("perplexity: {:.3} on held-out text", perplexity(&model, &held_out, BATCH)?);
    let sample = model.generate(&tokenizer.encode("The weights ")?, &GenerateOptions::greedy(40))?;
    println!("sample: The weights {}", tokenizer.decode(&sample)?);

    let companions = tempfile::tempdir()?;
    tokenizer.save(companions.path().join("tokenizer.json"))?;
    let checkpoint = Checkpoint::new(model, HfConfig::llama(&config)?.with_text_token(0), companions.path());
    save(&checkpoint.with_type(WeightType::BF16), &flags.out)?;
    println!("wrote {}", flags.out.display());
    Ok(())
}
