//! Sizes, outputs and cubes of the kernels.

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl::prelude::{AddressType, Client, CubeCount, CubeDim};
use burn_cubecl::cubecl::server::CubeCountSelection;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use super::kernels::{self, SPLITS, TILE_ROWS, TOKEN_UNITS};
use crate::{Bits, Granularity, PackedLayout};

/// Inputs of a block.
const BLOCK_INPUTS: usize = 16;

/// Codes of tokens, four in a word, and their scales.
pub(super) struct QuantizedTokens {
    /// i32 `[tokens, words]`; every segment is padded to whole blocks.
    pub(super) codes: CubeTensor,
    /// f32 `[tokens]`
    pub(super) scales: CubeTensor,
}

/// Quantizes f32 `[tokens, d_input]` in segments of `segment` inputs, which divides `d_input`.
pub(super) fn quantize_tokens(x: CubeTensor, segment: usize, bits: Bits) -> QuantizedTokens {
    let x = into_contiguous(x);
    let [tokens, d_input] = x.shape().dims();
    let segment_words = segment.next_multiple_of(BLOCK_INPUTS) / 4;
    let codes = empty(&x, [tokens, d_input / segment * segment_words], DType::I32);
    let scales = empty(&x, [tokens], DType::F32);
    let client = x.client.clone();
    kernels::quantize_tokens::launch(
        &client,
        cubes(&client, tokens),
        CubeDim::new_1d(TOKEN_UNITS as u32),
        addresses(&[&x, &codes]),
        x.into_buffer_arg(),
        codes.clone().into_buffer_arg(),
        scales.clone().into_buffer_arg(),
        tokens,
        d_input,
        segment,
        segment_words,
        bits.max_code() as f32,
    );
    QuantizedTokens { codes, scales }
}

/// The product of quantized tokens with a packed weight, f32 `[tokens, d_output]`.
pub(super) fn packed_product(
    x: QuantizedTokens,
    words: CubeTensor,
    scales: CubeTensor,
    layout: PackedLayout,
) -> CubeTensor {
    let QuantizedTokens { codes, scales: x_scales } = x;
    let (words, scales) = (into_contiguous(words), into_contiguous(scales));
    let [tokens] = x_scales.shape().dims();
    let PackedLayout { d_output, d_input, granularity } = layout;
    let y = empty(&codes, [tokens, d_output], DType::F32);
    // Up to 8 tokens share a decoded word.
    let cube_tokens = tokens.next_power_of_two().min(SPLITS);
    let client = y.client.clone();
    let cube_count = cubes(&client, d_output.div_ceil(TILE_ROWS) * tokens.div_ceil(cube_tokens));
    let cube_dim = CubeDim::new_2d(TILE_ROWS as u32, SPLITS as u32);
    let address_type = addresses(&[&words, &codes, &y]);
    let segment_blocks = layout.segment().div_ceil(BLOCK_INPUTS);
    let (words, scales) = (words.into_buffer_arg(), scales.into_buffer_arg());
    let (codes, x_scales) = (codes.into_buffer_arg(), x_scales.into_buffer_arg());
    let out = y.clone().into_buffer_arg();
    match granularity {
        Granularity::Tensor | Granularity::Row => kernels::packed_product::launch(
            &client,
            cube_count,
            cube_dim,
            address_type,
            words,
            scales,
            codes,
            x_scales,
            out,
            tokens,
            d_output,
            segment_blocks,
            granularity == Granularity::Tensor,
            cube_tokens,
        ),
        Granularity::Group(group) => kernels::packed_product_of_groups::launch(
            &client,
            cube_count,
            cube_dim,
            address_type,
            words,
            scales,
            codes,
            x_scales,
            out,
            tokens,
            d_output,
            d_input / group,
            segment_blocks,
            cube_tokens,
        ),
    }
    y
}

/// `codes · scale` of a packed weight, f32 `[d_output, d_input]`.
pub(super) fn packed_dequantize(words: CubeTensor, scales: CubeTensor, layout: PackedLayout) -> CubeTensor {
    let (words, scales) = (into_contiguous(words), into_contiguous(scales));
    let PackedLayout { d_output, d_input, granularity } = layout;
    let w = empty(&words, [d_output, d_input], DType::F32);
    let client = w.client.clone();
    let cube_dim = CubeDim::new_1d(TOKEN_UNITS as u32);
    let cube_count = cubes(&client, (d_output * d_input).div_ceil(TOKEN_UNITS));
    kernels::packed_dequantize::launch(
        &client,
        cube_count,
        cube_dim,
        addresses(&[&words, &w]),
        words.into_buffer_arg(),
        scales.into_buffer_arg(),
        w.clone().into_buffer_arg(),
        d_output,
        d_input,
        layout.segment(),
        layout.segment().div_ceil(BLOCK_INPUTS),
        granularity == Granularity::Tensor,
    );
    w
}

/// A new tensor on the device of another.
fn empty<const D: usize>(like: &CubeTensor, shape: [usize; D], dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), Shape::new(shape), dtype)
}

/// At least this many cubes, in as many dimensions as the device needs for them.
fn cubes(client: &Client, count: usize) -> CubeCount {
    CubeCountSelection::new(client, count as u32).cube_count()
}

/// The width of indices that reaches every value of the tensors.
fn addresses(tensors: &[&CubeTensor]) -> AddressType {
    tensors.iter().map(|tensor| tensor.required_address_type()).max().unwrap_or_default()
}
