//! The product with a packed weight.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

use super::scale_at;
use crate::packed::TILE_ROWS;

/// Into how many parts a row's inputs are split: a cube has this many units for each row of a tile.
pub(in super::super) const SPLITS: usize = 8;

/// Four codes of a word, one per byte, each −1, 0 or 1: the digits 0, 1, 2 of bits 0 and 1 of every byte, less 1.
#[cube]
fn ternary_bytes(word: u32) -> i32 {
    // No byte carries into the next: 2 + 0x7f < 0x100.
    i32::reinterpret(((word & 0x0303_0303) + 0x7f7f_7f7f) ^ 0x8080_8080)
}

/// Adds the products of one block, 16 inputs of one row, to the sums of several tokens.
#[cube]
fn add_block(
    sums: &mut Array<i32>,
    word: u32,
    codes: &[Vector<u32, Const<4>>],
    block: usize,
    blocks: usize,
    first_token: usize,
    tokens: usize,
    #[comptime] cube_tokens: usize,
) {
    let w0 = ternary_bytes(word);
    let w1 = ternary_bytes(word >> 2);
    let w2 = ternary_bytes(word >> 4);
    let w3 = ternary_bytes(word >> 6);
    #[unroll]
    for t in 0..cube_tokens {
        // Beyond the last token its sums are computed again, and not written.
        let token = min(first_token + t, tokens - 1);
        let x = codes[token * blocks + block];
        let sum = dp4a(i32::reinterpret(x.extract(0usize)), w0, sums[t]);
        let sum = dp4a(i32::reinterpret(x.extract(1usize)), w1, sum);
        let sum = dp4a(i32::reinterpret(x.extract(2usize)), w2, sum);
        sums[t] = dp4a(i32::reinterpret(x.extract(3usize)), w3, sum);
    }
}

/// `acc · (w_scale · x_scale)` where a row has one scale: one cube per tile of 32 rows and `cube_tokens` tokens.
///
/// A unit takes every [`SPLITS`]-th block of its row, and the sums of the splits, integers, are added at the end.
///
/// # Shapes
/// - `words`: `[tiles, blocks, 32]`, `w_scales`: `[1]` or `[tiles, 32]`
/// - `codes`: `[tokens, blocks]` of four words, `x_scales`: `[tokens]`
/// - `y`: `[tokens, d_output]`
#[cube(launch, address_type = "dynamic")]
pub(in super::super) fn product<Y: Float>(
    words: &[u32],
    w_scales: &[f32],
    codes: &[Vector<u32, Const<4>>],
    x_scales: &[f32],
    y: &mut [Y],
    tokens: usize,
    d_output: usize,
    blocks: usize,
    #[comptime] per_tensor: bool,
    #[comptime] cube_tokens: usize,
    #[define(Y)] _type: ElemType,
) {
    let tiles = d_output.div_ceil(TILE_ROWS);
    let (tile, first_token) = (CUBE_POS % tiles, CUBE_POS / tiles * cube_tokens);
    if first_token >= tokens {
        terminate!();
    }
    let (lane, split) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let mut sums = Array::<i32>::new(cube_tokens);
    #[unroll]
    for t in 0..cube_tokens {
        sums[t] = 0;
    }
    let mut block = split;
    while block < blocks {
        let word = words[(tile * blocks + block) * TILE_ROWS + lane];
        add_block(&mut sums, word, codes, block, blocks, first_token, tokens, cube_tokens);
        block += SPLITS;
    }
    let mut shared = Shared::new_slice(SPLITS * cube_tokens * TILE_ROWS);
    #[unroll]
    for t in 0..cube_tokens {
        shared[(split * cube_tokens + t) * TILE_ROWS + lane] = sums[t];
    }
    sync_cube();
    // From here the second axis of the cube counts tokens.
    let (t, row) = (split, tile * TILE_ROWS + lane);
    let token = first_token + t;
    if t < cube_tokens && token < tokens && row < d_output {
        let mut sum = 0i32;
        for split in 0..SPLITS {
            sum += shared[(split * cube_tokens + t) * TILE_ROWS + lane];
        }
        let scale = w_scales[scale_at(row, 0, 1, per_tensor)] * x_scales[token];
        y[token * d_output + row] = Y::cast_from(f32::cast_from(sum) * scale);
    }
}

/// [`product`] where a row has a scale per segment: the segments' products are added in ascending order.
///
/// [`SPLITS`] segments are multiplied at a time, each by one split, and then added in their order.
///
/// # Shapes
/// - `words`: `[tiles, segments · segment_blocks, 32]`, `w_scales`: `[tiles, segments, 32]`
/// - the others as in [`product`]
#[cube(launch, address_type = "dynamic")]
pub(in super::super) fn product_of_groups<Y: Float>(
    words: &[u32],
    w_scales: &[f32],
    codes: &[Vector<u32, Const<4>>],
    x_scales: &[f32],
    y: &mut [Y],
    tokens: usize,
    d_output: usize,
    segments: usize,
    segment_blocks: usize,
    #[comptime] cube_tokens: usize,
    #[define(Y)] _type: ElemType,
) {
    let blocks = segments * segment_blocks;
    let tiles = d_output.div_ceil(TILE_ROWS);
    let (tile, first_token) = (CUBE_POS % tiles, CUBE_POS / tiles * cube_tokens);
    if first_token >= tokens {
        terminate!();
    }
    let (lane, split) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let row = tile * TILE_ROWS + lane;
    let mut shared = Shared::new_slice(SPLITS * cube_tokens * TILE_ROWS);
    let mut sums = Array::<i32>::new(cube_tokens);
    let mut total = 0.0f32;
    let mut first_segment = 0usize.runtime();
    while first_segment < segments {
        let segment = first_segment + split;
        if segment < segments {
            #[unroll]
            for t in 0..cube_tokens {
                sums[t] = 0;
            }
            for at in 0..segment_blocks {
                let block = segment * segment_blocks + at;
                let word = words[(tile * blocks + block) * TILE_ROWS + lane];
                add_block(&mut sums, word, codes, block, blocks, first_token, tokens, cube_tokens);
            }
            let scale = w_scales[scale_at(row, segment, segments, false)];
            #[unroll]
            for t in 0..cube_tokens {
                let x_scale = x_scales[min(first_token + t, tokens - 1)];
                shared[(split * cube_tokens + t) * TILE_ROWS + lane] =
                    f32::cast_from(sums[t]) * (scale * x_scale);
            }
        }
        sync_cube();
        // Here the second axis of the cube counts tokens.
        if split < cube_tokens {
            for at in 0..min(segments - first_segment, SPLITS) {
                total += shared[(at * cube_tokens + split) * TILE_ROWS + lane];
            }
        }
        sync_cube();
        first_segment += SPLITS;
    }
    let token = first_token + split;
    if split < cube_tokens && token < tokens && row < d_output {
        y[token * d_output + row] = Y::cast_from(total);
    }
}

/// The values of a packed weight, one unit each: `codes · scale`, or without `scaled` the codes alone.
///
/// # Shapes
/// - `words`: `[tiles, segments · segment_blocks, 32]`, `scales`: `[1]` or `[tiles, segments, 32]`
/// - `w`: `[d_output, d_input]`
#[cube(launch, address_type = "dynamic")]
pub(in super::super) fn dequantize<W: Float>(
    words: &[u32],
    scales: &[f32],
    w: &mut [W],
    d_output: usize,
    d_input: usize,
    segment: usize,
    segment_blocks: usize,
    #[comptime] per_tensor: bool,
    #[comptime] scaled: bool,
    #[define(W)] _type: ElemType,
) {
    let (row, input) = (ABSOLUTE_POS / d_input, ABSOLUTE_POS % d_input);
    if row >= d_output {
        terminate!();
    }
    let (at, within) = (input / segment, input % segment);
    let segments = d_input / segment;
    let block = at * segment_blocks + within / 16;
    let word = words[(row / TILE_ROWS * segments * segment_blocks + block) * TILE_ROWS + row % TILE_ROWS];
    // Byte k holds the inputs k, 4 + k, 8 + k and 12 + k, from its lowest bits up.
    let place = (within % 16) as u32;
    let digit = (word >> (8 * (place % 4) + 2 * (place / 4))) & 3;
    let code = f32::cast_from(digit) - 1.0;
    let scale = if scaled { scales[scale_at(row, at, segments, per_tensor)] } else { 1.0f32.runtime() };
    w[ABSOLUTE_POS] = W::cast_from(code * scale);
}

/// The codes of a packed weight as quantized tokens have theirs, a byte each and four in a word: one unit per word.
///
/// # Shapes
/// - `words`: `[tiles, blocks, 32]`; `codes`: `[d_output, 4 · blocks]`
#[cube(launch, address_type = "dynamic")]
pub(in super::super) fn bytes(words: &[u32], codes: &mut [u32], d_output: usize, blocks: usize) {
    let (row, at) = (ABSOLUTE_POS / (4 * blocks), ABSOLUTE_POS % (4 * blocks));
    if row >= d_output {
        terminate!();
    }
    let word = words[(row / TILE_ROWS * blocks + at / 4) * TILE_ROWS + row % TILE_ROWS];
    codes[ABSOLUTE_POS] = u32::reinterpret(ternary_bytes(word >> (2 * (at % 4) as u32)));
}

/// `acc · (w_scale · x_scale)` of accumulators that a matrix product of codes gave, one unit per value.
///
/// # Shapes
/// - `sums`, f32 or i32, `y`: `[tokens, d_output]`, `w_scales`: `[1]` or `[tiles, 32]`, `x_scales`: `[tokens]`
#[cube(launch, address_type = "dynamic")]
pub(in super::super) fn scale<S: Numeric, Y: Float>(
    sums: &[S],
    w_scales: &[f32],
    x_scales: &[f32],
    y: &mut [Y],
    tokens: usize,
    d_output: usize,
    #[comptime] per_tensor: bool,
    #[define(S, Y)] _types: [ElemType; 2],
) {
    let (token, row) = (ABSOLUTE_POS / d_output, ABSOLUTE_POS % d_output);
    if token >= tokens {
        terminate!();
    }
    let scale = w_scales[scale_at(row, 0, 1, per_tensor)] * x_scales[token];
    y[ABSOLUTE_POS] = Y::cast_from(f32::cast_from(sums[ABSOLUTE_POS]) * scale);
}
