//! GGUF files.

use std::path::Path;

use bitnet_format::gguf::{Gguf, Tensor, TensorType, Value};

use super::{Architecture, Container, Form, Inspection, ProblemKind, Role, TensorEntry, Tokens};
use crate::ConvertError;
use crate::mapped::Mapped;

/// The weights of every block, as llama.cpp names them.
const PROJECTIONS: [&str; 7] =
    ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
/// The norms of every block.
const NORMS: [&str; 2] = ["attn_norm", "ffn_norm"];

/// The architectures whose tensors are known here, and what their blocks have beyond the projections and norms of all.
const ARCHITECTURES: [(&str, &[&str]); 7] = [
    ("llama", &[]),
    ("bitnet", &["attn_sub_norm.weight", "ffn_sub_norm.weight"]),
    ("bitnet-b1.58", &["attn_sub_norm.weight", "ffn_sub_norm.weight"]),
    ("qwen2", &["attn_q.bias", "attn_k.bias", "attn_v.bias"]),
    ("qwen3", &["attn_q_norm.weight", "attn_k_norm.weight"]),
    ("gemma", &[]),
    ("gemma2", &["post_attention_norm.weight", "post_ffw_norm.weight"]),
];

pub(super) fn file(path: &Path) -> Result<Inspection, ConvertError> {
    let map = Mapped::open(path.into())?;
    let file = Gguf::read(map.bytes()).map_err(|source| ConvertError::Gguf { path: path.into(), source })?;
    let mut found = Inspection::new(path, Container::Gguf);
    for Tensor { name, kind, shape, data } in file.tensors() {
        found.tensors.push(TensorEntry {
            name: name.into(),
            role: role(name),
            form: form(kind),
            dtype: kind.name().into(),
            shape,
            bytes: data.len() as u64,
        });
    }
    match file.get("general.architecture").as_ref().and_then(Value::as_str) {
        Some(name) => {
            let architecture = sizes(&file, name);
            look_for_tensors(&mut found, &file, name, architecture.n_layers);
            found.architecture = Some(architecture);
        }
        None => found.problem(ProblemKind::Config, "there is no text under `general.architecture`"),
    }
    found.quantization = file
        .get("general.file_type")
        .and_then(|value| value.as_u64())
        .map(|number| format!("file type {number}"));
    look_at_scales(&mut found, &file);
    look_at_tokenizer(&mut found, &file);
    Ok(found.finish())
}

fn sizes(file: &Gguf, name: &str) -> Architecture {
    let size = |key: &str| file.get(&format!("{name}.{key}")).and_then(|value| value.as_u64());
    let (d_model, n_heads) = (size("embedding_length"), size("attention.head_count"));
    let rows = file.tensor("token_embd.weight").and_then(|tensor| tensor.shape.first().copied());
    Architecture {
        name: name.into(),
        vocab_size: rows.map(|rows| rows as u64).or_else(|| size("vocab_size")),
        d_model,
        d_ff: size("feed_forward_length"),
        n_layers: size("block_count"),
        n_heads,
        n_kv_heads: size("attention.head_count_kv").or(n_heads),
        head_dim: size("attention.key_length")
            .or_else(|| d_model.zip(n_heads).and_then(|(width, heads)| width.checked_div(heads))),
        max_positions: size("context_length"),
        tied_head: Some(file.tensor("output.weight").is_none()),
    }
}

/// What a tensor is for, by llama.cpp's names.
fn role(name: &str) -> Role {
    let stem = match name {
        "token_embd.weight" => return Role::Embedding,
        "output.weight" => return Role::Head,
        "output_norm.weight" => return Role::Norm,
        _ => name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map(|(_, rest)| rest),
    };
    match stem.and_then(|stem| stem.rsplit_once('.')) {
        Some((stem, "weight")) if PROJECTIONS.contains(&stem) => Role::Projection,
        Some((stem, "bias")) if PROJECTIONS.contains(&stem) => Role::Bias,
        Some((stem, "scale")) if PROJECTIONS.contains(&stem) => Role::Scale,
        Some(("attn_sub_norm" | "ffn_sub_norm", "weight")) => Role::SubNorm,
        Some(("attn_q_norm" | "attn_k_norm" | "post_attention_norm" | "post_ffw_norm", "weight")) => {
            Role::Norm
        }
        Some((stem, "weight")) if NORMS.contains(&stem) => Role::Norm,
        _ => Role::Other,
    }
}

fn form(kind: TensorType) -> Form {
    match kind {
        TensorType::F32 | TensorType::F16 | TensorType::Bf16 | TensorType::F64 => Form::Float,
        TensorType::Tq1_0 | TensorType::Tq2_0 | TensorType::Q2_0 | TensorType::I2S => Form::Ternary,
        TensorType::I8 | TensorType::I16 | TensorType::I32 | TensorType::I64 => Form::Integer,
        _ => Form::Quantized,
    }
}

/// Looks for the tensors that llama.cpp asks for.
fn look_for_tensors(found: &mut Inspection, file: &Gguf, name: &str, n_layers: Option<u64>) {
    let Some((_, own)) = ARCHITECTURES.iter().find(|(known, _)| *known == name) else { return };
    let Some(n_layers) = n_layers else {
        found.problem(ProblemKind::Config, format!("there is no number under `{name}.block_count`"));
        return;
    };
    let n_tensors = found.tensors.len() as u64;
    if n_layers > n_tensors {
        let message = format!("`{name}.block_count` is {n_layers}, and the file has {n_tensors} tensors");
        found.problem(ProblemKind::MissingTensor, message);
        return;
    }
    let missing = |name: &String| file.tensor(name).is_none();
    let outside = ["token_embd.weight", "output_norm.weight"].map(str::to_owned);
    for name in outside.into_iter().filter(missing) {
        found.problem(ProblemKind::MissingTensor, format!("tensor `{name}` is missing"));
    }
    for layer in 0..n_layers {
        let common = PROJECTIONS.iter().chain(&NORMS).map(|stem| format!("blk.{layer}.{stem}.weight"));
        let own = own.iter().map(|stem| format!("blk.{layer}.{stem}"));
        for name in common.chain(own).filter(missing) {
            found.problem(ProblemKind::MissingTensor, format!("tensor `{name}` is missing"));
        }
    }
    if name == "bitnet" && file.tensor("output.weight").is_some() {
        let message =
            "llama.cpp ties the head of `bitnet` to the embedding: it does not read `output.weight`";
        found.problem(ProblemKind::UnexpectedTensor, message);
    }
}

/// Reads the scales that stand beside weights.
fn look_at_scales(found: &mut Inspection, file: &Gguf) {
    let scales: Vec<String> = found
        .tensors
        .iter()
        .filter(|tensor| tensor.role == Role::Scale)
        .map(|tensor| tensor.name.clone())
        .collect();
    for name in scales {
        let value = file.tensor(&name).and_then(|tensor| match tensor.kind {
            TensorType::F32 => tensor.data.try_into().ok().map(f32::from_le_bytes),
            _ => None,
        });
        if !value.is_some_and(|value| value > 0.0 && value.is_finite()) {
            let value = value.map_or("something else".into(), |value| value.to_string());
            found.problem(
                ProblemKind::Scale,
                format!("tensor `{name}` holds {value}: expected one f32 above 0"),
            );
        }
    }
}

fn look_at_tokenizer(found: &mut Inspection, file: &Gguf) {
    let kind = file.get("tokenizer.ggml.model");
    let tokens = file.get("tokenizer.ggml.tokens");
    let (Some(kind), Some(tokens)) =
        (kind.as_ref().and_then(Value::as_str), tokens.as_ref().and_then(Value::as_array))
    else {
        found.problem(ProblemKind::Tokenizer, "there is no tokenizer under `tokenizer.ggml`");
        return;
    };
    if kind == "gpt2" && file.get("tokenizer.ggml.pre").is_none() {
        let message = "`tokenizer.ggml.pre` is missing: llama.cpp would split text in another way than the model learned";
        found.problem(ProblemKind::Tokenizer, message);
    }
    found.tokenizer = Some(Tokens { kind: kind.into(), n_tokens: tokens.len() });
    let rows = found.architecture.as_ref().and_then(|architecture| architecture.vocab_size);
    if let Some(rows) = rows.filter(|&rows| tokens.len() as u64 != rows) {
        let message = format!("the tokenizer has {} tokens, the embedding {rows} rows", tokens.len());
        found.problem(ProblemKind::Tokenizer, message);
    }
}
