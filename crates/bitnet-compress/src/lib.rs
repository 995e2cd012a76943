//! Any safetensors checkpoint in, ternary weights out: tensor by tensor, in bounded memory, without a model.
//!
//! ```no_run
//! use bitnet_compress::{Options, compress};
//!
//! let options = Options { packed: true, ..Options::default() };
//! let stats = compress("SmolLM2-135M".as_ref(), "out".as_ref(), &options, &mut |_, _, _| {})?;
//! println!("{stats}");
//! # Ok::<(), bitnet_compress::CompressError>(())
//! ```
//!
//! [`Plan::new`] reads headers only and refuses whatever can be known to go wrong; [`Plan::run`] writes:
//!
//! - the source's safetensors files, with its names, shapes and metadata, where each linear weight is
//!   `codes · scale`: an ordinary dense model for transformers;
//! - on request `packed/`: the same files with [`read_packed`]'s two-bit codes and f32 scales;
//! - `compression_stats.json`: [`Stats`], every tensor with what was done to it and why, and `report.html`, a page about it;
//! - all other small files, byte for byte.
//!
//! # Which tensors
//! Those of f32, f16 or bf16 with two axes, or stacks of experts with three, whose name is that of a linear map, or that
//! stand in a numbered block and are nothing else by name or shape. Biases, norms, embeddings, tables of positions,
//! heads, routers, convolutions and adapters stay as they are. [`Options::include`] and [`Options::exclude`] overrule
//! the names. A weight that is ternary already keeps its magnitude: quantizing it again would shrink it.
//!
//! # Invariants
//! - No tensor is in memory as a whole: a core holds a few MB at a time. Files are read by position, so one that changes
//!   meanwhile is an error.
//! - The source is only read. The target has its name only when all of it is written and was read again.
//! - The bytes depend on source and options alone: not on threads, nor on where a run was killed and resumed.

mod at;
mod beside;
mod decide;
mod disk;
mod error;
mod floats;
mod headers;
mod layout;
mod manifest;
mod matrix;
mod names;
mod options;
mod packed;
mod page;
mod plan;
mod report;
mod source;
mod stats;
mod unfinished;
mod verify;
mod write;

pub use bitnet_format::Granularity;
pub use decide::{Decision, LeftBecause, Matrices, TernarizedBecause};
pub use disk::{free, taken};
pub use error::CompressError;
pub use floats::Float;
pub use headers::{Header, Headers, headers};
pub use options::{Options, Rule};
pub use packed::{FOLDER as PACKED_FOLDER, PackedWeight, read_packed};
pub use page::{Curve, PAGE, bars, curves, escape, page};
pub use plan::{Plan, STATS, Stage, compress, is_inside};
pub use stats::{
    FileStats, Form, Stats, Sums, TensorStats, TernaryStats, Totals, Verification, relative_error, shares,
};
pub use unfinished::{LOCK, check_outside, lock, unfinished};
