//! Activations: absmax codes per token, per tensor, and of every width.

use bitnet_arch::quant::{
    ActivationQuant, Bits, EPS, QuantError, QuantizedActivations, quantize_activations,
};
use burn::tensor::{DType, Device, Tensor};

use crate::check::{VECTOR, assert_close, assert_codes, assert_scales, integers, values};
use crate::golden::Golden;
use crate::vectors::{X, random};

/// PyTorch computes `127.0 / max` as `127 · (1 / max)`: t is one ulp off at most, and `1 / t` rounds once more.
const TORCH_ULPS: f32 = 1.5;

fn per_token<const D: usize>(x: Tensor<D>) -> QuantizedActivations<D> {
    quantize_activations(x, ActivationQuant::default()).unwrap()
}

/// Codes and scales as docs/numerics.md defines them, on the CPU: `t = max_code / max(max|x|, eps)`.
fn scalar(x: &[f32], bits: Bits) -> (Vec<i64>, Vec<f64>, f32) {
    let absmax = x.iter().fold(0.0_f32, |max, x| max.max(x.abs())).max(EPS);
    let t = bits.max_code() as f32 / absmax;
    let scaled: Vec<f32> = x.iter().map(|x| x * t).collect();
    let (low, high) = (bits.min_code() as f32, bits.max_code() as f32);
    let codes = scaled.iter().map(|x| x.round_ties_even().clamp(low, high) as i64).collect();
    (codes, scaled.into_iter().map(f64::from).collect(), t.recip())
}

/// The vectors of docs/numerics.md.
pub fn acceptance(device: &Device) {
    let x = per_token(Tensor::<2>::from_data(X, device));
    assert_eq!(integers(x.codes()), [127, -76, 89, -95, 42, -127, 127, -79, 48]);
    assert_eq!(x.scale().dims(), [3, 1]);
    let dequantized = values(x.dequantize());
    assert_close("first row", &dequantized[..3], &[1.0, -0.598_425, 0.700_787], VECTOR);
}

/// Half-way values round to even.
pub fn ties(device: &Device) {
    let x = per_token(Tensor::<2>::from_data([[127.0, 0.5, 1.5, 2.5, -0.5, -2.5]], device));
    assert_eq!(integers(x.codes()), [127, 0, 2, 2, 0, -2]);
    assert_eq!(values(x.scale()), [1.0]);
}

/// A token of zeros stays zero beside another; one below the smallest scale is scaled by that.
pub fn zero_and_tiny_tokens(device: &Device) {
    let x =
        per_token(Tensor::<2>::from_data([[0.0, -0.0, 0.0], [1.0, -0.5, 0.25], [1e-7, -1e-6, 0.0]], device));
    assert_eq!(integers(x.codes()), [0, 0, 0, 127, -64, 32, 1, -13, 0]);
    let dequantized = values(x.dequantize());
    assert_eq!(dequantized[..3], [0.0; 3]);
    assert!(dequantized.iter().all(|x| x.is_finite()));
}

/// The reference's activations: rows of zeros, tiny rows, half-way rows, and those of the layer cases.
pub fn reference(device: &Device) {
    let check = |name: &str, file: &Golden, prefix: &str| {
        let (floats, t) = (file.floats(&format!("{prefix}x")), file.floats(&format!("{prefix}x_t")));
        let codes: Vec<i64> =
            file.numbers(&format!("{prefix}x_int8")).into_iter().map(|code| code as i64).collect();
        let d_input = floats.len() / t.len();
        let scaled: Vec<f64> = floats.iter().enumerate().map(|(i, x)| (x * t[i / d_input]).into()).collect();
        let x = Tensor::<1>::from_data(floats.as_slice(), device).reshape([t.len(), d_input]);
        let found = per_token(x);
        assert_codes(name, device, &integers(found.codes()), &codes, &scaled);
        let scales: Vec<f32> = t.iter().map(|t| t.recip()).collect();
        assert_scales(name, device, &values(found.scale()), &scales, TORCH_ULPS);
    };
    check("edges", &Golden::open("bitlinear/quant_edges.safetensors"), "");
    for name in ["2d", "3d", "odd", "one_token"] {
        check(name, &Golden::open("bitlinear/cases.safetensors"), &format!("{name}."));
    }
}

/// Two to eight bits, per token and per tensor, against the scalar definition.
pub fn widths(device: &Device) {
    let x = random([3, 4, 20], 5, device);
    let floats = values(x.clone());
    for width in 2..=8 {
        let bits = Bits::try_from(width).unwrap();
        assert_eq!((u8::from(bits), bits.max_code() - bits.min_code() + 1), (width, 1 << width));
        let (token, tensor) = (ActivationQuant::PerToken(bits), ActivationQuant::PerTensor(bits));
        for (quant, shared, scale_dims) in [(token, 20, [3, 4, 1]), (tensor, floats.len(), [1, 1, 1])] {
            let found = quantize_activations(x.clone(), quant).unwrap();
            assert_eq!(found.scale().dims(), scale_dims);
            let (codes, scales) = (integers(found.codes()), values(found.scale()));
            for ((floats, codes), scale) in floats.chunks(shared).zip(codes.chunks(shared)).zip(scales) {
                let (expected, scaled, expected_scale) = scalar(floats, bits);
                let what = format!("{quant:?}");
                assert_codes(&what, device, codes, &expected, &scaled);
                assert_scales(&what, device, &[scale], &[expected_scale], 0.0);
            }
        }
    }
    assert!(quantize_activations(x, ActivationQuant::Off).is_none());
}

/// One bit and nine are errors, in code and in a configuration file.
pub fn bad_widths(_: &Device) {
    for found in [0, 1, 9, 255] {
        assert_eq!(Bits::try_from(found), Err(QuantError::Bits { found }));
        let json = format!("{{\"per_token\": {found}}}");
        let error = serde_json::from_str::<ActivationQuant>(&json).unwrap_err().to_string();
        assert!(error.contains("expected 2 to 8"), "{error}");
    }
    let four: ActivationQuant = serde_json::from_str(r#"{"per_tensor": 4}"#).unwrap();
    assert_eq!(four, ActivationQuant::PerTensor(Bits::try_from(4).unwrap()));
}

/// Activations in half precision are scaled and rounded in f32.
pub fn half_precision(device: &Device) {
    for dtype in [DType::F16, DType::BF16] {
        if !device.supports_dtype(dtype) {
            eprintln!("skipped: the device has no {dtype:?}");
            continue;
        }
        let x = random([7, 65], 6, device).cast(dtype);
        let (half, full) = (per_token(x.clone()), per_token(x.cast(DType::F32)));
        assert_eq!(half.scale().dtype(), DType::F32);
        assert_eq!(values(half.scale()), values(full.scale()), "{dtype:?}");
        assert_eq!(integers(half.codes()), integers(full.codes()), "{dtype:?}");
    }
}
