use bitnet_layers::{Projection, RmsNorm, slots};
use burn::module::{Initializer, Module};
use burn::nn::LinearConfig;
use burn::tensor::{Device, Tensor};

use crate::attention::Context;
use crate::{Attention, CausalLmConfig, KvCache, Mlp};

/// One layer: attention and MLP, each after a norm and added to the residual stream.
#[derive(Module, Debug)]
pub struct Block {
    /// Before attention.
    pub attention_norm: RmsNorm,
    /// Mixes tokens.
    pub attention: Attention,
    /// After attention, before the residual sum.
    pub post_attention_norm: Option<RmsNorm>,
    /// Before the MLP.
    pub mlp_norm: RmsNorm,
    /// Mixes features.
    pub mlp: Mlp,
    /// After the MLP, before the residual sum.
    pub post_mlp_norm: Option<RmsNorm>,
    sliding: bool,
}

slots!(Block { attention, mlp });

impl Block {
    pub(crate) fn new(config: &CausalLmConfig, layer: usize, device: &Device) -> Self {
        let norm = || config.norm(config.d_model).init(device);
        Self {
            attention_norm: norm(),
            attention: Attention::new(config, device),
            post_attention_norm: config.post_norms.then(norm),
            mlp_norm: norm(),
            mlp: Mlp::new(config, device),
            post_mlp_norm: config.post_norms.then(norm),
            sliding: config.sliding.window(layer).is_some(),
        }
    }

    /// # Shapes
    /// - `x`: `[B, T, d_model]`; the same out
    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        layer: usize,
        context: &Context,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let normed = |x: Tensor<3>, norm: &Option<RmsNorm>| match norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        let mixed = self.attention.forward(
            self.attention_norm.forward(x.clone()),
            layer,
            self.sliding,
            context,
            cache,
        );
        let x = x + normed(mixed, &self.post_attention_norm);
        let mixed = self.mlp.forward(self.mlp_norm.forward(x.clone()));
        x + normed(mixed, &self.post_mlp_norm)
    }
}

/// A dense slot with freshly drawn weights.
pub(crate) fn dense(
    d_input: usize,
    d_output: usize,
    bias: bool,
    config: &CausalLmConfig,
    device: &Device,
) -> Projection {
    let initializer = Initializer::Normal { mean: 0.0, std: config.init_std };
    LinearConfig::new(d_input, d_output).with_bias(bias).with_initializer(initializer).init(device).into()
}
