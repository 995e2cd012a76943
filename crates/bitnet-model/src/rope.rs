use std::f64::consts::TAU;
use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};

use crate::{RopeConfig, RopeScaling};

/// The cosines and sines of a range of positions.
#[derive(Debug, Clone)]
pub(crate) struct Rotation {
    /// `[1, 1, T, D/2]`
    cos: Tensor<4>,
    /// `[1, 1, T, D/2]`
    sin: Tensor<4>,
}

impl Rotation {
    /// The rotation of `positions` for heads of size `head_dim`, of a model made for `max_positions`.
    pub(crate) fn new(
        config: &RopeConfig,
        head_dim: usize,
        max_positions: usize,
        positions: Range<usize>,
        device: &Device,
    ) -> Self {
        let (frequencies, amplitude) = config.frequencies(head_dim, max_positions, positions.end);
        let shape = [1, 1, positions.len(), head_dim / 2];
        let table = |wave: fn(f64) -> f64| {
            let values: Vec<f32> = positions
                .clone()
                // f32 as in the field's reference code, which rounds frequency and angle alike
                .flat_map(|p| {
                    frequencies
                        .iter()
                        .map(move |&f| (wave(f64::from(p as f32 * f as f32)) * amplitude) as f32)
                })
                .collect();
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        Self { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// Cosines and sines, `[T, D/2]`.
    pub(crate) fn waves(&self) -> [Tensor<2>; 2] {
        let [_, _, tokens, half] = self.cos.dims();
        [&self.cos, &self.sin].map(|wave| wave.clone().reshape([tokens, half]))
    }

    /// Rotates each pair (i, i + D/2) of a head.
    ///
    /// # Shapes
    /// - `x`: `[B, H, T, D]`; the same out
    pub(crate) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let dtype = x.dtype();
        let (cos, sin) = (self.cos.clone().cast(dtype), self.sin.clone().cast(dtype));
        let a = x.clone().narrow(3, 0, half);
        let b = x.narrow(3, half, half);
        let rotated_a = a.clone() * cos.clone() - b.clone() * sin.clone();
        let rotated_b = b * cos + a * sin;
        Tensor::cat(vec![rotated_a, rotated_b], 3)
    }
}

impl RopeConfig {
    /// Angle per position for each pair of a head, and the factor of cos and sin, for heads of size `head_dim` in a
    /// model made for `max_positions`.
    ///
    /// `seen` is the number of positions up to now, which only dynamic scaling looks at.
    ///
    /// # Source
    /// transformers 5.23, `modeling_rope_utils.py`, for the meaning of each parameter.
    pub fn frequencies(&self, head_dim: usize, max_positions: usize, seen: usize) -> (Vec<f64>, f64) {
        let dim = head_dim as f64;
        let plain = |theta: f64| (0..head_dim / 2).map(move |i| theta.powf(-2.0 * i as f64 / dim));
        let unscaled = plain(self.theta);
        match self.scaling {
            RopeScaling::None => (unscaled.collect(), 1.0),
            RopeScaling::Linear { factor } => (unscaled.map(|f| f / factor).collect(), 1.0),
            RopeScaling::Dynamic { factor } => {
                let stretch = seen.max(max_positions) as f64 / max_positions as f64;
                let growth = (factor * stretch - (factor - 1.0)).powf(dim / (dim - 2.0));
                (plain(self.theta * growth).collect(), 1.0)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let scaled = unscaled.map(|f| {
                    let rotations = original_max_positions as f64 * f / TAU;
                    let keep = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let keep = keep.clamp(0.0, 1.0);
                    (1.0 - keep) * f / factor + keep * f
                });
                (scaled.collect(), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                original_max_positions,
                attention_factor,
                beta_fast,
                beta_slow,
                mscale,
                mscale_all_dim,
                truncate,
            } => {
                // The pair that makes this many rotations within the context of pretraining.
                let pair_of = |rotations: f64| {
                    dim * (original_max_positions as f64 / (rotations * TAU)).ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let scaled = unscaled.enumerate().map(|(i, f)| {
                    let divide = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    divide * f / factor + (1.0 - divide) * f
                });
                let magnitude =
                    |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
                let inferred = match (mscale, mscale_all_dim) {
                    (Some(over), Some(under)) if over != 0.0 && under != 0.0 => {
                        magnitude(over) / magnitude(under)
                    }
                    _ => magnitude(1.0),
                };
                (scaled.collect(), attention_factor.unwrap_or(inferred))
            }
        }
    }
}
