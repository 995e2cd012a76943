use std::cell::OnceCell;

use bitnet_layers::{Projection, RmsNorm, SubLn, slots};
use bitnet_quant::{AttentionShape, causal_attention};
use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::block::dense;
use crate::rope::Rotation;
use crate::{CausalLmConfig, KvCache, SubNorms};

/// Grouped-query self-attention with rotary positions.
#[derive(Module, Debug)]
pub struct Attention {
    /// `[.., d_model]` to `[.., n_heads · D]`
    pub query: Projection,
    /// `[.., d_model]` to `[.., n_kv_heads · D]`
    pub key: Projection,
    /// `[.., d_model]` to `[.., n_kv_heads · D]`
    pub value: Projection,
    /// `[.., n_heads · D]` to `[.., d_model]`
    pub output: Projection,
    /// Norm of each query head.
    pub query_norm: Option<RmsNorm>,
    /// Norm of each key head.
    pub key_norm: Option<RmsNorm>,
    head_dim: usize,
    scale: f64,
    softcap: Option<f64>,
}

slots!(Attention { query, key, value, output });

/// What all layers of one forward share.
pub(crate) struct Context {
    pub(crate) rotation: Rotation,
    /// New tokens.
    pub(crate) tokens: usize,
    /// Those and all before them.
    pub(crate) seen: usize,
    /// Tokens that layers with a sliding window look at.
    pub(crate) window: Option<usize>,
    pub(crate) device: Device,
    /// Made when a layer first asks for it: fused attention needs none, and its size is quadratic.
    pub(crate) full_mask: OnceCell<Option<Tensor<4>>>,
    /// The same for layers with a sliding window.
    pub(crate) sliding_mask: OnceCell<Option<Tensor<4>>>,
}

impl Context {
    /// Added to the scores, `[1, 1, T, S]`: 0 where a token may look, the lowest f32 where not. None if every token may
    /// look everywhere, as the next one of a text.
    fn mask(&self, sliding: bool) -> Option<Tensor<4>> {
        let (mask, window) =
            if sliding { (&self.sliding_mask, self.window) } else { (&self.full_mask, None) };
        mask.get_or_init(|| causal_mask(self.tokens, self.seen, window, &self.device)).clone()
    }
}

impl Attention {
    pub(crate) fn new(config: &CausalLmConfig, device: &Device) -> Self {
        let head_dim = config.head_dim();
        let (d_query, d_key) = (config.n_heads * head_dim, config.n_kv_heads() * head_dim);
        let projection = |d_input, d_output, bias| dense(d_input, d_output, bias, config, device);
        let head_norm = || config.qk_norm.then(|| config.norm(head_dim).init(device));
        let mut output = projection(d_query, config.d_model, config.output_bias);
        if config.sub_norms == SubNorms::Output {
            output.sub_norm = Some(SubLn::native(&config.norm(d_query), device));
        }
        Self {
            query: projection(config.d_model, d_query, config.qkv_bias),
            key: projection(config.d_model, d_key, config.qkv_bias),
            value: projection(config.d_model, d_key, config.qkv_bias),
            output,
            query_norm: head_norm(),
            key_norm: head_norm(),
            head_dim,
            scale: config.attention_scale.unwrap_or((head_dim as f64).sqrt().recip()),
            softcap: config.attention_softcap,
        }
    }

    /// # Shapes
    /// - `x`: `[B, T, d_model]`; the same out
    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        layer: usize,
        sliding: bool,
        context: &Context,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let [batch, tokens, _] = x.dims();
        let heads = |x: Tensor<3>| {
            let n_heads = x.dims()[2] / self.head_dim;
            x.reshape([batch, tokens, n_heads, self.head_dim]).swap_dims(1, 2) // [B, H, T, D]
        };
        let normed = |x: Tensor<4>, norm: &Option<RmsNorm>| match norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        let (query, key, value) =
            (self.query.forward(x.clone()), self.key.forward(x.clone()), self.value.forward(x));
        if cache.is_none()
            && let Some(mixed) = self.fused(&query, &key, &value, sliding, context)
        {
            return self.output.forward(mixed);
        }
        let query = normed(heads(query), &self.query_norm);
        let key = normed(heads(key), &self.key_norm);
        let value = heads(value);
        let query = context.rotation.apply(query);
        let key = context.rotation.apply(key);
        let (key, value) = match cache {
            Some(cache) => cache.extend(layer, key, value),
            None => (key, value),
        };

        // Query heads that share a key head stand next to each other: fold them into the token axis.
        let [_, n_heads, _, _] = query.dims();
        let [_, n_kv_heads, seen, _] = key.dims();
        let folded = [batch, n_kv_heads, n_heads / n_kv_heads * tokens, self.head_dim];
        let scores = (query * self.scale).reshape(folded).matmul(key.transpose());
        let scores = scores.reshape([batch, n_heads, tokens, seen]);
        let scores = match self.softcap {
            Some(cap) => (scores / cap).tanh() * cap,
            None => scores,
        };
        let dtype = scores.dtype();
        let scores = scores.cast(DType::F32);
        let scores = match context.mask(sliding) {
            Some(mask) => scores + mask,
            None => scores,
        };
        let weights = softmax(scores, 3).cast(dtype);
        let weights = weights.reshape([batch, n_kv_heads, n_heads / n_kv_heads * tokens, seen]);
        let mixed = weights.matmul(value).reshape([batch, n_heads, tokens, self.head_dim]);
        self.output.forward(mixed.swap_dims(1, 2).reshape([batch, tokens, n_heads * self.head_dim]))
    }
}

impl Attention {
    /// Everything between the projections as one operation, where the device has it: for whole sequences, without head norms,
    /// softcap, or a window that hides one of their tokens.
    fn fused(
        &self,
        query: &Tensor<3>,
        key: &Tensor<3>,
        value: &Tensor<3>,
        sliding: bool,
        context: &Context,
    ) -> Option<Tensor<3>> {
        let [batch, tokens, d_query] = query.dims();
        let hidden = sliding && context.window.is_some_and(|window| window < tokens);
        if self.query_norm.is_some() || self.key_norm.is_some() || self.softcap.is_some() || hidden {
            return None;
        }
        let shape = AttentionShape {
            batch,
            tokens,
            n_heads: d_query / self.head_dim,
            n_kv_heads: key.dims()[2] / self.head_dim,
            head_dim: self.head_dim,
            scale: self.scale as f32,
        };
        causal_attention(query, key, value, context.rotation.waves(), shape)
    }
}

/// The mask of `tokens` new tokens after `seen - tokens` others, `[1, 1, T, S]`; with a window, of its last tokens.
/// None where it hides nothing.
fn causal_mask(tokens: usize, seen: usize, window: Option<usize>, device: &Device) -> Option<Tensor<4>> {
    if tokens == 1 && window.is_none_or(|window| seen <= window) {
        return None;
    }
    let past = seen - tokens;
    let mut mask = vec![f32::MIN; tokens * seen];
    for (token, row) in mask.chunks_exact_mut(seen).enumerate() {
        let last = past + token;
        let first = window.map_or(0, |window| (last + 1).saturating_sub(window));
        row[first..=last].fill(0.0);
    }
    Some(Tensor::from_data(TensorData::new(mask, [1, 1, tokens, seen]), device))
}
