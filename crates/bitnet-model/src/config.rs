use bitnet_layers::RmsNormConfig;
use burn::config::Config;
use serde::{Deserialize, Serialize};

use crate::ModelError;

/// The non-linearity of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// GELU with the error function.
    Gelu,
    /// GELU with the tanh approximation.
    GeluTanh,
    /// `max(x, 0)²`
    Relu2,
}

/// Which sub-norms the architecture itself has; conversion may insert others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubNorms {
    /// None: an ordinary model.
    None,
    /// Before the output and the down projection: `bitnet`.
    Output,
}

/// Which layers attend to a sliding window only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlidingLayers {
    /// None: full causal attention.
    None,
    /// Every layer, over this many last tokens.
    All(usize),
    /// The layers marked `true`, over this many last tokens.
    Some {
        /// Tokens in the window.
        window: usize,
        /// One entry per layer.
        layers: Vec<bool>,
    },
}

impl SlidingLayers {
    /// The window of a layer, if it has one.
    pub fn window(&self, layer: usize) -> Option<usize> {
        match self {
            Self::None => None,
            Self::All(window) => Some(*window),
            Self::Some { window, layers } => layers.get(layer).copied().unwrap_or(false).then_some(*window),
        }
    }
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// NTK-aware: the base grows with the sequence beyond the model's positions.
    Dynamic {
        /// How strongly.
        factor: f64,
    },
    /// Llama 3: low frequencies divided, high ones kept, a smooth band between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are divided in full.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context of pretraining.
        original_max_positions: usize,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// The context of pretraining.
        original_max_positions: usize,
        /// Factor of cos and sin; from `factor` where none is given.
        attention_factor: Option<f64>,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided in full.
        beta_slow: f64,
        /// Numerator weight of the inferred attention factor.
        mscale: Option<f64>,
        /// Denominator weight of the inferred attention factor.
        mscale_all_dim: Option<f64>,
        /// Whether the band's ends are rounded outwards.
        truncate: bool,
    },
}

/// Rotary position embedding, half-split as transformers lays it out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RopeConfig {
    /// Base of the wavelengths.
    pub theta: f64,
    /// Stretching.
    pub scaling: RopeScaling,
}

/// Configuration of a [`CausalLm`](crate::CausalLm). The defaults are Llama's.
#[derive(Config, Debug, PartialEq)]
pub struct CausalLmConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width inside the MLP.
    pub d_ff: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads; `n_heads` where none is given.
    pub n_kv_heads: Option<usize>,
    /// Size of a head; `d_model / n_heads` where none is given.
    pub head_dim: Option<usize>,
    /// Positions that the model was made for.
    #[config(default = 2048)]
    pub max_positions: usize,
    /// Epsilon of every norm.
    #[config(default = 1e-5)]
    pub norm_eps: f64,
    /// Added to every stored gain: 1 for Gemma, whose checkpoints hold `gain − 1`.
    #[config(default = 0.0)]
    pub norm_gain_offset: f64,
    /// Non-linearity of the MLP.
    #[config(default = "Activation::Silu")]
    pub activation: Activation,
    /// Bias of the query, key and value projections.
    #[config(default = false)]
    pub qkv_bias: bool,
    /// Bias of the attention's output projection.
    #[config(default = false)]
    pub output_bias: bool,
    /// Bias of the MLP's three projections.
    #[config(default = false)]
    pub mlp_bias: bool,
    /// Norm of each query and key head, before the rotation (Qwen 3).
    #[config(default = false)]
    pub qk_norm: bool,
    /// Sub-norms that the architecture itself has.
    #[config(default = "SubNorms::None")]
    pub sub_norms: SubNorms,
    /// Norms after attention and MLP as well, before the residual sum (Gemma 2).
    #[config(default = false)]
    pub post_norms: bool,
    /// Whether the head is the embedding transposed.
    #[config(default = false)]
    pub tied_head: bool,
    /// Factor of the embedded tokens: √d_model for Gemma.
    #[config(default = 1.0)]
    pub embedding_scale: f64,
    /// Factor of the attention scores; `1/√head_dim` where none is given.
    pub attention_scale: Option<f64>,
    /// `cap · tanh(score / cap)` on attention scores (Gemma 2).
    pub attention_softcap: Option<f64>,
    /// `cap · tanh(logit / cap)` on the logits (Gemma 2).
    pub logit_softcap: Option<f64>,
    /// Layers with a sliding window.
    #[config(default = "SlidingLayers::None")]
    pub sliding: SlidingLayers,
    /// Rotary position embedding.
    #[config(default = "RopeConfig { theta: 10000.0, scaling: RopeScaling::None }")]
    pub rope: RopeConfig,
    /// Standard deviation of freshly drawn weights.
    #[config(default = 0.02)]
    pub init_std: f64,
}

/// The largest size of an axis: products of two of them, and all tokens as i32, fit.
const MAX_SIZE: usize = i32::MAX as usize;
/// More layers than any model has.
const MAX_LAYERS: usize = 1 << 16;

impl CausalLmConfig {
    /// Number of key and value heads.
    pub fn n_kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    /// Size of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.d_model / self.n_heads.max(1))
    }

    /// The longest sequence that the model computes.
    pub fn position_limit(&self) -> usize {
        match self.rope.scaling {
            RopeScaling::Dynamic { factor } => (self.max_positions as f64 * factor) as usize,
            _ => self.max_positions,
        }
    }

    /// The norms of this model, at a width.
    pub fn norm(&self, width: usize) -> RmsNormConfig {
        RmsNormConfig::new(width).with_eps(self.norm_eps).with_gain_offset(self.norm_gain_offset)
    }

    /// # Errors
    /// [`ModelError::Config`] names the first field that no model can have.
    pub fn validate(&self) -> Result<(), ModelError> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_ff", self.d_ff),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads()),
            ("head_dim", self.head_dim()),
            ("max_positions", self.max_positions),
        ];
        for (field, size) in sizes {
            check(field, size, size > 0 && size <= MAX_SIZE, format!("from 1 to {MAX_SIZE}"))?;
        }
        check("n_layers", self.n_layers, self.n_layers <= MAX_LAYERS, format!("at most {MAX_LAYERS}"))?;
        let divides = format!("a divisor of n_heads = {}", self.n_heads);
        check("n_kv_heads", self.n_kv_heads(), self.n_heads.is_multiple_of(self.n_kv_heads()), divides)?;
        if self.head_dim.is_none() {
            let divides = format!("a divisor of d_model = {}, or head_dim given", self.d_model);
            check("n_heads", self.n_heads, self.d_model.is_multiple_of(self.n_heads), divides)?;
        }
        check("head_dim", self.head_dim(), self.head_dim().is_multiple_of(2), "even, for the rotation")?;
        check("norm_eps", self.norm_eps, positive(self.norm_eps), "a positive number")?;
        check("init_std", self.init_std, positive(self.init_std), "a positive number")?;
        check("embedding_scale", self.embedding_scale, positive(self.embedding_scale), "a positive number")?;
        for (field, value) in [
            ("attention_scale", self.attention_scale),
            ("attention_softcap", self.attention_softcap),
            ("logit_softcap", self.logit_softcap),
        ] {
            let value = value.unwrap_or(1.0);
            check(field, value, positive(value), "a positive number")?;
        }
        match &self.sliding {
            SlidingLayers::All(window) | SlidingLayers::Some { window, .. } => {
                check("sliding.window", window, *window > 0, "above 0")?;
            }
            SlidingLayers::None => {}
        }
        if let SlidingLayers::Some { layers, .. } = &self.sliding {
            let expected = format!("one entry for each of {} layers", self.n_layers);
            check("sliding.layers", layers.len(), layers.len() == self.n_layers, expected)?;
        }
        self.rope.validate()
    }
}

impl RopeConfig {
    fn validate(&self) -> Result<(), ModelError> {
        check("rope.theta", self.theta, self.theta > 1.0 && self.theta.is_finite(), "a number above 1")?;
        let factor = match self.scaling {
            RopeScaling::None => 1.0,
            RopeScaling::Linear { factor }
            | RopeScaling::Dynamic { factor }
            | RopeScaling::Llama3 { factor, .. }
            | RopeScaling::Yarn { factor, .. } => factor,
        };
        check("rope.factor", factor, factor >= 1.0 && factor.is_finite(), "a number from 1")?;
        match self.scaling {
            RopeScaling::Llama3 {
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions,
                ..
            } => {
                let expected = format!("above low_freq_factor = {low}");
                check(
                    "rope.high_freq_factor",
                    high,
                    positive(low) && high.is_finite() && high > low,
                    expected,
                )?;
                check(
                    "rope.original_max_positions",
                    original_max_positions,
                    original_max_positions > 0,
                    "above 0",
                )
            }
            RopeScaling::Yarn {
                original_max_positions,
                beta_fast,
                beta_slow,
                attention_factor,
                mscale,
                mscale_all_dim,
                ..
            } => {
                for (field, value) in [
                    ("rope.attention_factor", attention_factor),
                    ("rope.mscale", mscale),
                    ("rope.mscale_all_dim", mscale_all_dim),
                ] {
                    let value = value.unwrap_or(1.0);
                    check(field, value, value >= 0.0 && value.is_finite(), "a number from 0")?;
                }
                let expected = format!("above beta_slow = {beta_slow}");
                check("rope.beta_fast", beta_fast, positive(beta_slow) && beta_fast > beta_slow, expected)?;
                check(
                    "rope.original_max_positions",
                    original_max_positions,
                    original_max_positions > 0,
                    "above 0",
                )
            }
            _ => Ok(()),
        }
    }
}

fn positive(value: f64) -> bool {
    value > 0.0 && value.is_finite()
}

fn check(
    field: &'static str,
    found: impl ToString,
    holds: bool,
    expected: impl Into<String>,
) -> Result<(), ModelError> {
    if holds {
        return Ok(());
    }
    Err(ModelError::Config { field, found: found.to_string(), expected: expected.into() })
}
