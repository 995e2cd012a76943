use std::fmt;
use std::sync::Arc;

use burn::tensor::Tensor;

/// Sees what enters a slot's map, after the sub-norm and before any quantization, at every forward: one token a row.
///
/// Clones of the slot share the hook, copies for validation too.
#[derive(Clone)]
pub struct InputHook(Arc<dyn Fn(Tensor<2>) + Send + Sync>);

impl InputHook {
    /// A hook that calls `see` with `[tokens, d_input]`.
    pub fn new(see: impl Fn(Tensor<2>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(see))
    }

    pub(crate) fn see<const D: usize>(&self, x: &Tensor<D>) {
        let d_input = x.dims()[D - 1];
        (self.0)(x.clone().reshape([-1, d_input as i64]));
    }
}

impl fmt::Debug for InputHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InputHook")
    }
}
