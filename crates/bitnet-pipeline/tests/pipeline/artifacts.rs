//! What stands in a target.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use bitnet_compress::{Options, compress};
use bitnet_convert::{LoadOptions, Placement, Policy, WeightType, convert, load, pack};
use bitnet_model::CausalLm;
use bitnet_pipeline::Pipeline;
use burn::tensor::Device;
use safetensors::{Dtype, SafeTensors};

use crate::shared::tree;
use crate::support::*;

/// Every dense golden checkpoint that has weights of its own.
const GOLDEN: [&str; 13] = [
    "llama_tied",
    "llama_untied",
    "llama_sharded",
    "llama_bf16",
    "llama_all_bias",
    "llama_attn_bias",
    "llama_head_dim",
    "llama3_rope",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
];

const SHORT: &str = "calibration = { windows = 4 }\neval = { windows = 2 }";

fn open(folder: &Path) -> CausalLm {
    load(folder, &Device::flex(), &LoadOptions { strict: true }).unwrap().model
}

fn logits(model: &CausalLm) -> Vec<f32> {
    let tokens: Vec<u32> = (0..12).map(|i| i * 7 % 90 + 2).collect();
    model.forward(model.batch(&[tokens]).unwrap()).try_into_vec_as().unwrap()
}

/// `codes · scale` by absmean, in f64.
fn ternarized(weights: &[f32]) -> Vec<f32> {
    let sum: f64 = weights.iter().map(|w| f64::from(w.abs())).sum();
    let scale = (sum / weights.len() as f64).max(1e-5) as f32;
    weights.iter().map(|w| (w / scale).round_ties_even().clamp(-1.0, 1.0) * scale).collect()
}

/// Both modes write the same dense folder of every architecture, and it is what the formula says; packed, the model
/// computes what it computes in memory.
#[test]
fn every_architecture_goes_through_both_modes() {
    for name in GOLDEN {
        let work = Work::new(name);
        let source = tree(&work.source());
        let report = work.run(SHORT).unwrap();
        assert!(
            report.stats.verification.dense_codes > 0 && report.stats.total.ternarized.is_multiple_of(7),
            "{name}"
        );
        assert_eq!(report.model.checks.tokens, 16);
        let other = work.path("tensors");
        compress(&work.source(), &other, &Options::default(), &mut |_, _, _| {}).unwrap();
        let (dense, by_name, before) = (tensors(&work.target()), tensors(&other), tensors(&work.source()));
        assert_eq!(dense.len(), before.len(), "{name}");
        for (tensor, (dtype, shape, bytes)) in &dense {
            let (other_dtype, other_shape, other_bytes) = &by_name[tensor];
            assert_eq!((dtype, shape), (other_dtype, other_shape), "{name}: {tensor}");
            if !tensor.contains("_proj.weight") {
                assert!(bytes == &before[tensor].2, "{name}: {tensor} changed");
                assert!(bytes == other_bytes, "{name}: {tensor}");
                continue;
            }
            let (found, by_name) = (floats(*dtype, bytes), floats(*dtype, other_bytes));
            let expected = ternarized(&floats(*dtype, &before[tensor].2));
            // A scale is a unit in the last place off, or rounded to bf16.
            let slack = if *dtype == Dtype::BF16 { 1.0 / 256.0 } else { 2e-7 };
            let close = |a: f32, b: f32| (a - b).abs() <= slack * b.abs();
            assert!(found.iter().zip(&expected).all(|(a, b)| close(*a, *b)), "{name}: {tensor}");
            assert!(found.iter().zip(&by_name).all(|(a, b)| close(*a, *b)), "{name}: {tensor}, modes");
        }
        let pairs = logits(&open(&work.target())).into_iter().zip(logits(&open(&other)));
        let slack = if name == "llama_bf16" { 0.1 } else { 1e-4 };
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < slack), "{name}: logits");
        for (file, bytes) in &source {
            if !file.contains("safetensors") {
                assert!(&tree(&work.target())[file] == bytes, "{name}: {file}");
            }
        }
        assert!(tree(&work.source()) == source, "{name}: the source is only read");

        let policy = Policy { sub_norm: Placement::None, ..Policy::default() };
        let bare = work.path("bare");
        let settings = format!("{SHORT}\nconvert = {{ sub_norm = 'none' }}");
        let config = work.config(&settings);
        Pipeline::new(work.source(), &bare, &config).unwrap().run(&mut |_| ()).unwrap();
        let in_memory = load(work.source(), &Device::flex(), &LoadOptions::default()).unwrap();
        let (in_memory, _) = pack(convert(in_memory, &policy).unwrap().0).unwrap();
        let (found, expected) = (logits(&open(&bare.join("packed"))), logits(&in_memory.model));
        // Folders hold biases divided by scales: a unit in the last place off. All else is the same bits.
        let slack = if dense.keys().any(|tensor| tensor.contains("_proj.bias")) { 1e-5 } else { 0.0 };
        let same = found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= slack);
        assert!(same && found.len() == expected.len(), "{name}: packed");
    }
}

#[test]
fn everything_that_conversion_knows_passes_the_checks() {
    for (name, settings, packed) in [
        ("rows", "rule = { absmean = 'row' }", false),
        ("groups", "rule = { absmean = { group = 16 } }\ndtype = 'f16'", false),
        ("no quantized inputs", "convert = { activation = 'off', sub_norm = 'all' }", true),
        ("turned", "convert = { hadamard = true }\ndtype = 'bf16'", true),
        ("salient", "convert = { salient = 0.05 }\nexport = { latent = true }", true),
        ("corrected", "lrc = { init = { calibrated = { rounds = 0 } } }\ndtype = 'f16'", true),
        ("trained beside a correction", "lrc = {}\ntrain = { steps = 2 }\nbatch = { micro_batch = 2 }", true),
        ("excluded", "exclude = ['*.down_proj', 'model.layers.0.*']", true),
        (
            "distilled",
            "train = { steps = 2 }\ndistill = { logit_kl = {} }\nbatch = { micro_batch = 2 }",
            true,
        ),
    ] {
        let work = Work::new("llama_tied");
        let report =
            work.run(&format!("{SHORT}\n{settings}")).unwrap_or_else(|error| panic!("{name}: {error}"));
        let target = work.target();
        assert_eq!(target.join("packed").is_dir(), packed, "{name}");
        assert_eq!(target.join("latent").is_dir(), !packed || settings.contains("latent"), "{name}");
        assert_eq!(report.stats.verification.packed_codes > 0, packed, "{name}");
        assert!(report.model.checks.difference <= report.model.checks.allowed, "{name}");
        open(&target);
        let adds = settings.contains("salient") || settings.contains("lrc");
        assert!(!adds || report.model.added_bytes > 1000, "{name}: {}", report.model.added_bytes);
        let errors = report.stats.tensors.iter().filter_map(|tensor| tensor.ternary.as_ref()?.relative_error);
        assert!(errors.clone().count() > 0 && errors.into_iter().all(|e| (0.05..0.9).contains(&e)), "{name}");
    }
}

#[test]
fn latent_weights_can_be_trained_on_and_exports_hold_the_same_codes() {
    let work = Work::new("llama_tied");
    let settings = format!("{SHORT}\nexport = {{ latent = true, hf = 'autobitlinear', gguf = 'f32' }}");
    let report = work.run(&settings).unwrap();
    let all = report.stats.total.weights;
    assert_eq!(report.model.checks.exported_codes, 2 * all, "both exports");
    let latent = tensors(&work.target().join("latent"));
    let before = tensors(&work.source());
    for (name, tensor) in &before {
        assert!(latent[name].2 == tensor.2, "{name}");
    }
    let [a, b] = ["latent", "packed"].map(|name| logits(&open(&work.target().join(name))));
    assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()), "the same model");
    let gguf = work.target().join("model.gguf");
    let read = bitnet_convert::Tensors::open(&gguf, &LoadOptions::default()).unwrap();
    let c = logits(&read.load(&Device::flex()).unwrap().model);
    assert_eq!(c.len(), a.len());
}

/// The strings of a file's header.
fn strings(path: &Path) -> Option<HashMap<String, String>> {
    SafeTensors::read_metadata(&fs::read(path).unwrap()).unwrap().1.metadata().clone()
}

#[test]
fn the_strings_of_headers_are_carried_over_in_the_same_bytes() {
    for name in ["llama_tied", "llama_sharded"] {
        let work = Work::new(name);
        let files = names(&work.source()).into_iter().filter(|name| name.ends_with(".safetensors"));
        let files: Vec<String> = files.collect();
        for file in &files {
            let path = work.source().join(file);
            let bytes = fs::read(&path).unwrap();
            let found = SafeTensors::deserialize(&bytes).unwrap();
            let mut given = HashMap::from([("format".to_owned(), "pt".to_owned())]);
            given.extend((0..8).map(|i| (format!("key {i}"), format!("{file} {i}"))));
            let views: Vec<_> = found.tensors();
            fs::write(&path, safetensors::serialize(views, Some(given)).unwrap()).unwrap();
        }
        work.run(SHORT).unwrap();
        for file in &files {
            let expected = strings(&work.source().join(file)).unwrap();
            assert_eq!(expected.len(), 9);
            assert_eq!(strings(&work.target().join(file)), Some(expected), "{file}");
        }
        let again = work.path("again");
        Pipeline::new(work.source(), &again, &work.config(SHORT)).unwrap().run(&mut |_| ()).unwrap();
        assert!(tree(&again) == tree(&work.target()), "{name}");
    }
}

/// Eight tokens more than the model was made with, and as many rows.
#[test]
fn added_tokens_come_out_as_they_are() {
    let work = Work::new("llama_tied");
    let (tokenizer, config) = (work.source().join("tokenizer.json"), work.source().join("config.json"));
    let edit = |path: &Path, change: &dyn Fn(&mut serde_json::Value)| {
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        change(&mut json);
        fs::write(path, serde_json::to_string_pretty(&json).unwrap()).unwrap();
    };
    edit(&tokenizer, &|json| {
        for i in 0..8 {
            json["added_tokens"].as_array_mut().unwrap().push(serde_json::json!({
                "id": 512 + i, "content": format!("<new_{i}>"), "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            }));
        }
    });
    edit(&config, &|json| json["vocab_size"] = 520.into());
    let mut all = tensors(&work.source());
    let (_, shape, bytes) = all.get_mut("model.embed_tokens.weight").unwrap();
    shape[0] = 520;
    bytes.extend((0..8 * 64).flat_map(|i| (i as f32 / 512.0 - 0.5).to_le_bytes()));
    write(&work.source().join("model.safetensors"), &all);
    let source = tree(&work.source());

    work.run(&format!("{SHORT}\nexport = {{ hf = 'bitlinear' }}")).unwrap();
    let other = work.path("tensors");
    compress(&work.source(), &other, &Options { packed: true, ..Options::default() }, &mut |_, _, _| {})
        .unwrap();
    for folder in ["target", "target/packed", "target/hf", "tensors"] {
        let folder = work.path(folder);
        assert!(fs::read(folder.join("tokenizer.json")).unwrap() == source["tokenizer.json"], "{folder:?}");
        let found = tensors(&folder);
        assert!(found["model.embed_tokens.weight"] == all["model.embed_tokens.weight"], "{folder:?}");
        let model = open(&folder);
        assert_eq!(model.config().vocab_size, 520, "{folder:?}");
        let rows = logits(&model).len() / 12;
        assert_eq!(rows, 520, "a logit for every token");
    }
}

/// A fine-tuned model is stored in f32 while it is worked on; its artifacts have the source's types or those asked for.
#[test]
fn types_are_those_of_the_source_or_those_asked_for() {
    for (settings, expected) in
        [("", Dtype::BF16), ("dtype = 'f16'", Dtype::F16), ("dtype = 'f32'", Dtype::F32)]
    {
        let work = Work::new("llama_bf16");
        let settings = format!("{settings}\n{SHORT}\ntrain = {{ steps = 1 }}\nbatch = {{ micro_batch = 2 }}");
        work.run(&settings).unwrap();
        assert!(tensors(&work.target()).values().all(|(dtype, ..)| *dtype == expected), "{settings}");
        let packed = tensors(&work.target().join("packed"));
        let floats =
            packed.iter().filter(|(name, (dtype, ..))| *dtype != Dtype::U8 && !name.ends_with("_scale"));
        assert!(floats.into_iter().all(|(_, (dtype, ..))| *dtype == expected), "{settings}");
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(work.target().join("config.json")).unwrap()).unwrap();
        let name = match expected {
            Dtype::BF16 => WeightType::BF16,
            Dtype::F16 => WeightType::F16,
            _ => WeightType::F32,
        };
        assert_eq!(config["dtype"], name.torch_name());
    }
}
