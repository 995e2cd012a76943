//! The layer in plain tensor operations: forward and gradients at every λ.

use bitnet_arch::quant::{
    ActivationQuant, Bits, Granularity, Quantization, QuantizedActivations, TernaryWeight, bit_linear,
    bit_linear_reference, quantize_activations, straight_through, ternarize,
};
use burn::tensor::activation::silu;
use burn::tensor::module::linear;
use burn::tensor::{DType, Device, Tensor};

use crate::check::{SUMMATION, VECTOR, assert_close, assert_close_relative, integers, values};
use crate::vectors::{W, X, random};

fn weights_and_tokens(device: &Device) -> (Tensor<2>, Tensor<2>) {
    (Tensor::from_data(W, device), Tensor::from_data(X, device))
}

/// λ = 1: the vectors of docs/numerics.md, and the same through integer accumulators.
pub fn forward_quantized(device: &Device) {
    let (w, x) = weights_and_tokens(device);
    let y = values(bit_linear(x.clone(), w.clone(), None, Quantization::default(), 1.0));
    let expected =
        [1.91601, -1.417323, 1.332021, -2.07874, 1.748031, -1.07874, 1.333333, -0.918635, 1.081365];
    assert_close("output", &y, &expected, VECTOR);

    let (w, x) = (ternarize(w, Granularity::Tensor), quantize_activations(x, ActivationQuant::default()));
    let (w, x) = (w.unwrap(), x.unwrap());
    let accumulators = x.codes().float().matmul(w.codes().float().transpose());
    assert_eq!(integers(accumulators.clone().int()), [292, -216, 203, -264, 222, -137, 254, -175, 206]);
    let row_scales = x.scale() * w.scale();
    assert_close("row scales", &values(row_scales.clone()), &[0.006562, 0.007874, 0.005249], VECTOR);
    assert_close("from accumulators", &values(accumulators * row_scales), &y, VECTOR);
}

/// The first token's output at four λ.
pub fn forward_at_lambda(device: &Device) {
    let (w, x) = weights_and_tokens(device);
    for (lambda, expected) in [
        (0.0, [1.94, -2.37, 1.86]),
        (0.25, [1.934155, -2.131722, 1.728074]),
        (0.5, [1.928209, -1.893517, 1.596102]),
        (1.0, [1.91601, -1.417323, 1.332021]),
    ] {
        let y = values(bit_linear(x.clone(), w.clone(), None, Quantization::default(), lambda));
        assert_close(&format!("λ {lambda}"), &y[..3], &expected, VECTOR);
    }
}

/// Gradients of the sum of the outputs: the vectors of docs/numerics.md, equal for every row.
pub fn gradient_vectors(device: &Device) {
    for (lambda, dw, dx) in [
        (0.5, [0.901181, -0.699606, -0.198425], [0.716667, -1.233333, 0.25]),
        (1.0, [0.902362, -0.699213, -0.196850], [0.833333, -1.666667, 0.0]),
    ] {
        let (w, x) = weights_and_tokens(&device.clone().autodiff());
        let (w, x) = (w.require_grad(), x.require_grad());
        let grads = bit_linear(x.clone(), w.clone(), None, Quantization::default(), lambda).sum().backward();
        assert_close(
            &format!("dW at λ {lambda}"),
            &values(w.grad(&grads).unwrap()),
            &[dw; 3].concat(),
            VECTOR,
        );
        assert_close(
            &format!("dX at λ {lambda}"),
            &values(x.grad(&grads).unwrap()),
            &[dx; 3].concat(),
            VECTOR,
        );
    }
}

/// `dW = gᵀ·x_eff`, `dX = g·w_eff`, `dbias = Σg`: no clip mask and no λ factor, whatever is quantized and however.
pub fn gradients_are_straight_through(device: &Device) {
    let quantizations = [
        Quantization::default(),
        Quantization { weight: Granularity::Row, activation: ActivationQuant::Off },
        Quantization { weight: Granularity::Group(8), ..Quantization::default() },
    ];
    for quantization in quantizations {
        for lambda in [0.0, 0.3, 0.5, 1.0] {
            let what = format!("{quantization:?} at λ {lambda}");
            let (x, w) = (random([6, 24], 7, device), random([10, 24], 8, device));
            let (bias, g) = (random([10], 9, device), random([6, 10], 10, device));
            let w_eff =
                effective(&w, ternarize(w.clone(), quantization.weight).unwrap().dequantize(), lambda);
            let x_eff = match quantize_activations(x.clone(), quantization.activation) {
                Some(quantized) => effective(&x, quantized.dequantize(), lambda),
                None => x.clone(),
            };
            let expected = [
                values(g.clone().transpose().matmul(x_eff)),
                values(g.clone().matmul(w_eff)),
                values(g.clone().sum_dim(0)),
            ];
            let [w, x] = [w, x].map(|t| t.autodiff().require_grad());
            let bias = bias.autodiff().require_grad();
            let y = bit_linear(x.clone(), w.clone(), Some(bias.clone()), quantization, lambda);
            let grads = (y * g.autodiff()).sum().backward();
            let found = [w.grad(&grads), x.grad(&grads)].map(|grad| values(grad.unwrap()));
            assert_close_relative(&format!("dW, {what}"), &found[0], &expected[0], SUMMATION);
            assert_close_relative(&format!("dX, {what}"), &found[1], &expected[1], SUMMATION);
            let found = values(bias.grad(&grads).unwrap());
            assert_close_relative(&format!("dbias, {what}"), &found, &expected[2], SUMMATION);
        }
    }
}

fn effective(latent: &Tensor<2>, quantized: Tensor<2>, lambda: f32) -> Tensor<2> {
    latent.clone() + (quantized - latent.clone()) * lambda
}

/// A frozen weight gets no gradient, and the input's is what it was; likewise a constant input.
pub fn frozen_operands(device: &Device) {
    let device = device.clone().autodiff();
    let (w, x) = weights_and_tokens(&device);
    for lambda in [0.3, 1.0] {
        let run = |w: Tensor<2>, x: Tensor<2>| {
            let grads =
                bit_linear(x.clone(), w.clone(), None, Quantization::default(), lambda).sum().backward();
            (w.grad(&grads).map(values), x.grad(&grads).map(values))
        };
        let (dw, dx) = run(w.clone().require_grad(), x.clone().require_grad());
        assert!(dw.is_some() && dx.is_some());
        assert_eq!(run(w.clone(), x.clone().require_grad()), (None, dx), "frozen weight, λ {lambda}");
        assert_eq!(run(w.clone().require_grad(), x.clone()), (dw, None), "constant input, λ {lambda}");
    }
}

/// A fused operation gives what the plain operations give, outputs and gradients, over ragged shapes, one token, one
/// row, every λ, granularity and width, with and without bias.
pub fn the_fused_layer_is_the_reference(device: &Device) {
    let device = device.clone().autodiff();
    let four_bits = ActivationQuant::PerToken(Bits::try_from(4).unwrap());
    let quantizations = [
        Quantization::default(),
        Quantization { weight: Granularity::Row, activation: four_bits },
        Quantization { weight: Granularity::Group(4), activation: ActivationQuant::Off },
        Quantization { weight: Granularity::Tensor, activation: ActivationQuant::PerTensor(Bits::EIGHT) },
    ];
    for (tokens, d_input, d_output) in [(1, 4, 1), (7, 36, 5), (3, 100, 33), (33, 64, 48)] {
        for quantization in quantizations {
            for (lambda, with_bias) in [(0.25, true), (0.75, false), (1.0, true), (1.0, false)] {
                let run =
                    |layer: fn(Tensor<3>, Tensor<2>, Option<Tensor<1>>, Quantization, f32) -> Tensor<3>| {
                        let x = random([1, tokens, d_input], 31, &device).require_grad();
                        let w = random([d_output, d_input], 32, &device).require_grad();
                        let bias = with_bias.then(|| random([d_output], 33, &device).require_grad());
                        let y = layer(x.clone(), w.clone(), bias.clone(), quantization, lambda);
                        let grads = (y.clone() * random([1, tokens, d_output], 34, &device)).sum().backward();
                        let dbias = bias.map(|bias| values(bias.grad(&grads).unwrap())).unwrap_or_default();
                        [values(y), values(x.grad(&grads).unwrap()), values(w.grad(&grads).unwrap()), dbias]
                    };
                let (found, expected) = (run(bit_linear), run(bit_linear_reference));
                for (part, (found, expected)) in
                    ["y", "dX", "dW", "dbias"].iter().zip(found.iter().zip(&expected))
                {
                    let what =
                        format!("{part} of {tokens}×{d_input}×{d_output}, {quantization:?}, λ {lambda}");
                    assert_close_relative(&what, found, expected, SUMMATION);
                }
            }
        }
    }
}

/// Half-precision inputs of an f32 weight, and of one like themselves: the fused operation gives what the plain operations
/// give but for roundings to the type; at λ = 1, where sums are exact, within one. The weight's gradient has its type.
pub fn half_inputs(device: &Device) {
    let device = &device.clone().autodiff();
    for (dtype, ulp) in [(DType::F16, 1.0 / 1024.0), (DType::BF16, 1.0 / 128.0)] {
        if !device.supports_dtype(dtype) {
            eprintln!("skipped: the device has no {dtype:?}");
            continue;
        }
        for (tokens, d_input, d_output) in [(1, 4, 1), (7, 36, 5), (40, 100, 33)] {
            let shapes = [Granularity::Tensor, Granularity::Row, Granularity::Group(4)];
            let cases = shapes.into_iter().flat_map(|weight| [0.5, 1.0].map(|lambda| (weight, lambda)));
            for ((weight, lambda), of_weight) in
                cases.flat_map(|case| [DType::F32, dtype].map(|of_weight| (case, of_weight)))
            {
                let quantization = Quantization { weight, ..Quantization::default() };
                let run =
                    |layer: fn(Tensor<2>, Tensor<2>, Option<Tensor<1>>, Quantization, f32) -> Tensor<2>| {
                        let x = random([tokens, d_input], 51, device).cast(dtype).require_grad();
                        let w = random([d_output, d_input], 52, device).cast(of_weight).require_grad();
                        let y = layer(x.clone(), w.clone(), None, quantization, lambda);
                        let g = random([tokens, d_output], 53, device).cast(dtype);
                        let grads = (y.clone() * g).sum().backward();
                        [y.inner(), x.grad(&grads).unwrap(), w.grad(&grads).unwrap()]
                    };
                let (found, expected) = (run(bit_linear), run(bit_linear_reference));
                let of_sums = 4.0 * ulp;
                let parts =
                    [("y", if lambda == 1.0 { ulp } else { of_sums }), ("dX", of_sums), ("dW", of_sums)];
                for ((part, tolerance), (found, expected)) in parts.iter().zip(found.iter().zip(&expected)) {
                    let what = format!(
                        "{part} of {tokens}×{d_input}×{d_output}, {dtype:?} under {of_weight:?}, {weight:?}, λ {lambda}"
                    );
                    assert_eq!(found.dtype(), if *part == "dW" { of_weight } else { dtype }, "{what}");
                    let [found, expected] = [found, expected].map(|tensor| values(tensor.clone()));
                    assert_close_relative(&what, &found, &expected, *tolerance);
                }
            }
        }
    }
}

/// Gradient checkpointing recomputes instead of keeping, and the gradients are the same bits.
pub fn gradient_checkpointing_changes_nothing(device: &Device) {
    let run = |device: Device, lambda: f32| {
        let x = random([5, 24], 41, &device).require_grad();
        let w = random([24, 24], 42, &device).require_grad();
        let hidden = silu(bit_linear(x.clone(), w.clone(), None, Quantization::default(), lambda)) * 1.5;
        let grads = bit_linear(hidden, w.clone(), None, Quantization::default(), lambda).sum().backward();
        [x, w].map(|tensor| values(tensor.grad(&grads).unwrap()))
    };
    for lambda in [0.5, 1.0] {
        let plain = run(device.clone().autodiff(), lambda);
        let checkpointed = device.clone().autodiff().gradient_checkpointing();
        assert_eq!(run(checkpointed, lambda), plain, "λ {lambda}");
    }
}

/// λ = 1 is the product of the integers times the scales, bit for bit, with and without gradients: with signs and without,
/// where accumulators are odd numbers beyond those of a half.
pub fn quantized_exactly(device: &Device) {
    let (x, w) = (random([9, 40], 11, device), random([17, 40], 12, device));
    is_exact(x, w);
    is_exact(random([40, 200], 11, device).abs(), random([17, 200], 12, device).abs());
}

fn is_exact(x: Tensor<2>, w: Tensor<2>) {
    for weight in [Granularity::Tensor, Granularity::Row, Granularity::Group(8)] {
        let quantization = Quantization { weight, ..Quantization::default() };
        let w_q = ternarize(w.clone(), weight).unwrap();
        let x_q = quantize_activations(x.clone(), quantization.activation).unwrap();
        let expected = products(&x_q, &w_q);
        let y = bit_linear(x.clone(), w.clone(), None, quantization, 1.0);
        assert_eq!(values(y), expected, "{weight:?}");
        let [x, w] = [&x, &w].map(|t| t.clone().autodiff().require_grad());
        assert_eq!(values(bit_linear(x, w, None, quantization, 1.0)), expected, "{weight:?}, with gradients");
    }
}

/// `acc · (w_scale · x_scale)` in integers and f32, segments ascending.
fn products(x: &QuantizedActivations<2>, w: &TernaryWeight) -> Vec<f32> {
    let ([tokens, d_input], [d_output, _]) = (x.codes().dims(), w.codes().dims());
    let (x_codes, x_scales) = (integers(x.codes()), values(x.scale()));
    let (w_codes, w_scales) = (integers(w.codes()), values(w.scale()));
    let [scale_rows, segments] = w.scale().dims();
    let mut y = vec![0.0; tokens * d_output];
    for (at, y) in y.iter_mut().enumerate() {
        let (token, row) = (at / d_output, at % d_output);
        for segment in 0..segments {
            let inputs = segment * d_input / segments..(segment + 1) * d_input / segments;
            let acc: i64 = inputs.map(|i| x_codes[token * d_input + i] * w_codes[row * d_input + i]).sum();
            let w_scale = w_scales[row.min(scale_rows - 1) * segments + segment];
            *y += acc as f32 * (w_scale * x_scales[token]);
        }
    }
    y
}

/// λ = 0 is the dense product of the latent weight, bit for bit, and so are its gradients.
pub fn dense_exactly(device: &Device) {
    let run = |layer: fn(Tensor<2>, Tensor<2>, Tensor<1>) -> Tensor<2>| {
        let device = device.clone().autodiff();
        let (x, w) =
            (random([9, 40], 13, &device).require_grad(), random([17, 40], 14, &device).require_grad());
        let y = layer(x.clone(), w.clone(), random([17], 15, &device));
        let grads = y.clone().square().sum().backward();
        [values(y), values(x.grad(&grads).unwrap()), values(w.grad(&grads).unwrap())]
    };
    let bit = run(|x, w, bias| bit_linear(x, w, Some(bias), Quantization::default(), 0.0));
    assert_eq!(bit, run(|x, w, bias| linear(x, w.transpose(), Some(bias))));
}

/// In half precision, λ = 1 still gives Q itself (`w + (Q − w)` would not) and λ = 0 the latent value.
pub fn half_precision(device: &Device) {
    for dtype in [DType::F16, DType::BF16] {
        if !device.supports_dtype(dtype) {
            eprintln!("skipped: the device has no {dtype:?}");
            continue;
        }
        let w = random([16, 32], 16, device).cast(dtype);
        let q = ternarize(w.clone(), Granularity::Tensor).unwrap().dequantize();
        let expected = values(q.clone().cast(dtype));
        for w in [w.clone(), w.clone().autodiff().require_grad()] {
            let value = straight_through(w.clone(), q.clone(), 1.0);
            assert_eq!(value.dtype(), dtype);
            assert_eq!(values(value), expected, "{dtype:?}, λ 1");
            assert_eq!(values(straight_through(w.clone(), q.clone(), 0.0)), values(w), "{dtype:?}, λ 0");
        }
        let base = w.clone().cast(DType::F32);
        let blend = base.clone() + (q.clone() - base) * 0.5;
        assert_eq!(values(straight_through(w, q, 0.5)), values(blend.cast(dtype)), "{dtype:?}, λ 0.5");
    }
}
