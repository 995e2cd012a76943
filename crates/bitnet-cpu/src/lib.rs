//! Ternary weights on the CPU, on plain slices: quantizers, packed ternary × int8 products and the output
//! head; and what training them takes besides: f32 products, attention, norms, cross-entropy, AdamW.
//!
//! ```
//! use bitnet_cpu::{CpuError, Granularity, Kernel, PackedTernary};
//!
//! let kernel = Kernel::new(); // the fastest that this processor has
//! let (d_output, d_input) = (2, 3);
//!
//! let w = [0.8, -0.5, 1.2, -1.5, 0.4, -0.9];
//! let weight = kernel.absmean_ternarize(&w, d_output, d_input, Granularity::Tensor)?;
//! assert_eq!(weight.codes, [1, -1, 1, -1, 0, -1]);
//! let packed = PackedTernary::pack(&weight.codes, &weight.scales, d_output, d_input, Granularity::Tensor)?;
//!
//! let x = kernel.quantize_activations(&[1.0, -0.6, 0.7], d_input, 8)?; // one token
//! let mut y = [0.0; 2];
//! kernel.matmul(&packed, &x.codes, &x.scales, &mut y)?;
//! // accumulators 292 and −216, scales 0.8833 and 1 / 127
//! assert!((y[0] - 2.0310).abs() < 1e-4 && (y[1] + 1.5024).abs() < 1e-4);
//! # Ok::<(), CpuError>(())
//! ```
//!
//! # Words
//! *codes* are integers and a *scale* is the step between them: `value ≈ codes · scale`. A weight is
//! `[d_output, d_input]`, and activations are `[tokens, d_input]`, both row-major. One token makes a product
//! matrix × vector. [`Granularity`] says which weights share a scale.
//!
//! # Invariants
//! - Every kernel gives the same bits as the scalar one, whatever the number of threads: integers are exact,
//!   and each float sum has one order, given at its function. A multiplication and the addition after it
//!   round separately everywhere.
//! - [`Gemm`] alone is for AVX-512 only and fuses multiplication and addition, and with AMX sums products with codes in tiles; its
//!   order does not depend on threads either.
//! - Holding a [`Kernel`] proves that the processor has its instructions.
//! - A slice of the wrong length is an error that names it. No input makes a function panic.
//! - A NaN or an infinity makes the scale non-finite, and so shows in the output.
//!
//! # Kernels
//! | | needs | ternary × int8 |
//! |---|---|---|
//! | `scalar` | nothing; written so that compilers vectorise it, with 128-bit SSE2 on plain x86-64 | i16 products |
//! | `avx2` | AVX2, F16C | `vpmaddubsw` on digits 0..=2, i16 sums flushed before they can overflow |
//! | `avx512` | AVX-512 F, BW, VNNI | `vpdpbusd` on digits that need not be shifted down |
//!
//! Processors other than x86-64 run the scalar kernel. The layout of the packed weight is described at
//! [`PackedTernary`]. Digits are code + 1, so that they are unsigned as both instructions want; each token's
//! `Σ x`, computed once, is subtracted again.
//!
//! What is plain Rust and vectorises by itself is written once, with `vectorized!`, and compiled for each instruction set.
//!
//! A new kernel is one file that implements the trait in `kernel.rs`, and one entry in [`Kernel::available`],
//! from where the tests and benchmarks take it.
//!
//! # Floors and figures
//! What each function must at least move and do; and medians on one thread of an AMD EPYC (Zen 5) with 1 MiB
//! of L2 and 32 MiB of L3, its other core busy. `cargo bench -p bitnet-cpu` measures them again, best on a
//! quiet machine.
//!
//! | | bytes | vector instructions | avx2 | avx512 | scalar |
//! |---|---|---|---|---|---|
//! | product, one token, 4096 × 4096 | ¼ per weight | avx2: 13 per 128 weights; avx512: 8 per 256 | 121 µs | 46 µs | 1100 µs |
//! | the same, groups of 128 | and 1/32 for scales | and a rescaling of 32 sums per 4096 weights | 174 µs | 95 µs | 1170 µs |
//! | product, 512 tokens, 576 × 1536 | in cache | avx2: 8 per 128 products; avx512: 4 per 256 | 2.8 ms | 1.15 ms | 30 ms |
//! | activations, 1 × 4096 | 4 read, 1 written per number | 2 for the maximum, 7 to round | 0.54 µs | 0.27 µs | 1.6 µs |
//! | absmean, 4096 × 4096 | 4 per weight | one addition per weight, in cache | 2.4 ms | 2.6 ms | 3.1 ms |
//! | ternarize, 4096 × 4096 | 4 read, 1 written per weight | 7 | 2.5 ms | 2.4 ms | 2.8 ms |
//! | head, 49152 × 576 | 2 per weight | 3: widen, multiply, add | 1.7 ms | 1.65 ms | 8.5 ms |
//!
//! The dense f32 product of 512 tokens by 576 × 1536 (the `gemm` crate) takes 7.3 ms there. The last three
//! rows are bound by what one core reads from memory, about 30 GB/s.
//!
//! # The head is f16, not int8
//! Generation reads the whole head for every token, so its bytes are what counts. f16 halves those of f32 and
//! changes next to nothing: it has 11 significant bits, so it holds a bf16 weight exactly (in size 2⁻¹⁴ to
//! 65504; smaller ones to within 2⁻²⁵) and any other to 1 part in 2048. int8 would halve the bytes again. But
//! rounding to 255 steps per row moves logits by an estimated 1 % of their spread (steps of max|w| / 127,
//! with max|w| at 3 to 5 standard deviations), in a layer that was never trained to be quantized: the packed
//! model could then choose other tokens than the trained one.

mod activation;
mod adamw;
mod attention;
mod columns;
mod cross_entropy;
mod error;
mod exp;
mod gated;
mod gemm;
mod head;
mod kernel;
mod memory;
mod norm;
mod packed;
mod scalar;
mod shape;
#[cfg(target_arch = "x86_64")]
mod split;
mod ternary;
mod threads;
mod threshold;
mod weight;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use activation::QuantizedActivations;
pub use adamw::AdamW;
pub use attention::{AttentionInputs, AttentionShape};
pub use bitnet_format::Granularity;
pub use error::CpuError;
pub use gemm::{Gemm, Matrix, Right};
pub use kernel::Kernel;
pub use memory::{keep_freed_memory, vec_in_huge_pages};
pub use packed::PackedTernary;
pub use shape::MAX_D_INPUT;
pub use threads::with_awake_threads;
pub use weight::{TernaryWeight, absmean_of_rows};
