//! Single operations at the shapes of SmolLM2-135M and Llama-3.2-1B, beside their floors.

use std::error::Error;
use std::hint::black_box;

use bitnet_arch::quant::{Quantization, bit_linear, device};
use bitnet_cpu::{Granularity, Kernel};
use burn::tensor::module::linear;
use burn::tensor::{Device, Distribution, Tensor};
use serde::{Deserialize, Serialize};

use crate::machine::{Peaks, median_seconds, peaks};

/// d_input, d_output of the projections: SmolLM2-135M's, then Llama-3.2-1B's.
const SHAPES: [[usize; 2]; 8] =
    [[576, 576], [576, 192], [576, 1536], [1536, 576], [2048, 2048], [2048, 512], [2048, 8192], [8192, 2048]];
const TOKENS: [usize; 3] = [1, 256, 4096];
/// A tensor larger than any cache: 1 GiB.
const LARGE: [usize; 2] = [1 << 14, 1 << 14];

/// All that was found.
#[derive(Serialize, Deserialize)]
pub(crate) struct Ops {
    pub(crate) peaks: Peaks,
    pub(crate) rows: Vec<Op>,
}

/// One operation.
#[derive(Serialize, Deserialize)]
pub(crate) struct Op {
    pub(crate) name: String,
    pub(crate) shape: String,
    pub(crate) seconds: f64,
    /// What the counted operations and bytes take at least.
    pub(crate) floor_seconds: f64,
    /// The same of a dense layer; none of quantizers.
    pub(crate) dense_seconds: Option<f64>,
}

pub(crate) fn measure() -> Result<Ops, Box<dyn Error>> {
    let device = device("flex")?;
    device.seed(0);
    let peaks = peaks(&device);
    let mut rows = quantizers(&peaks)?;
    for shape in SHAPES {
        for tokens in TOKENS {
            eprintln!("{} × {}, {tokens} tokens", shape[0], shape[1]);
            rows.extend(layers(&peaks, &device, tokens, shape));
        }
    }
    Ok(Ops { peaks, rows })
}

/// The quantizers: two reads of the weight and two bits a code, one read of the activations and a byte a code.
fn quantizers(peaks: &Peaks) -> Result<Vec<Op>, Box<dyn Error>> {
    let kernel = Kernel::new();
    let mut rows = Vec::new();
    for [d_output, d_input] in [[1536, 576], [8192, 2048], LARGE] {
        let n = d_output * d_input;
        let values: Vec<f32> = (0..n).map(|i| (i % 1021) as f32 / 510.0 - 1.0).collect();
        let shape = format!("{d_output} × {d_input}");
        let mut row = |name: &str, bytes: f64, seconds| {
            let floor_seconds = peaks.floor(0.0, n as f64 * bytes);
            rows.push(Op {
                name: name.into(),
                shape: shape.clone(),
                seconds,
                floor_seconds,
                dense_seconds: None,
            });
        };
        // First calls, whose errors count; those that are timed cannot fail either. They go into memory that is there, as the
        // copy, and as training from its second step on.
        let mut packed = kernel.absmean_pack(&values, d_output, d_input, Granularity::Tensor)?;
        let seconds = median_seconds(|| {
            let _ = black_box(kernel.absmean_pack_to(&values, &mut packed));
        });
        row("weight to packed codes", 8.25, seconds);
        let mut quantized = kernel.quantize_activations(&values, d_input, 8)?;
        let seconds = median_seconds(|| {
            let _ = black_box(kernel.quantize_activations_to(&values, d_input, 8, &mut quantized));
        });
        row("activations to codes", 5.0, seconds);
    }
    Ok(rows)
}

/// The fused layer at λ = 1, forward alone and with the backward pass, and the dense one.
fn layers(peaks: &Peaks, device: &Device, tokens: usize, [d_input, d_output]: [usize; 2]) -> [Op; 2] {
    let normal = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), device);
    let (x, w, grad) = (normal([tokens, d_input]), normal([d_output, d_input]), normal([tokens, d_output]));
    let dense = |x: Tensor<2>, w: Tensor<2>| linear(x, w.transpose(), None);
    let fused = |x: Tensor<2>, w: Tensor<2>| bit_linear(x, w, None, Quantization::default(), 1.0);
    let product = 2.0 * (tokens * d_input * d_output) as f64;
    let bytes = 4.0 * (tokens * d_input + d_input * d_output + tokens * d_output) as f64;
    let op = |name: &str, products: f64, [seconds, dense]: [f64; 2]| Op {
        name: name.into(),
        shape: format!("{tokens} × {d_input} → {d_output}"),
        seconds,
        floor_seconds: peaks.floor(products * product, products * bytes),
        dense_seconds: Some(dense),
    };
    let forward = |layer: &dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
        median_seconds(|| {
            black_box(layer(x.clone(), w.clone()));
        })
    };
    let both = |layer: &dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
        let (x, w) = (x.clone().autodiff().require_grad(), w.clone().autodiff().require_grad());
        let grad = grad.clone().autodiff();
        median_seconds(|| {
            let y = layer(x.clone(), w.clone());
            black_box((y * grad.clone()).sum().backward());
        })
    };
    [
        op("forward", 1.0, [forward(&fused), forward(&dense)]),
        op("forward and backward", 3.0, [both(&fused), both(&dense)]),
    ]
}
