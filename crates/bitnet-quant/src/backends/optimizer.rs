//! The optimizer's passes over all parameters, on CPUs.

use bitnet_cpu::{AdamW, Kernel};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata, backend_extension};

use super::cpu::{CpuBackend, sound, tensor};

/// The passes. All tensors are f32 `[n]`.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
)]
pub(crate) trait OptimizerOps: Backend {
    /// Parameter and moments after an update, in the memory that they had where nothing else holds it.
    fn adamw(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        settings: AdamW,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// `Σ x²` by folding halves, `[1]`.
    fn square_sum(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl<B: CpuBackend> OptimizerOps for B {
    fn adamw(
        parameter: FloatTensor<B>,
        gradient: FloatTensor<B>,
        first: FloatTensor<B>,
        second: FloatTensor<B>,
        settings: AdamW,
    ) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        let [mut parameter, mut first, mut second] = [parameter, first, second].map(B::into_values);
        B::read(&gradient, |gradient| {
            sound(Kernel::new().adamw(settings, &mut parameter, gradient, &mut first, &mut second));
        });
        let tensor = |values| tensor::<B>(values, gradient.shape(), &gradient);
        (tensor(parameter), tensor(first), tensor(second))
    }

    fn square_sum(x: FloatTensor<B>) -> FloatTensor<B> {
        let sum = B::read(&x, |x| Kernel::new().square_sum(x));
        tensor::<B>(vec![sum], [1], &x)
    }
}
