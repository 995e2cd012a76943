//! What a slot multiplies, without gradient: for calibration, and for changes of the weight.
//!
//! A slot's *operand* is what its weight meets: the input, turned where the slot has a Hadamard matrix. Salient columns stay
//! where they are in both.

use bitnet_quant::{hadamard, quantize_activations};
use burn::tensor::{DType, Tensor};

use crate::param::replace;
use crate::{Form, LayerError, Outliers, Projection};

impl Projection {
    /// Size of the operand.
    pub fn d_operand(&self) -> usize {
        match &self.outliers {
            Some(Outliers::Hadamard(_)) => self.form.d_input(),
            Some(Outliers::Salient(_)) | None => self.d_input(),
        }
    }

    /// The operand before quantization.
    ///
    /// # Shapes
    /// - `x`: `[tokens, d_input]`, what [`InputHook`](crate::InputHook) sees
    /// - returns `[tokens, d_operand]`
    pub fn operand(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.outliers {
            Some(Outliers::Hadamard(_)) => hadamard(x.inner()),
            Some(Outliers::Salient(_)) | None => x.inner(),
        }
    }

    /// The operand at λ = 1: `codes · scale`, except for salient columns; a dense slot's is not quantized.
    ///
    /// # Shapes
    /// - `x`: `[tokens, d_input]`; returns `[tokens, d_operand]`
    pub fn quantized_operand(&self, x: Tensor<2>) -> Tensor<2> {
        let x = self.operand(x);
        let quant = match &self.form {
            Form::Dense(_) => return x,
            Form::Bit(linear) => linear.quantization().activation,
            Form::Packed(linear) => linear.activation(),
        };
        let quantized = |x: Tensor<2>| match quantize_activations(x.clone(), quant) {
            Some(quantized) => quantized.dequantize(),
            None => x.cast(DType::F32),
        };
        match &self.outliers {
            Some(Outliers::Salient(salient)) => {
                let (rest, exact) = salient.split(x);
                salient.join(quantized(rest), exact.cast(DType::F32))
            }
            Some(Outliers::Hadamard(_)) | None => quantized(x),
        }
    }

    /// The weight that meets the operand at λ = 1, f32 `[d_output, d_operand]`: `codes · scale`, except for salient columns;
    /// a dense slot's own.
    ///
    /// # Errors
    /// [`LayerError::Quantization`] where the weight no longer has the shape that was configured.
    pub fn quantized_operand_weight(&self) -> Result<Tensor<2>, LayerError> {
        let weight = match &self.form {
            Form::Dense(linear) => linear.weight.val().inner().transpose().cast(DType::F32),
            Form::Bit(linear) => linear.ternarize()?.dequantize(),
            Form::Packed(linear) => linear.weight().dequantize().inner(),
        };
        Ok(self.with_salient(weight))
    }

    /// The same as a map of the input, f32 `[d_output, d_input]`.
    ///
    /// # Errors
    /// Those of [`quantized_operand_weight`](Self::quantized_operand_weight).
    pub fn quantized_weight(&self) -> Result<Tensor<2>, LayerError> {
        self.quantized_operand_weight().map(|weight| self.of_input(weight))
    }

    /// The weight before it is quantized, as a map of the input, f32 `[d_output, d_input]`; `None` for a packed slot.
    pub fn latent_weight(&self) -> Option<Tensor<2>> {
        let weight = match &self.form {
            Form::Dense(linear) => linear.weight.val().inner().transpose(),
            Form::Bit(linear) => linear.weight.val().inner(),
            Form::Packed(_) => return None,
        };
        Some(self.of_input(self.with_salient(weight.cast(DType::F32))))
    }

    /// Changes the weight before it is quantized, `[d_output, d_operand]`; parameters keep identity, type and trainability.
    ///
    /// # Errors
    /// [`LayerError::NoLatentWeight`] for a packed slot.
    pub fn update_operand_weight(
        &mut self,
        change: impl FnOnce(Tensor<2>) -> Tensor<2>,
    ) -> Result<(), LayerError> {
        let weight = match &self.form {
            Form::Dense(linear) => linear.weight.val().inner().transpose(),
            Form::Bit(linear) => linear.weight.val().inner(),
            Form::Packed(_) => return Err(LayerError::NoLatentWeight),
        };
        let weight = change(self.with_salient(weight.cast(DType::F32)));
        let weight = match &mut self.outliers {
            Some(Outliers::Salient(salient)) => {
                let (rest, exact) = salient.split(weight);
                replace(&mut salient.weight, exact);
                rest
            }
            Some(Outliers::Hadamard(_)) | None => weight,
        };
        match &mut self.form {
            Form::Dense(linear) => replace(&mut linear.weight, weight.transpose()),
            Form::Bit(linear) => replace(&mut linear.weight, weight),
            Form::Packed(_) => {}
        }
        Ok(())
    }

    /// A map of the input, `[d_output, d_input]`, as one of the operand, `[d_output, d_operand]`.
    pub fn to_operand_weight(&self, weight: Tensor<2>) -> Tensor<2> {
        match &self.outliers {
            Some(Outliers::Hadamard(_)) => hadamard(weight),
            Some(Outliers::Salient(_)) | None => weight,
        }
    }

    /// Puts salient columns between those of the map's weight.
    fn with_salient(&self, weight: Tensor<2>) -> Tensor<2> {
        match &self.outliers {
            Some(Outliers::Salient(salient)) => {
                salient.join(weight, salient.weight.val().inner().cast(DType::F32))
            }
            Some(Outliers::Hadamard(_)) | None => weight,
        }
    }

    /// A weight that meets the operand, as a map of the input.
    fn of_input(&self, weight: Tensor<2>) -> Tensor<2> {
        match &self.outliers {
            Some(Outliers::Hadamard(turn)) => hadamard(weight).narrow(1, 0, turn.d_input),
            Some(Outliers::Salient(_)) | None => weight,
        }
    }
}
