use bitnet_format::TernaryMatrix;
use bitnet_quant::{ActivationQuant, Quantization};
use bitnet_warmup::default_lambda;
use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

use crate::{BitLinear, InputHook, LayerError, LowRank, Outliers, PackedLinear, SubLn};

/// What a slot holds at this stage.
#[derive(Module, Debug)]
pub enum Form {
    /// An ordinary linear layer, weight `[d_input, d_output]`.
    Dense(Linear),
    /// A BitNet layer in training, latent weight `[d_output, d_input]`.
    Bit(BitLinear),
    /// A trained BitNet layer at two bits a weight.
    Packed(PackedLinear),
}

impl Form {
    /// `dense`, `BitNet` or `packed`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dense(_) => "dense",
            Self::Bit(_) => "BitNet",
            Self::Packed(_) => "packed",
        }
    }

    /// Size of what enters the map: the slot's input features, unless the slot treats outliers.
    pub fn d_input(&self) -> usize {
        match self {
            Self::Dense(linear) => linear.weight.lazy_shape()[0],
            Self::Bit(linear) => linear.weight.lazy_shape()[1],
            Self::Packed(linear) => linear.d_input(),
        }
    }
}

/// The slot for one linear map: an optional sub-norm, then the map in its current form, with outliers of its input treated
/// apart on request, and beside the map an optional low-rank one of the same input.
///
/// # Shapes
/// `[.., d_input]` to `[.., d_output]`
#[derive(Module, Debug)]
pub struct Projection {
    /// Norm of the input, before the map.
    pub sub_norm: Option<SubLn>,
    /// How the map treats outliers of its input.
    pub outliers: Option<Outliers>,
    /// The map.
    pub form: Form,
    /// A correction or adapter beside the map.
    pub low_rank: Option<LowRank>,
    /// Quantization strength of this slot, 0..=1; `None` follows the process-wide default.
    #[module(skip)]
    pub lambda: Option<f32>,
    /// Sees what enters the map; for calibration.
    #[module(skip)]
    pub on_input: Option<InputHook>,
}

impl From<Form> for Projection {
    fn from(form: Form) -> Self {
        Self { sub_norm: None, outliers: None, form, low_rank: None, lambda: None, on_input: None }
    }
}

impl From<Linear> for Projection {
    fn from(linear: Linear) -> Self {
        Form::Dense(linear).into()
    }
}

impl From<BitLinear> for Projection {
    fn from(linear: BitLinear) -> Self {
        Form::Bit(linear).into()
    }
}

impl Projection {
    /// The map of this stage. A dense slot computes its product at any λ, a BitNet slot follows λ, and so do a sub-norm that
    /// conversion inserted and a low-rank correction. A packed slot is at λ = 1 for good.
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
        if let Some(hook) = &self.on_input {
            hook.see(&x);
        }
        let map = |x| {
            self.around(x, |x| match &self.form {
                Form::Dense(linear) => linear.forward(x),
                Form::Bit(linear) => linear.forward(x, lambda),
                Form::Packed(linear) => linear.forward(x),
            })
        };
        match &self.low_rank {
            Some(low_rank) => low_rank.add_to(map(x.clone()), x, lambda),
            None => map(x),
        }
    }

    /// The λ that the next forward uses: the slot's own, else the process-wide default; 1 for a packed slot.
    pub fn effective_lambda(&self) -> f32 {
        match self.form {
            Form::Packed(_) => 1.0,
            _ => self.lambda.unwrap_or_else(default_lambda),
        }
    }

    /// Size of the input features.
    pub fn d_input(&self) -> usize {
        match &self.outliers {
            None => self.form.d_input(),
            Some(Outliers::Hadamard(hadamard)) => hadamard.d_input,
            Some(Outliers::Salient(salient)) => self.form.d_input() + salient.columns().len(),
        }
    }

    /// Size of the output features.
    pub fn d_output(&self) -> usize {
        match &self.form {
            Form::Dense(linear) => linear.weight.lazy_shape()[1],
            Form::Bit(linear) => linear.weight.lazy_shape()[0],
            Form::Packed(linear) => linear.d_output(),
        }
    }

    /// The device of the map's weight, with its autodiff setting.
    pub fn device(&self) -> Device {
        match &self.form {
            Form::Dense(linear) => linear.weight.lazy_device(),
            Form::Bit(linear) => linear.weight.lazy_device(),
            Form::Packed(linear) => linear.words.lazy_device(),
        }
    }

    /// Whether the slot holds a BitNet layer, latent or packed.
    pub fn is_bit(&self) -> bool {
        matches!(self.form, Form::Bit(_) | Form::Packed(_))
    }

    /// The bias of the map, `[d_output]`.
    pub fn bias(&self) -> Option<&Param<Tensor<1>>> {
        match &self.form {
            Form::Dense(linear) => linear.bias.as_ref(),
            Form::Bit(linear) => linear.bias.as_ref(),
            Form::Packed(linear) => linear.bias.as_ref(),
        }
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
            Form::Bit(_) | Form::Packed(_) => Ok(false),
        }
    }

    /// Packs a BitNet slot, in place, at its present codes. Returns whether it did: other slots stay as they are.
    ///
    /// # Errors
    /// - [`LayerError::Lambda`] where the slot is not at λ = 1: its codes are not yet what it computes with
    /// - [`LayerError::Quantization`] where the weight cannot be packed
    ///
    /// The slot is unchanged then.
    pub fn pack(&mut self) -> Result<bool, LayerError> {
        let lambda = self.effective_lambda();
        let Form::Bit(linear) = &self.form else {
            return Ok(false);
        };
        if lambda != 1.0 {
            return Err(LayerError::Lambda { found: lambda });
        }
        let ternary = linear.ternary()?;
        self.set_packed(&ternary, linear.quantization().activation)?;
        Ok(true)
    }

    /// Gives the slot codes and scales in place of its weight. The bias stays.
    ///
    /// # Errors
    /// - [`LayerError::Shape`] where the codes have another shape than the map's weight
    /// - [`LayerError::Quantization`] where the weight cannot be packed
    pub fn set_packed(
        &mut self,
        ternary: &TernaryMatrix,
        activation: ActivationQuant,
    ) -> Result<(), LayerError> {
        let (found, expected) = (ternary.shape(), [self.d_output(), self.form.d_input()]);
        if found != expected {
            return Err(LayerError::Shape { found, expected });
        }
        let device = self.device().inner();
        self.form = Form::Packed(PackedLinear::pack(ternary, self.bias().cloned(), activation, &device)?);
        Ok(())
    }

    /// Puts a correction or adapter beside the map, in place of one that is there.
    ///
    /// # Errors
    /// [`LayerError::LowRankShape`] where it is for a map of another shape; the slot is unchanged.
    pub fn set_low_rank(&mut self, low_rank: LowRank) -> Result<(), LayerError> {
        let found = [low_rank.d_output(), low_rank.d_input()];
        let expected = [self.d_output(), self.d_input()];
        if found != expected {
            return Err(LayerError::LowRankShape { found, expected });
        }
        self.low_rank = Some(low_rank);
        Ok(())
    }
}
