//! The gradients: `dX = g·w_eff`, `dW = gᵀ·x_eff`, at every λ.

use std::fmt::Debug;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, binary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};

use super::BitLinearOps;
use crate::{ActivationQuant, Granularity, Quantization};

/// What the two passes need of a backend. All floats are f32.
pub(crate) trait LayerBackend: Backend {
    /// The input's int8 codes and scales.
    type InputCodes: Debug + Clone + Send + 'static;
    /// The weight's codes at two bits each, and scales.
    type WeightCodes: Debug + Clone + Send + 'static;

    /// `x_eff · w_effᵀ`, and at λ = 1 the codes.
    fn forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        quantization: Quantization,
        lambda: f32,
    ) -> (FloatTensor<Self>, SavedCodes<Self>);

    /// `x + λ·(Qa(x) − x)`, `[tokens, d_input]`.
    fn effective_input(x: FloatTensor<Self>, quant: ActivationQuant, lambda: f32) -> FloatTensor<Self>;

    /// `w + λ·(Q(w) − w)`, `[d_output, d_input]`.
    fn effective_weight(
        weight: FloatTensor<Self>,
        granularity: Granularity,
        lambda: f32,
    ) -> FloatTensor<Self>;

    /// `grad · Q(w)` from codes, `[tokens, d_input]`.
    fn input_gradient_of_codes(grad: FloatTensor<Self>, weight: Self::WeightCodes) -> FloatTensor<Self>;

    /// `gradᵀ · Qa(x)` from codes, `[d_output, d_input]`.
    fn weight_gradient_of_codes(grad: FloatTensor<Self>, x: Self::InputCodes) -> FloatTensor<Self>;

    /// `grad · w`, `[tokens, d_input]`.
    fn input_gradient(grad: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(grad, weight)
    }

    /// `gradᵀ · x`, `[d_output, d_input]`.
    fn weight_gradient(grad: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(Self::float_transpose(grad), x)
    }
}

/// Codes of input and weight, where the product was one of codes.
pub(crate) type SavedCodes<B> = Option<(<B as LayerBackend>::InputCodes, <B as LayerBackend>::WeightCodes)>;

#[derive(Debug)]
struct BitLinearBackward;

/// An operand as the backward pass finds it again.
#[derive(Debug, Clone)]
enum Operand<C, L> {
    /// At λ = 1 codes and scales: a fraction of the bytes.
    Codes(C),
    /// Otherwise the latent values, as a dense layer keeps them.
    Latent(L),
}

impl<C> Operand<C, NodeId> {
    fn retrieve<T: Clone + Send + 'static>(self, checkpointer: &mut Checkpointer) -> Operand<C, T> {
        match self {
            Self::Codes(codes) => Operand::Codes(codes),
            Self::Latent(node) => Operand::Latent(checkpointer.retrieve_node_output(node)),
        }
    }
}

#[derive(Debug, Clone)]
struct State<B: LayerBackend> {
    /// For dW; none where the weight is frozen.
    input: Option<Operand<B::InputCodes, NodeId>>,
    /// For dX; none where the input needs no gradient.
    weight: Option<Operand<B::WeightCodes, NodeId>>,
    quantization: Quantization,
    lambda: f32,
}

impl<B: LayerBackend> Backward<B, 2> for BitLinearBackward {
    type State = State<B>;

    fn backward(self, ops: Ops<State<B>, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let State { input, weight, quantization, lambda } = ops.state;
        let weight = weight.map(|weight| weight.retrieve::<FloatTensor<B>>(checkpointer));
        let input = input.map(|input| input.retrieve::<FloatTensor<B>>(checkpointer));
        binary::<B, _, _>(
            ops.parents,
            ops.node,
            grads,
            |grad| match weight {
                Some(Operand::Codes(codes)) => B::input_gradient_of_codes(grad, codes),
                Some(Operand::Latent(weight)) if lambda == 0.0 => B::input_gradient(grad, weight),
                Some(Operand::Latent(weight)) => {
                    B::input_gradient(grad, B::effective_weight(weight, quantization.weight, lambda))
                }
                None => unreachable!("the weight is saved where the input is tracked"),
            },
            |grad| match input {
                Some(Operand::Codes(codes)) => B::weight_gradient_of_codes(grad, codes),
                Some(Operand::Latent(x)) if lambda == 0.0 => B::weight_gradient(grad, x),
                Some(Operand::Latent(x)) => {
                    B::weight_gradient(grad, B::effective_input(x, quantization.activation, lambda))
                }
                None => unreachable!("the input is saved where the weight is tracked"),
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
                let (input_codes, weight_codes) = codes.unzip();
                let input = weight.is_tracked().then(|| match input_codes {
                    Some(codes) => Operand::Codes(codes),
                    None => Operand::Latent(prep.checkpoint(&x)),
                });
                let weight = x.is_tracked().then(|| match weight_codes {
                    Some(codes) => Operand::Codes(codes),
                    None => Operand::Latent(prep.checkpoint(&weight)),
                });
                prep.finish(State { input, weight, quantization, lambda }, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
