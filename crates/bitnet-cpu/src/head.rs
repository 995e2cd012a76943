//! The output head: f16 weights × f32 activations.

use half::f16;
use rayon::prelude::*;

use crate::columns::{columns_per_task, split_columns};
use crate::error::check_length;
use crate::{CpuError, Kernel};

impl Kernel {
    /// The logits: `out[token, row] = Σ w · x`.
    ///
    /// The order is fixed: product `i` of a row is added to lane `i mod 32`, products and sums each rounded
    /// to f32, and the 32 lanes are folded in halves.
    ///
    /// # Shapes
    /// - `w`: `[vocab, d_input]`, row by row as checkpoints store it
    /// - `x`: `[tokens, d_input]`
    /// - `out`: `[tokens, vocab]`
    ///
    /// # Errors
    /// [`CpuError::Length`] if a slice is not whole rows of `d_input`, or `out` not one logit for each token
    /// and row.
    pub fn head(self, w: &[f16], x: &[f32], d_input: usize, out: &mut [f32]) -> Result<(), CpuError> {
        let vocab = w.len().checked_div(d_input).unwrap_or(0);
        let tokens = x.len().checked_div(d_input).unwrap_or(0);
        check_length("w", w.len(), vocab * d_input)?;
        check_length("x", x.len(), tokens * d_input)?;
        check_length("out", out.len(), tokens * vocab)?;
        if out.is_empty() {
            return Ok(());
        }
        let per_task = columns_per_task(vocab, d_input * tokens, 1);
        let tasks = split_columns(out, vocab, per_task);
        tasks.into_par_iter().zip(w.par_chunks(per_task * d_input)).for_each(|(mut out, w)| {
            for (row, w) in w.chunks(d_input).enumerate() {
                for (out, x) in out.iter_mut().zip(x.chunks(d_input)) {
                    out[row] = self.primitives().dot_f16(w, x);
                }
            }
        });
        Ok(())
    }
}
