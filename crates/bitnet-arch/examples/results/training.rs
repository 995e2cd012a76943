//! What decides how good a ternary model becomes: a table of docs/results.md.
//!
//! `cargo xtask train-results` trains a small dense model on the repository's text, goes on with it in several ways for
//! the same number of steps each, and rewrites the table.

use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;

use bitnet_arch::convert::{
    Checkpoint, LoadOptions, Placement, Policy, SubNormGain, convert, convert_calibrated, load,
};
use bitnet_arch::layers::set_lambda;
use bitnet_arch::model::CausalLm;
use bitnet_arch::quant::device;
use bitnet_arch::text::TokenWindows;
use bitnet_arch::train::{
    DistillConfig, Distillation, LogitKl, Progress, TrainConfig, Trainer, next_token_loss, perplexity,
};
use bitnet_arch::warmup::{LambdaWarmupConfig, Schedule};
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
    /// Steps of the dense model that everything starts from
    #[arg(long, default_value_t = 1000)]
    dense_steps: u64,
    /// Steps of each row
    #[arg(long, default_value_t = 300)]
    steps: u64,
    /// How often each row is trained, with other batches each time
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// The highest learning rate of ternary models
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f64,
    /// Only the rows whose names contain this
    #[arg(long, default_value = "")]
    only: String,
    /// Document whose table is rewritten [default: docs/results.md]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

const WINDOW: usize = 128;
const BATCH: usize = 8;
/// Batches that gains are calibrated on.
const CALIBRATION: usize = 8;
/// The highest learning rate of dense models.
const DENSE_LEARNING_RATE: f64 = 1e-3;
/// What marks the table in the document.
const MARK: &str = "cargo xtask train-results";

fn main() -> Result<(), Box<dyn Error>> {
    let flags = Flags::parse();
    let out = flags.out.clone().unwrap_or_else(repository::results);
    let device = device(&flags.device)?;
    let mut start = load(repository::small_model(), &device, &LoadOptions::default())?;
    let (train, held_out) = text::windows(WINDOW)?;
    // From random weights: the repository's own have seen other parts of the text.
    device.seed(0);
    start.model = start.model.config().clone().init(&device)?;
    let mut experiment = Experiment { start, train, held_out, flags, table: Table::default() };
    let config =
        TrainConfig { learning_rate: DENSE_LEARNING_RATE, ..TrainConfig::new(experiment.flags.dense_steps) };
    let dense = experiment.trained("dense", experiment.start.model.clone(), &config, u64::MAX, None)?;
    experiment.start.model = dense;
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
    /// The dense model that every row starts from.
    start: Checkpoint,
    train: TokenWindows,
    held_out: TokenWindows,
    flags: Flags,
    table: Table,
}

impl Experiment {
    fn run(&mut self, seed: u64) -> Result<(), Box<dyn Error>> {
        let perplexity = perplexity(&self.start.model, &self.held_out, BATCH)?;
        self.table.add("dense, before", "none", perplexity);
        if "dense".contains(&self.flags.only) {
            let config =
                TrainConfig { learning_rate: DENSE_LEARNING_RATE, ..TrainConfig::new(self.flags.steps) };
            let dense = self.trained("dense", self.start.model.clone(), &config, seed, None)?;
            self.measure("dense, trained on", "none", &dense)?;
        }
        let (none, ones, calibrated) = (
            (Placement::None, SubNormGain::Ones),
            (Placement::Output, SubNormGain::Ones),
            (Placement::Output, SubNormGain::Calibrated),
        );
        let half = self.flags.steps / 2;
        let at_once = (Schedule::Linear, 0);
        let linear = (Schedule::Linear, half);
        let rows = [
            ("ternary at once", none, at_once, None),
            ("λ linear", none, linear, None),
            ("λ cosine", none, (Schedule::Cosine, half), None),
            ("λ exponential", none, (Schedule::exponential(), half), None),
            ("λ sigmoid", none, (Schedule::sigmoid(), half), None),
            ("ternary at once, SubLN", ones, at_once, None),
            ("ternary at once, SubLN of calibrated gain", calibrated, at_once, None),
            ("λ linear, SubLN", ones, linear, None),
            ("λ linear, SubLN of calibrated gain", calibrated, linear, None),
            (
                "ternary at once, distilled",
                none,
                at_once,
                Some(LogitKl { weight: 1.0, temperature: 1.0, top_k: None }),
            ),
            (
                "λ linear, distilled",
                none,
                linear,
                Some(LogitKl { weight: 1.0, temperature: 1.0, top_k: None }),
            ),
        ];
        for (name, norms, lambda, logit_kl) in rows {
            if name.contains(&self.flags.only) {
                self.row(name, norms, lambda, logit_kl, seed)?;
            }
        }
        Ok(())
    }

    /// Converts the dense model, trains it and writes down what came of it.
    fn row(
        &mut self,
        name: &str,
        (sub_norm, sub_norm_gain): (Placement, SubNormGain),
        (schedule, warmup_steps): (Schedule, u64),
        logit_kl: Option<LogitKl>,
        seed: u64,
    ) -> Result<(), Box<dyn Error>> {
        let policy = Policy { sub_norm, sub_norm_gain, ..Policy::default() };
        let (student, _) = if policy.needs_data() {
            let batches = self.train.batches(BATCH, seed)?.take(CALIBRATION);
            let batches =
                batches.map(|batch| self.start.model.batch(&batch)).collect::<Result<Vec<_>, _>>()?;
            convert_calibrated(self.start.clone(), &policy, &batches)?
        } else {
            convert(self.start.clone(), &policy)?
        };
        let config = TrainConfig {
            learning_rate: self.flags.learning_rate,
            lambda: LambdaWarmupConfig::new(schedule, warmup_steps),
            ..TrainConfig::new(self.flags.steps)
        };
        let distillation = logit_kl.map(|logit_kl| {
            let config = DistillConfig { logit_kl: Some(logit_kl), ..DistillConfig::default() };
            Distillation::new(self.start.model.clone(), &student.model, config)
        });
        let model = self.trained(name, student.model, &config, seed, distillation.transpose()?)?;
        let norms = match (sub_norm, sub_norm_gain) {
            (Placement::None, _) => "none",
            (_, SubNormGain::Ones) => "gain 1",
            (_, SubNormGain::Calibrated) => "calibrated gain",
        };
        self.measure(name, norms, &model)
    }

    fn measure(&mut self, name: &str, norms: &str, model: &CausalLm) -> Result<(), Box<dyn Error>> {
        let perplexity = perplexity(model, &self.held_out, BATCH)?;
        self.table.add(name, norms, perplexity);
        Ok(())
    }

    /// A model after training steps, at λ = 1.
    fn trained(
        &self,
        name: &str,
        model: CausalLm,
        config: &TrainConfig,
        seed: u64,
        distillation: Option<Distillation>,
    ) -> Result<CausalLm, Box<dyn Error>> {
        let mut trainer = Trainer::new(model, config)?;
        let progress = Progress::new(name, config.steps, WINDOW * BATCH);
        for batch in self.train.batches(BATCH, seed)?.take(config.steps as usize) {
            let batch: Vec<Vec<u32>> = batch.into_iter().map(<[u32]>::to_vec).collect();
            progress.show(&trainer.step(&[batch], |model, batch| match &distillation {
                Some(distillation) => distillation.loss(model, batch),
                None => next_token_loss(model, batch),
            })?);
        }
        progress.finish();
        let mut model = trainer.into_model();
        set_lambda(&mut model, Some(1.0));
        Ok(model)
    }

    fn text(&self) -> Result<String, std::fmt::Error> {
        let Flags { steps, seeds, device, dense_steps, learning_rate, .. } = &self.flags;
        let mut text = self.table.text("SubLN")?;
        writeln!(
            text,
            "\n{seeds} seeds; the dense model after {dense_steps} steps, then {steps} steps of {} tokens in each row, at most {DENSE_LEARNING_RATE} \
             for dense and {learning_rate} for ternary models; {} held-out windows of {WINDOW} tokens; {device}.",
            WINDOW * BATCH,
            self.held_out.len(),
        )?;
        Ok(text)
    }
}
