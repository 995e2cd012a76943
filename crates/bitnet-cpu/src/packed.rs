//! Ternary codes, two bits each, in the order in which the kernels read them.

use rayon::prelude::*;

use crate::error::check_length;
use crate::shape::Shape;
use crate::{CpuError, Granularity, TernaryWeight};

/// Output rows of one tile.
pub(crate) const TILE_ROWS: usize = 32;
/// Inputs of one block.
pub(crate) const BLOCK_INPUTS: usize = 16;

/// The codes of 32 rows × 16 inputs; see [`PackedTernary`] for the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Block(pub(crate) [u8; TILE_ROWS * BLOCK_INPUTS / 4]);

const _: () = assert!(size_of::<Block>() == 128);

/// A ternary weight `[d_output, d_input]` at two bits a weight.
///
/// The kernels keep one output row per 32-bit lane: a lane's four bytes times four consecutive activations,
/// broadcast to all lanes, is one step of a `u8 × i8` dot product instruction. So no sum ever crosses lanes,
/// a group of inputs may end at any block, and one decoded block serves any number of tokens.
///
/// ```text
/// weight   tiles of 32 rows, one after the other; a tile is a run of blocks, in the order of its inputs
/// block    32 rows × 16 inputs, 128 bytes, aligned to 64; byte 4·r + k (r < 32, k < 4) belongs to row r:
///
///          bit    7      6   5      4   3      2   1      0
///               | input 12+k | input 8+k | input 4+k | input k |     digit = code + 1: 0, 1 or 2
/// ```
///
/// A run of inputs that shares a scale (the group, or else the row) is padded with code 0 to whole blocks,
/// and the rows with code 0 to whole tiles. The size is `⌈d_output/32⌉ · ⌈d_input/16⌉ · 128` bytes, which is
/// `d_output · d_input / 4` without padding. The scales are kept one per row (or group of a row) in the order
/// of the tiles.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedTernary {
    pub(crate) shape: Shape,
    pub(crate) blocks: Vec<Block>,
    /// Of the rows of each tile (outer) and segment (inner).
    pub(crate) scales: Vec<[f32; TILE_ROWS]>,
}

impl PackedTernary {
    /// Packs ternary codes and their scales: `w ≈ codes · scale`.
    ///
    /// # Shapes
    /// - `codes`: `[d_output, d_input]`, each −1, 0 or 1
    /// - `scales`: as [`Granularity`] lays them out
    ///
    /// # Errors
    /// - [`CpuError::Shape`] or [`CpuError::Group`] for a shape that cannot be packed
    /// - [`CpuError::Length`] if `codes` or `scales` does not have the shape
    /// - [`CpuError::Code`] for the first code outside −1..=1
    pub fn pack(
        codes: &[i8],
        scales: &[f32],
        d_output: usize,
        d_input: usize,
        granularity: Granularity,
    ) -> Result<Self, CpuError> {
        let shape = Shape::new(d_output, d_input, granularity)?;
        check_length("codes", codes.len(), shape.len())?;
        check_length("scales", scales.len(), shape.scales())?;
        let tiles = d_output.div_ceil(TILE_ROWS);
        let per_tile = shape.segments() * shape.segment().div_ceil(BLOCK_INPUTS);
        // 0x55 is digit 1, code 0, four times: the padding.
        let mut blocks = vec![Block([0x55; _]); tiles * per_tile];
        let valid = blocks
            .par_chunks_mut(per_tile)
            .zip(codes.par_chunks(TILE_ROWS * d_input))
            .with_min_len((1 << 18) / (TILE_ROWS * d_input) + 1)
            .map(|(tile, codes)| pack_tile(tile, codes, &shape))
            .reduce(|| true, |a, b| a & b);
        if !valid && let Some(at) = codes.iter().position(|code| !(-1..=1).contains(code)) {
            return Err(CpuError::Code { row: at / d_input, input: at % d_input, found: codes[at] });
        }
        let segments = shape.segments();
        let mut packed = Self { shape, blocks, scales: vec![[0.0; _]; tiles * segments] };
        for row in 0..d_output {
            for segment in 0..segments {
                let tile = row / TILE_ROWS * segments + segment;
                packed.scales[tile][row % TILE_ROWS] = scales[shape.scale_at(row, segment)];
            }
        }
        Ok(packed)
    }

    /// The codes and scales again.
    pub fn unpack(&self) -> TernaryWeight {
        let Shape { d_output, d_input, .. } = self.shape;
        let mut codes = vec![0; d_output * d_input];
        let segments = self.shape.segments();
        let tiles = self.blocks.chunks(segments * self.blocks_per_segment());
        for (rows, tile) in codes.chunks_mut(TILE_ROWS * d_input).zip(tiles) {
            for (row, codes) in rows.chunks_mut(d_input).enumerate() {
                let runs =
                    codes.chunks_mut(self.shape.segment()).flat_map(|run| run.chunks_mut(BLOCK_INPUTS));
                for (codes, block) in runs.zip(tile) {
                    for (at, code) in codes.iter_mut().enumerate() {
                        *code = (block.0[4 * row + at % 4] >> (at / 4 * 2) & 3) as i8 - 1;
                    }
                }
            }
        }
        let mut scales = vec![0.0; self.shape.scales()];
        for row in 0..d_output {
            for segment in 0..segments {
                let tile = row / TILE_ROWS * segments + segment;
                scales[self.shape.scale_at(row, segment)] = self.scales[tile][row % TILE_ROWS];
            }
        }
        TernaryWeight { codes, scales }
    }

    /// Output rows.
    pub fn d_output(&self) -> usize {
        self.shape.d_output
    }

    /// Inputs of a row.
    pub fn d_input(&self) -> usize {
        self.shape.d_input
    }

    /// The part of the weight that shares one scale.
    pub fn granularity(&self) -> Granularity {
        self.shape.granularity
    }

    /// Bytes that the packed codes and scales take.
    pub fn size_in_bytes(&self) -> usize {
        size_of_val(self.blocks.as_slice()) + size_of_val(self.scales.as_slice())
    }

    pub(crate) fn blocks_per_segment(&self) -> usize {
        self.shape.segment().div_ceil(BLOCK_INPUTS)
    }
}

/// Packs up to 32 rows of codes; false if one of them is not ternary.
fn pack_tile(tile: &mut [Block], codes: &[i8], shape: &Shape) -> bool {
    let mut invalid = 0;
    for (row, codes) in codes.chunks(shape.d_input).enumerate() {
        let runs = codes.chunks(shape.segment()).flat_map(|run| run.chunks(BLOCK_INPUTS));
        for (codes, block) in runs.zip(tile.iter_mut()) {
            let mut digits = [1; BLOCK_INPUTS];
            for (digit, code) in digits.iter_mut().zip(codes) {
                *digit = code.wrapping_add(1) as u8;
            }
            invalid |= digits.iter().fold(0, |any, &digit| any | u8::from(digit > 2));
            // Four bytes at once: they are next to each other in every plane.
            let planes = u128::from_le_bytes(digits);
            let bytes = planes | planes >> 30 | planes >> 60 | planes >> 90;
            block.0[4 * row..][..4].copy_from_slice(&(bytes as u32).to_le_bytes());
        }
    }
    invalid == 0
}
