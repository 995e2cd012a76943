//! The quantization strength λ: warm-up schedules and the process-wide default.
//!
//! λ in 0..=1 blends a dense layer (0) into its quantized form (1). A [`LambdaWarmup`] raises λ from `min` to
//! `max` over the first `warmup_steps` *optimizer* steps, along a [`Schedule`]. It is a plain value: copies are
//! independent, two models never disturb each other, and its complete state goes through serde into a snapshot,
//! so that a resumed run continues where it stopped.
//!
//! Layers without a λ of their own follow the process-wide default ([`default_lambda`]), which is 1 until
//! [`set_default_lambda`] changes it. This crate knows scalars only; no tensor enters it.
//!
//! ```
//! use bitnet_warmup::{LambdaWarmupConfig, Schedule};
//!
//! let mut warmup = LambdaWarmupConfig::new(Schedule::Linear, 4).init()?;
//! assert_eq!(warmup.lambda(), 0.0); // before the first optimizer step
//! assert_eq!(warmup.step(), 0.25); // after it
//! # Ok::<(), bitnet_warmup::WarmupError>(())
//! ```

mod default;
mod error;
mod schedule;
mod warmup;

pub use default::{default_lambda, reset_default_lambda, set_default_lambda};
pub use error::{WarmupError, check_lambda};
pub use schedule::Schedule;
pub use warmup::{LambdaWarmup, LambdaWarmupConfig};
