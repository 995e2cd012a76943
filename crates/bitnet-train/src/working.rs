//! The parameters that a step computes with, and their gradients.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, GradientCheckpointingStrategy, Tensor};

use crate::TrainError;

/// Lays every parameter out in the order of its axes, as one that was loaded lies and as each update leaves it. A
/// converted weight may be a transposed view of the dense one, and sums over it would run in another order.
///
/// With `checkpointing`, the backward pass computes again what is cheap instead of keeping it; without, that stays as it is.
pub(crate) struct InOrder {
    pub(crate) checkpointing: bool,
}

impl ModuleMapper for InOrder {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        let strategy = match self.checkpointing {
            true => Some(GradientCheckpointingStrategy::Balanced),
            false => tensor.gradient_checkpointing_strategy(),
        };
        let value = with_autodiff(&tensor, tensor.clone().inner(), strategy);
        Param::from_mapped_value(id, value, mapper)
    }
}

/// A value in order, in the place of a parameter's: with autodiff and gradient as that has them.
pub(crate) fn in_place_of<const D: usize>(parameter: &Tensor<D>, value: Tensor<D>) -> Tensor<D> {
    with_autodiff(parameter, value, parameter.gradient_checkpointing_strategy())
}

fn with_autodiff<const D: usize>(
    parameter: &Tensor<D>,
    value: Tensor<D>,
    strategy: Option<GradientCheckpointingStrategy>,
) -> Tensor<D> {
    let shape = value.dims();
    let value = value.reshape([shape.iter().product::<usize>()]).reshape(shape);
    if !parameter.device().is_autodiff() {
        return value;
    }
    let mut value = Tensor::from_inner(value);
    if let Some(strategy) = strategy {
        value = value.with_gradient_checkpointing_strategy(strategy);
    }
    if parameter.is_require_grad() { value.require_grad() } else { value }
}

/// Copies in bf16 of all parameters but the latent weights of BitNet layers. A copy has the identity of its parameter, and
/// so has its gradient.
#[derive(Default)]
pub(crate) struct Lowered {
    containers: Vec<bool>,
}

impl ModuleMapper for Lowered {
    fn enter_module(&mut self, _name: &str, container: &str) {
        self.containers.push(container == "Struct:BitLinear");
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.containers.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if D == 2 && self.containers.last() == Some(&true) {
            return param;
        }
        let (id, tensor, mapper) = param.consume();
        let value = in_place_of(&tensor, tensor.clone().inner().cast(DType::BF16));
        Param::from_mapped_value(id, value, mapper)
    }
}

/// Refuses a device that does not compute in bf16.
pub(crate) fn check_bf16(devices: &[Device]) -> Result<(), TrainError> {
    match devices.iter().find(|&device| !device.clone().inner().supports_dtype(DType::BF16)) {
        Some(device) => Err(TrainError::Config {
            field: "precision",
            found: format!("bf16 on {device:?}"),
            expected: "f32, the device does not compute in bf16".into(),
        }),
        None => Ok(()),
    }
}

/// The gradients of a loss, in f32.
pub(crate) fn gradients(loss: &Tensor<1>, model: &impl Module) -> GradientsParams {
    let mut widened = Widened(GradientsParams::from_grads(loss.backward(), model));
    model.visit(&mut widened);
    widened.0
}

struct Widened(GradientsParams);

impl ModuleVisitor for Widened {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.0.remove::<D>(param.id) {
            self.0.register(param.id, grad.cast(DType::F32));
        }
    }
}
