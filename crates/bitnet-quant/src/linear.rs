use std::cell::Cell;

use burn::tensor::{DType, Tensor, module::linear};
use serde::{Deserialize, Serialize};

#[cfg(any(feature = "flex", feature = "ndarray", feature = "cube"))]
use crate::backends::bit_linear as fused;
use crate::weight::absmean;
use crate::{
    ActivationQuant, Granularity, KeptCodes, QuantizedActivations, quantize_activations, straight_through,
};

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
/// `x_eff` and `w_eff` move from the latent values (λ = 0) to the quantized ones (λ = 1), where both are integers times
/// scales: there the product is that of the integers, `y = acc · (w_scale · x_scale)`, which a packed weight gives too, bit
/// for bit. The gradients are `dW = gᵀ·x_eff`, `dX = g·w_eff` and `dbias = Σg` at every λ. The bias is
/// never quantized.
///
/// This is one operation with a backward pass of its own: kernels quantize each operand in one pass, multiply int8 with
/// ternary codes at λ = 1, and keep the input's int8 codes for the backward pass instead of its values. An input of f16 or
/// bf16 is computed in f32 on CPUs, and in its own type on GPUs. Where activations have one scale per tensor, and in f64, it is
/// [`bit_linear_reference`], whose codes are the same.
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
    bit_linear_keeping(x, weight, bias, quantization, lambda, &KeptCodes::default())
}

/// [`bit_linear`] of a layer that quantizes its weight once per optimizer step, and not once per micro-batch.
///
/// # Panics
/// Those of [`bit_linear`].
pub fn bit_linear_keeping<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    quantization: Quantization,
    lambda: f32,
    kept: &KeptCodes,
) -> Tensor<D> {
    let [d_output, d_input] = weight.dims();
    let mut shape = x.dims();
    let tokens = shape[..D - 1].iter().product();
    let fused = match plain() {
        true => None,
        false => fused(&x.clone().reshape([tokens, d_input]), &weight, quantization, lambda, kept),
    };
    match fused {
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

thread_local! {
    static PLAIN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with [`bit_linear_reference`] in place of the fused operation, in every layer that this thread runs
/// forward: to measure what fusing gains, or to see whether a difference comes from it.
pub fn with_plain_operations<R>(work: impl FnOnce() -> R) -> R {
    let _before = Restored(PLAIN.replace(true));
    work()
}

/// Whether the definitions are asked for.
pub(crate) fn plain() -> bool {
    PLAIN.get()
}

/// What [`PLAIN`] was, put back on drop, also when the work panics.
struct Restored(bool);

impl Drop for Restored {
    fn drop(&mut self) {
        PLAIN.set(self.0);
    }
}

/// [`bit_linear`] in plain tensor operations, for every backend and dtype: the definition.
///
/// The result has the dtype of `x`. A weight may be wider: it is quantized as it is, which is how f32 weights train under
/// half-precision activations. At λ = 1 the product of the integers is then rounded once to the input's dtype; below, and for
/// the gradients, the effective values are.
pub fn bit_linear_reference<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    quantization: Quantization,
    lambda: f32,
) -> Tensor<D> {
    let dtype = x.dtype();
    if lambda == 0.0 {
        return linear(x, weight.cast(dtype).transpose(), bias);
    }
    let [d_output, d_input] = weight.dims();
    let mut shape = x.dims();
    let tokens = shape[..D - 1].iter().product();
    shape[D - 1] = d_output;
    let x = x.reshape([tokens, d_input]);
    let (codes, scale) = absmean(weight.clone().inner(), quantization.weight);
    let quantized = quantize_activations(x.clone().inner(), quantization.activation);
    let value = match &quantized {
        Some(x) if lambda == 1.0 => Some(integer_product(x, codes.clone(), scale.clone())),
        _ => None,
    };
    let y = match value {
        Some(value) if !(x.is_tracked() || weight.is_tracked()) => value.cast(dtype),
        value => {
            let w_eff = straight_through(weight, (codes * scale).reshape([d_output, d_input]), lambda);
            let x_eff = match quantized {
                Some(quantized) => straight_through(x, quantized.dequantize(), lambda),
                None => x,
            };
            let y = linear(x_eff, w_eff.cast(dtype).transpose(), None);
            match value {
                Some(value) => straight_through(y, value, 1.0),
                None => y,
            }
        }
    };
    let y = y.reshape(shape);
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

/// The layer at λ = 1 on integers: `Σ_segments acc · (w_scale · x_scale)` with `acc = Σ code · x`, segments ascending.
///
/// Sums of integers are exact in f32 up to 131 072 inputs, so every order of summation gives the same bits.
///
/// # Shapes
/// - `x`: `[tokens, d_input]`
/// - `codes`: `[d_output, segments, inputs per segment]`, `scales`: `[d_output or 1, segments, 1]`, f32
/// - returns f32 `[tokens, d_output]`
pub(crate) fn integer_product(x: &QuantizedActivations<2>, codes: Tensor<3>, scales: Tensor<3>) -> Tensor<2> {
    let [_, segments, segment] = codes.dims();
    let (x_codes, x_scale) = (x.codes().float().cast(DType::F32), x.scale());
    let product = |at: usize| {
        let codes = codes.clone().narrow(1, at, 1).squeeze_dim::<2>(1);
        let scale = scales.clone().narrow(1, at, 1).squeeze_dim::<2>(1).transpose(); // [1, d_output or 1]
        let sums = x_codes.clone().narrow(1, at * segment, segment).matmul(codes.transpose());
        sums * (scale * x_scale.clone())
    };
    (1..segments).fold(product(0), |sum, at| sum + product(at))
}

/// Without a backend there is no operation of its own.
#[cfg(not(any(feature = "flex", feature = "ndarray", feature = "cube")))]
fn fused(_: &Tensor<2>, _: &Tensor<2>, _: Quantization, _: f32, _: &KeptCodes) -> Option<Tensor<2>> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_operations_end_with_the_work_also_when_it_panics() {
        assert!(!PLAIN.get());
        let inside = with_plain_operations(|| with_plain_operations(|| PLAIN.get()) && PLAIN.get());
        assert!(inside && !PLAIN.get());
        assert!(std::panic::catch_unwind(|| with_plain_operations(|| panic!("of the work"))).is_err());
        assert!(!PLAIN.get());
    }
}
