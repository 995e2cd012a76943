//! Products of f32 with codes, in tiles of bf16.
//!
//! An f32 is the sum of three bf16: the upper eight of its 24 bits, the next eight, and the last. A code is one bf16. So each
//! term is three products of bf16, which are exact, added up in f32; and tiles multiply those several times as fast.

use std::array::from_fn;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use crate::Kernel;
use crate::gemm::{Matrix, Right, SIDE, code_of, padded};
use crate::kernel::vectorized;
use crate::packed::{BLOCK_INPUTS, TILE_ROWS};
use crate::x86::AmxTiles;

/// Into how many bf16 a number is split.
pub(crate) const PARTS: usize = 3;
/// Tiles of steps after which the sums are put aside: those of a block's rows then stay in the first cache.
const RUN: usize = 4;

/// Sixteen rows of 64 bytes: 32 bf16 of a left factor, or of a right one 16 columns of two steps, or 16 sums.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Tile([[u32; 16]; 16]);

const ZEROS: Tile = Tile([[0; 16]; 16]);

/// A part of a product, on this thread: the rows of `a` from `row` on times the columns of `b` from `column` on, into
/// equally long rows. `scales` are those of `b`.
pub(crate) fn block(
    tiles: &AmxTiles,
    a: Matrix<'_>,
    (b, scales): (Right<'_>, &[f32]),
    [row, column]: [usize; 2],
    k: usize,
    out: &mut [&mut [MaybeUninit<f32>]],
) {
    type Packed = (Vec<[[Tile; 2]; PARTS]>, Vec<[Tile; 2]>, Vec<[[Tile; 2]; 2]>);
    thread_local! {
        static PACKED: RefCell<Packed> = const { RefCell::new((Vec::new(), Vec::new(), Vec::new())) };
    }
    let Some(columns) = out.first().map(|out| out.len()) else {
        return;
    };
    let kernel = Kernel::new();
    let [n_rows, n_columns] = [out.len(), columns].map(|n| n.div_ceil(SIDE));
    PACKED.with_borrow_mut(|(left, right, sums)| {
        sums.clear();
        sums.resize(n_rows * n_columns, [[ZEROS; 2]; 2]);
        for first in (0..k).step_by(RUN * SIDE) {
            let steps = first..k.min(first + RUN * SIDE);
            let run = steps.len().div_ceil(SIDE);
            left.resize((n_rows * run).max(left.len()), [[ZEROS; 2]; PARTS]);
            for (i, packed) in left.chunks_exact_mut(run).take(n_rows).enumerate() {
                let rows = row + i * SIDE..row + out.len().min((i + 1) * SIDE);
                pack_left(kernel, a, scales, rows, steps.clone(), packed);
            }
            right.resize((n_columns * run).max(right.len()), [ZEROS; 2]);
            for (j, packed) in right.chunks_exact_mut(run).take(n_columns).enumerate() {
                let columns = column + j * SIDE..column + columns.min((j + 1) * SIDE);
                pack_right(kernel, b, columns, steps.clone(), packed);
            }
            for (left, sums) in left.chunks_exact(run).zip(sums.chunks_exact_mut(n_columns)) {
                for (right, sums) in right.chunks_exact(run).zip(sums) {
                    tiles.add_products(left, right, sums);
                }
            }
        }
        for (i, out) in out.iter_mut().enumerate() {
            for (out, sums) in out.chunks_mut(SIDE).zip(&sums[i / SIDE * n_columns..]) {
                let tiles = &sums[i % SIDE / 16];
                for (out, tile) in out.chunks_mut(16).zip(tiles) {
                    let sums = tile.0[i % 16].map(|sum| MaybeUninit::new(f32::from_bits(sum)));
                    match <&mut [MaybeUninit<f32>; 16]>::try_from(&mut *out) {
                        Ok(out) => *out = sums,
                        Err(_) => out.copy_from_slice(&sums[..out.len()]),
                    }
                }
            }
        }
    });
}

vectorized! {
    /// Up to 32 rows of `a`, times the scales of their steps, in parts; what is missing is zero.
    fn pack_left(
        a: Matrix<'_>,
        scales: &[f32],
        rows: Range<usize>,
        steps: Range<usize>,
        packed: &mut [[[Tile; 2]; PARTS]],
    ) {
        for (first, packed) in steps.clone().step_by(SIDE).zip(packed) {
            let steps = first..steps.end.min(first + SIDE);
            let scales: [f32; SIDE] = match scales {
                [scale] => [*scale; SIDE],
                scales => padded(&scales[steps.clone()]),
            };
            let mut values = [[0.0; SIDE]; SIDE];
            if a.transposed {
                for (values, step) in values.iter_mut().zip(steps) {
                    *values = padded(&a.values[step * a.stride + rows.start..][..rows.len()]);
                }
                transpose(&mut values);
            } else {
                for (values, row) in values.iter_mut().zip(rows.clone()) {
                    *values = padded(&a.values[row * a.stride + steps.start..][..steps.len()]);
                }
            }
            for (row, values) in values.iter().enumerate() {
                let mut rest: [f32; SIDE] = from_fn(|step| values[step] * scales[step]);
                for tiles in packed.iter_mut() {
                    let parts: &mut [u16; SIDE] = bytemuck::cast_mut(&mut tiles[row / 16].0[row % 16]);
                    for (part, rest) in parts.iter_mut().zip(&mut rest) {
                        // Cut off and not rounded: so the parts have eight bits each, and none is larger than the number.
                        let bits = rest.to_bits();
                        *part = (bits >> 16) as u16;
                        *rest -= f32::from_bits(bits & 0xffff_0000);
                    }
                }
            }
        }
    }
}

vectorized! {
    /// Up to 32 columns of codes; what is missing is zero.
    fn pack_right(b: Right<'_>, columns: Range<usize>, steps: Range<usize>, packed: &mut [[Tile; 2]]) {
        /// Both as bf16, which small integers are, the first in the lower half.
        #[inline(always)]
        fn pair(first: f32, second: f32) -> u32 {
            first.to_bits() >> 16 | second.to_bits() & 0xffff_0000
        }
        match b {
            Right::Codes { codes, scales } => {
                let n = codes.len() / scales.len();
                let row = |step: usize| -> [i8; SIDE] {
                    match step < steps.end {
                        true => padded(&codes[step * n + columns.start..][..columns.len()]),
                        false => [0; SIDE],
                    }
                };
                for (first, tiles) in steps.clone().step_by(SIDE).zip(packed) {
                    for at in 0..16 {
                        let (codes, next) = (row(first + 2 * at), row(first + 2 * at + 1));
                        for (column, (code, next)) in codes.into_iter().zip(next).enumerate() {
                            tiles[column / 16].0[at][column % 16] = pair(f32::from(code), f32::from(next));
                        }
                    }
                }
            }
            Right::Ternary(b) => {
                let (words, blocks) = (b.words(), b.shape.blocks());
                for (first, tiles) in steps.clone().step_by(SIDE).zip(packed) {
                    for (tile, block) in tiles.iter_mut().zip(columns.start / BLOCK_INPUTS..) {
                        let word = |step: usize| match step < steps.end && block < blocks {
                            true => words[(step / TILE_ROWS * blocks + block) * TILE_ROWS + step % TILE_ROWS],
                            false => NO_CODES,
                        };
                        for (at, pairs) in tile.0.iter_mut().enumerate() {
                            let (word, next) = (word(first + 2 * at), word(first + 2 * at + 1));
                            for (i, lane) in pairs.iter_mut().enumerate() {
                                *lane = pair(code_of(word, i), code_of(next, i));
                            }
                        }
                    }
                }
            }
            Right::Floats(_) => unreachable!("only codes have scales"),
        }
    }
}

/// Rows for columns, in blocks of sixteen.
#[inline(always)]
fn transpose(values: &mut [[f32; SIDE]; SIDE]) {
    let block = |values: &[[f32; SIDE]; SIDE], [row, column]: [usize; 2]| -> [[f32; 16]; 16] {
        from_fn(|i| from_fn(|j| values[row + i][column + j]))
    };
    let blocks = [[0, 0], [0, 16], [16, 0], [16, 16]].map(|at| (at, block(values, at)));
    for ([row, column], block) in blocks {
        let block = swapped::<1>(swapped::<2>(swapped::<4>(swapped::<8>(block))));
        for (values, line) in values[column..].iter_mut().zip(block) {
            values[row..row + 16].copy_from_slice(&line);
        }
    }
}

/// Quarters off the diagonal of each square of `2 · HALF` rows, exchanged.
#[inline(always)]
fn swapped<const HALF: usize>(rows: [[f32; 16]; 16]) -> [[f32; 16]; 16] {
    from_fn(|i| {
        let (low, high) = (&rows[i & !HALF], &rows[i | HALF]);
        match i & HALF {
            0 => from_fn(|j| if j & HALF == 0 { low[j] } else { high[j ^ HALF] }),
            _ => from_fn(|j| if j & HALF == 0 { low[j ^ HALF] } else { high[j] }),
        }
    })
}

/// A word of sixteen zeros.
const NO_CODES: i32 = 0x5555_5555;
