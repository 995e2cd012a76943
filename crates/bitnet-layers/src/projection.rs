use bitnet_quant::Quantization;
use bitnet_warmup::default_lambda;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

use crate::{BitLinear, LayerError, SubLn};

/// What a slot holds at this stage.
#[derive(Module, Debug)]
pub enum Form {
    /// An ordinary linear layer, weight `[d_input, d_output]`.
    Dense(Linear),
    /// A BitNet layer in training, latent weight `[d_output, d_input]`.
    Bit(BitLinear),
}

/// The slot for one linear map: an optional sub-norm, then the map in its current form.
///
/// # Shapes
/// `[.., d_input]` to `[.., d_output]`
#[derive(Module, Debug)]
pub struct Projection {
    /// Norm of the input, before the map.
    pub sub_norm: Option<SubLn>,
    /// The map.
    pub form: Form,
    /// Quantization strength of this slot, 0..=1; `None` follows the process-wide default.
    #[module(skip)]
    pub lambda: Option<f32>,
}

impl From<Linear> for Projection {
    fn from(linear: Linear) -> Self {
        Self { sub_norm: None, form: Form::Dense(linear), lambda: None }
    }
}

impl From<BitLinear> for Projection {
    fn from(linear: BitLinear) -> Self {
        Self { sub_norm: None, form: Form::Bit(linear), lambda: None }
    }
}

impl Projection {
    /// The map of this stage. A dense slot computes its product at any λ, a BitNet slot follows λ, and so does a
    /// sub-norm that conversion inserted.
    ///
    /// # Shapes
    /// - `x`: `[.., d_input]`
    /// - returns `[.., d_output]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let lambda = self.effective_lambda();
        let x = match &self.sub_norm {
            Some(norm) => norm.forward(x, lambda),
            None => x,
        };
        match &self.form {
            Form::Dense(linear) => linear.forward(x),
            Form::Bit(linear) => linear.forward(x, lambda),
        }
    }

    /// The λ that the next forward uses: the slot's own, else the process-wide default.
    pub fn effective_lambda(&self) -> f32 {
        self.lambda.unwrap_or_else(default_lambda)
    }

    /// Size of the input features.
    pub fn d_input(&self) -> usize {
        match &self.form {
            Form::Dense(linear) => linear.weight.lazy_shape()[0],
            Form::Bit(linear) => linear.weight.lazy_shape()[1],
        }
    }

    /// Size of the output features.
    pub fn d_output(&self) -> usize {
        match &self.form {
            Form::Dense(linear) => linear.weight.lazy_shape()[1],
            Form::Bit(linear) => linear.weight.lazy_shape()[0],
        }
    }

    /// The device of the map's weight, with its autodiff setting.
    pub fn device(&self) -> Device {
        match &self.form {
            Form::Dense(linear) => linear.weight.lazy_device(),
            Form::Bit(linear) => linear.weight.lazy_device(),
        }
    }

    /// Whether the slot holds a BitNet layer.
    pub fn is_bit(&self) -> bool {
        matches!(self.form, Form::Bit(_))
    }

    /// Turns a dense slot into a BitNet one, in place. Returns whether it did: a BitNet slot stays as it is.
    ///
    /// # Errors
    /// [`LayerError::Quantization`] where the granularity does not fit the weight; the slot is unchanged.
    pub fn convert(&mut self, quantization: Quantization) -> Result<bool, LayerError> {
        match &self.form {
            Form::Dense(linear) => {
                self.form = Form::Bit(BitLinear::from_linear(linear, quantization)?);
                Ok(true)
            }
            Form::Bit(_) => Ok(false),
        }
    }
}
