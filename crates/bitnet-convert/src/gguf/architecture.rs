//! Which architecture of llama.cpp computes a model, or why none does.
//!
//! Source: the graphs and loaders in llama.cpp's `src/models/{bitnet,llama,qwen2,qwen3,gemma,gemma2}.cpp`, and those of
//! bitnet.cpp's fork for `bitnet-b1.58`.

use bitnet_model::{Activation, CausalLmConfig, RopeScaling, SlidingLayers};

use super::names::Slot;
use super::rotation::Order;
use crate::hf_config::ModelType;

/// The most layers that llama.cpp loads.
const MAX_LAYERS: usize = 512;
/// The frequencies at which YaRN's band begins and ends, which llama.cpp does not read for these architectures.
const YARN_BAND: (f64, f64) = (32.0, 1.0);

/// What one of the architectures computes.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `general.architecture`, and the prefix of its keys.
    pub(super) name: &'static str,
    /// Whether upstream llama.cpp has it; bitnet.cpp has it if `in_bitnet_cpp`.
    upstream: bool,
    in_bitnet_cpp: bool,
    pub(super) activation: Activation,
    /// Norms before the output and the down projection: all of them or none.
    sub_norms: bool,
    /// Whether query, key and value; output; MLP may have biases.
    biases: [bool; 3],
    qk_norm: bool,
    post_norms: bool,
    untied_head: bool,
    /// Whether n_heads · head_dim may differ from d_model.
    free_head_dim: bool,
    /// Whether embedded tokens are multiplied by √d_model.
    scaled_embedding: bool,
    /// Caps of scores and logits, and sliding windows in the layers that a key marks.
    softcaps_and_windows: bool,
    /// Whether it reads the tensor of Llama 3's frequency factors.
    pub(super) frequency_factors: bool,
    /// The order of rows that its RoPE wants.
    pub(super) order: Order,
    /// Whether the graph applies a `.scale` tensor to the MLP's slots.
    mlp_scales: bool,
}

const LLAMA: Architecture = Architecture {
    name: "llama",
    upstream: true,
    in_bitnet_cpp: true,
    activation: Activation::Silu,
    sub_norms: false,
    biases: [true; 3],
    qk_norm: false,
    post_norms: false,
    untied_head: true,
    free_head_dim: true,
    scaled_embedding: false,
    softcaps_and_windows: false,
    frequency_factors: true,
    order: Order::Pairs,
    mlp_scales: true,
};
const BITNET: Architecture = Architecture {
    name: "bitnet",
    sub_norms: true,
    biases: [false; 3],
    untied_head: false,
    free_head_dim: false,
    frequency_factors: false,
    order: Order::Halves,
    ..LLAMA
};
const BITNET_B158: Architecture =
    Architecture { name: "bitnet-b1.58", upstream: false, activation: Activation::Relu2, ..BITNET };
const QWEN2: Architecture = Architecture {
    name: "qwen2",
    in_bitnet_cpp: false,
    biases: [true, false, false],
    free_head_dim: false,
    frequency_factors: false,
    order: Order::Halves,
    mlp_scales: false,
    ..LLAMA
};
const QWEN3: Architecture =
    Architecture { name: "qwen3", qk_norm: true, free_head_dim: true, mlp_scales: true, ..QWEN2 };
const GEMMA: Architecture = Architecture {
    name: "gemma",
    activation: Activation::GeluTanh,
    biases: [false; 3],
    untied_head: false,
    free_head_dim: true,
    scaled_embedding: true,
    ..QWEN2
};
const GEMMA2: Architecture =
    Architecture { name: "gemma2", post_norms: true, softcaps_and_windows: true, ..GEMMA };

/// All that are written and read.
static ALL: [Architecture; 7] = [LLAMA, BITNET, BITNET_B158, QWEN2, QWEN3, GEMMA, GEMMA2];

/// Which sub-norms a model has, native ones or inserted ones.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum SubNormUse {
    None,
    /// Before every output and every down projection, with the model's epsilon.
    Output,
    /// Elsewhere too, or not in every layer, or with another epsilon: what it is, in words.
    Other(String),
}

/// What the choice depends on.
#[derive(Debug)]
pub(super) struct Traits<'a> {
    pub(super) model: &'a CausalLmConfig,
    pub(super) model_type: ModelType,
    pub(super) sub_norms: SubNormUse,
    /// Whether the file is for bitnet.cpp, not for llama.cpp.
    pub(super) for_bitnet_cpp: bool,
}

/// Why no architecture computes a model: the one that comes nearest, and what it cannot do.
#[derive(Debug)]
pub(super) struct Misfit {
    pub(super) nearest: &'static str,
    pub(super) reasons: Vec<String>,
}

impl Architecture {
    /// The architecture of this name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|known| known.name == name)
    }

    /// The names of all, for messages.
    pub(super) fn names() -> String {
        ALL.iter().map(|known| known.name).collect::<Vec<_>>().join(", ")
    }

    /// The architecture that computes a model: the one of its `model_type` where that does, else any other.
    ///
    /// # Errors
    /// What the nearest one cannot do.
    pub(super) fn choose(traits: &Traits) -> Result<&'static Self, Misfit> {
        let nearest = match (&traits.sub_norms, traits.model_type) {
            (SubNormUse::Output | SubNormUse::Other(_), _) | (_, ModelType::BitNet) => {
                if traits.for_bitnet_cpp && traits.model.activation == Activation::Relu2 {
                    "bitnet-b1.58"
                } else {
                    "bitnet"
                }
            }
            (SubNormUse::None, ModelType::Llama | ModelType::Mistral) => "llama",
            (SubNormUse::None, ModelType::Qwen2) => "qwen2",
            (SubNormUse::None, ModelType::Qwen3) => "qwen3",
            (SubNormUse::None, ModelType::Gemma) => "gemma",
            (SubNormUse::None, ModelType::Gemma2) => "gemma2",
        };
        let first = ALL.iter().filter(|known| known.name == nearest);
        let others = ALL.iter().filter(|known| known.name != nearest);
        let mut reasons = None;
        for architecture in first.chain(others) {
            let misfits = architecture.misfits(traits);
            if misfits.is_empty() {
                return Ok(architecture);
            }
            reasons.get_or_insert(misfits);
        }
        Err(Misfit { nearest, reasons: reasons.unwrap_or_default() })
    }

    /// Whether the graph multiplies a slot's output by its `.scale` tensor.
    pub(super) fn applies_scale(&self, slot: Slot) -> bool {
        !slot.is_mlp() || self.mlp_scales
    }

    /// Whether the file names the layers with a sliding window.
    pub(super) fn has_windows(&self) -> bool {
        self.softcaps_and_windows
    }

    /// What of a model this architecture cannot compute.
    fn misfits(&self, traits: &Traits) -> Vec<String> {
        let mut found = Vec::new();
        let mut check = |holds: bool, reason: String| {
            if !holds {
                found.push(reason);
            }
        };
        // Every field is named here, so that a new one cannot be forgotten.
        let CausalLmConfig {
            vocab_size: _,
            d_model,
            d_ff: _,
            n_layers,
            n_heads,
            n_kv_heads: _,
            head_dim: _,
            max_positions: _,
            norm_eps: _,
            norm_gain_offset: _, // added to the gains that are written
            activation,
            qkv_bias,
            output_bias,
            mlp_bias,
            qk_norm,
            sub_norms: _, // together with inserted ones in `traits`
            post_norms,
            tied_head,
            embedding_scale,
            attention_scale,
            attention_softcap,
            logit_softcap,
            sliding: _, // read where there are windows, else the context is cut to them
            rope,
            init_std: _,
        } = traits.model;
        if traits.for_bitnet_cpp {
            check(self.in_bitnet_cpp, "bitnet.cpp runs I2_S in llama, bitnet and bitnet-b1.58".into());
        } else {
            check(self.upstream, "it exists in bitnet.cpp alone: export I2_S".into());
        }
        check(*n_layers <= MAX_LAYERS, format!("{n_layers} layers: llama.cpp loads at most {MAX_LAYERS}"));
        check(*activation == self.activation, self.activation_reason(*activation));
        check(
            match &traits.sub_norms {
                SubNormUse::None => !self.sub_norms,
                SubNormUse::Output => self.sub_norms,
                SubNormUse::Other(_) => false,
            },
            match (&traits.sub_norms, self.sub_norms) {
                (SubNormUse::None, _) => {
                    "it needs a SubLN before each output and down projection: convert with \
                                          SubLN placement `output`"
                        .into()
                }
                (SubNormUse::Output, _) => "it has no SubLN: convert with SubLN placement `none`".into(),
                (SubNormUse::Other(what), _) => {
                    format!(
                        "{what}: only a SubLN before each output and down projection runs, or none at all"
                    )
                }
            },
        );
        let biases = ["query, key and value", "output", "gate, up and down"];
        for ((has, may), which) in [qkv_bias, output_bias, mlp_bias].into_iter().zip(self.biases).zip(biases)
        {
            check(!has || may, format!("it has no biases of the {which} projections"));
        }
        let has_not = |has: bool| if has { "needs" } else { "has no" };
        check(*qk_norm == self.qk_norm, format!("it {} norms of queries and keys", has_not(self.qk_norm)));
        check(
            *post_norms == self.post_norms,
            format!("it {} norms after attention and MLP", has_not(self.post_norms)),
        );
        check(
            *tied_head || self.untied_head,
            "it always takes the embedding as the head, and this head is its own: convert without SubLN, which runs as llama"
                .into(),
        );
        let head_dim = traits.model.head_dim();
        check(
            self.free_head_dim || n_heads * head_dim == *d_model,
            format!("{n_heads} heads of {head_dim}: it needs n_heads · head_dim = d_model = {d_model}"),
        );
        let scale = if self.scaled_embedding { (*d_model as f64).sqrt() } else { 1.0 };
        check(
            close(*embedding_scale, scale),
            format!("embedded tokens times {embedding_scale}: it multiplies them by {scale}"),
        );
        let size = self.attention_size(*n_layers, *d_model, *n_heads, head_dim);
        let scale = (size as f64).sqrt().recip();
        let found_scale = attention_scale.unwrap_or((head_dim as f64).sqrt().recip());
        check(
            close(found_scale, scale),
            format!("attention scores times {found_scale}: it multiplies them by {scale}"),
        );
        for (cap, what) in [(attention_softcap, "attention scores"), (logit_softcap, "logits")] {
            let verb = if self.softcaps_and_windows { "always caps" } else { "does not cap" };
            check(cap.is_some() == self.softcaps_and_windows, format!("it {verb} {what}"));
        }
        match rope.scaling {
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Dynamic { .. } => {}
            RopeScaling::Llama3 { .. } => check(
                self.frequency_factors,
                "it has no frequency factors, which Llama 3's RoPE scaling needs: without SubLN it runs as llama".into(),
            ),
            RopeScaling::Yarn { beta_fast, beta_slow, truncate, .. } => check(
                (beta_fast, beta_slow) == YARN_BAND && truncate,
                format!("YaRN between {beta_slow} and {beta_fast} rotations, truncate {truncate}: it has 1 to 32, true"),
            ),
        }
        found
    }

    fn activation_reason(&self, found: Activation) -> String {
        let instead = match found {
            Activation::Relu2 => {
                ": it would load and compute something else; bitnet.cpp runs it, export I2_S"
            }
            _ => "",
        };
        format!("activation {found:?}, where it computes {:?}{instead}", self.activation)
    }

    /// The number whose root attention scores are divided by: the size of a head in all but one model.
    pub(super) fn attention_size(
        &self,
        n_layers: usize,
        d_model: usize,
        n_heads: usize,
        head_dim: usize,
    ) -> usize {
        // llama.cpp knows the largest Gemma 2 by its number of layers.
        if self.softcaps_and_windows && n_layers == 46 { d_model / n_heads.max(1) } else { head_dim }
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * b.abs()
}

/// How many positions llama.cpp computes as the model does, and why they are fewer than the model's.
pub(super) fn context_length(architecture: &Architecture, model: &CausalLmConfig) -> (usize, Option<String>) {
    let window = match &model.sliding {
        SlidingLayers::All(window) => Some(*window),
        SlidingLayers::Some { window, layers } => layers.contains(&true).then_some(*window),
        SlidingLayers::None => None,
    };
    match window.filter(|window| !architecture.has_windows() && *window < model.max_positions) {
        Some(window) => {
            let why = format!(
                "context_length is {window}, the sliding window, not {}: {} attends to all tokens",
                model.max_positions, architecture.name
            );
            (window, Some(why))
        }
        None if model.position_limit() > model.max_positions => {
            let why = format!(
                "context_length is {}, not {}: llama.cpp has no dynamic RoPE scaling",
                model.max_positions,
                model.position_limit()
            );
            (model.max_positions, Some(why))
        }
        None => (model.max_positions, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_model::RopeConfig;

    fn llama() -> CausalLmConfig {
        CausalLmConfig::new(512, 64, 160, 2, 4).with_tied_head(true)
    }

    fn choose(
        model: &CausalLmConfig,
        model_type: ModelType,
        sub_norms: SubNormUse,
    ) -> Result<&'static str, Misfit> {
        let traits = Traits { model, model_type, sub_norms, for_bitnet_cpp: false };
        Architecture::choose(&traits).map(|architecture| architecture.name)
    }

    #[test]
    fn models_run_where_they_belong_or_elsewhere() {
        use ModelType::{Gemma, Gemma2, Llama, Mistral, Qwen2, Qwen3};
        let qwen2 = llama().with_qkv_bias(true);
        let qwen3 = llama().with_qk_norm(true).with_head_dim(Some(32));
        let gemma = llama().with_activation(Activation::GeluTanh).with_embedding_scale(8.0);
        let capped = gemma.clone().with_attention_softcap(Some(50.0)).with_logit_softcap(Some(30.0));
        let gemma2 = capped.with_post_norms(true);
        for (model, model_type, expected) in [
            (llama(), Llama, "llama"),
            (llama(), Mistral, "llama"),
            (qwen2.clone(), Qwen2, "qwen2"),
            (qwen2.with_head_dim(Some(32)), Qwen2, "llama"),
            (qwen3, Qwen3, "qwen3"),
            (gemma, Gemma, "gemma"),
            (gemma2.clone(), Gemma2, "gemma2"),
            (CausalLmConfig { n_layers: 46, ..gemma2 }.with_attention_scale(Some(0.25)), Gemma2, "gemma2"),
        ] {
            assert_eq!(choose(&model, model_type, SubNormUse::None).unwrap(), expected, "{model:?}");
        }
        assert_eq!(choose(&llama(), Llama, SubNormUse::Output).unwrap(), "bitnet");
        for for_bitnet_cpp in [false, true] {
            let model = llama().with_activation(Activation::Relu2);
            let (sub_norms, model_type) = (SubNormUse::Output, ModelType::BitNet);
            let traits = Traits { model: &model, model_type, sub_norms, for_bitnet_cpp };
            let found = Architecture::choose(&traits);
            match for_bitnet_cpp {
                true => assert_eq!(found.unwrap().name, "bitnet-b1.58"),
                false => assert_eq!(found.unwrap_err().nearest, "bitnet"),
            }
        }
    }

    #[test]
    fn every_misfit_is_named() {
        let scaled = |scaling| llama().with_rope(RopeConfig { theta: 10_000.0, scaling });
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 64,
        };
        let other = SubNormUse::Other("norms of another kind".into());
        for (model, sub_norms, expected) in [
            (CausalLmConfig { n_layers: 513, ..llama() }, SubNormUse::None, "513 layers"),
            (llama().with_activation(Activation::Gelu), SubNormUse::None, "Gelu"),
            (llama(), other, "norms of another kind"),
            (llama().with_qkv_bias(true), SubNormUse::Output, "query, key and value"),
            (llama().with_output_bias(true), SubNormUse::Output, "biases of the output"),
            (llama().with_mlp_bias(true), SubNormUse::Output, "gate, up and down"),
            (
                llama().with_qk_norm(true).with_mlp_bias(true),
                SubNormUse::None,
                "no norms of queries and keys",
            ),
            (llama().with_post_norms(true), SubNormUse::None, "after attention and MLP"),
            (llama().with_tied_head(false), SubNormUse::Output, "its own"),
            (llama().with_head_dim(Some(32)), SubNormUse::Output, "4 heads of 32"),
            (llama().with_embedding_scale(2.0), SubNormUse::None, "embedded tokens times 2"),
            (llama().with_attention_scale(Some(0.5)), SubNormUse::None, "attention scores times 0.5"),
            (llama().with_attention_softcap(Some(50.0)), SubNormUse::None, "does not cap attention scores"),
            (llama().with_logit_softcap(Some(30.0)), SubNormUse::None, "does not cap logits"),
            (scaled(llama3), SubNormUse::Output, "frequency factors"),
        ] {
            let Misfit { reasons, .. } = choose(&model, ModelType::Llama, sub_norms).unwrap_err();
            assert!(reasons.iter().any(|reason| reason.contains(expected)), "{expected}: {reasons:?}");
        }
        let bitnet = choose(&llama(), ModelType::BitNet, SubNormUse::None);
        assert_eq!(bitnet.unwrap(), "llama", "an architecture without norms runs what has none");
    }

    #[test]
    fn the_context_ends_where_llama_cpp_would_differ() {
        let window = |sliding| llama().with_max_positions(100).with_sliding(sliding);
        let some = |layers: [bool; 2]| SlidingLayers::Some { window: 8, layers: layers.into() };
        for (model, architecture, expected) in [
            (window(SlidingLayers::None), LLAMA, 100),
            (window(SlidingLayers::All(8)), LLAMA, 8),
            (window(SlidingLayers::All(200)), LLAMA, 100),
            (window(some([true, false])), QWEN2, 8),
            (window(some([false, false])), QWEN2, 100),
            (window(some([true, false])), GEMMA2, 100),
        ] {
            let (found, why) = context_length(&architecture, &model);
            assert_eq!((found, why.is_some()), (expected, expected == 8), "{model:?}");
        }
        let dynamic = RopeConfig { theta: 10_000.0, scaling: RopeScaling::Dynamic { factor: 2.0 } };
        let (found, why) = context_length(&LLAMA, &window(SlidingLayers::None).with_rope(dynamic));
        assert_eq!((found, why.is_some()), (100, true));
    }
}
