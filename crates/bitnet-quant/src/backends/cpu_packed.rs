//! The product with a packed weight on slices.

use bitnet_cpu::{Kernel, PackedTernary};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::DType;

use super::cpu::{CpuBackend, dims, quantize, sound, tensor};
use super::packed::PackedOps;
use crate::{Bits, PackedLayout};

impl<B: CpuBackend> PackedOps for B {
    fn packed_linear(
        x: FloatTensor<B>,
        words: IntTensor<B>,
        scales: FloatTensor<B>,
        layout: PackedLayout,
        bits: Bits,
    ) -> FloatTensor<B> {
        let [tokens, _] = dims::<B>(&x);
        let quantized = quantize::<B>(&x, bits);
        let mut y = vec![0.0; tokens * layout.d_output];
        with_weight::<B, _>(&words, &scales, layout, |weight| {
            sound(Kernel::new().matmul(weight, &quantized.codes, &quantized.scales, &mut y));
        });
        tensor::<B>(y, [tokens, layout.d_output], &x)
    }

    fn packed_dequantize(
        words: IntTensor<B>,
        scales: FloatTensor<B>,
        layout: PackedLayout,
        _: DType,
    ) -> FloatTensor<B> {
        let values = with_weight::<B, _>(&words, &scales, layout, |weight| weight.dequantize());
        tensor::<B>(values, [layout.d_output, layout.d_input], &scales)
    }
}

/// Calls `read` with the weight where it lies.
fn with_weight<B: CpuBackend, R>(
    words: &IntTensor<B>,
    scales: &FloatTensor<B>,
    layout: PackedLayout,
    read: impl FnOnce(&PackedTernary) -> R,
) -> R {
    let PackedLayout { d_output, d_input, granularity } = layout;
    B::read_words(words, |words| {
        B::read(scales, |scales| {
            read(&sound(PackedTernary::from_words(words, scales, d_output, d_input, granularity)))
        })
    })
}
