use burn::tensor::{Tensor, module::linear};
use serde::{Deserialize, Serialize};

#[cfg(any(feature = "flex", feature = "ndarray"))]
use crate::backends::bit_linear as fused;
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

/// The BitNet layer: `y = x_eff · w_effᵀ + bias`.
///
/// `x_eff` and `w_eff` move from the latent values (λ = 0) to the quantized ones (λ = 1). The gradients are
/// `dW = gᵀ·x_eff`, `dX = g·w_eff` and `dbias = Σg` at every λ. The bias is never quantized.
///
/// On a CPU, in f32, this is one operation with a backward pass of its own: vector kernels quantize each operand in
/// one pass, and at λ = 1 the backward pass keeps the input's int8 codes instead of its f32 values. Elsewhere it is
/// [`bit_linear_reference`], whose operands are the same bit for bit.
///
/// # Shapes
/// - `x`: `[.., d_input]`, `weight`: `[d_output, d_input]`, `bias`: `[d_output]`
/// - returns `[.., d_output]`
///
/// # Panics
/// Where the granularity does not fit the weight, which layers check when they are configured, and where the last axis
/// of `x` is not `d_input`.
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
    let [d_output, d_input] = weight.dims();
    let mut shape = x.dims();
    let tokens = shape[..D - 1].iter().product();
    match fused(&x.clone().reshape([tokens, d_input]), &weight, quantization, lambda) {
        Some(y) => {
            shape[D - 1] = d_output;
            let y = y.reshape(shape);
            match bias {
                Some(bias) => y + bias.unsqueeze(),
                None => y,
            }
        }
        None => bit_linear_reference(x, weight, bias, quantization, lambda),
    }
}

/// [`bit_linear`] in plain tensor operations, for every backend and dtype: the definition.
pub fn bit_linear_reference<const D: usize>(
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

/// There is a fused operation for CPU backends only.
#[cfg(not(any(feature = "flex", feature = "ndarray")))]
fn fused(_: &Tensor<2>, _: &Tensor<2>, _: Quantization, _: f32) -> Option<Tensor<2>> {
    None
}
