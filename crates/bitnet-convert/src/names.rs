//! The one table between this project's parameter paths and Hugging Face tensor names.
//!
//! The other direction is the same table read backwards: a loader asks it for the name of every parameter that the
//! model has.

use bitnet_model::CausalLmConfig;

/// How sub-norms are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SubNormNames {
    /// `self_attn.attn_sub_norm` and `mlp.ffn_sub_norm`, as `model_type: bitnet` has them; others as below.
    BitNet,
    /// `<linear>.rms_norm`: transformers' `use_rms_norm`.
    PerLinear,
}

/// The names of one checkpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    /// Gemma 2 calls the norm before the MLP differently, as it has one after attention too.
    post_norms: bool,
    sub_norms: SubNormNames,
}

impl Names {
    pub(crate) fn new(config: &CausalLmConfig, sub_norms: SubNormNames) -> Self {
        Self { post_norms: config.post_norms, sub_norms }
    }

    /// `layers.0.attention.query.weight` → `model.layers.0.self_attn.q_proj.weight`; `None` for a path
    /// that no checkpoint holds.
    pub(crate) fn tensor(&self, path: &str) -> Option<String> {
        let path: Vec<&str> = path.split('.').collect();
        Some(match path.as_slice() {
            ["embedding", "weight"] => "model.embed_tokens.weight".into(),
            ["norm", "gain"] => "model.norm.weight".into(),
            ["head", "weight"] => "lm_head.weight".into(),
            ["layers", layer, rest @ ..] => format!("model.layers.{layer}.{}", self.in_block(rest)?),
            _ => return None,
        })
    }

    /// `layers.0.attention.query` → `model.layers.0.self_attn.q_proj`.
    pub(crate) fn slot(&self, path: &str) -> Option<String> {
        match path.split('.').collect::<Vec<_>>().as_slice() {
            ["layers", layer, part, slot] => {
                Some(format!("model.layers.{layer}.{}", projection(part, slot)?))
            }
            _ => None,
        }
    }

    fn in_block(&self, path: &[&str]) -> Option<String> {
        Some(match path {
            ["attention_norm", "gain"] => "input_layernorm.weight".into(),
            ["post_attention_norm", "gain"] => "post_attention_layernorm.weight".into(),
            ["mlp_norm", "gain"] if self.post_norms => "pre_feedforward_layernorm.weight".into(),
            ["mlp_norm", "gain"] => "post_attention_layernorm.weight".into(),
            ["post_mlp_norm", "gain"] => "post_feedforward_layernorm.weight".into(),
            ["attention", "query_norm", "gain"] => "self_attn.q_norm.weight".into(),
            ["attention", "key_norm", "gain"] => "self_attn.k_norm.weight".into(),
            [part, slot, tensor @ ("weight" | "bias")] => {
                format!("{}.{tensor}", projection(part, slot)?)
            }
            [part, slot, "low_rank", "u"] => format!("{}.lrc_u", projection(part, slot)?),
            [part, slot, "low_rank", "v"] => format!("{}.lrc_v", projection(part, slot)?),
            [part, slot, "outliers", "weight"] => format!("{}.salient_weight", projection(part, slot)?),
            [part, slot, "sub_norm", "norm", "gain"] => match (self.sub_norms, *slot) {
                (SubNormNames::BitNet, "output") => "self_attn.attn_sub_norm.weight".into(),
                (SubNormNames::BitNet, "down") => "mlp.ffn_sub_norm.weight".into(),
                _ => format!("{}.rms_norm.weight", projection(part, slot)?),
            },
            _ => return None,
        })
    }
}

fn projection(part: &str, slot: &str) -> Option<&'static str> {
    Some(match (part, slot) {
        ("attention", "query") => "self_attn.q_proj",
        ("attention", "key") => "self_attn.k_proj",
        ("attention", "value") => "self_attn.v_proj",
        ("attention", "output") => "self_attn.o_proj",
        ("mlp", "gate") => "mlp.gate_proj",
        ("mlp", "up") => "mlp.up_proj",
        ("mlp", "down") => "mlp.down_proj",
        _ => return None,
    })
}

/// Whether a slot of a [`CausalLm`](bitnet_model::CausalLm) is one that `Placement::Output` norms.
pub(crate) fn is_output_slot(path: &str) -> bool {
    matches!(path.rsplit('.').next(), Some("output" | "down"))
}
