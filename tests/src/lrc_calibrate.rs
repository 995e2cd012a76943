//! Corrections fitted to calibration data, on activations of the repository's small model.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bitnet_arch::convert::{Checkpoint, LoadOptions, load};
use bitnet_arch::layers::{Form, InputHook, Projection, for_each_slot, for_each_slot_mut, set_lambda};
use bitnet_arch::lrc::{
    Calibration, ErrorOf, ErrorReport, Init, LeftBecause, LrcConfig, LrcError, LrcReport, SlotAction,
    SlotRule, add_lrc, calibrate, remove,
};
use bitnet_arch::model::CausalLm;
use bitnet_arch::quant::{GroupQuant, Quantization};
use bitnet_arch::text::Tokenizer;
use burn::module::Param;
use burn::tensor::{Device, Int, Tensor};

use crate::check::values;
use crate::one_slot::OneSlot;
use crate::vectors::random;

/// Tokens of a window, windows of a batch.
const WINDOW: usize = 48;
const BATCH: usize = 4;

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The repository's small trained model, with what stands beside it.
pub fn dense_small_checkpoint(device: &Device) -> Checkpoint {
    load(repository("assets/small-model"), device, &LoadOptions::default()).unwrap()
}

/// The repository's small trained model.
pub fn dense_small_model(device: &Device) -> CausalLm {
    dense_small_checkpoint(device).model
}

/// Batches of tokens of a text that never changes.
pub fn token_batches(model: &CausalLm, n: usize) -> Vec<Tensor<2, Int>> {
    let tokenizer = Tokenizer::from_file(repository("assets/small-model/tokenizer.json")).unwrap();
    let text = std::fs::read_to_string(repository("LICENSE-APACHE")).unwrap();
    let tokens = tokenizer.encode(&text).unwrap();
    let windows: Vec<&[u32]> = tokens.chunks_exact(WINDOW).collect();
    windows.chunks_exact(BATCH).take(n).map(|batch| model.batch(batch).unwrap()).collect()
}

/// The small model ternarized without training, and four batches.
fn small_model(device: &Device) -> (CausalLm, Vec<Tensor<2, Int>>) {
    let mut model = dense_small_model(device);
    for_each_slot_mut(&mut model, |_, slot| assert!(slot.convert(Quantization::default()).unwrap()));
    set_lambda(&mut model, Some(1.0));
    let batches = token_batches(&model, 4);
    (model, batches)
}

fn calibrated(rule: SlotRule, rounds: usize) -> LrcConfig {
    LrcConfig { slots: vec![rule], init: Init::Calibrated { rounds }, ..LrcConfig::default() }
}

/// Every slot of a model with what it sees of each batch, `[1, tokens, d_input]`.
pub fn observed(model: &CausalLm, batches: &[Tensor<2, Int>]) -> Vec<(String, Projection, Vec<Tensor<3>>)> {
    let mut model = model.clone();
    let mut found = Vec::new();
    for_each_slot_mut(&mut model, |path, slot| {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        found.push((path.to_owned(), slot.clone(), seen));
        slot.on_input = Some(InputHook::new(move |x| log.lock().unwrap().push(x.unsqueeze::<3>())));
    });
    for batch in batches {
        model.forward(batch.clone());
    }
    found
        .into_iter()
        .map(|(path, slot, seen)| (path, slot, std::mem::take(&mut *seen.lock().unwrap())))
        .collect()
}

/// `‖y − W x‖ / ‖W x‖` of what a slot computes, `W` being the weight that its codes were made from.
pub fn output_error(slot: &Projection, weight: &Tensor<2>, inputs: &[Tensor<3>]) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for x in inputs {
        let expected = x.clone().matmul(weight.clone().transpose().unsqueeze());
        let squares = |tensor: Tensor<3>| values(tensor).iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        error += squares(slot.forward(x.clone()) - expected.clone());
        norm += squares(expected);
    }
    (error / norm).sqrt()
}

/// The weight that each slot's codes are made from, by path.
pub fn latent_weights(model: &CausalLm) -> BTreeMap<String, Tensor<2>> {
    let mut weights = BTreeMap::new();
    for_each_slot(model, |path, slot| {
        weights.insert(path.to_owned(), slot.latent_weight().unwrap());
    });
    weights
}

fn errors(report: &LrcReport) -> Vec<&ErrorReport> {
    let error = |action| match action {
        &SlotAction::Added { error: Some(ref error), .. } => Some(error),
        _ => None,
    };
    report.slots.iter().filter_map(|slot| error(&slot.action)).collect()
}

/// Calibrated ≤ SVD of the residual ≤ none in the error of every slot's output on the calibration data, and on average
/// over the slots on other data.
pub fn beats_the_residual_which_beats_nothing(device: &Device) {
    let (model, batches) = small_model(device);
    let slots = observed(&model, &batches);
    for rule in [SlotRule::rank(1), SlotRule::rank(4), SlotRule::percentage(0.1), SlotRule::percentage(0.3)] {
        let mut held_out_sums = [0.0; 3];
        for (path, slot, inputs) in &slots {
            let (seen, held_out) = inputs.split_at(inputs.len() / 2);
            let weight = slot.latent_weight().unwrap();
            let residual = LrcConfig { init: Init::SvdResidual, ..calibrated(rule.clone(), 0) };
            let (residual, _) = add_lrc(slot.clone(), &residual).unwrap();
            let (fitted, calibration) =
                calibrate(OneSlot::new(slot), seen, &calibrated(rule.clone(), 0)).unwrap();
            let candidates = [fitted.slot(), &residual, slot];
            let on_seen = candidates.map(|slot| output_error(slot, &weight, seen));
            assert!(on_seen.is_sorted(), "{path} {rule:?}: calibrated, residual, none {on_seen:?}");
            for (sum, slot) in held_out_sums.iter_mut().zip(candidates) {
                *sum += output_error(slot, &weight, held_out);
            }
            let error = errors(&calibration.report)[0];
            assert_eq!(error.of, ErrorOf::Output);
            // Sums in f64 and outputs in f32 are two ways to the same error.
            for (reported, measured) in [(error.before, on_seen[2]), (error.after[0], on_seen[0])] {
                assert!(
                    (reported / measured - 1.0).abs() < 1e-3,
                    "{path}: {reported} reported, {measured} measured"
                );
            }
        }
        let means = held_out_sums.map(|sum| sum / slots.len() as f64);
        println!(
            "{rule:?}: held-out error calibrated {:.4}, residual {:.4}, none {:.4}",
            means[0], means[1], means[2]
        );
        assert!(means.is_sorted(), "{rule:?}: {means:?}");
    }
}

/// Later blocks see the corrected earlier ones: the same as calibrating the first block, then the second.
pub fn goes_block_by_block(device: &Device) {
    let (model, batches) = small_model(device);
    let config = |slots: &str| calibrated(SlotRule::rank(4).on(slots), 0);
    let (whole, calibration) = calibrate(model.clone(), &batches, &config("*")).unwrap();
    assert_eq!(calibration.report.n_added(), 14);
    assert_eq!(calibration.tokens, batches.len() * BATCH * WINDOW);
    let (first, report) = calibrate(model.clone(), &batches, &config("layers.0.*")).unwrap();
    assert_eq!(report.report.n_added(), 7);
    let (second, report) = calibrate(first, &batches, &config("layers.1.*")).unwrap();
    assert_eq!(report.report.n_added(), 7);
    let factors = |model: &CausalLm| {
        let mut factors = Vec::new();
        for_each_slot(model, |_, slot| {
            let low_rank = slot.low_rank.as_ref().unwrap();
            factors.push((values(low_rank.u.val()), values(low_rank.v.val())));
            assert!(slot.on_input.is_none(), "the hooks are gone");
        });
        factors
    };
    assert!(factors(&whole) == factors(&second), "the same factors, bit by bit");
    // Hidden states of 256 in f32; sums in f64, of which `down` with 512 inputs has the largest.
    let (tokens, down, others) = (batches.len() * BATCH * WINDOW, 3 * 8 * 512 * 512, 6 * 3 * 8 * 256 * 256);
    assert_eq!(calibration.peak_bytes, 4 * tokens * 256 + down + others);

    let (again, nothing) = calibrate(whole.clone(), &batches, &config("*")).unwrap();
    assert_eq!(nothing.report.n_added(), 0);
    let left = |action: &SlotAction| *action == SlotAction::Left(LeftBecause::HasOne);
    assert!(nothing.report.slots.iter().all(|slot| left(&slot.action)));
    assert!(factors(&again) == factors(&whole), "a second calibration changes nothing");
}

/// A round fits the ternary weight to what the correction leaves; the last one that helped is kept.
pub fn rounds_fit_the_weight_too(device: &Device) {
    let (model, batches) = small_model(device);
    let mut improved = 0;
    for (path, slot, inputs) in &observed(&model, &batches) {
        let weight = slot.latent_weight().unwrap();
        let config = calibrated(SlotRule::percentage(0.1), 3);
        let (fitted, Calibration { report, .. }) = calibrate(OneSlot::new(slot), inputs, &config).unwrap();
        let error = errors(&report)[0];
        assert!((2..=4).contains(&error.after.len()), "{path}: {error:?}");
        let kept = error
            .after
            .iter()
            .take_while(|e| **e <= error.after[0])
            .fold(f64::INFINITY, |min, e| min.min(*e));
        let measured = output_error(fitted.slot(), &weight, inputs);
        assert!((kept / measured - 1.0).abs() < 1e-3, "{path}: {kept} reported, {measured} measured");
        let changed = values(fitted.slot().latent_weight().unwrap()) != values(weight);
        assert_eq!(changed, error.after[1] < error.after[0], "{path}: {error:?}");
        improved += usize::from(changed);
    }
    println!("the first round helped in {improved} of 14 slots");
    assert!(improved > 0);
}

/// QLRC, packed slots, and rules reach calibration as they reach `add_lrc`; the output error says what they cost.
pub fn follows_the_config(device: &Device) {
    let (model, batches) = small_model(device);
    let plain = calibrated(SlotRule::default(), 0);
    let run = |config: &LrcConfig| calibrate(model.clone(), &batches[..1], config).unwrap();
    let (_, expected) = run(&plain);
    let (_, eight) = run(&LrcConfig { factors: Some(GroupQuant::new(8, 32).unwrap()), ..plain.clone() });
    let (_, four) = run(&LrcConfig { factors: Some(GroupQuant::new(4, 32).unwrap()), ..plain.clone() });
    let first = |calibration: &Calibration| errors(&calibration.report)[0].after[0];
    assert!(first(&expected) < first(&eight) && first(&eight) < first(&four), "fewer bits, more error");
    let (packed, report) =
        run(&LrcConfig { keep_latent: false, exclude: vec!["*.down".into()], ..plain.clone() });
    assert_eq!(report.report.n_added(), 12);
    for_each_slot(&packed, |path, slot| {
        let is_packed = matches!(slot.form, Form::Packed(_));
        assert_eq!((is_packed, slot.low_rank.is_some()), (!path.ends_with("down"), !path.ends_with("down")));
    });
    let (bare, _) = remove(packed);
    let error = calibrate(bare, &batches[..1], &plain).unwrap_err();
    assert!(matches!(error, LrcError::NoLatentWeight { .. }), "{error}");
}

/// No data, data that is not finite, λ below 1, and configs for something else.
pub fn refuses(device: &Device) {
    let (model, batches) = small_model(device);
    let plain = calibrated(SlotRule::rank(2), 0);
    let refused = |model: &CausalLm, batches: &[Tensor<2, Int>], config: &LrcConfig| {
        calibrate(model.clone(), batches, config).unwrap_err()
    };
    assert_eq!(refused(&model, &[], &plain), LrcError::NoData);
    let kaiming = LrcConfig { init: Init::Kaiming, ..plain.clone() };
    assert!(matches!(refused(&model, &batches, &kaiming), LrcError::Init { found: "kaiming", .. }));
    let large = calibrated(SlotRule::rank(257), 0);
    assert!(matches!(refused(&model, &batches, &large), LrcError::Layer { .. }));
    let mut halfway = model.clone();
    set_lambda(&mut halfway, Some(0.5));
    let error = refused(&halfway, &batches, &plain);
    assert!(
        matches!(&error, LrcError::Lambda { slot, found: 0.5 } if slot == "layers.0.attention.query"),
        "{error}"
    );
    let mut damaged = model;
    damaged.embedding.weight = Param::from_tensor(damaged.embedding.weight.val() * f32::INFINITY);
    let error = refused(&damaged, &batches, &plain);
    assert!(
        matches!(&error, LrcError::NotFinite { slot, .. } if slot == "layers.0.attention.query"),
        "{error}"
    );

    // Inputs that are all zero say nothing: the correction is that of the weight.
    let slot = Projection::from(crate::layers_low_rank::bit_linear(random::<2>([6, 8], 70, device)));
    let zeros = Tensor::<3>::zeros([1, 5, 8], device);
    let (fitted, calibration) = calibrate(OneSlot::new(&slot), &[zeros], &plain).unwrap();
    assert_eq!(
        *errors(&calibration.report)[0],
        ErrorReport { of: ErrorOf::Output, before: 0.0, after: vec![0.0] }
    );
    let residual = LrcConfig { init: Init::SvdResidual, ..plain };
    let expected = add_lrc(slot, &residual).unwrap().0.low_rank.unwrap().product(1.0);
    let found = fitted.slot().low_rank.as_ref().unwrap().product(1.0);
    crate::check::assert_close_relative("zero input", &values(found), &values(expected), 1e-5);
}
