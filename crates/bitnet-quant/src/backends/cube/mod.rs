//! The operations on GPUs, as CubeCL kernels: one implementation for wgpu and CUDA.
//!
//! | in | subject |
//! |---|---|
//! | `kernels/` | code for the device |
//! | `launch.rs` | sizes, outputs and the number of cubes |
//! | `ops.rs` | the kernels as operations, with and without fusion |
//!
//! Integers, and so codes and accumulators, are those of the definition wherever the scales are. A scale is a division,
//! and WGSL allows one that is off by 2.5 units in the last place; and `x + λ·(q − x)` may be rounded once where CUDA
//! fuses it, instead of twice.

mod kernels;
mod launch;
mod ops;

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Cube, TensorMetadata};
use burn::tensor::DType;

use self::ops::CubeOps;
use super::BitLinearOps;
use super::autodiff::{LayerBackend, Weight, forward};
use super::packed::PackedOps;
use crate::{ActivationQuant, Bits, Granularity, KeptCodes, PackedLayout, Quantization};

/// Words of codes and their scales, of an input or of a weight: a quarter or a sixteenth of its bytes.
#[derive(Debug, Clone)]
pub(crate) struct SavedCodes {
    words: IntTensor<Cube>,
    scales: FloatTensor<Cube>,
    /// Of the weight, or of the one that the input was quantized for.
    layout: PackedLayout,
}

impl LayerBackend for Cube {
    type InputCodes = SavedCodes;
    type WeightCodes = SavedCodes;
    type WeightScales = FloatTensor<Self>;

    fn weight_codes(
        weight: FloatTensor<Self>,
        granularity: Granularity,
        before: Option<SavedCodes>,
    ) -> SavedCodes {
        drop(before);
        let [d_output, d_input] = weight.shape().dims();
        let (words, scales) = Self::pack(weight, granularity);
        SavedCodes { words, scales, layout: PackedLayout { d_output, d_input, granularity } }
    }

    fn weight_scales(weight: FloatTensor<Self>, granularity: Granularity) -> FloatTensor<Self> {
        Self::absmean(weight, granularity)
    }

    fn product_of_codes(
        x: FloatTensor<Self>,
        bits: Bits,
        weight: SavedCodes,
    ) -> (FloatTensor<Self>, SavedCodes) {
        let (layout, dtype) = (weight.layout, x.dtype());
        let (words, scales) = Self::quantize_tokens(x, layout.segment(), bits);
        let (x, x_scales) = (words.clone(), scales.clone());
        let y = <Self as CubeOps>::product(x, x_scales, weight.words, weight.scales, layout, dtype);
        (y, SavedCodes { words, scales, layout })
    }

    fn effective_input(x: FloatTensor<Self>, activation: ActivationQuant, lambda: f32) -> FloatTensor<Self> {
        match activation {
            ActivationQuant::PerToken(bits) => Self::blend_tokens(x, bits, lambda),
            _ => x,
        }
    }

    fn effective_weight(
        weight: FloatTensor<Self>,
        granularity: Granularity,
        scales: FloatTensor<Self>,
        lambda: f32,
        dtype: DType,
    ) -> FloatTensor<Self> {
        Self::blend_weight(weight, scales, granularity, lambda, dtype)
    }

    fn input_gradient_of_codes(grad: FloatTensor<Self>, weight: SavedCodes) -> FloatTensor<Self> {
        let weight = Self::packed_dequantize(weight.words, weight.scales, weight.layout, grad.dtype());
        Self::float_matmul(grad, weight)
    }

    fn weight_gradient_of_codes(grad: FloatTensor<Self>, x: SavedCodes) -> FloatTensor<Self> {
        let x = Self::dequantize_tokens(x.words, x.scales, x.layout, grad.dtype());
        Self::weight_gradient(grad, x)
    }

    fn weight_gradient(grad: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        let grad = Self::float_transpose(grad);
        match x.dtype() {
            DType::F32 => Self::float_matmul(grad, x),
            _ => Self::product_in_f32(grad, x),
        }
    }
}

impl BitLinearOps for Cube {
    fn bit_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        quantization: Quantization,
        lambda: f32,
        _: &KeptCodes,
    ) -> FloatTensor<Self> {
        let weight = Weight::<Self>::new(weight, quantization, lambda, None);
        forward(x, weight, quantization, lambda).0
    }
}
