use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use bitnet_arch::convert::Placement;
use bitnet_arch::train::TrainConfig;
use bitnet_arch::warmup::{LambdaWarmupConfig, Schedule};
use clap::{Parser, ValueEnum};
use serde::Serialize;

use crate::repository;

/// From a dense checkpoint to a trained BitNet model, every step checked.
#[derive(Parser, Serialize)]
#[command(name = "smoke-train")]
pub(crate) struct Flags {
    /// Device: flex, ndarray, wgpu, vulkan or cuda, with an index as in cuda:1
    #[arg(long, default_value = "flex")]
    pub(crate) device: String,
    /// Optimizer steps of each of the two runs
    #[arg(long, default_value_t = 100)]
    pub(crate) steps: u64,
    /// Dense checkpoint in Hugging Face format [default: the repository's small one]
    #[arg(long, value_name = "DIR", conflicts_with = "model")]
    pub(crate) checkpoint: Option<PathBuf>,
    /// Text files or folders to train on [default: the repository's own text]
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub(crate) data: Vec<PathBuf>,
    /// Random weights at the shape of a real model, instead of a checkpoint
    #[arg(long, value_enum)]
    pub(crate) model: Option<Shape>,
    /// Seed of batches, random weights and sampled text
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Where SubLN is inserted: none, output or all
    #[arg(long, default_value = "output")]
    pub(crate) subln: Placement,
    /// How λ rises: linear, cosine, exponential or sigmoid
    #[arg(long, default_value = "linear")]
    pub(crate) schedule: Schedule,
    /// The highest learning rate
    #[arg(long, default_value_t = 1e-3)]
    pub(crate) learning_rate: f64,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 128)]
    pub(crate) window: usize,
    /// Sequences of a step
    #[arg(long, default_value_t = 8)]
    pub(crate) batch: usize,
    /// Held-out sequences that perplexity is measured on, at most
    #[arg(long, default_value_t = 48)]
    pub(crate) eval_windows: usize,
    /// Adds a stage: a low-rank correction beside each ternary weight, trained alone for as many steps
    #[arg(long)]
    pub(crate) lrc: bool,
    /// Run folder [default: runs/smoke-train-<time>]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// The shape of a real model.
#[derive(Clone, Copy, ValueEnum, Serialize)]
pub(crate) enum Shape {
    /// Hidden 576, 30 layers, 9 heads (3 of keys), ffn 1536, vocabulary 49152, tied
    #[value(name = "smollm2-135m")]
    Smollm2_135m,
}

impl Flags {
    /// The checkpoint to start from; random weights take the small model's tokenizer.
    pub(crate) fn checkpoint_folder(&self) -> PathBuf {
        self.checkpoint.clone().unwrap_or_else(repository::small_model)
    }

    /// The two runs: with the λ warm-up over half the steps, and without.
    pub(crate) fn configs(&self) -> [(&'static str, TrainConfig); 2] {
        [("warm-up", self.steps / 2), ("no warm-up", 0)].map(|(name, warmup_steps)| {
            let lambda = LambdaWarmupConfig::new(self.schedule, warmup_steps);
            let config =
                TrainConfig { lambda, learning_rate: self.learning_rate, ..TrainConfig::new(self.steps) };
            (name, config)
        })
    }

    /// Where the run is written.
    pub(crate) fn run_folder(&self) -> PathBuf {
        self.out.clone().unwrap_or_else(|| {
            let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
            PathBuf::from(format!("runs/smoke-train-{seconds}"))
        })
    }
}
