//! Ternary weights in an unmodified Burn module.

use bitnet_arch::layers::{LayerError, ternarize_weights};
use bitnet_arch::quant::{Granularity, QuantError, straight_through, ternarize};
use bitnet_arch::warmup::{reset_default_lambda, set_default_lambda};
use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::module::linear;
use burn::tensor::{Device, Tensor};

use crate::check::{SUMMATION, assert_close_relative, values};
use crate::vectors::random;

/// A module of Burn's own layers, which knows nothing of this workspace.
#[derive(Module, Debug)]
struct Plain {
    up: Linear,
    norm: LayerNorm,
    down: Linear,
}

impl Plain {
    fn new(device: &Device) -> Self {
        device.seed(11);
        Self {
            up: LinearConfig::new(8, 16).init(device),
            norm: LayerNormConfig::new(16).init(device),
            down: LinearConfig::new(16, 4).with_bias(false).init(device),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down.forward(self.norm.forward(self.up.forward(x)))
    }
}

/// The matching weights, and no others, take part at λ; the forward is the one with those weights in place.
pub fn forward(device: &Device) {
    let plain = Plain::new(device);
    let x = random([3, 8], 40, device);
    for granularity in [Granularity::Tensor, Granularity::Row, Granularity::Group(4)] {
        for lambda in [0.0, 0.5, 1.0] {
            let (model, names) =
                ternarize_weights(plain.clone(), &["down.*"], granularity, Some(lambda)).unwrap();
            assert_eq!(names, ["down.weight"]);
            let latent = plain.down.weight.val();
            let q = ternarize(latent.clone().transpose(), granularity).unwrap().dequantize().transpose();
            let weight = straight_through(latent, q, lambda);
            assert_eq!(
                values(model.down.weight.val()),
                values(weight.clone()),
                "{granularity:?}, λ {lambda}"
            );
            assert_eq!(values(model.up.weight.val()), values(plain.up.weight.val()));
            let expected = linear(plain.norm.forward(plain.up.forward(x.clone())), weight, None);
            let what = format!("{granularity:?}, λ {lambda}");
            assert_close_relative(&what, &values(model.forward(x.clone())), &values(expected), SUMMATION);
        }
    }
    let (_, names) = ternarize_weights(plain, &["*"], Granularity::Tensor, None).unwrap();
    assert_eq!(names, ["up.weight", "down.weight"], "matrices only: no bias, no norm");
}

/// Without a λ the weight follows the process-wide default.
pub fn default_lambda(device: &Device) {
    let plain = Plain::new(device);
    let latent = values(plain.up.weight.val());
    let (model, _) = ternarize_weights(plain, &["up.weight"], Granularity::Tensor, None).unwrap();
    let quantized = values(model.up.weight.val());
    set_default_lambda(0.0).unwrap();
    let dense = values(model.up.weight.val());
    reset_default_lambda();
    assert_eq!(dense, latent);
    assert_ne!(quantized, latent);
    assert_eq!(values(model.up.weight.val()), quantized);
}

/// A step trains the latent weight with the gradient at the ternary one; what the forward sees stays ternary.
pub fn trains(device: &Device) {
    let device = device.clone().autodiff();
    let x = random([6, 8], 41, &device);
    let (mut model, _) =
        ternarize_weights(Plain::new(&device), &["*"], Granularity::Tensor, Some(1.0)).unwrap();
    let loss = |model: &Plain| model.forward(x.clone()).square().mean();
    let first = values(loss(&model))[0];
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.0).init();
    for _ in 0..20 {
        let grads = GradientsParams::from_grads(loss(&model).backward(), &model);
        assert!(grads.get::<2>(model.down.weight.id).is_some(), "the latent weight gets a gradient");
        model = optimizer.step(1e-2, model, grads);
    }
    let last = values(loss(&model))[0];
    assert!(last < 0.8 * first, "loss {first} before, {last} after twenty steps");
    for weight in [&model.up.weight, &model.down.weight] {
        let seen = values(weight.val().inner());
        let scale = seen.iter().fold(0.0_f32, |max, w| max.max(w.abs()));
        assert!(seen.iter().all(|w| *w == 0.0 || w.abs() == scale), "three values");
    }
}

/// What does not fit is an error that names the pattern or the weight.
pub fn errors(device: &Device) {
    let run = |pattern: &str, granularity| {
        ternarize_weights(Plain::new(device), &[pattern], granularity, None)
            .map(|(_, names)| names)
            .unwrap_err()
    };
    let nothing = |pattern: &str| LayerError::NothingMatched { patterns: vec![pattern.into()] };
    assert_eq!(run("side.*", Granularity::Tensor), nothing("side.*"));
    assert_eq!(run("*.bias", Granularity::Tensor), nothing("*.bias"));
    let error = run("[", Granularity::Tensor);
    assert!(matches!(error, LayerError::Pattern { pattern, .. } if pattern == "["));
    let source = QuantError::Group { group: 16, d_input: 8 };
    assert_eq!(
        run("*", Granularity::Group(16)),
        LayerError::Quantization { name: "up.weight".into(), source }
    );
}
