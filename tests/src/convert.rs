//! Conversion of models and of folders.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bitnet_arch::convert::{
    Action, Checkpoint, ConversionReport, ConvertError, LeftBecause, LoadOptions, Placement, Policy,
    auto_convert, auto_stage1, convert, is_bitnet, is_bitnet_folder, save, stage1,
};
use bitnet_arch::layers::{Form, Projection, for_each_slot, set_lambda};
use bitnet_arch::quant::{ActivationQuant, Bits, Granularity, Quantization};
use burn::module::Module;
use burn::tensor::Device;
use serde_json::{Value, json};

use crate::check::{assert_close, max_difference};
use crate::checkpoints::{edit_config, golden, golden_logits, loaded, read_json, scratch};
use crate::golden::Golden;

/// λ = 0 is the same product with the weight stored the other way round: only the order of summation differs.
const LAMBDA_ZERO: f32 = 1e-5;
/// Ternary weights change logits of standard deviation 1 far more than any rounding does.
const CLEARLY_DIFFERENT: f32 = 1e-1;

const PLACEMENTS: [Placement; 3] = [Placement::None, Placement::Output, Placement::All];
/// Query, key, value, output, gate, up, down.
const SLOTS_PER_LAYER: usize = 7;

fn policy(sub_norm: Placement) -> Policy {
    Policy { sub_norm, ..Policy::default() }
}

/// At λ = 0 the converted model is the dense one whatever SubLN was inserted, at λ = 1 it is another.
pub fn lambda_zero_is_the_dense_model(device: &Device) {
    for name in ["llama_tied", "llama_all_bias", "qwen3", "gemma2"] {
        let dense = golden(name, device);
        let expected = golden_logits(&dense.model);
        for placement in PLACEMENTS {
            let what = format!("{name}, {placement:?}");
            let (mut converted, report) = convert(dense.clone(), &policy(placement)).unwrap();
            let n_slots = converted.config.model().n_layers * SLOTS_PER_LAYER;
            assert_eq!(report.n_converted(), n_slots, "{what}");
            assert_eq!(set_lambda(&mut converted.model, Some(0.0)), n_slots, "{what}");
            let found = golden_logits(&converted.model);
            println!("{what}: λ = 0 max {:e}", max_difference(&found, &expected));
            assert_close(&what, &found, &expected, LAMBDA_ZERO);
            set_lambda(&mut converted.model, Some(1.0));
            let difference = max_difference(&golden_logits(&converted.model), &expected);
            assert!(
                difference.is_finite() && difference > CLEARLY_DIFFERENT,
                "{what}: λ = 1 off by {difference:e}"
            );
        }
    }
}

/// The report names every tensor of the written file, with its shape and what was done to it.
pub fn every_tensor_is_reported(device: &Device) {
    for name in ["llama_untied", "llama_all_bias", "qwen3", "gemma2"] {
        for placement in PLACEMENTS {
            let (converted, report) = convert(golden(name, device), &policy(placement)).unwrap();
            let folder = tempfile::tempdir().unwrap();
            save(&converted, folder.path()).unwrap();
            let file = Golden::read(&folder.path().join("model.safetensors"));
            let mut reported: Vec<_> = report.tensors.iter().map(|tensor| tensor.name.clone()).collect();
            reported.sort();
            assert_eq!(reported, file.names(), "{name}, {placement:?}");
            for tensor in &report.tensors {
                assert_eq!(tensor.shape, file.shape(&tensor.name), "{name}: {}", tensor.name);
                assert_eq!(tensor.action, expected_action(&tensor.name), "{name}: {}", tensor.name);
            }
            let inserted =
                report.tensors.iter().filter(|tensor| tensor.action == Action::InsertedSubNorm).count();
            let per_layer = match placement {
                Placement::None => 0,
                Placement::Output => 2,
                Placement::All => SLOTS_PER_LAYER,
            };
            assert_eq!(inserted, converted.config.model().n_layers * per_layer, "{name}, {placement:?}");
            assert_eq!(report.to_string().lines().count(), report.tensors.len());
        }
    }
}

/// What conversion does to a tensor of an architecture without sub-norms of its own, by its Hugging Face name.
fn expected_action(name: &str) -> Action {
    let sub_norm = name.ends_with("_sub_norm.weight") || name.ends_with(".rms_norm.weight");
    Action::Left(match name {
        "model.embed_tokens.weight" => LeftBecause::Embedding,
        "lm_head.weight" => LeftBecause::Head,
        _ if sub_norm => return Action::InsertedSubNorm,
        _ if name.ends_with("_proj.weight") => return Action::Ternarized,
        _ if name.ends_with(".bias") => LeftBecause::Bias,
        _ => LeftBecause::Norm,
    })
}

/// Exclude globs keep slots dense, and the embedding and head with them; each is reported with its glob.
pub fn excluded_slots_stay_dense(device: &Device) {
    let exclude = ["model.layers.0.*", "*.down_proj", "lm_head"];
    let policy = Policy { exclude: exclude.map(str::to_owned).into(), ..Policy::default() };
    let (converted, report) = convert(golden("llama_untied", device), &policy).unwrap();
    let n_layers = converted.config.model().n_layers;
    assert_eq!(report.n_converted(), (n_layers - 1) * (SLOTS_PER_LAYER - 1));
    let action = |name: &str| &report.tensors.iter().find(|tensor| tensor.name == name).unwrap().action;
    let excluded = |glob: &str| Action::Left(LeftBecause::Excluded(glob.into()));
    assert_eq!(*action("model.layers.0.self_attn.q_proj.weight"), excluded("model.layers.0.*"));
    assert_eq!(*action("model.layers.0.mlp.down_proj.weight"), excluded("model.layers.0.*"));
    assert_eq!(*action("model.layers.1.mlp.down_proj.weight"), excluded("*.down_proj"));
    assert_eq!(*action("model.layers.1.mlp.up_proj.weight"), Action::Ternarized);
    assert_eq!(*action("model.layers.0.input_layernorm.weight"), Action::Left(LeftBecause::Norm));
    assert_eq!(*action("model.embed_tokens.weight"), Action::Left(LeftBecause::Embedding));
    assert_eq!(*action("lm_head.weight"), Action::Left(LeftBecause::Head));
    for_each_slot(&converted.model, |path, slot| {
        let bit = !path.starts_with("layers.0.") && !path.ends_with(".down");
        assert_eq!(slot.is_bit(), bit, "{path}");
        assert_eq!(
            slot.sub_norm.is_some(),
            bit && path.ends_with(".output"),
            "{path}: a dense slot gets no SubLN"
        );
    });

    let bad = Policy { exclude: vec!["model.layers.[".into()], ..Policy::default() };
    let error = convert(golden("llama_untied", device), &bad).unwrap_err();
    assert!(
        matches!(&error, ConvertError::Pattern { pattern, .. } if pattern == "model.layers.["),
        "{error}"
    );
}

/// A second conversion changes nothing and says so.
pub fn conversion_is_idempotent(device: &Device) {
    for placement in PLACEMENTS {
        let (once, _) = convert(golden("llama_tied", device), &policy(placement)).unwrap();
        let (twice, report) = convert(once.clone(), &policy(placement)).unwrap();
        assert_eq!(report.n_converted(), 0);
        let already = Action::Left(LeftBecause::AlreadyBitNet);
        let n_already = report.tensors.iter().filter(|tensor| tensor.action == already).count();
        assert_eq!(n_already, twice.config.model().n_layers * SLOTS_PER_LAYER);
        assert_eq!(golden_logits(&twice.model), golden_logits(&once.model), "{placement:?}");
        assert_eq!(saved(&twice), saved(&once), "{placement:?}");
    }
}

/// A conversion can go on where another one excluded slots, with the same policy: the result is that of one step.
pub fn a_conversion_in_two_steps_is_that_of_one(device: &Device) {
    let exclude = vec!["model.layers.1.*".to_owned()];
    for placement in PLACEMENTS {
        let first = Policy { exclude: exclude.clone(), ..policy(placement) };
        let (part, _) = convert(golden("llama_tied", device), &first).unwrap();
        let (whole, report) = convert(part.clone(), &policy(placement)).unwrap();
        assert_eq!(report.n_converted(), SLOTS_PER_LAYER, "{placement:?}");
        let (at_once, _) = convert(golden("llama_tied", device), &policy(placement)).unwrap();
        assert_eq!(saved(&whole), saved(&at_once), "{placement:?}");

        // One config cannot say that the rest is otherwise.
        let row = Quantization { weight: Granularity::Row, ..Quantization::default() };
        let others = PLACEMENTS.into_iter().filter(|other| *other != placement).map(policy);
        for other in others.chain([Policy { quantization: row, ..policy(placement) }]) {
            let error = convert(part.clone(), &other).unwrap_err();
            assert!(
                matches!(error, ConvertError::MixedPolicy { .. }),
                "{placement:?}, then {other:?}: {error}"
            );
        }
    }
}

/// All bytes of what a checkpoint is saved as, by file name.
fn saved(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    save(checkpoint, folder.path()).unwrap();
    files(folder.path())
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    fs::read_dir(folder).unwrap().map(read).collect()
}

/// A dense model is converted, a BitNet model is left alone; models and folders know which they are.
pub fn auto_conversion_knows_what_is_bitnet(device: &Device) {
    for (name, bitnet) in
        [("llama_tied", false), ("llama_sharded", false), ("llama_online", true), ("bitnet_online", true)]
    {
        let source = scratch(name);
        assert_eq!(is_bitnet_folder(source.path()).unwrap(), bitnet, "{name}");
        let checkpoint = loaded(source.path(), device);
        assert_eq!(is_bitnet(&checkpoint.model), bitnet, "{name}");
        let before = golden_logits(&checkpoint.model);
        let (after, report) = auto_convert(checkpoint, &Policy::default()).unwrap();
        assert!(is_bitnet(&after.model), "{name}");
        assert_eq!(report.is_none(), bitnet, "{name}");
        let dst = source.path().join("converted");
        let options = LoadOptions::default();
        let report = auto_stage1(source.path(), &dst, &Policy::default(), device, &options).unwrap();
        assert_eq!((report.is_none(), dst.exists()), (bitnet, !bitnet), "{name}");
        if bitnet {
            assert_eq!(golden_logits(&after.model), before, "{name}");
        }
    }
    for packed in ["bitnet_offline_auto", "llama_offline_bitlinear"] {
        assert!(is_bitnet_folder(crate::data("hf").join(packed)).unwrap(), "{packed}");
    }
    let error = is_bitnet_folder(crate::data("hf/no_such_folder")).unwrap_err();
    assert!(matches!(error, ConvertError::Read { .. }), "{error}");
}

/// Each granularity and activation width reaches every slot, computes something else, and survives a folder.
pub fn quantization_settings_reach_every_slot(device: &Device) {
    let per_tensor = converted_logits(device, Quantization::default()).0;
    let four_bits = ActivationQuant::PerToken(Bits::try_from(4).unwrap());
    for quantization in [
        Quantization { weight: Granularity::Row, ..Quantization::default() },
        Quantization { weight: Granularity::Group(32), ..Quantization::default() },
        Quantization { activation: ActivationQuant::Off, ..Quantization::default() },
        Quantization { activation: four_bits, ..Quantization::default() },
    ] {
        let (found, again) = converted_logits(device, quantization);
        assert!(max_difference(&found, &per_tensor) > 1e-3, "{quantization:?}");
        assert_eq!(found, again, "{quantization:?}: reloaded");
    }
}

/// Logits of `llama_tied` converted so, and of the folder that it is written to.
fn converted_logits(device: &Device, quantization: Quantization) -> (Vec<f32>, Vec<f32>) {
    let policy = Policy { quantization, ..Policy::default() };
    let (converted, _) = convert(golden("llama_tied", device), &policy).unwrap();
    for_each_slot(&converted.model, |path, slot| match &slot.form {
        Form::Bit(linear) => assert_eq!(linear.quantization(), quantization, "{path}"),
        Form::Dense(_) | Form::Packed(_) => panic!("{path} is {}", slot.form.name()),
    });
    let folder = tempfile::tempdir().unwrap();
    save(&converted, folder.path()).unwrap();
    (golden_logits(&converted.model), golden_logits(&loaded(folder.path(), device).model))
}

/// A group that does not divide one weight is refused with that weight's name, on models and folders.
pub fn a_group_that_does_not_fit_is_refused(device: &Device) {
    // 64 divides d_model = 64 and not d_ff = 160: the first slot that fails is layer 0's down projection.
    let quantization = Quantization { weight: Granularity::Group(64), ..Quantization::default() };
    let policy = Policy { quantization, ..Policy::default() };
    let source = scratch("llama_tied");
    let before = files(source.path());
    let error = convert(loaded(source.path(), device), &policy).unwrap_err();
    assert!(matches!(error, ConvertError::Layer(_)), "{error}");
    assert!(error.to_string().contains("model.layers.0.mlp.down_proj"), "{error}");

    let parent = tempfile::tempdir().unwrap();
    let error = stage1(source.path(), parent.path().join("out"), &policy, device, &LoadOptions::default())
        .unwrap_err();
    assert!(matches!(error, ConvertError::Layer(_)), "{error}");
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0, "nothing is left behind");
    assert_eq!(files(source.path()), before, "the source is as it was");
}

/// What [`stage1`] writes loads again with identical logits, in the source's files and types.
pub fn stage1_folders_load_again(device: &Device) {
    for name in ["llama_tied", "llama_sharded", "llama_bf16", "llama_all_bias", "mistral_swa", "gemma2"] {
        for placement in PLACEMENTS {
            let what = format!("{name}, {placement:?}");
            let (source, parent) = (scratch(name), tempfile::tempdir().unwrap());
            let dst = parent.path().join("deeper/out");
            let report =
                stage1(source.path(), &dst, &policy(placement), device, &LoadOptions { strict: true })
                    .unwrap();
            let again = load_strictly(&dst, device);
            let (converted, _) = convert(loaded(source.path(), device), &policy(placement)).unwrap();
            assert_eq!(golden_logits(&again.model), golden_logits(&converted.model), "{what}");
            assert!(is_bitnet_folder(&dst).unwrap(), "{what}");
            assert_same_layout(&what, source.path(), &dst);
            for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
                assert_eq!(
                    fs::read(dst.join(file)).unwrap(),
                    fs::read(source.path().join(file)).unwrap(),
                    "{what}"
                );
            }
            assert_report(&what, &read_json(&dst.join("report.json")), &report);
        }
    }
}

fn load_strictly(folder: &Path, device: &Device) -> Checkpoint {
    let mut checkpoint = bitnet_arch::convert::load(folder, device, &LoadOptions { strict: true }).unwrap();
    set_lambda(&mut checkpoint.model, Some(1.0));
    checkpoint
}

/// The same weight files, each with the tensors that it had in the source, bit for bit.
fn assert_same_layout(what: &str, src: &Path, dst: &Path) {
    let weights = |folder: &Path| -> Vec<String> {
        files(folder).into_keys().filter(|name| name.starts_with("model")).collect()
    };
    assert_eq!(weights(src), weights(dst), "{what}");
    for file in weights(src).iter().filter(|file| file.ends_with(".safetensors")) {
        let (src, dst) = (fs::read(src.join(file)).unwrap(), fs::read(dst.join(file)).unwrap());
        let src = safetensors::SafeTensors::deserialize(&src).unwrap();
        let dst = safetensors::SafeTensors::deserialize(&dst).unwrap();
        for (name, tensor) in src.tensors() {
            let written = dst.tensor(&name).unwrap();
            assert_eq!(written.dtype(), tensor.dtype(), "{what}: {name}");
            assert_eq!(written.data(), tensor.data(), "{what}: {name}");
        }
    }
}

fn assert_report(what: &str, json: &Value, report: &ConversionReport) {
    assert_eq!(json["n_converted"], json!(report.n_converted()), "{what}");
    assert_eq!(json["unexpected"], json!([]), "{what}");
    let tensors = json["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), report.tensors.len(), "{what}");
    for (written, tensor) in tensors.iter().zip(&report.tensors) {
        assert_eq!(written["name"], json!(tensor.name), "{what}");
        let action = match &tensor.action {
            Action::Ternarized => "ternarized",
            Action::TurnedAndTernarized => "turned_and_ternarized",
            Action::InsertedSubNorm => "inserted_sub_norm",
            Action::Left(_) => "left",
        };
        assert_eq!(written["action"], json!(action), "{what}: {}", tensor.name);
    }
}

/// The written `config.json` uses transformers' words where it has them, and keeps every other key.
pub fn stage1_config_speaks_transformers_language(device: &Device) {
    let layer_excluded = Policy { exclude: vec!["model.layers.1.*".into()], ..policy(Placement::Output) };
    let excluded_none = Policy { exclude: vec!["*.down_proj".into()], ..policy(Placement::None) };
    let row = Quantization { weight: Granularity::Row, ..Quantization::default() };
    let cases: [(&str, Policy, &str, Option<bool>); 9] = [
        // source, policy, model_type as written, use_rms_norm of the quantization_config if there is one
        ("llama_tied", policy(Placement::None), "llama", Some(false)),
        ("llama_tied", policy(Placement::All), "llama", Some(true)),
        ("llama_tied", policy(Placement::Output), "bitnet", Some(false)),
        ("llama_tied", layer_excluded, "bitnet_arch", None),
        ("llama_tied", excluded_none, "llama", Some(false)),
        ("llama_tied", Policy { quantization: row, ..policy(Placement::None) }, "bitnet_arch", None),
        ("llama_head_dim", policy(Placement::Output), "bitnet_arch", None),
        ("qwen2", policy(Placement::Output), "bitnet_arch", None),
        ("gemma", policy(Placement::All), "gemma", Some(true)),
    ];
    for (name, policy, model_type, use_rms_norm) in cases {
        let what = format!("{name}, {policy:?}");
        let (source, parent) = (scratch(name), tempfile::tempdir().unwrap());
        let dst = parent.path().join("out");
        stage1(source.path(), &dst, &policy, device, &LoadOptions::default()).unwrap();
        let (before, after) =
            (read_json(&source.path().join("config.json")), read_json(&dst.join("config.json")));
        assert_eq!(after["model_type"], json!(model_type), "{what}");
        assert_eq!(after["bitnet_arch"]["base_model_type"], before["model_type"], "{what}");
        assert_eq!(after["bitnet_arch"]["sub_norm"], json!(policy.sub_norm), "{what}");
        let quantization_config = &after["quantization_config"];
        match use_rms_norm {
            Some(use_rms_norm) => {
                assert_eq!(quantization_config["quant_method"], json!("bitnet"), "{what}");
                assert_eq!(quantization_config["linear_class"], json!("autobitlinear"), "{what}");
                assert_eq!(quantization_config["quantization_mode"], json!("online"), "{what}");
                assert_eq!(quantization_config["use_rms_norm"], json!(use_rms_norm), "{what}");
                let dense = &quantization_config["modules_to_not_convert"];
                assert_eq!(dense.is_null(), policy.exclude.is_empty(), "{what}");
                if let Some(dense) = dense.as_array() {
                    assert!(dense.contains(&json!("lm_head")), "{what}: the list replaces the default");
                    assert!(dense.contains(&json!("model.layers.0.mlp.down_proj")), "{what}");
                }
            }
            None => assert!(quantization_config.is_null(), "{what}"),
        }
        let changed = ["model_type", "architectures"];
        for (key, value) in before.as_object().unwrap() {
            assert!(
                changed.contains(&key.as_str()) || after[key] == *value,
                "{what}: `{key}` is {}",
                after[key]
            );
        }
    }
}

/// A folder that holds something is never written into, an empty one is; a BitNet source is refused.
pub fn stage1_refuses_what_it_must(device: &Device) {
    let (source, parent) = (scratch("llama_tied"), tempfile::tempdir().unwrap());
    let full = parent.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("mine.txt"), "keep").unwrap();
    let run = |src: &Path, dst: &Path| stage1(src, dst, &Policy::default(), device, &LoadOptions::default());
    let error = run(source.path(), &full).unwrap_err();
    assert!(matches!(&error, ConvertError::Exists { path } if *path == full), "{error}");
    assert_eq!(files(&full), BTreeMap::from([("mine.txt".to_owned(), b"keep".to_vec())]));
    let error = run(source.path(), source.path()).unwrap_err();
    assert!(matches!(error, ConvertError::Exists { .. }), "{error}");
    let file = full.join("mine.txt");
    for blocked in [file.clone(), file.join("out")] {
        let error = run(source.path(), &blocked).unwrap_err();
        assert!(matches!(error, ConvertError::Write { .. } | ConvertError::Exists { .. }), "{error}");
        assert_eq!(fs::read(&file).unwrap(), b"keep");
    }
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1, "nothing is left behind");

    let empty = parent.path().join("empty");
    fs::create_dir(&empty).unwrap();
    run(source.path(), &empty).unwrap();
    let error = run(&empty, &parent.path().join("again")).unwrap_err();
    assert!(matches!(&error, ConvertError::AlreadyBitNet { folder } if *folder == empty), "{error}");
    assert!(!parent.path().join("again").exists());
    let nothing = Policy { exclude: vec!["*".into()], ..Policy::default() };
    let again = parent.path().join("again");
    let error = stage1(source.path(), &again, &nothing, device, &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, ConvertError::NothingToConvert), "{error}");
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 2, "nothing is left behind");
}

/// A `bitnet` model without quantization has sub-norms already: they are kept, act in full, and are not reported as
/// inserted; those that the policy adds beside them are written and load again.
pub fn a_models_own_sub_norms_stay_its_own(device: &Device) {
    let plain = Quantization::default();
    let per_row = Quantization { weight: Granularity::Row, ..plain };
    for (placement, quantization, n_inserted, model_type) in [
        (Placement::Output, plain, 0, "bitnet"),
        (Placement::Output, per_row, 0, "bitnet_arch"),
        (Placement::All, plain, 2 * 5, "bitnet_arch"),
        (Placement::None, plain, 0, "bitnet"),
    ] {
        let source = scratch("bitnet_online");
        edit_config(source.path(), |config| drop(config.remove("quantization_config")));
        assert!(!is_bitnet_folder(source.path()).unwrap());
        let policy = Policy { quantization, ..policy(placement) };
        let (converted, report) = convert(loaded(source.path(), device), &policy).unwrap();
        let inserted =
            report.tensors.iter().filter(|tensor| tensor.action == Action::InsertedSubNorm).count();
        assert_eq!((report.n_converted(), inserted), (2 * 7, n_inserted), "{placement:?}");

        let folder = tempfile::tempdir().unwrap();
        let dst = folder.path().join("converted");
        save(&converted, &dst).unwrap();
        assert_eq!(read_json(&dst.join("config.json"))["model_type"], model_type, "{placement:?}");
        let reloaded = load_strictly(&dst, device);
        assert_eq!(golden_logits(&reloaded.model), golden_logits(&converted.model), "{placement:?}");
    }
}

/// What a dense weight was frozen to, its BitNet layer keeps, with autodiff or without.
pub fn frozen_weights_stay_frozen(device: &Device) {
    for device in [device.clone(), device.clone().autodiff()] {
        let mut checkpoint = golden("llama_tied", &device);
        let query = &mut checkpoint.model.layers[0].attention.query;
        *query = query.clone().no_grad();
        let (converted, _) = convert(checkpoint, &Policy::default()).unwrap();
        let model = converted.model.train();
        let trains = |slot: &Projection| match &slot.form {
            Form::Bit(linear) => linear.weight.is_require_grad(),
            Form::Dense(_) | Form::Packed(_) => panic!("every slot converts"),
        };
        let attention = &model.layers[0].attention;
        assert_eq!([&attention.query, &attention.key].map(trains), [false, true]);
    }
}
