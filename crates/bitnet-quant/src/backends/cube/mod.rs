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
use burn::backend::tensor::{Device, FloatTensor, IntTensor};
use burn::backend::{Cube, TensorMetadata};

use self::ops::CubeOps;
use super::BitLinearOps;
use super::autodiff::LayerBackend;
use crate::{ActivationQuant, Granularity, PackedLayout, Quantization};

/// Codes of tokens, four in a word, and their scales: a quarter of the input's bytes.
#[derive(Debug, Clone)]
pub(crate) struct SavedCodes {
    codes: IntTensor<Cube>,
    scales: FloatTensor<Cube>,
    /// Of the weight that they were quantized for.
    layout: PackedLayout,
}

impl LayerBackend for Cube {
    type Codes = SavedCodes;

    fn forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        quantization: Quantization,
        lambda: f32,
    ) -> (FloatTensor<Self>, Option<SavedCodes>) {
        let Quantization { weight: granularity, activation } = quantization;
        match activation {
            ActivationQuant::PerToken(bits) if lambda == 1.0 => {
                let [d_output, d_input] = weight.shape().dims();
                let layout = PackedLayout { d_output, d_input, granularity };
                let (words, w_scales) = Self::pack(weight, granularity);
                let (codes, scales) = Self::quantize_tokens(x, layout.segment(), bits);
                let y = Self::product(codes.clone(), scales.clone(), words, w_scales, layout);
                (y, Some(SavedCodes { codes, scales, layout }))
            }
            _ => {
                let x = Self::effective_input(x, activation, lambda);
                let weight = Self::effective_weight(weight, granularity, lambda);
                (Self::float_matmul(x, Self::float_transpose(weight)), None)
            }
        }
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
        lambda: f32,
    ) -> FloatTensor<Self> {
        Self::blend_weight(weight, granularity, lambda)
    }

    fn input_from_codes(saved: SavedCodes, _: &Device<Self>) -> FloatTensor<Self> {
        Self::dequantize_tokens(saved.codes, saved.scales, saved.layout)
    }
}

impl BitLinearOps for Cube {
    fn bit_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        quantization: Quantization,
        lambda: f32,
    ) -> FloatTensor<Self> {
        Self::forward(x, weight, quantization, lambda).0
    }
}
