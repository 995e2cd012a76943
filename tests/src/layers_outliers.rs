//! Slots that treat outliers of their input apart.

use bitnet_arch::layers::{
    Form, LayerError, LowRank, LowRankKind, Outliers, Projection, RmsNormConfig, SubLn,
};
use bitnet_arch::quant::{Granularity, QuantError, Quantization, bit_linear, hadamard};
use burn::module::{Module, Param};
use burn::nn::LinearConfig;
use burn::tensor::{Device, Tensor};

use crate::check::{SUMMATION, VECTOR, assert_close, assert_close_relative, values};
use crate::vectors::random;

const D_INPUT: usize = 20;
const D_OUTPUT: usize = 12;
/// Columns that the salient slots keep.
const COLUMNS: [usize; 3] = [0, 7, 19];

fn dense(device: &Device) -> Projection {
    let linear = LinearConfig::new(D_INPUT, D_OUTPUT).init(device);
    device.seed(80);
    // Drawn here, in this order: parameters are allocated when they are first used.
    let (_, _) = (linear.weight.val(), linear.bias.as_ref().map(Param::val));
    linear.into()
}

/// A slot with a Hadamard matrix and one with salient columns, both dense.
fn slots(device: &Device) -> [Projection; 2] {
    let (mut rotated, mut salient) = (dense(device), dense(device));
    assert!(rotated.rotate().unwrap() && salient.keep_salient(&COLUMNS).unwrap());
    [rotated, salient]
}

fn converted(mut slot: Projection) -> Projection {
    assert!(slot.convert(Quantization::default()).unwrap());
    slot
}

/// Columns of a tensor's last axis.
fn pick<const D: usize>(x: &Tensor<D>, columns: impl Iterator<Item = usize>) -> Tensor<D> {
    Tensor::cat(columns.map(|column| x.clone().narrow(D - 1, column, 1)).collect(), D - 1)
}

fn rest() -> impl Iterator<Item = usize> {
    (0..D_INPUT).filter(|column| !COLUMNS.contains(column))
}

/// The acceptance vectors; lengths and products are kept at any width, and a second turn undoes the first.
pub fn hadamard_matrix(device: &Device) {
    let turn = |values_in: &[f32]| values(hadamard(Tensor::<1>::from_data(values_in, device)));
    assert_close("w", &turn(&[1.0, 2.0, 3.0]), &[3.0, 1.0, 0.0, -2.0], VECTOR);
    assert_close("x", &turn(&[1.0, 1.0, 1.0]), &[1.5, 0.5, 0.5, -0.5], VECTOR);
    for (d, n) in [(1, 1), (2, 2), (3, 4), (8, 8), (20, 32), (96, 128), (576, 1024)] {
        let (x, w) = (random::<3>([2, 3, d], 81, device), random::<2>([5, d], 82, device));
        let (turned_x, turned_w) = (hadamard(x.clone()), hadamard(w.clone()));
        assert_eq!((turned_x.dims(), turned_w.dims()), ([2, 3, n], [5, n]));
        let product = |x: Tensor<3>, w: Tensor<2>| values(x.matmul(w.transpose().unsqueeze()));
        let what = format!("width {d}");
        assert_close_relative(&what, &product(turned_x.clone(), turned_w), &product(x.clone(), w), SUMMATION);
        assert_close_relative(&what, &values(hadamard(turned_x).narrow(2, 0, d)), &values(x), SUMMATION);
    }
    // Sylvester's order: row 1 alternates, row 2 changes sign every other time.
    assert_eq!(turn(&[0.0, 1.0, 0.0, 0.0]), [0.5, -0.5, 0.5, -0.5]);
    assert_eq!(turn(&[0.0, 0.0, 1.0, 0.0]), [0.5, 0.5, -0.5, -0.5]);
}

/// Dense, and at λ = 0, such a slot computes what it did before; sizes stay.
pub fn the_function_is_kept(device: &Device) {
    let x = random::<3>([2, 5, D_INPUT], 83, device);
    let expected = values(dense(device).forward(x.clone()));
    for slot in slots(device) {
        assert_eq!((slot.d_input(), slot.d_output()), (D_INPUT, D_OUTPUT));
        assert_close_relative("dense", &values(slot.forward(x.clone())), &expected, SUMMATION);
        let mut bit = converted(slot.clone());
        assert_eq!((bit.d_input(), bit.d_output()), (D_INPUT, D_OUTPUT));
        bit.lambda = Some(0.0);
        assert_close_relative("λ 0", &values(bit.forward(x.clone())), &expected, SUMMATION);
        assert!(!bit.rotate().unwrap() && !bit.keep_salient(&[1]).unwrap(), "once is enough");
    }
    // The other order: first ternary, then treated.
    for (treat, expected) in
        [(Projection::rotate as fn(&mut Projection) -> _, 0), (|s| s.keep_salient(&COLUMNS), 1)]
    {
        let mut slot = converted(dense(device));
        assert!(treat(&mut slot).unwrap());
        let expected = converted(slots(device)[expected].clone());
        assert_eq!(values(slot.forward(x.clone())), values(expected.forward(x.clone())));
    }
}

/// At λ = 1 the turned weight meets the turned input; or the rest is a layer of its own beside the exact columns. Both come
/// after the sub-norm.
pub fn quantized_apart(device: &Device) {
    let norm = SubLn::native(&RmsNormConfig::new(D_INPUT), device);
    let x = random::<2>([5, D_INPUT], 84, device);
    let normed = norm.forward(x.clone(), 1.0);
    let start = dense(device);
    let (weight, bias) = (start.latent_weight().unwrap(), start.bias().unwrap().val());
    let layer = |x: Tensor<2>, weight: Tensor<2>, lambda| {
        bit_linear(x, weight, Some(bias.clone()), Quantization::default(), lambda)
    };
    for lambda in [0.4, 1.0] {
        let [rotated, salient] = slots(device).map(|slot| {
            let mut slot = converted(slot);
            (slot.lambda, slot.sub_norm) = (Some(lambda), Some(norm.clone()));
            values(slot.forward(x.clone()))
        });
        let expected = layer(hadamard(normed.clone()), hadamard(weight.clone()), lambda);
        assert_close_relative("Hadamard", &rotated, &values(expected), SUMMATION);
        let exact = pick(&normed, COLUMNS.into_iter()).matmul(pick(&weight, COLUMNS.into_iter()).transpose());
        let expected = layer(pick(&normed, rest()), pick(&weight, rest()), lambda) + exact;
        assert_close_relative("salient", &salient, &values(expected), SUMMATION);
    }
}

/// A large input leaves the others their codes.
pub fn outliers_cost_less(device: &Device) {
    let mut large = vec![1.0; D_INPUT];
    large[7] = 200.0;
    let x =
        random::<2>([64, D_INPUT], 85, device) * Tensor::<1>::from_data(large.as_slice(), device).unsqueeze();
    let error = |slot: Projection, x: &Tensor<2>| {
        let left = slot.operand(x.clone()) - slot.quantized_operand(x.clone());
        values(left).iter().map(|e| f64::from(e * e)).sum::<f64>()
    };
    let plain = error(converted(dense(device)), &x);
    for slot in slots(device).map(converted) {
        let apart = error(slot, &x);
        assert!(apart < plain / 2.0, "{apart} against {plain}");
    }
}

/// Packing and corrections keep the treatment; what the slot multiplies is what its forward computes with.
pub fn other_forms_keep_it(device: &Device) {
    let x = random::<2>([5, D_INPUT], 86, device);
    for slot in slots(device) {
        let bit = converted(slot);
        let mut packed = bit.clone();
        assert!(packed.pack().unwrap());
        assert!(matches!(packed.form, Form::Packed(_)) && packed.outliers.is_some());
        let expected = values(bit.forward(x.clone()));
        assert_close_relative("packed", &values(packed.forward(x.clone())), &expected, SUMMATION);
        for mut slot in [bit, packed] {
            let product = slot
                .quantized_operand(x.clone())
                .matmul(slot.quantized_operand_weight().unwrap().transpose());
            let product = product + slot.bias().unwrap().val().unsqueeze();
            assert_close_relative("operands", &values(product.clone()), &expected, SUMMATION);
            // As a map of the input it is the same, except for what the input's rounding costs.
            let rounding = slot.quantized_operand(x.clone()) - slot.operand(x.clone());
            let rounding = rounding.matmul(slot.quantized_operand_weight().unwrap().transpose());
            let of_input = x.clone().matmul(slot.quantized_weight().unwrap().transpose());
            let of_input = of_input + slot.bias().unwrap().val().unsqueeze() + rounding;
            assert_close_relative("of the input", &values(of_input), &expected, SUMMATION);
            let (u, v) = (random([D_OUTPUT, 2], 87, device), random([D_INPUT, 2], 88, device));
            slot.set_low_rank(LowRank::new(u.clone(), v.clone(), LowRankKind::Correction).unwrap()).unwrap();
            let corrected = product + x.clone().matmul(v).matmul(u.transpose());
            assert_close_relative(
                "corrected",
                &values(slot.forward(x.clone())),
                &values(corrected),
                SUMMATION,
            );
        }
    }
}

/// Weights change where they are: the operand's weight, with what is salient in its place.
pub fn weights_can_be_changed(device: &Device) {
    for slot in [dense(device)].into_iter().chain(slots(device)) {
        for mut slot in [slot.clone(), converted(slot)] {
            let change = random::<2>([D_OUTPUT, D_INPUT], 89, device);
            let expected = slot.latent_weight().unwrap() + change.clone();
            let change = slot.to_operand_weight(change);
            slot.update_operand_weight(|weight| weight + change).unwrap();
            assert_close_relative(
                "weight",
                &values(slot.latent_weight().unwrap()),
                &values(expected),
                SUMMATION,
            );
        }
    }
    let mut packed = converted(dense(device));
    assert!(packed.pack().unwrap());
    assert_eq!(packed.update_operand_weight(|weight| weight).unwrap_err(), LayerError::NoLatentWeight);
    assert!(packed.latent_weight().is_none());
}

/// Gradients reach input, weight and salient columns, as autodiff finds them in the formula written out.
pub fn gradients(device: &Device) {
    let device = device.clone().autodiff();
    let leaf = || random::<2>([5, D_INPUT], 90, &device).require_grad();
    let g = random([5, D_OUTPUT], 91, &device);
    let [rotated, salient] = slots(&device.clone().inner()).map(|slot| converted(slot).train());
    let weight_of = |slot: &Projection| match &slot.form {
        Form::Bit(linear) => linear.weight.val(),
        form => panic!("{}", form.name()),
    };

    let x = leaf();
    let grads = (rotated.forward(x.clone()) * g.clone()).sum().backward();
    let (found_x, found_w) = (x.grad(&grads).unwrap(), weight_of(&rotated).grad(&grads).unwrap());
    let (x, w) = (leaf(), weight_of(&rotated).detach().require_grad());
    let y = bit_linear(hadamard(x.clone()), w.clone(), None, Quantization::default(), 1.0);
    let grads = (y * g.clone()).sum().backward();
    assert_close_relative("Hadamard dX", &values(found_x), &values(x.grad(&grads).unwrap()), SUMMATION);
    assert_close_relative("Hadamard dW", &values(found_w), &values(w.grad(&grads).unwrap()), SUMMATION);

    let x = leaf();
    let grads = (salient.forward(x.clone()) * g.clone()).sum().backward();
    let Some(Outliers::Salient(kept)) = &salient.outliers else { panic!() };
    assert_eq!(kept.columns(), COLUMNS);
    let exact = x.clone().inner();
    let expected = g.clone().inner().transpose().matmul(pick(&exact, COLUMNS.into_iter()));
    assert_close_relative(
        "salient dW",
        &values(kept.weight.val().grad(&grads).unwrap()),
        &values(expected),
        SUMMATION,
    );
    let dx = x.grad(&grads).unwrap();
    let expected = g.clone().inner().matmul(kept.weight.val().inner());
    assert_close_relative(
        "salient dX",
        &values(pick(&dx, COLUMNS.into_iter())),
        &values(expected),
        SUMMATION,
    );
    let (x, w) =
        (pick(&exact, rest()).autodiff().require_grad(), weight_of(&salient).detach().require_grad());
    let y = bit_linear(x.clone(), w.clone(), None, Quantization::default(), 1.0);
    let rest_grads = (y * g).sum().backward();
    assert_close_relative(
        "rest dX",
        &values(pick(&dx, rest())),
        &values(x.grad(&rest_grads).unwrap()),
        SUMMATION,
    );
    let found = weight_of(&salient).grad(&grads).unwrap();
    assert_close_relative("rest dW", &values(found), &values(w.grad(&rest_grads).unwrap()), SUMMATION);
}

/// Columns that are not there, groups that no longer fit, and codes.
pub fn refuses(device: &Device) {
    for columns in [vec![], vec![3, 3], vec![5, 2], vec![D_INPUT], (0..D_INPUT).collect()] {
        let mut slot = dense(device);
        let error = slot.keep_salient(&columns).unwrap_err();
        assert_eq!(error, LayerError::Columns { found: columns, d_input: D_INPUT });
        assert!(slot.outliers.is_none());
    }
    let groups = Quantization { weight: Granularity::Group(4), ..Quantization::default() };
    let mut slot = dense(device);
    slot.convert(groups).unwrap();
    let error = slot.keep_salient(&[3]).unwrap_err();
    let expected = QuantError::Group { group: 4, d_input: D_INPUT - 1 };
    assert!(matches!(&error, LayerError::Quantization { source, .. } if *source == expected), "{error}");
    assert!(slot.outliers.is_none() && slot.form.d_input() == D_INPUT, "the slot is unchanged");
    assert!(slot.rotate().unwrap(), "32 inputs take groups of 4");
    let mut packed = converted(dense(device));
    assert!(packed.pack().unwrap());
    assert_eq!(packed.rotate().unwrap_err(), LayerError::NoLatentWeight);
    assert_eq!(packed.keep_salient(&[3]).unwrap_err(), LayerError::NoLatentWeight);
}
