//! The low-rank map of a slot, in every form of the slot.

use bitnet_arch::layers::{
    BitLinear, BitLinearConfig, InputHook, LayerError, LowRank, LowRankKind, Projection, RmsNormConfig, SubLn,
};
use bitnet_arch::quant::{GroupQuant, QuantError, Quantization, fake_quantize_groups};
use burn::module::{Module, Param};
use burn::nn::LinearConfig;
use burn::tensor::{DType, Device, Tensor};
use std::sync::{Arc, Mutex};

use crate::check::{SUMMATION, VECTOR, assert_close, assert_close_relative, divides_exactly, values};
use crate::vectors::random;

const LORA: LowRankKind = LowRankKind::Lora { alpha: 6.0 };

fn factors(rank: usize, device: &Device) -> (Tensor<2>, Tensor<2>) {
    (random([12, rank], 40, device), random([8, rank], 41, device))
}

fn low_rank(kind: LowRankKind, device: &Device) -> LowRank {
    let (u, v) = factors(3, device);
    LowRank::new(u, v, kind).unwrap()
}

/// A slot of 8 inputs and 12 outputs in each form, all of one weight.
fn forms(device: &Device) -> [Projection; 3] {
    device.seed(42);
    let dense = Projection::from(LinearConfig::new(8, 12).init(device));
    let mut bit = dense.clone();
    assert!(bit.convert(Quantization::default()).unwrap());
    let mut packed = bit.clone();
    assert!(packed.pack().unwrap());
    [dense, bit, packed]
}

/// `U(Vᵀx)` on the unquantized input stands beside every form, at the strength of its kind.
pub fn adds_to_every_form(device: &Device) {
    let x = random([2, 5, 8], 43, device);
    let (u, v) = factors(3, device);
    let correction = x.clone().matmul(v.unsqueeze()).matmul(u.transpose().unsqueeze());
    for slot in forms(device) {
        for (kind, follows_lambda) in [(LowRankKind::Correction, true), (LORA, false)] {
            for lambda in [0.0, 0.4, 1.0] {
                let mut slot = slot.clone();
                slot.lambda = Some(lambda);
                let base = slot.forward(x.clone());
                slot.set_low_rank(low_rank(kind, device)).unwrap();
                // A packed slot is at λ = 1 for good. LoRA's scale is α / r = 6 / 3.
                let strength = if follows_lambda { slot.effective_lambda() } else { 2.0 };
                let expected = base + correction.clone() * strength;
                let what = format!("{} {kind:?} λ {lambda}", slot.form.name());
                let found = slot.forward(x.clone());
                assert_close_relative(&what, &values(found), &values(expected), SUMMATION);
            }
        }
    }
}

/// The correction sees what the map sees: the input after the sub-norm. So does the hook.
pub fn sees_the_normed_input(device: &Device) {
    let [_, mut slot, _] = forms(device);
    let mut config = RmsNormConfig::new(8).init(device);
    config.gain = Param::from_tensor(random([8], 44, device));
    let mut norm = SubLn::native(&RmsNormConfig::new(8), device);
    norm.norm = config;
    let x = random([3, 2, 8], 45, device);
    let normed = norm.forward(x.clone(), 1.0);
    let expected = {
        let mut slot = slot.clone();
        slot.set_low_rank(low_rank(LowRankKind::Correction, device)).unwrap();
        slot.forward(normed.clone())
    };
    slot.sub_norm = Some(norm);
    slot.set_low_rank(low_rank(LowRankKind::Correction, device)).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    slot.on_input = Some(InputHook::new(move |x| log.lock().unwrap().push(x)));
    assert_eq!(values(slot.forward(x)), values(expected));
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].dims(), [6, 8]);
    assert_eq!(values(seen[0].clone()), values(normed));
}

/// `dU = λ gᵀ(xV)`, `dV = λ xᵀ(gU)`, and `λ g U Vᵀ` on top of the map's gradient to `x`; at λ = 0 none of it.
pub fn gradients(device: &Device) {
    let device = device.clone().autodiff();
    for mut slot in forms(&device).map(|slot| slot.train()) {
        let name = slot.form.name();
        for lambda in [0.0, 0.4, 1.0] {
            slot.lambda = Some(lambda);
            slot.low_rank = None;
            let lambda = slot.effective_lambda();
            let x = || random::<2>([5, 8], 46, &device).require_grad();
            let g = random([5, 12], 47, &device);
            let dx_of = |slot: &Projection, x: Tensor<2>| {
                let grads = (slot.forward(x.clone()) * g.clone()).sum().backward();
                (x.grad(&grads).unwrap(), grads)
            };
            let (base, _) = dx_of(&slot, x());
            slot.low_rank = Some(low_rank(LowRankKind::Correction, &device));
            let (dx, grads) = dx_of(&slot, x());
            let (u, v) = factors(3, &device.clone().inner());
            let (x, g) = (x().inner(), g.clone().inner());
            let expected = base + g.clone().matmul(u.clone()).matmul(v.clone().transpose()) * lambda;
            let what = format!("{name} λ {lambda}");
            assert_close_relative(&format!("{what} dX"), &values(dx), &values(expected), SUMMATION);
            let low_rank = slot.low_rank.as_ref().unwrap();
            let (du, dv) = (low_rank.u.val().grad(&grads), low_rank.v.val().grad(&grads));
            if lambda == 0.0 {
                assert!(du.is_none() && dv.is_none(), "{what}");
                continue;
            }
            let expected = g.clone().transpose().matmul(x.clone().matmul(v)) * lambda;
            assert_close_relative(&format!("{what} dU"), &values(du.unwrap()), &values(expected), SUMMATION);
            let expected = x.transpose().matmul(g.matmul(u)) * lambda;
            assert_close_relative(&format!("{what} dV"), &values(dv.unwrap()), &values(expected), SUMMATION);
        }
    }
}

/// Gradients reach the factors though nothing else trains and nothing below the slot is tracked.
pub fn gradients_beside_frozen_weights(device: &Device) {
    let device = device.clone().autodiff();
    for slot in forms(&device) {
        let mut slot = slot.train().no_grad();
        slot.set_low_rank(low_rank(LowRankKind::Correction, &device)).unwrap();
        let y = slot.forward(random::<2>([5, 8], 48, &device));
        let grads = y.sum().backward();
        let low_rank = slot.low_rank.as_ref().unwrap();
        for (name, factor) in [("U", &low_rank.u), ("V", &low_rank.v)] {
            let grad = factor
                .val()
                .grad(&grads)
                .unwrap_or_else(|| panic!("{}: no gradient to {name}", slot.form.name()));
            assert!(values(grad).iter().any(|value| *value != 0.0));
        }
    }
}

/// The acceptance vector, ragged groups, zeros, and widths; the gradient is the identity.
pub fn quantized_factors(device: &Device) {
    let quantize = |values_in: &[f32], shape: [usize; 2], bits, group| {
        let x = Tensor::<1>::from_data(values_in, (device, DType::F32)).reshape(shape);
        values(fake_quantize_groups(x, GroupQuant::new(bits, group).unwrap()))
    };
    assert_close(
        "vector",
        &quantize(&[0.7, -0.33, 0.1, -0.06], [1, 4], 4, 4),
        &[0.7, -0.3, 0.1, -0.1],
        VECTOR,
    );
    // Groups of 4 run across rows: [1, .55, .2, −.1] and [.02, 0], the second filled up with zeros.
    let found = quantize(&[1.0, 0.55, 0.2, -0.1, 0.02, 0.0], [3, 2], 4, 4);
    let seventh = 1.0 / 7.0;
    assert_close("ragged", &found, &[1.0, 4.0 * seventh, seventh, -seventh, 0.02, 0.0], VECTOR);
    assert_eq!(quantize(&[0.0; 6], [2, 3], 8, 4), [0.0; 6]);
    let x = random::<2>([7, 5], 49, device);
    for (bits, steps) in [(4, 7.0), (8, 127.0)] {
        let found = values(fake_quantize_groups(x.clone(), GroupQuant::new(bits, 32).unwrap()));
        let expected: Vec<f32> = values(x.clone())
            .chunks(32)
            .flat_map(|group| {
                let scale = group.iter().fold(0.0_f32, |max, v| max.max(v.abs())) / steps;
                group.iter().map(move |v| (v / scale).round_ties_even() * scale).collect::<Vec<_>>()
            })
            .collect();
        if divides_exactly(device) {
            assert_eq!(found, expected, "{bits} bits");
        } else {
            // One code may fall the other way of a tie.
            assert_close("quantized", &found, &expected, 2.0 / steps + VECTOR);
        }
    }
    let x = random::<2>([7, 5], 49, &device.clone().autodiff()).require_grad();
    let y = fake_quantize_groups(x.clone(), GroupQuant::new(4, 32).unwrap());
    let g = random([7, 5], 50, &device.clone().autodiff());
    let grads = (y * g.clone()).sum().backward();
    assert_eq!(values(x.grad(&grads).unwrap()), values(g));
    assert_eq!(GroupQuant::new(5, 32).unwrap_err(), QuantError::GroupBits { found: 5 });
    assert_eq!(GroupQuant::new(4, 0).unwrap_err(), QuantError::EmptyGroup);
}

/// QLRC computes with quantized factors, and its gradients reach the latent ones as if they were not quantized.
pub fn qlrc_trains_straight_through(device: &Device) {
    let device = device.clone().autodiff();
    let quant = GroupQuant::new(4, 32).unwrap();
    let [_, slot, _] = forms(&device);
    let x = random::<2>([5, 8], 51, &device);
    let run = |kind, u: Tensor<2>, v: Tensor<2>| {
        let mut slot = slot.clone();
        slot.set_low_rank(LowRank::new(u, v, kind).unwrap()).unwrap();
        let y = slot.forward(x.clone());
        let grads = (y.clone() * y.clone()).sum().backward();
        let low_rank = slot.low_rank.unwrap();
        let grad = |param: &Param<Tensor<2>>| values(param.val().grad(&grads).unwrap());
        (values(y), grad(&low_rank.u), grad(&low_rank.v))
    };
    let (u, v) = factors(3, &device);
    let found = run(LowRankKind::QuantizedCorrection(quant), u.clone(), v.clone());
    let quantized = |factor: &Tensor<2>| fake_quantize_groups(factor.clone().inner(), quant).autodiff();
    let expected = run(LowRankKind::Correction, quantized(&u), quantized(&v));
    assert_eq!(found, expected);

    // One factor frozen: the other's gradient stays.
    let mut low_rank = LowRank::new(u, v, LowRankKind::QuantizedCorrection(quant)).unwrap();
    low_rank.u = low_rank.u.set_require_grad(false);
    let mut frozen = slot.clone();
    frozen.set_low_rank(low_rank).unwrap();
    let y = frozen.forward(x.clone());
    let grads = (y.clone() * y).sum().backward();
    let low_rank = frozen.low_rank.unwrap();
    assert!(low_rank.u.val().grad(&grads).is_none());
    assert_eq!(values(low_rank.v.val().grad(&grads).unwrap()), expected.2);
}

/// Conversions between kinds keep the output at λ = 1, except for the rounding of factors that become quantized.
pub fn kinds_convert(device: &Device) {
    let quant = GroupQuant::new(8, 16).unwrap();
    let x = random::<2>([5, 8], 52, device);
    let zero = Tensor::<2>::zeros([5, 12], device);
    let at = |low_rank: &LowRank, lambda| values(low_rank.add_to(zero.clone(), x.clone(), lambda));
    for kind in [LowRankKind::Correction, LowRankKind::QuantizedCorrection(quant), LORA] {
        let start = low_rank(kind, device);
        let expected = at(&start, 1.0);
        let correction = start.clone().into_correction();
        assert_eq!(correction.kind(), LowRankKind::Correction);
        assert_close_relative("as LRC", &at(&correction, 1.0), &expected, SUMMATION);
        assert_close_relative(
            "as LRC, λ",
            &at(&correction, 0.5),
            &expected.iter().map(|y| y / 2.0).collect::<Vec<_>>(),
            SUMMATION,
        );
        let lora = start.clone().into_lora();
        assert!(matches!(lora.kind(), LowRankKind::Lora { .. }));
        for lambda in [0.0, 1.0] {
            assert_close_relative("as LoRA", &at(&lora, lambda), &expected, SUMMATION);
        }
        let quantized = start.into_quantized_correction(quant);
        assert_eq!(quantized.kind(), LowRankKind::QuantizedCorrection(quant));
        // 8 bits: 1/254 of the largest value of a group, in each of 3 · 8 products.
        assert_close_relative("as QLRC", &at(&quantized, 1.0), &expected, 0.05);
    }
    let mut frozen = low_rank(LORA, &device.clone().autodiff());
    frozen.u = frozen.u.set_require_grad(false);
    let converted = frozen.into_correction();
    assert!(
        !converted.u.val().is_require_grad() && converted.v.val().is_require_grad(),
        "trainability is kept"
    );
}

/// LoRA drops inputs in training alone, and scales up what is left.
pub fn lora_drops_inputs_in_training(device: &Device) {
    let (u, _) = factors(1, device);
    // V is the identity's first column: the map's input is x₀ alone, dropped or doubled.
    let v = Tensor::<2>::from_data([[1.0], [0.0], [0.0], [0.0], [0.0], [0.0], [0.0], [0.0]], device);
    let lora = LowRank::new(u, v, LowRankKind::Lora { alpha: 1.0 }).unwrap().with_dropout(0.5).unwrap();
    let output = |lora: &LowRank, device: &Device| {
        let (x, zero) = (Tensor::<2>::ones([400, 8], device), Tensor::zeros([400, 12], device));
        values(lora.add_to(zero, x, 1.0))
    };
    let whole = output(&lora, device);
    let row = &whole[..12];
    assert!(whole.chunks(12).all(|token| token == row), "nothing is dropped in evaluation");
    let training = device.clone().autodiff();
    training.seed(53);
    let trained = output(&lora.clone().train(), &training);
    let doubled: Vec<f32> = row.iter().map(|y| y * 2.0).collect();
    let dropped = trained.chunks(12).filter(|token| token.iter().all(|y| *y == 0.0)).count();
    assert!(trained.chunks(12).all(|token| token.iter().all(|y| *y == 0.0) || token == doubled));
    assert!((100..300).contains(&dropped), "{dropped} of 400 dropped");
    assert_eq!(output(&lora.train().valid(), device), whole);
}

/// Ranks, shapes, α and dropout that cannot be.
pub fn refuses_what_does_not_fit(device: &Device) {
    let zeros = |rows, rank| Tensor::<2>::zeros([rows, rank], device);
    let new = |u, v, kind| LowRank::new(u, v, kind).unwrap_err();
    let kind = LowRankKind::Correction;
    assert_eq!(new(zeros(12, 9), zeros(8, 9), kind), LayerError::Rank { found: 9, limit: 8, shape: [12, 8] });
    assert_eq!(
        LowRank::kaiming([12, 8], 0, kind, device).unwrap_err(),
        LayerError::Rank { found: 0, limit: 8, shape: [12, 8] }
    );
    assert_eq!(new(zeros(12, 3), zeros(8, 2), kind), LayerError::Factors { u: [12, 3], v: [8, 2] });
    for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = new(zeros(12, 3), zeros(8, 3), LowRankKind::Lora { alpha });
        assert!(matches!(error, LayerError::Alpha { .. }), "{alpha}: {error}");
    }
    for dropout in [-0.1, 1.0, f64::NAN] {
        let error = low_rank(LORA, device).with_dropout(dropout).unwrap_err();
        assert!(matches!(error, LayerError::Dropout { .. }), "{dropout}: {error}");
    }
    let error = low_rank(kind, device).with_dropout(0.1).unwrap_err();
    assert!(matches!(error, LayerError::Dropout { kind: LowRankKind::Correction, .. }), "{error}");
    low_rank(kind, device).with_dropout(0.0).unwrap();
    let [mut slot, ..] = forms(device);
    let other = LowRank::new(zeros(8, 2), zeros(12, 2), kind).unwrap();
    let error = slot.set_low_rank(other).unwrap_err();
    assert_eq!(error, LayerError::LowRankShape { found: [8, 12], expected: [12, 8] });
    assert!(slot.low_rank.is_none());
}

/// A BitNet layer with a weight of one's own.
pub fn bit_linear(weight: Tensor<2>) -> BitLinear {
    let [d_output, d_input] = weight.dims();
    let mut layer = BitLinearConfig::new(d_input, d_output).init(&weight.device()).unwrap();
    layer.weight = Param::from_tensor(weight);
    layer
}

/// What a slot multiplies at λ = 1, taken apart, is what its forward computes with.
pub fn operands_are_those_of_the_product(device: &Device) {
    let x = random::<2>([5, 8], 54, device);
    for slot in forms(device) {
        let weight = slot.quantized_operand_weight().unwrap();
        assert_eq!(values(weight.clone()), values(slot.quantized_weight().unwrap()));
        let bias = slot.bias().unwrap().val();
        let expected = slot.quantized_operand(x.clone()).matmul(weight.transpose()) + bias.unsqueeze();
        assert_close_relative(
            slot.form.name(),
            &values(slot.forward(x.clone())),
            &values(expected),
            SUMMATION,
        );
    }
}
