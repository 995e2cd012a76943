//! Which operations of `training.rs` the device has.

use bitnet_cpu::{AdamW, AttentionShape, Gemm};
use burn::backend::Dispatch;
use burn::tensor::{DType, Int, Tensor};

use super::BitLinearOps;
use super::blocks::BlockOps;
use super::optimizer::OptimizerOps;
use crate::device::is_cpu;
use crate::linear::plain;
use crate::training::AdamWTensors;
use crate::{KeptCodes, Quantization};

/// Whether slices can be had of a tensor's f32 values.
fn is_f32_on_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && !plain() && is_cpu(&x.clone().inner().device())
}

pub(crate) fn dense_linear(x: &Tensor<2>, weight: &Tensor<2>) -> Option<Tensor<2>> {
    if Gemm::new().is_none() || !is_f32_on_cpu(x) || !is_f32_on_cpu(weight) {
        return None;
    }
    let (x, weight) = super::in_one_context(x.clone(), weight.clone());
    // The layer at λ = 0: nothing is quantized.
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    let y = <Dispatch as BitLinearOps>::bit_linear(
        x,
        weight,
        Quantization::default(),
        0.0,
        &KeptCodes::default(),
    );
    Some(Tensor::from_dispatch(y))
}

pub(crate) fn rms_norm<const D: usize>(x: &Tensor<D>, gain: &Tensor<1>, eps: f64) -> Option<Tensor<D>> {
    if !is_f32_on_cpu(x) || !is_f32_on_cpu(gain) {
        return None;
    }
    let (x, gain) = (x.clone().into_dispatch(), gain.clone().into_dispatch());
    Some(Tensor::from_dispatch(<Dispatch as BlockOps>::rms_norm(x, gain, eps as f32)))
}

pub(crate) fn silu_gated<const D: usize>(gate: &Tensor<D>, up: &Tensor<D>) -> Option<Tensor<D>> {
    if !is_f32_on_cpu(gate) || !is_f32_on_cpu(up) || gate.dims() != up.dims() {
        return None;
    }
    let y = <Dispatch as BlockOps>::silu_gated(gate.clone().into_dispatch(), up.clone().into_dispatch());
    Some(Tensor::from_dispatch(y))
}

pub(crate) fn causal_attention(
    inputs: [&Tensor<3>; 3],
    waves: [Tensor<2>; 2],
    shape: AttentionShape,
) -> Option<Tensor<3>> {
    let fits = inputs.iter().all(|x| is_f32_on_cpu(x)) && waves.iter().all(is_f32_on_cpu);
    if Gemm::new().is_none() || !fits {
        return None;
    }
    let [query, key, value] = inputs.map(|x| x.clone().into_dispatch());
    let [cos, sin] = waves.map(Tensor::into_dispatch);
    let y = <Dispatch as BlockOps>::causal_attention(query, key, value, cos, sin, shape);
    Some(Tensor::from_dispatch(y))
}

pub(crate) fn next_token_cross_entropy(logits: &Tensor<3>, tokens: &Tensor<2, Int>) -> Option<Tensor<1>> {
    if !is_f32_on_cpu(logits) {
        return None;
    }
    let tokens = tokens.clone().cast(DType::I32).into_dispatch();
    let loss = <Dispatch as BlockOps>::next_token_cross_entropy(logits.clone().into_dispatch(), tokens);
    Some(Tensor::from_dispatch(loss))
}

pub(crate) fn adamw(
    settings: AdamW,
    gradient: &Tensor<1>,
    tensors: AdamWTensors,
) -> Result<AdamWTensors, Box<AdamWTensors>> {
    if !is_f32_on_cpu(gradient) || !tensors.iter().all(is_f32_on_cpu) {
        return Err(Box::new(tensors));
    }
    let [parameter, first, second] = tensors.map(Tensor::into_dispatch);
    let gradient = gradient.clone().into_dispatch();
    let (parameter, first, second) =
        <Dispatch as OptimizerOps>::adamw(parameter, gradient, first, second, settings);
    Ok([parameter, first, second].map(Tensor::from_dispatch))
}

pub(crate) fn square_sum(x: &Tensor<1>) -> Option<Tensor<1>> {
    if !is_f32_on_cpu(x) {
        return None;
    }
    Some(Tensor::from_dispatch(<Dispatch as OptimizerOps>::square_sum(x.clone().into_dispatch())))
}
