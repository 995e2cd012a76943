//! Fine-tunes a dense checkpoint into a ternary one, in a loop of one's own: read it from top to bottom.
//!
//!     cargo run --release --example finetune -- assets/small-model out docs/numerics.md
//!
//! `bitnet train` does the same from a file of settings, with data larger than memory and runs that resume.

use std::error::Error;
use std::path::PathBuf;

use bitnet_arch::convert::{LoadOptions, Policy, WeightType, check_tokenizer, convert, load, save};
use bitnet_arch::layers::set_lambda;
use bitnet_arch::quant::device;
use bitnet_arch::text::{TokenWindows, Tokenizer, read_text};
use bitnet_arch::train::{
    DistillConfig, Distillation, LogitKl, LrDecay, StageTwo, TrainConfig, Trainer, perplexity,
};
use bitnet_arch::warmup::{LambdaWarmupConfig, Schedule};
use burn::module::Module;
use clap::Parser;

/// Fine-tunes a dense checkpoint into a ternary one
#[derive(Parser)]
struct Flags {
    /// Dense checkpoint in Hugging Face format
    source: PathBuf,
    /// The folder to write: new or empty
    out: PathBuf,
    /// Text files or folders
    #[arg(required = true)]
    text: Vec<PathBuf>,
    /// Where it runs: flex, wgpu, cuda, ..
    #[arg(long, default_value = "flex")]
    device: String,
    /// Optimizer steps
    #[arg(long, default_value_t = 200)]
    steps: u64,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 64)]
    window: usize,
    /// Sequences of a micro-batch, of which a step takes two
    #[arg(long, default_value_t = 4)]
    batch: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let flags = Flags::parse();

    // A dense model, and the same as the student. Its projections become BitNet layers, with a norm before o_proj and
    // down_proj; at λ = 0 it still computes what the dense model computes.
    let device = device(&flags.device)?;
    let dense = load(&flags.source, &device, &LoadOptions::default())?;
    let (mut student, report) = convert(dense.clone(), &Policy::default())?;
    println!("{} projections are BitNet layers now", report.n_converted());

    // Text, as windows of tokens. The last tenth is held out.
    let tokenizer = Tokenizer::from_file(flags.source.join("tokenizer.json"))?;
    check_tokenizer(&tokenizer, &dense.model)?;
    let mut tokens = Vec::new();
    for file in read_text(&flags.text)? {
        tokens.extend(tokenizer.encode(&file.text)?);
    }
    let (train, held_out) = TokenWindows::new(tokens, flags.window)?.split(0.1)?;
    println!("perplexity of the dense model    {:8.3}", perplexity(&dense.model, &held_out, flags.batch)?);
    set_lambda(&mut student.model, Some(1.0));
    println!("perplexity once it is ternary    {:8.3}", perplexity(&student.model, &held_out, flags.batch)?);

    // The recipe: λ rises over the first third. The learning rate follows b1.58's two stages; in the second, weights no
    // longer decay.
    let config = TrainConfig {
        weight_decay: 0.1,
        lr_decay: LrDecay::TwoStage(StageTwo::default()),
        lambda: LambdaWarmupConfig::new(Schedule::Cosine, flags.steps / 3),
        ..TrainConfig::new(flags.steps)
    };

    // The loss: cross-entropy, and how far the distribution of the next token is from the dense model's.
    let distill = DistillConfig {
        logit_kl: Some(LogitKl { weight: 1.0, temperature: 2.0, top_k: None }),
        ..DistillConfig::default()
    };
    let distillation = Distillation::new(dense.model, &student.model, distill)?;

    // The loop. A step takes two micro-batches and averages their gradients.
    let mut trainer = Trainer::new(student.model.clone(), &config)?;
    let mut batches = train.batches(flags.batch, 0)?.map(|batch| {
        let sequences: Vec<Vec<u32>> = batch.into_iter().map(<[u32]>::to_vec).collect();
        sequences
    });
    for _ in 0..config.steps {
        let micro_batches: Vec<_> = batches.by_ref().take(2).collect();
        let report = trainer.step(&micro_batches, |model, batch| distillation.loss(model, batch))?;
        if report.step % 20 == 0 {
            let model = trainer.model().valid(); // at the λ of this step
            let held_out = perplexity(&model, &held_out, flags.batch)?;
            println!(
                "step {:4}  λ {:.2}  loss {:7.4}  perplexity {held_out:8.3}",
                report.step, report.lambda, report.loss
            );
        }
    }

    // The result, ternary for good, in f32 as it was trained: `bitnet export` packs it for other engines.
    let mut model = trainer.into_model();
    set_lambda(&mut model, Some(1.0));
    println!("perplexity of the ternary model  {:8.3}", perplexity(&model, &held_out, flags.batch)?);
    save(&student.with_model(model).with_type(WeightType::F32), &flags.out)?;
    println!("{} is written", flags.out.display());
    Ok(())
}
