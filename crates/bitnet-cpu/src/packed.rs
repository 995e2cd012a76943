//! Ternary codes, two bits each, in the order in which the kernels read them.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::error::check_length;
use crate::memory::zeros_in_huge_pages;
use crate::scalar::word;
use crate::shape::Shape;
use crate::{CpuError, Granularity, Kernel, TernaryWeight};

/// Output rows of one tile.
pub(crate) const TILE_ROWS: usize = 32;
/// Inputs of one block.
pub(crate) const BLOCK_INPUTS: usize = 16;

/// Rows that are read side by side when they are packed.
pub(crate) const PACKED_ROWS: usize = 8;

/// The codes of 32 rows × 16 inputs; see [`PackedTernary`] for the order.
pub(crate) type Block = [u8; TILE_ROWS * BLOCK_INPUTS / 4];

/// A ternary weight `[d_output, d_input]` at two bits a weight.
///
/// The kernels keep one output row per 32-bit lane: a lane's four bytes times four consecutive activations,
/// broadcast to all lanes, is one step of a `u8 × i8` dot product instruction. So no sum ever crosses lanes,
/// a group of inputs may end at any block, and one decoded block serves any number of tokens.
///
/// ```text
/// words    [tiles, blocks, 32]: tiles of 32 rows; a tile is a run of blocks of 16 inputs, in their order
/// word r   of a block belongs to row r of its tile; its byte k, counted from the lowest, holds
///
///          bit    7      6   5      4   3      2   1      0
///               | input 12+k | input 8+k | input 4+k | input k |     digit = code + 1: 0, 1 or 2
///
/// scales   [1] per tensor, otherwise [tiles, segments, 32]: a scale per row and segment
/// ```
///
/// A segment is the run of inputs that shares a scale: the group, or else the row. Segments are padded with code 0
/// to whole blocks, and the rows with code 0 and scale 0 to whole tiles. The words take `⌈d_output/32⌉ ·
/// ⌈d_input/16⌉ · 128` bytes, which is `d_output · d_input / 4` without padding. They may belong to somebody else,
/// as to a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedTernary<'a> {
    pub(crate) shape: Shape,
    words: Cow<'a, [i32]>,
    scales: Cow<'a, [f32]>,
}

impl<'a> PackedTernary<'a> {
    /// Packs ternary codes and their scales: `w ≈ codes · scale`.
    ///
    /// # Shapes
    /// - `codes`: `[d_output, d_input]`, each −1, 0 or 1
    /// - `scales`: `[1]`, `[d_output]` or `[d_output, d_input / group]`, as `granularity` says
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
    ) -> Result<PackedTernary<'static>, CpuError> {
        let shape = Shape::new(d_output, d_input, granularity)?;
        check_length("codes", codes.len(), shape.len())?;
        check_length("scales", scales.len(), shape.scales())?;
        let mut words = zeros_in_huge_pages(shape.words());
        let per_tile = shape.blocks() * TILE_ROWS;
        let valid = words
            .par_chunks_mut(per_tile)
            .zip(codes.par_chunks(TILE_ROWS * d_input))
            .with_min_len((1 << 18) / (TILE_ROWS * d_input) + 1)
            .map(|(tile, codes)| pack_tile(tile, codes, &shape))
            .reduce(|| true, |a, b| a & b);
        if !valid && let Some(at) = codes.iter().position(|code| !(-1..=1).contains(code)) {
            return Err(CpuError::Code { row: at / d_input, input: at % d_input, found: codes[at] });
        }
        Ok(PackedTernary { shape, words: words.into(), scales: tiled(scales, &shape).into() })
    }

    /// A weight that was packed before, in memory that belongs to somebody else.
    ///
    /// # Shapes
    /// - `words`, `scales`: those of [`words`](Self::words) and [`scales`](Self::scales)
    ///
    /// # Errors
    /// [`CpuError::Shape`], [`CpuError::Group`] and [`CpuError::Length`], as [`pack`](Self::pack). Words that no packing
    /// gives make wrong products, nothing worse.
    pub fn from_words(
        words: &'a [i32],
        scales: &'a [f32],
        d_output: usize,
        d_input: usize,
        granularity: Granularity,
    ) -> Result<Self, CpuError> {
        let shape = Shape::new(d_output, d_input, granularity)?;
        check_length("words", words.len(), shape.words())?;
        check_length("scales", scales.len(), shape.tiled_scales())?;
        Ok(Self { shape, words: words.into(), scales: scales.into() })
    }

    /// The codes and scales again.
    pub fn unpack(&self) -> TernaryWeight {
        let Shape { d_output, d_input, granularity } = self.shape;
        let mut codes = vec![0; d_output * d_input];
        let (blocks, segment) = (self.shape.blocks(), self.shape.segment());
        codes.par_chunks_mut(TILE_ROWS * d_input).zip(self.blocks().par_chunks(blocks)).for_each(
            |(rows, tile)| {
                for (row, codes) in rows.chunks_mut(d_input).enumerate() {
                    let runs = codes.chunks_mut(segment).flat_map(|run| run.chunks_mut(BLOCK_INPUTS));
                    for (codes, block) in runs.zip(tile) {
                        for (at, code) in codes.iter_mut().enumerate() {
                            *code = (block[4 * row + at % 4] >> (at / 4 * 2) & 3) as i8 - 1;
                        }
                    }
                }
            },
        );
        let scales = match granularity {
            Granularity::Tensor => self.scales.to_vec(),
            _ => (0..self.shape.scales()).map(|i| self.scales[self.shape.tiled_scale(i)]).collect(),
        };
        TernaryWeight { codes, scales }
    }

    /// The weights `[d_output, d_input]`: `codes · scale`.
    pub fn dequantize(&self) -> Vec<f32> {
        let TernaryWeight { codes, scales } = self.unpack();
        let (segments, segment) = (self.shape.segments(), self.shape.segment());
        let mut weights = vec![0.0; codes.len()];
        weights.par_chunks_mut(segment).zip(codes.par_chunks(segment)).enumerate().for_each(
            |(at, (weights, codes))| {
                let scale = scales[self.shape.scale_at(at / segments, at % segments)];
                for (weight, &code) in weights.iter_mut().zip(codes) {
                    *weight = f32::from(code) * scale;
                }
            },
        );
        weights
    }

    /// The packed codes, as drawn above.
    pub fn words(&self) -> &[i32] {
        &self.words
    }

    /// The scales, as drawn above.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The packed codes and the scales themselves.
    pub fn into_parts(self) -> (Vec<i32>, Vec<f32>) {
        (self.words.into_owned(), self.scales.into_owned())
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
        size_of_val(self.words()) + size_of_val(self.scales())
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        bytemuck::cast_slice(&self.words).as_chunks().0
    }
}

impl Kernel {
    /// Quantizes a weight by [`absmean`](Self::absmean) and packs the codes of [`ternarize`](Self::ternarize) on the way,
    /// without having them as bytes: memory is read twice, and a sixteenth of it written.
    ///
    /// # Shapes
    /// - `w`: `[d_output, d_input]`
    ///
    /// # Errors
    /// Those of [`absmean`](Self::absmean).
    pub fn absmean_pack(
        self,
        w: &[f32],
        d_output: usize,
        d_input: usize,
        granularity: Granularity,
    ) -> Result<PackedTernary<'static>, CpuError> {
        let shape = Shape::new(d_output, d_input, granularity)?;
        check_length("w", w.len(), d_output.saturating_mul(d_input))?;
        let (words, scales) = (zeros_in_huge_pages(shape.words()), vec![0.0; shape.tiled_scales()]);
        let mut packed = PackedTernary { shape, words: words.into(), scales: scales.into() };
        self.absmean_pack_to(w, &mut packed)?;
        Ok(packed)
    }

    /// The same into the memory of a packed weight, whose shape and granularity `w` has; words that are borrowed stay as they
    /// are, and others take their place.
    ///
    /// # Errors
    /// [`CpuError::Length`] if `w` does not have the shape.
    pub fn absmean_pack_to(self, w: &[f32], packed: &mut PackedTernary) -> Result<(), CpuError> {
        let PackedTernary { shape, words, scales: tiled_scales } = packed;
        let Shape { d_output, d_input, granularity } = *shape;
        let scales = self.absmean(w, d_output, d_input, granularity)?;
        let (per_tile, segment) = (shape.blocks() * TILE_ROWS, shape.segment());
        words
            .to_mut()
            .par_chunks_mut(per_tile)
            .zip(w.par_chunks(TILE_ROWS * d_input))
            .enumerate()
            .with_min_len((1 << 18) / (TILE_ROWS * d_input) + 1)
            .for_each(|(i, (words, w))| {
                if w.len() < TILE_ROWS * d_input {
                    words.fill(PADDING);
                }
                for (at, words) in words.chunks_mut(per_tile / shape.segments()).enumerate() {
                    let rows: Vec<&[f32]> =
                        w.chunks(d_input).map(|w| &w[at * segment..][..segment]).collect();
                    let factors: Vec<f32> = (0..rows.len())
                        .map(|row| scales[shape.scale_at(i * TILE_ROWS + row, at)].recip())
                        .collect();
                    for (rows, first) in rows.chunks(PACKED_ROWS).zip((0..).step_by(PACKED_ROWS)) {
                        self.primitives().pack(rows, &factors[first..], &mut words[first..]);
                    }
                }
            });
        *tiled_scales = tiled(&scales, shape).into();
        Ok(())
    }
}

/// Four digits 1, code 0, per byte.
const PADDING: i32 = 0x5555_5555;

/// Scales in the order of the tiles.
fn tiled(scales: &[f32], shape: &Shape) -> Vec<f32> {
    if shape.granularity == Granularity::Tensor {
        return scales.to_vec();
    }
    let mut tiled = vec![0.0; shape.tiled_scales()];
    for (i, scale) in scales.iter().enumerate() {
        tiled[shape.tiled_scale(i)] = *scale;
    }
    tiled
}

/// Packs up to 32 rows of codes; false if one of them is not ternary.
fn pack_tile(tile: &mut [i32], codes: &[i8], shape: &Shape) -> bool {
    let mut invalid = 0;
    if codes.len() < TILE_ROWS * shape.d_input {
        tile.fill(PADDING);
    }
    for (row, codes) in codes.chunks(shape.d_input).enumerate() {
        let runs = codes.chunks(shape.segment()).flat_map(|run| run.chunks(BLOCK_INPUTS));
        for (codes, block) in runs.zip(tile.chunks_mut(TILE_ROWS)) {
            let mut padded = [0; BLOCK_INPUTS];
            padded[..codes.len()].copy_from_slice(codes);
            invalid |= padded.iter().fold(0, |any, code| any | u8::from(!(-1..=1).contains(code)));
            block[row] = word(padded);
        }
    }
    invalid == 0
}
