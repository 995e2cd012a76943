use burn::tensor::{Tensor, module::linear};
use serde::{Deserialize, Serialize};

use crate::weight::fake_quantize_weight;
use crate::{ActivationQuant, Granularity, quantize_activations, straight_through};

/// What a BitNet layer quantizes, and how finely. The default is b1.58: one scale per weight, int8 per token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    /// How many weights share one scale.
    #[serde(default)]
    pub weight: Granularity,
    /// How the input is quantized, if at all.
    #[serde(default)]
    pub activation: ActivationQuant,
}

/// The BitNet layer in plain tensor operations: `y = x_eff · w_effᵀ + bias`.
///
/// `x_eff` and `w_eff` move from the latent values (λ = 0) to the quantized ones (λ = 1). The gradients are
/// `dW = gᵀ·x_eff`, `dX = g·w_eff` and `dbias = Σg` at every λ. The bias is never quantized.
///
/// This is the definition; a fused operation that gives the same results takes its place where one exists.
///
/// # Shapes
/// - `x`: `[.., d_input]`, `weight`: `[d_output, d_input]`, `bias`: `[d_output]`
/// - returns `[.., d_output]`
///
/// # Panics
/// Where the granularity does not fit the weight: layers check it when they are configured.
///
/// # Source
/// arXiv 2402.17764, §2; docs/numerics.md#straight-through.
pub fn bit_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    quantization: Quantization,
    lambda: f32,
) -> Tensor<D> {
    if lambda == 0.0 {
        return linear(x, weight.transpose(), bias);
    }
    let q_weight = fake_quantize_weight(weight.clone().inner(), quantization.weight);
    let w_eff = straight_through(weight, q_weight, lambda);
    let x_eff = match quantize_activations(x.clone().inner(), quantization.activation) {
        Some(quantized) => straight_through(x, quantized.dequantize(), lambda),
        None => x,
    };
    linear(x_eff, w_eff.transpose(), bias)
}
