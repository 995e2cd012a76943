//! Training: one optimizer step, the measures around it, and what a run leaves on disk.
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
//! with an error and leaves the model as it was.

mod clip;
mod config;
mod curves;
mod error;
mod loss;
mod metrics;
mod trainer;

pub use config::{LrDecay, TrainConfig};
pub use curves::{Curve, write_curves};
pub use error::TrainError;
pub use loss::{next_token_loss, perplexity};
pub use metrics::{MetricsLog, Progress};
pub use trainer::{StepReport, Trainer};
