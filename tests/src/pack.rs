//! Packing models, and packed folders: the same codes, the same outputs.

use std::fs;
use std::path::Path;

use bitnet_arch::convert::{
    Checkpoint, ConvertError, HfFormat, HfOptions, LoadOptions, Placement, Policy, Tensors, WeightType,
    convert, export_hf, load, pack, pack_slots, save,
};
use bitnet_arch::format::{Granularity, TernaryMatrix};
use bitnet_arch::layers::{BitLinearConfig, Form, LayerError, Projection, for_each_slot, set_lambda};
use bitnet_arch::quant::{ActivationQuant, Bits, Quantization};
use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use tempfile::tempdir;

use crate::check::{SUMMATION, assert_close_relative, values};
use crate::checkpoints::{
    assert_close_but_for_flips, edit_config, golden, golden_logits, loaded, read_json, scratch,
};
use crate::golden::Golden;

const PACKED_FORMATS: [HfFormat; 2] = [HfFormat::BitLinear, HfFormat::AutoBitLinear];

/// A golden checkpoint converted so, at λ = 1.
fn converted(name: &str, policy: &Policy, device: &Device) -> Checkpoint {
    let (mut checkpoint, _) = convert(golden(name, device), policy).unwrap();
    set_lambda(&mut checkpoint.model, Some(1.0));
    checkpoint
}

fn quantized(quantization: Quantization) -> Policy {
    Policy { quantization, ..Policy::default() }
}

/// Codes and scales of every BitNet slot.
fn codes(checkpoint: &Checkpoint) -> Vec<(String, TernaryMatrix)> {
    let mut codes = Vec::new();
    for_each_slot(&checkpoint.model, |path, slot| match &slot.form {
        Form::Dense(_) => {}
        Form::Bit(linear) => codes.push((path.into(), linear.ternary().unwrap())),
        Form::Packed(linear) => codes.push((path.into(), linear.ternary().unwrap())),
    });
    codes
}

fn write(checkpoint: &Checkpoint, folder: &Path, format: HfFormat) -> Result<(), ConvertError> {
    export_hf(&Tensors::of(checkpoint), folder, &HfOptions::new(format), |_, _| ())
}

/// A packed slot computes what the trained slot computed, for every granularity, width and rank, and so does its
/// gradient.
pub fn a_packed_slot_computes_what_it_was_packed_from(device: &Device) {
    for (granularity, bits, bias) in [
        (Granularity::Tensor, 8, false),
        (Granularity::Row, 8, true),
        (Granularity::Group(16), 5, true),
        (Granularity::Group(8), 2, false),
    ] {
        let activation = ActivationQuant::PerToken(Bits::try_from(bits).unwrap());
        for activation in [activation, ActivationQuant::PerTensor(Bits::EIGHT), ActivationQuant::Off] {
            let quantization = Quantization { weight: granularity, activation };
            let config = BitLinearConfig::new(48, 37).with_bias(bias).with_quantization(quantization);
            let mut slot = Projection::from(config.init(device).unwrap());
            slot.lambda = Some(1.0);
            let mut packed = slot.clone();
            assert!(packed.pack().unwrap());
            assert!(!packed.pack().unwrap(), "packed twice");
            let x = Tensor::<3>::random([2, 3, 48], Distribution::Normal(0.0, 1.0), device);
            let what = format!("{granularity:?}, {activation:?}");
            let (found, expected) = (packed.forward(x.clone()), slot.forward(x.clone()));
            assert_eq!(found.dims(), [2, 3, 37]);
            assert_close_relative(&what, &values(found), &values(expected), SUMMATION);

            let g = Tensor::<3>::random([2, 3, 37], Distribution::Normal(0.0, 1.0), device);
            let gradient = |slot: Projection| {
                let slot = slot.train();
                let x = x.clone().autodiff().require_grad();
                let y = slot.forward(x.clone()) * g.clone().autodiff();
                values(x.grad(&y.sum().backward()).unwrap())
            };
            let what = format!("gradient, {what}");
            assert_close_relative(&what, &gradient(packed), &gradient(slot), SUMMATION);
        }
    }
}

/// A packed slot is at λ = 1 whatever is written into it; one that is not at λ = 1 yet is not packed.
pub fn lambda(device: &Device) {
    let mut slot = Projection::from(BitLinearConfig::new(8, 4).init(device).unwrap());
    slot.lambda = Some(0.5);
    assert_eq!(slot.pack(), Err(LayerError::Lambda { found: 0.5 }));
    assert_eq!(slot.form.name(), "BitNet");
    slot.lambda = Some(1.0);
    assert!(slot.pack().unwrap());
    slot.lambda = Some(0.5);
    assert_eq!(slot.effective_lambda(), 1.0);
    let codes = TernaryMatrix::per_tensor(vec![0; 8], [4, 2], bitnet_arch::format::WeightScale::ONE).unwrap();
    let error = slot.set_packed(&codes, ActivationQuant::default()).unwrap_err();
    assert_eq!(error, LayerError::Shape { found: [4, 2], expected: [4, 8] });

    let mut checkpoint = converted("llama_tied", &Policy::default(), device);
    checkpoint.model.layers[1].mlp.down.lambda = Some(0.75);
    let refused = |result: Result<(), ConvertError>| match result.unwrap_err() {
        ConvertError::Lambda { name, found } => {
            assert_eq!((name.as_str(), found), ("model.layers.1.mlp.down_proj", 0.75));
        }
        error => panic!("{error}"),
    };
    refused(pack(checkpoint.clone()).map(|_| ()));
    let folder = tempdir().unwrap();
    refused(write(&checkpoint, &folder.path().join("out"), HfFormat::AutoBitLinear));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let options = HfOptions { any_lambda: true, ..HfOptions::new(HfFormat::AutoBitLinear) };
    export_hf(&Tensors::of(&checkpoint), folder.path().join("out"), &options, |_, _| ()).unwrap();
}

/// Packing a model keeps its codes and its logits, makes its linear weights 16 times smaller, and its parameters
/// survive a record.
pub fn packing_keeps_the_model(device: &Device) {
    for policy in [
        Policy::default(),
        quantized(Quantization { weight: Granularity::Row, ..Quantization::default() }),
        quantized(Quantization { weight: Granularity::Group(32), ..Quantization::default() }),
    ] {
        let trained = converted("llama_tied", &policy, device);
        let (packed, report) = pack(trained.clone()).unwrap();
        assert_eq!(report.slots.len(), 7 * trained.model.layers.len());
        assert_eq!(codes(&packed), codes(&trained));
        let expected = golden_logits(&trained.model);
        let what = format!("{:?}", policy.quantization.weight);
        assert_eq!(golden_logits(&packed.model), expected, "{what}");
        let share: f64 =
            report.slots.iter().map(|slot| slot.sparsity).sum::<f64>() / report.slots.len() as f64;
        assert!((0.2..0.5).contains(&share), "{share} zeros");

        let (again, second) = pack(packed.clone()).unwrap();
        assert_eq!((second.slots.len(), codes(&again)), (0, codes(&trained)));
        // Saved, a packed checkpoint loads as itself: the same codes, the same bits.
        let folder = tempdir().unwrap();
        if policy.quantization.weight == Granularity::Tensor {
            assert!(report.ratio_to_f32() > 15.9, "{}", report.ratio_to_f32());
            save(&packed, folder.path()).unwrap();
            let back = loaded(folder.path(), device);
            assert_eq!(golden_logits(&back.model), golden_logits(&packed.model));
        } else {
            assert!(matches!(save(&packed, folder.path()), Err(ConvertError::Format { .. })));
        }
    }
    let slots = vec![Projection::from(BitLinearConfig::new(64, 64).init(device).unwrap())];
    let (slots, report) = pack_slots(slots).unwrap();
    assert_eq!((report.slots[0].name.as_str(), report.slots[0].bytes), ("0", 64 * 64 / 4 + 4));
    assert_eq!(slots[0].form.name(), "packed");
}

/// Every packed folder, written from a model in memory, from its folder or from another packed folder, holds the same
/// codes, and its scales to one unit in the last place where the file stores their reciprocals.
pub fn exports_load_with_the_same_codes(device: &Device) {
    let sub_norms = |sub_norm| Policy { sub_norm, ..Policy::default() };
    for (name, policy) in [
        ("llama_tied", sub_norms(Placement::Output)),
        ("llama_tied", sub_norms(Placement::None)),
        ("qwen2", sub_norms(Placement::All)),
        ("llama_sharded", Policy { exclude: vec!["*.layers.0.*".into()], ..sub_norms(Placement::None) }),
        ("bitnet_online", Policy::default()),
    ] {
        let source = scratch(name);
        let (mut trained, _) = convert(loaded(source.path(), device), &policy).unwrap();
        set_lambda(&mut trained.model, Some(1.0));
        let expected = golden_logits(&trained.model);
        let root = tempdir().unwrap();
        let latent = root.path().join("latent");
        save(&trained, &latent).unwrap();
        for format in PACKED_FORMATS {
            let (ours, theirs) =
                (root.path().join(format!("{format:?}")), root.path().join(format!("{format:?}2")));
            write(&trained, &ours, format).unwrap();
            let options = HfOptions::new(format);
            let tensors = Tensors::open(&latent, &LoadOptions { strict: true }).unwrap();
            let mut calls = Vec::new();
            export_hf(&tensors, &theirs, &options, |done, total| calls.push((done, total))).unwrap();
            assert!(calls.is_sorted() && calls[0].0 == 0 && calls.last().is_some_and(|(a, b)| a == b));
            for file in fs::read_dir(&ours).unwrap() {
                let file = file.unwrap().file_name();
                assert_eq!(
                    fs::read(ours.join(&file)).unwrap(),
                    fs::read(theirs.join(&file)).unwrap(),
                    "{name}: {file:?}"
                );
            }
            assert!(ours.join("tokenizer.json").is_file());
            let back = load(&ours, device, &LoadOptions { strict: true }).unwrap();
            assert!(back.suspicious_scales.is_empty(), "{:?}", back.suspicious_scales);
            assert_same_codes(name, &codes(&back), &codes(&trained));
            let found = golden_logits(&back.model);
            match format {
                HfFormat::AutoBitLinear if name != "qwen2" => assert_eq!(found, expected, "{name}"),
                // A scale that went through its reciprocal moves activations by an ulp, as a bias does that was divided,
                // and with it single codes.
                _ => assert_close_but_for_flips(name, &found, &expected),
            }

            // And on to the other direction.
            for other in PACKED_FORMATS {
                let again = root.path().join(format!("{format:?} {other:?}"));
                write(&back, &again, other).unwrap();
                assert_same_codes(name, &codes(&loaded(&again, device)), &codes(&trained));
            }
            assert!(matches!(
                write(&back, &root.path().join("online"), HfFormat::Online),
                Err(ConvertError::NotExportable { .. })
            ));
        }
        let online = root.path().join("online");
        write(&trained, &online, HfFormat::Online).unwrap();
        assert_eq!(codes(&loaded(&online, device)), codes(&trained), "{name}");
    }
}

fn assert_same_codes(what: &str, found: &[(String, TernaryMatrix)], expected: &[(String, TernaryMatrix)]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for ((path, found), (_, expected)) in found.iter().zip(expected) {
        assert_eq!(found.codes(), expected.codes(), "{what}: {path}");
        for (found, expected) in found.scales().iter().zip(expected.scales()) {
            let ulps = found.get().to_bits().abs_diff(expected.get().to_bits());
            assert!(ulps <= 1, "{what}: {path}: scale {found:?}, expected {expected:?}");
        }
    }
}

/// transformers multiplies the sum of product and bias by an `autobitlinear` scale: the file holds bias / scale, in f32
/// beside weights of any type. Beside a dividing scale the bias is itself.
pub fn biases_of_packed_folders(device: &Device) {
    let trained = converted("qwen2", &Policy { sub_norm: Placement::None, ..Policy::default() }, device);
    let root = tempdir().unwrap();
    let bias = "model.layers.0.self_attn.q_proj.bias";
    let latent = root.path().join("latent");
    save(&trained, &latent).unwrap();
    let expected = Golden::read(&latent.join("model.safetensors")).floats(bias);
    for (format, exact) in [(HfFormat::BitLinear, true), (HfFormat::AutoBitLinear, false)] {
        let folder = root.path().join(format!("{format:?}"));
        write(&trained, &folder, format).unwrap();
        let file = Golden::read(&folder.join("model.safetensors"));
        let stored = file.floats(bias);
        if exact {
            assert_eq!(stored, expected);
            continue;
        }
        let scale = file.floats("model.layers.0.self_attn.q_proj.weight_scale")[0];
        assert_ne!(scale, 1.0);
        let times_scale: Vec<f32> = stored.iter().map(|bias| bias * scale).collect();
        assert_close_relative("bias", &times_scale, &expected, f32::EPSILON);
    }
}

/// A packed folder loads again whatever its config can say in transformers' words: sub-norms with a slot left dense, too.
pub fn packed_models_with_dense_slots_load_again(device: &Device) {
    for sub_norm in [Placement::None, Placement::Output, Placement::All] {
        let policy =
            Policy { sub_norm, exclude: vec!["*.layers.0.self_attn.v_proj".into()], ..Policy::default() };
        let (packed, _) = pack(converted("llama_tied", &policy, device)).unwrap();
        let packed = packed.with_type(WeightType::F32);
        let folder = tempdir().unwrap();
        let target = folder.path().join("model");
        save(&packed, &target).unwrap();
        let again = load(&target, device, &LoadOptions { strict: true }).unwrap();
        assert_eq!(codes(&again), codes(&packed), "{sub_norm:?}");
        assert_eq!(golden_logits(&again.model), golden_logits(&packed.model), "{sub_norm:?}");
    }
}

/// The config says what transformers needs: class, mode, skipped modules; types change where asked for.
pub fn exported_config(device: &Device) {
    let trained = converted("llama_tied", &Policy::default(), device);
    let root = tempdir().unwrap();
    for (format, class, mode) in [
        (HfFormat::BitLinear, "bitlinear", "offline"),
        (HfFormat::AutoBitLinear, "autobitlinear", "offline"),
        (HfFormat::Online, "autobitlinear", "online"),
    ] {
        let folder = root.path().join(class.to_owned() + mode);
        let options = HfOptions { weight_type: Some(WeightType::F16), ..HfOptions::new(format) };
        export_hf(&Tensors::of(&trained), &folder, &options, |_, _| ()).unwrap();
        let config = read_json(&folder.join("config.json"));
        let quantization = &config["quantization_config"];
        assert_eq!(quantization["quant_method"], "bitnet");
        assert_eq!(
            (&quantization["linear_class"], &quantization["quantization_mode"]),
            (&class.into(), &mode.into())
        );
        assert!(quantization["modules_to_not_convert"].is_null());
        assert_eq!((&config["model_type"], &config["hidden_act"]), (&"bitnet".into(), &"silu".into()));
        let dtype = config.get("dtype").or(config.get("torch_dtype")).unwrap();
        assert_eq!(dtype, "float16");
        let file = Golden::read(&folder.join("model.safetensors"));
        let expected = if mode == "online" { [64, 64] } else { [16, 64] };
        assert_eq!(file.shape("model.layers.0.self_attn.q_proj.weight"), expected);
        if mode == "offline" {
            // Half precision moves embeddings and norms, not codes.
            assert_same_codes(class, &codes(&loaded(&folder, device)), &codes(&trained));
        }
    }
}

/// What a format cannot hold is refused with a reason, and nothing is written.
pub fn refusals(device: &Device) {
    let root = tempdir().unwrap();
    let out = root.path().join("out");
    let reason = |checkpoint: &Checkpoint, format| {
        let error = write(checkpoint, &out, format).unwrap_err();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "{error}");
        error.to_string()
    };
    let dense = golden("llama_tied", device);
    assert!(reason(&dense, HfFormat::AutoBitLinear).contains("convert it first"));
    let rows = quantized(Quantization { weight: Granularity::Row, ..Quantization::default() });
    let rows = converted("llama_tied", &rows, device);
    assert!(reason(&rows, HfFormat::BitLinear).contains("per Row"), "{}", reason(&rows, HfFormat::BitLinear));
    let four_bits = ActivationQuant::PerToken(Bits::try_from(4).unwrap());
    let four_bits = quantized(Quantization { activation: four_bits, ..Quantization::default() });
    reason(&converted("llama_tied", &four_bits, device), HfFormat::Online);
    // SubLN before the output projections of a model that BitNetForCausalLM does not compute.
    reason(&converted("qwen2", &Policy::default(), device), HfFormat::BitLinear);

    let trained = converted("llama_tied", &Policy::default(), device);
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "mine").unwrap();
    let error = write(&trained, &out, HfFormat::AutoBitLinear).unwrap_err();
    assert!(matches!(error, ConvertError::Exists { .. }));
    assert_eq!(fs::read_to_string(out.join("mine")).unwrap(), "mine");
    let options = HfOptions { overwrite: true, ..HfOptions::new(HfFormat::AutoBitLinear) };
    export_hf(&Tensors::of(&trained), &out, &options, |_, _| ()).unwrap();
    assert!(!out.join("mine").exists() && out.join("config.json").is_file());
}

/// A packed file that is damaged, and scales that point the other way.
pub fn damaged_packed_folders(device: &Device) {
    let trained = converted("llama_tied", &Policy::default(), device);
    let root = tempdir().unwrap();
    let good = root.path().join("good");
    write(&trained, &good, HfFormat::AutoBitLinear).unwrap();
    let bytes = fs::read(good.join("model.safetensors")).unwrap();

    // The last byte belongs to a packed weight: 0xff is four digits 3.
    let mut bad = bytes.clone();
    *bad.last_mut().unwrap() = 0xff;
    fs::write(good.join("model.safetensors"), bad).unwrap();
    let error = load(&good, device, &LoadOptions::default()).unwrap_err();
    assert!(matches!(&error, ConvertError::Format { name, .. } if name.contains("proj.weight")), "{error}");
    fs::write(good.join("model.safetensors"), &bytes).unwrap();

    edit_config(&good, |config| config["quantization_config"]["linear_class"] = "bitlinear".into());
    let suspicious = load(&good, device, &LoadOptions::default()).unwrap().suspicious_scales;
    assert_eq!(suspicious.len(), 7 * trained.model.layers.len());
    assert!(suspicious[0].ends_with("_proj.weight_scale"), "{}", suspicious[0]);

    // Packed bytes under a config that promises latent weights, and the other way round.
    edit_config(&good, |config| {
        config["quantization_config"]["linear_class"] = "autobitlinear".into();
        config["quantization_config"]["quantization_mode"] = "online".into();
    });
    let error = load(&good, device, &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("dtype U8"), "{error}");
    let latent = root.path().join("latent");
    write(&trained, &latent, HfFormat::Online).unwrap();
    edit_config(&latent, |config| config["quantization_config"]["quantization_mode"] = "offline".into());
    let error = load(&latent, device, &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("expected U8") && error.contains("weight_scale` is missing"), "{error}");
}
