use burn::tensor::Tensor;

/// Room for new tokens is made in steps of at least this many.
const GROWTH: usize = 64;

/// Keys and values of the tokens seen so far.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    layers: Vec<Layer>,
}

#[derive(Debug, Clone)]
struct Layer {
    /// `[B, n_kv_heads, room, D]`; the first `len` tokens are filled.
    keys: Tensor<4>,
    values: Tensor<4>,
    len: usize,
}

impl KvCache {
    /// A cache that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of tokens seen.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.len)
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
        if layer == self.layers.len() {
            self.layers.push(Layer { keys: keys.clone(), values: values.clone(), len: keys.dims()[2] });
            return (keys, values);
        }
        let seen = &mut self.layers[layer];
        let start = seen.len;
        seen.len += keys.dims()[2];
        (append(&mut seen.keys, start, keys), append(&mut seen.values, start, values))
    }
}

/// Writes new tokens behind the first `start`, in place where nothing else holds the tensor, and returns what is
/// filled.
fn append(filled: &mut Tensor<4>, start: usize, new: Tensor<4>) -> Tensor<4> {
    let [batch, n_heads, room, head_dim] = filled.dims();
    let end = start + new.dims()[2];
    if end > room {
        // Twice the room, so that a long text copies each token a fixed number of times.
        let room = (2 * room).max(end).next_multiple_of(GROWTH);
        let wider = Tensor::zeros([batch, n_heads, room, head_dim], (&filled.device(), filled.dtype()));
        let old = filled.clone().slice([0..batch, 0..n_heads, 0..start]);
        *filled = wider.slice_assign([0..batch, 0..n_heads, 0..start], old);
    }
    filled.inplace(|filled| filled.slice_assign([0..batch, 0..n_heads, start..end], new));
    filled.clone().slice([0..batch, 0..n_heads, 0..end])
}
