//! Sizes and RoPE of a model as GGUF metadata, and read back from it.

use bitnet_format::FormatError;
use bitnet_format::gguf::Header;
use bitnet_model::{CausalLmConfig, RopeConfig, RopeScaling, SlidingLayers};

use super::architecture::Architecture;

/// Writes a model's sizes; `context_length` is that of [`super::architecture::context_length`].
///
/// # Errors
/// Those of [`Header::set`].
pub(super) fn set(
    header: &mut Header,
    architecture: &Architecture,
    model: &CausalLmConfig,
    context_length: usize,
) -> Result<(), FormatError> {
    let key = |name: &str| format!("{}.{name}", architecture.name);
    let head_dim = model.head_dim();
    let sizes = [
        ("vocab_size", model.vocab_size),
        ("context_length", context_length),
        ("embedding_length", model.d_model),
        ("block_count", model.n_layers),
        ("feed_forward_length", model.d_ff),
        ("attention.head_count", model.n_heads),
        ("attention.head_count_kv", model.n_kv_heads()),
        ("rope.dimension_count", head_dim),
    ];
    for (name, size) in sizes {
        header.set(&key(name), number(size))?;
    }
    if model.d_model / model.n_heads != head_dim {
        header.set(&key("attention.key_length"), number(head_dim))?;
        header.set(&key("attention.value_length"), number(head_dim))?;
    }
    header.set(&key("attention.layer_norm_rms_epsilon"), model.norm_eps as f32)?;
    header.set(&key("rope.freq_base"), model.rope.theta as f32)?;
    for (name, cap) in [
        ("attn_logit_softcapping", model.attention_softcap),
        ("final_logit_softcapping", model.logit_softcap),
    ] {
        if let Some(cap) = cap {
            header.set(&key(name), cap as f32)?;
        }
    }
    if architecture.has_windows() {
        let window = match model.sliding {
            SlidingLayers::All(window) | SlidingLayers::Some { window, .. } => window,
            SlidingLayers::None => model.max_positions,
        };
        let layers: Vec<bool> =
            (0..model.n_layers).map(|layer| model.sliding.window(layer).is_some()).collect();
        header.set(&key("attention.sliding_window"), number(window))?;
        header.set(&key("attention.sliding_window_pattern"), layers.as_slice())?;
    }
    set_scaling(header, &key, &model.rope)
}

fn set_scaling(
    header: &mut Header,
    key: &dyn Fn(&str) -> String,
    rope: &RopeConfig,
) -> Result<(), FormatError> {
    match rope.scaling {
        // Dynamic scaling begins where the context ends.
        RopeScaling::None | RopeScaling::Dynamic { .. } => {}
        RopeScaling::Linear { factor } => {
            header.set(&key("rope.scaling.type"), "linear")?;
            header.set(&key("rope.scaling.factor"), factor as f32)?;
        }
        RopeScaling::Llama3 { original_max_positions, .. } => {
            // The factors are a tensor. llama.cpp reads this key for YaRN alone, the importer for this scaling too.
            header.set(&key("rope.scaling.original_context_length"), number(original_max_positions))?;
        }
        RopeScaling::Yarn { factor, original_max_positions, .. } => {
            header.set(&key("rope.scaling.type"), "yarn")?;
            header.set(&key("rope.scaling.factor"), factor as f32)?;
            header.set(&key("rope.scaling.original_context_length"), number(original_max_positions))?;
            // llama.cpp multiplies cos and sin by YaRN's own factor, and by this one.
            let (_, amplitude) = rope.frequencies(2, original_max_positions, 0);
            let attention = amplitude / yarn_amplitude(factor);
            if (attention - 1.0).abs() > 1e-6 {
                header.set(&key("rope.scaling.attn_factor"), attention as f32)?;
            }
        }
    }
    Ok(())
}

/// What YaRN multiplies cos and sin by.
pub(super) fn yarn_amplitude(factor: f64) -> f64 {
    1.0 + 0.1 * factor.ln()
}

/// The divisors of the frequencies, the tensor `rope_freqs.weight`, f32 `[head_dim / 2]`; `None` without Llama 3's
/// scaling.
pub(super) fn frequency_factors(rope: &RopeConfig, head_dim: usize) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { original_max_positions, .. } = rope.scaling else {
        return None;
    };
    let plain = RopeConfig { theta: rope.theta, scaling: RopeScaling::None };
    let [(scaled, _), (plain, _)] =
        [rope, &plain].map(|rope| rope.frequencies(head_dim, original_max_positions, 0));
    Some(plain.iter().zip(scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect())
}

/// Sizes are at most `i32::MAX`, which [`CausalLmConfig::validate`] has checked.
fn number(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}
