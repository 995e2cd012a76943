//! The golden checkpoints of `data/hf` and `data/rope`, as cases load, change and compare them.

use std::fs;
use std::path::Path;

use bitnet_arch::convert::{Checkpoint, LoadOptions, load};
use bitnet_arch::layers::set_lambda;
use bitnet_arch::model::CausalLm;
use burn::tensor::{Device, Tensor};
use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::check::{max_difference, values};
use crate::golden::Golden;

/// Architectures without quantization.
pub const DENSE: [&str; 14] = [
    "llama_tied",
    "llama_sharded",
    "llama_bf16",
    "llama_untied",
    "llama_attn_bias",
    "llama_all_bias",
    "llama_head_dim",
    "llama3_rope",
    "qwen2",
    "qwen3",
    "mistral",
    "mistral_swa",
    "gemma",
    "gemma2",
];

/// Checkpoints of packed weights: scales that multiply, in two types, and scales that divide.
pub const PACKED: [&str; 3] = ["bitnet_offline_auto", "bitnet_offline_auto_bf16", "llama_offline_bitlinear"];

/// Checkpoints whose projections are ternary, with int8 activations.
pub const QUANTIZED: [&str; 3] = ["llama_online", "bitnet_online", "bitnet_online_bf16"];

/// f32 sums in other orders, through three blocks: transformers' own f32 and f64 runs differ by about 1e-5.
pub const LOGITS: f32 = 1e-4;

/// Another order of summation flips single activation codes, each of which moves a few logits by about 1e-2.
pub const FLIPPED_MAX: f32 = 2e-2;

/// Flips are rare: the mean over all logits stays at the dense tolerance.
pub const FLIPPED_MEAN: f32 = 1e-4;

/// The folder whose weights a fixture has, where two share them.
fn weights_of(name: &str) -> &str {
    match name {
        "llama_online" => "llama_tied",
        "mistral_swa" => "mistral",
        _ => name,
    }
}

/// A folder of one's own with a golden checkpoint of `data/hf` and a tokenizer.
pub fn scratch(name: &str) -> TempDir {
    compose(&crate::data("hf").join(name).join("config.json"), weights_of(name))
}

/// A folder of one's own with the weights of `data/hf/{weights}`, a tokenizer and this `config.json`.
pub fn compose(config: &Path, weights: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = crate::data("hf/llama_tied");
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(tokenizer.join(file), folder.path().join(file)).unwrap();
    }
    for entry in fs::read_dir(crate::data("hf").join(weights)).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_owned();
        if file.to_string_lossy().starts_with("model") {
            fs::copy(&path, folder.path().join(file)).unwrap();
        }
    }
    fs::copy(config, folder.path().join("config.json")).unwrap();
    folder
}

/// A golden checkpoint of `data/hf`, at λ = 1.
pub fn golden(name: &str, device: &Device) -> Checkpoint {
    loaded(scratch(name).path(), device)
}

/// The checkpoint in a folder, at λ = 1.
pub fn loaded(folder: &Path, device: &Device) -> Checkpoint {
    let mut checkpoint = load(folder, device, &LoadOptions::default()).unwrap();
    set_lambda(&mut checkpoint.model, Some(1.0));
    checkpoint
}

/// What transformers computed with a golden checkpoint.
pub fn reference(name: &str) -> Golden {
    Golden::open(&format!("hf/{}/ref.safetensors", if name == "llama_sharded" { "llama_tied" } else { name }))
}

/// A reference's token sequences, one per row.
pub fn sequences(reference: &Golden, tensor: &str) -> Vec<Vec<u32>> {
    let length = reference.shape(tensor)[1];
    let tokens: Vec<u32> = reference.numbers(tensor).into_iter().map(|token| token as u32).collect();
    tokens.chunks(length).map(<[u32]>::to_vec).collect()
}

/// The model's logits of token sequences, `[B, T, vocab_size]`.
pub fn logits(model: &CausalLm, sequences: &[Vec<u32>]) -> Tensor<3> {
    model.forward(model.batch(sequences).unwrap())
}

/// The logits of the golden tokens of `llama_tied`, which suit every golden model.
pub fn golden_logits(model: &CausalLm) -> Vec<f32> {
    values(logits(model, &sequences(&reference("llama_tied"), "input_ids")))
}

/// The last positions of a tensor `[B, T, ..]`.
pub fn last_positions(tensor: Tensor<3>, positions: usize) -> Tensor<3> {
    let length = tensor.dims()[1];
    tensor.narrow(1, length - positions, positions)
}

/// The mean difference of two equally long lists.
pub fn mean_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len(), "number of values");
    let sum: f64 = found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).sum();
    (sum / found.len() as f64) as f32
}

/// Fails where quantized results differ by more than flipped codes explain.
pub fn assert_close_but_for_flips(what: &str, found: &[f32], expected: &[f32]) {
    let (max, mean) = (max_difference(found, expected), mean_difference(found, expected));
    println!("{what}: max {max:e}, mean {mean:e}");
    assert!(max <= FLIPPED_MAX, "{what}: off by {max:e}, tolerance {FLIPPED_MAX:e}");
    assert!(mean <= FLIPPED_MEAN, "{what}: off by {mean:e} in the mean, tolerance {FLIPPED_MEAN:e}");
}

/// Rewrites a folder's `config.json`.
pub fn edit_config(folder: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let path = folder.join("config.json");
    let mut config = read_json(&path);
    edit(config.as_object_mut().unwrap());
    fs::write(path, config.to_string()).unwrap();
}

/// A JSON file.
pub fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}
