//! What lies between the linear layers of a model in training, as one operation each, on CPUs: one pass over memory and all
//! threads, where the definition takes a dozen passes of one thread.

use bitnet_cpu::{AttentionInputs, AttentionShape, Gemm, Kernel};
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, TensorMetadata, backend_extension};

use super::cpu::{CpuBackend, sound, tensor};

/// The operations. All floats are f32.
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
)]
pub(crate) trait BlockOps: Backend {
    /// `x · 1 / √(mean(x²) + eps) · gain` over the last axis; `gain`: `[d]`.
    fn rms_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;

    /// `silu(gate) · up`; equal shapes.
    fn silu_gated(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `softmax(rotated query · scale · rotated keyᵀ) · value`, shapes as [`AttentionInputs`] has them. Needs [`Gemm`].
    fn causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self>;

    /// Mean cross-entropy of each sequence's tokens but the first in the logits of the one before.
    ///
    /// # Shapes
    /// - `logits`: `[batch, tokens, vocab_size]`, `tokens`: i32 `[batch, tokens]`, each below `vocab_size`
    /// - returns `[1]`
    fn next_token_cross_entropy(logits: FloatTensor<Self>, tokens: IntTensor<Self>) -> FloatTensor<Self>;
}

impl<B: CpuBackend> BlockOps for B {
    fn rms_norm(x: FloatTensor<B>, gain: FloatTensor<B>, eps: f32) -> FloatTensor<B> {
        let mut out = vec![0.0; x.shape().num_elements()];
        B::read(&x, |x| B::read(&gain, |gain| sound(Kernel::new().rms_norm(x, gain, eps, &mut out))));
        tensor::<B>(out, x.shape(), &x)
    }

    fn silu_gated(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B> {
        let mut out = vec![0.0; gate.shape().num_elements()];
        B::read(&gate, |gate| B::read(&up, |up| sound(Kernel::new().silu_gated(gate, up, &mut out))));
        tensor::<B>(out, gate.shape(), &gate)
    }

    fn causal_attention(
        query: FloatTensor<B>,
        key: FloatTensor<B>,
        value: FloatTensor<B>,
        cos: FloatTensor<B>,
        sin: FloatTensor<B>,
        shape: AttentionShape,
    ) -> FloatTensor<B> {
        let inputs = [&query, &key, &value, &cos, &sin];
        let out = read_inputs::<B, _>(inputs, |inputs| sound(products().attention(shape, inputs)));
        tensor::<B>(out, query.shape(), &query)
    }

    fn next_token_cross_entropy(logits: FloatTensor<B>, tokens: IntTensor<B>) -> FloatTensor<B> {
        let targets = targets::<B>(&tokens);
        let (loss, _) = losses::<B>(&logits, &targets);
        tensor::<B>(vec![loss], [1], &logits)
    }
}

/// The products, whose presence was asked for before an operation was chosen.
fn products() -> Gemm {
    match Gemm::new() {
        Some(gemm) => gemm,
        None => unreachable!("the operation is chosen on processors with AVX-512 only"),
    }
}

fn read_inputs<B: CpuBackend, R>(
    [query, key, value, cos, sin]: [&FloatTensor<B>; 5],
    run: impl FnOnce(AttentionInputs<'_>) -> R,
) -> R {
    B::read(query, |query| {
        B::read(key, |key| {
            B::read(value, |value| {
                B::read(cos, |cos| B::read(sin, |sin| run(AttentionInputs { query, key, value, cos, sin })))
            })
        })
    })
}

/// What each row of logits should predict: the token after it, none at the end of a sequence.
fn targets<B: CpuBackend>(tokens: &IntTensor<B>) -> Vec<Option<usize>> {
    let [_, length] = tokens.shape().dims();
    B::read_words(tokens, |tokens| {
        let next = |sequence: &[i32]| {
            let next = sequence.iter().skip(1).map(|&token| Some(token as usize));
            next.chain([None]).collect::<Vec<_>>()
        };
        tokens.chunks(length).flat_map(next).collect()
    })
}

/// The mean loss, and the logarithm of the sum of each row's exponentials.
fn losses<B: CpuBackend>(logits: &FloatTensor<B>, targets: &[Option<usize>]) -> (f32, Vec<f32>) {
    let [_, _, vocab_size] = logits.shape().dims();
    B::read(logits, |logits| {
        let log_sums = sound(Kernel::new().log_sum_exp(logits, vocab_size));
        let rows = logits.chunks(vocab_size).zip(&log_sums).zip(targets);
        let losses = rows.filter_map(|((row, log_sum), target)| target.map(|target| log_sum - row[target]));
        // Some hundred numbers: in f64 their order does not matter.
        let (sum, n) = losses.fold((0.0, 0), |(sum, n), loss| (sum + f64::from(loss), n + 1));
        ((sum / f64::from(n)) as f32, log_sums)
    })
}

#[derive(Debug)]
struct NormBackward;

/// The inputs' nodes, and eps.
#[derive(Debug, Clone)]
struct NormState {
    inputs: [NodeId; 2],
    eps: f32,
}

impl<B: CpuBackend> Backward<B, 2> for NormBackward {
    type State = NormState;

    fn backward(self, ops: Ops<NormState, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let NormState { inputs, eps } = ops.state;
        let [x, gain] = inputs.map(|node| checkpointer.retrieve_node_output::<FloatTensor<B>>(node));
        let mut of_x = B::into_values(grads.consume::<B>(&ops.node));
        let of_gain = B::read(&x, |x| {
            B::read(&gain, |gain| sound(Kernel::new().rms_norm_gradient(x, gain, eps, &mut of_x)))
        });
        for ((parent, values), input) in ops.parents.into_iter().zip([of_x, of_gain]).zip([&x, &gain]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, tensor::<B>(values, input.shape(), input));
            }
        }
    }
}

#[derive(Debug)]
struct SiluGatedBackward;

impl<B: CpuBackend> Backward<B, 2> for SiluGatedBackward {
    type State = [NodeId; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [gate, up] = ops.state.map(|node| checkpointer.retrieve_node_output::<FloatTensor<B>>(node));
        let grad = grads.consume::<B>(&ops.node);
        let shape = grad.shape();
        let mut of_up = B::into_values(grad);
        let mut of_gate = vec![0.0; of_up.len()];
        B::read(&gate, |gate| {
            B::read(&up, |up| {
                sound(Kernel::new().silu_gated_gradient(gate, up, &mut of_up, &mut of_gate));
            });
        });
        for (parent, values) in ops.parents.into_iter().zip([of_gate, of_up]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, tensor::<B>(values, shape.clone(), &gate));
            }
        }
    }
}

#[derive(Debug)]
struct AttentionBackward;

/// The inputs: query, key and value as nodes, cosines and sines.
#[derive(Debug, Clone)]
struct AttentionState<B: Backend> {
    inputs: [NodeId; 3],
    waves: [FloatTensor<B>; 2],
    shape: AttentionShape,
}

impl<B: CpuBackend> Backward<B, 3> for AttentionBackward {
    type State = AttentionState<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let AttentionState { inputs, waves: [cos, sin], shape } = ops.state;
        let inputs = inputs.map(|node| checkpointer.retrieve_node_output::<FloatTensor<B>>(node));
        let grad = grads.consume::<B>(&ops.node);
        let [query, key, value] = &inputs;
        let gradients = read_inputs::<B, _>([query, key, value, &cos, &sin], |inputs| {
            B::read(&grad, |grad| sound(products().attention_gradient(shape, inputs, grad)))
        });
        for ((parent, values), input) in ops.parents.into_iter().zip(gradients).zip(&inputs) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, tensor::<B>(values, input.shape(), input));
            }
        }
    }
}

#[derive(Debug)]
struct CrossEntropyBackward;

#[derive(Debug, Clone)]
struct CrossEntropyState<B: Backend> {
    /// The values themselves: the gradient takes their place if nothing else holds them.
    logits: FloatTensor<B>,
    log_sums: Vec<f32>,
    targets: Vec<Option<usize>>,
}

impl<B: CpuBackend> Backward<B, 1> for CrossEntropyBackward {
    type State = CrossEntropyState<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let CrossEntropyState { logits, log_sums, targets } = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            let rows = targets.iter().flatten().count();
            let factor = B::read(&grad, |grad| grad.iter().sum::<f32>()) / rows as f32;
            let shape = logits.shape();
            let mut values = B::into_values(logits);
            sound(Kernel::new().cross_entropy_gradient(&mut values, &log_sums, &targets, factor));
            tensor::<B>(values, shape, &grad)
        });
    }
}

impl<B: CpuBackend, C: CheckpointStrategy> BlockOps for Autodiff<B, C> {
    fn rms_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        let out = B::rms_norm(x.primitive().clone(), gain.primitive().clone(), eps);
        match NormBackward.prepare::<C>([x.node(), gain.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let inputs = [prep.checkpoint(&x), prep.checkpoint(&gain)];
                prep.finish(NormState { inputs, eps }, out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn silu_gated(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let out = B::silu_gated(gate.primitive().clone(), up.primitive().clone());
        match SiluGatedBackward.prepare::<C>([gate.node(), up.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let inputs = [prep.checkpoint(&gate), prep.checkpoint(&up)];
                prep.finish(inputs, out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        let waves = [cos.into_primitive(), sin.into_primitive()];
        let [q, k, v] = [&query, &key, &value].map(|input| input.primitive().clone());
        let [cos, sin] = waves.clone();
        let out = B::causal_attention(q, k, v, cos, sin, shape);
        let nodes = [query.node(), key.node(), value.node()];
        match AttentionBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let inputs = [prep.checkpoint(&query), prep.checkpoint(&key), prep.checkpoint(&value)];
                prep.finish(AttentionState { inputs, waves, shape }, out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn next_token_cross_entropy(logits: FloatTensor<Self>, tokens: IntTensor<Self>) -> FloatTensor<Self> {
        let targets = targets::<B>(&tokens);
        let (loss, log_sums) = losses::<B>(logits.primitive(), &targets);
        let loss = tensor::<B>(vec![loss], [1], logits.primitive());
        match CrossEntropyBackward.prepare::<C>([logits.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let logits = logits.into_primitive();
                prep.finish(CrossEntropyState { logits, log_sums, targets }, loss)
            }
            OpsKind::UnTracked(prep) => prep.finish(loss),
        }
    }
}
