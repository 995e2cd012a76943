use bitnet_layers::{Projection, SubLn, slots};
use bitnet_quant::silu_gated;
use burn::module::Module;
use burn::tensor::activation::{gelu, gelu_approximate, relu};
use burn::tensor::{Device, Tensor};

use crate::block::dense;
use crate::{Activation, CausalLmConfig, SubNorms};

/// The gated MLP: `down(activation(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[.., d_model]` to `[.., d_ff]`, through the activation
    pub gate: Projection,
    /// `[.., d_model]` to `[.., d_ff]`
    pub up: Projection,
    /// `[.., d_ff]` to `[.., d_model]`
    pub down: Projection,
    #[module(skip)]
    activation: Activation,
}

slots!(Mlp { gate, up, down });

impl Mlp {
    pub(crate) fn new(config: &CausalLmConfig, device: &Device) -> Self {
        let projection = |d_input, d_output| dense(d_input, d_output, config.mlp_bias, config, device);
        let mut down = projection(config.d_ff, config.d_model);
        if config.sub_norms == SubNorms::Output {
            down.sub_norm = Some(SubLn::native(&config.norm(config.d_ff), device));
        }
        Self {
            gate: projection(config.d_model, config.d_ff),
            up: projection(config.d_model, config.d_ff),
            down,
            activation: config.activation,
        }
    }

    /// # Shapes
    /// - `x`: `[B, T, d_model]`; the same out
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = self.gate.forward(x.clone());
        let up = self.up.forward(x);
        let gated = match self.activation {
            Activation::Silu => silu_gated(gate, up),
            Activation::Gelu => gelu(gate) * up,
            Activation::GeluTanh => gelu_approximate(gate) * up,
            Activation::Relu2 => relu(gate).square() * up,
        };
        self.down.forward(gated)
    }
}
