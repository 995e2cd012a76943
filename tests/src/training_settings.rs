//! Settings that change how a step is computed, and not what.

use bitnet_arch::layers::for_each_slot;
use bitnet_arch::train::{Precision, StepReport, TrainConfig, TrainError, Trainer, next_token_loss};
use burn::tensor::{DType, Device};

use crate::check::{assert_close_relative, values};
use crate::golden::Golden;
use crate::training_tiny_llama::{batches, initial_weights, load_tiny_llama};
use crate::training_trajectory::config;

const STEPS: usize = 3;

/// The first steps of the golden model at λ = `lambda`, and its latent weights after them.
fn trained(
    device: &Device,
    lambda: f64,
    change: impl Fn(&mut TrainConfig),
) -> Result<(Vec<StepReport>, Vec<f32>), TrainError> {
    let mut config = config("const");
    config.lambda.min = lambda as f32;
    config.lambda.max = lambda as f32;
    change(&mut config);
    let checkpoint = load_tiny_llama(&initial_weights(), "", device);
    let data = batches(&Golden::open("bitlinear/tiny_llama/data.safetensors"), "ids");
    let mut trainer = Trainer::new(checkpoint.model, &config)?;
    let steps = data.chunks(1).take(STEPS).map(|batch| trainer.step(batch, next_token_loss));
    let steps = steps.collect::<Result<Vec<_>, _>>()?;
    let mut latent = Vec::new();
    for_each_slot(&trainer.into_model(), |path, slot| {
        let weight = slot.latent_weight().unwrap();
        assert_eq!(weight.dtype(), DType::F32, "{path}");
        latent.extend(values(weight));
    });
    Ok((steps, latent))
}

/// The same operations are computed, some of them twice; where Burn fuses them, not always with the same ones.
pub fn gradient_checkpointing(device: &Device) {
    let of_loss = if cfg!(feature = "fusion") { 1e-5 } else { 1e-6 };
    for lambda in [0.0, 0.5, 1.0] {
        let (expected, expected_weights) = trained(device, lambda, |_| ()).unwrap();
        let (found, weights) =
            trained(device, lambda, |config| config.gradient_checkpointing = true).unwrap();
        for (found, expected) in found.iter().zip(&expected) {
            let (norm, loss) = (found.grad_norm / expected.grad_norm, found.loss / expected.loss);
            assert!((norm - 1.0).abs() < 1e-5 && (loss - 1.0).abs() < of_loss, "λ {lambda}: {norm} {loss}");
        }
        assert_close_relative("weights", &weights, &expected_weights, 1e-5);
    }
}

/// bf16 has 8 bits: losses and gradients are those of f32 to about a hundredth, and weights go on in steps far smaller than
/// their own bf16.
pub fn half_precision(device: &Device) {
    let lower = |config: &mut TrainConfig| config.precision = Precision::Bf16;
    if !device.supports_dtype(DType::BF16) {
        let error = trained(device, 1.0, lower).unwrap_err();
        assert!(matches!(error, TrainError::Config { field: "precision", .. }), "{error}");
        return;
    }
    for lambda in [0.0, 0.5, 1.0] {
        let (expected, expected_weights) = trained(device, lambda, |_| ()).unwrap();
        let (found, weights) = trained(device, lambda, lower).unwrap();
        for (found, expected) in found.iter().zip(&expected) {
            assert_ne!(found.loss, expected.loss, "λ {lambda}: computed in bf16");
            let (norm, loss) = (found.grad_norm / expected.grad_norm, found.loss / expected.loss);
            assert!((norm - 1.0).abs() < 0.05 && (loss - 1.0).abs() < 0.01, "λ {lambda}: {norm} {loss}");
        }
        let coarse = weights.iter().filter(|weight| weight.to_bits() & 0xffff == 0).count();
        assert!(coarse * 10 < weights.len(), "λ {lambda}: {coarse} of {} weights are bf16", weights.len());
        assert_close_relative("weights", &weights, &expected_weights, 0.05);
    }
}
