//! What CPUs do in one pass, against the definitions in Burn's operations.

use bitnet_arch::model::{CausalLm, CausalLmConfig, KvCache};
use bitnet_arch::quant::{
    AdamW, adamw, dense_linear, fold_sum, silu_gated, square_sum, with_plain_operations,
};
use bitnet_arch::train::{Decay, TrainConfig, Trainer, next_token_loss};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::module::linear;
use burn::tensor::{Device, Tensor};

use crate::check::{SUMMATION, assert_close_relative, values};
use crate::vectors::random;

/// Relative to the largest: some layers of sums in other orders, and an `exp` of 2 ulp.
const MODEL: f32 = 1e-5;

/// A weight after some updates: each divides two f32 moments.
const UPDATED: f32 = 1e-6;

/// Two sequences that are no whole tiles, heads that share keys.
fn model(device: &Device) -> CausalLm {
    let config = CausalLmConfig::new(61, 24, 40, 2, 4)
        .with_n_kv_heads(Some(2))
        .with_head_dim(Some(6))
        .with_tied_head(true)
        .with_init_std(0.3);
    device.seed(7);
    config.init(device).unwrap()
}

fn sequences(length: u32) -> [Vec<u32>; 2] {
    [1, 2].map(|factor| (0..length).map(|i| (i * i * factor + 3) % 61).collect())
}

/// Every gradient of a model, one after the other.
struct Gradients(GradientsParams, Vec<Vec<f32>>);

impl ModuleVisitor for Gradients {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.1.push(values(self.0.get::<D>(param.id).unwrap()));
    }
}

/// Loss and gradients of a whole model: attention, gated MLP, head and cross-entropy.
pub fn a_model_is_its_definition(device: &Device) {
    let model = model(&device.clone().autodiff());
    for length in [2, 70] {
        let batch = sequences(length);
        let run = || {
            let loss = next_token_loss(&model, &batch).unwrap();
            let mut gradients = Gradients(GradientsParams::from_grads(loss.backward(), &model), Vec::new());
            model.visit(&mut gradients);
            (values(loss), gradients.1)
        };
        let ((loss, gradients), (expected, definition)) = (run(), with_plain_operations(run));
        assert_close_relative("loss", &loss, &expected, MODEL);
        assert_eq!(gradients.len(), definition.len());
        for (at, (found, expected)) in gradients.iter().zip(&definition).enumerate() {
            assert_close_relative(&format!("{length} tokens, gradient {at}"), found, expected, MODEL);
        }
        let tokens = model.batch(&batch).unwrap();
        let cached = model.forward_cached(tokens.clone(), &mut KvCache::new());
        assert_close_relative("logits", &values(model.forward(tokens)), &values(cached), MODEL);
    }
}

/// Products and gate, with gradients; an operand that needs none gets none.
pub fn operations_are_their_definitions(device: &Device) {
    let device = &device.clone().autodiff();
    let operand = |shape: [usize; 2], seed: u64| random(shape, seed, device).require_grad();
    for (tokens, d_input, d_output) in [(1, 5, 3), (9, 50, 17), (70, 200, 100)] {
        let (x, w) = (operand([tokens, d_input], 1), operand([d_output, d_input], 2));
        let weights = random([tokens, d_output], 3, device);
        let run = |product: &dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
            let y = product(x.clone(), w.clone());
            let grads = (y.clone() * weights.clone()).sum().backward();
            [y.inner(), x.grad(&grads).unwrap(), w.grad(&grads).unwrap()].map(values)
        };
        let found = run(&|x, w| dense_linear(x, w));
        let expected = run(&|x, w| linear(x, w.transpose(), None));
        for (found, expected) in found.iter().zip(&expected) {
            assert_close_relative("product", found, expected, SUMMATION);
        }
    }
    let (gate, up) = (operand([7, 33], 4) * 8.0, operand([7, 33], 5));
    let frozen = random([7, 33], 5, device);
    let run = |gate: &Tensor<2>, up: &Tensor<2>| {
        let gate = gate.clone().detach().require_grad();
        let y = silu_gated(gate.clone(), up.clone());
        let grads = y.clone().square().sum().backward();
        (values(y.inner()), values(gate.grad(&grads).unwrap()), up.grad(&grads).is_some())
    };
    let expected = with_plain_operations(|| run(&gate, &up));
    let found = run(&gate, &up);
    assert_close_relative("gated", &found.0, &expected.0, SUMMATION);
    assert_close_relative("gradient of the gate", &found.1, &expected.1, SUMMATION);
    assert!(found.2 && !run(&gate, &frozen).2);
}

/// Three updates with and without the pass; and what somebody else holds is not written to.
pub fn updates_are_burns(device: &Device) {
    let config = TrainConfig { weight_decay: 0.1, decay: Decay::All, ..TrainConfig::new(3) };
    let batch = sequences(20);
    let run = || {
        let mut trainer = Trainer::new(model(device), &config).unwrap();
        let before = trainer.model().valid();
        let held = values(before.embedding.weight.val());
        for _ in 0..3 {
            trainer.step(&[&batch], next_token_loss).unwrap();
        }
        assert_eq!(values(before.embedding.weight.val()), held, "a clone from before");
        values(trainer.into_model().embedding.weight.val())
    };
    let (found, expected) = (run(), with_plain_operations(run));
    // Signs of gradients near zero may differ between the two runs' sums, and with them an update of Adam.
    let different = found.iter().zip(&expected).filter(|(a, b)| (*a - *b).abs() > 10.0 * UPDATED).count();
    assert!(different * 100 <= found.len(), "{different} of {} weights differ", found.len());

    let tensor = |seed: u64| random::<1>([1000], seed, device);
    let (parameter, gradient, first, second) = (tensor(1), tensor(2), tensor(3), tensor(4).square());
    let settings = AdamW {
        betas: [0.9, 0.95],
        corrections: [0.271, 0.142],
        epsilon: 1e-8,
        learning_rate: 1e-2,
        keep: 0.999,
    };
    if let Ok(updated) = adamw(settings, &gradient, [parameter.clone(), first.clone(), second.clone()]) {
        let first = first * 0.9 + gradient.clone() * (1.0 - 0.9_f32);
        let second = second * 0.95 + gradient.square() * (1.0 - 0.95_f32);
        let delta = (first.clone() / 0.271) / ((second.clone() / 0.142).sqrt() + 1e-8);
        let expected = [parameter * 0.999 - delta * 1e-2, first, second];
        for (found, expected) in updated.into_iter().zip(expected) {
            assert_close_relative("update", &values(found), &values(expected), UPDATED);
        }
    }
}

/// The sum of squares has the bits of the definition's folds.
pub fn squares_are_folded(device: &Device) {
    for n in [1, 2, 5, 1000, 40_001] {
        let x = random::<1>([n], n as u64, device);
        let (found, expected) = (values(square_sum(x.clone())), values(fold_sum(x.square())));
        assert_eq!(found, expected, "{n} numbers");
    }
}
