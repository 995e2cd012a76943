//! What training computes besides the ternary layers, in one pass where the device has one.
//!
//! Each function stands beside its definition in Burn's operations, which it gives way to on other devices, in other float types
//! and within [`with_plain_operations`](crate::with_plain_operations): `None` says so where the definition is elsewhere.

pub use bitnet_cpu::{AdamW, AttentionShape};
use burn::tensor::activation::silu;
use burn::tensor::module::linear;
use burn::tensor::{Int, Tensor};

#[cfg(any(feature = "flex", feature = "ndarray"))]
use crate::backends as fused;
use crate::sum::fold_sum;

/// `x · wᵀ`, of a weight that lies as checkpoints store it.
///
/// # Shapes
/// - `x`: `[.., d_input]`, `weight`: `[d_output, d_input]`
/// - returns `[.., d_output]`
///
/// # Panics
/// Where the last axis of `x` is not `d_input`.
pub fn dense_linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let [d_output, d_input] = weight.dims();
    let mut shape = x.dims();
    let tokens = shape[..D - 1].iter().product();
    match fused::dense_linear(&x.clone().reshape([tokens, d_input]), &weight) {
        Some(y) => {
            shape[D - 1] = d_output;
            y.reshape(shape)
        }
        None => linear(x, weight.transpose(), None),
    }
}

/// `x · 1 / √(mean(x²) + eps) · gain` over the last axis.
///
/// # Shapes
/// - `x`: `[.., d]`, `gain`: `[d]`; returns `[.., d]`
pub fn rms_norm<const D: usize>(x: Tensor<D>, gain: Tensor<1>, eps: f64) -> Tensor<D> {
    match fused::rms_norm(&x, &gain, eps) {
        Some(y) => y,
        None => {
            let rms = x.clone().square().mean_dim(D - 1).add_scalar(eps).sqrt();
            x * rms.recip() * gain.unsqueeze()
        }
    }
}

/// `silu(gate) · up`.
///
/// # Shapes
/// - `gate`, `up`: equal; the same out
pub fn silu_gated<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    match fused::silu_gated(&gate, &up) {
        Some(y) => y,
        None => silu(gate) * up,
    }
}

/// Attention of each token to itself and those before it, with rotary positions: `softmax(rotated query · scale · rotated
/// keyᵀ) · value`.
///
/// # Shapes
/// - `query`: `[batch, tokens, n_heads · D]`; `key`, `value`: `[batch, tokens, n_kv_heads · D]`
/// - `cos`, `sin` of each pair (i, i + D/2): `[tokens, D / 2]`
/// - returns `[batch, tokens, n_heads · D]`
pub fn causal_attention(
    query: &Tensor<3>,
    key: &Tensor<3>,
    value: &Tensor<3>,
    [cos, sin]: [Tensor<2>; 2],
    shape: AttentionShape,
) -> Option<Tensor<3>> {
    fused::causal_attention([query, key, value], [cos, sin], shape)
}

/// Mean cross-entropy of each sequence's tokens but the first in the logits of the one before.
///
/// # Shapes
/// - `logits`: `[batch, tokens, vocab_size]`, `tokens`: `[batch, tokens]`, at least 2 and each below `vocab_size`
/// - returns `[1]`
pub fn next_token_cross_entropy(logits: &Tensor<3>, tokens: &Tensor<2, Int>) -> Option<Tensor<1>> {
    fused::next_token_cross_entropy(logits, tokens)
}

/// A parameter and its two moments.
pub type AdamWTensors = [Tensor<1>; 3];

/// AdamW's update, as Burn's `AdamW` computes it, in the memory of parameter and moments where nothing else holds it. The three
/// come back in `Err` where the device has no such pass.
///
/// # Shapes
/// - all `[n]`, without autodiff
pub fn adamw(
    settings: AdamW,
    gradient: &Tensor<1>,
    tensors: AdamWTensors,
) -> Result<AdamWTensors, Box<AdamWTensors>> {
    fused::adamw(settings, gradient, tensors)
}

/// `Σ x²` by [`fold_sum`], `[1]`.
pub fn square_sum(x: Tensor<1>) -> Tensor<1> {
    match fused::square_sum(&x) {
        Some(sum) => sum,
        None => fold_sum(x.square()),
    }
}

/// Without a CPU backend there is no such pass.
#[cfg(not(any(feature = "flex", feature = "ndarray")))]
mod fused {
    use super::*;

    pub(super) fn dense_linear(_: &Tensor<2>, _: &Tensor<2>) -> Option<Tensor<2>> {
        None
    }

    pub(super) fn rms_norm<const D: usize>(_: &Tensor<D>, _: &Tensor<1>, _: f64) -> Option<Tensor<D>> {
        None
    }

    pub(super) fn silu_gated<const D: usize>(_: &Tensor<D>, _: &Tensor<D>) -> Option<Tensor<D>> {
        None
    }

    pub(super) fn causal_attention(
        _: [&Tensor<3>; 3],
        _: [Tensor<2>; 2],
        _: AttentionShape,
    ) -> Option<Tensor<3>> {
        None
    }

    pub(super) fn next_token_cross_entropy(_: &Tensor<3>, _: &Tensor<2, Int>) -> Option<Tensor<1>> {
        None
    }

    pub(super) fn adamw(
        _: AdamW,
        _: &Tensor<1>,
        tensors: AdamWTensors,
    ) -> Result<AdamWTensors, Box<AdamWTensors>> {
        Err(Box::new(tensors))
    }

    pub(super) fn square_sum(_: &Tensor<1>) -> Option<Tensor<1>> {
        None
    }
}
