//! Sizes, outputs and cubes of the kernels. Words of codes are i32; weights and scales are f32, inputs and outputs of the layer f32,
//! f16 or bf16. Kernels compute in f32, and products of codes are exact in any type.

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl::ir::features::TypeUsage;
use burn_cubecl::cubecl::ir::{ElemType, FloatKind, IntKind};
use burn_cubecl::cubecl::prelude::{AddressType, Client, CubeCount, CubeDim};
use burn_cubecl::cubecl::server::CubeCountSelection;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::permute;
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
    let (client, element) = (x.client.clone(), element(x.dtype));
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
        element,
    );
    (codes, scales)
}

/// `codes · scale`, or the codes alone, of tokens that were quantized for a weight: `[tokens, d_input]`.
pub(super) fn dequantize_tokens(
    codes: CubeTensor,
    scales: CubeTensor,
    layout: PackedLayout,
    scaled: bool,
    dtype: DType,
) -> CubeTensor {
    let (codes, scales) = (into_contiguous(codes), into_contiguous(scales));
    let ([n_tokens], d_input, segment) = (scales.shape().dims(), layout.d_input, layout.segment());
    let y = empty(&codes, [n_tokens, d_input], dtype);
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
        element(dtype),
    );
    y
}

/// `x + λ·(Qa(x) − x)`, `[tokens, d_input]`.
pub(super) fn blend_tokens(x: CubeTensor, bits: Bits, lambda: f32) -> CubeTensor {
    let x = into_contiguous(x);
    let [n_tokens, d_input] = x.shape().dims();
    let y = empty(&x, [n_tokens, d_input], x.dtype);
    let (client, element) = (x.client.clone(), element(x.dtype));
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
        element,
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
    dtype: DType,
) -> CubeTensor {
    let (w, scales) = (into_contiguous(w), into_contiguous(scales));
    let layout = layout(&w, granularity);
    let PackedLayout { d_output, d_input, .. } = layout;
    let y = empty(&w, [d_output, d_input], dtype);
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
        element(dtype),
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
    dtype: DType,
) -> CubeTensor {
    let (words, scales) = (into_contiguous(words), into_contiguous(scales));
    let PackedLayout { d_output, d_input, granularity } = layout;
    let w = empty(&words, [d_output, d_input], dtype);
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
        element(dtype),
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
    dtype: DType,
) -> CubeTensor {
    let (words, scales) = (into_contiguous(words), into_contiguous(scales));
    let (codes, x_scales) = (into_contiguous(codes), into_contiguous(x_scales));
    let [n_tokens] = x_scales.shape().dims();
    let PackedLayout { d_output, d_input, granularity } = layout;
    let y = empty(&codes, [n_tokens, d_output], dtype);
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
            element(dtype),
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
            element(dtype),
        ),
    }
    y
}

/// `Σ code · x` of quantized tokens and a packed weight whose rows have one scale each, by the matrix product of the backend:
/// i32 or f32 `[tokens, d_output]`, exact.
///
/// Codes are multiplied in the narrowest type that the device takes. int8 is what tensor cores multiply twice as fast as
/// halves, and four times as fast as f32; halves hold every code, and f32 their sums.
pub(super) fn sums(
    codes: CubeTensor,
    x_scales: CubeTensor,
    words: CubeTensor,
    scales: CubeTensor,
    layout: PackedLayout,
) -> CubeTensor {
    let client = codes.client.clone();
    let (x, w, sum) = if multiplies_int8(&client) {
        (as_int8(into_contiguous(codes)), as_int8(bytes(words, layout)), DType::I32)
    } else {
        let usage = client.properties().type_usage(ElemType::Float(FloatKind::F16));
        let half = usage.is_superset(TypeUsage::Buffer | TypeUsage::Conversion | TypeUsage::Arithmetic);
        let dtype = if half { DType::F16 } else { DType::F32 };
        let x = dequantize_tokens(codes, x_scales, layout, false, dtype);
        (x, dequantize_weight(words, scales, layout, false, dtype), DType::F32)
    };
    matrix_product(x, permute(w, &[1, 0]), sum)
}

/// `a · b` in a wider type.
pub(super) fn matrix_product(a: CubeTensor, b: CubeTensor, dtype: DType) -> CubeTensor {
    match matmul(a, b, None, MatmulStrategy::default(), dtype) {
        Ok(product) => product,
        Err(error) => unreachable!("every device multiplies: {error:?}"),
    }
}

/// Whether the device has int8 in memory and instructions for its products, as NVIDIA's tensor cores are.
fn multiplies_int8(client: &Client) -> bool {
    let (codes, sums) = (ElemType::Int(IntKind::I8), ElemType::Int(IntKind::I32));
    let properties = client.properties();
    let mut configs = properties.features.matmul.cmma.iter();
    properties.type_usage(codes).contains(TypeUsage::Buffer)
        && configs.any(|config| [config.a_type, config.b_type, config.cd_type] == [codes, codes, sums])
}

/// The bytes of words as codes: `[rows, 4 · words]`.
fn as_int8(words: CubeTensor) -> CubeTensor {
    let [rows, n_words] = words.shape().dims();
    CubeTensor::new_contiguous(
        words.client,
        words.device,
        Shape::new([rows, 4 * n_words]),
        words.handle,
        DType::I8,
    )
}

/// The codes of a packed weight, four in a word, `[d_output, words]`.
fn bytes(words: CubeTensor, layout: PackedLayout) -> CubeTensor {
    let words = into_contiguous(words);
    let PackedLayout { d_output, d_input, .. } = layout;
    let codes = empty(&words, [d_output, code_words(d_input, layout.segment())], DType::I32);
    let client = words.client.clone();
    packed::bytes::launch(
        &client,
        units(&client, codes.shape().num_elements()),
        CubeDim::new_1d(UNITS as u32),
        addresses(&[&words, &codes]),
        words.into_buffer_arg(),
        codes.clone().into_buffer_arg(),
        d_output,
        segment_blocks(layout),
    );
    codes
}

/// `acc · (w_scale · x_scale)` where a row has one scale, `[tokens, d_output]`.
pub(super) fn scale(
    sums: CubeTensor,
    w_scales: CubeTensor,
    x_scales: CubeTensor,
    granularity: Granularity,
    dtype: DType,
) -> CubeTensor {
    let (sums, w_scales) = (into_contiguous(sums), into_contiguous(w_scales));
    let x_scales = into_contiguous(x_scales);
    let [n_tokens, d_output] = sums.shape().dims();
    let y = empty(&sums, [n_tokens, d_output], dtype);
    let (client, types) = (y.client.clone(), [element(sums.dtype), element(dtype)]);
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
        types,
    );
    y
}

/// CubeCL's name for a type of the kernels.
fn element(dtype: DType) -> ElemType {
    match dtype {
        DType::F16 => ElemType::Float(FloatKind::F16),
        DType::BF16 => ElemType::Float(FloatKind::BF16),
        DType::I32 => ElemType::Int(IntKind::I32),
        _ => ElemType::Float(FloatKind::F32),
    }
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

#[cfg(test)]
mod tests {
    use burn::backend::DispatchDevice;
    use burn::backend::ops::{FloatTensorOps, IntTensorOps};
    use burn::tensor::{Element, TensorData};
    use burn_cubecl::CubeBackend;

    use super::*;

    fn read<T: Element>(tensor: CubeTensor) -> Vec<T> {
        let (shape, dtype) = (tensor.shape(), tensor.dtype);
        let bytes = tensor.client.read_one(tensor.handle).unwrap();
        TensorData::from_bytes(bytes, shape, dtype).try_into_vec().unwrap()
    }

    fn device() -> Option<burn_cubecl::CubeDevice> {
        match crate::device("wgpu") {
            Ok(device) => match device.as_dispatch() {
                DispatchDevice::Cube(device) => Some(device.clone()),
                other => panic!("{other:?} is no device of CubeCL"),
            },
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    /// What tensor cores give, and lavapipe has none: sums in i32, which are scaled as those in f32 are.
    #[test]
    fn sums_of_both_types_are_scaled() {
        let Some(device) = device() else {
            return;
        };
        let floats = |floats: Vec<f32>, shape: &[usize]| {
            CubeBackend::float_from_data(TensorData::new(floats, shape.to_vec()), &device)
        };
        let scales = |n: usize| floats((0..n).map(|i| 0.1 + i as f32).collect(), &[n]);
        let sums: Vec<i32> = (0..3 * 5).map(|i| i * 1_000 - 7_000).collect();
        let same = floats(sums.iter().map(|&sum| sum as f32).collect(), &[3, 5]);
        let sums = CubeBackend::int_from_data(TensorData::new(sums, [3, 5]), &device);
        for (granularity, n) in [(Granularity::Tensor, 1), (Granularity::Row, TILE_ROWS)] {
            let scaled = |sums| read::<f32>(scale(sums, scales(n), scales(3), granularity, DType::F32));
            let found = scaled(sums.clone());
            assert_eq!(found[0], -7_000.0 * (0.1 * 0.1));
            assert_eq!(found, scaled(same.clone()));
        }
    }

    /// What tensor cores are given: rows of int8 with zeros up to a whole block.
    #[test]
    fn words_are_rows_of_int8() {
        let Some(device) = device() else {
            return;
        };
        let shape @ [rows, d_input] = [33, 20];
        let values: Vec<f32> = (0..rows * d_input).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect();
        let tensor = || CubeBackend::float_from_data(TensorData::new(values.clone(), shape), &device);
        let layout = PackedLayout { d_output: rows, d_input, granularity: Granularity::Row };
        let (words, scales) = pack(tensor(), layout.granularity);
        let (codes, x_scales) = quantize_tokens(tensor(), d_input, Bits::EIGHT);
        for (int8, floats) in [
            (bytes(words.clone(), layout), dequantize_weight(words, scales, layout, false, DType::F32)),
            (codes.clone(), dequantize_tokens(codes, x_scales, layout, false, DType::F32)),
        ] {
            let int8 = as_int8(int8);
            assert_eq!(int8.shape().dims(), [rows, 32]);
            let (int8, floats) = (read::<i8>(int8), read::<f32>(floats));
            assert!(floats.iter().any(|&code| code < 0.0) && floats.iter().any(|&code| code > 0.0));
            for (int8, floats) in int8.chunks(32).zip(floats.chunks(d_input)) {
                let codes: Vec<i8> = floats.iter().map(|&code| code as i8).collect();
                assert_eq!(int8, [&codes[..], &[0; 12]].concat());
            }
        }
    }
}
