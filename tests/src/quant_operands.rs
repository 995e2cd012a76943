//! The operands of the fused layer, seen through inputs and weights that pick single values.

use bitnet_arch::quant::{
    ActivationQuant, Granularity, Quantization, bit_linear, quantize_activations, ternarize,
};
use burn::tensor::{Device, Tensor, TensorData};

use crate::check::{SUMMATION, assert_close_relative, divides_exactly, values};
use crate::vectors::{random, random_values};

/// The weight's scale and codes have the definition's bits, however long its rows and however many: rows, groups and
/// lists of row sums that no kernel holds at once, and rows that are not a power of two.
pub fn weights_of_every_length(device: &Device) {
    let shapes = [(1, 1), (3, 2048), (2, 2049), (5, 4101), (2, 20_000), (2500, 8), (4099, 3)];
    for (i, (d_output, d_input)) in shapes.into_iter().enumerate() {
        let w = random([d_output, d_input], 101 + i as u64, device);
        // Each token picks one column of the weight.
        let columns = [0, d_input / 2, d_input - 1];
        let mut picks = vec![0.0; 3 * d_input];
        columns.iter().enumerate().for_each(|(token, column)| picks[token * d_input + column] = 1.0);
        let x = Tensor::<2>::from_data(TensorData::new(picks, [3, d_input]), device);
        let mut granularities = vec![Granularity::Tensor, Granularity::Row];
        granularities.extend((d_input % 2048 == 0).then_some(Granularity::Group(1024)));
        granularities.extend((d_input % 8 == 0).then_some(Granularity::Group(8)));
        for weight in granularities {
            let quantization = Quantization { weight, activation: ActivationQuant::Off };
            let q = ternarize(w.clone(), weight).unwrap().dequantize();
            for lambda in [1.0, 0.5] {
                let effective = w.clone() + (q.clone() - w.clone()) * lambda;
                let effective = if lambda == 1.0 { q.clone() } else { effective };
                let expected: Vec<f32> = columns
                    .iter()
                    .flat_map(|&column| values(effective.clone().narrow(1, column, 1)))
                    .collect();
                let found = values(bit_linear(x.clone(), w.clone(), None, quantization, lambda));
                let what = format!("{d_output}×{d_input}, {weight:?}, λ {lambda}");
                if divides_exactly(device) {
                    assert_eq!(found, expected, "{what}");
                }
                assert_close_relative(&what, &found, &expected, SUMMATION);
            }
        }
    }
}

/// The input's values are the definition's, for tokens that are longer than a kernel has units, and short ones; and at
/// λ = 1 the gradient of the weight sees them as the forward pass does.
pub fn inputs_of_every_length(device: &Device) {
    for d_input in [1, 5, 255, 256, 257, 1030] {
        let x = random([4, d_input], d_input as u64, device);
        let q = quantize_activations(x.clone(), ActivationQuant::default()).unwrap().dequantize();
        let expected = values(q);
        let w = random([1, d_input], 111, device);
        let [x, w] = [x, w].map(|tensor| tensor.autodiff().require_grad());
        for token in 0..4 {
            let y = bit_linear(x.clone(), w.clone(), None, Quantization::default(), 1.0);
            let grads = y.narrow(0, token, 1).sum().backward();
            let found = values(w.grad(&grads).unwrap());
            let expected = &expected[token * d_input..(token + 1) * d_input];
            assert_close_relative(&format!("{d_input} inputs, token {token}"), &found, expected, SUMMATION);
        }
    }
}

/// A NaN or an infinity shows: in the input, in all outputs of its token; in the weight, in those of whatever shares
/// its scale.
pub fn what_is_not_finite_shows(device: &Device) {
    let (tokens, d_input, d_output) = (3, 24, 5);
    let tensor = |mut values: Vec<f32>, shape: [usize; 2], bad: Option<(usize, f32)>| {
        bad.into_iter().for_each(|(at, value)| values[at] = value);
        Tensor::<2>::from_data(TensorData::new(values, shape), device)
    };
    for weight in [Granularity::Tensor, Granularity::Row] {
        let quantization = Quantization { weight, ..Quantization::default() };
        for lambda in [0.5, 1.0] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let run = |in_x: Option<(usize, f32)>, in_w: Option<(usize, f32)>| {
                    let x = tensor(random_values(tokens * d_input, 112), [tokens, d_input], in_x);
                    let w = tensor(random_values(d_output * d_input, 113), [d_output, d_input], in_w);
                    values(bit_linear(x, w, None, quantization, lambda))
                };
                let what = format!("{bad}, {weight:?}, λ {lambda}");
                for (at, y) in run(Some((d_input + 2, bad)), None).iter().enumerate() {
                    assert_eq!(
                        y.is_finite(),
                        at / d_output != 1,
                        "in the second token: y[{at}] = {y}, {what}"
                    );
                }
                for (at, y) in run(None, Some((3 * d_input + 7, bad))).iter().enumerate() {
                    let shares = weight == Granularity::Tensor || at % d_output == 3;
                    assert_eq!(y.is_finite(), !shares, "in the fourth row: y[{at}] = {y}, {what}");
                }
            }
        }
    }
}
