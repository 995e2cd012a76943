//! Which instruction set computes: chosen at run time, proved by holding a value.

use std::fmt;

use half::f16;

use crate::packed::{BLOCK_INPUTS, Block, TILE_ROWS};
use crate::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
use crate::x86::{Avx2, Avx512};

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use crate::scalar::vectorized;
#[cfg(target_arch = "x86_64")]
pub(crate) use crate::x86::vectorized;

/// Tokens that one call of [`Primitives::ternary`] takes at most.
pub(crate) const MAX_TOKENS: usize = 8;
/// Partial sums of a dot product in f32.
pub(crate) const LANES: usize = 32;

/// `Σ digit · x` of each token (outer) and row of a tile (inner).
pub(crate) type Accumulators = [[i32; TILE_ROWS]; MAX_TOKENS];

/// Which instructions a kernel proves.
#[cfg(target_arch = "x86_64")]
pub(crate) enum Level {
    Scalar,
    Avx2,
    Avx512,
}

/// What differs between instruction sets. All implementations give the bits of [`Scalar`].
pub(crate) trait Primitives: Send + Sync {
    fn name(&self) -> &'static str;

    /// What functions that are plain Rust are compiled for.
    #[cfg(target_arch = "x86_64")]
    fn level(&self) -> Level {
        Level::Scalar
    }

    /// For each token its sums `Σ digit · x` over the 32 rows of a run of blocks; each token has as many
    /// blocks as `weights`.
    fn ternary(&self, weights: &[Block], tokens: &[&[[i8; BLOCK_INPUTS]]], out: &mut Accumulators);

    /// `Σ x`.
    fn sum(&self, x: &[i8]) -> i32;

    /// `max|x|`.
    fn absmax(&self, x: &[f32]) -> f32;

    /// `codes = clamp(round(x · factor), low, high)`, ties to even.
    fn quantize(&self, x: &[f32], factor: f32, range: [f32; 2], codes: &mut [i8]);

    /// [`quantize`](Self::quantize), and `max|next|`: of as many numbers or none, which memory may deliver meanwhile. Codes
    /// that are `streamed` may go past the caches.
    fn quantize_and_absmax(
        &self,
        x: &[f32],
        factor: f32,
        range: [f32; 2],
        codes: &mut [i8],
        next: &[f32],
        _streamed: bool,
    ) -> f32 {
        self.quantize(x, factor, range, codes);
        self.absmax(next)
    }

    /// [`quantize`](Self::quantize) to ternary codes of up to `PACKED_ROWS` equally long rows, each with its factor. Sixteen
    /// codes of a row make a word, the last one padded; the rows' words stand side by side in every 32nd place of `words`.
    fn pack(&self, rows: &[&[f32]], factors: &[f32], words: &mut [i32]);

    /// `Σ|w|` by folding halves; `folded` is scratch of at least n numbers.
    fn abs_sum(&self, w: &[f32], folded: &mut [f32]) -> f32;

    /// `Σ w·x` over equally many numbers.
    fn dot_f16(&self, w: &[f16], x: &[f32]) -> f32;
}

/// An instruction set that this processor has. Every kernel gives the same bits.
#[derive(Clone, Copy)]
pub struct Kernel(&'static dyn Primitives);

impl Kernel {
    /// The fastest kernel of this processor.
    pub fn new() -> Self {
        Self::avx512().or_else(Self::avx2).unwrap_or(Self::scalar())
    }

    /// The reference, for every processor.
    pub fn scalar() -> Self {
        Self(&Scalar)
    }

    /// AVX2 with F16C, if this processor has both.
    pub fn avx2() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return Avx2::get().map(|avx2| Self(avx2));
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// AVX-512 F, BW and VNNI, if this processor has them all.
    pub fn avx512() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return Avx512::get().map(|avx512| Self(avx512));
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// Every kernel that this processor can run, the reference first and the fastest last.
    pub fn available() -> Vec<Self> {
        [Some(Self::scalar()), Self::avx2(), Self::avx512()].into_iter().flatten().collect()
    }

    /// `scalar`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn level(self) -> Level {
        self.0.level()
    }

    pub(crate) fn primitives(self) -> &'static dyn Primitives {
        self.0
    }
}

impl Default for Kernel {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kernel").field(&self.name()).finish()
    }
}
