//! Slots, on a module that the workspace does not know.

use bitnet_arch::layers::{
    Form, LayerError, Projection, RmsNormConfig, SubLn, for_each_slot, for_each_slot_mut, set_lambda, slots,
};
use bitnet_arch::quant::{Granularity, QuantError, Quantization, bit_linear};
use bitnet_arch::warmup::{reset_default_lambda, set_default_lambda};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use crate::check::{SUMMATION, assert_close_relative, values};
use crate::vectors::random;

/// A user's model: slots alone, in a `Vec`, in an `Option`, and in modules inside those; and a layer that is none.
#[derive(Module, Debug)]
pub struct Mixture {
    stem: Linear,
    first: Projection,
    experts: Vec<Expert>,
    adapter: Option<Projection>,
    gate: Option<Projection>,
    tail: Option<Expert>,
}
slots!(Mixture { first, experts, adapter, gate, tail });

/// Part of [`Mixture`].
#[derive(Module, Debug)]
struct Expert {
    maps: Vec<Projection>,
    out: Projection,
}
slots!(Expert { maps, out });

const D: usize = 16;

/// The slots of [`Mixture`], in the order of its fields; `gate` is empty.
const PATHS: [&str; 9] = [
    "first",
    "experts.0.maps.0",
    "experts.0.maps.1",
    "experts.0.out",
    "experts.1.out",
    "adapter",
    "tail.maps.0",
    "tail.maps.1",
    "tail.out",
];

impl Mixture {
    /// Freshly drawn, all slots dense.
    pub fn new(device: &Device) -> Self {
        device.seed(7);
        let linear = || LinearConfig::new(D, D).init(device);
        let slot = || Projection::from(linear());
        let expert = |n: usize| Expert { maps: (0..n).map(|_| slot()).collect(), out: slot() };
        Self {
            stem: linear(),
            first: slot(),
            experts: vec![expert(2), expert(0)],
            adapter: Some(slot()),
            gate: None,
            tail: Some(expert(2)),
        }
    }

    /// `[N, 16]` to `[N, 16]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let mut x = self.first.forward(self.stem.forward(x));
        for expert in self.experts.iter().chain(&self.tail) {
            for map in &expert.maps {
                x = map.forward(x).tanh();
            }
            x = expert.out.forward(x);
        }
        match &self.adapter {
            Some(adapter) => adapter.forward(x),
            None => x,
        }
    }

    /// All slots converted to b1.58.
    pub fn converted(device: &Device) -> Self {
        let mut model = Self::new(device);
        for_each_slot_mut(&mut model, |_, slot| assert!(slot.convert(Quantization::default()).unwrap()));
        model
    }
}

/// The λ of each slot.
pub fn lambdas(model: &Mixture) -> Vec<Option<f32>> {
    let mut lambdas = Vec::new();
    for_each_slot(model, |_, slot| lambdas.push(slot.lambda));
    lambdas
}

/// Every slot is visited once with its path, through vectors and options; λ reaches each.
pub fn visits_a_users_module(device: &Device) {
    let mut model = Mixture::new(device);
    let mut paths = Vec::new();
    for_each_slot(&model, |path, slot| {
        assert!(!slot.is_bit());
        assert_eq!((slot.d_input(), slot.d_output()), (D, D));
        paths.push(path.to_owned());
    });
    assert_eq!(paths, PATHS);
    let mut paths = Vec::new();
    for_each_slot_mut(&mut model, |path, _| paths.push(path.to_owned()));
    assert_eq!(paths, PATHS);
    assert_eq!(set_lambda(&mut model, Some(0.5)), PATHS.len());
    assert_eq!(lambdas(&model), [Some(0.5); PATHS.len()]);
    assert_eq!(set_lambda(&mut model, None), PATHS.len());
    assert_eq!(lambdas(&model), [None; PATHS.len()]);
}

/// Conversion keeps the function at λ = 0, changes it at λ = 1, and does nothing the second time.
pub fn converts_in_place(device: &Device) {
    let x = random([5, D], 30, device);
    let dense = Mixture::new(device);
    let expected = values(dense.forward(x.clone()));
    let mut model = dense.clone();
    for_each_slot_mut(&mut model, |_, slot| assert!(slot.convert(Quantization::default()).unwrap()));
    for_each_slot_mut(&mut model, |_, slot| {
        assert!(slot.is_bit());
        assert!(!slot.convert(Quantization::default()).unwrap(), "the second time nothing happens");
    });
    set_lambda(&mut model, Some(0.0));
    assert_close_relative("λ 0", &values(model.forward(x.clone())), &expected, SUMMATION);
    set_lambda(&mut model, Some(1.0));
    let quantized = values(model.forward(x.clone()));
    assert!(quantized.iter().zip(&expected).any(|(a, b)| (a - b).abs() > 1e-3), "λ 1 is another function");
    assert_eq!(values(dense.forward(x)), expected, "the model that was cloned is as it was");
}

/// A slot computes its norm, then its map, both at its own λ; it keeps sizes, bias and device through conversion.
pub fn a_slot_computes_its_form(device: &Device) {
    let linear = LinearConfig::new(8, 12).init(device);
    let (weight, bias) = (linear.weight.val().transpose(), linear.bias.as_ref().unwrap().val());
    let mut slot = Projection::from(linear);
    slot.convert(Quantization::default()).unwrap();
    assert_eq!((slot.d_input(), slot.d_output()), (8, 12));
    assert_eq!(slot.device(), *device);
    let norm = SubLn::inserted(&RmsNormConfig::new(8), device);
    slot.sub_norm = Some(norm.clone());
    let x = random([2, 3, 8], 31, device);
    for lambda in [0.0, 0.4, 1.0] {
        slot.lambda = Some(lambda);
        let normed = norm.forward(x.clone(), lambda);
        let expected =
            bit_linear(normed, weight.clone(), Some(bias.clone()), Quantization::default(), lambda);
        assert_eq!(values(slot.forward(x.clone())), values(expected), "λ {lambda}");
    }
}

/// A slot whose weight the granularity does not fit stays as it was.
pub fn refuses_a_bad_group(device: &Device) {
    let mut slot = Projection::from(LinearConfig::new(12, 4).init(device));
    let quantization = Quantization { weight: Granularity::Group(8), ..Quantization::default() };
    let error = slot.convert(quantization).unwrap_err();
    let expected = QuantError::Group { group: 8, d_input: 12 };
    assert!(matches!(error, LayerError::Quantization { source, .. } if source == expected));
    assert!(matches!(slot.form, Form::Dense(_)));
}

/// λ of a clone, and of a copy for validation, is its own.
pub fn copies_are_independent(device: &Device) {
    let mut model = Mixture::converted(&device.clone().autodiff());
    set_lambda(&mut model, Some(0.25));
    let (mut clone, mut valid) = (model.clone(), model.valid());
    assert_eq!(lambdas(&clone), [Some(0.25); PATHS.len()], "a clone begins with the same λ");
    assert_eq!(lambdas(&valid), [Some(0.25); PATHS.len()], "and so does a copy for validation");
    set_lambda(&mut clone, Some(0.5));
    set_lambda(&mut valid, None);
    assert_eq!(lambdas(&model), [Some(0.25); PATHS.len()]);
    assert_eq!(lambdas(&clone), [Some(0.5); PATHS.len()]);
    assert_eq!(lambdas(&valid), [None; PATHS.len()]);
    let x = random([5, D], 32, device);
    let output = |model: &Mixture| values(model.valid().forward(x.clone()));
    assert_ne!(output(&model), output(&clone));
}

/// A slot without a λ of its own follows the process-wide default, which is 1 unless it was set.
pub fn default_lambda(device: &Device) {
    let mut model = Mixture::converted(device);
    let x = random([5, D], 33, device);
    let mut at = |lambda| {
        set_lambda(&mut model, lambda);
        values(model.forward(x.clone()))
    };
    let own = [0.0, 0.5, 1.0].map(|lambda| at(Some(lambda)));
    assert_eq!(at(None), own[2], "the default is 1");
    set_default_lambda(0.5).unwrap();
    let halves = (at(None), at(Some(0.0)));
    reset_default_lambda();
    assert_eq!(halves.0, own[1], "the default, set");
    assert_eq!(halves.1, own[0], "a λ of its own is not touched by it");
    assert_eq!(at(None), own[2], "the default, reset");
}
