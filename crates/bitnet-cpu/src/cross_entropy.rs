//! The cross-entropy of logits.

use rayon::prelude::*;

use crate::error::check_length;
use crate::exp::{exp, max};
use crate::kernel::LANES;
use crate::kernel::vectorized;
use crate::scalar::fold;
use crate::{CpuError, Kernel};

impl Kernel {
    /// For each row `ln Σ exp(x)`, by `m + ln Σ exp(x − m)` with the row's maximum m; term i of the sum is added to lane i mod
    /// 32, and the lanes are folded in halves.
    ///
    /// # Shapes
    /// - `logits`: `[rows, columns]`; returns `[rows]`
    ///
    /// # Errors
    /// [`CpuError::Length`] if `logits` is not whole rows.
    pub fn log_sum_exp(self, logits: &[f32], columns: usize) -> Result<Vec<f32>, CpuError> {
        let rows = logits.len().checked_div(columns).unwrap_or(0);
        check_length("logits", logits.len(), rows * columns)?;
        Ok(logits.par_chunks(columns.max(1)).map(|row| log_sum_exp(self, row)).collect())
    }

    /// The gradient of `Σ factor · (ln Σ exp(x) − x[target])` in place of the logits: `(softmax − 1 at the target) · factor`; a
    /// row without a target gets zeros.
    ///
    /// # Shapes
    /// - `logits`: `[rows, columns]`, `log_sums`: `[rows]`, of [`log_sum_exp`](Self::log_sum_exp); `targets`: `[rows]`
    ///
    /// # Errors
    /// [`CpuError::Length`] if a slice does not have its shape.
    pub fn cross_entropy_gradient(
        self,
        logits: &mut [f32],
        log_sums: &[f32],
        targets: &[Option<usize>],
        factor: f32,
    ) -> Result<(), CpuError> {
        let columns = logits.len().checked_div(targets.len()).unwrap_or(0);
        check_length("logits", logits.len(), targets.len() * columns)?;
        check_length("log_sums", log_sums.len(), targets.len())?;
        logits.par_chunks_mut(columns.max(1)).zip(log_sums).zip(targets).for_each(
            |((row, &log_sum), &target)| match target {
                Some(target) => {
                    scaled_softmax(self, row, log_sum, factor);
                    if let Some(value) = row.get_mut(target) {
                        *value -= factor;
                    }
                }
                None => row.fill(0.0),
            },
        );
        Ok(())
    }
}

vectorized! {
    fn log_sum_exp(x: &[f32]) -> f32 {
        let max = max(x);
        let (lines, rest) = x.as_chunks::<LANES>();
        let mut lanes = [0.0; LANES];
        for line in lines {
            for (lane, &x) in lanes.iter_mut().zip(line) {
                *lane += exp(x - max);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += exp(x - max);
        }
        max + fold(&mut lanes).ln()
    }
}

vectorized! {
    fn scaled_softmax(x: &mut [f32], log_sum: f32, factor: f32) {
        for x in x {
            *x = exp(*x - log_sum) * factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_against_f64() {
        let columns = 100;
        let logits: Vec<f32> = (0..3 * columns).map(|i| (i as f32).sin() * 20.0).collect();
        for kernel in Kernel::available() {
            let log_sums = kernel.log_sum_exp(&logits, columns).unwrap();
            let mut gradient = logits.clone();
            let targets = [Some(7), None, Some(99)];
            kernel.cross_entropy_gradient(&mut gradient, &log_sums, &targets, 0.5).unwrap();
            for row in 0..3 {
                let exps = logits[row * columns..][..columns].iter().map(|&x| f64::from(x).exp());
                let exps: Vec<f64> = exps.collect();
                let sum: f64 = exps.iter().sum();
                assert!((f64::from(log_sums[row]) - sum.ln()).abs() < 1e-5);
                for (i, exp) in exps.iter().enumerate() {
                    let expected = match targets[row] {
                        Some(target) => 0.5 * (exp / sum - f64::from(u8::from(i == target))),
                        None => 0.0,
                    };
                    assert!((f64::from(gradient[row * columns + i]) - expected).abs() < 1e-6);
                }
            }
        }
        assert!(Kernel::new().log_sum_exp(&[1.0; 5], 2).is_err());
    }

    #[test]
    fn what_is_not_finite_shows() {
        let log_sums = Kernel::new().log_sum_exp(&[1.0, f32::NAN, 2.0, f32::INFINITY], 2).unwrap();
        assert!(log_sums[0].is_nan() && !log_sums[1].is_finite());
    }
}
