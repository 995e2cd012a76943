//! The product with a packed weight, as one operation with a gradient for its input.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Tensor};

use super::type_of_operations;
use crate::{ActivationQuant, Bits, PackedLayout, PackedWeight};

/// The product with a packed weight.
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "fusion"),
)]
pub(crate) trait PackedOps: Backend {
    /// `acc · (w_scale · x_scale)`.
    ///
    /// # Shapes
    /// - `x`: `[tokens, d_input]`, of [`type_of_operations`]; `words`, `scales`: those of [`PackedWeight`]
    /// - returns `[tokens, d_output]` in the type of `x`
    #[fusion(dtype = x, shape = burn::tensor::Shape::new([x[0], layout.d_output]))]
    fn packed_linear(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: PackedLayout,
        bits: Bits,
    ) -> FloatTensor<Self>;

    /// `codes · scale`, `[d_output, d_input]`; f32 on CPUs.
    #[fusion(dtype = *dtype, shape = burn::tensor::Shape::new([layout.d_output, layout.d_input]))]
    fn packed_dequantize(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: PackedLayout,
        dtype: DType,
    ) -> FloatTensor<Self>;
}

/// The operation, where the device and the setting have one.
pub(crate) fn packed_linear(
    x: &Tensor<2>,
    weight: &PackedWeight,
    activation: ActivationQuant,
) -> Option<Tensor<2>> {
    let ActivationQuant::PerToken(bits) = activation else {
        return None;
    };
    let [tokens, _] = x.dims();
    if tokens == 0 {
        return None;
    }
    let y = <Dispatch as PackedOps>::packed_linear(
        x.clone().cast(type_of_operations(x)?).into_dispatch(),
        weight.words.clone().into_dispatch(),
        weight.scales.clone().into_dispatch(),
        weight.layout,
        bits,
    );
    Some(Tensor::<2>::from_dispatch(y).cast(x.dtype()))
}

#[derive(Debug)]
struct PackedBackward;

/// What the gradient needs: the weight as it is packed, and nothing of the input.
#[derive(Debug, Clone)]
struct State<B: Backend> {
    words: IntTensor<B>,
    scales: FloatTensor<B>,
    layout: PackedLayout,
}

impl<B: PackedOps> Backward<B, 1> for PackedBackward {
    type State = State<B>;

    fn backward(self, ops: Ops<State<B>, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let State { words, scales, layout } = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            let weight = B::packed_dequantize(words, scales, layout, grad.dtype());
            B::float_matmul(grad, weight)
        });
    }
}

impl<B: PackedOps, C: CheckpointStrategy> PackedOps for Autodiff<B, C> {
    fn packed_linear(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: PackedLayout,
        bits: Bits,
    ) -> FloatTensor<Self> {
        let scales = scales.primitive().clone();
        let y = B::packed_linear(x.primitive().clone(), words.clone(), scales.clone(), layout, bits);
        match PackedBackward.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(State { words, scales, layout }, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn packed_dequantize(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: PackedLayout,
        dtype: DType,
    ) -> FloatTensor<Self> {
        let weight = B::packed_dequantize(words, scales.primitive().clone(), layout, dtype);
        <Self as AutodiffBackend>::from_inner(weight)
    }
}
