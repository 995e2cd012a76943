//! λ schedules, written into the slots of a model in training.

use bitnet_arch::layers::set_lambda;
use bitnet_arch::train::{TrainConfig, TrainError, Trainer};
use bitnet_arch::warmup::{LambdaWarmup, LambdaWarmupConfig, Schedule};
use burn::module::Module;
use burn::tensor::Device;

use crate::check::values;
use crate::layers_slots::{Mixture, lambdas};
use crate::training_step::mean_square;
use crate::vectors::random;

/// The vectors of docs/numerics.md have six decimals.
const LAMBDA: f32 = 1e-6;

fn trainer(lambda: LambdaWarmupConfig, device: &Device) -> Trainer<Mixture> {
    let config = TrainConfig { lambda, ..TrainConfig::new(6) };
    Trainer::new(Mixture::converted(device), &config).unwrap()
}

/// The λ that all slots share.
fn shared(model: &Mixture) -> f32 {
    let lambdas = lambdas(model);
    assert!(lambdas.iter().all(|lambda| *lambda == lambdas[0]), "{lambdas:?}");
    lambdas[0].unwrap()
}

/// Each schedule's acceptance vector, read from the slots: before the first step and after each *optimizer* step,
/// however many micro-batches it has. The loss sees the λ that the report names.
pub fn schedules_reach_the_slots(device: &Device) {
    let x = random([2, 16], 80, device);
    let bounded =
        |schedule| LambdaWarmupConfig { min: 0.2, max: 0.8, ..LambdaWarmupConfig::new(schedule, 4) };
    let full = |schedule| LambdaWarmupConfig::new(schedule, 4);
    for (config, expected) in [
        (full(Schedule::Linear), [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]),
        (full(Schedule::Cosine), [0.0, 0.146447, 0.5, 0.853553, 1.0, 1.0]),
        (full(Schedule::exponential()), [0.0, 0.718335, 0.924142, 0.983106, 1.0, 1.0]),
        (full(Schedule::sigmoid()), [0.0, 0.070104, 0.5, 0.929896, 1.0, 1.0]),
        (bounded(Schedule::Linear), [0.2, 0.35, 0.5, 0.65, 0.8, 0.8]),
        (bounded(Schedule::Cosine), [0.2, 0.287868, 0.5, 0.712132, 0.8, 0.8]),
        (LambdaWarmupConfig::new(Schedule::Linear, 0), [1.0; 6]),
    ] {
        let mut trainer = trainer(config, device);
        for (step, expected) in expected.into_iter().enumerate() {
            let lambda = shared(trainer.model());
            assert!((lambda - expected).abs() < LAMBDA, "{config:?}, step {step}: λ {lambda}");
            let batches = vec![x.clone(); 1 + step % 3];
            let report = trainer
                .step(&batches, |model, x| {
                    assert_eq!(shared(model), lambda);
                    mean_square(model, x)
                })
                .unwrap();
            assert_eq!(report.lambda, lambda);
        }
    }
}

/// A saved warm-up, read back, goes on where it stopped.
pub fn saved_and_restored(device: &Device) {
    let x = random([2, 16], 81, device);
    let mut first = trainer(LambdaWarmupConfig::new(Schedule::Sigmoid { k: 7.0 }, 5), device);
    for _ in 0..2 {
        first.step(std::slice::from_ref(&x), mean_square).unwrap();
    }
    let saved = serde_json::to_string(first.warmup()).unwrap();
    let mut restored: LambdaWarmup = serde_json::from_str(&saved).unwrap();
    let mut model = Mixture::converted(device);
    set_lambda(&mut model, Some(restored.lambda()));
    assert_eq!(lambdas(&model), lambdas(first.model()));
    for _ in 0..4 {
        first.step(std::slice::from_ref(&x), mean_square).unwrap();
        set_lambda(&mut model, Some(restored.step()));
        assert_eq!(lambdas(&model), lambdas(first.model()));
    }
    assert_eq!(shared(&model), 1.0);
}

/// Two trainers, a trainer's clone and copies of its model go their own ways; training keeps the λ that it reached.
pub fn independent(device: &Device) {
    let x = random([2, 16], 82, device);
    let mut first = trainer(LambdaWarmupConfig::new(Schedule::Linear, 4), device);
    first.step(std::slice::from_ref(&x), mean_square).unwrap();
    let mut clone = first.clone();
    let (copy, valid) = (first.model().clone(), first.model().valid());
    let other = trainer(LambdaWarmupConfig::new(Schedule::Linear, 4), device);
    for _ in 0..2 {
        first.step(std::slice::from_ref(&x), mean_square).unwrap();
    }
    assert_eq!(
        [first.model(), clone.model(), &copy, &valid, other.model()].map(shared),
        [0.75, 0.25, 0.25, 0.25, 0.0]
    );

    // A clone trains on as the original did, bit for bit.
    for _ in 0..2 {
        clone.step(std::slice::from_ref(&x), mean_square).unwrap();
    }
    let (first, clone) = (first.into_model(), clone.into_model());
    assert_eq!((shared(&first), shared(&clone)), (0.75, 0.75));
    assert_eq!(values(first.forward(x.clone())), values(clone.forward(x)));
}

/// Settings out of range are errors that name the field.
pub fn bad_settings(device: &Device) {
    let error = |change: fn(&mut TrainConfig)| {
        let mut config = TrainConfig::new(4);
        change(&mut config);
        Trainer::new(Mixture::new(device), &config).map(|_| ()).unwrap_err()
    };
    type Change = fn(&mut TrainConfig);
    let changes: [(&str, Change); 8] = [
        ("steps", |c| c.steps = 0),
        ("learning_rate", |c| c.learning_rate = f64::NAN),
        ("learning_rate", |c| c.learning_rate = 1.5),
        ("lr_warmup_steps", |c| c.lr_warmup_steps = 5),
        ("betas", |c| c.betas[1] = 1.0),
        ("adam_eps", |c| c.adam_eps = 0.0),
        ("weight_decay", |c| c.weight_decay = -0.1),
        ("clip_norm", |c| c.clip_norm = Some(0.0)),
    ];
    for (expected, change) in changes {
        let error = error(change);
        assert!(
            matches!(error, TrainError::Config { field, .. } if field == expected),
            "{expected}: {error}"
        );
    }
    assert!(matches!(error(|c| c.lambda.min = 2.0), TrainError::Warmup(_)));
}
