use bitnet_format::TernaryMatrix;
use bitnet_quant::{
    KeptCodes, Quantization, TernaryWeight, bit_linear_keeping, check_granularity, ternarize,
};
use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

use crate::LayerError;
use crate::param::successor;

/// Configuration of a [`BitLinear`].
#[derive(Config, Debug)]
pub struct BitLinearConfig {
    /// Size of the input features.
    pub d_input: usize,
    /// Size of the output features.
    pub d_output: usize,
    /// Whether a bias is added; it is never quantized.
    #[config(default = false)]
    pub bias: bool,
    /// What is quantized, and how finely.
    #[config(default = "Quantization::default()")]
    pub quantization: Quantization,
}

impl BitLinearConfig {
    /// # Errors
    /// [`LayerError::Quantization`] where a size is zero or the group does not divide `d_input`.
    pub fn validate(&self) -> Result<(), LayerError> {
        check_granularity(self.quantization.weight, [self.d_output, self.d_input])
            .map_err(|source| LayerError::Quantization { name: "BitLinear".into(), source })
    }

    /// A layer with weights uniform in ±1/√d_input, as Burn's and PyTorch's linear layers start.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate).
    pub fn init(&self, device: &Device) -> Result<BitLinear, LayerError> {
        self.validate()?;
        let bound = (self.d_input as f64).sqrt().recip();
        let uniform = Initializer::Uniform { min: -bound, max: bound };
        Ok(BitLinear {
            weight: uniform.init([self.d_output, self.d_input], device),
            bias: self.bias.then(|| uniform.init([self.d_output], device)),
            quantization: self.quantization,
            kept: KeptCodes::default(),
        })
    }
}

/// A linear layer that trains a full-precision latent weight through ternary weights and int8 activations.
///
/// λ = 0 is the dense layer, λ = 1 the BitNet layer; see [`bit_linear`](bitnet_quant::bit_linear) for the maths.
#[derive(Module, Debug)]
pub struct BitLinear {
    /// The latent weight, `[d_output, d_input]`, as checkpoints and formats store it.
    pub weight: Param<Tensor<2>>,
    /// The bias, `[d_output]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    quantization: Quantization,
    #[module(skip)]
    kept: KeptCodes,
}

impl BitLinear {
    /// A layer of this weight and bias.
    ///
    /// # Errors
    /// [`LayerError::Quantization`] where the granularity does not fit the weight.
    pub(crate) fn new(
        weight: Param<Tensor<2>>,
        bias: Option<Param<Tensor<1>>>,
        quantization: Quantization,
    ) -> Result<Self, LayerError> {
        let [d_output, d_input] = weight.lazy_shape().dims();
        BitLinearConfig::new(d_input, d_output).with_quantization(quantization).validate()?;
        Ok(Self { weight, bias, quantization, kept: KeptCodes::default() })
    }

    /// Takes over a dense layer's weight (transposed, once) and bias, with their device and trainability.
    ///
    /// # Errors
    /// [`LayerError::Quantization`] where the granularity does not fit the weight.
    pub fn from_linear(linear: &Linear, quantization: Quantization) -> Result<Self, LayerError> {
        let [d_input, d_output] = linear.weight.lazy_shape().dims();
        BitLinearConfig::new(d_input, d_output).with_quantization(quantization).validate()?;
        let bias = linear.bias.as_ref().map(|bias| successor(bias, |bias| bias));
        Self::new(successor(&linear.weight, |weight| weight.transpose()), bias, quantization)
    }

    /// What is quantized, and how finely.
    pub fn quantization(&self) -> Quantization {
        self.quantization
    }

    /// # Shapes
    /// - `x`: `[.., d_input]`
    /// - returns `[.., d_output]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>, lambda: f32) -> Tensor<D> {
        let bias = self.bias.as_ref().map(Param::val);
        bit_linear_keeping(x, self.weight.val(), bias, self.quantization, lambda, &self.kept)
    }

    /// The codes and scale of the current latent weight, on its device.
    ///
    /// # Errors
    /// [`LayerError::Quantization`] where the weight no longer has the shape that was configured.
    pub fn ternarize(&self) -> Result<TernaryWeight, LayerError> {
        ternarize(self.weight.val().inner(), self.quantization.weight)
            .map_err(|source| LayerError::Quantization { name: "weight".into(), source })
    }

    /// The same codes and scales, read from the device.
    ///
    /// # Errors
    /// Those of [`ternarize`](Self::ternarize), and of the device.
    pub fn ternary(&self) -> Result<TernaryMatrix, LayerError> {
        let weight = self.ternarize()?;
        weight.read().map_err(|source| LayerError::Quantization { name: "weight".into(), source })
    }
}
