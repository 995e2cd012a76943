//! The definition of every kernel, in plain Rust that compilers vectorise. The vector kernels either have the
//! same bits by construction (the same function, compiled for a larger instruction set) or are tested to have
//! them.

use std::array::from_fn;

use half::f16;

use crate::kernel::{Accumulators, LANES, Primitives};
use crate::packed::{BLOCK_INPUTS, Block, PACKED_ROWS, TILE_ROWS};

/// Functions of plain Rust that other processors compile for several instruction sets.
#[cfg(not(target_arch = "x86_64"))]
macro_rules! vectorized {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        pub(crate) fn $name(_: $crate::Kernel, $($arg: $type),*) $(-> $out)? $body
    };
}
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use vectorized;

/// Runs on every processor.
pub(crate) struct Scalar;

impl Primitives for Scalar {
    fn name(&self) -> &'static str {
        "scalar"
    }

    fn ternary(&self, weights: &[Block], tokens: &[&[[i8; BLOCK_INPUTS]]], out: &mut Accumulators) {
        for (x, out) in tokens.iter().zip(out) {
            *out = ternary(weights, x);
        }
    }

    fn sum(&self, x: &[i8]) -> i32 {
        sum(x)
    }

    fn absmax(&self, x: &[f32]) -> f32 {
        absmax(x)
    }

    fn quantize(&self, x: &[f32], factor: f32, [low, high]: [f32; 2], codes: &mut [i8]) {
        quantize(x, factor, [low, high], codes);
    }

    fn pack(&self, rows: &[&[f32]], factors: &[f32], words: &mut [i32]) {
        pack(rows, factors, words);
    }

    fn abs_sum(&self, w: &[f32], folded: &mut [f32]) -> f32 {
        abs_sum(w, folded)
    }

    fn dot_f16(&self, w: &[f16], x: &[f32]) -> f32 {
        dot_f16(w, x)
    }
}

/// `Σ digit · x` for the 32 rows of a tile.
///
/// Each byte of a block has an i16 sum, which 16 blocks cannot overflow: 16 · 4 · 3 · 128 = 24576 < 2¹⁵. The
/// loops over 16 bytes are what vectorises.
fn ternary(weights: &[Block], x: &[[i8; BLOCK_INPUTS]]) -> [i32; TILE_ROWS] {
    let mut sums = [0; TILE_ROWS];
    for (weights, x) in weights.chunks(16).zip(x.chunks(16)) {
        let mut products = [[0i16; 16]; 8];
        for (block, x) in weights.iter().zip(x) {
            for plane in 0..4 {
                let x: [i16; 16] = from_fn(|i| i16::from(x[4 * plane + i % 4]));
                for (products, bytes) in products.iter_mut().zip(block.as_chunks::<16>().0) {
                    for i in 0..16 {
                        products[i] += i16::from(bytes[i] >> (2 * plane) & 3) * x[i];
                    }
                }
            }
        }
        for (sum, products) in sums.iter_mut().zip(products.as_flattened().as_chunks::<4>().0) {
            *sum += products.iter().map(|&product| i32::from(product)).sum::<i32>();
        }
    }
    sums
}

#[inline(always)]
pub(crate) fn sum(x: &[i8]) -> i32 {
    x.iter().map(|&x| i32::from(x)).sum()
}

/// `max|x|`. The bits of non-negative floats are ordered as the floats are, and an integer maximum
/// vectorises.
#[inline(always)]
pub(crate) fn absmax(x: &[f32]) -> f32 {
    f32::from_bits(x.iter().map(|x| (x.to_bits() & i32::MAX as u32) as i32).fold(0, i32::max) as u32)
}

/// `codes = clamp(round(x · factor), low, high)`, ties to even; `low` and `high` are integers within ±2²².
///
/// Clamping first gives the same codes. Then adding 1.5 · 2²³, where a float has no fraction bits left, makes
/// the addition itself round to even, and leaves the code in the sum's low bits: no call of a rounding
/// function.
#[inline(always)]
pub(crate) fn quantize(x: &[f32], factor: f32, [low, high]: [f32; 2], codes: &mut [i8]) {
    for (code, x) in codes.iter_mut().zip(x) {
        let value = clamped(x * factor, [low, high]);
        *code = (value + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i8;
    }
}

/// The code of [`quantize`] as a float, never a negative zero.
#[inline(always)]
pub(crate) fn rounded(value: f32, range: [f32; 2]) -> f32 {
    clamped(value, range) + MAGIC - MAGIC
}

/// 1.5 · 2²³.
const MAGIC: f32 = 12_582_912.0;

/// NaN is the lowest.
#[inline(always)]
fn clamped(value: f32, [low, high]: [f32; 2]) -> f32 {
    let value = if value > low { value } else { low };
    if value < high { value } else { high }
}

/// Words of ternary codes; see [`Primitives::pack`].
#[inline(always)]
pub(crate) fn pack(rows: &[&[f32]], factors: &[f32], words: &mut [i32]) {
    if let Ok(rows) = <[&[f32]; PACKED_ROWS]>::try_from(rows) {
        return pack_rows(rows, factors, words);
    }
    for (row, (w, factor)) in rows.iter().zip(factors.chunks(1)).enumerate() {
        pack_rows([*w], factor, &mut words[row..]);
    }
}

/// So many rows side by side.
#[inline(always)]
fn pack_rows<const ROWS: usize>(rows: [&[f32]; ROWS], factors: &[f32], words: &mut [i32]) {
    let inputs = rows[0].len();
    let whole = rows.map(|row| &row.as_chunks().0[..inputs / BLOCK_INPUTS]);
    let factors: [f32; ROWS] = from_fn(|row| factors[row]);
    let mut words = words.chunks_mut(TILE_ROWS);
    for (at, words) in (0..inputs / BLOCK_INPUTS).zip(&mut words) {
        for (row, factor) in factors.iter().enumerate() {
            words[row] = word_of(whole[row][at].map(|w| w * factor));
        }
    }
    if let Some(words) = words.next() {
        for (row, factor) in factors.iter().enumerate() {
            let mut padded = [0.0; BLOCK_INPUTS];
            let rest = rows[row].as_chunks::<BLOCK_INPUTS>().1;
            padded.iter_mut().zip(rest).for_each(|(padded, w)| *padded = w * factor);
            words[row] = word_of(padded);
        }
    }
}

/// The word of sixteen weights, multiplied by their factor. A digit counts comparisons in place of rounding: it is 2 above ½
/// and 0 below −½ or of NaN; at both ties it is 1.
#[inline(always)]
fn word_of(w: [f32; BLOCK_INPUTS]) -> i32 {
    let digits = w.map(|w| i32::from(w > 0.5) + i32::from(w >= -0.5));
    let bytes: [i32; 4] =
        from_fn(|k| digits[k] | digits[4 + k] << 2 | digits[8 + k] << 4 | digits[12 + k] << 6);
    bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24
}

/// The word of sixteen codes, as [`PackedTernary`](crate::PackedTernary) draws it.
#[inline(always)]
pub(crate) fn word(codes: [i8; BLOCK_INPUTS]) -> i32 {
    // Four bytes at once: they are next to each other in every plane.
    let planes = u128::from_le_bytes(codes.map(|code| code.wrapping_add(1) as u8));
    (planes | planes >> 30 | planes >> 60 | planes >> 90) as i32
}

/// `Σ|w|` by folding halves: while n > 1 { h = ⌈n/2⌉; a\[i\] += a\[i + h\] for i < n − h; n = h }. `folded`
/// is scratch of at least n numbers, so that memory is read once and the folds happen in cache. Where n allows it, the
/// first two folds happen while four parts of the list are read side by side, which memory serves faster than one.
#[inline(always)]
pub(crate) fn abs_sum(w: &[f32], folded: &mut [f32]) -> f32 {
    let part = w.len() / 4;
    if !w.len().is_multiple_of(4) || part == 0 {
        let folded = &mut folded[..w.len()];
        for (folded, w) in folded.iter_mut().zip(w) {
            *folded = w.abs();
        }
        return fold(folded);
    }
    let folded = &mut folded[..part];
    let parts: [&[f32]; 4] = from_fn(|i| &w[i * part..(i + 1) * part]);
    for (at, folded) in folded.iter_mut().enumerate() {
        let pair = |i: usize| parts[i][at].abs() + parts[i + 2][at].abs();
        *folded = pair(0) + pair(1);
    }
    fold(folded)
}

/// The sum of `a` in the order of [`abs_sum`]; 0 for an empty list. Overwrites `a`.
#[inline(always)]
pub(crate) fn fold(a: &mut [f32]) -> f32 {
    let mut n = a.len();
    while n > 1 {
        let half = n.div_ceil(2);
        let (low, high) = a[..n].split_at_mut(half);
        for (low, high) in low.iter_mut().zip(high) {
            *low += *high;
        }
        n = half;
    }
    a.first().copied().unwrap_or(0.0)
}

/// `Σ w·x`: product `i` is added to lane `i mod 32`, in the order of `i`; the 32 lanes are then folded.
/// Multiplication and addition round separately.
fn dot_f16(w: &[f16], x: &[f32]) -> f32 {
    let (w, w_rest) = w.as_chunks::<LANES>();
    let (x, x_rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for (w, x) in w.iter().zip(x) {
        add_products(&mut lanes, w, x);
    }
    add_products(&mut lanes, w_rest, x_rest);
    fold(&mut lanes)
}

/// Adds the products of up to 32 pairs to their lanes.
#[inline(always)]
pub(crate) fn add_products(lanes: &mut [f32; LANES], w: &[f16], x: &[f32]) {
    for ((lane, w), x) in lanes.iter_mut().zip(w).zip(x) {
        *lane += widen(*w) * x;
    }
}

/// The f32 of the same value: the exponent is rebiased by an exact multiplication, which also normalises
/// subnormals.
#[inline(always)]
fn widen(w: f16) -> f32 {
    let bits = u32::from(w.to_bits());
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    let infinite = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | infinite | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_is_exact_for_every_f16() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (widen(f16::from_bits(bits)), f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}");
        }
    }

    #[test]
    fn folding_halves_adds_in_the_documented_order() {
        // 5 → 3: (1 + 1e8, 1e8 − 1e8, −1e8); → 2: (1 + 1e8 − 1e8, 0); → 1. The first 1 is lost to rounding.
        assert_eq!(fold(&mut [1.0, 1e8, -1e8, 1e8, -1e8]), 0.0);
        // 4 → 2: (1e8 − 1e8, 1 + 0); → 1.
        assert_eq!(fold(&mut [1e8, 1.0, -1e8, 0.0]), 1.0);
        assert_eq!(fold(&mut []), 0.0);
        assert_eq!(fold(&mut [3.0]), 3.0);
    }
}
