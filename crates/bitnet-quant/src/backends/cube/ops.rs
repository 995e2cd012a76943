//! The kernels as operations, which fusion can defer.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, backend_extension};
use burn::tensor::DType;
#[cfg(feature = "fusion")]
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;

use super::super::packed::PackedOps;
use super::launch;
use crate::{Bits, Granularity, PackedLayout};

/// Where there are more tokens than this, and one scale per row, the product is one of matrices: the codes are made ready
/// for the matrix product of the backend. Not measured on a GPU yet.
const FEW_TOKENS: usize = 32;

/// The quantizers of a layer, and its product at λ = 1, on a GPU. Weights and scales are f32; `x` may also be f16 or bf16, and
/// so may what is computed, where a `dtype` says in which type.
#[backend_extension(Cube, Fusion: cfg(feature = "fusion"))]
pub(super) trait CubeOps: Backend {
    /// Codes of `x`, `[tokens, d_input]`, in words of four, each segment padded to whole blocks; and the scales, `[tokens]`.
    #[fusion(meta = |x, segment, _bits| {
        let [tokens, d_input] = x.shape.dims();
        let words = launch::code_words(d_input, *segment);
        (spec([tokens, words], DType::I32), spec([tokens], DType::F32))
    })]
    fn quantize_tokens(
        x: FloatTensor<Self>,
        segment: usize,
        bits: Bits,
    ) -> (IntTensor<Self>, FloatTensor<Self>);

    /// `codes · scale` of tokens that were quantized for a weight, `[tokens, d_input]`.
    #[fusion(dtype = *dtype, shape = Shape::new([scales[0], layout.d_input]))]
    fn dequantize_tokens(
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: PackedLayout,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// `x + λ·(Qa(x) − x)`, `[tokens, d_input]`.
    #[fusion(dtype = x, shape = x)]
    fn blend_tokens(x: FloatTensor<Self>, bits: Bits, lambda: f32) -> FloatTensor<Self>;

    /// A weight's scales by absmean, as [`PackedWeight`](crate::PackedWeight) has them.
    #[fusion(dtype = w, shape = {
        let [d_output, d_input] = w.dims();
        Shape::new(PackedLayout { d_output, d_input, granularity: *granularity }.scales_shape())
    })]
    fn absmean(w: FloatTensor<Self>, granularity: Granularity) -> FloatTensor<Self>;

    /// `w + λ·(Q(w) − w)` with the scales of `w`, `[d_output, d_input]`.
    #[fusion(dtype = *dtype, shape = w)]
    fn blend_weight(
        w: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        granularity: Granularity,
        lambda: f32,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// The words and scales of a latent weight, as [`PackedWeight`](crate::PackedWeight) has them.
    #[fusion(meta = |w, granularity| {
        let [d_output, d_input] = w.shape.dims();
        let layout = PackedLayout { d_output, d_input, granularity: *granularity };
        (spec(layout.words_shape(), DType::I32), spec(layout.scales_shape(), DType::F32))
    })]
    fn pack(w: FloatTensor<Self>, granularity: Granularity) -> (IntTensor<Self>, FloatTensor<Self>);

    /// `acc · (w_scale · x_scale)` of quantized tokens and a packed weight, `[tokens, d_output]`.
    #[fusion(dtype = *dtype, shape = Shape::new([x_scales[0], layout.d_output]))]
    fn product(
        codes: IntTensor<Self>,
        x_scales: FloatTensor<Self>,
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: PackedLayout,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// `a · b` in f32, of two matrices in less.
    #[fusion(dtype = DType::F32, shape = Shape::new([a[0], b[1]]))]
    fn product_in_f32(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;
}

#[cfg(feature = "fusion")]
fn spec<const D: usize>(shape: [usize; D], dtype: DType) -> burn::backend::fusion::custom::TensorSpec {
    burn::backend::fusion::custom::TensorSpec::new(Shape::new(shape), dtype)
}

impl CubeOps for CubeBackend {
    fn quantize_tokens(
        x: FloatTensor<Self>,
        segment: usize,
        bits: Bits,
    ) -> (IntTensor<Self>, FloatTensor<Self>) {
        launch::quantize_tokens(x, segment, bits)
    }

    fn dequantize_tokens(
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: PackedLayout,
        dtype: DType,
    ) -> FloatTensor<Self> {
        launch::dequantize_tokens(codes, scales, layout, true, dtype)
    }

    fn blend_tokens(x: FloatTensor<Self>, bits: Bits, lambda: f32) -> FloatTensor<Self> {
        launch::blend_tokens(x, bits, lambda)
    }

    fn absmean(w: FloatTensor<Self>, granularity: Granularity) -> FloatTensor<Self> {
        launch::absmean(w, granularity)
    }

    fn blend_weight(
        w: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        granularity: Granularity,
        lambda: f32,
        dtype: DType,
    ) -> FloatTensor<Self> {
        launch::blend_weight(w, scales, granularity, lambda, dtype)
    }

    fn pack(w: FloatTensor<Self>, granularity: Granularity) -> (IntTensor<Self>, FloatTensor<Self>) {
        launch::pack(w, granularity)
    }

    fn product(
        codes: IntTensor<Self>,
        x_scales: FloatTensor<Self>,
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: PackedLayout,
        dtype: DType,
    ) -> FloatTensor<Self> {
        let [tokens] = x_scales.shape().dims();
        if tokens <= FEW_TOKENS || matches!(layout.granularity, Granularity::Group(_)) {
            return launch::product(codes, x_scales, words, scales, layout, dtype);
        }
        let sums = launch::sums(codes, x_scales.clone(), words, scales.clone(), layout);
        launch::scale(sums, scales, x_scales, layout.granularity, dtype)
    }

    fn product_in_f32(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        launch::matrix_product(a, b, DType::F32)
    }
}

impl PackedOps for CubeBackend {
    fn packed_linear(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: PackedLayout,
        bits: Bits,
    ) -> FloatTensor<Self> {
        let dtype = x.dtype;
        let (codes, x_scales) = Self::quantize_tokens(x, layout.segment(), bits);
        Self::product(codes, x_scales, words, scales, layout, dtype)
    }

    fn packed_dequantize(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: PackedLayout,
        dtype: DType,
    ) -> FloatTensor<Self> {
        launch::dequantize_weight(words, scales, layout, true, dtype)
    }
}
