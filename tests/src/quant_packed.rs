//! The packed layer: words and int8 codes against the definition, on every backend.

use bitnet_arch::quant::{
    ActivationQuant, Bits, Granularity, PackedWeight, Quantization, bit_linear, packed_linear,
    packed_linear_reference, quantize_activations, ternarize,
};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::check::{
    SUMMATION, VECTOR, assert_close, assert_close_relative, divides_exactly, integers, values,
};
use crate::vectors::{W, X, random, random_values};

fn pack(w: Tensor<2>, granularity: Granularity) -> PackedWeight {
    let device = w.device();
    PackedWeight::pack(&ternarize(w, granularity).unwrap().read().unwrap(), &device).unwrap()
}

fn per_token(bits: u8) -> ActivationQuant {
    ActivationQuant::PerToken(Bits::try_from(bits).unwrap())
}

/// The vectors of docs/numerics.md.
pub fn acceptance(device: &Device) {
    let w = pack(Tensor::from_data(W, device), Granularity::Tensor);
    let y = packed_linear(Tensor::<2>::from_data(X, device), &w, None, ActivationQuant::default());
    let expected =
        [1.91601, -1.417323, 1.332021, -2.07874, 1.748031, -1.07874, 1.333333, -0.918635, 1.081365];
    assert_close("output", &values(y), &expected, VECTOR);
}

/// Integers, scales and the order of groups are those of the definition: the outputs have the same bits, over ragged
/// shapes, one token, one row, every granularity and width. Where a device does not divide exactly, its compiler may
/// round the two scales differently.
pub fn the_operation_is_the_reference(device: &Device) {
    let shapes = [(1, 4, 1), (1, 100, 33), (2, 36, 5), (3, 100, 64), (5, 16, 31), (9, 260, 40), (40, 52, 96)];
    let exact = divides_exactly(device);
    for (i, (tokens, d_input, d_output)) in shapes.into_iter().enumerate() {
        for granularity in [Granularity::Tensor, Granularity::Row, Granularity::Group(4)] {
            let activation = per_token([8, 2, 3, 4, 5, 6, 7][i]);
            let w = pack(random([d_output, d_input], 51 + i as u64, device), granularity);
            let x = random([tokens, d_input], 71 + i as u64, device);
            let expected = values(packed_linear_reference(x.clone(), &w, activation));
            let found = values(packed_linear(x, &w, None, activation));
            let what = format!("{tokens}×{d_input}×{d_output}, {granularity:?}, {activation:?}");
            if exact {
                assert_eq!(found, expected, "{what}");
            }
            assert_close_relative(&what, &found, &expected, SUMMATION);
        }
    }
}

/// Half-precision inputs: the same product, rounded once to their type, and the same gradient.
pub fn half_inputs(device: &Device) {
    for (dtype, ulp) in [(DType::F16, 1.0 / 1024.0), (DType::BF16, 1.0 / 128.0)] {
        if !device.supports_dtype(dtype) {
            eprintln!("skipped: the device has no {dtype:?}");
            continue;
        }
        for (tokens, granularity) in
            [(3, Granularity::Row), (40, Granularity::Tensor), (5, Granularity::Group(4))]
        {
            let w = pack(random([33, 100], 61, device), granularity);
            let run = |layer: fn(Tensor<2>, &PackedWeight) -> Tensor<2>| {
                let x = random([tokens, 100], 62, device).cast(dtype).autodiff().require_grad();
                let y = layer(x.clone(), &w);
                let grads = y.clone().square().sum().backward();
                [y.inner(), x.grad(&grads).unwrap()]
            };
            let found = run(|x, w| packed_linear(x, w, None, ActivationQuant::default()));
            let expected = run(|x, w| packed_linear_reference(x, w, ActivationQuant::default()));
            for ((part, tolerance), (found, expected)) in
                [("y", ulp), ("dX", 4.0 * ulp)].into_iter().zip(found.into_iter().zip(expected))
            {
                assert_eq!(found.dtype(), dtype);
                let what = format!("{part} of {tokens} tokens in {dtype:?}, {granularity:?}");
                assert_close_relative(&what, &values(found), &values(expected), tolerance);
            }
        }
    }
}

/// More groups than are multiplied at a time, and of every size against a block of 16 inputs.
pub fn groups(device: &Device) {
    for (group, d_input) in [(1, 37), (2, 54), (8, 136), (16, 160), (32, 288), (128, 256)] {
        let w = pack(random([35, d_input], group as u64, device), Granularity::Group(group));
        let x = random([3, d_input], 91, device);
        let expected = values(packed_linear_reference(x.clone(), &w, ActivationQuant::default()));
        let found = values(packed_linear(x, &w, None, ActivationQuant::default()));
        assert_close_relative(&format!("groups of {group}"), &found, &expected, SUMMATION);
    }
}

/// Packing changes the layer at λ = 1 by the order of summation alone, whatever the axes before the last.
pub fn packing_changes_nothing(device: &Device) {
    for (weight, activation) in [
        (Granularity::Tensor, ActivationQuant::default()),
        (Granularity::Row, per_token(4)),
        (Granularity::Group(8), ActivationQuant::default()),
        (Granularity::Tensor, ActivationQuant::PerTensor(Bits::EIGHT)),
        (Granularity::Row, ActivationQuant::Off),
    ] {
        let (w, bias) = (random([21, 72], 52, device), random([21], 53, device));
        let x = random([2, 3, 5, 72], 54, device);
        let quantization = Quantization { weight, activation };
        let expected = bit_linear(x.clone(), w.clone(), Some(bias.clone()), quantization, 1.0);
        let found = packed_linear(x, &pack(w, weight), Some(bias), activation);
        assert_eq!(found.dims(), [2, 3, 5, 21]);
        assert_close_relative(&format!("{quantization:?}"), &values(found), &values(expected), SUMMATION);
    }
}

/// The activations' codes, read through a weight that is the identity: halves go to even, a token of zeros and a tiny
/// one beside others, every width.
pub fn codes_are_exact(device: &Device) {
    const N: usize = 64;
    let identity = Tensor::eye(N, device);
    let w = pack(identity, Granularity::Row);
    let mut x = vec![0.0; 4 * N];
    x[..6].copy_from_slice(&[127.0, 0.5, 1.5, 2.5, -0.5, -2.5]);
    x[2 * N..2 * N + 3].copy_from_slice(&[1e-7, -1e-6, 5e-6]);
    x[3 * N..].copy_from_slice(&random_values(N, 61));
    let x = Tensor::<2>::from_data(TensorData::new(x, [4, N]), device);
    for bits in 2..=8 {
        let expected = quantize_activations(x.clone(), per_token(bits)).unwrap();
        // The weight's scale is 1/64 in every row.
        let y = packed_linear(x.clone(), &w, None, per_token(bits)) * N as f32;
        let found = (y / expected.scale()).round().int();
        assert_eq!(integers(found), integers(expected.codes()), "{bits} bits");
    }
    let y = values(packed_linear(x, &w, None, ActivationQuant::default()));
    assert_eq!(y[..6], [127.0, 0.0, 2.0, 2.0, 0.0, -2.0].map(|code| code / N as f32));
    assert_eq!(y[N..2 * N], [0.0; N]);
}

/// The largest accumulator that there is, 2²⁴ − 2¹⁷, is exact.
pub fn the_widest_row_is_exact(device: &Device) {
    const D_INPUT: usize = 1 << 17;
    let signs: Vec<f32> = random_values(D_INPUT, 62).into_iter().map(f32::signum).collect();
    let row = Tensor::<1>::from_data(signs.as_slice(), device).unsqueeze::<2>();
    let w = pack(Tensor::cat(vec![row.clone(), row.clone().neg()], 0), Granularity::Tensor);
    let y = packed_linear(row * 127.0, &w, None, ActivationQuant::default());
    let largest = (127 * D_INPUT) as f32;
    assert_eq!(values(y), [largest, -largest]);
}

/// `dX = g · (codes · scale)`; the bias has its gradient, and the packed weight none.
pub fn gradient(device: &Device) {
    let device = device.clone().autodiff();
    for granularity in [Granularity::Tensor, Granularity::Row, Granularity::Group(4)] {
        let weight = random([33, 52], 55, &device).inner();
        let w = pack(weight.clone(), granularity);
        let x = random([2, 3, 52], 56, &device).require_grad();
        let (bias, g) = (random([33], 57, &device).require_grad(), random([2, 3, 33], 58, &device));
        let y = packed_linear(x.clone(), &w, Some(bias.clone()), ActivationQuant::default());
        let grads = (y * g.clone()).sum().backward();
        let g = g.inner().reshape([6, 33]);
        let expected = g.clone().matmul(ternarize(weight, granularity).unwrap().dequantize());
        let found = values(x.grad(&grads).unwrap());
        assert_close_relative(&format!("dX, {granularity:?}"), &found, &values(expected), SUMMATION);
        let found = values(bias.grad(&grads).unwrap());
        assert_close_relative("dbias", &found, &values(g.sum_dim(0)), SUMMATION);
    }
}

/// A NaN or an infinity in a token shows in all of its outputs, and in no other token's.
pub fn what_is_not_finite_shows(device: &Device) {
    for granularity in [Granularity::Tensor, Granularity::Group(8)] {
        let w = pack(random([40, 24], 63, device), granularity);
        for (at, value) in [(30, f32::NAN), (47, f32::INFINITY), (24, f32::NEG_INFINITY)] {
            let mut x = random_values(3 * 24, 64);
            x[at] = value;
            let x = Tensor::<2>::from_data(TensorData::new(x, [3, 24]), device);
            let y = values(packed_linear(x, &w, None, ActivationQuant::default()));
            for (i, y) in y.iter().enumerate() {
                assert_eq!(
                    y.is_finite(),
                    i / 40 != 1,
                    "{value} in the second token, {granularity:?}: y[{i}] = {y}"
                );
            }
        }
    }
}

/// Unpacking undoes packing, on the device and back from it.
pub fn unpacking_undoes_packing(device: &Device) {
    for (d_output, d_input) in [(1, 1), (5, 7), (33, 48), (64, 100)] {
        for granularity in [Granularity::Tensor, Granularity::Row] {
            let ternary = ternarize(random([d_output, d_input], 65, device), granularity).unwrap();
            let matrix = ternary.read().unwrap();
            let packed = PackedWeight::pack(&matrix, device).unwrap();
            assert_eq!(packed.unpack().unwrap(), matrix, "{d_output}×{d_input}, {granularity:?}");
            assert_eq!(values(packed.dequantize()), values(ternary.dequantize()));
        }
    }
}
