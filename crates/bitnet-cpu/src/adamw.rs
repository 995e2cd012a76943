//! AdamW's update, and the norm of a gradient.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::check_length;
use crate::kernel::vectorized;
use crate::scalar::fold;
use crate::{CpuError, Kernel};

/// Numbers of one task.
const CHUNK: usize = 1 << 14;

/// One update of AdamW, in f32: what its settings come to at this step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// β₁ and β₂.
    pub betas: [f32; 2],
    /// `1 − βᵗ` of both, at update t.
    pub corrections: [f32; 2],
    /// Added to the root.
    pub epsilon: f32,
    /// Learning rate.
    pub learning_rate: f32,
    /// What the parameter is multiplied by first: 1 less learning rate times weight decay.
    pub keep: f32,
}

impl Kernel {
    /// Updates a parameter and its moments in place: each operation rounds on its own, in this order.
    ///
    /// ```text
    /// first     = first · β₁ + gradient · (1 − β₁)
    /// second    = second · β₂ + gradient² · (1 − β₂)
    /// parameter = parameter · keep − (first / c₁) / (√(second / c₂) + ε) · learning_rate
    /// ```
    ///
    /// # Errors
    /// [`CpuError::Length`] if the slices are not equally long.
    ///
    /// # Source
    /// arXiv 1711.05101, as Burn's `AdamW` computes it.
    pub fn adamw(
        self,
        settings: AdamW,
        parameter: &mut [f32],
        gradient: &[f32],
        first: &mut [f32],
        second: &mut [f32],
    ) -> Result<(), CpuError> {
        check_length("gradient", gradient.len(), parameter.len())?;
        check_length("first", first.len(), parameter.len())?;
        check_length("second", second.len(), parameter.len())?;
        parameter
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(first.par_chunks_mut(CHUNK))
            .zip(second.par_chunks_mut(CHUNK))
            .for_each(|(((parameter, gradient), first), second)| {
                update(self, settings, parameter, gradient, first, second);
            });
        Ok(())
    }

    /// `Σ x²` by folding halves, in the order of [`absmean`](Self::absmean)'s sum.
    pub fn square_sum(self, x: &[f32]) -> f32 {
        let mut n = x.len().div_ceil(2);
        let (low, high) = x.split_at(n);
        let mut folded = vec![0.0; n];
        folded.par_chunks_mut(CHUNK).enumerate().for_each(|(at, folded)| {
            let from = |x: &[f32]| -> Range<usize> { x.len().min(at * CHUNK)..x.len().min((at + 1) * CHUNK) };
            add_squares(self, &low[from(low)], &high[from(high)], folded);
        });
        while n > CHUNK {
            let half = n.div_ceil(2);
            let (low, high) = folded[..n].split_at_mut(half);
            low.par_chunks_mut(CHUNK)
                .zip(high.par_chunks(CHUNK))
                .for_each(|(low, high)| add(self, low, high));
            n = half;
        }
        fold(&mut folded[..n])
    }
}

vectorized! {
    /// `out = low² + high²`; the number in the middle of an odd list has no partner in `high`.
    fn add_squares(low: &[f32], high: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(low) {
            *out = x * x;
        }
        for (out, x) in out.iter_mut().zip(high) {
            *out += x * x;
        }
    }
}

vectorized! {
    fn add(low: &mut [f32], high: &[f32]) {
        for (low, high) in low.iter_mut().zip(high) {
            *low += high;
        }
    }
}

vectorized! {
    fn update(settings: AdamW, parameter: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        let AdamW { betas: [beta_1, beta_2], corrections: [c_1, c_2], epsilon, learning_rate, keep } = settings;
        for (((parameter, &gradient), first), second) in parameter.iter_mut().zip(gradient).zip(first).zip(second) {
            *first = *first * beta_1 + gradient * (1.0 - beta_1);
            *second = *second * beta_2 + gradient * gradient * (1.0 - beta_2);
            let delta = (*first / c_1) / ((*second / c_2).sqrt() + epsilon);
            *parameter = *parameter * keep - delta * learning_rate;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_folded_in_halves() {
        for n in [0, 1, 2, 3, 1000, 100_003, 1 << 17] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin() * (1 + i % 13) as f32).collect();
            let mut squares: Vec<f32> = x.iter().map(|x| x * x).collect();
            let expected = fold(&mut squares);
            for kernel in Kernel::available() {
                assert_eq!(kernel.square_sum(&x).to_bits(), expected.to_bits(), "{n} numbers, {kernel:?}");
            }
        }
    }

    #[test]
    fn every_kernel_updates_alike() {
        let n = 40_001;
        let wave = |step: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * step).sin()).collect() };
        let settings = AdamW {
            betas: [0.9, 0.95],
            corrections: [0.271, 0.142],
            epsilon: 1e-8,
            learning_rate: 1e-3,
            keep: 0.9999,
        };
        let updated = |kernel: Kernel| {
            let (mut parameter, gradient, mut first) = (wave(0.3), wave(0.7), wave(0.11));
            let mut second: Vec<f32> = wave(0.05).iter().map(|x| x * x).collect();
            kernel.adamw(settings, &mut parameter, &gradient, &mut first, &mut second).unwrap();
            [parameter, first, second].map(|x| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
        };
        let expected = updated(Kernel::scalar());
        for kernel in Kernel::available() {
            assert!(updated(kernel) == expected, "{kernel:?}");
        }
        let (m, g) = (wave(0.11)[5] * 0.9 + wave(0.7)[5] * (1.0 - 0.9), wave(0.7)[5]);
        let v = wave(0.05)[5] * wave(0.05)[5] * 0.95 + g * g * (1.0 - 0.95);
        let value = wave(0.3)[5] * 0.9999 - (m / 0.271) / ((v / 0.142).sqrt() + 1e-8) * 1e-3;
        assert_eq!(expected[0][5], value.to_bits());
        let error = Kernel::new().adamw(settings, &mut [0.0], &[0.0; 2], &mut [0.0], &mut [0.0]).unwrap_err();
        assert_eq!(error, CpuError::Length { name: "gradient", found: 2, expected: 1 });
    }
}
