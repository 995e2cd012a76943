//! The operations on GPUs, as CubeCL kernels: one implementation for wgpu and CUDA.
//!
//! | in | subject |
//! |---|---|
//! | `kernels.rs` | code for the device |
//! | `launch.rs` | sizes, outputs and the number of cubes |
//!
//! Integers, and so codes and accumulators, are those of the definition wherever the scales are. A scale is a division,
//! and WGSL allows one that is off by 2.5 units in the last place.

mod kernels;
mod launch;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn_cubecl::CubeBackend;

use super::packed::PackedOps;
use crate::{Bits, PackedLayout};

impl PackedOps for CubeBackend {
    fn packed_linear(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: PackedLayout,
        bits: Bits,
    ) -> FloatTensor<Self> {
        let x = launch::quantize_tokens(x, layout.segment(), bits);
        launch::packed_product(x, words, scales, layout)
    }

    fn packed_dequantize(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: PackedLayout,
    ) -> FloatTensor<Self> {
        launch::packed_dequantize(words, scales, layout)
    }
}
