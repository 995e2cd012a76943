//! Training: one optimizer step, whole runs that can be interrupted, and the measures around them.
//!
//! A [`Trainer`] owns a model, Burn's AdamW, a learning-rate schedule and the λ warm-up. It trains any Burn module
//! with projection slots; the loss is the caller's, [`next_token_loss`] for a language model:
//!
//! ```no_run
//! use bitnet_convert::{LoadOptions, Policy, convert, load};
//! use bitnet_text::{Tokenizer, TokenWindows};
//! use bitnet_train::{TrainConfig, Trainer, next_token_loss};
//! use burn::tensor::Device;
//!
//! let (checkpoint, _) = convert(load("model", &Device::flex(), &LoadOptions::default())?, &Policy::default())?;
//! let tokens = Tokenizer::from_file("model/tokenizer.json")?.encode("a long text …")?;
//! let windows = TokenWindows::new(tokens, 128)?;
//! let mut trainer = Trainer::new(checkpoint.model, &TrainConfig::new(100))?;
//! for batch in windows.batches(4, 0)?.take(100) {
//!     let report = trainer.step(&[batch], next_token_loss)?;
//!     println!("step {}: loss {:.3} at λ {:.2}", report.step, report.loss, report.lambda);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Each step reports loss, gradient norm, λ and learning rate; a loss or gradient that is not finite ends training
//! with an error and leaves the model as it was. [`Trainer::save`] and [`Trainer::load`] interrupt it.
//!
//! A [`Run`] is all of that from a file of settings, a [`RunConfig`]: it loads and converts the model, streams the data,
//! logs, evaluates, saves [`Snapshots`] and goes on from the newest one after whatever happened.

mod clip;
mod config;
mod curves;
mod distill;
mod distill_config;
mod distill_losses;
mod error;
mod files;
mod loss;
mod metrics;
mod opening;
mod optimizer;
mod replicas;
mod report;
mod run;
mod run_config;
mod snapshots;
mod teacher_logits;
mod trainer;
mod working;

pub use config::{Decay, LrDecay, Precision, StageTwo, TrainConfig};
pub use curves::{Curve, write_curves};
pub use distill::{Distillation, Term};
pub use distill_config::{DistillConfig, HiddenMse, LogitKl, RelationKl};
pub use distill_losses::{hidden_mse, logit_kl, relation_kl};
pub use error::TrainError;
pub use loss::{Evaluation, evaluate, next_token_loss, perplexity};
pub use metrics::{MetricsLog, Progress};
pub use opening::{Opening, tokens};
pub use replicas::Replicas;
pub use report::report;
pub use run::{Best, Run};
pub use run_config::{
    BatchConfig, DataConfig, EvalConfig, ModelConfig, RunConfig, SnapshotConfig, Trainable,
};
pub use snapshots::Snapshots;
pub use teacher_logits::TeacherLogits;
pub use trainer::{Loss, StepReport, Trainer};
