//! Weights: absmean ternarization, its granularities and its sums.

use bitnet_arch::quant::{
    EPS, Granularity, QuantError, TernaryWeight, check_granularity, fold_sum, ternarize,
};
use burn::tensor::{DType, Device, Tensor};

use crate::check::{VECTOR, assert_close, assert_codes, assert_scales, integers, values};
use crate::golden::Golden;
use crate::vectors::{W, random};

/// f32 sums of 2²⁰ numbers by halves: log₂ of the count roundings, each of at most half an ulp.
const FOLDED: f64 = 20.0 * 6e-8;

/// The reference sums in another order.
const REFERENCE_ULPS: f32 = 1.0;

/// The ternary form of a weight given by rows.
fn ternary<const R: usize, const C: usize>(
    w: [[f32; C]; R],
    granularity: Granularity,
    device: &Device,
) -> TernaryWeight {
    ternarize(Tensor::from_data(w, device), granularity).unwrap()
}

/// The vectors of docs/numerics.md; re-quantizing shrinks the scale by the share of zeros.
pub fn acceptance(device: &Device) {
    let codes = [1, -1, 1, -1, 0, -1, 1, -1, 0];
    let weight = ternary(W, Granularity::Tensor, device);
    assert_eq!(integers(weight.codes()), codes);
    assert_close("scale", &values(weight.scale()), &[0.833_333_3], VECTOR);
    assert_eq!(weight.scale().dims(), [1, 1]);
    assert_eq!(weight.granularity(), Granularity::Tensor);
    assert_eq!(weight.sparsity(), 2.0 / 9.0);

    let again = ternarize(weight.dequantize(), Granularity::Tensor).unwrap();
    assert_eq!(integers(again.codes()), codes);
    assert_close("scale of the re-quantized", &values(again.scale()), &[0.648_148_1], VECTOR);
}

/// Half-way values round to even; ones below the smallest scale become 0, and so do zeros.
pub fn ties_tiny_and_zero(device: &Device) {
    let ties = ternary([[0.5, -0.5, 1.5], [-1.5, 1.0, -1.0]], Granularity::Tensor, device);
    assert_eq!(integers(ties.codes()), [0, 0, 1, -1, 1, -1]);
    assert_eq!(values(ties.scale()), [1.0]);
    for (what, w) in [("tiny", [[1e-6, -1e-6, 2e-6, -2e-6]]), ("zero", [[0.0, -0.0, 0.0, 0.0]])] {
        for granularity in [Granularity::Tensor, Granularity::Row, Granularity::Group(2)] {
            let weight = ternary(w, granularity, device);
            assert_eq!(integers(weight.codes()), [0; 4], "{what}");
            assert!(values(weight.scale()).iter().all(|scale| *scale == EPS), "{what}: scale");
            assert_eq!(values(weight.dequantize()), [0.0; 4], "{what}");
        }
    }
}

/// Groups of four, the vectors of docs/numerics.md.
pub fn groups(device: &Device) {
    let w = [[1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 0.1, -0.1]];
    let weight = ternary(w, Granularity::Group(4), device);
    assert_eq!(integers(weight.codes()), [1, -1, 1, -1, 1, -1, 0, 0]);
    assert_eq!(weight.scale().dims(), [1, 2]);
    assert_close("scales", &values(weight.scale()), &[0.75, 1.05], VECTOR);
    let expected = [0.75, -0.75, 0.75, -0.75, 1.05, -1.05, 0.0, 0.0];
    assert_close("dequantized", &values(weight.dequantize()), &expected, VECTOR);
}

/// A row, and a group, is scaled as if it were a weight of its own.
pub fn rows_and_groups_stand_alone(device: &Device) {
    let (d_output, d_input) = (5, 32);
    let w = random([d_output, d_input], 1, device);
    for (granularity, n) in
        [(Granularity::Row, d_input), (Granularity::Group(8), 8), (Granularity::Group(1), 1)]
    {
        let whole = ternarize(w.clone(), granularity).unwrap();
        assert_eq!(whole.scale().dims(), [d_output, d_input / n]);
        let (codes, scales) = (integers(whole.codes()), values(whole.scale()));
        let parts = w.clone().reshape([d_output * d_input / n, n]);
        for (i, (codes, scale)) in codes.chunks(n).zip(scales).enumerate() {
            let part = ternarize(parts.clone().narrow(0, i, 1), Granularity::Tensor).unwrap();
            assert_eq!(integers(part.codes()), codes, "{granularity:?}, part {i}");
            assert_eq!(values(part.scale()), [scale], "{granularity:?}, part {i}");
        }
    }
}

/// The reference's weights: on the edges of rounding, tiny, zero, and those of the layer cases.
pub fn reference(device: &Device) {
    let check = |name: &str, w: Tensor<2>, codes: &[i64], scale: f32| {
        let weight = ternarize(w.clone(), Granularity::Tensor).unwrap();
        let scaled: Vec<f64> = values(w).into_iter().map(|w| (w * scale.recip()).into()).collect();
        // Ties of ±1.5 are no ties once clamped: the codes 1 and 2 become the same.
        assert_codes(name, device, &integers(weight.codes()), codes, &scaled);
        assert_scales(name, device, &values(weight.scale()), &[scale], REFERENCE_ULPS);
    };
    let edges = Golden::open("bitlinear/quant_edges.safetensors");
    for name in ["edge", "tiny", "zeros"] {
        let floats = edges.floats(&format!("w.{name}"));
        let scale = floats.iter().map(|w| f64::from(w.abs())).sum::<f64>() / floats.len() as f64;
        // The reference stores codes times scale: the sign is the code.
        let dequantized = edges.numbers(&format!("w.{name}.clamp"));
        let codes: Vec<i64> =
            dequantized.iter().map(|q| if *q == 0.0 { 0 } else { q.signum() as i64 }).collect();
        check(name, edges.tensor(&format!("w.{name}"), device), &codes, (scale as f32).max(EPS));
    }
    let cases = Golden::open("bitlinear/cases.safetensors");
    for name in ["2d", "3d", "odd", "one_token"] {
        let codes: Vec<i64> =
            cases.numbers(&format!("{name}.w_ternary")).iter().map(|code| *code as i64).collect();
        let scale = cases.floats(&format!("{name}.w_gamma"))[0];
        check(name, cases.tensor(&format!("{name}.w"), device), &codes, scale);
    }
}

/// A weight in half precision is scaled and rounded in f32.
pub fn half_precision(device: &Device) {
    for dtype in [DType::F16, DType::BF16] {
        if !device.supports_dtype(dtype) {
            eprintln!("skipped: the device has no {dtype:?}");
            continue;
        }
        let w = random([16, 64], 2, device).cast(dtype);
        let half = ternarize(w.clone(), Granularity::Tensor).unwrap();
        let full = ternarize(w.cast(DType::F32), Granularity::Tensor).unwrap();
        assert_eq!(half.scale().dtype(), DType::F32);
        assert_eq!(half.dequantize().dtype(), DType::F32);
        assert_eq!(values(half.scale()), values(full.scale()), "{dtype:?}");
        assert_eq!(integers(half.codes()), integers(full.codes()), "{dtype:?}");
    }
}

/// Granularities that do not fit are errors that name the sizes.
pub fn bad_granularity(device: &Device) {
    let error =
        |shape: [usize; 2], granularity| ternarize(Tensor::ones(shape, device), granularity).unwrap_err();
    for group in [0, 3, 6, 16] {
        assert_eq!(error([2, 24], Granularity::Group(group)), QuantError::Group { group, d_input: 24 });
    }
    for [d_output, d_input] in [[0, 4], [4, 0]] {
        let expected = QuantError::Empty { d_output, d_input };
        for granularity in [Granularity::Tensor, Granularity::Row, Granularity::Group(2)] {
            assert_eq!(check_granularity(granularity, [d_output, d_input]), Err(expected.clone()));
        }
    }
}

/// Two bits a code and four bytes a scale: the footprint of docs/formats.md.
pub fn footprint(device: &Device) {
    let weight = ternarize(Tensor::ones([1024, 512], device), Granularity::Tensor).unwrap();
    assert_eq!(weight.packed_bytes(), 1024 * 512 / 4 + 4);
    assert_eq!((weight.compression_ratio() * 1e4).round(), 159_995.0);
    let odd = ternarize(Tensor::ones([3, 3], device), Granularity::Row).unwrap();
    assert_eq!(odd.packed_bytes(), 3 + 12, "nine codes take three bytes");
}

/// The sum by halves is near the exact one over 2²⁰ numbers and over lengths that do not halve, and repeats bit for
/// bit.
pub fn sums(device: &Device) {
    for n in [1, 2, 3, 7, 1000, 1025, 1 << 20] {
        let numbers = random([1, n], 3, device).abs();
        let exact: f64 = values(numbers.clone()).iter().map(|&number| f64::from(number)).sum();
        let sum = || values(fold_sum(numbers.clone()))[0];
        let first = sum();
        let error = (f64::from(first) - exact).abs() / exact;
        assert!(error <= FOLDED, "sum of {n} numbers is off by {error:e} of it");
        for _ in 0..3 {
            assert_eq!(sum().to_bits(), first.to_bits(), "sum of {n} numbers, repeated");
        }
    }
    let rows = fold_sum(Tensor::<2>::from_data([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], device));
    assert_eq!(values(rows), [6.0, 15.0]);
}

/// The same codes and scale, bit for bit, each time.
pub fn repeats(device: &Device) {
    let w = random([33, 257], 4, device);
    let first = ternarize(w.clone(), Granularity::Tensor).unwrap();
    for _ in 0..3 {
        let again = ternarize(w.clone(), Granularity::Tensor).unwrap();
        assert_eq!(integers(again.codes()), integers(first.codes()));
        assert_eq!(values(again.scale())[0].to_bits(), values(first.scale())[0].to_bits());
    }
}
