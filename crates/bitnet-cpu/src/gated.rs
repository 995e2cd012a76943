//! `silu(gate) · up`.

use rayon::prelude::*;

use crate::error::check_length;
use crate::exp::exp;
use crate::kernel::vectorized;
use crate::{CpuError, Kernel};

/// Numbers of one task.
const CHUNK: usize = 1 << 14;

impl Kernel {
    /// `out = gate / (1 + exp(−gate)) · up`.
    ///
    /// # Errors
    /// [`CpuError::Length`] if the slices are not equally long.
    pub fn silu_gated(self, gate: &[f32], up: &[f32], out: &mut [f32]) -> Result<(), CpuError> {
        check_length("up", up.len(), gate.len())?;
        check_length("out", out.len(), gate.len())?;
        out.par_chunks_mut(CHUNK)
            .zip(gate.par_chunks(CHUNK))
            .zip(up.par_chunks(CHUNK))
            .for_each(|((out, gate), up)| forward(self, gate, up, out));
        Ok(())
    }

    /// The gradients of gate and up from that of the result: `g · up · s · (1 + gate · (1 − s))` and `g · gate · s` with
    /// `s = 1 / (1 + exp(−gate))`. The second takes the place of `gradient`.
    ///
    /// # Errors
    /// [`CpuError::Length`] if the slices are not equally long.
    pub fn silu_gated_gradient(
        self,
        gate: &[f32],
        up: &[f32],
        gradient: &mut [f32],
        gate_gradient: &mut [f32],
    ) -> Result<(), CpuError> {
        check_length("up", up.len(), gate.len())?;
        check_length("gradient", gradient.len(), gate.len())?;
        check_length("gate_gradient", gate_gradient.len(), gate.len())?;
        gradient
            .par_chunks_mut(CHUNK)
            .zip(gate_gradient.par_chunks_mut(CHUNK))
            .zip(gate.par_chunks(CHUNK))
            .zip(up.par_chunks(CHUNK))
            .for_each(|(((gradient, gate_gradient), gate), up)| {
                backward(self, gate, up, gradient, gate_gradient);
            });
        Ok(())
    }
}

vectorized! {
    fn forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

vectorized! {
    fn backward(gate: &[f32], up: &[f32], gradient: &mut [f32], gate_gradient: &mut [f32]) {
        for (((gradient, gate_gradient), &gate), &up) in gradient.iter_mut().zip(gate_gradient).zip(gate).zip(up) {
            let sigmoid = 1.0 / (1.0 + exp(-gate));
            *gate_gradient = *gradient * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
            *gradient *= gate * sigmoid;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn against_f64() {
        let n = 1000;
        let gate: Vec<f32> = (0..n).map(|i| (i as f32 - 500.0) * 0.2).collect();
        let up: Vec<f32> = (0..n).map(|i| (i as f32).cos()).collect();
        for kernel in Kernel::available() {
            let (mut out, mut gradient, mut gate_gradient) = (vec![0.0; n], vec![2.0; n], vec![0.0; n]);
            kernel.silu_gated(&gate, &up, &mut out).unwrap();
            kernel.silu_gated_gradient(&gate, &up, &mut gradient, &mut gate_gradient).unwrap();
            for i in 0..n {
                let (gate, up) = (f64::from(gate[i]), f64::from(up[i]));
                let sigmoid = 1.0 / (1.0 + (-gate).exp());
                let expected = [
                    gate * sigmoid * up,
                    2.0 * up * sigmoid * (1.0 + gate * (1.0 - sigmoid)),
                    2.0 * gate * sigmoid,
                ];
                for (found, expected) in [out[i], gate_gradient[i], gradient[i]].into_iter().zip(expected) {
                    assert!(
                        (f64::from(found) - expected).abs() <= 1e-6 * (1.0 + expected.abs()),
                        "{found} {expected}"
                    );
                }
            }
        }
        assert!(Kernel::new().silu_gated(&gate, &up[1..], &mut vec![0.0; n]).is_err());
    }
}
