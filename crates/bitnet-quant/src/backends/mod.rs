//! The fused layer, per backend. On a CPU the vector kernels of `bitnet-cpu` quantize, in one pass over each operand;
//! other backends run the definition.

#![allow(deprecated, reason = "ndarray is deprecated upstream, and a backend that this project still tests")]

#[cfg(any(feature = "flex", feature = "ndarray"))]
mod autodiff;
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
mod packed;

#[cfg(feature = "flex")]
pub(crate) use half::half_linear;
pub(crate) use packed::packed_linear;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Tensor};

use crate::{ActivationQuant, Quantization};

/// The product of a BitNet layer as one operation, with a backward pass written by hand.
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
)]
pub(crate) trait BitLinearOps: Backend {
    /// `x_eff · w_effᵀ`.
    ///
    /// # Shapes
    /// - `x`: `[tokens, d_input]`, `weight`: `[d_output, d_input]`, both f32
    /// - returns `[tokens, d_output]`
    fn bit_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        quantization: Quantization,
        lambda: f32,
    ) -> FloatTensor<Self>;
}

/// The fused product, where the device and the setting have one.
pub(crate) fn bit_linear(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    quantization: Quantization,
    lambda: f32,
) -> Option<Tensor<2>> {
    let [tokens, d_input] = x.dims();
    let fits = tokens > 0 && d_input <= bitnet_cpu::MAX_D_INPUT;
    let f32_only = x.dtype() == DType::F32 && weight.dtype() == DType::F32;
    let per_tensor = matches!(quantization.activation, ActivationQuant::PerTensor(_));
    if lambda == 0.0 || place(x) != Some(Place::Cpu) || !fits || !f32_only || per_tensor {
        return None;
    }
    let (x, weight) = in_one_context(x.clone(), weight.clone());
    let y = <Dispatch as BitLinearOps>::bit_linear(
        x.into_dispatch(),
        weight.into_dispatch(),
        quantization,
        lambda,
    );
    Some(Tensor::from_dispatch(y))
}

/// Where a tensor lies, of the places that have operations of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In this process's memory: slices, and the kernels of `bitnet-cpu`.
    #[allow(dead_code, reason = "not in a build without CPU backends")]
    Cpu,
    /// On a GPU: CubeCL kernels.
    #[allow(dead_code, reason = "not in a build without GPU backends")]
    Gpu,
}

/// Where `x` lies; none where the definition has to do.
fn place(x: &Tensor<2>) -> Option<Place> {
    match x.clone().inner().device().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => Some(Place::Cpu),
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => Some(Place::Cpu),
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => Some(Place::Gpu),
        #[allow(unreachable_patterns, reason = "reached where another backend is compiled in")]
        _ => None,
    }
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
