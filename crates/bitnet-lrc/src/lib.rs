//! Low-rank corrections and adapters, as procedures on a model's projection slots.
//!
//! | procedure | what it does |
//! |---|---|
//! | [`add_lrc`] | puts a correction of what ternarization loses beside BitNet slots (LRC, QLRC) |
//! | [`calibrate`] | the same, fitted to calibration data, block by block |
//! | [`rotate`], [`keep_salient`] | outliers of a slot's input, spread by a Hadamard matrix or kept in full precision |
//! | [`calibrate_gains`] | gains of inserted sub-norms, from calibration data |
//! | [`activations`] | sizes and outliers of what enters each slot |
//! | [`add_lora`] | puts an adapter beside any slots |
//! | [`freeze_except_adapters`], [`unfreeze`] | what an optimizer may change |
//! | [`merge`], [`remove`] | adapters into weights, or away |
//! | [`stats`] | ranks, parameters, bytes |
//!
//! The data they work on, [`LowRank`](bitnet_layers::LowRank), belongs to the slot. A procedure takes the model and hands
//! it back with a report; each refuses what it would do wrong, with an error that names the slot.
//!
//! The formulas are in `docs/numerics.md`. Decompositions run on the CPU in f64.

mod add;
mod calibrate;
mod closed_form;
mod config;
mod error;
mod freeze;
mod gains;
mod linalg;
mod merge;
mod moments;
mod observe;
mod outliers;
mod report;
mod slots;
mod stats;

pub use add::{add_lora, add_lrc};
pub use calibrate::{Calibration, calibrate};
pub use config::{Init, LoraConfig, LrcConfig, PERCENTAGE, SlotRule, Svd};
pub use error::LrcError;
pub use freeze::{Counts, Trainable, freeze_except_adapters, unfreeze};
pub use gains::calibrate_gains;
pub use merge::{merge, remove};
pub use observe::{Activations, OUTLIER, activations};
pub use outliers::{
    HadamardConfig, OutlierAction, OutlierLeft, OutlierReport, SalientConfig, keep_salient, rotate,
};
pub use report::{ErrorOf, ErrorReport, LeftBecause, LrcReport, SlotAction, SlotReport};
pub use stats::{LrcStats, SlotStats, stats};
