//! From any checkpoint to calibrated, optionally fine-tuned, packed ternary artifacts, with a report and a verdict.
//!
//! ```no_run
//! use bitnet_pipeline::{Config, Pipeline};
//!
//! let config: Config = toml::from_str("data = { source = { text = ['books'] } }\ntrain = { steps = 500 }")?;
//! let report = Pipeline::new("SmolLM2-135M", "out", &config)?.run(&mut |_| ())?;
//! println!("{}", report.model.verdict);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`choose`] says which of two modes a source and a [`Config`] ask for. `tensors` is `bitnet-compress`, by names and
//! shapes alone. `model` is a [`Pipeline`] of [`Stage`]s: validate → load → calibrate → convert → fine-tune → pack →
//! write → verify. Each stage leaves its result and a manifest in a hidden folder beside the target, so that each can
//! be run alone, and a run that was killed goes on in the stage that it was in, and ends with the same bytes.
//!
//! | in the target | what |
//! |---|---|
//! | `config.json`, safetensors, tokenizer | codes · scale in the source's own files and types: an ordinary dense model |
//! | `packed/` | the BitNet model itself, two bits a weight, with sub-norms and int8 activations |
//! | `latent/` | the same with the weights that its codes are made from, in f32, to train on |
//! | `model.gguf`, `hf/` | exports, on request |
//! | `compression_stats.json`, `report.html` | every tensor, perplexities, statistics, the verdict |
//!
//! The dense model has no words for sub-norms and quantized activations: it is the weights' part of the compression
//! alone, and the report has its own perplexity.

mod calibrate;
mod config;
mod convert;
mod disk;
mod error;
mod fine_tune;
mod mode;
mod page;
mod pipeline;
mod report;
mod stage;
mod tensors;
mod validate;
mod verify;
mod work;
mod write;

pub use calibrate::SlotStatistics;
pub use config::{Calibration, Config, Convert, Data, Export, Mode, Verdict};
pub use error::PipelineError;
pub use mode::choose;
pub use pipeline::{Event, Pipeline};
pub use report::{ModelReport, Outcome, Perplexities, Report, Training};
pub use stage::Stage;
pub use verify::Checks;
