//! Forward and backward of one layer on flex: dense, by plain operations, and fused.
//!
//! `cargo bench -p bitnet-quant`. The floor of each is three products of `tokens · d_input · d_output` multiplications;
//! what a BitNet layer takes beyond the dense one is the price of quantizing.

use bitnet_quant::{Quantization, bit_linear, bit_linear_reference};
use burn::tensor::module::linear;
use burn::tensor::{Device, Distribution, Tensor};
use divan::{Bencher, black_box};

type Layer = fn(Tensor<2>, Tensor<2>, Option<Tensor<1>>, Quantization, f32) -> Tensor<2>;

/// Tokens, d_input, d_output: projections of SmolLM2-135M and Llama-3.2-1B.
const SHAPES: [[usize; 3]; 4] = [[256, 576, 576], [256, 576, 1536], [256, 1536, 576], [256, 2048, 8192]];

fn main() {
    divan::main();
}

#[divan::bench(args = SHAPES)]
fn dense(bencher: Bencher, shape: [usize; 3]) {
    run(bencher, shape, |x, w, bias, _, _| linear(x, w.transpose(), bias), 0.0);
}

#[divan::bench(args = SHAPES)]
fn reference(bencher: Bencher, shape: [usize; 3]) {
    run(bencher, shape, bit_linear_reference, 1.0);
}

#[divan::bench(args = SHAPES)]
fn fused(bencher: Bencher, shape: [usize; 3]) {
    run(bencher, shape, bit_linear, 1.0);
}

#[divan::bench(args = SHAPES)]
fn fused_at_half_strength(bencher: Bencher, shape: [usize; 3]) {
    run(bencher, shape, bit_linear, 0.5);
}

fn run(bencher: Bencher, [tokens, d_input, d_output]: [usize; 3], layer: Layer, lambda: f32) {
    let device = Device::flex().autodiff();
    let normal = |shape: [usize; 2]| Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device);
    let x = normal([tokens, d_input]).require_grad();
    let w = normal([d_output, d_input]).require_grad();
    let grad = normal([tokens, d_output]);
    bencher.bench_local(|| {
        let y = layer(x.clone(), w.clone(), None, Quantization::default(), lambda);
        black_box((y * grad.clone()).sum().backward())
    });
}
