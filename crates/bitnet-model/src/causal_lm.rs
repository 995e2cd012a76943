use std::cell::OnceCell;

use bitnet_layers::{Blocks, RmsNorm, slot_path, slots};
use bitnet_quant::{dense_linear, half_linear, half_weight};
use burn::module::{Initializer, Module, Param, ParamId};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::attention::Context;
use crate::rope::Rotation;
use crate::{Attention, Block, CausalLmConfig, KvCache, ModelError, SlidingLayers};

/// A decoder-only language model: embedding, blocks, norm, head.
#[derive(Module, Debug)]
pub struct CausalLm {
    /// One vector per token.
    pub embedding: Embedding,
    /// The layers.
    pub layers: Vec<Block>,
    /// Before the head.
    pub norm: RmsNorm,
    /// Logits from vectors; none where the embedding serves as the head.
    pub head: Option<Linear>,
    #[module(skip)]
    config: CausalLmConfig,
}

slots!(CausalLm { layers });

impl Blocks for CausalLm {
    /// `[B, T]`, best made by [`CausalLm::batch`].
    type Batch = Tensor<2, Int>;

    fn n_blocks(&self) -> usize {
        self.layers.len()
    }

    fn block_path(&self, block: usize) -> String {
        slot_path("layers", &block.to_string())
    }

    fn enter(&self, tokens: &Tensor<2, Int>) -> Tensor<3> {
        self.embed(tokens.clone())
    }

    fn forward_block(&self, block: usize, state: Tensor<3>) -> Tensor<3> {
        let [_, n_tokens, _] = state.dims();
        let context = self.context(0, n_tokens, &state.device());
        self.layers[block].forward(state, block, &context, None)
    }
}

impl CausalLmConfig {
    /// A dense model with freshly drawn weights, allocated when they are first used.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate).
    pub fn init(&self, device: &Device) -> Result<CausalLm, ModelError> {
        self.validate()?;
        let initializer = Initializer::Normal { mean: 0.0, std: self.init_std };
        let embedding =
            EmbeddingConfig::new(self.vocab_size, self.d_model).with_initializer(initializer.clone());
        let head =
            LinearConfig::new(self.d_model, self.vocab_size).with_bias(false).with_initializer(initializer);
        Ok(CausalLm {
            embedding: embedding.init(device),
            layers: (0..self.n_layers).map(|layer| Block::new(self, layer, device)).collect(),
            norm: self.norm(self.d_model).init(device),
            head: (!self.tied_head).then(|| head.init(device)),
            config: self.clone(),
        })
    }
}

impl CausalLm {
    /// The configuration that the model was made from.
    pub fn config(&self) -> &CausalLmConfig {
        &self.config
    }

    /// Keeps embedding and head in f16 from now on, where the device computes in it, for generation: it reads the whole
    /// head for every token. f16 holds a bf16 weight from 2⁻¹⁴ on exactly, and any other to 1 part in 2048. Returns
    /// whether it did.
    ///
    /// # Errors
    /// [`ModelError::Device`] where the device fails.
    pub fn halve_head(&mut self) -> Result<bool, ModelError> {
        let half = |weight: Tensor<2>| {
            half_weight(weight.inner()).map_err(|source| ModelError::Device(source.to_string()))
        };
        let Some(embedding) = half(self.embedding.weight.val())? else {
            return Ok(false);
        };
        if let Some(head) = &mut self.head
            && let Some(rows) = half(head.weight.val().transpose())?
        {
            // Row by row of the vocabulary in memory, as it is read.
            head.weight = Param::initialized(ParamId::new(), rows.transpose());
        }
        self.embedding.weight = Param::initialized(ParamId::new(), embedding);
        Ok(true)
    }

    /// The logits of the next token after each token.
    ///
    /// # Shapes
    /// - `tokens`: `[B, T]`, best made by [`batch`](Self::batch), which checks them; T may be 0
    /// - returns `[B, T, vocab_size]`
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.logits(self.run(tokens, None, |_| ()))
    }

    /// Like [`forward`](Self::forward), for tokens that follow those in the cache, which grows by them.
    pub fn forward_cached(&self, tokens: Tensor<2, Int>, cache: &mut KvCache) -> Tensor<3> {
        self.logits(self.run(tokens, Some(cache), |_| ()))
    }

    /// The logits after the last of the tokens only, `[B, vocab_size]`: what generation needs, without the head's
    /// product for all others.
    ///
    /// # Panics
    /// Without a token.
    pub fn next_logits(&self, tokens: Tensor<2, Int>, cache: &mut KvCache) -> Tensor<2> {
        let x = self.run(tokens, Some(cache), |_| ());
        let n_tokens = x.dims()[1];
        self.logits(x.narrow(1, n_tokens - 1, 1)).squeeze_dim(1)
    }

    /// The residual stream before each block, then the normed output of the last: `n_layers + 1` tensors
    /// `[B, T, d_model]`.
    pub fn hidden_states(&self, tokens: Tensor<2, Int>) -> Vec<Tensor<3>> {
        let mut states = Vec::with_capacity(self.layers.len() + 1);
        let last = self.run(tokens, None, |state| states.push(state.clone()));
        states.push(last);
        states
    }

    /// Query, key and value of one layer as its projections give them, from the residual stream before it, which
    /// [`hidden_states`](Self::hidden_states) holds; `None` where there is no such layer.
    ///
    /// # Shapes
    /// - `state`: `[B, T, d_model]`
    /// - returns query `[B, T, n_heads · D]`, key and value `[B, T, n_kv_heads · D]`
    pub fn attention_states(&self, layer: usize, state: Tensor<3>) -> Option<[Tensor<3>; 3]> {
        let block = self.layers.get(layer)?;
        let state = block.attention_norm.forward(state);
        let Attention { query, key, value, .. } = &block.attention;
        Some([query, key, value].map(|slot| slot.forward(state.clone())))
    }

    /// Checks sequences of equal length and puts them on the model's device.
    ///
    /// # Errors
    /// - [`ModelError::Batch`] where there are no tokens or the lengths differ
    /// - [`ModelError::SequenceTooLong`] beyond the model's positions
    /// - [`ModelError::TokenOutOfRange`] beyond the embedding
    pub fn batch<S: AsRef<[u32]>>(&self, sequences: &[S]) -> Result<Tensor<2, Int>, ModelError> {
        let length = sequences.first().map_or(0, |s| s.as_ref().len());
        if length == 0 || sequences.iter().any(|s| s.as_ref().len() != length) {
            return Err(ModelError::Batch { lengths: sequences.iter().map(|s| s.as_ref().len()).collect() });
        }
        let limit = self.config.position_limit();
        if length > limit {
            return Err(ModelError::SequenceTooLong { found: length, limit });
        }
        let vocab_size = self.config.vocab_size;
        for sequence in sequences {
            for (position, &token) in sequence.as_ref().iter().enumerate() {
                if token as usize >= vocab_size {
                    return Err(ModelError::TokenOutOfRange { token, position, vocab_size });
                }
            }
        }
        let tokens: Vec<i32> = sequences.iter().flat_map(|s| s.as_ref()).map(|&token| token as i32).collect();
        let device = self.embedding.weight.lazy_device();
        Ok(Tensor::from_data(TensorData::new(tokens, [sequences.len(), length]), &device))
    }

    /// Embedding, blocks and norm; `before_block` sees the residual stream.
    fn run(
        &self,
        tokens: Tensor<2, Int>,
        mut cache: Option<&mut KvCache>,
        mut before_block: impl FnMut(&Tensor<3>),
    ) -> Tensor<3> {
        let [_, n_tokens] = tokens.dims();
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        let context = self.context(past, n_tokens, &tokens.device());
        let mut x = self.embed(tokens);
        for (layer, block) in self.layers.iter().enumerate() {
            before_block(&x);
            if n_tokens == 0 {
                continue; // a size of 0 in `reshape` stands for the size that the axis had
            }
            x = block.forward(x, layer, &context, cache.as_deref_mut());
        }
        self.norm.forward(x)
    }

    fn embed(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let x = self.embedding.forward(tokens).cast(self.norm.gain.val().dtype());
        if self.config.embedding_scale == 1.0 { x } else { x * self.config.embedding_scale }
    }

    fn context(&self, past: usize, n_tokens: usize, device: &Device) -> Context {
        let config = &self.config;
        let seen = past + n_tokens;
        let window = match config.sliding {
            SlidingLayers::None => None,
            SlidingLayers::All(window) | SlidingLayers::Some { window, .. } => Some(window),
        };
        Context {
            rotation: Rotation::new(
                &config.rope,
                config.head_dim(),
                config.max_positions,
                past..seen,
                device,
            ),
            tokens: n_tokens,
            seen,
            window,
            device: device.clone(),
            full_mask: OnceCell::new(),
            sliding_mask: OnceCell::new(),
        }
    }

    /// The logits from the last of the [`hidden_states`](Self::hidden_states).
    ///
    /// # Shapes
    /// - `x`: `[B, T, d_model]`
    /// - returns `[B, T, vocab_size]`
    pub fn logits(&self, x: Tensor<3>) -> Tensor<3> {
        if x.dims()[1] == 0 {
            return Tensor::zeros([x.dims()[0], 0, self.config.vocab_size], (&x.device(), x.dtype()));
        }
        let weight = match &self.head {
            Some(head) => head.weight.val().transpose(), // [vocab_size, d_model]
            None => self.embedding.weight.val(),
        };
        let logits = match (weight.dtype(), x.dtype()) {
            (DType::F16, DType::F32) => half_linear(x, weight),
            _ => dense_linear(x, weight),
        };
        match self.config.logit_softcap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }
}

#[cfg(test)]
mod tests {
    use bitnet_layers::for_each_slot_mut;
    use bitnet_quant::{AttentionShape, Quantization, causal_attention, with_plain_operations};

    use super::*;

    fn model(sliding: SlidingLayers) -> CausalLm {
        let config = CausalLmConfig::new(61, 24, 40, 1, 4).with_sliding(sliding);
        config.init(&Device::flex()).unwrap()
    }

    /// A mask is made where attention is not one operation, and only for the layers that there are.
    #[test]
    fn masks_are_made_when_they_are_read() {
        let made = |window: Option<usize>| {
            let model = model(window.map_or(SlidingLayers::None, SlidingLayers::All));
            let context = model.context(0, 5, &Device::flex());
            let x = model.embed(model.batch(&[[1_u32, 2, 3, 4, 5]]).unwrap());
            model.layers[0].forward(x.clone(), 0, &context, None);
            let [query, key, value] = model.attention_states(0, x).unwrap();
            let shape =
                AttentionShape { batch: 1, tokens: 5, n_heads: 4, n_kv_heads: 4, head_dim: 6, scale: 1.0 };
            let fused = causal_attention(&query, &key, &value, context.rotation.waves(), shape).is_some();
            (context.full_mask.get().is_some(), context.sliding_mask.get().is_some(), fused)
        };
        assert_eq!(with_plain_operations(|| made(None)), (true, false, false));
        let (full, sliding, fused) = made(None);
        assert_eq!((full, sliding), (!fused, false));
        let (full, sliding, _) = made(Some(3));
        assert_eq!((full, sliding), (false, true), "one operation does not hide tokens before a window");
    }

    #[test]
    fn no_tokens_have_no_logits() {
        let mut model = model(SlidingLayers::All(3));
        let check = |model: &CausalLm| {
            let tokens = || Tensor::empty([2, 0], &Device::flex());
            let mut cache = KvCache::new();
            for logits in [model.forward(tokens()), model.forward_cached(tokens(), &mut cache)] {
                assert_eq!(logits.dims(), [2, 0, 61]);
            }
            let states = model.hidden_states(tokens());
            assert_eq!(states.iter().map(Tensor::dims).collect::<Vec<_>>(), [[2, 0, 24]; 2]);
            let one = model.batch(&[[1_u32], [2]]).unwrap();
            let expected = model.forward(one.clone()).into_data();
            assert_eq!(model.forward_cached(one, &mut cache).into_data(), expected, "the cache is as it was");
        };
        check(&model);
        with_plain_operations(|| check(&model));
        for_each_slot_mut(&mut model, |_, slot| assert!(slot.convert(Quantization::default()).unwrap()));
        check(&model);
        with_plain_operations(|| check(&model));
    }
}
