//! One optimizer step: the reference's in isolation, and the trainer's against AdamW written out in f64.

use bitnet_arch::layers::{Projection, set_lambda, slots};
use bitnet_arch::train::{Decay, LrDecay, TrainConfig, TrainError, Trainer, next_token_loss};
use burn::module::{Module, Param};
use burn::optim::{AdamWConfig, AdamWState, AdaptiveMomentumState, GradientsParams, Optimizer};
use burn::tensor::{Device, Tensor};

use crate::check::{assert_close, assert_close_relative, values};
use crate::golden::Golden;
use crate::layers_slots::Mixture;
use crate::training_tiny_llama::{batches, load_tiny_llama, named_gradients};
use crate::training_trajectory::config;
use crate::vectors::{random, random_values};

/// Loss and gradients (relative to the tensor's largest) of one step in isolation, in which no code flips.
const ONE_STEP: f32 = 1e-5;

/// A weight after AdamW, which divides two f32 moments: an update is at most some learning rates, 4e-3, and the
/// weights are below 4, of which one ulp is 2.4e-7.
const UPDATED: f32 = 1e-6;

/// Step 7 of the ramp, forward and backward: weights as the reference had them, its loss and raw gradients.
pub fn reference_gradients(device: &Device) {
    let golden = Golden::open("bitlinear/tiny_llama/step_ramp_7.safetensors");
    let mut checkpoint = load_tiny_llama(&golden, "before.", &device.clone().autodiff());
    checkpoint.model = checkpoint.model.train();
    set_lambda(&mut checkpoint.model, Some(0.7));
    let batch = &batches(&golden, "ids")[0];
    let loss = next_token_loss(&checkpoint.model, batch).unwrap();
    assert_close("loss", &values(loss.clone()), &golden.floats("loss"), ONE_STEP);
    let grads = GradientsParams::from_grads(loss.backward(), &checkpoint.model);
    let worst = named_gradients(&checkpoint, grads).into_iter().map(|(name, grad)| {
        let expected = golden.floats(&format!("grad.{name}"));
        assert_close_relative(&name, &grad, &expected, ONE_STEP)
    });
    eprintln!("gradients of step 7: off by {:.1e} of the largest", worst.fold(0.0, f32::max));
}

/// The same step, from raw gradients to weights: clipping, then Burn's AdamW in the state that the reference had.
pub fn reference_update(device: &Device) {
    let golden = Golden::open("bitlinear/tiny_llama/step_ramp_7.safetensors");
    let names: Vec<String> =
        golden.names().iter().filter_map(|name| name.strip_prefix("grad.").map(str::to_owned)).collect();
    let squares = names.iter().flat_map(|name| golden.numbers(&format!("grad.{name}"))).map(|g| g * g);
    let norm = squares.sum::<f64>().sqrt();
    let settings = config("ramp");
    let max_norm = settings.clip_norm.unwrap();
    assert!(norm > max_norm, "the step clips");
    let factor = max_norm / (norm + 1e-6);
    let optimizer = AdamWConfig::new()
        .with_beta_1(settings.betas[0])
        .with_beta_2(settings.betas[1])
        .with_epsilon(settings.adam_eps)
        .with_weight_decay(settings.weight_decay)
        .build();
    let steps_done = golden.numbers("updates_done")[0] as usize;
    for name in &names {
        let read = |part: &str| golden.floats(&format!("{part}.{name}"));
        let tensor = |part: &str| Tensor::<1>::from_data(read(part).as_slice(), device);
        let state = AdamWState::new(AdaptiveMomentumState::new(steps_done, tensor("m"), tensor("v")));
        let grad = tensor("grad") * factor;
        let (updated, _) = optimizer.step(settings.learning_rate, tensor("before"), grad, Some(state));
        assert_close(name, &values(updated), &read("after"), UPDATED);
    }
}

/// A module whose gradients a test can choose: the loss is its product with them.
#[derive(Module, Debug)]
struct Point {
    matrix: Param<Tensor<2>>,
    vector: Param<Tensor<1>>,
    frozen: Param<Tensor<1>>,
    slot: Option<Projection>,
}
slots!(Point { slot });

/// Several steps of the trainer, with clipping in some, weight decay and a learning-rate warm-up, against AdamW
/// written out in f64; a frozen parameter keeps every bit.
pub fn trainer_is_adamw(device: &Device) {
    let (n_matrix, n_vector) = (12, 5);
    let point = Point {
        matrix: Param::from_tensor(random([3, 4], 50, device)),
        vector: Param::from_tensor(random([5], 51, device)),
        frozen: Param::from_tensor(random([5], 52, device)).no_grad(),
        slot: None,
    };
    let frozen = values(point.frozen.val());
    let mut expected: Vec<f64> = [values(point.matrix.val()), values(point.vector.val())]
        .concat()
        .into_iter()
        .map(f64::from)
        .collect();
    let mut config = TrainConfig::new(6);
    config.learning_rate = 1e-2;
    config.lr_warmup_steps = 3;
    config.lr_decay = LrDecay::Constant;
    config.weight_decay = 0.1;
    config.decay = Decay::All;
    config.clip_norm = Some(1.0);
    let mut trainer = Trainer::new(point, &config).unwrap();
    let (mut m, mut v) = (vec![0.0_f64; n_matrix + n_vector], vec![0.0_f64; n_matrix + n_vector]);
    for (step, size) in [0.1_f32, 3.0, 0.02, 1.0, 0.2, 10.0].into_iter().enumerate() {
        let grads: Vec<f32> =
            random_values(n_matrix + n_vector, 60 + step as u64).into_iter().map(|g| g * size).collect();
        let report = trainer
            .step(std::slice::from_ref(&grads), |point: &Point, grads: &Vec<f32>| {
                let device = point.vector.val().device();
                let grad = |range: std::ops::Range<usize>| Tensor::<1>::from_data(&grads[range], &device);
                let matrix = grad(0..n_matrix).reshape([3, 4]) * point.matrix.val();
                let vector = grad(n_matrix..n_matrix + n_vector) * point.vector.val();
                Ok(matrix.sum() + vector.sum() + point.frozen.val().sum())
            })
            .unwrap();

        let norm = grads.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        assert!((report.grad_norm - norm).abs() < 1e-6 * norm, "step {step}: norm {}", report.grad_norm);
        let lr = 1e-2 * ((step + 1) as f64 / 3.0).min(1.0);
        assert!((report.learning_rate - lr).abs() < 1e-12, "step {step}: lr {}", report.learning_rate);
        let factor = if norm > 1.0 { 1.0 / (norm + 1e-6) } else { 1.0 };
        let t = step as i32 + 1;
        for (i, grad) in grads.iter().enumerate() {
            let grad = f64::from(*grad) * factor;
            m[i] = 0.9 * m[i] + 0.1 * grad;
            v[i] = 0.95 * v[i] + 0.05 * grad * grad;
            let update = m[i] / (1.0 - 0.9_f64.powi(t)) / ((v[i] / (1.0 - 0.95_f64.powi(t))).sqrt() + 1e-8);
            expected[i] = expected[i] * (1.0 - lr * 0.1) - lr * update;
        }
        let model = trainer.model().valid();
        let found = [values(model.matrix.val()), values(model.vector.val())].concat();
        let rounded: Vec<f32> = expected.iter().map(|&weight| weight as f32).collect();
        assert_close(&format!("step {step}"), &found, &rounded, UPDATED);
        assert_eq!(values(model.frozen.val()), frozen, "step {step}: frozen");
    }
}

/// Micro-batches of equal size give the update of one batch that holds them all.
pub fn accumulation(device: &Device) {
    let x = random([8, 16], 70, device);
    let run = |n: usize| {
        let mut config = TrainConfig::new(3);
        config.lambda.min = 0.5;
        let mut trainer = Trainer::new(Mixture::converted(device), &config).unwrap();
        let rows = 8 / n;
        let batches: Vec<Tensor<2>> = (0..n).map(|i| x.clone().narrow(0, i * rows, rows)).collect();
        let report = trainer.step(&batches, mean_square).unwrap();
        (report, values(trainer.into_model().forward(x.clone())))
    };
    let (whole, expected) = run(1);
    for n in [2, 4] {
        let (report, found) = run(n);
        assert!((report.loss - whole.loss).abs() < 1e-6, "{n} micro-batches: loss");
        let share = (report.grad_norm - whole.grad_norm).abs() / whole.grad_norm;
        assert!(share < 1e-5, "{n} micro-batches: gradient norm off by {share:e} of it");
        // AdamW's first update is the sign of the gradient: nearly zero gradients fall either way by 2 · lr.
        assert_close_relative(&format!("{n} micro-batches"), &found, &expected, 2e-2);
    }
}

/// A loss for [`Mixture`]: how far its outputs are from one.
pub fn mean_square(model: &Mixture, x: &Tensor<2>) -> Result<Tensor<1>, TrainError> {
    Ok((model.forward(x.clone()) - 1.0).square().mean())
}

/// A loss that is not finite, or a missing batch, is an error that names the step and leaves the model as it was.
pub fn refused_steps(device: &Device) {
    let x = random([4, 16], 71, device);
    let mut trainer = Trainer::new(Mixture::converted(device), &TrainConfig::new(10)).unwrap();
    trainer.step(std::slice::from_ref(&x), mean_square).unwrap();
    let before = values(trainer.model().valid().forward(x.clone()));
    for bad in [f32::NAN, f32::INFINITY] {
        let error = trainer.step(&[x.clone(), x.full_like(bad)], mean_square).unwrap_err();
        assert!(matches!(error, TrainError::NotFinite { step: 1, .. }), "{error}");
    }
    let error = trainer.step(&[], mean_square).unwrap_err();
    assert!(matches!(error, TrainError::NoBatch { step: 1 }), "{error}");
    assert_eq!(values(trainer.model().valid().forward(x.clone())), before);
    assert_eq!(trainer.warmup().steps_taken(), 1, "λ has not moved either");
    assert_eq!(trainer.step(&[x], mean_square).unwrap().step, 1, "and training goes on");
}
