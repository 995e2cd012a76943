//! The layer and its gradients, `dX = g·w_eff` and `dW = gᵀ·x_eff`, at every λ.

use std::fmt::Debug;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, binary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, TensorMetadata};
use burn::tensor::DType;

use super::BitLinearOps;
use crate::{ActivationQuant, Bits, Granularity, KeptCodes, Quantization};

/// What the two passes need of a backend. Weights, their gradients and scales are f32. So are the other floats on CPUs; on GPUs
/// inputs may be f16 or bf16, and then outputs, effective weights and the input's gradients are too.
pub(crate) trait LayerBackend: Backend {
    /// The input's int8 codes and scales.
    type InputCodes: Debug + Clone + Send + 'static;
    /// The weight's codes at two bits each, and scales.
    type WeightCodes: Debug + Clone + Send + 'static;
    /// The weight's scales.
    type WeightScales: Debug + Clone + Send + 'static;

    /// A weight's codes and scales by absmean; `before` are those of a weight as it was, whose memory they may take.
    fn weight_codes(
        weight: FloatTensor<Self>,
        granularity: Granularity,
        before: Option<Self::WeightCodes>,
    ) -> Self::WeightCodes;

    /// A weight's scales by absmean.
    fn weight_scales(weight: FloatTensor<Self>, granularity: Granularity) -> Self::WeightScales;

    /// The input quantized, and its integers' product with the weight's, times both scales: `[tokens, d_output]`.
    fn product_of_codes(
        x: FloatTensor<Self>,
        bits: Bits,
        weight: Self::WeightCodes,
    ) -> (FloatTensor<Self>, Self::InputCodes);

    /// `x + λ·(Qa(x) − x)`, `[tokens, d_input]`.
    fn effective_input(x: FloatTensor<Self>, quant: ActivationQuant, lambda: f32) -> FloatTensor<Self>;

    /// `w + λ·(Q(w) − w)` with the scales of `w`, in the type of the input, `[d_output, d_input]`.
    fn effective_weight(
        weight: FloatTensor<Self>,
        granularity: Granularity,
        scales: Self::WeightScales,
        lambda: f32,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// `grad · Q(w)` from codes, `[tokens, d_input]`.
    fn input_gradient_of_codes(grad: FloatTensor<Self>, weight: Self::WeightCodes) -> FloatTensor<Self>;

    /// `gradᵀ · Qa(x)` from codes, `[d_output, d_input]`.
    fn weight_gradient_of_codes(grad: FloatTensor<Self>, x: Self::InputCodes) -> FloatTensor<Self>;

    /// `x · wᵀ`, `[tokens, d_output]`.
    fn product(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(x, Self::float_transpose(weight))
    }

    /// `grad · w`, `[tokens, d_input]`.
    fn input_gradient(grad: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(grad, weight)
    }

    /// `gradᵀ · x`, `[d_output, d_input]`.
    fn weight_gradient(grad: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(Self::float_transpose(grad), x)
    }
}

/// A weight with what λ needs of it in quantized form; in the backward pass its node stands for its values.
#[derive(Debug, Clone)]
pub(crate) enum Weight<B: LayerBackend, L = FloatTensor<B>> {
    /// λ = 0.
    Latent(L),
    /// Between, and where the input is not quantized.
    Blended(L, B::WeightScales),
    /// λ = 1, with an input of so many bits.
    Codes(B::WeightCodes, Bits),
}

impl<B: LayerBackend> Weight<B> {
    /// Quantizes a weight as far as it is needed; or finds what was kept of it, where it has a node.
    pub(crate) fn new(
        weight: FloatTensor<B>,
        quantization: Quantization,
        lambda: f32,
        kept: Option<(NodeId, &KeptCodes)>,
    ) -> Self {
        /// The kept value, or a new one.
        fn quantized<T: Clone + Send + 'static>(
            kept: Option<(NodeId, &KeptCodes)>,
            granularity: Granularity,
            quantize: impl FnOnce(Option<T>) -> T,
        ) -> T {
            match kept {
                Some((node, kept)) => kept.get(node, granularity, quantize),
                None => quantize(None),
            }
        }
        let Quantization { weight: granularity, activation } = quantization;
        match activation {
            _ if lambda == 0.0 => Self::Latent(weight),
            ActivationQuant::PerToken(bits) if lambda == 1.0 => {
                let codes = quantized(kept, granularity, |old| B::weight_codes(weight, granularity, old));
                Self::Codes(codes, bits)
            }
            _ => {
                let scales = quantized(kept, granularity, |before| {
                    drop(before);
                    B::weight_scales(weight.clone(), granularity)
                });
                Self::Blended(weight, scales)
            }
        }
    }
}

impl<B: LayerBackend, L> Weight<B, L> {
    fn map_latent<M>(self, map: impl FnOnce(L) -> M) -> Weight<B, M> {
        match self {
            Self::Latent(latent) => Weight::Latent(map(latent)),
            Self::Blended(latent, scales) => Weight::Blended(map(latent), scales),
            Self::Codes(codes, bits) => Weight::Codes(codes, bits),
        }
    }
}

/// An input as the backward pass finds it again.
#[derive(Debug, Clone)]
enum SavedInput<C> {
    /// At λ = 1 codes and scales: a quarter of the bytes.
    Codes(C),
    /// Otherwise the values, as a dense layer keeps them.
    Latent(NodeId),
}

/// `x_eff · w_effᵀ`, and the input's codes where the product was one of codes.
pub(crate) fn forward<B: LayerBackend>(
    x: FloatTensor<B>,
    weight: Weight<B>,
    quantization: Quantization,
    lambda: f32,
) -> (FloatTensor<B>, Option<B::InputCodes>) {
    match weight {
        Weight::Latent(weight) => (B::product(x, weight), None),
        Weight::Blended(weight, scales) => {
            let weight = B::effective_weight(weight, quantization.weight, scales, lambda, x.dtype());
            (B::product(B::effective_input(x, quantization.activation, lambda), weight), None)
        }
        Weight::Codes(codes, bits) => {
            let (y, codes) = B::product_of_codes(x, bits, codes);
            (y, Some(codes))
        }
    }
}

#[derive(Debug)]
struct BitLinearBackward;

#[derive(Debug, Clone)]
struct State<B: LayerBackend> {
    /// For dW; none where the weight is frozen.
    input: Option<SavedInput<B::InputCodes>>,
    /// For dX; none where the input needs no gradient.
    weight: Option<Weight<B, NodeId>>,
    quantization: Quantization,
    lambda: f32,
}

impl<B: LayerBackend> Backward<B, 2> for BitLinearBackward {
    type State = State<B>;

    fn backward(self, ops: Ops<State<B>, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let State { input, weight, quantization, lambda } = ops.state;
        let weight = weight.map(|weight| {
            weight.map_latent(|node| checkpointer.retrieve_node_output::<FloatTensor<B>>(node))
        });
        let input = input.map(|input| match input {
            SavedInput::Codes(codes) => (Some(codes), None),
            SavedInput::Latent(node) => {
                (None, Some(checkpointer.retrieve_node_output::<FloatTensor<B>>(node)))
            }
        });
        binary::<B, _, _>(
            ops.parents,
            ops.node,
            grads,
            |grad| match weight {
                Some(Weight::Latent(weight)) => B::input_gradient(grad, weight),
                Some(Weight::Blended(weight, scales)) => {
                    let dtype = grad.dtype();
                    let weight = B::effective_weight(weight, quantization.weight, scales, lambda, dtype);
                    B::input_gradient(grad, weight)
                }
                Some(Weight::Codes(codes, _)) => B::input_gradient_of_codes(grad, codes),
                None => unreachable!("the weight is saved where the input is tracked"),
            },
            |grad| match input {
                Some((Some(codes), _)) => B::weight_gradient_of_codes(grad, codes),
                Some((_, Some(x))) if lambda == 0.0 => B::weight_gradient(grad, x),
                Some((_, Some(x))) => {
                    B::weight_gradient(grad, B::effective_input(x, quantization.activation, lambda))
                }
                _ => unreachable!("the input is saved where the weight is tracked"),
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
        kept: &KeptCodes,
    ) -> FloatTensor<Self> {
        let kept = Some((weight.id(), kept));
        let quantized = Weight::<B>::new(weight.primitive().clone(), quantization, lambda, kept);
        let (y, codes) = forward(x.primitive().clone(), quantized.clone(), quantization, lambda);
        match BitLinearBackward.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let input = weight.is_tracked().then(|| match codes {
                    Some(codes) => SavedInput::Codes(codes),
                    None => SavedInput::Latent(prep.checkpoint(&x)),
                });
                let weight = x.is_tracked().then(|| quantized.map_latent(|_| prep.checkpoint(&weight)));
                prep.finish(State { input, weight, quantization, lambda }, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
