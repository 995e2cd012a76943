//! The norm of all gradients together, and clipping to it. Burn's own clipping is per tensor.

use bitnet_quant::square_sum;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

use crate::TrainError;

/// `√Σg²` over every gradient of the module, in a fixed order, read from the device once.
pub(crate) fn global_norm(module: &impl Module, grads: &GradientsParams) -> Result<f64, TrainError> {
    let mut squares = Squares { grads, sums: Vec::new() };
    module.visit(&mut squares);
    if squares.sums.is_empty() {
        return Ok(0.0);
    }
    let sums = Tensor::cat(squares.sums, 0).try_into_vec_as::<f32>();
    let sums = sums.map_err(|error| TrainError::Device(error.to_string()))?;
    Ok(sums.into_iter().map(f64::from).sum::<f64>().sqrt())
}

/// Multiplies every gradient by `max_norm / norm` where the norm is larger.
pub(crate) fn clip(
    module: &impl Module,
    grads: GradientsParams,
    norm: f64,
    max_norm: f64,
) -> GradientsParams {
    if norm <= max_norm {
        return grads;
    }
    // PyTorch's `clip_grad_norm_` guards the division by the same 1e-6.
    let mut scale = Scale { grads, factor: max_norm / (norm + 1e-6) };
    module.visit(&mut scale);
    scale.grads
}

struct Squares<'a> {
    grads: &'a GradientsParams,
    sums: Vec<Tensor<1>>,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            let n = grad.shape().num_elements();
            if n == 0 {
                return;
            }
            let sum = square_sum(grad.cast(DType::F32).reshape([n]));
            // Gradients of a sharded optimizer are on several devices.
            self.sums.push(match self.sums.first() {
                Some(first) => sum.to_device(&first.device()),
                None => sum,
            });
        }
    }
}

struct Scale {
    grads: GradientsParams,
    factor: f64,
}

impl ModuleVisitor for Scale {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.remove::<D>(param.id) {
            self.grads.register(param.id, grad * self.factor);
        }
    }
}
