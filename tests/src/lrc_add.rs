//! Corrections and adapters: added, trained, merged, removed.

use std::collections::{BTreeMap, BTreeSet};

use bitnet_arch::convert::{Checkpoint, Placement, Policy, convert};
use bitnet_arch::layers::{
    Form, LayerError, LowRankKind, Projection, Slots, for_each_slot, for_each_slot_mut, set_lambda,
};
use bitnet_arch::lrc::{
    ErrorOf, Init, LeftBecause, LoraConfig, LrcConfig, LrcError, LrcReport, SlotAction, SlotRule, Svd,
    Trainable, add_lora, add_lrc, freeze_except_adapters, merge, remove, stats, unfreeze,
};
use bitnet_arch::model::CausalLm;
use bitnet_arch::quant::GroupQuant;
use bitnet_arch::train::{TrainConfig, Trainer, next_token_loss};
use bitnet_arch::warmup::{LambdaWarmupConfig, Schedule};
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor};

use crate::check::{SUMMATION, VECTOR, assert_close, assert_close_relative, max_difference, values};
use crate::checkpoints::{golden, golden_logits};
use crate::layers_low_rank::bit_linear;
use crate::layers_slots::Mixture;
use crate::vectors::{W, X, random};

fn config(init: Init) -> LrcConfig {
    LrcConfig { init, ..LrcConfig::default() }
}

/// The golden Llama, ternarized.
fn bitnet(device: &Device) -> Checkpoint {
    let policy = Policy { sub_norm: Placement::None, ..Policy::default() };
    convert(golden("llama_tied", device), &policy).unwrap().0
}

/// The values of every parameter.
fn parameters(model: &impl Module) -> BTreeMap<ParamId, Vec<f32>> {
    struct Visitor(BTreeMap<ParamId, Vec<f32>>);
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.insert(param.id, values(param.val().inner()));
        }
    }
    let mut visitor = Visitor(BTreeMap::new());
    model.visit(&mut visitor);
    visitor.0
}

/// The identities of all factors.
fn factors(model: &impl Slots) -> BTreeSet<ParamId> {
    let mut ids = BTreeSet::new();
    for_each_slot(model, |_, slot| {
        if let Some(low_rank) = &slot.low_rank {
            ids.extend([low_rank.u.id, low_rank.v.id]);
        }
    });
    ids
}

fn actions(report: &LrcReport) -> Vec<&SlotAction> {
    report.slots.iter().map(|slot| &slot.action).collect()
}

/// The acceptance vectors: `U Vᵀ`, what it leaves, and the output, at rank 1 and 3.
pub fn acceptance(device: &Device) {
    let slot = || Projection::from(bit_linear(Tensor::from_data(W, device)));
    let x = Tensor::<2>::from_data(X, device);
    let (corrected, report) = add_lrc(slot(), &config(Init::SvdResidual)).unwrap();
    let low_rank = corrected.low_rank.as_ref().unwrap();
    assert_eq!((low_rank.rank(), low_rank.kind()), (1, LowRankKind::Correction));
    #[rustfmt::skip]
    let product = [-0.105817, 0.044099, -0.013380, -0.707590, 0.294885, -0.089469, 0.366817, -0.152869, 0.046381];
    assert_close("U Vᵀ", &values(low_rank.product(1.0)), &product, VECTOR);
    let row = values(corrected.forward(x.clone()))[..3].to_vec();
    assert_close("rank 1", &row, &[1.774368, -2.364472, 1.823026], VECTOR);
    let [SlotAction::Added { rank: 1, parameters: 6, error: Some(error) }] = actions(&report)[..] else {
        panic!("{report:?}");
    };
    let norm = W.iter().flatten().map(|w| w * w).sum::<f32>().sqrt();
    assert_eq!(error.of, ErrorOf::Weight);
    assert_close("‖R‖", &[error.before as f32 * norm], &[1.063537], VECTOR);
    assert_close("‖R − U Vᵀ‖", &[error.after[0] as f32 * norm], &[0.601723], VECTOR);

    let full = LrcConfig { slots: vec![SlotRule::rank(3)], ..config(Init::SvdResidual) };
    let (corrected, _) = add_lrc(slot(), &full).unwrap();
    let row = values(corrected.forward(x))[..3].to_vec();
    assert_close("rank 3", &row, &[1.939344, -2.370656, 1.858688], VECTOR);
}

/// At full rank the residual is gone: what is left is what the activations' rounding costs, `Ŵ (Qa(x) − x)`.
pub fn full_rank_leaves_the_activation_error(device: &Device) {
    for (seed, shape) in [(60, [12, 20]), (61, [20, 12]), (62, [16, 16])] {
        let weight = random::<2>(shape, seed, device);
        let x = random::<2>([7, shape[1]], seed + 10, device);
        let slot = Projection::from(bit_linear(weight.clone()));
        let left = slot.quantized_operand(x.clone()) - x.clone();
        let expected =
            x.clone().matmul(weight.transpose()) + left.matmul(slot.quantized_weight().unwrap().transpose());
        for svd in [Svd::Exact, Svd::Randomized] {
            let config =
                LrcConfig { slots: vec![SlotRule::percentage(1.0)], svd, ..config(Init::SvdResidual) };
            let (corrected, _) = add_lrc(slot.clone(), &config).unwrap();
            let what = format!("{shape:?} {svd:?}");
            assert_close_relative(
                &what,
                &values(corrected.forward(x.clone())),
                &values(expected.clone()),
                SUMMATION,
            );
        }
    }
}

/// Every init, on every BitNet slot; dense, excluded and corrected slots are left and reported.
pub fn adds_where_the_config_says(device: &Device) {
    let checkpoint = bitnet(device);
    let before = golden_logits(&checkpoint.model);
    let config = LrcConfig {
        slots: vec![SlotRule::rank(3).on("*.down"), SlotRule::default().on("layers.*")],
        exclude: vec!["*.query".into()],
        ..LrcConfig::default()
    };
    for (init, same) in [(Init::Kaiming, true), (Init::Zeros, true), (Init::SvdResidual, false)] {
        let (model, report) =
            add_lrc(checkpoint.model.clone(), &LrcConfig { init, ..config.clone() }).unwrap();
        let logits = golden_logits(&model);
        assert_eq!(max_difference(&logits, &before) == 0.0, same, "{init:?}");
        let mut n_slots = 0;
        for_each_slot(&model, |path, slot| {
            let reported = &report.slots[n_slots];
            let shape = [slot.d_output(), slot.d_input()];
            assert_eq!((reported.path.as_str(), reported.shape), (path, shape));
            match (&slot.low_rank, &reported.action) {
                (None, SlotAction::Left(because)) => {
                    assert!(path.ends_with("query"), "{path}");
                    assert_eq!(*because, LeftBecause::Excluded("*.query".into()));
                }
                (Some(low_rank), SlotAction::Added { rank, parameters, error }) => {
                    let expected =
                        if path.ends_with("down") { 3 } else { (shape[0].min(shape[1]) / 10).max(1) };
                    assert_eq!((low_rank.rank(), *rank), (expected, expected), "{path}");
                    assert_eq!(*parameters, expected * (shape[0] + shape[1]), "{path}");
                    assert_eq!(error.is_some(), init == Init::SvdResidual);
                    if let Some(error) = error {
                        assert!(error.after[0] < error.before, "{path}: {error:?}");
                    }
                }
                (found, action) => panic!("{path}: {found:?}, {action:?}"),
            }
            n_slots += 1;
        });
        assert_eq!(report.n_added(), n_slots - checkpoint.config.model().n_layers);

        let parameters_before = parameters(&model);
        let (model, again) = add_lrc(model, &LrcConfig { exclude: vec![], ..config.clone() }).unwrap();
        assert_eq!(again.n_added(), checkpoint.config.model().n_layers, "the excluded ones");
        let has_one = |action: &&&SlotAction| matches!(action, SlotAction::Left(LeftBecause::HasOne));
        assert_eq!(actions(&again).iter().filter(has_one).count(), report.n_added());
        let parameters_after = parameters(&model);
        assert!(
            parameters_before.iter().all(|(id, values)| parameters_after[id] == *values),
            "a second call changes nothing"
        );
    }
    let dense = golden("llama_tied", device).model;
    let (_, report) = add_lrc(dense, &LrcConfig::default()).unwrap();
    assert!(actions(&report).iter().all(|action| matches!(action, SlotAction::Left(LeftBecause::Dense))));
}

/// QLRC is a correction with quantized factors; `keep_latent` off packs the slot.
pub fn quantized_and_packed_corrections(device: &Device) {
    let checkpoint = bitnet(device);
    let quant = GroupQuant::new(8, 32).unwrap();
    let plain = config(Init::SvdResidual);
    let logits = |config: &LrcConfig| {
        let (model, report) = add_lrc(checkpoint.model.clone(), config).unwrap();
        (golden_logits(&model), model, report)
    };
    let (expected, ..) = logits(&plain);
    let (found, model, _) = logits(&LrcConfig { factors: Some(quant), ..plain.clone() });
    let difference = max_difference(&found, &expected);
    assert!(difference > 0.0 && difference < 0.2, "8 bits of the factors: {difference}");
    for_each_slot(&model, |_, slot| {
        assert_eq!(slot.low_rank.as_ref().unwrap().kind(), LowRankKind::QuantizedCorrection(quant));
    });
    let (found, model, _) = logits(&LrcConfig { keep_latent: false, ..plain.clone() });
    for_each_slot(&model, |path, slot| assert!(matches!(slot.form, Form::Packed(_)), "{path}"));
    assert_close_relative("packed", &found, &expected, 2e-2); // one flipped activation code

    // Codes alone take a correction too, if it does not need the weight that they were made from.
    let (bare, _) = remove(model);
    let (_, report) = add_lrc(bare.clone(), &config(Init::Kaiming)).unwrap();
    assert_eq!(report.n_added(), report.slots.len());
    let error = add_lrc(bare, &plain).unwrap_err();
    assert!(matches!(error, LrcError::NoLatentWeight { .. }), "{error}");
}

/// Exactly the factors train: AdamW with weight decay leaves every other bit, and the loss falls.
pub fn exactly_the_factors_train(device: &Device) {
    for (keep_latent, trainable) in
        [(true, Trainable::AdaptersOnly), (false, Trainable::AdaptersOnly), (true, Trainable::WithWeights)]
    {
        let device = device.clone().autodiff();
        device.seed(3);
        let config = LrcConfig { keep_latent, ..LrcConfig::default() };
        let mut model = bitnet(&device.clone().inner()).model;
        set_lambda(&mut model, Some(1.0));
        let (model, report) = add_lrc(model.train(), &config).unwrap();
        let (model, counts) = freeze_except_adapters(model, trainable).unwrap();
        let trained = train(model.clone(), 12);
        let what = format!("keep_latent {keep_latent}, {trainable:?}");

        let mut moving = factors(&model);
        if trainable == Trainable::WithWeights {
            for_each_slot(&model, |_, slot| {
                if let Form::Bit(linear) = &slot.form {
                    moving.insert(linear.weight.id);
                }
            });
        }
        let (before, after) = (parameters(&model), parameters(&trained.0));
        assert_eq!(before.len(), after.len());
        let mut trainable_values = 0;
        for (id, values) in &before {
            let changed = after[id].iter().zip(values).any(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(changed, moving.contains(id), "{what}: {id:?}");
            if moving.contains(id) {
                trainable_values += values.len();
            }
        }
        assert_eq!(counts.trainable, trainable_values, "{what}");
        let added: usize = report
            .slots
            .iter()
            .map(|slot| match slot.action {
                SlotAction::Added { parameters, .. } => parameters,
                SlotAction::Left(_) => 0,
            })
            .sum();
        assert_eq!(counts.trainable == added, trainable == Trainable::AdaptersOnly, "{what}");
        assert_eq!(counts.trainable + counts.frozen, n_values(&model), "{what}");
        let (first, last) = (trained.1[0], trained.1[11]);
        assert!(last < first, "{what}: loss {first} → {last}");

        let (model, all) = unfreeze(model);
        assert_eq!(all.trainable + all.frozen, counts.trainable + counts.frozen);
        assert_eq!(all.frozen == 0, keep_latent, "codes stay frozen");
        let moved = train(model, 2).0;
        let moved = parameters(&moved);
        let still = before.iter().filter(|(id, values)| moved[*id] == **values).count();
        assert_eq!(
            still,
            if keep_latent { 0 } else { report.slots.len() },
            "{what}: the scales of codes stay"
        );
    }
}

/// Values of all parameters, codes of packed weights among them.
fn n_values(model: &CausalLm) -> usize {
    let mut n: usize = parameters(model).values().map(Vec::len).sum();
    for_each_slot(model, |_, slot| {
        if let Form::Packed(linear) = &slot.form {
            n += linear.d_output() * linear.d_input();
        }
    });
    n
}

/// Steps of AdamW with weight decay on one batch, at λ = 1; the model and the losses.
fn train(model: CausalLm, steps: u64) -> (CausalLm, Vec<f64>) {
    let config = TrainConfig {
        weight_decay: 0.1,
        learning_rate: 3e-3,
        lambda: LambdaWarmupConfig::new(Schedule::Linear, 0),
        ..TrainConfig::new(steps)
    };
    let mut trainer = Trainer::new(model, &config).unwrap();
    let tokens: Vec<Vec<u32>> = (0..2).map(|row| (0..24).map(|i| (row * 7 + i * i) % 90).collect()).collect();
    let batch: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    let losses = (0..steps)
        .map(|_| trainer.step(std::slice::from_ref(&batch), next_token_loss).unwrap().loss)
        .collect();
    (trainer.into_model(), losses)
}

/// Gradients of the factors do not depend on what is frozen around them.
pub fn freezing_leaves_the_factors_gradients(device: &Device) {
    let device = device.clone().autodiff();
    let model = bitnet(&device.clone().inner()).model.train();
    let (model, _) = add_lrc(model, &config(Init::SvdResidual)).unwrap();
    let gradients = |model: &CausalLm| {
        let tokens: Vec<u32> = (0..24).map(|i| (i * i) % 90).collect();
        let batch: Vec<&[u32]> = vec![&tokens];
        let grads = next_token_loss(model, &batch).unwrap().backward();
        let mut found = BTreeMap::new();
        for_each_slot(model, |path, slot| {
            let low_rank = slot.low_rank.as_ref().unwrap();
            for (name, factor) in [("u", &low_rank.u), ("v", &low_rank.v)] {
                found.insert(format!("{path}.{name}"), values(factor.val().grad(&grads).unwrap()));
            }
        });
        found
    };
    let expected = gradients(&model);
    let (frozen, _) = freeze_except_adapters(model, Trainable::AdaptersOnly).unwrap();
    for (name, found) in gradients(&frozen) {
        assert_close_relative(&name, &found, &expected[&name], SUMMATION);
    }
}

/// A LoRA merges into a dense weight, and into a latent one at λ = 0; elsewhere the function would change.
pub fn merges_where_nothing_is_lost(device: &Device) {
    let x = random::<2>([5, 16], 63, device);
    let adapted = |model: Mixture| {
        let (mut model, report) =
            add_lora(model, &LoraConfig { slots: vec![SlotRule::rank(4)], ..LoraConfig::default() }).unwrap();
        assert_eq!(report.n_added(), 9);
        let mut seed = 64;
        for_each_slot_mut(&mut model, |_, slot| {
            let low_rank = slot.low_rank.as_mut().unwrap();
            low_rank.u = Param::from_tensor(random::<2>([16, 4], seed, device) * 0.1);
            seed += 1;
        });
        model
    };
    let dense = adapted(Mixture::new(device));
    let mut latent = adapted(Mixture::converted(device));
    set_lambda(&mut latent, Some(0.0));
    for model in [dense, latent.clone()] {
        let expected = values(model.forward(x.clone()));
        let (merged, paths) = merge(model).unwrap();
        assert_eq!(paths.len(), 9);
        assert!(factors(&merged).is_empty());
        assert_close_relative("merged", &values(merged.forward(x.clone())), &expected, 5.0 * SUMMATION);
    }
    let refused = |model: Mixture, expected: &str| match merge(model) {
        Err(LrcError::Merge { slot, reason }) => {
            assert!(reason.contains(expected) && !slot.is_empty(), "{reason}")
        }
        result => panic!("{result:?}"),
    };
    let mut quantized = latent.clone();
    set_lambda(&mut quantized, Some(1.0));
    refused(quantized.clone(), "λ = 0");
    for_each_slot_mut(&mut quantized, |_, slot| assert!(slot.pack().unwrap()));
    refused(quantized, "packed");
    let (corrected, _) = add_lrc(Mixture::converted(device), &LrcConfig::default()).unwrap();
    refused(corrected, "correction");
    let (none, paths) = merge(Mixture::new(device)).unwrap();
    assert!(paths.is_empty() && factors(&none).is_empty());
}

/// Removing an adapter gives the model before it.
pub fn removal_undoes(device: &Device) {
    let x = random::<2>([5, 16], 65, device);
    let model = Mixture::converted(device);
    let expected = values(model.forward(x.clone()));
    let (corrected, _) = add_lrc(model, &config(Init::SvdResidual)).unwrap();
    assert_ne!(values(corrected.forward(x.clone())), expected);
    let (model, paths) = remove(corrected);
    assert_eq!(paths.len(), 9);
    assert_eq!(values(model.forward(x)), expected);
    assert!(remove(model).1.is_empty());
}

/// Ranks, parameters and bytes, against the packed weights.
pub fn statistics(device: &Device) {
    let model = Mixture::converted(device);
    assert_eq!(stats(&model).overhead(), None);
    let (plain, _) = add_lrc(model.clone(), &LrcConfig::default()).unwrap();
    let found = stats(&plain);
    // 16 × 16 at rank 1: 32 values; 64 bytes of codes and one scale.
    assert_eq!((found.slots.len(), found.parameters(), found.bytes()), (9, 9 * 32, 9 * 32 * 4));
    assert_eq!(found.packed_weight_bytes(), 9 * (64 + 4));
    assert_eq!(found.slots[1].path, "experts.0.maps.0");
    assert_eq!(found.overhead(), Some(128.0 / 68.0));
    let factors = Some(GroupQuant::new(4, 32).unwrap());
    let (quantized, _) = add_lrc(model, &LrcConfig { factors, ..LrcConfig::default() }).unwrap();
    // Each factor: 16 values of 4 bits and one scale.
    assert_eq!(stats(&quantized).bytes(), 9 * 2 * (8 + 4));
    let (adapted, _) = add_lora(Mixture::new(device), &LoraConfig::default()).unwrap();
    assert_eq!(stats(&adapted).slots[0].packed_weight_bytes, None, "a dense slot has no codes");
}

/// What cannot be added or trained.
pub fn refuses(device: &Device) {
    let model = Mixture::converted(device);
    let add = |config: &LrcConfig| add_lrc(model.clone(), config).unwrap_err();
    let rules = |rule: SlotRule| LrcConfig { slots: vec![rule], ..LrcConfig::default() };
    let error = add(&rules(SlotRule::rank(17)));
    let expected = LayerError::Rank { found: 17, limit: 16, shape: [16, 16] };
    assert!(
        matches!(&error, LrcError::Layer { slot, source } if slot == "first" && *source == expected),
        "{error}"
    );
    let both = SlotRule { rank: Some(2), percentage: 0.5, ..SlotRule::default() };
    assert!(matches!(add(&rules(both)), LrcError::RankAndPercentage { rank: 2, .. }));
    assert!(matches!(add(&rules(SlotRule::percentage(1.5))), LrcError::Percentage { .. }));
    assert!(matches!(add(&rules(SlotRule::default().on("*.nothing"))), LrcError::Pattern { .. }));
    assert!(matches!(
        add(&config(Init::Calibrated { rounds: 0 })),
        LrcError::Init { found: "calibrated", .. }
    ));

    let (zeros, _) = add_lrc(model.clone(), &config(Init::Zeros)).unwrap();
    let error = freeze_except_adapters(zeros, Trainable::AdaptersOnly).unwrap_err();
    assert!(matches!(&error, LrcError::DeadFactors { slot } if slot == "first"), "{error}");
    let error = freeze_except_adapters(model.clone(), Trainable::AdaptersOnly).unwrap_err();
    assert_eq!(error, LrcError::NoAdapter);
    let packed = LrcConfig { keep_latent: false, ..LrcConfig::default() };
    let (codes, _) = add_lrc(model.clone(), &packed).unwrap();
    let error = freeze_except_adapters(codes, Trainable::WithWeights).unwrap_err();
    assert!(matches!(error, LrcError::NoLatentWeight { .. }), "{error}");
    let mut halfway = model.clone();
    set_lambda(&mut halfway, Some(0.5));
    let error = add_lrc(halfway, &packed).unwrap_err();
    assert!(matches!(error, LrcError::Layer { source: LayerError::Lambda { found: 0.5 }, .. }), "{error}");

    let error = add_lora(model.clone(), &LoraConfig { alpha: 0.0, ..LoraConfig::default() }).unwrap_err();
    assert!(matches!(error, LrcError::Layer { source: LayerError::Alpha { .. }, .. }), "{error}");
    let error = add_lora(model.clone(), &LoraConfig { dropout: 1.0, ..LoraConfig::default() }).unwrap_err();
    assert!(matches!(error, LrcError::Layer { source: LayerError::Dropout { .. }, .. }), "{error}");

    let mut damaged = model;
    for_each_slot_mut(&mut damaged, |path, slot| {
        if let (true, Form::Bit(linear)) = (path == "tail.out", &mut slot.form) {
            linear.weight = Param::from_tensor(Tensor::full([16, 16], f32::NAN, device));
        }
    });
    let error = add_lrc(damaged, &config(Init::SvdResidual)).unwrap_err();
    assert!(matches!(&error, LrcError::NotFinite { slot, .. } if slot == "tail.out"), "{error}");
}
