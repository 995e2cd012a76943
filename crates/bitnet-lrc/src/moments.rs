//! What calibration keeps of a slot's inputs: sums over tokens, in f64.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, get_global_parallelism};

use crate::linalg::{add_gram, dot, mirror};

/// Sums over tokens of products of the input `x` and of what quantization takes from it, `e = x − Qa(x)`.
pub(crate) struct Moments {
    /// `Σ x xᵀ`, `[d_input, d_input]`
    pub(crate) xx: Mat<f64>,
    /// `Σ e xᵀ`, `[d_operand, d_input]`
    pub(crate) ex: Mat<f64>,
    /// `Σ e eᵀ`, `[d_operand, d_operand]`
    pub(crate) ee: Mat<f64>,
    tokens: usize,
}

impl Moments {
    /// `d_operand` is the size of what the quantized product takes: `d_input`, unless the slot pads its input.
    pub(crate) fn new(d_input: usize, d_operand: usize) -> Self {
        Self {
            xx: Mat::zeros(d_input, d_input),
            ex: Mat::zeros(d_operand, d_input),
            ee: Mat::zeros(d_operand, d_operand),
            tokens: 0,
        }
    }

    /// Bytes of the sums for a slot of these sizes.
    pub(crate) fn bytes(d_input: usize, d_operand: usize) -> usize {
        8 * (d_input * d_input + d_operand * d_input + d_operand * d_operand)
    }

    /// Adds tokens: `x` `[tokens, d_input]` and `e` `[tokens, d_operand]`, row-major. Whether all are finite.
    pub(crate) fn add(&mut self, x: &[f32], e: &[f32]) -> bool {
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        if !finite(x) || !finite(e) {
            return false;
        }
        let (d_operand, d_input) = self.ex.shape();
        let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
        let (x, e) = (wide(x), wide(e));
        let tokens = x.len() / d_input;
        // Tokens row by row are the columns of a column-major matrix.
        let x = MatRef::from_column_major_slice(&x, d_input, tokens);
        let e = MatRef::from_column_major_slice(&e, d_operand, tokens);
        add_gram(&mut self.xx, x);
        add_gram(&mut self.ee, e);
        matmul(&mut self.ex, Accum::Add, e, x.transpose(), 1.0, get_global_parallelism());
        self.tokens += tokens;
        true
    }

    /// The sums with both their halves, once all tokens are added.
    pub(crate) fn finish(mut self) -> Self {
        mirror(&mut self.xx);
        mirror(&mut self.ee);
        self
    }

    /// Number of tokens added.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// `Σ ‖weight · x‖²`
    pub(crate) fn squared_output(&self, weight: MatRef<f64>) -> f64 {
        dot((weight * &self.xx).as_ref(), weight)
    }

    /// `Σ ‖residual · x + quantized · e‖²`: the squared error of an output that should be `w · x` and is
    /// `quantized · Qa(x)`, where the residual is what `w` has beyond all maps of `x`.
    pub(crate) fn squared_error(&self, residual: MatRef<f64>, quantized: MatRef<f64>) -> f64 {
        let of_residual = dot((residual * &self.xx).as_ref(), residual);
        let of_both = dot((quantized * &self.ex).as_ref(), residual);
        let of_input = dot((quantized * &self.ee).as_ref(), quantized);
        (of_residual + 2.0 * of_both + of_input).max(0.0)
    }
}
