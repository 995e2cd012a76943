//! The gradients: `dX = g·w_eff`, `dW = gᵀ·x_eff`, at every λ.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, binary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, TensorMetadata};

use super::BitLinearOps;
use super::cpu::{CpuBackend, SavedCodes, dequantize, effective_input, effective_weight, forward};
use crate::Quantization;

#[derive(Debug)]
struct BitLinearBackward;

#[derive(Debug, Clone)]
enum Input {
    /// At λ = 1: int8 codes and their scales.
    Codes(SavedCodes),
    /// Otherwise the latent input, as a dense layer keeps it.
    Latent(NodeId),
}

#[derive(Debug, Clone)]
struct State {
    /// For dW; none where the weight is frozen.
    input: Option<Input>,
    /// For dX; none where the input needs no gradient.
    weight: Option<NodeId>,
    quantization: Quantization,
    lambda: f32,
}

impl<B: CpuBackend> Backward<B, 2> for BitLinearBackward {
    type State = State;

    fn backward(self, ops: Ops<State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
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
                    B::float_matmul(grad, effective_weight::<B>(&weight, quantization.weight, lambda))
                }
                None => unreachable!("the weight is saved where the input is tracked"),
            },
            |grad| {
                let x = match (input, latent) {
                    (Some(Input::Codes(codes)), _) => dequantize::<B>(&codes, &grad.device()),
                    (_, Some(x)) => effective_input::<B>(x, quantization.activation, lambda),
                    _ => unreachable!("the input is saved where the weight is tracked"),
                };
                B::float_matmul(B::float_transpose(grad), x)
            },
        );
    }
}

impl<B: CpuBackend, C: CheckpointStrategy> BitLinearOps for Autodiff<B, C> {
    fn bit_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        quantization: Quantization,
        lambda: f32,
    ) -> FloatTensor<Self> {
        let (y, codes) =
            forward::<B>(x.primitive().clone(), weight.primitive().clone(), quantization, lambda);
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
