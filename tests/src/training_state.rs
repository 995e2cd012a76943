//! What a trainer carries from step to step: saved, loaded, and the groups of its parameters.

use bitnet_arch::layers::{BitLinearConfig, Projection, RmsNormConfig, SubLn, slots};
use bitnet_arch::train::{Decay, LrDecay, StageTwo, TrainConfig, TrainError, Trainer};
use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig};
use burn::tensor::{Device, Tensor};

use crate::check::{assert_close, values};
use crate::layers_slots::Mixture;
use crate::training_step::mean_square;
use crate::vectors::random;

/// Interrupted after any step, training goes on with the same numbers, bit by bit.
pub fn saved_and_loaded(device: &Device) {
    let x = random([4, 16], 80, device);
    let batch = std::slice::from_ref(&x);
    let mut config = TrainConfig::new(8);
    config.weight_decay = 0.1;
    config.lr_decay = LrDecay::TwoStage(StageTwo { at: 0.6, rate: 0.5 });
    let mut whole = Trainer::new(Mixture::converted(device), &config).unwrap();
    let reports: Vec<_> = (0..8).map(|_| whole.step(batch, mean_square).unwrap()).collect();
    let expected = values(whole.into_model().forward(x.clone()));
    for interrupted in [0, 1, 5, 7] {
        let mut trainer = Trainer::new(Mixture::converted(device), &config).unwrap();
        for _ in 0..interrupted {
            trainer.step(batch, mean_square).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        trainer.save(folder.path()).unwrap();
        let other = Trainer::load(Mixture::new(device), &config, folder.path());
        assert!(matches!(other, Err(TrainError::Snapshot { .. })), "another structure is refused");
        let mut trainer = Trainer::load(Mixture::converted(device), &config, folder.path()).unwrap();
        assert_eq!(trainer.steps_taken(), interrupted);
        let found: Vec<_> = (interrupted..8).map(|_| trainer.step(batch, mean_square).unwrap()).collect();
        assert_eq!(found, reports[interrupted as usize..], "after {interrupted} steps");
        assert_eq!(values(trainer.into_model().forward(x.clone())), expected, "after {interrupted} steps");
        for name in ["model.bpk", "moments_1.bpk", "moments_2.bpk", "schedule.bpk", "trainer.json"] {
            std::fs::write(folder.path().join(name), "damaged").unwrap();
            let error = Trainer::load(Mixture::converted(device), &config, folder.path()).err().unwrap();
            assert!(matches!(&error, TrainError::Snapshot { .. }), "{name}: {error}");
            trainer_files(folder.path(), device, &config);
        }
    }
}

/// Writes a snapshot that is whole.
fn trainer_files(folder: &std::path::Path, device: &Device, config: &TrainConfig) {
    Trainer::new(Mixture::converted(device), config).unwrap().save(folder).unwrap();
}

/// One parameter of each kind.
#[derive(Module, Debug)]
struct Kinds {
    embedding: Embedding,
    slot: Projection,
}
slots!(Kinds { slot });

impl Kinds {
    fn new(device: &Device) -> Self {
        let mut slot: Projection = BitLinearConfig::new(8, 6).with_bias(true).init(device).unwrap().into();
        slot.sub_norm = Some(SubLn::inserted(&RmsNormConfig::new(8), device));
        Self { embedding: EmbeddingConfig::new(5, 8).init(device), slot }
    }

    /// Embedding, weight, bias, gain.
    fn values(&self) -> [Vec<f32>; 4] {
        let bitnet_arch::layers::Form::Bit(linear) = &self.slot.form else { panic!("no BitNet layer") };
        let norm = &self.slot.sub_norm.as_ref().unwrap().norm;
        [
            values(self.embedding.weight.val()),
            values(linear.weight.val()),
            self.slot.bias().map(|bias| values(bias.val())).unwrap_or_default(),
            values(norm.gain.val()),
        ]
    }
}

/// A loss with a gradient of zero for every parameter: only weight decay changes them.
fn nothing(model: &Kinds, _: &()) -> Result<Tensor<1>, TrainError> {
    let bitnet_arch::layers::Form::Bit(linear) = &model.slot.form else { panic!("no BitNet layer") };
    let norm = &model.slot.sub_norm.as_ref().unwrap().norm;
    let bias = model.slot.bias().unwrap().val().sum();
    let sum = model.embedding.weight.val().sum() + linear.weight.val().sum() + bias + norm.gain.val().sum();
    Ok(sum * 0.0)
}

/// Weights decay and norms, biases and embeddings do not; in the second stage nothing does, and the learning rate is
/// lower.
pub fn what_decays(device: &Device) {
    for decay in [Decay::Matrices, Decay::All] {
        let mut config = TrainConfig::new(10);
        config.learning_rate = 0.1;
        config.lr_warmup_steps = 0;
        config.weight_decay = 0.5;
        config.decay = decay;
        config.lr_decay = LrDecay::TwoStage(StageTwo { at: 0.3, rate: 0.5 });
        let mut trainer = Trainer::new(Kinds::new(device), &config).unwrap();
        let mut factor = 1.0;
        let before = trainer.model().valid().values();
        for step in 0..5 {
            let report = trainer.step(&[()], nothing).unwrap();
            let cosine = 0.05 * (1.0 + (std::f64::consts::PI * step as f64 / 10.0).cos());
            let stage = if step < 3 { 1.0 } else { 0.5 };
            let off = (report.learning_rate - stage * cosine).abs();
            assert!(off < 1e-9, "step {step}: lr {} for {}", report.learning_rate, stage * cosine);
            if step < 3 {
                factor *= 1.0 - 0.5 * report.learning_rate;
            }
        }
        let after = trainer.model().valid().values();
        for (i, (found, before)) in after.iter().zip(&before).enumerate() {
            let decays = decay == Decay::All || i == 1;
            let factor = if decays { factor as f32 } else { 1.0 };
            let expected: Vec<f32> = before.iter().map(|value| value * factor).collect();
            let tolerance = if decays { 1e-6 } else { 0.0 }; // three products in f32
            assert_close(&format!("{decay:?}, parameter {i}"), found, &expected, tolerance);
        }
    }
}
