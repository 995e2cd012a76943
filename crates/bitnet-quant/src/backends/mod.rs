//! The fused layer, per backend. On a CPU the vector kernels of `bitnet-cpu` quantize, in one pass over each operand, on
//! a GPU those in `cube`; other backends run the definition.

#![allow(deprecated, reason = "ndarray is deprecated upstream, and a backend that this project still tests")]

mod autodiff;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod blocks;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod cpu;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod cpu_packed;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "flex")]
mod half;
#[cfg(feature = "ndarray")]
mod ndarray;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod optimizer;
mod packed;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod training;

#[cfg(feature = "flex")]
pub(crate) use half::half_linear;
pub(crate) use packed::packed_linear;
#[cfg(any(feature = "flex", feature = "ndarray"))]
pub(crate) use training::{
    adamw, causal_attention, dense_linear, next_token_cross_entropy, rms_norm, silu_gated, square_sum,
};

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};

use crate::device::is_cpu;
use crate::{ActivationQuant, KeptCodes, Quantization};

/// The product of a BitNet layer as one operation, with a backward pass written by hand.
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
)]
pub(crate) trait BitLinearOps: Backend {
    /// `x_eff · w_effᵀ`.
    ///
    /// # Shapes
    /// - `x`: `[tokens, d_input]`, of [`type_of_operations`]; `weight`: f32 `[d_output, d_input]`
    /// - returns `[tokens, d_output]` in the type of `x`
    fn bit_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        quantization: Quantization,
        lambda: f32,
        kept: &KeptCodes,
    ) -> FloatTensor<Self>;
}

/// The fused product, where the device and the setting have one.
pub(crate) fn bit_linear(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    quantization: Quantization,
    lambda: f32,
    kept: &KeptCodes,
) -> Option<Tensor<2>> {
    let [tokens, d_input] = x.dims();
    let fits = tokens > 0 && d_input <= bitnet_cpu::MAX_D_INPUT;
    let per_tensor = matches!(quantization.activation, ActivationQuant::PerTensor(_));
    if lambda == 0.0 || !fits || per_tensor || !is_f32_or_half(weight.dtype()) {
        return None;
    }
    let dtype = x.dtype();
    let x = x.clone().cast(type_of_operations(x)?);
    let (x, weight) = in_one_context(x, weight.clone().cast(DType::F32));
    let y = <Dispatch as BitLinearOps>::bit_linear(
        x.into_dispatch(),
        weight.into_dispatch(),
        quantization,
        lambda,
        kept,
    );
    Some(Tensor::<2>::from_dispatch(y).cast(dtype))
}

/// In which type the operations of a backend take `x`, if it has them: f32 for the kernels of `bitnet-cpu`, its own for those
/// of CubeCL.
fn type_of_operations(x: &Tensor<2>) -> Option<DType> {
    let device = x.clone().inner().device();
    let dtype = match device.as_dispatch() {
        _ if is_cpu(&device) => DType::F32,
        #[cfg(feature = "cube")]
        burn::backend::DispatchDevice::Cube(_) => x.dtype(),
        _ => return None,
    };
    is_f32_or_half(x.dtype()).then_some(dtype)
}

/// The types that f32 holds exactly.
fn is_f32_or_half(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Lifts the one of two tensors that has no autodiff to the other's.
fn in_one_context(a: Tensor<2>, b: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let lift = |tensor: Tensor<2>, like: &Tensor<2>| match like.gradient_checkpointing_strategy() {
        Some(strategy) if !tensor.is_autodiff() => {
            tensor.autodiff().with_gradient_checkpointing_strategy(strategy)
        }
        _ => tensor,
    };
    let a = lift(a, &b);
    let b = lift(b, &a);
    (a, b)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::{Granularity, PackedWeight, ternarize};

    /// Results show no difference: both have the same codes, and are rounded to the same type.
    #[test]
    fn f32_and_halves_are_fused() {
        let device = crate::device("flex").unwrap();
        let values = |shape: [usize; 2]| Tensor::<2>::ones(shape, &device);
        let weight = ternarize(values([4, 16]), Granularity::Tensor).unwrap().read().unwrap();
        let packed = PackedWeight::pack(&weight, &device).unwrap();
        for (dtype, fused) in
            [(DType::F32, true), (DType::F16, true), (DType::BF16, true), (DType::F64, false)]
        {
            let x = values([3, 16]).cast(dtype);
            let quantization = Quantization::default();
            for (x, w) in [(x.clone(), values([4, 16])), (values([3, 16]), values([4, 16]).cast(dtype))] {
                let y = bit_linear(&x, &w, quantization, 1.0, &KeptCodes::default());
                assert_eq!(y.map(|y| y.dtype()), fused.then_some(x.dtype()), "{dtype:?}");
            }
            let y = packed_linear(&x, &packed, quantization.activation);
            assert_eq!(y.map(|y| y.dtype()), fused.then_some(dtype), "{dtype:?}, packed");
        }
    }
}
