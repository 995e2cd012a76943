//! What slots see on calibration data, and gains of sub-norms made from it.

use bitnet_arch::convert::{ConvertError, Placement, Policy, SubNormGain, convert, convert_calibrated};
use bitnet_arch::layers::{Projection, RmsNormConfig, SubLn, for_each_slot, for_each_slot_mut, set_lambda};
use bitnet_arch::lrc::{Activations, LrcError, activations, calibrate_gains};
use burn::tensor::{Device, Tensor};

use crate::check::{assert_close, values};
use crate::layers_low_rank::bit_linear;
use crate::lrc_calibrate::{dense_small_checkpoint, token_batches};
use crate::one_slot::OneSlot;
use crate::vectors::random;

/// Two tokens of 50 inputs, all ±1 but one 20, whose token has a root mean square of √(449/50) = 3.0; and a token of zeros.
fn inputs(device: &Device) -> Tensor<3> {
    let mut tokens = vec![1.0_f32; 100];
    tokens[60] = -20.0;
    tokens[3] = -1.0;
    tokens.extend([0.0; 50]);
    Tensor::<1>::from_data(tokens.as_slice(), device).reshape([1, 3, 50])
}

fn slot(device: &Device) -> Projection {
    Projection::from(bit_linear(random([4, 50], 90, device)))
}

/// Sizes and outliers, over batches.
pub fn sizes(device: &Device) {
    let model = OneSlot::new(&slot(device));
    let small = Tensor::<3>::ones([1, 1, 50], device) * 0.5;
    let found = activations(&model, &[inputs(device), small]).unwrap();
    let [(path, Activations { absmax, rms, outliers })] = &found[..] else { panic!("{found:?}") };
    assert_eq!((path.as_str(), *absmax), ("blocks.0.slot", 20.0));
    let expected_rms = ((99.0 + 400.0 + 50.0 * 0.25) / 200.0_f64).sqrt();
    assert!((rms - expected_rms).abs() < 1e-6, "{rms} {expected_rms}");
    // 20 is 6.7 times its token's root mean square; nothing else is an outlier, zeros are none.
    assert!((outliers - 1.0 / 200.0).abs() < 1e-9, "{outliers}");
    assert!(matches!(activations(&model, &[]), Err(LrcError::NoData)));
    let error = activations(&model, &[inputs(device) * f32::NAN]).unwrap_err();
    assert!(matches!(error, LrcError::NotFinite { .. }), "{error}");
}

/// The gain is the root mean square of what enters, the gain's offset included; a slot keeps its λ, and others their norms.
pub fn gains(device: &Device) {
    for offset in [0.0, 1.0] {
        let mut slot = slot(device);
        let norm = RmsNormConfig::new(50).with_gain_offset(offset);
        slot.sub_norm = Some(SubLn::inserted(&norm, device));
        slot.lambda = Some(0.75);
        let (model, found) = calibrate_gains(OneSlot::new(&slot), &[inputs(device)], |_| true).unwrap();
        let rms = (499.0 / 150.0_f64).sqrt();
        assert_eq!(found.len(), 1);
        assert!(found[0].0 == "blocks.0.slot" && (found[0].1 - rms).abs() < 1e-6, "{found:?}");
        let slot = model.slot();
        assert_eq!(slot.lambda, Some(0.75));
        let gain = values(slot.sub_norm.as_ref().unwrap().norm.gain.val());
        assert_close("gain", &gain, &[(rms - offset) as f32; 50], 1e-6);

        let (_, found) = calibrate_gains(OneSlot::new(slot), &[inputs(device)], |_| false).unwrap();
        assert!(found.is_empty());
        let zeros = Tensor::zeros([1, 2, 50], device);
        let error = calibrate_gains(OneSlot::new(slot), &[zeros], |_| true).map(|_| ()).unwrap_err();
        assert!(matches!(error, LrcError::Unseen { .. }), "{error}");
        let mut packed = slot.clone();
        packed.lambda = Some(1.0);
        packed.pack().unwrap();
        let error = calibrate_gains(OneSlot::new(&packed), &[inputs(device)], |_| true).map(|_| ());
        assert!(matches!(error, Err(LrcError::NoLatentWeight { .. })));
    }
    let mut native = slot(device);
    native.sub_norm = Some(SubLn::native(&RmsNormConfig::new(50), device));
    let (model, found) = calibrate_gains(OneSlot::new(&native), &[inputs(device)], |_| true).unwrap();
    assert!(found.is_empty());
    assert_eq!(values(model.slot().sub_norm.as_ref().unwrap().norm.gain.val()), [1.0; 50]);
}

/// As part of a conversion: without quantization the model is closer to the dense one at λ = 1 than with gains of one; at
/// λ = 0 it is the dense one; a second conversion leaves gains that were there.
pub fn conversion(device: &Device) {
    let dense = dense_small_checkpoint(device);
    let batches = token_batches(&dense.model, 2);
    let logits = |model: &bitnet_arch::model::CausalLm, lambda: f32| {
        let mut model = model.clone();
        set_lambda(&mut model, Some(lambda));
        model.forward(batches[0].clone())
    };
    let expected = logits(&dense.model, 0.0);
    let calibrated =
        Policy { sub_norm: Placement::All, sub_norm_gain: SubNormGain::Calibrated, ..Policy::default() };
    assert!(matches!(convert(dense.clone(), &calibrated), Err(ConvertError::NeedsData)));
    let distance = |policy: &Policy| {
        let (converted, _) = convert_calibrated(dense.clone(), policy, &batches).unwrap();
        assert_close("λ 0", &values(logits(&converted.model, 0.0)), &values(expected.clone()), 1e-4);
        let mut model = converted.model;
        // The norms alone, without the rounding of weights and activations.
        for_each_slot_mut(&mut model, |_, slot| {
            let weight = slot.latent_weight().unwrap();
            let mut linear = burn::nn::LinearConfig::new(slot.d_input(), slot.d_output())
                .with_bias(false)
                .init(&slot.device());
            linear.weight = burn::module::Param::from_tensor(weight.transpose());
            slot.form = bitnet_arch::layers::Form::Dense(linear);
        });
        let difference = logits(&model, 1.0) - expected.clone();
        values(difference).into_iter().map(|d| f64::from(d).powi(2)).sum::<f64>().sqrt()
    };
    let ones = Policy { sub_norm_gain: SubNormGain::Ones, ..calibrated.clone() };
    let (with_ones, with_gains) = (distance(&ones), distance(&calibrated));
    assert!(with_gains < 0.5 * with_ones, "{with_gains} {with_ones}");

    let half = Policy { exclude: vec!["*.layers.0.*".into()], ..ones.clone() };
    let (half, _) = convert(dense, &half).unwrap();
    let (whole, _) = convert_calibrated(half, &calibrated, &batches).unwrap();
    let mut n = [0, 0];
    for_each_slot(&whole.model, |path, slot| {
        let gain = values(slot.sub_norm.as_ref().unwrap().norm.gain.val());
        let first = path.starts_with("layers.0.");
        n[usize::from(first)] += 1;
        assert_eq!(gain.iter().all(|gain| *gain == 1.0), !first, "{path}: {gain:?}");
    });
    assert!(n[0] > 0 && n[1] > 0);
}
