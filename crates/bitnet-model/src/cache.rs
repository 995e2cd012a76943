use burn::tensor::Tensor;

/// Keys and values of the tokens seen so far, one pair per layer.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    /// Each `[B, n_kv_heads, S, D]`.
    layers: Vec<(Tensor<4>, Tensor<4>)>,
}

impl KvCache {
    /// A cache that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of tokens seen.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |(keys, _)| keys.dims()[2])
    }

    /// Whether nothing has been seen.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Appends the keys and values of new tokens, `[B, n_kv_heads, T, D]`, and returns those of all, `[.., S, D]`.
    pub(crate) fn extend(
        &mut self,
        layer: usize,
        keys: Tensor<4>,
        values: Tensor<4>,
    ) -> (Tensor<4>, Tensor<4>) {
        let Some(seen) = self.layers.get_mut(layer) else {
            self.layers.push((keys.clone(), values.clone()));
            return (keys, values);
        };
        let keys = Tensor::cat(vec![seen.0.clone(), keys], 2);
        let values = Tensor::cat(vec![seen.1.clone(), values], 2);
        *seen = (keys.clone(), values.clone());
        (keys, values)
    }
}
