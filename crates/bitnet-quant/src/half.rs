//! The output head with its weight in half precision.

use bitnet_cpu::vec_in_huge_pages;
use burn::tensor::{DType, Tensor, TensorData, module::linear};
use half::f16;

use crate::QuantError;

#[cfg(feature = "flex")]
use crate::backends::half_linear as fused;

/// `y = x · wᵀ` with a weight in f16 and everything else in f32.
///
/// Generation reads the whole head for every token: half the bytes are half the time. On flex this is one operation on
/// the weight where it lies; elsewhere the weight is widened first.
///
/// # Shapes
/// - `x`: `[.., d_input]`, f32; `weight`: `[d_output, d_input]`, f16
/// - returns `[.., d_output]`, f32
///
/// # Panics
/// Where the last axis of `x` is not `d_input`.
pub fn half_linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let [d_output, d_input] = weight.dims();
    let mut shape = x.dims();
    let tokens = shape[..D - 1].iter().product();
    match fused(&x.clone().reshape([tokens, d_input]), &weight) {
        Some(y) => {
            shape[D - 1] = d_output;
            y.reshape(shape)
        }
        None => linear(x, weight.cast(DType::F32).transpose(), None),
    }
}

/// A weight in f16, in the memory that [`half_linear`] reads fastest; none where the device does not compute in f16.
///
/// # Shapes
/// - `weight`: `[d_output, d_input]`; the same out
///
/// # Errors
/// [`QuantError::Device`] where the device fails.
pub fn half_weight(weight: Tensor<2>) -> Result<Option<Tensor<2>>, QuantError> {
    let (shape, device) = (weight.dims(), weight.device());
    if !device.supports_dtype(DType::F16) {
        return Ok(None);
    }
    let values = weight.try_into_vec_as::<f32>().map_err(QuantError::device)?;
    let mut halves = vec_in_huge_pages(values.len());
    halves.extend(values.into_iter().map(f16::from_f32));
    Ok(Some(Tensor::from_data(TensorData::new(halves, shape), (&device, DType::F16))))
}

/// There is a fused operation for flex only.
#[cfg(not(feature = "flex"))]
fn fused(_: &Tensor<2>, _: &Tensor<2>) -> Option<Tensor<2>> {
    None
}
