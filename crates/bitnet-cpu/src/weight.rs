//! Weights to ternary codes by absmean.

use rayon::prelude::*;

use crate::error::check_length;
use crate::kernel::vectorized;
use crate::scalar::{fold, rounded};
use crate::shape::Shape;
use crate::{CpuError, Granularity, Kernel};

/// The smallest scale, and the smallest `max|x|` of a token.
pub(crate) const EPS: f32 = 1e-5;

/// A weight quantized by absmean: `w ≈ codes · scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct TernaryWeight {
    /// `[d_output, d_input]`, each −1, 0 or 1
    pub codes: Vec<i8>,
    /// As [`Granularity`] lays them out.
    pub scales: Vec<f32>,
}

impl Kernel {
    /// The absmean scales of a weight: `scale = max(mean|w|, 1e-5)`.
    ///
    /// The mean's sum does not depend on threads or kernels: a list of n numbers is summed by folding halves,
    /// `while n > 1 { h = ⌈n/2⌉; a[i] += a[i + h] for i < n − h; n = h }`. Per tensor each row is folded,
    /// then the row sums are; per row and per group, the row or group is. The sum is then divided, in f32, by
    /// the number of weights.
    ///
    /// A NaN or an infinity among the weights makes their scale NaN or infinite.
    ///
    /// # Shapes
    /// - `w`: `[d_output, d_input]`
    /// - returns the scales as [`Granularity`] lays them out
    ///
    /// # Errors
    /// - [`CpuError::Shape`] or [`CpuError::Group`] for a shape without a mean
    /// - [`CpuError::Length`] if `w` does not have the shape
    ///
    /// # Source
    /// arXiv 2402.17764, section 2.
    pub fn absmean(
        self,
        w: &[f32],
        d_output: usize,
        d_input: usize,
        granularity: Granularity,
    ) -> Result<Vec<f32>, CpuError> {
        let shape = Shape::new(d_output, d_input, granularity)?;
        check_length("w", w.len(), shape.len())?;
        let segment = shape.segment();
        let mut sums = self.abs_sums(w, segment);
        if granularity == Granularity::Tensor {
            return Ok(vec![absmean_of_rows(&mut sums, d_input)]);
        }
        sums.iter_mut().for_each(|sum| *sum = mean(*sum, segment));
        Ok(sums)
    }

    /// `Σ|w|` of each row, in the order of [`absmean`](Self::absmean): for a weight that is read in pieces,
    /// whose rows' sums [`absmean_of_rows`] joins.
    ///
    /// # Shapes
    /// - `w`: `[d_output, d_input]`
    /// - returns `[d_output]`
    ///
    /// # Errors
    /// - [`CpuError::Shape`] for a shape without a mean
    /// - [`CpuError::Length`] if `w` does not have the shape
    pub fn row_abs_sums(self, w: &[f32], d_output: usize, d_input: usize) -> Result<Vec<f32>, CpuError> {
        let shape = Shape::new(d_output, d_input, Granularity::Row)?;
        check_length("w", w.len(), shape.len())?;
        Ok(self.abs_sums(w, d_input))
    }

    /// `Σ|w|` of each segment.
    fn abs_sums(self, w: &[f32], segment: usize) -> Vec<f32> {
        let mut sums = vec![0.0; w.len() / segment];
        sums.par_iter_mut().zip(w.par_chunks(segment)).with_min_len((1 << 16) / segment + 1).for_each_init(
            || vec![0.0; segment],
            |folded, (sum, w)| *sum = self.primitives().abs_sum(w, folded),
        );
        sums
    }

    /// The codes for given scales: `codes = clamp(round(w · (1 / scale)), −1, 1)`, ties to even.
    ///
    /// # Shapes
    /// - `w`: `[d_output, d_input]`
    /// - `scales`: as [`Granularity`] lays them out
    /// - returns codes `[d_output, d_input]`
    ///
    /// # Errors
    /// - [`CpuError::Shape`] or [`CpuError::Group`] for a shape that cannot be packed
    /// - [`CpuError::Length`] if `w` or `scales` does not have the shape
    ///
    /// # Source
    /// arXiv 2402.17764, section 2.
    pub fn ternarize(
        self,
        w: &[f32],
        d_output: usize,
        d_input: usize,
        granularity: Granularity,
        scales: &[f32],
    ) -> Result<Vec<i8>, CpuError> {
        let shape = Shape::new(d_output, d_input, granularity)?;
        check_length("w", w.len(), shape.len())?;
        check_length("scales", scales.len(), shape.scales())?;
        let segment = shape.segment();
        let mut codes = vec![0; w.len()];
        codes
            .par_chunks_mut(segment)
            .zip(w.par_chunks(segment))
            .enumerate()
            .with_min_len((1 << 16) / segment + 1)
            .for_each(|(i, (codes, w))| {
                let scale = scales[shape.scale_at(i / shape.segments(), i % shape.segments())];
                self.primitives().quantize(w, scale.recip(), [-1.0, 1.0], codes);
            });
        Ok(codes)
    }

    /// `w + λ·(codes·scale − w)` with the codes of [`ternarize`](Self::ternarize), in one pass; at λ = 1 exactly
    /// `codes·scale`.
    ///
    /// # Shapes
    /// Those of [`ternarize`](Self::ternarize); returns `[d_output, d_input]`.
    ///
    /// # Errors
    /// Those of [`ternarize`](Self::ternarize).
    ///
    /// # Source
    /// docs/numerics.md#straight-through.
    pub fn ternary_blend(
        self,
        w: &[f32],
        d_output: usize,
        d_input: usize,
        granularity: Granularity,
        scales: &[f32],
        lambda: f32,
    ) -> Result<Vec<f32>, CpuError> {
        let shape = Shape::new(d_output, d_input, granularity)?;
        check_length("w", w.len(), shape.len())?;
        check_length("scales", scales.len(), shape.scales())?;
        let segment = shape.segment();
        let mut values = vec![0.0; w.len()];
        values
            .par_chunks_mut(segment)
            .zip(w.par_chunks(segment))
            .enumerate()
            .with_min_len((1 << 14) / segment + 1)
            .for_each(|(i, (values, w))| {
                let scale = scales[shape.scale_at(i / shape.segments(), i % shape.segments())];
                blend(self, w, scale, lambda, values);
            });
        Ok(values)
    }

    /// [`absmean`](Self::absmean), then [`ternarize`](Self::ternarize).
    ///
    /// # Errors
    /// Those of the two.
    pub fn absmean_ternarize(
        self,
        w: &[f32],
        d_output: usize,
        d_input: usize,
        granularity: Granularity,
    ) -> Result<TernaryWeight, CpuError> {
        let scales = self.absmean(w, d_output, d_input, granularity)?;
        let codes = self.ternarize(w, d_output, d_input, granularity, &scales)?;
        Ok(TernaryWeight { codes, scales })
    }
}

/// The absmean scale of a whole weight from the sums of all its rows, which it overwrites: the same bits as
/// [`Kernel::absmean`] per tensor.
pub fn absmean_of_rows(row_abs_sums: &mut [f32], d_input: usize) -> f32 {
    let n = row_abs_sums.len() * d_input;
    mean(fold(row_abs_sums), n)
}

vectorized! {
    /// `w + λ·(code·scale − w)` of weights that share a scale.
    fn blend(w: &[f32], scale: f32, lambda: f32, values: &mut [f32]) {
        let factor = scale.recip();
        for (value, &w) in values.iter_mut().zip(w) {
            let quantized = rounded(w * factor, [-1.0, 1.0]) * scale;
            *value = if lambda == 1.0 { quantized } else { w + (quantized - w) * lambda };
        }
    }
}

/// `max(sum / n, 1e-5)`.
fn mean(sum: f32, n: usize) -> f32 {
    let mean = sum / n as f32;
    // Not `f32::max`, which would hide a NaN.
    if mean < EPS { EPS } else { mean }
}
