//! Hugging Face checkpoints in and out, and their conversion to BitNet.
//!
//! ```no_run
//! use bitnet_convert::{LoadOptions, Policy, convert, load, save};
//! use burn::tensor::Device;
//!
//! let source = load("SmolLM2-135M", &Device::flex(), &LoadOptions::default())?;
//! let (converted, report) = convert(source, &Policy::default())?;
//! println!("{} slots ternarized", report.n_converted());
//! save(&converted, "SmolLM2-135M-bitnet")?;
//! # Ok::<(), bitnet_convert::ConvertError>(())
//! ```
//!
//! A [`Checkpoint`] is a model together with the `config.json`, tokenizer files and shard layout that it came with,
//! so that what is written looks like what was read. [`stage1`] does all of the above on folders.
//!
//! This is the only crate that opens checkpoints. Names and shapes are checked in full before a byte is loaded, and
//! everything that is written appears under its name whole or not at all.

mod adapter;
mod additions;
mod bitnet_state;
mod checkpoint;
mod convert;
mod correct;
mod error;
mod export;
mod fields;
mod folder;
mod gguf;
mod hf_config;
#[cfg(feature = "hub")]
mod hub;
mod inspect;
mod json;
mod mapped;
mod names;
mod pack;
mod param_path;
mod peft;
mod policy;
mod progress;
mod report;
mod shards;
mod source;
mod stage1;
mod tensors;
mod unfinished;

pub use checkpoint::{Checkpoint, LoadOptions, check_tokenizer, load, save, save_with_report};
pub use convert::{auto_convert, check_policy, convert, convert_calibrated, convert_slots, is_bitnet};
pub use correct::correct;
#[cfg(feature = "hub")]
pub use error::HubProblem;
pub use error::{ConvertError, TensorProblem};
pub use export::{HfFormat, HfOptions, export_hf};
pub use gguf::{GgufOptions, GgufReport, GgufTensor, GgufType, export_gguf, export_gguf_adapter};
pub use hf_config::HfConfig;
#[cfg(feature = "hub")]
pub use hub::{HubId, fetch};
pub use inspect::{
    Architecture, Container, Form, Inspection, Problem, ProblemKind, Role, ScaleReport, TensorEntry, Tokens,
    Total, inspect,
};
pub use pack::{PackReport, PackedSlot, pack, pack_slots};
pub use peft::export_peft;
pub use policy::{Placement, Policy, SubNormGain};
pub use report::{Action, ConversionReport, LeftBecause, TensorReport};
pub use shards::{Layout, WeightType};
pub use stage1::{Stage1Options, auto_stage1, is_bitnet_folder, stage1, stage1_calibrated, stage1_watched};
pub use tensors::Tensors;
pub use unfinished::{Unfinished, remove_unfinished};
