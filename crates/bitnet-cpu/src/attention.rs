//! Causal attention with rotary positions, one head per task and a run of its tokens at a time.

use rayon::prelude::*;

use crate::columns::split_columns;
use crate::error::check_length;
use crate::exp::{dot, softmax};
use crate::kernel::vectorized;
use crate::{CpuError, Gemm, Kernel, Matrix, Right};

/// Tokens whose scores are in the cache at a time.
const RUN: usize = 64;

/// What is attended to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key heads, each for as many neighbouring query heads.
    pub n_kv_heads: usize,
    /// Numbers of a head; even.
    pub head_dim: usize,
    /// The rotated queries are multiplied by it.
    pub scale: f32,
}

impl AttentionShape {
    /// Numbers of a token's queries, and of its keys; saturating, as all of [`check`](Self::check), so that an absurd shape
    /// fails there instead of wrapping.
    fn widths(&self) -> [usize; 2] {
        [self.n_heads, self.n_kv_heads].map(|heads| heads.saturating_mul(self.head_dim))
    }

    fn check(&self, inputs: AttentionInputs<'_>) -> Result<(), CpuError> {
        let &Self { n_heads, n_kv_heads, head_dim, .. } = self;
        let shared = n_heads > 0 && n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads);
        if !shared || head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(CpuError::Heads { n_heads, n_kv_heads, head_dim });
        }
        let [d_query, d_key] = self.widths();
        let tokens = self.batch.saturating_mul(self.tokens);
        let waves = self.tokens.saturating_mul(head_dim / 2);
        check_length("query", inputs.query.len(), tokens.saturating_mul(d_query))?;
        check_length("key", inputs.key.len(), tokens.saturating_mul(d_key))?;
        check_length("value", inputs.value.len(), tokens.saturating_mul(d_key))?;
        check_length("cos", inputs.cos.len(), waves)?;
        check_length("sin", inputs.sin.len(), waves)
    }
}

/// What goes in: `query` `[batch, tokens, n_heads · D]`, `key` and `value` `[batch, tokens, n_kv_heads · D]`, not rotated yet;
/// `cos` and `sin` of each pair (i, i + D/2), `[tokens, D / 2]`.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInputs<'a> {
    /// Queries.
    pub query: &'a [f32],
    /// Keys.
    pub key: &'a [f32],
    /// Values.
    pub value: &'a [f32],
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
}

impl Gemm {
    /// `softmax(rotated query · scale · rotated keyᵀ) · value`, each token looking at itself and those before it; nothing where
    /// there are no tokens.
    ///
    /// # Shapes
    /// - returns `[batch, tokens, n_heads · D]`
    ///
    /// # Errors
    /// [`CpuError::Heads`] for heads of another kind, [`CpuError::Length`] if a slice does not have its shape.
    pub fn attention(self, shape: AttentionShape, inputs: AttentionInputs<'_>) -> Result<Vec<f32>, CpuError> {
        shape.check(inputs)?;
        let mut out = vec![0.0; inputs.query.len()];
        if out.is_empty() {
            return Ok(out);
        }
        heads(&mut out, &shape).into_par_iter().enumerate().for_each(|(i, mut out)| {
            let head = Head::new(self, &shape, inputs, i);
            let mut weights = vec![0.0; RUN * shape.tokens];
            for start in (0..shape.tokens).step_by(RUN) {
                let end = shape.tokens.min(start + RUN);
                head.weights(start, end, &mut weights);
                let weights = Matrix::rows(&weights, shape.tokens);
                self.block(weights, head.value(), [0, 0], end, false, &mut out[start..end]);
            }
        });
        Ok(out)
    }

    /// The gradients of query, key and value from that of the result. The weights are computed again; a key's gradient is the
    /// sum over its query heads, in their order.
    ///
    /// # Shapes
    /// - `gradient`: `[batch, tokens, n_heads · D]`
    ///
    /// # Errors
    /// Those of [`attention`](Self::attention).
    pub fn attention_gradient(
        self,
        shape: AttentionShape,
        inputs: AttentionInputs<'_>,
        gradient: &[f32],
    ) -> Result<[Vec<f32>; 3], CpuError> {
        shape.check(inputs)?;
        check_length("gradient", gradient.len(), inputs.query.len())?;
        if gradient.is_empty() {
            return Ok([(); 3].map(|()| Vec::new()));
        }
        let (head_dim, group) = (shape.head_dim, shape.n_heads / shape.n_kv_heads);
        let mut query = vec![0.0; inputs.query.len()];
        let of_heads: Vec<[Vec<f32>; 2]> = heads(&mut query, &shape)
            .into_par_iter()
            .enumerate()
            .map(|(i, query)| Head::new(self, &shape, inputs, i).gradients(gradient, query))
            .collect();
        let [mut key, mut value] = [vec![0.0; inputs.key.len()], vec![0.0; inputs.value.len()]];
        let kv_shape = AttentionShape { n_heads: shape.n_kv_heads, ..shape };
        for (which, out) in [&mut key, &mut value].into_iter().enumerate() {
            heads(out, &kv_shape).into_par_iter().zip(of_heads.par_chunks(group)).for_each(|(out, group)| {
                for (token, out) in out.into_iter().enumerate() {
                    for head in group {
                        for (out, x) in out.iter_mut().zip(&head[which][token * head_dim..]) {
                            *out += x;
                        }
                    }
                }
            });
        }
        Ok([query, key, value])
    }
}

/// The rows of each head, all heads of a sequence after each other.
fn heads<'a>(values: &'a mut [f32], shape: &AttentionShape) -> Vec<Vec<&'a mut [f32]>> {
    let [width, _] = shape.widths();
    values.chunks_mut(shape.tokens * width).flat_map(|of| split_columns(of, width, shape.head_dim)).collect()
}

/// One query head of one sequence, with its keys.
struct Head<'a> {
    gemm: Gemm,
    shape: &'a AttentionShape,
    inputs: AttentionInputs<'a>,
    /// Where its numbers start in the queries, and those of its keys in the keys.
    starts: [usize; 2],
    /// Rotated and scaled, `[tokens, D]`.
    query: Vec<f32>,
    /// Rotated, `[tokens, D]`.
    key: Vec<f32>,
}

impl<'a> Head<'a> {
    fn new(gemm: Gemm, shape: &'a AttentionShape, inputs: AttentionInputs<'a>, index: usize) -> Self {
        let (sequence, head) = (index / shape.n_heads, index % shape.n_heads);
        let [d_query, d_key] = shape.widths();
        let first = sequence * shape.tokens;
        let kv_head = head / (shape.n_heads / shape.n_kv_heads);
        let starts = [first * d_query + head * shape.head_dim, first * d_key + kv_head * shape.head_dim];
        let rotated = |values: &[f32], width: usize, factor: f32| {
            let mut out = vec![0.0; shape.tokens * shape.head_dim];
            for (token, out) in out.chunks_mut(shape.head_dim).enumerate() {
                out.copy_from_slice(&values[token * width..][..shape.head_dim]);
            }
            rotate(Kernel::new(), &mut out, inputs.cos, inputs.sin, shape.head_dim / 2, 1.0);
            out.iter_mut().for_each(|x| *x *= factor);
            out
        };
        let query = rotated(&inputs.query[starts[0]..], d_query, shape.scale);
        let key = rotated(&inputs.key[starts[1]..], d_key, 1.0);
        Self { gemm, shape, inputs, starts, query, key }
    }

    /// `[tokens, D]`
    fn value(&self) -> Right<'a> {
        Right::Floats(Matrix::rows(&self.inputs.value[self.starts[1]..], self.shape.widths()[1]))
    }

    /// The weights of a run of tokens, `[run, tokens]`, of which the columns up to the run's end are written.
    fn weights(&self, start: usize, end: usize, weights: &mut [f32]) {
        let (tokens, head_dim) = (self.shape.tokens, self.shape.head_dim);
        let mut rows: Vec<&mut [f32]> =
            weights.chunks_mut(tokens).take(end - start).map(|row| &mut row[..end]).collect();
        let keys = Right::Floats(Matrix::columns(&self.key, head_dim));
        self.gemm.block(Matrix::rows(&self.query, head_dim), keys, [start, 0], head_dim, false, &mut rows);
        for (row, weights) in rows.into_iter().enumerate() {
            softmax_to(Kernel::new(), weights, start + row + 1);
        }
    }

    /// Writes the query's gradient, and returns those of key and value, `[tokens, D]` each.
    fn gradients(&self, gradient: &[f32], mut query: Vec<&mut [f32]>) -> [Vec<f32>; 2] {
        let AttentionShape { tokens, head_dim, .. } = *self.shape;
        let [d_query, d_key] = self.shape.widths();
        let gradient = &gradient[self.starts[0]..];
        let values = Right::Floats(Matrix::columns(&self.inputs.value[self.starts[1]..], d_key));
        let [mut weights, mut scores] = [(); 2].map(|()| vec![0.0; RUN * tokens]);
        let [mut key, mut value] = [(); 2].map(|()| vec![0.0; tokens * head_dim]);
        for start in (0..tokens).step_by(RUN) {
            let end = tokens.min(start + RUN);
            let run = end - start;
            self.weights(start, end, &mut weights);
            let mut rows: Vec<&mut [f32]> =
                scores.chunks_mut(tokens).take(run).map(|row| &mut row[..end]).collect();
            self.gemm.block(Matrix::rows(gradient, d_query), values, [start, 0], head_dim, false, &mut rows);
            for (scores, weights) in rows.into_iter().zip(weights.chunks(tokens)) {
                softmax_gradient(Kernel::new(), &weights[..end], scores);
            }
            let keys = Right::Floats(Matrix::rows(&self.key, head_dim));
            self.gemm.block(Matrix::rows(&scores, tokens), keys, [0, 0], end, false, &mut query[start..end]);
            let queries = Right::Floats(Matrix::rows(&self.query[start * head_dim..], head_dim));
            let mut rows: Vec<&mut [f32]> = key.chunks_mut(head_dim).take(end).collect();
            self.gemm.block(Matrix::columns(&scores, tokens), queries, [0, 0], run, true, &mut rows);
            let gradients = Right::Floats(Matrix::rows(&gradient[start * d_query..], d_query));
            let mut rows: Vec<&mut [f32]> = value.chunks_mut(head_dim).take(end).collect();
            self.gemm.block(Matrix::columns(&weights, tokens), gradients, [0, 0], run, true, &mut rows);
        }
        let half = head_dim / 2;
        let (cos, sin) = (self.inputs.cos, self.inputs.sin);
        for ((row, cos), sin) in query.into_iter().zip(cos.chunks(half)).zip(sin.chunks(half)) {
            row.iter_mut().for_each(|x| *x *= self.shape.scale);
            rotate(Kernel::new(), row, cos, sin, half, -1.0);
        }
        rotate(Kernel::new(), &mut key, cos, sin, half, -1.0);
        [key, value]
    }
}

vectorized! {
    /// Rotates the pairs (i, i + half) of each row, or back with `direction` −1.
    fn rotate(rows: &mut [f32], cos: &[f32], sin: &[f32], half: usize, direction: f32) {
        for ((row, cos), sin) in rows.chunks_mut(2 * half).zip(cos.chunks(half)).zip(sin.chunks(half)) {
            let (a, b) = row.split_at_mut(half);
            for (((a, b), &cos), &sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                let sin = sin * direction;
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

vectorized! {
    /// The softmax of the first `n` numbers; the rest is zero.
    fn softmax_to(x: &mut [f32], n: usize) {
        let (x, rest) = x.split_at_mut(n);
        softmax(x);
        rest.fill(0.0);
    }
}

vectorized! {
    /// `gradient = weights · (gradient − Σ weights · gradient)`.
    fn softmax_gradient(weights: &[f32], gradient: &mut [f32]) {
        let mean = dot(weights, gradient);
        for (gradient, &weight) in gradient.iter_mut().zip(weights) {
            *gradient = weight * (*gradient - mean);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    /// In f64, token by token.
    fn reference(shape: &AttentionShape, x: [&[f32]; 5]) -> Vec<f64> {
        let [query, key, value, cos, sin] = x;
        let AttentionShape { batch, tokens, n_heads, n_kv_heads, head_dim, scale } = *shape;
        let rotated = |x: &[f32], width: usize, sequence: usize, token: usize, head: usize| -> Vec<f64> {
            let x = &x[(sequence * tokens + token) * width + head * head_dim..][..head_dim];
            let half = head_dim / 2;
            let pair = |i: usize| (f64::from(cos[token * half + i]), f64::from(sin[token * half + i]));
            let at = |i: usize| f64::from(x[i]);
            (0..head_dim)
                .map(|i| match i < half {
                    true => at(i) * pair(i).0 - at(i + half) * pair(i).1,
                    false => at(i) * pair(i - half).0 + at(i - half) * pair(i - half).1,
                })
                .collect()
        };
        let [d_query, d_key] = shape.widths();
        let mut out = Vec::new();
        for (sequence, token, head) in
            (0..batch * tokens * n_heads).map(|i| (i / n_heads / tokens, i / n_heads % tokens, i % n_heads))
        {
            let kv_head = head / (n_heads / n_kv_heads);
            let q = rotated(query, d_query, sequence, token, head);
            let weights: Vec<f64> = (0..=token)
                .map(|t| {
                    let k = rotated(key, d_key, sequence, t, kv_head);
                    (q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() * f64::from(scale)).exp()
                })
                .collect();
            let sum: f64 = weights.iter().sum();
            out.extend((0..head_dim).map(|i| {
                let value =
                    |t: usize| f64::from(value[(sequence * tokens + t) * d_key + kv_head * head_dim + i]);
                weights.iter().enumerate().map(|(t, weight)| weight / sum * value(t)).sum::<f64>()
            }));
        }
        out
    }

    #[test]
    fn forward_and_gradients_against_f64() {
        let Some(gemm) = Gemm::new() else {
            return;
        };
        for (tokens, n_heads, n_kv_heads) in [(5, 4, 2), (70, 3, 1)] {
            let shape = AttentionShape { batch: 2, tokens, n_heads, n_kv_heads, head_dim: 6, scale: 0.7 };
            let [d_query, d_key] = shape.widths();
            let n = shape.batch * tokens;
            let mut x = [wave(n * d_query, 0.37), wave(n * d_key, 0.73), wave(n * d_key, 0.11)];
            let (cos, sin) = (wave(tokens * 3, 0.2), wave(tokens * 3, 0.5));
            let gradient = wave(n * d_query, 0.91);
            let loss = |x: &[Vec<f32>; 3]| -> f64 {
                let y = reference(&shape, [&x[0], &x[1], &x[2], &cos, &sin]);
                y.iter().zip(&gradient).map(|(y, &g)| y * f64::from(g)).sum()
            };
            let inputs = AttentionInputs { query: &x[0], key: &x[1], value: &x[2], cos: &cos, sin: &sin };
            let expected = reference(&shape, [&x[0], &x[1], &x[2], &cos, &sin]);
            for (found, expected) in gemm.attention(shape, inputs).unwrap().iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-5);
            }
            let gradients = gemm.attention_gradient(shape, inputs, &gradient).unwrap();
            for (which, gradients) in gradients.iter().enumerate() {
                for at in [0, 7, 31, gradients.len() / 2, gradients.len() - 1] {
                    let before = x[which][at];
                    let step = 1.0 / 256.0;
                    x[which][at] = before + step;
                    let high = loss(&x);
                    x[which][at] = before - step;
                    let difference = (high - loss(&x)) / f64::from(2.0 * step);
                    x[which][at] = before;
                    let error = (f64::from(gradients[at]) - difference).abs();
                    assert!(error < 1e-3 * (1.0 + difference.abs()), "{which}, {at}: off by {error}");
                }
            }
            assert!(
                gemm.attention_gradient(
                    shape,
                    AttentionInputs { query: &x[0], key: &x[1], value: &x[2], cos: &cos, sin: &sin },
                    &gradient[1..]
                )
                .is_err()
            );
        }
    }

    #[test]
    fn shapes_without_attention_are_refused_and_no_tokens_give_nothing() {
        let Some(gemm) = Gemm::new() else {
            return;
        };
        let good = AttentionShape { batch: 1, tokens: 2, n_heads: 4, n_kv_heads: 2, head_dim: 6, scale: 1.0 };
        let run = |shape: AttentionShape| {
            let [d_query, d_key] = shape.widths();
            let ones = |n: usize| vec![1.0; n];
            let n = shape.batch * shape.tokens;
            let [query, key, waves] = [n * d_query, n * d_key, shape.tokens * (shape.head_dim / 2)].map(ones);
            let inputs = AttentionInputs { query: &query, key: &key, value: &key, cos: &waves, sin: &waves };
            let gradients = gemm.attention_gradient(shape, inputs, &query);
            let lengths = gradients.map(|gradients| gradients.map(|gradient| gradient.len()));
            (gemm.attention(shape, inputs).map(|out| out.len()), lengths)
        };
        assert_eq!(run(good), (Ok(48), Ok([48, 24, 24])));
        for empty in [AttentionShape { batch: 0, ..good }, AttentionShape { tokens: 0, ..good }] {
            assert_eq!(run(empty), (Ok(0), Ok([0; 3])));
        }
        for (n_heads, n_kv_heads, head_dim) in
            [(0, 2, 6), (4, 0, 6), (4, 3, 6), (2, 4, 6), (4, 2, 5), (4, 2, 0)]
        {
            let error = CpuError::Heads { n_heads, n_kv_heads, head_dim };
            let found = run(AttentionShape { n_heads, n_kv_heads, head_dim, ..good });
            assert_eq!(found, (Err(error.clone()), Err(error)));
        }
        let absurd = AttentionShape { batch: usize::MAX, tokens: usize::MAX, ..good };
        let inputs = AttentionInputs { query: &[], key: &[], value: &[], cos: &[], sin: &[] };
        assert!(matches!(gemm.attention(absurd, inputs), Err(CpuError::Length { name: "query", .. })));
    }
}
