//! The layer on slices, for every backend whose tensors lie in this process's memory.

use std::sync::Arc;

use bitnet_cpu::{Gemm, Kernel, Matrix, PackedTernary, Right};
use burn::backend::Backend;
use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape, TensorData};
use rayon::prelude::*;

use super::autodiff::LayerBackend;
use crate::{ActivationQuant, Bits, Granularity};

/// A backend whose tensors can be read as slices.
pub(crate) trait CpuBackend: Backend {
    /// Calls `read` with the values of an f32 tensor, row-major.
    fn read<R>(tensor: &FloatTensor<Self>, read: impl FnOnce(&[f32]) -> R) -> R;

    /// The values of an f32 tensor, row-major: its own memory where nothing else holds it.
    fn into_values(tensor: FloatTensor<Self>) -> Vec<f32> {
        Self::read(&tensor, <[f32]>::to_vec)
    }

    /// Calls `read` with the values of an i32 tensor, row-major.
    fn read_words<R>(tensor: &IntTensor<Self>, read: impl FnOnce(&[i32]) -> R) -> R;
}

/// An operand's codes, and its shape.
#[derive(Debug, Clone)]
pub(crate) struct SavedCodes<C> {
    codes: Arc<C>,
    shape: [usize; 2],
}

pub(crate) fn quantize<B: CpuBackend>(x: &FloatTensor<B>, bits: Bits) -> bitnet_cpu::QuantizedActivations {
    let [_, d_input] = dims::<B>(x);
    B::read(x, |x| sound(Kernel::new().quantize_activations(x, d_input, u8::from(bits).into())))
}

/// `x · wᵀ`.
fn product<B: CpuBackend>(x: &FloatTensor<B>, weight: &FloatTensor<B>) -> FloatTensor<B> {
    let Some(gemm) = Gemm::new() else {
        return B::float_matmul(x.clone(), B::float_transpose(weight.clone()));
    };
    let ([tokens, d_input], [d_output, _]) = (dims::<B>(x), dims::<B>(weight));
    let y = B::read(x, |x| {
        B::read(weight, |weight| {
            let weight = Right::Floats(Matrix::columns(weight, d_input));
            sound(gemm.product(Matrix::rows(x, d_input), weight, [tokens, d_input, d_output]))
        })
    });
    tensor::<B>(y, [tokens, d_output], x)
}

/// `grad · w`.
fn input_gradient<B: CpuBackend>(
    gemm: Gemm,
    grad: &FloatTensor<B>,
    weight: Right<'_>,
    d_input: usize,
) -> FloatTensor<B> {
    let [tokens, d_output] = dims::<B>(grad);
    let out = B::read(grad, |grad| {
        sound(gemm.product(Matrix::rows(grad, d_output), weight, [tokens, d_output, d_input]))
    });
    tensor::<B>(out, [tokens, d_input], grad)
}

/// `gradᵀ · x`.
fn weight_gradient<B: CpuBackend>(
    gemm: Gemm,
    grad: &FloatTensor<B>,
    x: Right<'_>,
    d_input: usize,
) -> FloatTensor<B> {
    let [tokens, d_output] = dims::<B>(grad);
    let out = B::read(grad, |grad| {
        sound(gemm.product(Matrix::columns(grad, d_output), x, [d_output, tokens, d_input]))
    });
    tensor::<B>(out, [d_output, d_input], grad)
}

/// `base + λ·(codes·scale − base)` with one scale per `segment` values; at λ = 1 exactly `codes·scale`, and `base`
/// is not read.
fn blend(base: &[f32], codes: &[i8], scales: &[f32], segment: usize, lambda: f32) -> Vec<f32> {
    let mut out = vec![0.0; codes.len()];
    let rows = out.par_chunks_mut(segment).zip(codes.par_chunks(segment)).enumerate();
    rows.with_min_len((1 << 14) / segment + 1).for_each(|(row, (out, codes))| {
        let scale = scales[row];
        if lambda == 1.0 {
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = f32::from(code) * scale;
            }
        } else {
            for ((out, &code), &base) in out.iter_mut().zip(codes).zip(&base[row * segment..]) {
                *out = base + (f32::from(code) * scale - base) * lambda;
            }
        }
    });
    out
}

pub(crate) fn dims<B: CpuBackend>(tensor: &FloatTensor<B>) -> [usize; 2] {
    tensor.shape().dims()
}

/// A tensor on the device of another.
pub(crate) fn tensor<B: CpuBackend>(
    values: Vec<f32>,
    shape: impl Into<Shape>,
    like: &FloatTensor<B>,
) -> FloatTensor<B> {
    B::float_from_data(TensorData::new(values, shape.into()), &like.device())
}

/// The kernels check shapes again that the layer has checked when it was configured.
pub(crate) fn sound<T>(result: Result<T, bitnet_cpu::CpuError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => unreachable!("the layer's own shapes do not fit: {error}"),
    }
}

impl<B: CpuBackend> LayerBackend for B {
    /// A quarter of the input's bytes.
    type InputCodes = SavedCodes<bitnet_cpu::QuantizedActivations>;
    /// A sixteenth of the weight's.
    type WeightCodes = SavedCodes<PackedTernary<'static>>;
    type WeightScales = Arc<[f32]>;

    fn weight_codes(
        weight: FloatTensor<B>,
        granularity: Granularity,
        before: Option<Self::WeightCodes>,
    ) -> Self::WeightCodes {
        let shape @ [d_output, d_input] = dims::<B>(&weight);
        let before = before
            .filter(|before| before.shape == shape && before.codes.granularity() == granularity)
            .and_then(|before| Arc::into_inner(before.codes));
        let packed = B::read(&weight, |weight| match before {
            Some(mut packed) => {
                sound(Kernel::new().absmean_pack_to(weight, &mut packed));
                packed
            }
            None => sound(Kernel::new().absmean_pack(weight, d_output, d_input, granularity)),
        });
        SavedCodes { codes: Arc::new(packed), shape }
    }

    fn weight_scales(weight: FloatTensor<B>, granularity: Granularity) -> Arc<[f32]> {
        let [d_output, d_input] = dims::<B>(&weight);
        B::read(&weight, |weight| sound(Kernel::new().absmean(weight, d_output, d_input, granularity))).into()
    }

    fn product_of_codes(
        x: FloatTensor<B>,
        bits: Bits,
        weight: Self::WeightCodes,
    ) -> (FloatTensor<B>, Self::InputCodes) {
        let (shape @ [tokens, _], [d_output, _]) = (dims::<B>(&x), weight.shape);
        let codes = Arc::new(quantize::<B>(&x, bits));
        let mut y = vec![0.0; tokens * d_output];
        sound(Kernel::new().matmul(&weight.codes, &codes.codes, &codes.scales, &mut y));
        (tensor::<B>(y, [tokens, d_output], &x), SavedCodes { codes, shape })
    }

    fn effective_input(x: FloatTensor<B>, quant: ActivationQuant, lambda: f32) -> FloatTensor<B> {
        let ActivationQuant::PerToken(bits) = quant else {
            return x;
        };
        let shape = dims::<B>(&x);
        let quantized = quantize::<B>(&x, bits);
        let values = B::read(&x, |x| blend(x, &quantized.codes, &quantized.scales, shape[1], lambda));
        tensor::<B>(values, shape, &x)
    }

    fn effective_weight(
        weight: FloatTensor<B>,
        granularity: Granularity,
        scales: Arc<[f32]>,
        lambda: f32,
        _: DType,
    ) -> FloatTensor<B> {
        let shape @ [d_output, d_input] = dims::<B>(&weight);
        let values = B::read(&weight, |weight| {
            sound(Kernel::new().ternary_blend(weight, d_output, d_input, granularity, &scales, lambda))
        });
        tensor::<B>(values, shape, &weight)
    }

    fn product(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
        product::<B>(&x, &weight)
    }

    fn input_gradient_of_codes(grad: FloatTensor<B>, weight: Self::WeightCodes) -> FloatTensor<B> {
        let SavedCodes { codes, shape } = weight;
        match Gemm::new() {
            Some(gemm) => input_gradient::<B>(gemm, &grad, Right::Ternary(&codes), shape[1]),
            None => {
                let weight = tensor::<B>(codes.dequantize(), shape, &grad);
                B::float_matmul(grad, weight)
            }
        }
    }

    fn weight_gradient_of_codes(grad: FloatTensor<B>, x: Self::InputCodes) -> FloatTensor<B> {
        let SavedCodes { codes, shape } = x;
        match Gemm::new() {
            Some(gemm) => {
                let x = Right::Codes { codes: &codes.codes, scales: &codes.scales };
                weight_gradient::<B>(gemm, &grad, x, shape[1])
            }
            None => {
                // At λ = 1 the latent values do not matter, and are not read.
                let x = blend(&[], &codes.codes, &codes.scales, shape[1], 1.0);
                let x = tensor::<B>(x, shape, &grad);
                B::float_matmul(B::float_transpose(grad), x)
            }
        }
    }

    fn input_gradient(grad: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
        let [_, d_input] = dims::<B>(&weight);
        match Gemm::new() {
            Some(gemm) => B::read(&weight, |weight| {
                input_gradient::<B>(gemm, &grad, Right::Floats(Matrix::rows(weight, d_input)), d_input)
            }),
            None => B::float_matmul(grad, weight),
        }
    }

    fn weight_gradient(grad: FloatTensor<B>, x: FloatTensor<B>) -> FloatTensor<B> {
        let [_, d_input] = dims::<B>(&x);
        match Gemm::new() {
            Some(gemm) => B::read(&x, |x| {
                weight_gradient::<B>(gemm, &grad, Right::Floats(Matrix::rows(x, d_input)), d_input)
            }),
            None => B::float_matmul(B::float_transpose(grad), x),
        }
    }
}
