use burn::tensor::{DType, Tensor};

/// The straight-through estimator at strength λ: the value of `x + λ·(q − x)`, the gradient of `x`.
///
/// At λ = 1 the value is exactly `q`, at λ = 0 exactly `x`; the gradient to `x` is the identity at every λ, with no
/// clip mask and no factor λ. `q` is a constant.
///
/// # Shapes
/// - `x`, `q`: `[..]`, equal shapes; `q` in f32
/// - returns `[..]` in the dtype of `x`
///
/// # Source
/// arXiv 1308.3432; docs/numerics.md#straight-through for λ.
pub fn straight_through<const D: usize>(x: Tensor<D>, q: Tensor<D>, lambda: f32) -> Tensor<D> {
    if lambda == 0.0 {
        return x;
    }
    let dtype = x.dtype();
    let constant = x.clone().inner();
    let q = q.inner();
    let value = if lambda == 1.0 {
        q
    } else {
        let base = constant.clone().cast(DType::F32);
        base.clone() + (q - base) * lambda
    };
    let value = value.cast(dtype);
    if x.is_tracked() {
        value + (x - constant) // x − x is zero: the value stays exact and only the gradient passes
    } else {
        value
    }
}
