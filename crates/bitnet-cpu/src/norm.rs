//! RMSNorm.

use rayon::prelude::*;

use crate::error::check_length;
use crate::exp::dot;
use crate::kernel::vectorized;
use crate::{CpuError, Kernel};

/// Rows of one task: the gain's gradient is summed within it, then over the tasks.
const ROWS: usize = 32;

impl Kernel {
    /// `out = x · 1 / √(mean(x²) + eps) · gain` per row.
    ///
    /// # Shapes
    /// - `x`, `out`: `[rows, columns]`, `gain`: `[columns]`
    ///
    /// # Errors
    /// [`CpuError::Length`] if a slice does not have its shape.
    pub fn rms_norm(self, x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) -> Result<(), CpuError> {
        let columns = gain.len().max(1);
        check_length("x", x.len(), x.len() / columns * gain.len())?;
        check_length("out", out.len(), x.len())?;
        out.par_chunks_mut(ROWS * columns)
            .zip(x.par_chunks(ROWS * columns))
            .for_each(|(out, x)| forward(self, x, gain, eps, out));
        Ok(())
    }

    /// The gradient of `x` in place of that of the result, and the gradient of `gain`, which is summed over the rows in one
    /// order whatever the threads.
    ///
    /// # Shapes
    /// - `x`, `gradient`: `[rows, columns]`, `gain`: `[columns]`; returns `[columns]`
    ///
    /// # Errors
    /// [`CpuError::Length`] if a slice does not have its shape.
    pub fn rms_norm_gradient(
        self,
        x: &[f32],
        gain: &[f32],
        eps: f32,
        gradient: &mut [f32],
    ) -> Result<Vec<f32>, CpuError> {
        let columns = gain.len().max(1);
        check_length("x", x.len(), x.len() / columns * gain.len())?;
        check_length("gradient", gradient.len(), x.len())?;
        let sums: Vec<Vec<f32>> = gradient
            .par_chunks_mut(ROWS * columns)
            .zip(x.par_chunks(ROWS * columns))
            .map(|(gradient, x)| backward(self, x, gain, eps, gradient))
            .collect();
        let mut of_gain = vec![0.0; gain.len()];
        for sums in sums {
            of_gain.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
        }
        Ok(of_gain)
    }
}

vectorized! {
    fn forward(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
        for (out, x) in out.chunks_mut(gain.len()).zip(x.chunks(gain.len())) {
            let factor = (dot(x, x) / x.len() as f32 + eps).sqrt().recip();
            for ((out, &x), &gain) in out.iter_mut().zip(x).zip(gain) {
                *out = x * factor * gain;
            }
        }
    }
}

vectorized! {
    fn backward(x: &[f32], gain: &[f32], eps: f32, gradient: &mut [f32]) -> Vec<f32> {
        let mut of_gain = vec![0.0; gain.len()];
        for (gradient, x) in gradient.chunks_mut(gain.len()).zip(x.chunks(gain.len())) {
            let n = x.len() as f32;
            let factor = (dot(x, x) / n + eps).sqrt().recip();
            for (((gradient, &x), &gain), out) in gradient.iter_mut().zip(x).zip(gain).zip(&mut of_gain) {
                *out += *gradient * (x * factor);
                *gradient *= gain;
            }
            let shared = dot(gradient, x) / n * factor * factor;
            for (gradient, &x) in gradient.iter_mut().zip(x) {
                *gradient = (*gradient - x * shared) * factor;
            }
        }
        of_gain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn against_differences_in_f64() {
        let (rows, columns, eps) = (70, 37, 1e-2_f32);
        let wave = |n: usize, step: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * step).sin()).collect() };
        let (x, gain, gradient) =
            (wave(rows * columns, 0.37), wave(columns, 0.9), wave(rows * columns, 0.71));
        let row = |x: &[f64], gain: &[f64]| -> Vec<f64> {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / columns as f64;
            x.iter().zip(gain).map(|(x, gain)| x / (mean + f64::from(eps)).sqrt() * gain).collect()
        };
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(x)).collect() };
        for kernel in Kernel::available() {
            let (mut out, mut of_x) = (vec![0.0; x.len()], gradient.clone());
            kernel.rms_norm(&x, &gain, eps, &mut out).unwrap();
            let of_gain = kernel.rms_norm_gradient(&x, &gain, eps, &mut of_x).unwrap();
            let mut expected_gain = vec![0.0; columns];
            for r in [0, 31, 32, 69] {
                let at = r * columns..(r + 1) * columns;
                let expected = row(&wide(&x[at.clone()]), &wide(&gain));
                for (found, expected) in out[at.clone()].iter().zip(&expected) {
                    assert!((f64::from(*found) - expected).abs() < 1e-6);
                }
                for i in [0, 17, 36] {
                    let loss = |step: f64| -> f64 {
                        let mut x = wide(&x[at.clone()]);
                        x[i] += step;
                        row(&x, &wide(&gain))
                            .iter()
                            .zip(wide(&gradient[at.clone()]))
                            .map(|(y, g)| y * g)
                            .sum()
                    };
                    let difference = (loss(1e-5) - loss(-1e-5)) / 2e-5;
                    assert!((f64::from(of_x[at.start + i]) - difference).abs() < 1e-5);
                }
            }
            for r in 0..rows {
                let at = r * columns..(r + 1) * columns;
                let normed = row(&wide(&x[at.clone()]), &vec![1.0; columns]);
                let products = normed.iter().zip(wide(&gradient[at])).map(|(x, g)| x * g);
                expected_gain
                    .iter_mut()
                    .zip(products)
                    .for_each(|(sum, product): (&mut f64, f64)| *sum += product);
            }
            for (found, expected) in of_gain.iter().zip(expected_gain) {
                assert!((f64::from(*found) - expected).abs() < 1e-5);
            }
        }
        assert!(Kernel::new().rms_norm(&x[1..], &gain, eps, &mut vec![0.0; x.len()]).is_err());
    }
}
