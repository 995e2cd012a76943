//! Ternary weights as bytes: the packings of Hugging Face `bitnet`, llama.cpp and bitnet.cpp, and GGUF files.
//!
//! Bytes only: no tensor and no model enters this crate. A [`TernaryMatrix`] holds *codes* in −1..=1 and
//! *scales*, with `w ≈ codes · scale`; every `pack` starts from one and every `unpack` gives one. Packing
//! never sees float weights: ternarizing weights that are ternary already would shrink their scale.
//!
//! # Formats
//!
//! | module | weights per block | bytes | bits per weight | scales | runs in |
//! |---|---|---|---|---|---|
//! | [`hf`] | 4 rows | 1 per column | 2 | one, beside it, see [`HfScale`] | transformers |
//! | [`tq1_0`] | 256 | 54 | 1.69 | per block, f16 | llama.cpp |
//! | [`tq2_0`] | 256 | 66 | 2.06 | per block, f16 | llama.cpp |
//! | [`q2_0`] | 64 | 18 | 2.25 | per block, f16 | llama.cpp |
//! | [`i2_s`] | tensor | n / 4 + 32 | 2 | one, f32, inside | bitnet.cpp, see [`I2sLayout`] |
//! | [`two_bit`] | 4 | 1 | 2 | any granularity, f32 | this project |
//!
//! Each GGUF block type has a `#[repr(C)]` struct whose size the compiler checks, so its documentation is its
//! layout. A shape or granularity that a format cannot hold is an error, never a silent conversion.
//!
//! ```
//! use bitnet_format::{Granularity, ScaleHome, TernaryMatrix, WeightScale, tq2_0};
//!
//! // Two rows of 256 weights: 0.25, -0.25, 0, 0.25, ..
//! let codes = [1, -1, 0, 1].repeat(128);
//! let matrix = TernaryMatrix::per_tensor(codes, [2, 256], WeightScale::new(0.25)?)?;
//!
//! let bytes = tq2_0::pack(&matrix, ScaleHome::Block)?;
//! assert_eq!(bytes.len(), 2 * tq2_0::BLOCK_BYTES);
//!
//! // A file has a scale per block; `regroup` joins equal ones and refuses different ones.
//! let back = tq2_0::unpack(&bytes, [2, 256])?;
//! assert_eq!(back.granularity(), Granularity::Group(256));
//! assert_eq!(back.regroup(Granularity::Tensor)?, matrix);
//! # Ok::<(), bitnet_format::FormatError>(())
//! ```
//!
//! # Scales
//!
//! The scale of a block is an f16, which rounds it by up to 0.05 %. Where the loader takes a scale tensor
//! beside the weight, [`ScaleHome::Tensor`] writes d = 1 and loses nothing. A scale outside f16's precise
//! range is refused. All-zero blocks fit any scale: they get the tensor's, and a d of 0, which llama.cpp
//! writes, reads as 1.
//!
//! # GGUF
//!
//! [`gguf::Gguf`] reads a file from a byte slice, best a memory map: names, strings, arrays and tensor data
//! are borrowed. [`gguf::Header`] and [`gguf::Writer`] write one to any [`std::io::Write`], tensor by tensor.
//!
//! # Malformed input
//!
//! Every reader gives a [`FormatError`] on malformed bytes. None panics, and none allocates more than the
//! bytes justify, whatever counts they claim: the GGUF reader less than the file's own size, `unpack` the
//! codes and scales of the bytes that are there. The targets in `fuzz/` test this.

mod blocks;
mod error;
pub mod gguf;
pub mod hf;
pub mod i2_s;
mod matrix;
pub mod q2_0;
mod quad;
mod scale;
mod storage;
#[cfg(test)]
mod tests;
pub mod tq1_0;
pub mod tq2_0;
pub mod two_bit;

pub use blocks::ScaleHome;
pub use error::FormatError;
pub use i2_s::I2sLayout;
pub use matrix::{Granularity, TernaryMatrix};
pub use quad::{pack4, unpack4};
pub use scale::{HfScale, WeightScale};
pub use storage::{ScaleWidth, Storage};
pub use two_bit::PackedTernary;
