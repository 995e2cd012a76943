//! GGUF files: out and in again, what they cannot hold, and files of others.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bitnet_arch::convert::{
    Checkpoint, ConvertError, GgufOptions, GgufReport, GgufType, HfConfig, HfFormat, HfOptions, LoadOptions,
    Placement, Policy, TensorProblem, Tensors, WeightType, convert, export_gguf,
};
use bitnet_arch::layers::{Form, for_each_slot, set_lambda};
use bitnet_arch::model::{CausalLm, CausalLmConfig};
use bitnet_arch::quant::{ActivationQuant, Granularity, Quantization};
use bitnet_format::gguf::{Gguf, Header, TensorType, Value};
use bitnet_format::{FormatError, ScaleHome, TernaryMatrix};
use burn::tensor::Device;
use serde_json::json;
use tempfile::TempDir;

use crate::check::{SUMMATION, assert_close_relative, divides_exactly, integers, max_difference, values};
use crate::checkpoints::{DENSE, LOGITS, golden, golden_logits, loaded, logits, scratch};
use crate::hf::rope;

const TYPES: [GgufType; 7] = [
    GgufType::F32,
    GgufType::F16,
    GgufType::Tq1_0,
    GgufType::Tq2_0,
    GgufType::Q2_0,
    GgufType::I2sX86,
    GgufType::I2sArm,
];

/// f16 rounds a scale by up to half a unit in its last place.
const HALF: f32 = 1.0 / 2048.0;

fn of(weights: GgufType) -> GgufOptions {
    GgufOptions { weights, embedding: Some(WeightType::F32), ..GgufOptions::default() }
}

/// A Llama whose widths suit every type, with random weights and the golden tokenizer.
pub fn wide(sub_norm: Placement, weight: Granularity, device: &Device) -> Checkpoint {
    let config = CausalLmConfig::new(512, 256, 512, 2, 4)
        .with_n_kv_heads(Some(2))
        .with_max_positions(256)
        .with_tied_head(sub_norm != Placement::None);
    let hf = HfConfig::llama(&config).unwrap();
    let dense = Checkpoint::new(config.init(device).unwrap(), hf, crate::data("hf/llama_tied"));
    let quantization = Quantization { weight, ..Quantization::default() };
    let policy = Policy { sub_norm, quantization, ..Policy::default() };
    let (mut converted, _) = convert(dense, &policy).unwrap();
    set_lambda(&mut converted.model, Some(1.0));
    converted
}

/// A golden checkpoint with a tokenizer that outlives the call.
fn dense(name: &str, device: &Device) -> Checkpoint {
    let Checkpoint { model, config, .. } = golden(name, device);
    Checkpoint::new(model, config, crate::data("hf/llama_tied"))
}

/// A golden checkpoint with ternary slots.
fn ternary(name: &str, sub_norm: Placement, device: &Device) -> Checkpoint {
    let policy = Policy { sub_norm, ..Policy::default() };
    let (mut converted, _) = convert(dense(name, device), &policy).unwrap();
    set_lambda(&mut converted.model, Some(1.0));
    converted
}

fn write(checkpoint: &Checkpoint, path: &Path, options: &GgufOptions) -> Result<GgufReport, ConvertError> {
    export_gguf(&Tensors::of(checkpoint), path, options, |_, _| ())
}

/// A checkpoint in a file of its own.
fn exported(checkpoint: &Checkpoint, options: &GgufOptions) -> (TempDir, PathBuf, GgufReport) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let report = write(checkpoint, &path, options).unwrap();
    (folder, path, report)
}

fn imported(path: &Path, device: &Device) -> Checkpoint {
    let mut checkpoint = Tensors::open(path, &LoadOptions { strict: true }).unwrap().load(device).unwrap();
    set_lambda(&mut checkpoint.model, Some(1.0));
    checkpoint
}

/// Codes and scales of the packed slots.
fn packed(model: &CausalLm) -> BTreeMap<String, TernaryMatrix> {
    let mut matrices = BTreeMap::new();
    for_each_slot(model, |path, slot| {
        if let Form::Packed(linear) = &slot.form {
            matrices.insert(path.to_owned(), linear.ternary().unwrap());
        }
    });
    matrices
}

/// Fails unless these are what the layers compute with, on a device that rounds as the CPU does.
fn assert_layers_codes(
    what: &str,
    model: &CausalLm,
    found: &BTreeMap<String, TernaryMatrix>,
    device: &Device,
) {
    if !divides_exactly(device) {
        return;
    }
    for_each_slot(model, |path, slot| {
        if let Form::Bit(linear) = &slot.form {
            let ternary = linear.ternarize().unwrap();
            let codes = found[path].codes().iter().map(|code| i64::from(*code));
            assert!(integers(ternary.codes()).into_iter().eq(codes), "{what}, {path}");
            let scales: Vec<f32> = found[path].scales().iter().map(|scale| scale.get()).collect();
            assert_close_relative(what, &scales, &values(ternary.scale()), SUMMATION);
        }
    });
}

fn assert_scales(what: &str, found: &TernaryMatrix, expected: &TernaryMatrix, tolerance: f32) {
    assert_eq!((found.granularity(), found.shape()), (expected.granularity(), expected.shape()), "{what}");
    for (found, expected) in found.scales().iter().zip(expected.scales()) {
        let off = (found.get() - expected.get()).abs();
        assert!(off <= tolerance * expected.get(), "{what}: {found:?}, expected {expected:?}");
    }
}

/// Every type gives the same codes back, and the scales exactly where they are not rounded to f16.
pub fn codes_survive_every_type(device: &Device) {
    for (sub_norm, architecture) in [(Placement::Output, "bitnet"), (Placement::None, "llama")] {
        let checkpoint = wide(sub_norm, Granularity::Tensor, device);
        let mut first = None;
        for weights in TYPES {
            for scale in [None, Some(ScaleHome::Block)] {
                let what = format!("{architecture}, {weights}, {scale:?}");
                let (_folder, path, report) = exported(&checkpoint, &GgufOptions { scale, ..of(weights) });
                assert_eq!(
                    (report.architecture.as_str(), report.weights),
                    (architecture, weights.to_string())
                );
                assert!(report.tensors.iter().all(|tensor| tensor.because.is_none()), "{what}");
                let back = imported(&path, device);
                let found = packed(&back.model);
                assert_eq!(found.len(), 14, "{what}");
                let (expected, expected_logits) = first.get_or_insert_with(|| {
                    assert_layers_codes(&what, &checkpoint.model, &found, device);
                    (found.clone(), packed_folder_logits(&checkpoint, device))
                });
                let in_blocks = scale.is_some() && !matches!(weights, GgufType::I2sX86 | GgufType::I2sArm);
                let rounded = weights == GgufType::F16 || in_blocks && weights != GgufType::F32;
                for (slot, matrix) in &found {
                    assert_eq!(matrix.codes(), expected[slot].codes(), "{what}, {slot}");
                    assert_scales(&what, matrix, &expected[slot], if rounded { HALF } else { 0.0 });
                }
                let in_floats = matches!(weights, GgufType::F32 | GgufType::F16);
                for_each_slot(&back.model, |path, slot| {
                    let Form::Packed(linear) = &slot.form else { panic!("{what}, {path}") };
                    assert_eq!(linear.activation() == ActivationQuant::Off, in_floats, "{what}, {path}");
                });
                if !rounded && !in_floats {
                    assert_eq!(max_difference(&golden_logits(&back.model), expected_logits), 0.0, "{what}");
                }
            }
        }
    }
}

/// Logits of the same weights through Hugging Face's packing.
fn packed_folder_logits(checkpoint: &Checkpoint, device: &Device) -> Vec<f32> {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("packed");
    let options = HfOptions::new(HfFormat::AutoBitLinear);
    bitnet_arch::convert::export_hf(&Tensors::of(checkpoint), &folder, &options, |_, _| ()).unwrap();
    golden_logits(&loaded(&folder, device).model)
}

/// llama.cpp quantizes no activations beside floats: such a file is the model with ternary weights alone.
pub fn floats_are_weights_alone(device: &Device) {
    let quantization = Quantization { activation: ActivationQuant::Off, ..Quantization::default() };
    let policy = Policy { quantization, ..Policy::default() };
    let (mut weights_alone, _) = convert(dense("llama_tied", device), &policy).unwrap();
    set_lambda(&mut weights_alone.model, Some(1.0));
    for checkpoint in [&weights_alone, &ternary("llama_tied", Placement::Output, device)] {
        let (_folder, path, _) = exported(checkpoint, &of(GgufType::F32));
        let [found, expected] = [&imported(&path, device), &weights_alone].map(|c| golden_logits(&c.model));
        println!("max {:e}", max_difference(&found, &expected));
        assert!(max_difference(&found, &expected) <= LOGITS);
    }
}

/// Scales per row and per group stand in the blocks, or in floats.
pub fn finer_scales_stand_in_the_blocks(device: &Device) {
    for (granularity, types) in [
        (Granularity::Row, &[GgufType::Tq1_0, GgufType::Tq2_0, GgufType::Q2_0][..]),
        (Granularity::Group(256), &[GgufType::Tq1_0, GgufType::Tq2_0, GgufType::Q2_0]),
        (Granularity::Group(64), &[GgufType::Q2_0]),
        (Granularity::Group(32), &[]),
    ] {
        let checkpoint = wide(Placement::Output, granularity, device);
        let (_folder, path, _) = exported(&checkpoint, &of(GgufType::F32));
        let expected = packed(&imported(&path, device).model);
        assert_layers_codes(&format!("{granularity:?}"), &checkpoint.model, &expected, device);
        for weights in types {
            let what = format!("{granularity:?}, {weights}");
            let (_folder, path, report) = exported(&checkpoint, &of(*weights));
            assert!(!report.tensors.iter().any(|tensor| tensor.name.ends_with(".scale")), "{what}");
            for (slot, matrix) in packed(&imported(&path, device).model) {
                assert_eq!(matrix.codes(), expected[&slot].codes(), "{what}, {slot}");
                assert_scales(&what, &matrix, &expected[&slot], HALF);
            }
        }
        let (_folder, path, report) = exported(&checkpoint, &of(GgufType::Auto));
        let auto = match granularity {
            Granularity::Group(32) => "f16",
            Granularity::Group(64) => "q2_0",
            _ => "tq2_0",
        };
        assert_eq!(report.weights, auto, "{granularity:?}");
        let first = packed(&imported(&path, device).model).into_iter().next().unwrap();
        assert_eq!(first.1.codes(), expected[&first.0].codes(), "{granularity:?}");

        let folder = tempfile::tempdir().unwrap();
        let beside = GgufOptions { scale: Some(ScaleHome::Tensor), ..of(GgufType::Q2_0) };
        for options in [beside, of(GgufType::I2sX86)] {
            let error = write(&checkpoint, &folder.path().join("x"), &options).unwrap_err();
            assert!(
                matches!(&error, ConvertError::Format { source: FormatError::Granularity { .. }, .. }),
                "{error}"
            );
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

/// Every dense architecture comes back with its logits, in another order of rows and other gains on the way.
pub fn dense_models_come_back(device: &Device) {
    for name in DENSE {
        let dense = dense(name, device);
        let (_folder, path, report) = exported(&dense, &of(GgufType::F32));
        let expected = match name {
            "qwen2" | "qwen3" | "gemma" | "gemma2" => name,
            _ => "llama",
        };
        assert_eq!(report.architecture, expected, "{name}");
        let back = imported(&path, device);
        let first_tokens: Vec<u32> = (0..8).map(|i| i * 61 % 512).collect();
        let tokens = [first_tokens];
        let [found, expected] = [&back, &dense].map(|c| values(logits(&c.model, &tokens)));
        println!("{name}: max {:e}", max_difference(&found, &expected));
        assert!(max_difference(&found, &expected) <= LOGITS, "{name}");
        if name == "mistral_swa" {
            assert_eq!(back.config.model().max_positions, 8, "the sliding window");
            assert!(report.notes.iter().any(|note| note.contains("sliding window")), "{:?}", report.notes);
            continue;
        }
        let mut model = back.config.model().clone();
        model.head_dim = dense.config.model().head_dim;
        assert_eq!(&model, dense.config.model(), "{name}");
    }
}

/// RoPE scaling comes back where llama.cpp has it, and is refused or ends the context where it has not.
pub fn rope_scaling_comes_back(device: &Device) {
    for (name, runs) in [
        ("linear", true),
        ("llama3", true),
        ("yarn", true),
        ("yarn_attention_factor", true),
        ("yarn_mscale", true),
        ("dynamic_short", true),
        ("yarn_betas", false),
        ("yarn_no_truncate", false),
    ] {
        let Checkpoint { model, config, .. } = rope(name, device);
        let scaled = Checkpoint::new(model, config, crate::data("hf/llama_tied"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let report = match write(&scaled, &path, &of(GgufType::F32)) {
            Ok(report) => report,
            Err(error) => {
                assert!(!runs && error.to_string().contains("YaRN"), "{name}: {error}");
                continue;
            }
        };
        assert!(runs, "{name}");
        assert_eq!(report.notes.len(), usize::from(name == "dynamic_short"), "{:?}", report.notes);
        let tokens = [(0..24).map(|i| i * 61 % 512).collect::<Vec<u32>>()];
        let [found, expected] =
            [&imported(&path, device), &scaled].map(|c| values(logits(&c.model, &tokens)));
        println!("{name}: max {:e}", max_difference(&found, &expected));
        assert!(max_difference(&found, &expected) <= LOGITS, "{name}");
    }
}

/// Biases of the MLP are stored as llama.cpp adds them, and come back as they were.
pub fn biases_come_back(device: &Device) {
    for name in ["llama_all_bias", "llama_attn_bias", "qwen2"] {
        let checkpoint = ternary(name, Placement::None, device);
        let (_folder, path, report) = exported(&checkpoint, &of(GgufType::Q2_0));
        assert!(report.tensors.iter().any(|tensor| tensor.name == "blk.0.attn_q.bias"), "{name}");
        let back = imported(&path, device);
        let biases = |model: &CausalLm| {
            let mut biases = BTreeMap::new();
            for_each_slot(model, |path, slot| {
                let bias = match &slot.form {
                    Form::Dense(linear) => linear.bias.as_ref(),
                    Form::Bit(linear) => linear.bias.as_ref(),
                    Form::Packed(linear) => linear.bias.as_ref(),
                };
                if let Some(bias) = bias {
                    biases.insert(path.to_owned(), values(bias.val()));
                }
            });
            biases
        };
        let (found, expected) = (biases(&back.model), biases(&checkpoint.model));
        assert_eq!(found.len(), expected.len(), "{name}");
        for (slot, bias) in expected {
            let exact = !slot.contains(".mlp.");
            let tolerance = if exact { 0.0 } else { 1e-6 };
            assert!(max_difference(&found[&slot], &bias) <= tolerance, "{name}, {slot}");
        }
        let gate = report.tensors.iter().find(|tensor| tensor.name == "blk.0.ffn_gate.weight").unwrap();
        let reads_no_scale = gate.because.as_ref().is_some_and(|because| because.contains("no scale tensor"));
        assert_eq!(reads_no_scale, name == "qwen2");
    }
}

/// `Auto` takes what the widths allow; a tensor that does not fit becomes F16 and says so.
pub fn the_type_follows_the_widths(device: &Device) {
    let narrow = ternary("llama_tied", Placement::Output, device);
    let (_folder, path, report) = exported(&narrow, &GgufOptions::default());
    assert_eq!((report.architecture.as_str(), report.weights.as_str()), ("bitnet", "q2_0"));
    for tensor in &report.tensors {
        let expected = match tensor.name.as_str() {
            "token_embd.weight" => "F16",
            name if name.ends_with("ffn_down.weight") => "F16",
            name if name.ends_with(".scale") || name.contains("norm") => "F32",
            _ => "Q2_0",
        };
        assert_eq!(tensor.kind, expected, "{}", tensor.name);
        let because = tensor.because.as_deref().unwrap_or_default();
        assert_eq!(because.contains("d_input = 160"), tensor.name.ends_with("ffn_down.weight"), "{because}");
    }
    let file = fs::read(&path).unwrap();
    let file = Gguf::read(&file).unwrap();
    let written: Vec<(&str, usize)> = file.tensors().map(|tensor| (tensor.name, tensor.data.len())).collect();
    let reported: Vec<(&str, usize)> =
        report.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.bytes)).collect();
    assert_eq!(written, reported);
    assert_eq!(file.get("general.file_type").and_then(|value| value.as_u64()), Some(41));
    let back = imported(&path, device);
    assert_eq!(packed(&back.model).len(), 21, "F16 weights are ternary too");

    let bf16 = GgufOptions { embedding: Some(WeightType::BF16), ..GgufOptions::default() };
    let (_folder, path, report) = exported(&narrow, &bf16);
    assert_eq!(report.tensors[0].kind, "BF16");
    let [found, expected] =
        [&imported(&path, device), &narrow].map(|c| values(c.model.embedding.weight.val()));
    assert_close_relative("embedding in bf16", &found, &expected, 1.0 / 256.0);

    let (_folder, _, report) = exported(&narrow, &of(GgufType::Tq2_0));
    assert!(report.tensors.iter().all(|tensor| tensor.kind != "TQ2_0"), "no width is a multiple of 256");
    let (_folder, _, report) = exported(&dense("llama_tied", device), &GgufOptions::default());
    assert_eq!(report.weights, "f16");
    let text = serde_json::to_value(&report).unwrap();
    assert_eq!(text["tensors"][0]["type"], json!("F16"));
    assert!(report.to_string().contains("token_embd.weight [512, 64]: F16"));

    let policy =
        Policy { exclude: vec!["*.gate_proj".into()], sub_norm: Placement::None, ..Policy::default() };
    let (partly, _) = convert(dense("llama_tied", device), &policy).unwrap();
    let any_lambda = GgufOptions { any_lambda: true, ..GgufOptions::default() };
    let (_folder, path, report) = exported(&partly, &any_lambda);
    let gate = report.tensors.iter().find(|tensor| tensor.name == "blk.1.ffn_gate.weight").unwrap();
    assert_eq!((gate.kind.as_str(), gate.because.as_deref()), ("F16", Some("the slot is dense")));
    assert_eq!(packed(&imported(&path, device).model).len(), 18);
}

/// What no architecture runs, and what else cannot be written: the reason is named, and nothing is written.
pub fn what_cannot_run_is_refused(device: &Device) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let refused = |checkpoint: &Checkpoint, weights: GgufType| {
        let error = write(checkpoint, &path, &of(weights)).unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{error}");
        error
    };
    let reason = |checkpoint: &Checkpoint, weights, expected: &str| {
        let error = refused(checkpoint, weights);
        let is_named =
            matches!(&error, ConvertError::NotExportable { reason, .. } if reason.contains(expected));
        assert!(is_named, "{error}");
    };
    let relu2 = dense("bitnet_online", device);
    reason(&relu2, GgufType::Auto, "Relu2");
    let (_folder, _, report) = exported(&relu2, &of(GgufType::I2sX86));
    assert_eq!(report.architecture, "bitnet-b1.58");
    reason(&ternary("llama_tied", Placement::All, device), GgufType::Auto, "q_proj.rms_norm");
    reason(&ternary("llama_untied", Placement::Output, device), GgufType::Auto, "its own");
    reason(&ternary("llama3_rope", Placement::Output, device), GgufType::Auto, "frequency factors");
    reason(&ternary("llama_attn_bias", Placement::Output, device), GgufType::Auto, "biases");
    reason(&ternary("qwen3", Placement::Output, device), GgufType::F16, "queries and keys");
    reason(&ternary("qwen3", Placement::None, device), GgufType::I2sArm, "bitnet.cpp runs I2_S in");
    reason(&dense("llama_tied", device), GgufType::Tq2_0, "dense");
    let policy = Policy { exclude: vec!["*.0.mlp.down_proj".into()], ..Policy::default() };
    let (mut partly, _) = convert(dense("llama_tied", device), &policy).unwrap();
    set_lambda(&mut partly.model, Some(1.0));
    reason(&partly, GgufType::Auto, "5 of 6");

    let mut warming = ternary("llama_tied", Placement::Output, device);
    set_lambda(&mut warming.model, Some(0.5));
    let error = refused(&warming, GgufType::Auto);
    assert!(matches!(error, ConvertError::Lambda { found: 0.5, .. }), "{error}");
    write(&warming, &path, &GgufOptions { any_lambda: true, ..of(GgufType::Auto) }).unwrap();
    let error = write(&warming, &path, &GgufOptions { any_lambda: true, ..of(GgufType::Auto) }).unwrap_err();
    assert!(matches!(&error, ConvertError::Exists { path: found } if *found == path), "{error}");
    let written = fs::read(&path).unwrap();
    let again = GgufOptions { any_lambda: true, overwrite: true, ..of(GgufType::F32) };
    write(&warming, &path, &again).unwrap();
    assert_ne!(fs::read(&path).unwrap(), written);
    fs::remove_file(&path).unwrap();

    fs::write(&path, "a file").unwrap();
    let error = write(&relu2, &path.join("model.gguf"), &of(GgufType::I2sX86)).unwrap_err();
    assert!(matches!(&error, ConvertError::Write { .. }), "a folder that is a file: {error}");
    fs::remove_file(&path).unwrap();

    let beyond = scratch("llama_tied");
    fs::remove_file(beyond.path().join("tokenizer.json")).unwrap();
    let error = refused(&loaded(beyond.path(), device), GgufType::Auto);
    assert!(matches!(&error, ConvertError::Read { path, .. } if path.ends_with("tokenizer.json")), "{error}");
    let whitespace = json!({
        "pre_tokenizer": { "type": "Whitespace" },
        "model": { "type": "BPE", "vocab": { "</s>": 0 }, "merges": [] },
    });
    fs::write(beyond.path().join("tokenizer.json"), whitespace.to_string()).unwrap();
    let error = refused(&loaded(beyond.path(), device), GgufType::Auto);
    assert!(
        matches!(&error, ConvertError::PreTokenizer { found, .. } if found.contains("Whitespace")),
        "{error}"
    );
}

/// A file read apart, to be put together in another way.
struct Parts {
    metadata: BTreeMap<String, Value<'static>>,
    tensors: Vec<(String, TensorType, Vec<usize>, Vec<u8>)>,
}

impl Parts {
    fn read(path: &Path) -> Self {
        let bytes: &'static [u8] = fs::read(path).unwrap().leak();
        let file = Gguf::read(bytes).unwrap();
        let tensors = file.tensors().map(|t| (t.name.to_owned(), t.kind, t.shape, t.data.to_vec()));
        let tensors = tensors.collect();
        Self { metadata: file.metadata().map(|(key, value)| (key.to_owned(), value)).collect(), tensors }
    }

    fn tensor(&mut self, name: &str) -> &mut (String, TensorType, Vec<usize>, Vec<u8>) {
        self.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap()
    }

    fn write(&self, path: &Path) {
        let mut header = Header::new();
        for (key, value) in &self.metadata {
            header.set(key, value.clone()).unwrap();
        }
        for (name, kind, shape, _) in &self.tensors {
            header.tensor(name, *kind, shape).unwrap();
        }
        let mut writer = header.write_to(fs::File::create(path).unwrap()).unwrap();
        for (name, _, _, data) in &self.tensors {
            writer.tensor(name, data).unwrap();
        }
        writer.finish().unwrap();
    }
}

/// The error of opening a changed file.
fn refused_file(path: &Path, edit: impl FnOnce(&mut Parts)) -> ConvertError {
    let mut parts = Parts::read(path);
    edit(&mut parts);
    let folder = tempfile::tempdir().unwrap();
    let changed = folder.path().join("changed.gguf");
    parts.write(&changed);
    match Tensors::open(&changed, &LoadOptions { strict: true }) {
        Ok(_) => panic!("the changed file opens"),
        Err(error) => error,
    }
}

/// Metadata that are missing, of another type, or of another model.
pub fn metadata_that_are_not_computed_here(device: &Device) {
    let (_folder, path, _) = exported(&ternary("llama_tied", Placement::Output, device), &of(GgufType::Q2_0));
    for (key, value) in [
        ("general.architecture", None),
        ("general.architecture", Some(Value::String("mamba"))),
        ("general.architecture", Some(Value::U32(1))),
        ("bitnet.block_count", None),
        ("bitnet.block_count", Some(Value::String("3"))),
        ("bitnet.embedding_length", None),
        ("bitnet.rope.freq_base", Some(Value::U32(10_000))),
        ("bitnet.rope.dimension_count", Some(Value::U32(8))),
        ("bitnet.attention.value_length", Some(Value::U32(8))),
        ("bitnet.rope.scaling.type", Some(Value::String("longrope"))),
        ("bitnet.rope.scaling.type", Some(Value::U32(1))),
        ("bitnet_arch.granularity", Some(Value::String("column"))),
        ("bitnet_arch.i2_s", Some(Value::String("mips"))),
    ] {
        let error = refused_file(&path, |parts| {
            parts.metadata.remove(key);
            parts.metadata.extend(value.map(|value| (key.to_owned(), value)));
        });
        assert!(matches!(&error, ConvertError::GgufKey { key: found, .. } if found == key), "{key}: {error}");
    }
    let error = refused_file(&path, |parts| {
        parts.metadata.insert("bitnet.block_count".into(), Value::U32(60_000));
    });
    assert!(
        matches!(&error, ConvertError::Tensors { problems } if problems.len() == 1),
        "as many layers as no memory holds: {error}"
    );
    let (_folder, path, _) = exported(&dense("llama3_rope", device), &of(GgufType::F32));
    let error = refused_file(&path, |parts| parts.tensor("rope_freqs.weight").3[..4].fill(0));
    assert!(matches!(&error, ConvertError::GgufKey { key, .. } if key == "rope_freqs.weight"), "{error}");
}

/// Tensors that are missing, left over, or not as they must be, and files that end too early.
pub fn damaged_gguf_files(device: &Device) {
    let (_folder, path, _) = exported(&ternary("llama_tied", Placement::Output, device), &of(GgufType::Q2_0));
    let problems = |edit: fn(&mut Parts)| match refused_file(&path, edit) {
        ConvertError::Tensors { problems } => problems,
        error => panic!("{error}"),
    };
    let [missing] = &*problems(|parts| parts.tensors.retain(|t| t.0 != "blk.1.ffn_sub_norm.weight")) else {
        panic!("one problem")
    };
    assert!(matches!(missing, TensorProblem::Missing { name } if name == "blk.1.ffn_sub_norm.weight"));
    let [unexpected] = &*problems(|parts| {
        parts.tensors.push(("blk.0.attn_qkv.weight".into(), TensorType::F32, vec![1], vec![0; 4]));
    }) else {
        panic!("one problem")
    };
    assert!(matches!(unexpected, TensorProblem::Unexpected { name } if name == "blk.0.attn_qkv.weight"));
    let [shape] = &*problems(|parts| parts.tensor("output_norm.weight").2 = vec![64, 1]) else {
        panic!("one problem")
    };
    assert!(matches!(shape, TensorProblem::Shape { found, .. } if *found == [64, 1]));
    let [kind] = &*problems(|parts| {
        let tensor = parts.tensor("blk.0.attn_k.weight");
        (tensor.1, tensor.3) = (TensorType::Q8_0, vec![0; 32 * 2 * 34]);
    }) else {
        panic!("one problem")
    };
    assert!(matches!(kind, TensorProblem::GgufType { found, .. } if found == "Q8_0"));
    let [scale] = &*problems(|parts| {
        let tensor = parts.tensor("blk.0.attn_k.scale");
        (tensor.2, tensor.3) = (vec![2], vec![0; 8]);
    }) else {
        panic!("one problem")
    };
    assert!(matches!(scale, TensorProblem::Shape { found, .. } if *found == [2]));
    let error = refused_file(&path, |parts| parts.tensor("blk.0.attn_k.scale").3.fill(0xff));
    assert!(matches!(&error, ConvertError::Format { source: FormatError::Scale { .. }, .. }), "{error}");

    let mut parts = Parts::read(&path);
    parts.tensor("blk.0.attn_v.weight").3[2] = 0xff;
    parts.tensor("output_norm.weight").3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let changed = folder.path().join("changed.gguf");
    parts.write(&changed);
    let error = Tensors::open(&changed, &LoadOptions::default()).unwrap().load(device).unwrap_err();
    assert!(matches!(&error, ConvertError::NotFinite { .. } | ConvertError::Format { .. }), "{error}");

    let whole = fs::read(&path).unwrap();
    for len in [0, 3, 4, 20, 200, whole.len() / 2, whole.len() - 33, whole.len() - 1] {
        fs::write(&changed, &whole[..len]).unwrap();
        let error = match Tensors::open(&changed, &LoadOptions::default()) {
            Ok(_) => panic!("{len} bytes open"),
            Err(error) => error,
        };
        assert!(
            matches!(&error, ConvertError::Gguf { path: found, .. } | ConvertError::Read { path: found, .. } if *found == changed),
            "{len}: {error}"
        );
    }
}

/// Without this project's own keys, granularity and digits are found in the blocks.
pub fn files_of_others_are_read(device: &Device) {
    for (granularity, weights, expected) in [
        (Granularity::Tensor, GgufType::Tq2_0, Granularity::Tensor),
        (Granularity::Tensor, GgufType::F16, Granularity::Tensor),
        (Granularity::Tensor, GgufType::I2sX86, Granularity::Tensor),
        (Granularity::Row, GgufType::Tq1_0, Granularity::Row),
        (Granularity::Row, GgufType::F32, Granularity::Row),
        (Granularity::Group(128), GgufType::Q2_0, Granularity::Group(64)),
    ] {
        for scale in [None, Some(ScaleHome::Block)] {
            let what = format!("{granularity:?}, {weights}, {scale:?}");
            let checkpoint = wide(Placement::Output, granularity, device);
            let (_folder, path, _) = exported(&checkpoint, &GgufOptions { scale, ..of(weights) });
            let own = packed(&imported(&path, device).model);
            let mut parts = Parts::read(&path);
            parts.metadata.retain(|key, _| !key.starts_with("bitnet_arch."));
            parts.write(&path);
            let foreign = packed(&imported(&path, device).model);
            for (slot, matrix) in &foreign {
                assert_eq!(matrix.granularity(), expected, "{what}, {slot}");
                assert_eq!(matrix.dequantize(), own[slot].dequantize(), "{what}, {slot}");
            }
        }
    }
    // A dense model stays one, and llama.cpp's other spellings are understood.
    let (_folder, path, _) = exported(&dense("llama_tied", device), &of(GgufType::F16));
    let mut parts = Parts::read(&path);
    parts.metadata.insert("llama.rope.scaling.type".into(), Value::String("linear"));
    parts.metadata.insert("llama.rope.scaling.factor".into(), Value::F32(1.0));
    parts.metadata.remove("llama.attention.head_count_kv");
    parts.write(&path);
    let error = match Tensors::open(&path, &LoadOptions::default()) {
        Ok(_) => panic!("four key heads do not fit the file"),
        Err(error) => error,
    };
    assert!(error.to_string().contains("blk.0.attn_k.weight"), "{error}");
    parts.metadata.insert("llama.attention.head_count_kv".into(), Value::U32(2));
    parts.write(&path);
    assert_eq!(packed(&imported(&path, device).model).len(), 0);
}
