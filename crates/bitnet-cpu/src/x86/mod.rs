//! Kernels for x86-64.

#![allow(unsafe_code, reason = "vector instructions need it")]

mod amx;
mod avx2;
mod avx512;
mod tiles;
mod vectorized;

pub(crate) use amx::{Amx, AmxTiles};
pub(crate) use avx2::Avx2;
pub(crate) use avx512::Avx512;
pub(crate) use tiles::Tiles;
pub(crate) use vectorized::vectorized;

use crate::packed::BLOCK_INPUTS;

/// The methods that are the reference's own functions, compiled for a larger instruction set.
/// Rust never fuses or reorders float operations, so they have its bits.
macro_rules! compile_scalar {
    ($features:literal) => {
        fn sum(&self, x: &[i8]) -> i32 {
            #[target_feature(enable = $features)]
            fn compiled(x: &[i8]) -> i32 {
                scalar::sum(x)
            }
            // SAFETY: `self` proves the features.
            unsafe { compiled(x) }
        }

        fn absmax(&self, x: &[f32]) -> f32 {
            #[target_feature(enable = $features)]
            fn compiled(x: &[f32]) -> f32 {
                scalar::absmax(x)
            }
            // SAFETY: `self` proves the features.
            unsafe { compiled(x) }
        }

        fn quantize(&self, x: &[f32], factor: f32, range: [f32; 2], codes: &mut [i8]) {
            #[target_feature(enable = $features)]
            fn compiled(x: &[f32], factor: f32, range: [f32; 2], codes: &mut [i8]) {
                scalar::quantize(x, factor, range, codes);
            }
            // SAFETY: `self` proves the features.
            unsafe { compiled(x, factor, range, codes) }
        }

        fn abs_sum(&self, w: &[f32], folded: &mut [f32]) -> f32 {
            #[target_feature(enable = $features)]
            fn compiled(w: &[f32], folded: &mut [f32]) -> f32 {
                scalar::abs_sum(w, folded)
            }
            // SAFETY: `self` proves the features.
            unsafe { compiled(w, folded) }
        }
    };
}
use compile_scalar;

/// The four activations of each plane of a block, as the bytes of one number. No closure: one would be a function without
/// the caller's instruction set, called for every block with all its registers saved.
#[inline(always)]
fn quads(x: &[i8; BLOCK_INPUTS]) -> [i32; 4] {
    bytemuck::cast(*x)
}
