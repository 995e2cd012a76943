//! Folders as transformers writes them, and safetensors files alone.

use std::collections::BTreeMap;
use std::path::Path;

use bitnet_format::{HfScale, hf};
use bitnet_quant::check_granularity;
use bitnet_text::Tokenizer;
use safetensors::Dtype;
use serde_json::{Map, Value};

use super::{Architecture, Container, Form, Inspection, ProblemKind, Role, ScaleReport, TensorEntry, Tokens};
use crate::folder::{check_depth, is_float};
use crate::json::read_json;
use crate::shards::Shards;
use crate::source::{Content, Entry, entries_of};
use crate::{ConvertError, HfConfig};

pub(super) fn file(path: &Path) -> Result<Inspection, ConvertError> {
    let shards = Shards::open_file(path)?;
    let mut found = Inspection::new(path, Container::Safetensors);
    list_tensors(&mut found, &shards, None);
    report_scales(&mut found, &shards, None);
    Ok(found.finish())
}

pub(super) fn folder(folder: &Path) -> Result<Inspection, ConvertError> {
    let mut found = Inspection::new(folder, Container::Folder);
    let path = folder.join("config.json");
    let raw = match read_json(&path) {
        Ok(Value::Object(raw)) => Ok(raw),
        Ok(_) => Err(ConvertError::Json { path: path.clone(), reason: "is no object".into() }),
        Err(error) => Err(error),
    };
    let shards = match (Shards::open(folder), &raw) {
        (Ok(shards), _) => Some(shards),
        (Err(error), Err(_)) => return Err(error),
        (Err(error), Ok(_)) => {
            found.problem(ProblemKind::Weights, error.to_string());
            None
        }
    };
    let raw = match raw {
        Ok(raw) => Some(raw),
        Err(error) => {
            found.problem(ProblemKind::Config, error.to_string());
            None
        }
    };
    found.architecture = raw.as_ref().map(Architecture::from_raw);
    found.quantization = raw.as_ref().and_then(claim);
    let config = raw.and_then(|raw| match HfConfig::parse(&path, raw) {
        Ok(config) => Some(config),
        Err(error) => {
            found.problem(ProblemKind::Config, error.to_string());
            None
        }
    });
    if let Some(config) = &config {
        found.architecture = Some(Architecture::from_config(config));
        let own_words = || config.bitnet.as_ref().map(|state| format!("BitNet: {state}"));
        found.quantization = found.quantization.or_else(own_words);
    }
    let claimed = config.as_ref().and_then(|config| config.bitnet.as_ref()?.packed);
    if let Some(shards) = &shards {
        let expected = config.as_ref().and_then(|config| match expected(config, shards) {
            Ok(expected) => Some(expected),
            Err(error) => {
                found.problem(ProblemKind::MissingTensor, error.to_string());
                None
            }
        });
        expected.iter().for_each(|expected| look_at_granularity(&mut found, expected));
        list_tensors(&mut found, shards, expected.as_ref());
        report_scales(&mut found, shards, claimed);
    }
    look_at_tokenizer(&mut found, folder);
    Ok(found.finish())
}

impl Architecture {
    /// The sizes under the keys that most architectures share.
    fn from_raw(raw: &Map<String, Value>) -> Self {
        let size = |key: &str| raw.get(key).and_then(Value::as_u64);
        Self {
            name: raw.get("model_type").and_then(Value::as_str).unwrap_or("unknown").into(),
            vocab_size: size("vocab_size"),
            d_model: size("hidden_size"),
            d_ff: size("intermediate_size"),
            n_layers: size("num_hidden_layers"),
            n_heads: size("num_attention_heads"),
            n_kv_heads: size("num_key_value_heads"),
            head_dim: size("head_dim"),
            max_positions: size("max_position_embeddings"),
            tied_head: raw.get("tie_word_embeddings").and_then(Value::as_bool),
        }
    }

    /// The sizes with the architecture's defaults.
    fn from_config(config: &HfConfig) -> Self {
        let model = config.model();
        let size = |size: usize| Some(size as u64);
        Self {
            name: config.model_type.name().into(),
            vocab_size: size(model.vocab_size),
            d_model: size(model.d_model),
            d_ff: size(model.d_ff),
            n_layers: size(model.n_layers),
            n_heads: size(model.n_heads),
            n_kv_heads: size(model.n_kv_heads()),
            head_dim: size(model.head_dim()),
            max_positions: size(model.max_positions),
            tied_head: Some(model.tied_head),
        }
    }
}

/// What a config says about quantization in transformers' words.
fn claim(raw: &Map<String, Value>) -> Option<String> {
    let inner = raw.get("quantization_config").filter(|inner| !inner.is_null())?;
    let word =
        |key: &str, default: &str| inner.get(key).and_then(Value::as_str).unwrap_or(default).to_owned();
    Some(match word("quant_method", "unknown").as_str() {
        "bitnet" => {
            let class = word("linear_class", "bitlinear");
            format!("bitnet, {class}, {}", word("quantization_mode", "offline"))
        }
        other => other.into(),
    })
}

/// The tensors that a config implies, by name.
fn expected(config: &HfConfig, shards: &Shards) -> Result<BTreeMap<String, Entry>, ConvertError> {
    check_depth(config, shards)?;
    Ok(entries_of(config)?.into_iter().map(|entry| (entry.name.clone(), entry)).collect())
}

/// Looks whether what shares a scale fits the weights; the first that it does not fit stands for all.
fn look_at_granularity(found: &mut Inspection, expected: &BTreeMap<String, Entry>) {
    let misfit = expected.values().find_map(|entry| {
        let (Content::Latent(granularity) | Content::Packed(granularity)) = entry.content else {
            return None;
        };
        let error = check_granularity(granularity, entry.matrix_shape().ok()?).err()?;
        Some(format!("tensor `{}`: {error}", entry.name))
    });
    if let Some(message) = misfit {
        found.problem(ProblemKind::Config, message);
    }
}

/// What a parameter of the model is for.
fn role(path: &str) -> Role {
    match path.split('.').collect::<Vec<_>>().as_slice() {
        ["embedding", ..] => Role::Embedding,
        ["head", ..] => Role::Head,
        [.., "sub_norm", "norm", "gain"] => Role::SubNorm,
        [.., "gain"] => Role::Norm,
        [.., "bias"] => Role::Bias,
        _ => Role::Projection,
    }
}

/// Lists the tensors of the files and compares them with those that the model needs.
fn list_tensors(found: &mut Inspection, shards: &Shards, expected: Option<&BTreeMap<String, Entry>>) {
    for name in shards.names() {
        let entry = expected.and_then(|expected| expected.get(name));
        let Some(tensor) = tensor(name, shards, entry) else { continue };
        match (entry, tensor.form) {
            (_, Form::Ternary) if shards.info(&format!("{name}_scale")).is_none() => {
                let message = format!("tensor `{name}` is packed and has no `weight_scale`");
                found.problem(ProblemKind::Scale, message);
            }
            (Some(Entry { content: Content::Packed(_), .. }), Form::Ternary)
            | (Some(Entry { content: Content::Latent(_), .. }), Form::Latent)
            | (Some(Entry { content: Content::Float, .. }), Form::Float) => {}
            (Some(entry), _) => {
                let expected = match entry.content {
                    Content::Packed(_) => "packed codes, U8",
                    Content::Latent(_) | Content::Float => "floats",
                };
                let message =
                    format!("tensor `{name}` has dtype {}, the config implies {expected}", tensor.dtype);
                found.problem(ProblemKind::Dtype, message);
            }
            (None, _) if expected.is_some() && tensor.role == Role::Other => {
                found.problem(ProblemKind::UnexpectedTensor, format!("tensor `{name}` is unexpected"));
            }
            (None, _) => {}
        }
        if let Some(entry) = entry.filter(|entry| entry.shape != tensor.shape) {
            let message =
                format!("tensor `{name}` has shape {:?}, the config implies {:?}", tensor.shape, entry.shape);
            found.problem(ProblemKind::Shape, message);
        }
        found.tensors.push(tensor);
    }
    for name in expected.into_iter().flat_map(BTreeMap::keys).filter(|name| shards.info(name).is_none()) {
        found.problem(ProblemKind::MissingTensor, format!("tensor `{name}` is missing"));
    }
}

/// A tensor of the files, and what it is for.
fn tensor(name: &str, shards: &Shards, entry: Option<&Entry>) -> Option<TensorEntry> {
    let (shape, dtype) = shards.info(name)?;
    let mut shape = shape.to_vec();
    let is_packed = |weight: &str| {
        let scale = shards.info(&format!("{weight}_scale"));
        shards.info(weight).is_some_and(|(_, dtype)| dtype == Dtype::U8)
            && weight.ends_with(".weight")
            && scale.is_some()
    };
    let content = entry.map(|entry| entry.content);
    let form = match content {
        _ if is_packed(name) => Form::Ternary,
        Some(Content::Packed(_)) if dtype == Dtype::U8 => Form::Ternary,
        Some(Content::Latent(_)) if is_float(dtype) => Form::Latent,
        _ if is_float(dtype) => Form::Float,
        _ => Form::Integer,
    };
    if form == Form::Ternary
        && let Some(rows) = shape.first_mut()
    {
        *rows = rows.saturating_mul(hf::BLOCK);
    }
    let role = match entry {
        Some(entry) => role(&entry.path),
        None if name.strip_suffix("_scale").is_some_and(is_packed) => Role::Scale,
        None => Role::Other,
    };
    let bytes = shards.n_bytes(name)?;
    Some(TensorEntry { name: name.into(), role, form, dtype: format!("{dtype:?}"), shape, bytes })
}

/// Reads the scales of packed weights and compares their size with the direction that the config gives them.
fn report_scales(found: &mut Inspection, shards: &Shards, claimed: Option<HfScale>) {
    let mut scales = Vec::new();
    let names = found.tensors.iter().filter(|tensor| tensor.role == Role::Scale);
    for (name, shape) in names.map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect::<Vec<_>>() {
        if shape.iter().product::<usize>() != 1 {
            found.problem(
                ProblemKind::Scale,
                format!("tensor `{name}` has shape {shape:?}: expected one scale"),
            );
            continue;
        }
        match shards.read(&name).map(|values| values.and_then(|values| values.first().copied())) {
            Ok(Some(value)) if claimed.unwrap_or(HfScale::Multiply).load(value).is_ok() => {
                scales.push((name, value));
            }
            Ok(value) => {
                let value = value.map_or("no float".into(), |value| value.to_string());
                found.problem(
                    ProblemKind::Scale,
                    format!("tensor `{name}` holds {value}: expected a scale above 0"),
                );
            }
            Err(error) => found.problem(ProblemKind::Scale, error.to_string()),
        }
    }
    let Some((_, first)) = scales.first() else { return };
    let likely = HfScale::likely(*first);
    let likely = scales.iter().all(|(_, value)| HfScale::likely(*value) == likely).then_some(likely);
    let against: Vec<_> = scales
        .iter()
        .filter(|(_, value)| claimed.is_some_and(|claimed| HfScale::likely(*value) != claimed))
        .collect();
    if let (Some((name, value)), Some(claimed)) = (against.first(), claimed) {
        let (says, means) = match claimed {
            HfScale::Divide => ("bitlinear, which divides by it", "a multiplier"),
            HfScale::Multiply => ("autobitlinear, which multiplies by it", "a divisor"),
        };
        let message = format!(
            "{} of {} scales speak against the config's linear_class: {says}, but `{name}` is {value}, the size of {means}",
            against.len(),
            scales.len(),
        );
        found.problem(ProblemKind::ScaleDirection, message);
    }
    let values = || scales.iter().map(|(_, value)| *value);
    found.scales = Some(ScaleReport {
        claimed,
        likely,
        n_scales: scales.len(),
        smallest: values().fold(f32::INFINITY, f32::min),
        largest: values().fold(0.0, f32::max),
    });
}

fn look_at_tokenizer(found: &mut Inspection, folder: &Path) {
    let path = folder.join("tokenizer.json");
    if !path.is_file() {
        found.problem(ProblemKind::Tokenizer, "there is no tokenizer.json");
        return;
    }
    let n_tokens = match Tokenizer::from_file(&path) {
        Ok(tokenizer) => tokenizer.vocab_size(),
        Err(error) => {
            let reason = std::error::Error::source(&error).map(|source| format!(": {source}"));
            found.problem(ProblemKind::Tokenizer, format!("{error}{}", reason.unwrap_or_default()));
            return;
        }
    };
    found.tokenizer = Some(Tokens { kind: "tokenizer.json".into(), n_tokens });
    let rows = found.architecture.as_ref().and_then(|architecture| architecture.vocab_size);
    if let Some(rows) = rows.filter(|&rows| n_tokens as u64 > rows) {
        let message = format!("the tokenizer has {n_tokens} tokens, the embedding {rows} rows");
        found.problem(ProblemKind::Tokenizer, message);
    }
}
