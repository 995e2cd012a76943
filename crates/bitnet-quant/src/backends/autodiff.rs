//! The gradients: `dX = g·w_eff`, `dW = gᵀ·x_eff`, at every λ.

use std::fmt::Debug;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, binary};
use burn::backend::tensor::{Device, FloatTensor};
use burn::backend::{Autodiff, Backend, TensorMetadata};

use super::BitLinearOps;
use crate::{ActivationQuant, Granularity, Quantization};

/// What the two passes need of a backend. All floats are f32.
pub(crate) trait LayerBackend: Backend {
    /// The input's codes and scales.
    type Codes: Debug + Clone + Send + 'static;

    /// `x_eff · w_effᵀ`, and at λ = 1 the input's codes.
    fn forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        quantization: Quantization,
        lambda: f32,
    ) -> (FloatTensor<Self>, Option<Self::Codes>);

    /// `x + λ·(Qa(x) − x)`, `[tokens, d_input]`.
    fn effective_input(x: FloatTensor<Self>, quant: ActivationQuant, lambda: f32) -> FloatTensor<Self>;

    /// `w + λ·(Q(w) − w)`, `[d_output, d_input]`.
    fn effective_weight(
        weight: FloatTensor<Self>,
        granularity: Granularity,
        lambda: f32,
    ) -> FloatTensor<Self>;

    /// `Qa(x)` from codes, `[tokens, d_input]`.
    fn input_from_codes(codes: Self::Codes, device: &Device<Self>) -> FloatTensor<Self>;
}

#[derive(Debug)]
struct BitLinearBackward;

#[derive(Debug, Clone)]
enum Input<B: LayerBackend> {
    /// At λ = 1: int8 codes and their scales.
    Codes(B::Codes),
    /// Otherwise the latent input, as a dense layer keeps it.
    Latent(NodeId),
}

#[derive(Debug, Clone)]
struct State<B: LayerBackend> {
    /// For dW; none where the weight is frozen.
    input: Option<Input<B>>,
    /// For dX; none where the input needs no gradient.
    weight: Option<NodeId>,
    quantization: Quantization,
    lambda: f32,
}

impl<B: LayerBackend> Backward<B, 2> for BitLinearBackward {
    type State = State<B>;

    fn backward(self, ops: Ops<State<B>, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let State { input, weight, quantization, lambda } = ops.state;
        let weight = weight.map(|node| checkpointer.retrieve_node_output::<FloatTensor<B>>(node));
        let latent = match &input {
            Some(Input::Latent(node)) => Some(checkpointer.retrieve_node_output::<FloatTensor<B>>(*node)),
            _ => None,
        };
        binary::<B, _, _>(
            ops.parents,
            ops.node,
            grads,
            |grad| match weight {
                Some(weight) => {
                    B::float_matmul(grad, B::effective_weight(weight, quantization.weight, lambda))
                }
                None => unreachable!("the weight is saved where the input is tracked"),
            },
            |grad| {
                let x = match (input, latent) {
                    (Some(Input::Codes(codes)), _) => B::input_from_codes(codes, &grad.device()),
                    (_, Some(x)) => B::effective_input(x, quantization.activation, lambda),
                    _ => unreachable!("the input is saved where the weight is tracked"),
                };
                B::float_matmul(B::float_transpose(grad), x)
            },
        );
    }
}

impl<B: LayerBackend, C: CheckpointStrategy> BitLinearOps for Autodiff<B, C> {
    fn bit_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        quantization: Quantization,
        lambda: f32,
    ) -> FloatTensor<Self> {
        let (y, codes) = B::forward(x.primitive().clone(), weight.primitive().clone(), quantization, lambda);
        match BitLinearBackward.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let input = weight.is_tracked().then(|| match codes {
                    Some(codes) => Input::Codes(codes),
                    None => Input::Latent(prep.checkpoint(&x)),
                });
                let weight = x.is_tracked().then(|| prep.checkpoint(&weight));
                prep.finish(State { input, weight, quantization, lambda }, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
