//! What recovers quality after ternarizing without training: the table of docs/results.md.
//!
//! `cargo xtask lrc-results` runs it on the repository's small model and its text, and rewrites the table.

use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;

use bitnet_arch::convert::{Checkpoint, LoadOptions, Placement, Policy, convert, load};
use bitnet_arch::layers::set_lambda;
use bitnet_arch::lrc::{
    Init, LrcConfig, SlotRule, Trainable, add_lrc, calibrate, freeze_except_adapters, stats,
};
use bitnet_arch::model::CausalLm;
use bitnet_arch::quant::device;
use bitnet_arch::text::TokenWindows;
use bitnet_arch::train::{Progress, TrainConfig, Trainer, next_token_loss, perplexity};
use bitnet_arch::warmup::{LambdaWarmupConfig, Schedule};
use burn::tensor::{Int, Tensor};
use clap::Parser;

#[path = "../smoke_train/repository.rs"]
mod repository;
mod table;
mod text;

use table::{Table, rewrite};

#[derive(Parser)]
struct Flags {
    /// Device: flex, ndarray, wgpu, vulkan or cuda, with an index as in cuda:1
    #[arg(long, default_value = "flex")]
    device: String,
    /// Training steps of the rows that train
    #[arg(long, default_value_t = 200)]
    steps: u64,
    /// How often everything is done, with other batches each time
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Document whose table is rewritten [default: docs/results.md]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

const WINDOW: usize = 128;
const BATCH: usize = 8;
/// Batches that corrections are calibrated on.
const CALIBRATION: usize = 16;
/// The highest learning rate, of weights and of factors alike.
const LEARNING_RATE: f64 = 1e-3;

/// What marks the table in the document.
const MARK: &str = "cargo xtask lrc-results";

fn main() -> Result<(), Box<dyn Error>> {
    let flags = Flags::parse();
    let out = flags.out.clone().unwrap_or_else(repository::results);
    let device = device(&flags.device)?;
    let dense = load(repository::small_model(), &device, &LoadOptions::default())?;
    let (train, held_out) = text::windows(WINDOW)?;
    let policy = Policy { sub_norm: Placement::None, ..Policy::default() };
    let mut plain = convert(dense.clone(), &policy)?.0.model;
    set_lambda(&mut plain, Some(1.0));

    let mut experiment = Experiment { dense, plain, train, held_out, flags, table: Table::default() };
    for seed in 0..experiment.flags.seeds {
        device.seed(seed);
        experiment.run(seed)?;
    }
    let text = experiment.text()?;
    println!("{text}");
    rewrite(&out, MARK, &text)?;
    println!("wrote {}", out.display());
    Ok(())
}

struct Experiment {
    dense: Checkpoint,
    /// Ternarized without training.
    plain: CausalLm,
    train: TokenWindows,
    held_out: TokenWindows,
    flags: Flags,
    table: Table,
}

impl Experiment {
    fn run(&mut self, seed: u64) -> Result<(), Box<dyn Error>> {
        let steps = self.flags.steps;
        self.add("dense", &self.dense.model.clone())?;
        self.add("ternarized, no correction", &self.plain.clone())?;
        let config = |percentage, init| LrcConfig {
            slots: vec![SlotRule::percentage(percentage)],
            init,
            ..LrcConfig::default()
        };
        let (residual, _) = add_lrc(self.plain.clone(), &config(0.1, Init::SvdResidual))?;
        self.add("SVD of the residual, 10 %", &residual)?;
        let batches = self.calibration_batches(seed)?;
        let fitted = |percentage, rounds| {
            calibrate(self.plain.clone(), &batches, &config(percentage, Init::Calibrated { rounds }))
        };
        let (ten, _) = fitted(0.1, 0)?;
        let (joint, _) = fitted(0.1, 4)?;
        let (thirty, _) = fitted(0.3, 0)?;
        self.add("calibrated, 10 %", &ten)?;
        self.add("calibrated, 10 %, the weight fitted in turn", &joint)?;
        self.add("calibrated, 30 %", &thirty)?;
        let (frozen, _) = freeze_except_adapters(ten, Trainable::AdaptersOnly)?;
        let trained = self.trained("LRC", frozen, 0, seed)?;
        self.add(&format!("calibrated, 10 %, then {steps} steps of the factors alone"), &trained)?;
        let qat = self.trained("QAT", self.plain.clone(), steps / 2, seed)?;
        self.add(&format!("no correction, {steps} steps of all weights (QAT, λ from 0 to 1)"), &qat)?;
        let qat = self.trained("QAT, λ = 1", self.plain.clone(), 0, seed)?;
        self.add(&format!("no correction, {steps} steps of all weights at λ = 1"), &qat)?;
        Ok(())
    }

    /// Measures a model and writes it down.
    fn add(&mut self, what: &str, model: &CausalLm) -> Result<(), Box<dyn Error>> {
        let perplexity = perplexity(model, &self.held_out, BATCH)?;
        let overhead =
            stats(model).overhead().map_or(String::from("none"), |overhead| format!("{overhead:.2}"));
        self.table.add(what, &overhead, perplexity);
        Ok(())
    }

    fn calibration_batches(&self, seed: u64) -> Result<Vec<Tensor<2, Int>>, Box<dyn Error>> {
        let batches = self.train.batches(BATCH, seed)?.take(CALIBRATION);
        Ok(batches.map(|batch| self.plain.batch(&batch)).collect::<Result<_, _>>()?)
    }

    /// A model after training steps, at λ = 1.
    fn trained(
        &self,
        name: &str,
        model: CausalLm,
        warmup: u64,
        seed: u64,
    ) -> Result<CausalLm, Box<dyn Error>> {
        let steps = self.flags.steps;
        let config = TrainConfig {
            learning_rate: LEARNING_RATE,
            lambda: LambdaWarmupConfig::new(Schedule::Linear, warmup),
            ..TrainConfig::new(steps)
        };
        let mut trainer = Trainer::new(model, &config)?;
        let progress = Progress::new(name, steps, WINDOW * BATCH);
        for batch in self.train.batches(BATCH, seed)?.take(steps as usize) {
            progress.show(&trainer.step(&[batch], next_token_loss)?);
        }
        progress.finish();
        let mut model = trainer.into_model();
        set_lambda(&mut model, Some(1.0));
        Ok(model)
    }

    fn text(&self) -> Result<String, std::fmt::Error> {
        let Flags { steps, seeds, device, .. } = &self.flags;
        let mut text = self.table.text("bytes of factors per byte of codes")?;
        writeln!(
            text,
            "\n{seeds} seeds, {steps} steps of {} tokens, {} tokens of calibration, {} held-out windows of {WINDOW} tokens, no \
             SubLN, {device}.",
            WINDOW * BATCH,
            CALIBRATION * BATCH * WINDOW,
            self.held_out.len(),
        )?;
        Ok(text)
    }
}
