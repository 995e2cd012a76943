//! The reference's 72 layer cases, through [`BitLinear`].
//!
//! They cover four shapes (a zero token and a tiny one among them), with and without bias, λ 0, 0.3 and 1, and three
//! ways to write the weight's dequantization, which differ by one unit in the last place.

use bitnet_arch::layers::{BitLinear, BitLinearConfig};
use burn::module::Param;
use burn::tensor::{Device, Tensor};
use serde::Deserialize;

use crate::check::{SUMMATION, assert_close_relative, values};
use crate::golden::Golden;

/// One line of `cases.json`.
#[derive(Deserialize)]
struct Case {
    key: String,
    shape: String,
    bias: bool,
    lam: f32,
    x: Vec<usize>,
}

/// Outputs, and the gradients to input, weight and bias.
pub fn reference(device: &Device) {
    let golden = Golden::open("bitlinear/cases.safetensors");
    let cases: Vec<Case> =
        serde_json::from_slice(&std::fs::read(crate::data("bitlinear/cases.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 72);
    let mut worst = 0.0_f32;
    for case in &cases {
        worst = worst.max(match case.x.len() {
            2 => check::<2>(&golden, case, device),
            3 => check::<3>(&golden, case, device),
            other => panic!("{}: {other} axes", case.key),
        });
    }
    eprintln!("largest difference in {} cases: {worst:e} of the largest magnitude", cases.len());
}

/// Returns the largest difference as a share of its tensor's largest magnitude.
fn check<const D: usize>(golden: &Golden, case: &Case, device: &Device) -> f32 {
    let device = device.clone().autodiff();
    let Case { key, shape, .. } = case;
    let layer = layer(golden, shape, case.bias, &device);
    let x = golden.tensor::<D>(&format!("{shape}.x"), &device).require_grad();
    let y = layer.forward(x.clone(), case.lam);
    let dy = golden.tensor::<D>(&format!("{shape}.dy"), &device);
    let grads = (y.clone() * dy).sum().backward();
    let mut found = vec![
        ("y", values(y)),
        ("dx", values(x.grad(&grads).unwrap())),
        ("dw", values(layer.weight.val().grad(&grads).unwrap())),
    ];
    if let Some(bias) = &layer.bias {
        found.push(("db", values(bias.val().grad(&grads).unwrap())));
    }
    let close = |(name, found): (&str, Vec<f32>)| {
        let name = format!("{key}.{name}");
        assert_close_relative(&name, &found, &golden.floats(&name), SUMMATION)
    };
    found.into_iter().map(close).fold(0.0, f32::max)
}

fn layer(golden: &Golden, shape: &str, bias: bool, device: &Device) -> BitLinear {
    let weight: Tensor<2> = golden.tensor(&format!("{shape}.w"), device);
    let [d_output, d_input] = weight.dims();
    let mut layer = BitLinearConfig::new(d_input, d_output).with_bias(bias).init(device).unwrap();
    layer.weight = Param::from_tensor(weight);
    layer.bias = bias.then(|| Param::from_tensor(golden.tensor(&format!("{shape}.b"), device)));
    layer
}
