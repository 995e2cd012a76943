//! The product with a weight in f16, as one operation where the backend's values can be read as a slice.

use bitnet_cpu::Kernel;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, DispatchDevice, Flex, backend_extension};
use burn::tensor::{DType, Tensor};
use half::f16;

use super::cpu::{CpuBackend, dims, sound, tensor};

/// The product with a weight in f16.
#[backend_extension(Flex)]
pub(crate) trait HalfOps: Backend {
    /// `x · wᵀ`.
    ///
    /// # Shapes
    /// - `x`: f32 `[tokens, d_input]`; `weight`: f16 `[d_output, d_input]`
    /// - returns f32 `[tokens, d_output]`
    fn half_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The operation, where the device has one.
pub(crate) fn half_linear(x: &Tensor<2>, weight: &Tensor<2>) -> Option<Tensor<2>> {
    let plain = !x.is_autodiff() && !weight.is_autodiff();
    let fits = x.dtype() == DType::F32 && weight.dtype() == DType::F16;
    if !plain || !fits || !matches!(x.device().as_dispatch(), DispatchDevice::Flex(_)) {
        return None;
    }
    let y = <Dispatch as HalfOps>::half_linear(x.clone().into_dispatch(), weight.clone().into_dispatch());
    Some(Tensor::from_dispatch(y))
}

impl HalfOps for Flex {
    fn half_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let ([tokens, d_input], [d_output, _]) = (dims::<Self>(&x), dims::<Self>(&weight));
        let mut y = vec![0.0; tokens * d_output];
        let weight = weight.to_contiguous();
        let weight: &[f16] = weight.as_slice().unwrap_or_default();
        Self::read(&x, |x| sound(Kernel::new().head(weight, x, d_input, &mut y)));
        tensor::<Self>(y, [tokens, d_output], &x)
    }
}
