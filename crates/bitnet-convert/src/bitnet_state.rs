//! What a `config.json` says about BitNet: transformers' `quantization_config`, and this project's own object where
//! transformers has no words for the model.

use std::fmt;

use bitnet_format::HfScale;
use bitnet_layers::SubLnOrigin;
use bitnet_model::{CausalLmConfig, SubNorms};
use bitnet_quant::Quantization;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::additions;
use crate::fields::Fields;
use crate::hf_config::ModelType;
use crate::{ConvertError, HfConfig, Placement};

/// The key of this project's own object in `config.json`.
const OWN_KEY: &str = "bitnet_arch";
/// The `model_type` of a model that transformers cannot express: it refuses the folder instead of misreading it.
const OWN_MODEL_TYPE: &str = "bitnet_arch";

/// Which slots of a checkpoint are BitNet, and how.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BitNetState {
    /// What the BitNet slots quantize.
    pub(crate) quantization: Quantization,
    /// Which BitNet slots have a sub-norm that is not the architecture's own.
    pub(crate) sub_norm: Placement,
    /// Whether those sub-norms follow λ.
    pub(crate) origin: SubLnOrigin,
    /// Their epsilon; `None` is the model's.
    pub(crate) sub_norm_eps: Option<f64>,
    /// Whether the weights are packed codes, and what their scales do to them; `None` for latent weights.
    pub(crate) packed: Option<HfScale>,
    /// Names of the slots that stay dense; an entry also covers what it is the beginning or the end of.
    pub(crate) dense: Vec<String>,
}

impl fmt::Display for BitNetState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { quantization: Quantization { weight, activation }, sub_norm, origin, .. } = self;
        write!(f, "weights per {weight:?}, activations {activation:?}, SubLN {sub_norm:?} ({origin:?})")
    }
}

/// This project's own object.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    /// `model_type` of the architecture that was converted.
    base_model_type: String,
    sub_norm: Placement,
    quantization: Quantization,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    packed: Option<HfScale>,
    #[serde(default)]
    dense: Vec<String>,
}

impl Own {
    /// The state, and the `model_type` to read the other fields by.
    fn into_state(self, packed: Option<HfScale>) -> (Option<BitNetState>, Option<String>) {
        let state = BitNetState {
            quantization: self.quantization,
            sub_norm: self.sub_norm,
            origin: SubLnOrigin::Inserted,
            sub_norm_eps: None,
            packed,
            dense: self.dense,
        };
        (Some(state), Some(self.base_model_type))
    }
}

impl BitNetState {
    /// Whether the slot of this name is dense.
    pub(crate) fn is_dense(&self, slot: &str) -> bool {
        self.dense.iter().any(|name| slot.starts_with(name.as_str()) || slot.ends_with(name.as_str()))
    }

    /// Whether one config can describe slots of both states.
    pub(crate) fn agrees_with(&self, other: &Self) -> bool {
        let same_norms = self.sub_norm == Placement::None || self.origin == other.origin;
        self.quantization == other.quantization && self.sub_norm == other.sub_norm && same_norms
    }

    /// The state, and the `model_type` to read the other fields by where it is not the one written.
    pub(crate) fn parse(fields: &Fields) -> Result<(Option<Self>, Option<String>), ConvertError> {
        let own: Option<Own> = fields.get(OWN_KEY)?;
        let Some(inner) = fields.inside("quantization_config")? else {
            let packed = own.as_ref().and_then(|own| own.packed);
            return Ok(own.map_or((None, None), |own| own.into_state(packed)));
        };
        let unsupported = |field, found: &str, reason: &str| {
            Err(ConvertError::Unsupported { field, found: found.into(), reason: reason.into() })
        };
        let method: String = inner.require("quant_method")?;
        if method != "bitnet" {
            return unsupported("quantization_config.quant_method", &method, "expected bitnet");
        }
        let class = inner.get("linear_class")?.unwrap_or_else(|| "bitlinear".to_owned());
        let mode = inner.get("quantization_mode")?.unwrap_or_else(|| "offline".to_owned());
        // `online` acts only with autobitlinear; bitlinear is always packed.
        let packed = match (class.as_str(), mode.as_str()) {
            ("autobitlinear", "online") => None,
            ("autobitlinear", "offline") => Some(HfScale::Multiply),
            ("bitlinear", "online" | "offline") => Some(HfScale::Divide),
            _ => {
                let reason = "expected bitlinear or autobitlinear, and online or offline";
                return unsupported("quantization_config", &format!("{class}, {mode}"), reason);
            }
        };
        // Both stand there where conversion inserted what transformers can express, and only ours says that it did.
        if let Some(own) = own {
            return Ok(own.into_state(packed));
        }
        let tied = fields.get("tie_word_embeddings")?.unwrap_or(false);
        let dense: Option<Vec<String>> = inner.get("modules_to_not_convert")?;
        if let Some(list) = &dense
            && !tied
            && !list.iter().any(|name| name == "lm_head")
        {
            let reason = "the list replaces the default, so it would ternarize the head: include lm_head";
            return unsupported("quantization_config.modules_to_not_convert", &format!("{list:?}"), reason);
        }
        let per_linear = inner.get("use_rms_norm")?.unwrap_or(false);
        let state = Self {
            quantization: Quantization::default(),
            sub_norm: if per_linear { Placement::All } else { Placement::None },
            origin: SubLnOrigin::Native,
            sub_norm_eps: if per_linear { Some(inner.get("rms_norm_eps")?.unwrap_or(1e-6)) } else { None },
            packed,
            dense: dense.unwrap_or_default(),
        };
        Ok((Some(state), None))
    }
}

impl HfConfig {
    /// The `config.json` of this model, with every key that it does not touch kept.
    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let mut json = self.state_json();
        if !self.additions.is_empty() {
            json.insert(additions::KEY.into(), self.additions.to_json(self.model_type.name()));
            json.insert("model_type".into(), json!(OWN_MODEL_TYPE));
        }
        json
    }

    /// The same without what slots have in addition.
    fn state_json(&self) -> Map<String, Value> {
        let mut json = self.raw.clone();
        json.remove(OWN_KEY);
        json.remove(additions::KEY);
        json.remove("quantization_config");
        let base = self.model_type.name();
        json.insert("model_type".into(), json!(base));
        let Some(state) = &self.bitnet else {
            return json;
        };
        let twice_normed = self.model.sub_norms == SubNorms::Output && state.sub_norm == Placement::All;
        let expressible = state.quantization == Quantization::default() && !twice_normed;
        // With `quantization_config`; else all that it says is in our own object.
        let in_their_words = match state.sub_norm {
            _ if !expressible => false,
            Placement::None | Placement::All => true,
            Placement::Output => state.dense.is_empty() && self.fits_bitnet(),
        };
        let own = Own {
            base_model_type: base.into(),
            sub_norm: state.sub_norm,
            quantization: state.quantization,
            packed: if in_their_words { None } else { state.packed },
            dense: state.dense.clone(),
        };
        if state.origin == SubLnOrigin::Inserted || !expressible {
            json.insert(OWN_KEY.into(), json!(own));
        }
        let quantization_config = |use_rms_norm: bool| {
            let dense = state.dense.iter().map(String::as_str);
            let skip: Vec<&str> =
                ["lm_head"].into_iter().chain(dense.filter(|name| *name != "lm_head")).collect();
            json!({
                "quant_method": "bitnet",
                "linear_class": if state.packed == Some(HfScale::Divide) { "bitlinear" } else { "autobitlinear" },
                "quantization_mode": if state.packed.is_some() { "offline" } else { "online" },
                "use_rms_norm": use_rms_norm,
                "rms_norm_eps": state.sub_norm_eps.unwrap_or(self.model.norm_eps),
                "modules_to_not_convert": if state.dense.is_empty() { Value::Null } else { json!(skip) },
            })
        };
        match state.sub_norm {
            _ if !in_their_words => {
                json.insert("model_type".into(), json!(OWN_MODEL_TYPE));
            }
            Placement::None => {
                json.insert("quantization_config".into(), quantization_config(false));
            }
            Placement::All => {
                json.insert("quantization_config".into(), quantization_config(true));
            }
            Placement::Output => {
                json.insert("quantization_config".into(), quantization_config(false));
                json.insert("model_type".into(), json!("bitnet"));
                json.insert("architectures".into(), json!(["BitNetForCausalLM"]));
                // Values whose defaults differ between the two architectures must be written out.
                json.insert("rms_norm_eps".into(), json!(self.model.norm_eps));
                json.insert("max_position_embeddings".into(), json!(self.model.max_positions));
                json.insert("tie_word_embeddings".into(), json!(self.model.tied_head));
                json.insert("num_key_value_heads".into(), json!(self.model.n_kv_heads()));
                for (key, default) in [("bos_token_id", 1), ("eos_token_id", 2)] {
                    json.entry(key).or_insert(json!(default));
                }
                if !json.contains_key("hidden_act") {
                    json.insert("hidden_act".into(), json!("silu"));
                }
                let has_theta =
                    |value: Option<&Value>| value.is_some_and(|rope| rope.get("rope_theta").is_some());
                if !json.contains_key("rope_theta") && !has_theta(json.get("rope_parameters")) {
                    json.insert("rope_theta".into(), json!(self.model.rope.theta));
                }
            }
        }
        json
    }

    /// Whether transformers can express this model.
    pub(crate) fn fits_transformers(&self) -> bool {
        self.to_json()["model_type"] != OWN_MODEL_TYPE
    }

    /// How the sub-norms are called in the files.
    pub(crate) fn sub_norm_names(&self) -> crate::names::SubNormNames {
        let inserted = self.bitnet.as_ref().map_or(Placement::None, |state| state.sub_norm);
        let written_as_bitnet = inserted == Placement::Output && self.state_json()["model_type"] == "bitnet";
        if self.model.sub_norms == SubNorms::Output || written_as_bitnet {
            crate::names::SubNormNames::BitNet
        } else {
            crate::names::SubNormNames::PerLinear
        }
    }

    /// Whether transformers' BitNetForCausalLM computes this model once it has sub-norms.
    fn fits_bitnet(&self) -> bool {
        let CausalLmConfig { d_model, n_heads, qkv_bias, output_bias, .. } = self.model;
        matches!(self.model_type, ModelType::Llama | ModelType::Mistral)
            && self.model.sliding == bitnet_model::SlidingLayers::None
            && n_heads * self.model.head_dim() == d_model
            && qkv_bias == output_bias
            && !self.model.mlp_bias
    }
}
