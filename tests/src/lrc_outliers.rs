//! Conversions that treat outliers apart, and corrections on top of them.

use bitnet_arch::layers::{Form, Outliers, Projection, for_each_slot, for_each_slot_mut, set_lambda};
use bitnet_arch::lrc::{
    HadamardConfig, Init, LrcConfig, LrcError, OutlierAction, OutlierLeft, SalientConfig, SlotAction,
    SlotRule, add_lrc, calibrate, keep_salient, rotate, stats,
};
use bitnet_arch::quant::Quantization;
use burn::tensor::{Device, Tensor};

use crate::check::{SUMMATION, assert_close_relative, max_difference, values};
use crate::layers_low_rank::bit_linear;
use crate::layers_slots::Mixture;
use crate::lrc_calibrate::{dense_small_model, latent_weights, output_error, token_batches};
use crate::one_slot::OneSlot;
use crate::vectors::{W, X, random};

/// Scores of the acceptance vectors' columns: 1.926, 0.474, 1.110.
pub fn scores(device: &Device) {
    let slot = Projection::from(bit_linear(Tensor::from_data(W, device)));
    let batch = || Tensor::<2>::from_data(X, device).unsqueeze::<3>();
    // 1 % of 3 columns is one at least; two thirds are two.
    for (ratio, expected) in [(0.01, vec![0]), (0.67, vec![0, 2])] {
        let config = SalientConfig { ratio, ..SalientConfig::default() };
        let (model, report) = keep_salient(OneSlot::new(&slot), &[batch()], &config).unwrap();
        assert_eq!(
            report.slots,
            [("blocks.0.slot".into(), OutlierAction::Kept { columns: expected.clone() })]
        );
        let Some(Outliers::Salient(salient)) = &model.slot().outliers else { panic!() };
        assert_eq!(salient.columns(), expected);
        assert!(model.slot().on_input.is_none());
        let (_, again) = keep_salient(model, &[batch()], &config).unwrap();
        assert_eq!(again.slots[0].1, OutlierAction::Left(OutlierLeft::TreatsThem));
    }
}

/// The chosen slots are turned, once; the function is kept.
pub fn rotation(device: &Device) {
    let model = Mixture::new(device);
    let x = random::<2>([5, 16], 95, device);
    let expected = values(model.forward(x.clone()));
    let config =
        HadamardConfig { slots: vec!["*.out".into(), "first".into()], exclude: vec!["tail.*".into()] };
    let (model, report) = rotate(model, &config).unwrap();
    assert_eq!((report.n_changed(), report.slots.len()), (3, 9));
    assert_eq!(report.slots[0], ("first".into(), OutlierAction::Rotated { d_operand: 16 }));
    assert_eq!(report.slots[1].1, OutlierAction::Left(OutlierLeft::NotSelected));
    assert_eq!(report.slots[8].1, OutlierAction::Left(OutlierLeft::Excluded("tail.*".into())));
    assert_close_relative("rotated", &values(model.forward(x.clone())), &expected, 5.0 * SUMMATION);
    let (model, again) = rotate(model, &config).unwrap();
    assert_eq!((again.n_changed(), &again.slots[0].1), (0, &OutlierAction::Left(OutlierLeft::TreatsThem)));
    assert_close_relative("once", &values(model.forward(x)), &expected, 5.0 * SUMMATION);
}

/// On the small model: treated first, ternarized, corrected. Corrections keep the treatment and help every slot; so do
/// rounds; the reported error is that of the outputs.
pub fn corrections_on_treated_slots(device: &Device) {
    let dense = dense_small_model(device);
    let batches = token_batches(&dense, 2);
    let (model, turned) = rotate(dense, &HadamardConfig::default()).unwrap();
    assert_eq!(turned.n_changed(), 4, "output and down of two layers");
    let (mut model, kept) = keep_salient(model, &batches, &SalientConfig::default()).unwrap();
    assert_eq!(kept.n_changed(), 10, "the others");
    for (path, action) in &kept.slots {
        // 1 % of 256 inputs.
        assert!(
            matches!(action, OutlierAction::Kept { columns } if columns.len() == 2)
                || path.ends_with("output")
                || path.ends_with("down"),
            "{path}: {action:?}"
        );
    }
    for_each_slot_mut(&mut model, |_, slot| assert!(slot.convert(Quantization::default()).unwrap()));
    set_lambda(&mut model, Some(1.0));
    let config = |init| LrcConfig { slots: vec![SlotRule::percentage(0.1)], init, ..LrcConfig::default() };
    let weights = latent_weights(&model);
    for (init, packed) in [(Init::Calibrated { rounds: 0 }, false), (Init::Calibrated { rounds: 1 }, true)] {
        let config = LrcConfig { keep_latent: !packed, ..config(init) };
        let (corrected, calibration) = calibrate(model.clone(), &batches, &config).unwrap();
        for slot in &calibration.report.slots {
            let SlotAction::Added { error: Some(error), .. } = &slot.action else { panic!("{slot:?}") };
            assert!(error.after[0] < error.before, "{slot:?}");
        }
        for_each_slot(&corrected, |path, slot| {
            assert!(slot.outliers.is_some() && slot.low_rank.is_some(), "{path}");
            assert_eq!(matches!(slot.form, Form::Packed(_)), packed, "{path}");
        });
        assert_eq!(stats(&corrected).slots.len(), 14);
        // The first block sees the same inputs in the calibration and now.
        let mut reported = calibration.report.slots.iter();
        for (path, slot, inputs) in crate::lrc_calibrate::observed(&corrected, &batches).into_iter().take(3) {
            let SlotAction::Added { error: Some(error), .. } = &reported.next().unwrap().action else {
                panic!()
            };
            let best = error.after.iter().fold(f64::INFINITY, |min, e| min.min(*e));
            let measured = output_error(&slot, &weights[&path], &inputs);
            assert!((best / measured - 1.0).abs() < 1e-3, "{path}: {best} reported, {measured} measured");
        }
    }
    let (corrected, report) = add_lrc(model.clone(), &config(Init::SvdResidual)).unwrap();
    assert_eq!(report.n_added(), 14);
    let logits = |model: &bitnet_arch::model::CausalLm| values(model.forward(batches[0].clone()));
    assert!(max_difference(&logits(&corrected), &logits(&model)) > 1e-3);
}

/// Shares that are none, data that says nothing, and codes.
pub fn refuses(device: &Device) {
    let slot = Projection::from(bit_linear(random::<2>([6, 8], 96, device)));
    let batch = random::<3>([1, 5, 8], 97, device);
    let refused = |slot: &Projection, batches: &[Tensor<3>], config: &SalientConfig| {
        keep_salient(OneSlot::new(slot), batches, config).unwrap_err()
    };
    let config = SalientConfig::default();
    for ratio in [0.0, 1.0, f64::NAN] {
        let error = refused(&slot, std::slice::from_ref(&batch), &SalientConfig { ratio, ..config.clone() });
        assert!(matches!(error, LrcError::Ratio { .. }), "{ratio}: {error}");
    }
    assert_eq!(refused(&slot, &[], &config), LrcError::NoData);
    let zeros = Tensor::zeros([1, 5, 8], device);
    assert!(matches!(refused(&slot, &[zeros], &config), LrcError::Unseen { .. }));
    let infinite = Tensor::full([1, 5, 8], f32::INFINITY, device);
    assert!(matches!(refused(&slot, &[infinite], &config), LrcError::NotFinite { .. }));
    let globs = SalientConfig { slots: vec!["nothing".into()], ..config.clone() };
    assert!(matches!(refused(&slot, std::slice::from_ref(&batch), &globs), LrcError::Pattern { .. }));
    let mut packed = slot;
    assert!(packed.pack().unwrap());
    assert!(matches!(refused(&packed, &[batch], &config), LrcError::NoLatentWeight { .. }));
    let all = HadamardConfig { slots: vec!["*".into()], ..HadamardConfig::default() };
    let error = rotate(OneSlot::new(&packed), &all).unwrap_err();
    assert!(matches!(error, LrcError::NoLatentWeight { .. }), "{error}");
}
