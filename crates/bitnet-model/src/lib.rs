//! One decoder-only language model family, configured into the architectures of the field.
//!
//! [`CausalLm`] computes what transformers computes for `llama`, `mistral`, `qwen2`, `qwen3`, `gemma`, `gemma2` and
//! `bitnet`: they differ by the values of a [`CausalLmConfig`], not by code. Every linear map inside a block is a
//! `Projection` slot, so the same model is dense, in BitNet training, or anything that comes after.
//!
//! This crate knows no file and no checkpoint name; `bitnet-convert` does.
//!
//! ```
//! use bitnet_model::{CausalLmConfig, GenerateOptions};
//! use burn::tensor::Device;
//!
//! let device = Device::flex();
//! let model = CausalLmConfig::new(64, 32, 80, 2, 4).init(&device)?;
//! let tokens = model.generate(&[1, 2, 3], &GenerateOptions::greedy(5))?;
//! assert_eq!(tokens.len(), 5);
//! # Ok::<(), bitnet_model::ModelError>(())
//! ```
//!
//! Axes: B batch, T tokens of this call, S tokens seen so far (cache included), H heads, D head size.

mod attention;
mod block;
mod cache;
mod causal_lm;
mod config;
mod error;
mod generate;
mod mlp;
mod rope;

pub use attention::Attention;
pub use block::Block;
pub use cache::KvCache;
pub use causal_lm::CausalLm;
pub use config::{Activation, CausalLmConfig, RopeConfig, RopeScaling, SlidingLayers, SubNorms};
pub use error::ModelError;
pub use generate::{Continuation, GenerateOptions, Sampling};
pub use mlp::Mlp;
