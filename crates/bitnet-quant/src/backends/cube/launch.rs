//! Sizes, outputs and cubes of the kernels. Every tensor is f32, or i32 for words of codes.

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl::prelude::{AddressType, Client, CubeCount, CubeDim};
use burn_cubecl::cubecl::server::CubeCountSelection;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use super::kernels::packed::SPLITS;
use super::kernels::weight::FOLD;
use super::kernels::{UNITS, packed, tokens, weight};
use crate::packed::{BLOCK_INPUTS, TILE_ROWS};
use crate::{Bits, Granularity, PackedLayout};

/// Words of four codes that a token takes.
pub(super) fn code_words(d_input: usize, segment: usize) -> usize {
    d_input / segment * segment.next_multiple_of(BLOCK_INPUTS) / 4
}

/// Codes of `[tokens, d_input]`, four in a word, `[tokens, words]`, and the scales, `[tokens]`.
pub(super) fn quantize_tokens(x: CubeTensor, segment: usize, bits: Bits) -> (CubeTensor, CubeTensor) {
    let x = into_contiguous(x);
    let [n_tokens, d_input] = x.shape().dims();
    let codes = empty(&x, [n_tokens, code_words(d_input, segment)], DType::I32);
    let scales = empty(&x, [n_tokens], DType::F32);
    let client = x.client.clone();
    tokens::quantize::launch(
        &client,
        cubes(&client, n_tokens),
        CubeDim::new_1d(UNITS as u32),
        addresses(&[&x, &codes]),
        x.into_buffer_arg(),
        codes.clone().into_buffer_arg(),
        scales.clone().into_buffer_arg(),
        n_tokens,
        d_input,
        segment,
        code_words(segment, segment),
        bits.max_code() as f32,
    );
    (codes, scales)
}

/// `codes · scale`, or the codes alone, of tokens that were quantized for a weight: `[tokens, d_input]`.
pub(super) fn dequantize_tokens(
    codes: CubeTensor,
    scales: CubeTensor,
    layout: PackedLayout,
    scaled: bool,
) -> CubeTensor {
    let (codes, scales) = (into_contiguous(codes), into_contiguous(scales));
    let ([n_tokens], d_input, segment) = (scales.shape().dims(), layout.d_input, layout.segment());
    let y = empty(&codes, [n_tokens, d_input], DType::F32);
    let client = y.client.clone();
    tokens::dequantize::launch(
        &client,
        units(&client, n_tokens * d_input),
        CubeDim::new_1d(UNITS as u32),
        addresses(&[&y]),
        codes.into_buffer_arg(),
        scales.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        n_tokens,
        d_input,
        segment,
        code_words(segment, segment),
        scaled,
    );
    y
}

/// `x + λ·(Qa(x) − x)`, `[tokens, d_input]`.
pub(super) fn blend_tokens(x: CubeTensor, bits: Bits, lambda: f32) -> CubeTensor {
    let x = into_contiguous(x);
    let [n_tokens, d_input] = x.shape().dims();
    let y = empty(&x, [n_tokens, d_input], DType::F32);
    let client = x.client.clone();
    tokens::blend::launch(
        &client,
        cubes(&client, n_tokens),
        CubeDim::new_1d(UNITS as u32),
        addresses(&[&x]),
        x.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        n_tokens,
        d_input,
        bits.max_code() as f32,
        lambda,
        lambda == 1.0,
    );
    y
}

/// The absmean scales of a weight, as [`PackedWeight`](crate::PackedWeight) has them.
pub(super) fn absmean(w: CubeTensor, granularity: Granularity) -> CubeTensor {
    let w = &into_contiguous(w);
    let layout = layout(w, granularity);
    let PackedLayout { d_output, d_input, .. } = layout;
    let segment = layout.segment();
    let segments = d_input / segment;
    let tiled = granularity != Granularity::Tensor;
    let fold = |w: &CubeTensor, out: CubeTensor, n: usize, count: usize, finish: bool| {
        let lists = w.shape().num_elements() / n;
        let mut folds = 0;
        let mut len = n;
        while len > FOLD {
            len = len.div_ceil(2);
            folds += 1;
        }
        let capacity = len.next_power_of_two();
        weight::absmean::launch(
            &w.client,
            cubes(&w.client, lists),
            CubeDim::new_1d(capacity.min(UNITS) as u32),
            addresses(&[w]),
            w.clone().into_buffer_arg(),
            out.clone().into_buffer_arg(),
            lists,
            n,
            segments,
            count as f32,
            folds,
            capacity,
            finish,
            finish && tiled,
        );
        out
    };
    if tiled {
        return fold(w, empty(w, layout.scales_shape(), DType::F32), segment, segment, true);
    }
    let sums = fold(w, empty(w, [d_output], DType::F32), d_input, 1, false);
    fold(&sums, empty(w, layout.scales_shape(), DType::F32), d_output, d_output * d_input, true)
}

/// `w + λ·(Q(w) − w)` with the scales of `w`, `[d_output, d_input]`.
pub(super) fn blend_weight(
    w: CubeTensor,
    scales: CubeTensor,
    granularity: Granularity,
    lambda: f32,
) -> CubeTensor {
    let (w, scales) = (into_contiguous(w), into_contiguous(scales));
    let layout = layout(&w, granularity);
    let PackedLayout { d_output, d_input, .. } = layout;
    let y = empty(&w, [d_output, d_input], DType::F32);
    let client = w.client.clone();
    weight::blend::launch(
        &client,
        units(&client, d_output * d_input),
        CubeDim::new_1d(UNITS as u32),
        addresses(&[&w]),
        w.into_buffer_arg(),
        scales.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        d_output,
        d_input,
        layout.segment(),
        lambda,
        granularity == Granularity::Tensor,
        lambda == 1.0,
    );
    y
}

/// A latent weight as [`crate::PackedWeight`] has it: words `[tiles, blocks, 32]` and scales.
pub(super) fn pack(w: CubeTensor, granularity: Granularity) -> (CubeTensor, CubeTensor) {
    let w = into_contiguous(w);
    let layout = layout(&w, granularity);
    let PackedLayout { d_output, d_input, .. } = layout;
    let scales = absmean(w.clone(), granularity);
    let words = empty(&w, layout.words_shape(), DType::I32);
    let client = w.client.clone();
    weight::pack::launch(
        &client,
        units(&client, words.shape().num_elements()),
        CubeDim::new_1d(UNITS as u32),
        addresses(&[&w, &words]),
        w.into_buffer_arg(),
        scales.clone().into_buffer_arg(),
        words.clone().into_buffer_arg(),
        d_output,
        d_input,
        layout.segment(),
        segment_blocks(layout),
        granularity == Granularity::Tensor,
    );
    (words, scales)
}

/// `codes · scale`, or the codes alone, of a packed weight: `[d_output, d_input]`.
pub(super) fn dequantize_weight(
    words: CubeTensor,
    scales: CubeTensor,
    layout: PackedLayout,
    scaled: bool,
) -> CubeTensor {
    let (words, scales) = (into_contiguous(words), into_contiguous(scales));
    let PackedLayout { d_output, d_input, granularity } = layout;
    let w = empty(&words, [d_output, d_input], DType::F32);
    let client = w.client.clone();
    packed::dequantize::launch(
        &client,
        units(&client, d_output * d_input),
        CubeDim::new_1d(UNITS as u32),
        addresses(&[&words, &w]),
        words.into_buffer_arg(),
        scales.into_buffer_arg(),
        w.clone().into_buffer_arg(),
        d_output,
        d_input,
        layout.segment(),
        segment_blocks(layout),
        granularity == Granularity::Tensor,
        scaled,
    );
    w
}

/// The product of quantized tokens with a packed weight on words, `[tokens, d_output]`.
pub(super) fn product(
    codes: CubeTensor,
    x_scales: CubeTensor,
    words: CubeTensor,
    scales: CubeTensor,
    layout: PackedLayout,
) -> CubeTensor {
    let (words, scales) = (into_contiguous(words), into_contiguous(scales));
    let (codes, x_scales) = (into_contiguous(codes), into_contiguous(x_scales));
    let [n_tokens] = x_scales.shape().dims();
    let PackedLayout { d_output, d_input, granularity } = layout;
    let y = empty(&codes, [n_tokens, d_output], DType::F32);
    // Up to 8 tokens share a decoded word.
    let cube_tokens = n_tokens.next_power_of_two().min(SPLITS);
    let client = y.client.clone();
    let cube_count = cubes(&client, d_output.div_ceil(TILE_ROWS) * n_tokens.div_ceil(cube_tokens));
    let cube_dim = CubeDim::new_2d(TILE_ROWS as u32, SPLITS as u32);
    let address_type = addresses(&[&words, &codes, &y]);
    let segment_blocks = segment_blocks(layout);
    let (words, scales) = (words.into_buffer_arg(), scales.into_buffer_arg());
    let (codes, x_scales) = (codes.into_buffer_arg(), x_scales.into_buffer_arg());
    let out = y.clone().into_buffer_arg();
    match granularity {
        Granularity::Tensor | Granularity::Row => packed::product::launch(
            &client,
            cube_count,
            cube_dim,
            address_type,
            words,
            scales,
            codes,
            x_scales,
            out,
            n_tokens,
            d_output,
            segment_blocks,
            granularity == Granularity::Tensor,
            cube_tokens,
        ),
        Granularity::Group(group) => packed::product_of_groups::launch(
            &client,
            cube_count,
            cube_dim,
            address_type,
            words,
            scales,
            codes,
            x_scales,
            out,
            n_tokens,
            d_output,
            d_input / group,
            segment_blocks,
            cube_tokens,
        ),
    }
    y
}

/// `acc · (w_scale · x_scale)` where a row has one scale, `[tokens, d_output]`.
pub(super) fn scale(
    sums: CubeTensor,
    w_scales: CubeTensor,
    x_scales: CubeTensor,
    granularity: Granularity,
) -> CubeTensor {
    let (sums, w_scales) = (into_contiguous(sums), into_contiguous(w_scales));
    let x_scales = into_contiguous(x_scales);
    let [n_tokens, d_output] = sums.shape().dims();
    let y = empty(&sums, [n_tokens, d_output], DType::F32);
    let client = y.client.clone();
    packed::scale::launch(
        &client,
        units(&client, n_tokens * d_output),
        CubeDim::new_1d(UNITS as u32),
        addresses(&[&sums]),
        sums.into_buffer_arg(),
        w_scales.into_buffer_arg(),
        x_scales.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        n_tokens,
        d_output,
        granularity == Granularity::Tensor,
    );
    y
}

/// The shape of a latent weight.
fn layout(w: &CubeTensor, granularity: Granularity) -> PackedLayout {
    let [d_output, d_input] = w.shape().dims();
    PackedLayout { d_output, d_input, granularity }
}

/// Blocks of a segment, the last one padded.
fn segment_blocks(layout: PackedLayout) -> usize {
    layout.segment().div_ceil(BLOCK_INPUTS)
}

/// A new tensor on the device of another.
fn empty<const D: usize>(like: &CubeTensor, shape: [usize; D], dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), Shape::new(shape), dtype)
}

/// At least this many cubes, in as many dimensions as the device needs for them.
fn cubes(client: &Client, count: usize) -> CubeCount {
    CubeCountSelection::new(client, count as u32).cube_count()
}

/// Cubes of at least this many units.
fn units(client: &Client, count: usize) -> CubeCount {
    cubes(client, count.div_ceil(UNITS))
}

/// The width of indices that reaches every value of the tensors.
fn addresses(tensors: &[&CubeTensor]) -> AddressType {
    tensors.iter().map(|tensor| tensor.required_address_type()).max().unwrap_or_default()
}
