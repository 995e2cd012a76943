//! The `config.json` that a GGUF file implies.

use std::path::Path;

use bitnet_format::gguf::{Gguf, TensorType};
use bitnet_model::Activation;
use serde_json::{Map, Value, json};

use super::architecture::Architecture;
use super::hyperparameters::{frequency_factors, yarn_amplitude};
use super::metadata::{Metadata, wrong};
use super::names::FREQUENCY_FACTORS;
use crate::{ConvertError, HfConfig, TensorProblem};

/// Llama 3's own parameters of its RoPE scaling, which the factors alone do not show.
const LLAMA3: (f64, f64, usize) = (1.0, 4.0, 8192);
/// Frequency factors are f32 and were computed in f32 or f64.
const SAME_FACTOR: f32 = 1e-4;

/// The architecture of a file and the config of its model, as if the model were dense.
///
/// # Errors
/// [`ConvertError::GgufKey`] for an architecture or a value that is not computed here, and those of a `config.json`.
pub(super) fn read(path: &Path, file: &Gguf) -> Result<(&'static Architecture, HfConfig), ConvertError> {
    let key = "general.architecture";
    let architecture = match file.get(key) {
        Some(value) => {
            let found = value.as_str().and_then(Architecture::named);
            found.ok_or_else(|| wrong(path, key.into(), &value, &Architecture::names()))?
        }
        None => {
            let (key, found) = (key.into(), "missing".into());
            return Err(ConvertError::GgufKey {
                path: path.into(),
                key,
                found,
                expected: Architecture::names(),
            });
        }
    };
    let metadata = Metadata::new(path, file, architecture.name);
    let config = HfConfig::parse(path, raw(architecture, &metadata, file)?)?;
    if let Some(tensor) = file.tensor(FREQUENCY_FACTORS) {
        let expected = frequency_factors(&config.model.rope, config.model.head_dim()).unwrap_or_default();
        let found = floats(tensor.data);
        let same = |(a, b): (&f32, &f32)| (a - b).abs() <= SAME_FACTOR * b.abs();
        if found.len() != expected.len() || !found.iter().zip(&expected).all(same) {
            let (low, high, _) = LLAMA3;
            return Err(ConvertError::GgufKey {
                path: path.into(),
                key: FREQUENCY_FACTORS.into(),
                found: format!("{found:?}"),
                expected: format!("the factors of Llama 3 between {low} and {high}: {expected:?}"),
            });
        }
    }
    Ok((architecture, config))
}

fn raw(
    architecture: &Architecture,
    metadata: &Metadata,
    file: &Gguf,
) -> Result<Map<String, Value>, ConvertError> {
    let has = |name: &str| file.tensor(name).is_some();
    let embedding = file.tensor("token_embd.weight").ok_or_else(|| ConvertError::Tensors {
        problems: vec![TensorProblem::Missing { name: "token_embd.weight".into() }],
    })?;
    let d_model = metadata.require_size("embedding_length")?;
    let n_layers = metadata.require_size("block_count")?;
    let n_heads = metadata.require_size("attention.head_count")?;
    let max_positions = metadata.require_size("context_length")?;
    let key_length = metadata.size("attention.key_length")?;
    let head_dim = key_length.unwrap_or(d_model / n_heads.max(1));
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(found) = metadata.size(key)?.filter(|found| *found != head_dim) {
            return Err(metadata.unsupported(key, found, format!("the size of a head, {head_dim}")));
        }
    }
    let mlp = ["ffn_gate", "ffn_up", "ffn_down"];
    let biases = [&["attn_q", "attn_k", "attn_v"][..], &["attn_output"], &mlp];
    let [qkv, output, mlp] = biases.map(|slots| slots.iter().any(|slot| has(&format!("blk.0.{slot}.bias"))));
    let (model_type, class) = match architecture.name {
        "bitnet" | "bitnet-b1.58" => ("bitnet", "BitNetForCausalLM"),
        "qwen3" => ("qwen3", "Qwen3ForCausalLM"),
        "gemma" => ("gemma", "GemmaForCausalLM"),
        "gemma2" => ("gemma2", "Gemma2ForCausalLM"),
        _ if qkv && !output => ("qwen2", "Qwen2ForCausalLM"),
        _ => ("llama", "LlamaForCausalLM"),
    };
    let activation = match architecture.activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
        Activation::Relu2 => "relu2",
    };
    let mut raw = Map::new();
    let mut set = |key: &str, value: Value| raw.insert(key.into(), value);
    set("architectures", json!([class]));
    set("model_type", json!(model_type));
    set("dtype", json!("float32"));
    set("vocab_size", json!(embedding.shape.first().copied().unwrap_or_default()));
    set("hidden_size", json!(d_model));
    set("intermediate_size", json!(metadata.require_size("feed_forward_length")?));
    set("num_hidden_layers", json!(n_layers));
    set("num_attention_heads", json!(n_heads));
    set("num_key_value_heads", json!(metadata.size("attention.head_count_kv")?.unwrap_or(n_heads)));
    if key_length.is_some() || matches!(model_type, "qwen3" | "gemma" | "gemma2") {
        set("head_dim", json!(head_dim));
    }
    set("max_position_embeddings", json!(max_positions));
    set("rms_norm_eps", json!(metadata.number("attention.layer_norm_rms_epsilon")?));
    set(if model_type == "gemma2" { "hidden_activation" } else { "hidden_act" }, json!(activation));
    set("tie_word_embeddings", json!(!has("output.weight")));
    set("attention_bias", json!(if model_type == "qwen2" { qkv } else { qkv || output }));
    set("mlp_bias", json!(mlp));
    if architecture.has_windows() {
        let pattern = metadata.flags("attention.sliding_window_pattern")?;
        let is_sliding = |layer: usize| match &pattern {
            Some(layers) => layers.get(layer).copied().unwrap_or(false),
            None => layer.is_multiple_of(2),
        };
        let name = |layer| if is_sliding(layer) { "sliding_attention" } else { "full_attention" };
        if n_layers <= file.tensors().count() {
            set("layer_types", json!((0..n_layers).map(name).collect::<Vec<_>>()));
        }
        set("sliding_window", json!(metadata.size("attention.sliding_window")?.unwrap_or(4096)));
        set("attn_logit_softcapping", json!(metadata.number("attn_logit_softcapping")?.unwrap_or(50.0)));
        set("final_logit_softcapping", json!(metadata.number("final_logit_softcapping")?.unwrap_or(30.0)));
        let scalar = architecture.attention_size(n_layers, d_model, n_heads, head_dim);
        set("query_pre_attn_scalar", json!(scalar));
    }
    for role in ["bos", "eos"] {
        let id = file.get(&format!("tokenizer.ggml.{role}_token_id"));
        if let Some(id) = id.and_then(|id| id.as_u64()) {
            set(&format!("{role}_token_id"), json!(id));
        }
    }
    set("rope_parameters", rope(metadata, file, max_positions)?);
    Ok(raw)
}

/// `rope_parameters`, as transformers writes them.
fn rope(metadata: &Metadata, file: &Gguf, max_positions: usize) -> Result<Value, ConvertError> {
    let theta = metadata.number("rope.freq_base")?.unwrap_or(10_000.0);
    let original = metadata.size("rope.scaling.original_context_length")?;
    if let Some(factors) = file.tensor(FREQUENCY_FACTORS) {
        if factors.kind != TensorType::F32 {
            let problem = TensorProblem::DType {
                name: FREQUENCY_FACTORS.into(),
                found: factors.kind.to_string(),
                expected: "F32",
            };
            return Err(ConvertError::Tensors { problems: vec![problem] });
        }
        let (low, high, context) = LLAMA3;
        let factor = floats(factors.data).into_iter().fold(1.0, f32::max);
        return Ok(json!({
            "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": original.unwrap_or(context),
        }));
    }
    // llama.cpp takes a factor without a type for a linear one.
    let factor = metadata.number("rope.scaling.factor")?.filter(|factor| *factor != 0.0).unwrap_or(1.0);
    Ok(match metadata.text("rope.scaling.type")?.unwrap_or("linear") {
        "none" => json!({ "rope_type": "default", "rope_theta": theta }),
        "linear" if factor == 1.0 => json!({ "rope_type": "default", "rope_theta": theta }),
        "linear" => json!({ "rope_type": "linear", "rope_theta": theta, "factor": factor }),
        "yarn" => {
            let mut yarn = json!({
                "rope_type": "yarn", "rope_theta": theta, "factor": factor,
                "original_max_position_embeddings": original.unwrap_or(max_positions),
            });
            if let Some(attention) = metadata.number("rope.scaling.attn_factor")? {
                yarn["attention_factor"] = json!(attention * yarn_amplitude(factor));
            }
            yarn
        }
        other => {
            return Err(metadata.unsupported("rope.scaling.type", other, "none, linear or yarn"));
        }
    })
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
