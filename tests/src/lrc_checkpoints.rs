//! Corrections, adapters, turned weights and salient columns in files.

use std::fs;
use std::path::Path;

use bitnet_arch::convert::{
    Action, Checkpoint, ConvertError, GgufOptions, GgufType, HfFormat, HfOptions, LeftBecause, LoadOptions,
    Placement, Policy, Tensors, WeightType, convert, convert_calibrated, correct, export_gguf,
    export_gguf_adapter, export_hf, export_peft, is_bitnet_folder, load, pack, save,
};
use bitnet_arch::layers::{LayerError, Outliers, Projection, for_each_slot, for_each_slot_mut, set_lambda};
use bitnet_arch::lrc::{
    HadamardConfig, Init, LoraConfig, LrcConfig, LrcError, SlotRule, add_lora, add_lrc, calibrate,
    freeze_except_adapters, remove, rotate,
};
use bitnet_arch::quant::{Granularity, GroupQuant, Quantization};
use bitnet_format::gguf::Gguf;
use burn::module::Param;
use burn::tensor::{Device, Int, Tensor};
use serde_json::json;

use crate::check::{SUMMATION, assert_close_relative, max_difference, values};
use crate::checkpoints::{edit_config, golden, golden_logits, loaded, read_json, reference, sequences};
use crate::gguf::wide;
use crate::golden::Golden;
use crate::vectors::random;

const KEY: &str = "bitnet_arch_slots";

/// The golden Llama, to be stored in f32, with a tokenizer that outlives the call.
fn dense(device: &Device) -> Checkpoint {
    let Checkpoint { model, config, .. } = golden("llama_tied", device);
    Checkpoint::new(model, config, crate::data("hf/llama_tied")).with_type(WeightType::F32)
}

/// The same as a BitNet model.
fn bitnet(sub_norm: Placement, device: &Device) -> Checkpoint {
    let policy = Policy { sub_norm, ..Policy::default() };
    let mut checkpoint = convert(dense(device), &policy).unwrap().0;
    set_lambda(&mut checkpoint.model, Some(1.0));
    checkpoint
}

/// The same model with a correction from the residual.
fn corrected(checkpoint: Checkpoint, config: &LrcConfig) -> Checkpoint {
    let config = LrcConfig { init: Init::SvdResidual, ..config.clone() };
    let (model, report) = add_lrc(checkpoint.model.clone(), &config).unwrap();
    assert!(report.n_added() > 0);
    checkpoint.with_model(model)
}

/// Batches of the golden tokens.
fn batches(checkpoint: &Checkpoint) -> Vec<Tensor<2, Int>> {
    vec![checkpoint.model.batch(&sequences(&reference("llama_tied"), "input_ids")).unwrap()]
}

/// Saves and loads strictly; the model computes the same, bit by bit.
fn round_trip(what: &str, checkpoint: &Checkpoint, device: &Device) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    save(checkpoint, folder.path()).unwrap();
    let mut again = load(folder.path(), device, &LoadOptions { strict: true }).unwrap();
    set_lambda(&mut again.model, Some(1.0));
    assert!(golden_logits(&again.model) == golden_logits(&checkpoint.model), "{what}: the same logits");
    let mut slots = Vec::new();
    for_each_slot(&again.model, |_, slot| slots.push(slot.clone()));
    let mut slots = slots.into_iter();
    for_each_slot(&checkpoint.model, |path, slot| {
        let found = slots.next().unwrap();
        assert_eq!(found.form.name(), slot.form.name(), "{what}: {path}");
        let kind = |slot: &Projection| {
            slot.low_rank.as_ref().map(|map| (map.rank(), map.kind(), map.dropout().to_bits()))
        };
        assert_eq!(kind(&found), kind(slot), "{what}: {path}");
        let columns = |slot: &Projection| match &slot.outliers {
            Some(Outliers::Salient(salient)) => Some(salient.columns().to_vec()),
            Some(Outliers::Hadamard(turn)) => Some(vec![turn.d_input]),
            None => None,
        };
        assert_eq!(columns(&found), columns(slot), "{what}: {path}");
        assert_eq!((found.d_input(), found.d_output()), (slot.d_input(), slot.d_output()), "{what}: {path}");
    });
    let config = read_json(&folder.path().join("config.json"));
    let has_more = config.get(KEY).is_some();
    assert_eq!(
        config["model_type"] == "bitnet_arch",
        has_more || config.get("quantization_config").is_none() && config.get("bitnet_arch").is_some(),
        "{what}"
    );
    again
}

/// Corrections of every kind, latent and packed, with and without SubLN, some slots left out.
pub fn corrections_are_saved(device: &Device) {
    let some = LrcConfig {
        slots: vec![SlotRule::rank(3).on("*.down"), SlotRule::default()],
        exclude: vec!["layers.1.*".into()],
        ..LrcConfig::default()
    };
    let quantized = LrcConfig { factors: Some(GroupQuant::new(4, 16).unwrap()), ..LrcConfig::default() };
    for sub_norm in [Placement::None, Placement::Output, Placement::All] {
        for (name, config) in [("LRC", &LrcConfig::default()), ("some", &some), ("QLRC", &quantized)] {
            let latent = corrected(bitnet(sub_norm, device), config);
            let what = format!("{name}, {sub_norm:?}");
            let again = round_trip(&what, &latent, device);
            // Saved again it is the same: nothing of the first config is left over.
            round_trip(&what, &again.with_type(WeightType::F32), device);
            let (packed, _) = pack(latent).unwrap();
            round_trip(&format!("{what}, packed"), &packed, device);
        }
    }
    let with = round_trip("LRC", &corrected(bitnet(Placement::None, device), &LrcConfig::default()), device);
    let (model, _) = remove(with.model.clone());
    let without = round_trip("removed", &with.with_model(model), device);
    for_each_slot(&without.model, |_, slot| assert!(slot.low_rank.is_none()));
}

/// On a checkpoint, rules and report speak of full names; the corrections are those of the same rules on paths.
pub fn checkpoints_are_corrected_by_name(device: &Device) {
    let checkpoint = bitnet(Placement::None, device);
    let batches = batches(&checkpoint);
    let config = |slots: &str, exclude: &str, init| LrcConfig {
        slots: vec![SlotRule::rank(2).on(slots)],
        exclude: vec![exclude.into()],
        init,
        ..LrcConfig::default()
    };
    for init in [Init::SvdResidual, Init::Calibrated { rounds: 1 }] {
        let by_name = config("*.mlp.*_proj", "model.layers.1.*", init);
        let (found, report) = correct(checkpoint.clone(), &by_name, &batches).unwrap();
        let by_path = config("*.mlp.*", "layers.1.*", init);
        let expected = match init {
            Init::SvdResidual => add_lrc(checkpoint.model.clone(), &by_path).unwrap().0,
            _ => calibrate(checkpoint.model.clone(), &batches, &by_path).unwrap().0,
        };
        assert!(golden_logits(&found.model) == golden_logits(&expected), "{init:?}");
        assert_eq!(report.report.n_added(), 3 * (checkpoint.config.model().n_layers - 1));
        assert_eq!(report.report.slots[6].path, "model.layers.0.mlp.down_proj");
        assert_eq!(report.tokens > 0, init != Init::SvdResidual);
        round_trip("corrected", &found, device);
        // A checkpoint is packed whole, what is not corrected too.
        let (packed, _) =
            correct(checkpoint.clone(), &LrcConfig { keep_latent: false, ..by_name }, &batches).unwrap();
        round_trip("packed", &packed, device);
        for_each_slot(&packed.model, |path, slot| assert_eq!(slot.form.name(), "packed", "{path}"));
    }
    for bad in ["*.mlp.[", "*.upp"] {
        for config in [config(bad, "*.q_proj", Init::Kaiming), config("*", bad, Init::Kaiming)] {
            let error = correct(checkpoint.clone(), &config, &[]).err().unwrap();
            assert!(matches!(&error, ConvertError::Pattern { pattern, .. } if pattern == bad), "{error}");
        }
    }
    let none = config("*", "*.q_proj", Init::Calibrated { rounds: 0 });
    assert!(matches!(correct(checkpoint, &none, &[]), Err(ConvertError::Lrc(LrcError::NoData))));
}

/// LoRA on a dense model and on a ternary one, with dropout.
pub fn adapters_are_saved(device: &Device) {
    let config = LoraConfig {
        slots: vec![SlotRule::rank(2).on("*.query")],
        alpha: 5.0,
        dropout: 0.25,
        ..LoraConfig::default()
    };
    for checkpoint in [dense(device), bitnet(Placement::Output, device)] {
        let (mut model, _) = add_lora(checkpoint.model.clone(), &config).unwrap();
        for_each_slot_mut(&mut model, |_, slot| {
            if let Some(low_rank) = &mut slot.low_rank {
                low_rank.u = Param::from_tensor(random(low_rank.u.val().dims(), 100, device));
            }
        });
        let is_dense = !bitnet_arch::convert::is_bitnet(&model);
        let checkpoint = checkpoint.with_model(model);
        let again = round_trip("LoRA", &checkpoint, device);
        let folder = tempfile::tempdir().unwrap();
        save(&again, folder.path()).unwrap();
        assert_eq!(is_bitnet_folder(folder.path()).unwrap(), !is_dense);
        // A frozen one is saved as well as one in training.
        let (frozen, _) = freeze_except_adapters(again.model.clone(), Default::default()).unwrap();
        round_trip("frozen", &again.with_model(frozen), device);
    }
}

/// Hadamard and salient columns as a conversion policy: reported, saved, packed, corrected; λ = 0 is the dense model.
pub fn treated_slots_are_saved(device: &Device) {
    let dense = dense(device);
    let expected = golden_logits(&dense.model);
    let batches = batches(&dense);
    for (hadamard, salient) in [(true, None), (false, Some(0.1)), (true, Some(0.1))] {
        let policy = Policy {
            hadamard,
            salient,
            exclude: vec!["*.layers.0.self_attn.v_proj".into()],
            ..Policy::default()
        };
        let what = format!("Hadamard {hadamard}, salient {salient:?}");
        let (mut checkpoint, report) = convert_calibrated(dense.clone(), &policy, &batches).unwrap();
        let n_layers = checkpoint.config.model().n_layers;
        assert_eq!(report.n_converted(), 7 * n_layers - 1, "{what}");
        let count = |wanted: &Action| report.tensors.iter().filter(|tensor| tensor.action == *wanted).count();
        assert_eq!(count(&Action::TurnedAndTernarized), if hadamard { 2 * n_layers } else { 0 }, "{what}");
        let kept = count(&Action::Left(LeftBecause::Salient));
        let expected_kept = match (hadamard, salient) {
            (_, None) => 0,
            (true, Some(_)) => 5 * n_layers - 1,
            (false, Some(_)) => 7 * n_layers - 1,
        };
        assert_eq!(kept, expected_kept, "{what}");
        set_lambda(&mut checkpoint.model, Some(0.0));
        assert_close_relative(&what, &golden_logits(&checkpoint.model), &expected, 2.0 * SUMMATION);
        set_lambda(&mut checkpoint.model, Some(1.0));
        assert!(max_difference(&golden_logits(&checkpoint.model), &expected) > 0.1);
        let checkpoint = round_trip(&what, &checkpoint, device).with_type(WeightType::F32);
        let checkpoint = corrected(checkpoint, &LrcConfig::default());
        round_trip(&format!("{what}, corrected"), &checkpoint, device);
        let (packed, _) = pack(checkpoint).unwrap();
        round_trip(&format!("{what}, packed"), &packed, device);
    }
    assert!(matches!(
        convert(dense.clone(), &Policy { salient: Some(0.1), ..Policy::default() }),
        Err(ConvertError::NeedsData)
    ));
    let error = convert_calibrated(dense.clone(), &Policy { salient: Some(0.1), ..Policy::default() }, &[]);
    assert!(matches!(error, Err(ConvertError::Lrc(LrcError::NoData))));
    let groups = Quantization { weight: Granularity::Group(8), ..Quantization::default() };
    let policy = Policy { salient: Some(0.02), quantization: groups, ..Policy::default() };
    let error = convert_calibrated(dense, &policy, &batches);
    assert!(
        matches!(error, Err(ConvertError::Layer(LayerError::Quantization { .. }))),
        "columns less one are no groups of 8"
    );
}

/// Formats that have no words for them refuse, and write nothing; without them the model goes.
pub fn other_formats_refuse(device: &Device) {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    let plain = bitnet(Placement::Output, device);
    let lrc = corrected(plain.clone(), &LrcConfig::default());
    let (turned, _) = rotate(dense(device).model, &HadamardConfig::default()).unwrap();
    let turned = dense(device).with_model(turned);
    for (checkpoint, expected) in [(&lrc, "low-rank maps"), (&turned, "turned by a Hadamard matrix")] {
        let tensors = Tensors::of(checkpoint);
        let results = [
            export_hf(&tensors, &target, &HfOptions::new(HfFormat::AutoBitLinear), |_, _| ()),
            export_gguf(&tensors, &target, &GgufOptions::default(), |_, _| ()).map(drop),
        ];
        for result in results {
            let Err(ConvertError::NotExportable { reason, .. }) = result else { panic!("{result:?}") };
            assert!(reason.contains(expected), "{reason}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
    let (model, _) = remove(lrc.model.clone());
    let bare = lrc.with_model(model);
    export_hf(&Tensors::of(&bare), &target, &HfOptions::new(HfFormat::AutoBitLinear), |_, _| ()).unwrap();
    assert_eq!(golden_logits(&loaded(&target, device).model), golden_logits(&plain.model));
    for result in [
        export_peft(&plain, folder.path().join("peft"), false).map(drop),
        export_gguf_adapter(&plain, folder.path().join("a.gguf"), &GgufOptions::default()).map(drop),
    ] {
        assert!(
            matches!(&result, Err(ConvertError::NotExportable { reason, .. }) if reason.contains("no correction")),
            "{result:?}"
        );
    }
}

/// `scale · B · A` of each slot in a PEFT folder is the low-rank map.
pub fn peft_adapters(device: &Device) {
    let lora =
        LoraConfig { slots: vec![SlotRule::rank(4)], alpha: 6.0, dropout: 0.1, ..LoraConfig::default() };
    let (adapted, _) = add_lora(bitnet(Placement::None, device).model, &lora).unwrap();
    let quantized = LrcConfig { factors: Some(GroupQuant::new(8, 32).unwrap()), ..LrcConfig::default() };
    for checkpoint in [
        corrected(bitnet(Placement::Output, device), &LrcConfig::default()),
        corrected(bitnet(Placement::None, device), &quantized),
        bitnet(Placement::None, device).with_model(adapted),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("adapter");
        let names = export_peft(&checkpoint, &target, false).unwrap();
        assert_eq!(names.len(), 7 * checkpoint.config.model().n_layers);
        assert_eq!(names[0], "model.layers.0.self_attn.q_proj");
        let (config, file) = (
            read_json(&target.join("adapter_config.json")),
            Golden::read(&target.join("adapter_model.safetensors")),
        );
        assert_eq!((&config["peft_type"], &config["task_type"]), (&json!("LORA"), &json!("CAUSAL_LM")));
        assert_eq!(config["target_modules"].as_array().unwrap().len(), names.len());
        assert_eq!(file.names().len(), 2 * names.len());
        let mut names = names.iter();
        for_each_slot(&checkpoint.model, |path, slot| {
            let (name, low_rank) = (names.next().unwrap(), slot.low_rank.as_ref().unwrap());
            let tensor =
                |factor: &str| file.tensor::<2>(&format!("base_model.model.{name}.{factor}.weight"), device);
            let (a, b) = (tensor("lora_A"), tensor("lora_B"));
            assert_eq!(a.dims(), [low_rank.rank(), slot.d_input()], "{path}");
            let rank = config["rank_pattern"][name].as_u64().unwrap();
            assert_eq!(rank as usize, low_rank.rank());
            let scale = config["alpha_pattern"][name].as_f64().unwrap() / rank as f64;
            let product = values(b.matmul(a) * scale);
            assert_close_relative(path, &product, &values(low_rank.product(1.0)), SUMMATION);
        });
        let mut is_lora = false;
        for_each_slot(&checkpoint.model, |_, slot| {
            is_lora |= slot.low_rank.as_ref().unwrap().dropout() > 0.0
        });
        assert_eq!(config["lora_dropout"], if is_lora { 0.1 } else { 0.0 });
        let again = export_peft(&checkpoint, &target, false);
        assert!(matches!(again, Err(ConvertError::Exists { .. })), "{again:?}");
        export_peft(&checkpoint, &target, true).unwrap();
    }
    let mut halfway = corrected(bitnet(Placement::None, device), &LrcConfig::default());
    set_lambda(&mut halfway.model, Some(0.5));
    let folder = tempfile::tempdir().unwrap();
    let error = export_peft(&halfway, folder.path().join("a"), false);
    assert!(
        matches!(&error, Err(ConvertError::Lambda { name, found: 0.5 }) if name == "model.layers.0.self_attn.q_proj"),
        "{error:?}"
    );
}

/// Names, order of rows and scales of a GGUF adapter are those of the file that it goes with.
pub fn gguf_adapters(device: &Device) {
    for (weights, beside) in [(GgufType::F32, false), (GgufType::Q2_0, true)] {
        let checkpoint = corrected(wide(Placement::None, Granularity::Tensor, device), &LrcConfig::default());
        let folder = tempfile::tempdir().unwrap();
        let (base, adapter) = (folder.path().join("base.gguf"), folder.path().join("adapter.gguf"));
        let options = GgufOptions { weights, ..GgufOptions::default() };
        let (model, _) = remove(checkpoint.model.clone());
        export_gguf(&Tensors::of(&checkpoint.clone().with_model(model)), &base, &options, |_, _| ()).unwrap();
        let report = export_gguf_adapter(&checkpoint, &adapter, &options).unwrap();
        let (base, adapter) = (fs::read(&base).unwrap(), fs::read(&adapter).unwrap());
        let (base, file) = (Gguf::read(&base).unwrap(), Gguf::read(&adapter).unwrap());
        let text = |key: &str| file.get(key).and_then(|value| value.as_str()).map(str::to_owned);
        assert_eq!(text("general.type").as_deref(), Some("adapter"));
        assert_eq!(text("adapter.type").as_deref(), Some("lora"));
        assert_eq!(text("general.architecture").as_deref(), Some("llama"));
        assert_eq!(file.get("adapter.lora.alpha").unwrap().as_f64(), Some(0.0));
        assert_eq!(file.tensors().count(), 2 * 7 * checkpoint.config.model().n_layers);
        assert_eq!(report.tensors.len(), file.tensors().count());

        let floats = |name: &str| -> Vec<f32> {
            let bytes = file.tensor(name).unwrap_or_else(|| panic!("{name}")).data;
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let head_dim = checkpoint.config.model().head_dim();
        let mut n_scaled = 0;
        for_each_slot(&checkpoint.model, |path, slot| {
            let low_rank = slot.low_rank.as_ref().unwrap();
            let (_, rest) = path.split_once('.').unwrap();
            let (layer, rest) = rest.split_once('.').unwrap();
            let name = match rest {
                "attention.query" => "attn_q",
                "attention.key" => "attn_k",
                "attention.value" => "attn_v",
                "attention.output" => "attn_output",
                "mlp.gate" => "ffn_gate",
                "mlp.up" => "ffn_up",
                "mlp.down" => "ffn_down",
                other => panic!("{other}"),
            };
            let name = format!("blk.{layer}.{name}");
            let rank = low_rank.rank();
            let a = floats(&format!("{name}.weight.lora_a"));
            assert_eq!(a, values(low_rank.v.val().transpose()), "{path}");
            let u = values(low_rank.u.val());
            // llama.cpp has the two halves of a head side by side.
            let source = |row: usize| match rest {
                "attention.query" | "attention.key" => {
                    let (head, i) = (row / head_dim, row % head_dim);
                    head * head_dim + i % 2 * (head_dim / 2) + i / 2
                }
                _ => row,
            };
            let scaled = base.tensor(&format!("{name}.scale")).filter(|_| rest.starts_with("mlp"));
            n_scaled += usize::from(scaled.is_some());
            let scale = scaled.map_or(1.0, |scale| f32::from_le_bytes(scale.data.try_into().unwrap()));
            let expected: Vec<f32> =
                (0..slot.d_output()).flat_map(|row| u[source(row) * rank..][..rank].to_vec()).collect();
            let found: Vec<f32> =
                floats(&format!("{name}.weight.lora_b")).iter().map(|b| b * scale).collect();
            assert_close_relative(path, &found, &expected, SUMMATION);
        });
        assert_eq!(n_scaled > 0, beside, "a scale beside the weight takes the adapter along");
        let again = export_gguf_adapter(&checkpoint, folder.path().join("adapter.gguf"), &options);
        assert!(matches!(again, Err(ConvertError::Exists { .. })), "{again:?}");
    }
}

/// What config.json may say wrong about slots: each an error before anything is read.
pub fn damaged_configs(device: &Device) {
    let lrc = corrected(bitnet(Placement::None, device), &LrcConfig::default());
    let query = "model.layers.0.self_attn.q_proj";
    let refused = |edit: &dyn Fn(&mut serde_json::Value)| {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model");
        save(&lrc, &target).unwrap();
        edit_config(&target, |config| edit(&mut config[KEY]));
        let Err(error) = load(&target as &Path, device, &LoadOptions::default()) else { panic!("it loads") };
        error
    };
    let error = refused(&|slots| {
        slots["low_rank"]["model.layers.9.mlp.up_proj"] = json!({ "rank": 1, "kind": "correction" })
    });
    assert!(
        matches!(&error, ConvertError::Unsupported { field: KEY, found, .. } if found == "model.layers.9.mlp.up_proj"),
        "{error}"
    );
    for rank in [0_u64, 1_000_000_007] {
        let error = refused(&|slots| slots["low_rank"][query]["rank"] = json!(rank));
        assert!(
            matches!(&error, ConvertError::Layer(LayerError::Rank { found, .. }) if *found as u64 == rank),
            "{error}"
        );
    }
    let error = refused(&|slots| slots["low_rank"][query]["rank"] = json!(2));
    assert!(
        matches!(&error, ConvertError::Tensors { problems } if problems.len() == 2),
        "both factors: {error}"
    );
    let error =
        refused(&|slots| slots["low_rank"][query]["kind"] = json!({ "quantized_correction": { "bits": 5 } }));
    assert!(matches!(&error, ConvertError::Json { reason, .. } if reason.contains("4 or 8")), "{error}");
    let error = refused(&|slots| slots["low_rank"][query]["alpha"] = json!(1));
    assert!(matches!(&error, ConvertError::Json { .. }), "{error}");
    let error = refused(&|slots| slots["turned"] = json!([]));
    assert!(matches!(&error, ConvertError::Json { .. }), "{error}");
    let error = refused(&|slots| slots["base_model_type"] = json!("gpt2"));
    assert!(
        matches!(&error, ConvertError::Json { reason, .. } if reason.contains("expected `llama`")),
        "{error}"
    );
    let error = refused(&|slots| {
        slots["hadamard"] = json!([query]);
        slots["salient"] = json!({ query: [1] });
    });
    assert!(matches!(&error, ConvertError::Unsupported { found, .. } if found == query), "{error}");
    let error = refused(&|slots| slots["salient"] = json!({ query: [1_000_000] }));
    assert!(matches!(&error, ConvertError::Layer(LayerError::Columns { .. })), "{error}");
}
