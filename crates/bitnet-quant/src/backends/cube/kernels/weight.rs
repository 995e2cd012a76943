//! Weights by absmean: scales in the order of the definition, then codes, values and words.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

use super::{EPS_BITS, MAGNITUDE, UNITS, code, scale_at};
use crate::packed::TILE_ROWS;

/// How many numbers a cube folds in shared memory: 8 KiB, half of what every device has.
pub(in super::super) const FOLD: usize = 2048;

/// What is left of the number at `at` after some folds of a list of `n` magnitudes, or zero if it does not exist.
#[cube]
fn folded(w: &[f32], at: usize, n: usize, exists: bool, #[comptime] folds: usize) -> f32 {
    if comptime!(folds == 0) {
        let mut magnitude = 0.0f32;
        if exists {
            magnitude = f32::abs(w[at]);
        }
        magnitude
    } else {
        let before = comptime!(folds - 1);
        let mut len = n;
        #[unroll]
        for _ in 0..before {
            len = len.div_ceil(2);
        }
        let half = len.div_ceil(2);
        // Adding zero changes no magnitude, so the last of an odd number stays as it is.
        let low = folded(w, at, n, exists, before);
        low + folded(w, at + half, n, exists && at + half < len, before)
    }
}

/// Folds one list of magnitudes per cube: while n > 1, `h = ⌈n/2⌉`, `a[i] += a[i + h]` for i < n − h, `n = h`.
///
/// The first `folds` of them happen while the list is read, so that the rest, at most `capacity` numbers, fits into
/// shared memory. `finish` divides by `count` and applies eps: the scale, and not the sum.
///
/// # Shapes
/// - `w`: `[lists, n]`
/// - `out`: `[lists]`, or with `tiled`, `[tiles, segments, 32]` for rows of `segments` lists each
#[cube(launch, address_type = "dynamic")]
pub(in super::super) fn absmean(
    w: &[f32],
    out: &mut [f32],
    lists: usize,
    n: usize,
    segments: usize,
    count: f32,
    #[comptime] folds: usize,
    #[comptime] capacity: usize,
    #[comptime] finish: bool,
    #[comptime] tiled: bool,
) {
    let list = CUBE_POS;
    if list >= lists {
        terminate!();
    }
    let units = comptime!(usize::min(capacity, UNITS));
    let w = &w[list * n..(list + 1) * n];
    let mut len = n;
    #[unroll]
    for _ in 0..folds {
        len = len.div_ceil(2);
    }
    let mut shared = Shared::new_slice(capacity);
    let mut at = UNIT_POS as usize;
    while at < len {
        shared[at] = folded(w, at, n, true, folds);
        at += units;
    }
    sync_cube();
    while len > 1 {
        let half = len.div_ceil(2);
        let mut at = UNIT_POS as usize;
        while at + half < len {
            shared[at] += shared[at + half];
            at += units;
        }
        sync_cube();
        len = half;
    }
    if UNIT_POS == 0 {
        let mut value = shared[0];
        if finish {
            // As integers, so that NaN stays.
            let mean = u32::reinterpret(value / count) & MAGNITUDE;
            value = f32::reinterpret(max(mean, EPS_BITS));
        }
        let at = if tiled { scale_at(list / segments, list % segments, segments, false) } else { list };
        out[at] = value;
    }
}

/// `w + λ·(Q(w) − w)`, one unit per value; at λ = 1, which `quantized` says, exactly `Q(w)`.
///
/// # Shapes
/// - `w`, `y`: `[d_output, d_input]`, `scales`: `[1]` or `[tiles, segments, 32]`
#[cube(launch, address_type = "dynamic")]
pub(in super::super) fn blend<Y: Float>(
    w: &[f32],
    scales: &[f32],
    y: &mut [Y],
    d_output: usize,
    d_input: usize,
    segment: usize,
    lambda: f32,
    #[comptime] per_tensor: bool,
    #[comptime] quantized: bool,
    #[define(Y)] _type: ElemType,
) {
    let (row, input) = (ABSOLUTE_POS / d_input, ABSOLUTE_POS % d_input);
    if row >= d_output {
        terminate!();
    }
    let scale = scales[scale_at(row, input / segment, d_input / segment, per_tensor)];
    let w = w[ABSOLUTE_POS];
    let value = code(w, f32::recip(scale), -1.0, 1.0) * scale;
    y[ABSOLUTE_POS] = Y::cast_from(if quantized { value } else { w + (value - w) * lambda });
}

/// The codes at two bits each, one unit per word, in the order of [`bitnet_cpu::PackedTernary`].
///
/// # Shapes
/// - `w`: `[d_output, d_input]`, `scales`: `[1]` or `[tiles, segments, 32]`
/// - `words`: `[tiles, segments · segment_blocks, 32]`
#[cube(launch, address_type = "dynamic")]
pub(in super::super) fn pack(
    w: &[f32],
    scales: &[f32],
    words: &mut [u32],
    d_output: usize,
    d_input: usize,
    segment: usize,
    segment_blocks: usize,
    #[comptime] per_tensor: bool,
) {
    let segments = d_input / segment;
    let blocks = segments * segment_blocks;
    let (tile, lane) = (ABSOLUTE_POS / (blocks * TILE_ROWS), ABSOLUTE_POS % TILE_ROWS);
    if tile >= d_output.div_ceil(TILE_ROWS) {
        terminate!();
    }
    let row = tile * TILE_ROWS + lane;
    let block = ABSOLUTE_POS / TILE_ROWS % blocks;
    let (at, start) = (block / segment_blocks, block % segment_blocks * 16);
    let exists = row < d_output;
    let mut factor = 0.0f32;
    if exists {
        factor = f32::recip(scales[scale_at(row, at, segments, per_tensor)]);
    }
    let mut word = 0u32;
    #[unroll]
    for place in 0..16usize {
        // The padding is code 0, the digit 1.
        let mut digit = 1u32;
        if exists && start + place < segment {
            let w = w[row * d_input + at * segment + start + place];
            digit = u32::cast_from(code(w, factor, -1.0, 1.0) + 1.0);
        }
        // Byte k holds the inputs k, 4 + k, 8 + k and 12 + k.
        word |= digit << comptime!((8 * (place % 4) + 2 * (place / 4)) as u32);
    }
    words[ABSOLUTE_POS] = word;
}
