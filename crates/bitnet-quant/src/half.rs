//! The output head with its weight in half precision.

use burn::tensor::{DType, Tensor, module::linear};

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

/// There is a fused operation for flex only.
#[cfg(not(feature = "flex"))]
fn fused(_: &Tensor<2>, _: &Tensor<2>) -> Option<Tensor<2>> {
    None
}
