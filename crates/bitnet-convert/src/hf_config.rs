//! `config.json` as transformers writes it, read into a [`CausalLmConfig`].

use std::path::Path;

use bitnet_model::{Activation, CausalLmConfig, RopeConfig, RopeScaling, SlidingLayers, SubNorms};
use serde_json::{Map, Value, json};

use crate::ConvertError;
use crate::additions::{self, Additions};
use crate::bitnet_state::BitNetState;
use crate::fields::Fields;
use crate::json::read_json;

/// The architectures that this project computes, by transformers' `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModelType {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma,
    Gemma2,
    BitNet,
}

impl ModelType {
    const ALL: [Self; 7] =
        [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Gemma, Self::Gemma2, Self::BitNet];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
            Self::BitNet => "bitnet",
        }
    }

    fn parse(name: &str) -> Result<Self, ConvertError> {
        let found = Self::ALL.into_iter().find(|known| known.name() == name);
        found.ok_or_else(|| ConvertError::UnknownModelType {
            found: name.into(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// A checkpoint's `config.json`: the model that it describes, and all other keys as they were.
#[derive(Debug, Clone)]
pub struct HfConfig {
    pub(crate) raw: Map<String, Value>,
    pub(crate) model_type: ModelType,
    pub(crate) model: CausalLmConfig,
    pub(crate) bitnet: Option<BitNetState>,
    pub(crate) additions: Additions,
}

impl HfConfig {
    /// Reads a folder's `config.json`.
    ///
    /// # Errors
    /// - [`ConvertError::Read`], [`ConvertError::Json`] where the file is absent or damaged or lacks a size
    /// - [`ConvertError::UnknownModelType`], [`ConvertError::Unsupported`] for what is not computed here
    /// - [`ConvertError::Model`] where the values describe no possible model
    pub fn read(folder: &Path) -> Result<Self, ConvertError> {
        let path = folder.join("config.json");
        match read_json(&path)? {
            Value::Object(raw) => Self::parse(&path, raw),
            _ => Err(ConvertError::Json { path, reason: "is no object".into() }),
        }
    }

    /// The `config.json` of a Llama made from scratch.
    ///
    /// # Errors
    /// [`ConvertError::Unsupported`] where the configuration is not Llama's, [`ConvertError::Model`] where it is no
    /// possible model.
    pub fn llama(model: &CausalLmConfig) -> Result<Self, ConvertError> {
        let json = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": model.vocab_size,
            "hidden_size": model.d_model,
            "intermediate_size": model.d_ff,
            "num_hidden_layers": model.n_layers,
            "num_attention_heads": model.n_heads,
            "num_key_value_heads": model.n_kv_heads,
            "head_dim": model.head_dim,
            "max_position_embeddings": model.max_positions,
            "rms_norm_eps": model.norm_eps,
            "hidden_act": "silu",
            "attention_bias": model.qkv_bias,
            "mlp_bias": model.mlp_bias,
            "tie_word_embeddings": model.tied_head,
            "rope_theta": model.rope.theta,
            "initializer_range": model.init_std,
            "dtype": "float32",
        });
        let raw = json.as_object().cloned().unwrap_or_default();
        let config = Self::parse(Path::new("config.json"), raw)?;
        if config.model != *model {
            return Err(ConvertError::Unsupported {
                field: "model_type",
                found: "llama".into(),
                reason: "the configuration has a setting that Llama has not".into(),
            });
        }
        Ok(config)
    }

    /// The model that the file describes.
    pub fn model(&self) -> &CausalLmConfig {
        &self.model
    }

    /// The architecture, by transformers' `model_type`.
    pub fn model_type(&self) -> &'static str {
        self.model_type.name()
    }

    /// The key of the weights' type: older files have another.
    pub(crate) fn dtype_key(&self) -> &'static str {
        if self.raw.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" }
    }

    /// Names the token that stands between texts: it begins and ends them.
    pub fn with_text_token(mut self, token: u32) -> Self {
        for key in ["bos_token_id", "eos_token_id"] {
            self.raw.insert(key.into(), token.into());
        }
        self
    }

    pub(crate) fn parse(path: &Path, raw: Map<String, Value>) -> Result<Self, ConvertError> {
        let fields = Fields::new(path, &raw);
        let (bitnet, base_model_type) = BitNetState::parse(&fields)?;
        let (additions, base_of_additions) = Additions::parse(&fields)?;
        let model_type = match (base_model_type, base_of_additions) {
            (Some(base), Some(other)) if base != other => {
                let reason = format!("base_model_type `{other}`: expected `{base}`, as for the weights");
                return Err(fields.wrong(additions::KEY, &reason));
            }
            (Some(base), _) | (None, Some(base)) => base,
            (None, None) => fields.require::<String>("model_type")?,
        };
        let model_type = ModelType::parse(&model_type)?;
        let model = model_config(&fields, model_type)?;
        model.validate()?;
        Ok(Self { model_type, model, bitnet, additions, raw })
    }
}

/// The field's values, and transformers' defaults for those that are not written.
fn model_config(fields: &Fields, model_type: ModelType) -> Result<CausalLmConfig, ConvertError> {
    use ModelType::{BitNet, Gemma, Gemma2, Llama, Mistral, Qwen2, Qwen3};
    let gemma = matches!(model_type, Gemma | Gemma2);
    let d_model = fields.require("hidden_size")?;
    let n_layers = fields.require("num_hidden_layers")?;
    let mut config = CausalLmConfig::new(
        fields.require("vocab_size")?,
        d_model,
        fields.require("intermediate_size")?,
        n_layers,
        fields.require("num_attention_heads")?,
    );
    config.n_kv_heads = match (fields.has("num_key_value_heads"), model_type) {
        (true, _) | (false, Llama) => fields.get("num_key_value_heads")?,
        (false, Mistral) => Some(8),
        (false, Qwen2 | Qwen3) => Some(32),
        (false, Gemma) => Some(16),
        (false, Gemma2) => Some(4),
        (false, BitNet) => Some(5),
    };
    config.head_dim = fields.get("head_dim")?.or(match model_type {
        Qwen3 => Some(128),
        Gemma | Gemma2 => Some(256),
        _ => None,
    });
    config.max_positions = fields.get("max_position_embeddings")?.unwrap_or(match model_type {
        Llama | BitNet => 2048,
        Gemma | Gemma2 => 8192,
        Qwen2 | Qwen3 => 32768,
        Mistral => 131_072,
    });
    config.norm_eps = fields.get("rms_norm_eps")?.unwrap_or(if model_type == BitNet { 1e-5 } else { 1e-6 });
    config.activation = activation(fields, model_type)?;
    config.tied_head = fields.get("tie_word_embeddings")?.unwrap_or(gemma);
    config.rope = rope(fields, if model_type == BitNet { 500_000.0 } else { 10_000.0 })?;
    config.validate()?; // before anything grows with the number of layers
    config.sliding = sliding(fields, model_type, n_layers)?;
    let attention_bias: bool = fields.get("attention_bias")?.unwrap_or(false);
    config.qkv_bias = attention_bias || model_type == Qwen2;
    config.output_bias = attention_bias && model_type != Qwen2;
    config.mlp_bias = model_type == Llama && fields.get("mlp_bias")?.unwrap_or(false);
    config.qk_norm = model_type == Qwen3;
    if model_type == BitNet {
        config.sub_norms = SubNorms::Output;
    }
    if gemma {
        config.norm_gain_offset = 1.0;
        config.embedding_scale = (d_model as f64).sqrt();
    }
    if model_type == Gemma2 {
        config.post_norms = true;
        let scalar: f64 = fields.get("query_pre_attn_scalar")?.unwrap_or(256.0);
        config.attention_scale = Some(scalar.sqrt().recip());
        config.attention_softcap = null_or(fields, "attn_logit_softcapping", 50.0)?;
        config.logit_softcap = null_or(fields, "final_logit_softcapping", 30.0)?;
    }
    if let Some(std) = fields.get("initializer_range")? {
        config.init_std = std;
    }
    Ok(config)
}

/// A field whose absence means a default and whose null means none.
fn null_or<T: serde::de::DeserializeOwned>(
    fields: &Fields,
    field: &str,
    default: T,
) -> Result<Option<T>, ConvertError> {
    if fields.has(field) { fields.get(field) } else { Ok(Some(default)) }
}

fn activation(fields: &Fields, model_type: ModelType) -> Result<Activation, ConvertError> {
    let key = if model_type == ModelType::Gemma2 { "hidden_activation" } else { "hidden_act" };
    let name: Option<String> = match (fields.get::<String>(key)?, model_type) {
        // Gemma's first checkpoints say `gelu` and mean the tanh approximation, as transformers reads them.
        (Some(name), ModelType::Gemma) if name == "gelu" => Some("gelu_pytorch_tanh".into()),
        (name, _) => name,
    };
    let default = match model_type {
        ModelType::Gemma | ModelType::Gemma2 => "gelu_pytorch_tanh",
        ModelType::BitNet => "relu2",
        _ => "silu",
    };
    match name.as_deref().unwrap_or(default) {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        "relu2" => Ok(Activation::Relu2),
        other => Err(ConvertError::Unsupported {
            field: "hidden_act",
            found: other.into(),
            reason: "expected silu, gelu, gelu_pytorch_tanh or relu2".into(),
        }),
    }
}

fn sliding(fields: &Fields, model_type: ModelType, n_layers: usize) -> Result<SlidingLayers, ConvertError> {
    let window = match model_type {
        ModelType::Mistral | ModelType::Gemma2 => null_or(fields, "sliding_window", 4096)?,
        ModelType::Qwen2 | ModelType::Qwen3 if fields.get("use_sliding_window")?.unwrap_or(false) => {
            null_or(fields, "sliding_window", 4096)?
        }
        _ => None,
    };
    let Some(window) = window else {
        return Ok(SlidingLayers::None);
    };
    if model_type == ModelType::Mistral {
        return Ok(SlidingLayers::All(window));
    }
    let layers = match fields.get::<Vec<String>>("layer_types")? {
        Some(types) => types
            .iter()
            .map(|kind| match kind.as_str() {
                "sliding_attention" => Ok(true),
                "full_attention" => Ok(false),
                other => Err(ConvertError::Unsupported {
                    field: "layer_types",
                    found: other.into(),
                    reason: "expected full_attention or sliding_attention".into(),
                }),
            })
            .collect::<Result<_, _>>()?,
        None if model_type == ModelType::Gemma2 => (0..n_layers).map(|layer| layer % 2 == 0).collect(),
        None => {
            let first = fields.get("max_window_layers")?.unwrap_or(28);
            (0..n_layers).map(|layer| layer >= first).collect()
        }
    };
    Ok(SlidingLayers::Some { window, layers })
}

/// `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of earlier files.
fn rope(fields: &Fields, default_theta: f64) -> Result<RopeConfig, ConvertError> {
    let outer_theta = fields.get("rope_theta")?;
    let inner = match fields.inside("rope_parameters")? {
        Some(inner) => Some(inner),
        None => fields.inside("rope_scaling")?,
    };
    let Some(inner) = inner else {
        return Ok(RopeConfig { theta: outer_theta.unwrap_or(default_theta), scaling: RopeScaling::None });
    };
    let theta = inner.get("rope_theta")?.or(outer_theta).unwrap_or(default_theta);
    if let Some(share) = inner.get::<f64>("partial_rotary_factor")?.filter(|share| *share != 1.0) {
        return Err(ConvertError::Unsupported {
            field: "rope_parameters.partial_rotary_factor",
            found: share.to_string(),
            reason: "expected 1".into(),
        });
    }
    let kind: Option<String> = match inner.get("rope_type")? {
        Some(kind) => Some(kind),
        None => inner.get("type")?,
    };
    let scaling = match kind.as_deref().unwrap_or("default") {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: inner.require("factor")? },
        "dynamic" => RopeScaling::Dynamic { factor: inner.require("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: inner.require("factor")?,
            low_freq_factor: inner.require("low_freq_factor")?,
            high_freq_factor: inner.require("high_freq_factor")?,
            original_max_positions: inner.require("original_max_position_embeddings")?,
        },
        "yarn" => {
            let original_max_positions = match inner.get("original_max_position_embeddings")? {
                Some(positions) => positions,
                None => fields.require("max_position_embeddings")?,
            };
            let factor = match inner.get("factor")? {
                Some(factor) => factor,
                None => fields.require::<f64>("max_position_embeddings")? / original_max_positions as f64,
            };
            RopeScaling::Yarn {
                factor,
                original_max_positions,
                attention_factor: inner.get("attention_factor")?,
                beta_fast: inner.get("beta_fast")?.unwrap_or(32.0),
                beta_slow: inner.get("beta_slow")?.unwrap_or(1.0),
                mscale: inner.get("mscale")?,
                mscale_all_dim: inner.get("mscale_all_dim")?,
                truncate: inner.get("truncate")?.unwrap_or(true),
            }
        }
        other => {
            return Err(ConvertError::Unsupported {
                field: "rope_parameters.rope_type",
                found: other.into(),
                reason: "expected default, linear, dynamic, llama3 or yarn".into(),
            });
        }
    };
    Ok(RopeConfig { theta, scaling })
}
