//! Packed ternary × int8.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::columns::{columns_per_task, split_columns};
use crate::error::check_length;
use crate::kernel::{MAX_TOKENS, Primitives};
use crate::packed::{BLOCK_INPUTS, TILE_ROWS};
use crate::{CpuError, Kernel, PackedTernary};

impl Kernel {
    /// The integer product: `out[token, row] = Σ code · x` over all inputs, whatever the granularity.
    ///
    /// # Shapes
    /// - `x`: `[tokens, d_input]`, any int8; one token makes it matrix × vector
    /// - `out`: `[tokens, d_output]`
    ///
    /// # Errors
    /// [`CpuError::Length`] if `x` is not whole tokens, or `out` not one row for each.
    pub fn accumulate(self, weight: &PackedTernary<'_>, x: &[i8], out: &mut [i32]) -> Result<(), CpuError> {
        let tokens = check_tokens(weight, x, out.len())?;
        out.fill(0);
        products(self.primitives(), weight, x, tokens, out, |out, accumulators, _, _| {
            for (out, accumulator) in out.iter_mut().zip(accumulators) {
                *out += accumulator;
            }
        });
        Ok(())
    }

    /// The scaled product: `out[token, row] = Σ_group acc · (w_scale · x_scale)` where `acc = Σ code · x`
    /// within the group.
    ///
    /// The order is fixed: each group's integer sum becomes an f32 (exactly), is multiplied by the rounded
    /// product of the two scales, and the groups are added in ascending order. Per tensor and per row there
    /// is one group, so `out = acc · (w_scale · x_scale)`.
    ///
    /// # Shapes
    /// - `x`: codes `[tokens, d_input]`; one token makes it matrix × vector
    /// - `x_scales`: `[tokens]`
    /// - `out`: `[tokens, d_output]`
    ///
    /// # Errors
    /// [`CpuError::Length`] if a slice does not have its shape.
    ///
    /// # Source
    /// arXiv 2402.17764, section 2.
    pub fn matmul(
        self,
        weight: &PackedTernary<'_>,
        x: &[i8],
        x_scales: &[f32],
        out: &mut [f32],
    ) -> Result<(), CpuError> {
        let tokens = check_tokens(weight, x, out.len())?;
        check_length("x_scales", x_scales.len(), tokens)?;
        out.fill(0.0);
        products(self.primitives(), weight, x, tokens, out, |out, accumulators, w_scales, token| {
            let x_scale = x_scales[token];
            for ((out, accumulator), w_scale) in out.iter_mut().zip(accumulators).zip(w_scales) {
                *out += *accumulator as f32 * (w_scale * x_scale);
            }
        });
        Ok(())
    }
}

/// The number of tokens.
fn check_tokens(weight: &PackedTernary<'_>, x: &[i8], out: usize) -> Result<usize, CpuError> {
    let tokens = x.len() / weight.d_input();
    check_length("x", x.len(), tokens * weight.d_input())?;
    check_length("out", out, tokens * weight.d_output())?;
    Ok(tokens)
}

/// Computes the integer sums `Σ code · x` of every tile, token and segment.
///
/// `add(out, sums, scales, token)` adds those of one to the up to 32 outputs of that tile and token; the
/// segments of an output come in ascending order.
fn products<T: Send>(
    primitives: &dyn Primitives,
    weight: &PackedTernary<'_>,
    x: &[i8],
    tokens: usize,
    out: &mut [T],
    add: impl Fn(&mut [T], &[i32; TILE_ROWS], &[f32; TILE_ROWS], usize) + Sync,
) {
    if tokens == 0 {
        return;
    }
    let segments = weight.shape.segments();
    let length = weight.shape.blocks() / segments;
    let x = pad_segments(x, weight.shape.segment());
    let (x, _) = x.as_chunks::<BLOCK_INPUTS>();
    let x: Vec<Segment> = x
        .par_chunks(length)
        .with_min_len((1 << 16) / (length * BLOCK_INPUTS) + 1)
        .map(|x| Segment { x, sum: primitives.sum(x.as_flattened()) })
        .collect();

    let run_task = |first_tile: usize, mut out: Vec<&mut [T]>| {
        let mut sums = [[0; TILE_ROWS]; MAX_TOKENS];
        let mut x_of: [&[[i8; BLOCK_INPUTS]]; MAX_TOKENS] = [&[]; _];
        let rows = out[0].len();
        let tiles = weight.blocks().chunks(length * segments).enumerate().skip(first_tile);
        for (start, (at, tile)) in (0..rows).step_by(TILE_ROWS).zip(tiles) {
            let end = rows.min(start + TILE_ROWS);
            for (i, out) in out.chunks_mut(MAX_TOKENS).enumerate() {
                let first_token = i * MAX_TOKENS;
                let x = &x[first_token * segments..][..out.len() * segments];
                for (segment, weights) in tile.chunks(length).enumerate() {
                    let scales = match weight.scales() {
                        [scale] => &[*scale; TILE_ROWS],
                        tiled => &tiled.as_chunks().0[at * segments + segment],
                    };
                    for (x_of, x) in x_of.iter_mut().zip(x.chunks(segments)) {
                        *x_of = x[segment].x;
                    }
                    primitives.ternary(weights, &x_of[..out.len()], &mut sums);
                    for (token, (out, sums)) in out.iter_mut().zip(&mut sums).enumerate() {
                        // Σ (digit − 1) · x
                        let sum_x = x[token * segments + segment].sum;
                        sums.iter_mut().for_each(|sum| *sum -= sum_x);
                        add(&mut out[start..end], sums, scales, first_token + token);
                    }
                }
            }
        }
    };
    let per_task = columns_per_task(weight.d_output(), weight.d_input() * tokens, TILE_ROWS);
    split_columns(out, weight.d_output(), per_task)
        .into_par_iter()
        .enumerate()
        .for_each(|(i, task)| run_task(i * per_task / TILE_ROWS, task));
}

/// The activations of a token that share one weight scale, in whole blocks.
struct Segment<'a> {
    x: &'a [[i8; BLOCK_INPUTS]],
    sum: i32,
}

/// Pads each segment with zeros to whole blocks.
fn pad_segments(x: &[i8], segment: usize) -> Cow<'_, [i8]> {
    if segment.is_multiple_of(BLOCK_INPUTS) {
        return Cow::Borrowed(x);
    }
    let padded = segment.next_multiple_of(BLOCK_INPUTS);
    let mut out = vec![0; x.len() / segment * padded];
    for (out, x) in out.chunks_mut(padded).zip(x.chunks(segment)) {
        out[..segment].copy_from_slice(x);
    }
    Cow::Owned(out)
}
