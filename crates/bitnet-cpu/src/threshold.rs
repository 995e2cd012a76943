//! Weights to ternary codes by a threshold of sparsity.

use crate::error::check_length;
use crate::shape::Shape;
use crate::{CpuError, Granularity, Kernel, TernaryWeight};

/// The smallest scale of a row.
const EPS: f32 = 1e-8;

impl Kernel {
    /// Ternarizes by threshold: per row `α = max(mean|w|, 1e-8)`, code 0 where `|w| < threshold · α`, else
    /// the sign; the scale is α. The mean's sum has the order of [`absmean`](Self::absmean).
    ///
    /// A NaN or an infinity among the weights makes the scale of its row NaN or infinite.
    ///
    /// # Shapes
    /// - `w`: `[d_output, d_input]`
    /// - returns codes `[d_output, d_input]` and one scale per row
    ///
    /// # Errors
    /// - [`CpuError::Shape`] for a shape that cannot be packed
    /// - [`CpuError::Length`] if `w` does not have the shape
    ///
    /// # Source
    /// docs/numerics.md, weights by threshold.
    pub fn threshold_ternarize(
        self,
        w: &[f32],
        d_output: usize,
        d_input: usize,
        threshold: f32,
    ) -> Result<TernaryWeight, CpuError> {
        let shape = Shape::new(d_output, d_input, Granularity::Row)?;
        check_length("w", w.len(), shape.len())?;
        let mut scales = self.row_abs_sums(w, d_output, d_input)?;
        for scale in &mut scales {
            let mean = *scale / d_input as f32;
            // Not `f32::max`, which would hide a NaN.
            *scale = if mean < EPS { EPS } else { mean };
        }
        let mut codes = vec![0; w.len()];
        for ((codes, w), scale) in codes.chunks_mut(d_input).zip(w.chunks(d_input)).zip(&scales) {
            let least = threshold * scale;
            for (code, w) in codes.iter_mut().zip(w) {
                let sign = i8::from(*w > 0.0) - i8::from(*w < 0.0);
                *code = if w.abs() < least { 0 } else { sign };
            }
        }
        Ok(TernaryWeight { codes, scales })
    }
}
