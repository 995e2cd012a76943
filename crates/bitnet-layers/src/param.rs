//! Parameters that take another's place or value.

use burn::module::{Module, Param, ParamId};
use burn::tensor::Tensor;

/// A new parameter made from another's value: a leaf of its own that trains if the other did.
pub(crate) fn successor<const D: usize>(
    param: &Param<Tensor<D>>,
    map: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Param<Tensor<D>> {
    let value = param.val();
    let autodiff = value.is_autodiff();
    // Without autodiff a parameter only remembers whether it trains; `train` brings that to light.
    let trains = param.clone().train().val().is_require_grad();
    let value = map(value.inner());
    let value = if autodiff { value.autodiff() } else { value };
    Param::initialized(ParamId::new(), value).set_require_grad(trains)
}

/// Gives a parameter another value; it keeps its identity, type and trainability.
pub(crate) fn replace<const D: usize>(param: &mut Param<Tensor<D>>, value: Tensor<D>) {
    *param = param.clone().map(|old| {
        let value = value.inner().cast(old.dtype());
        let value = if old.is_autodiff() { value.autodiff() } else { value };
        value.set_require_grad(old.is_require_grad())
    });
}
