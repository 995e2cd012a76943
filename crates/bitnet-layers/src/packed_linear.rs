use bitnet_format::TernaryMatrix;
use bitnet_quant::{ActivationQuant, Granularity, PackedLayout, PackedWeight, packed_linear};
use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Int, Tensor};

use crate::LayerError;

/// A linear layer with ternary weights at two bits each and int8 activations: what a trained [`BitLinear`] becomes.
///
/// It computes what the trained layer computes at λ = 1, and gives its input a gradient, so that what stands before or
/// beside it can be trained; the weight itself is fixed.
///
/// [`BitLinear`]: crate::BitLinear
#[derive(Module, Debug)]
pub struct PackedLinear {
    /// The codes, 16 of a row per word; see [`PackedWeight`].
    pub words: Param<Tensor<3, Int>>,
    /// Their scales; see [`PackedWeight`].
    pub scales: Param<Tensor<3>>,
    /// The bias, `[d_output]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    layout: PackedLayout,
    #[module(skip)]
    activation: ActivationQuant,
}

impl PackedLinear {
    /// Packs codes and scales. The bias is taken over with its trainability.
    ///
    /// # Errors
    /// [`LayerError::Quantization`] where a row has more than 131 072 inputs.
    pub fn pack(
        ternary: &TernaryMatrix,
        bias: Option<Param<Tensor<1>>>,
        activation: ActivationQuant,
        device: &Device,
    ) -> Result<Self, LayerError> {
        let PackedWeight { words, scales, layout } = PackedWeight::pack(ternary, device)
            .map_err(|source| LayerError::Quantization { name: "weight".into(), source })?;
        let scales = Param::from_tensor(scales).set_require_grad(false);
        Ok(Self { words: Param::initialized(ParamId::new(), words), scales, bias, layout, activation })
    }

    /// # Shapes
    /// - `x`: `[.., d_input]`
    /// - returns `[.., d_output]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        packed_linear(x, &self.weight(), self.bias.as_ref().map(Param::val), self.activation)
    }

    /// The packed weight.
    pub fn weight(&self) -> PackedWeight {
        PackedWeight { words: self.words.val(), scales: self.scales.val(), layout: self.layout }
    }

    /// The codes and scales.
    ///
    /// # Errors
    /// [`LayerError::Quantization`] where the device fails, or the words are none that packing gives.
    pub fn ternary(&self) -> Result<TernaryMatrix, LayerError> {
        self.weight().unpack().map_err(|source| LayerError::Quantization { name: "weight".into(), source })
    }

    /// Size of the input features.
    pub fn d_input(&self) -> usize {
        self.layout.d_input
    }

    /// Size of the output features.
    pub fn d_output(&self) -> usize {
        self.layout.d_output
    }

    /// How many weights share one scale.
    pub fn granularity(&self) -> Granularity {
        self.layout.granularity
    }

    /// How the input is quantized.
    pub fn activation(&self) -> ActivationQuant {
        self.activation
    }
}
