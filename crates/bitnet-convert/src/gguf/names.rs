//! The one table between this project's parameter paths and the names of tensors in GGUF files, read in both
//! directions.
//!
//! A path is that of a parameter without the form of its slot: `layers.0.attention.query.weight`.

/// The tensor of Llama 3's RoPE scaling, which is no parameter.
pub(super) const FREQUENCY_FACTORS: &str = "rope_freqs.weight";

/// Parameters outside of the layers.
const MODEL: [(&str, &str); 3] = [
    ("embedding.weight", "token_embd.weight"),
    ("norm.gain", "output_norm.weight"),
    ("head.weight", "output.weight"),
];

/// Norms of a layer, below `layers.N` and `blk.N`.
const NORMS: [(&str, &str); 8] = [
    ("attention_norm.gain", "attn_norm.weight"),
    ("post_attention_norm.gain", "post_attention_norm.weight"),
    ("mlp_norm.gain", "ffn_norm.weight"),
    ("post_mlp_norm.gain", "post_ffw_norm.weight"),
    ("attention.query_norm.gain", "attn_q_norm.weight"),
    ("attention.key_norm.gain", "attn_k_norm.weight"),
    ("attention.output.sub_norm.norm.gain", "attn_sub_norm.weight"),
    ("mlp.down.sub_norm.norm.gain", "ffn_sub_norm.weight"),
];

/// A slot of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    Query,
    Key,
    Value,
    Output,
    Gate,
    Up,
    Down,
}

/// Slots of a layer, below `layers.N` and `blk.N`.
const SLOTS: [(Slot, &str, &str); 7] = [
    (Slot::Query, "attention.query", "attn_q"),
    (Slot::Key, "attention.key", "attn_k"),
    (Slot::Value, "attention.value", "attn_v"),
    (Slot::Output, "attention.output", "attn_output"),
    (Slot::Gate, "mlp.gate", "ffn_gate"),
    (Slot::Up, "mlp.up", "ffn_up"),
    (Slot::Down, "mlp.down", "ffn_down"),
];

/// A tensor of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Weight,
    Bias,
    /// The factor of the slot's output, which GGUF files alone have.
    Scale,
}

const PARTS: [(Part, &str); 3] = [(Part::Weight, "weight"), (Part::Bias, "bias"), (Part::Scale, "scale")];

impl Slot {
    /// Whether its output is a query or a key, which RoPE rotates.
    pub(super) fn is_rotated(self) -> bool {
        matches!(self, Self::Query | Self::Key)
    }

    /// Whether it belongs to the MLP.
    pub(super) fn is_mlp(self) -> bool {
        matches!(self, Self::Gate | Self::Up | Self::Down)
    }
}

/// `layers.0.mlp.up.weight` → `blk.0.ffn_up.weight`; `None` where GGUF files have no such tensor.
pub(super) fn to_gguf(path: &str) -> Option<String> {
    if let Some((_, name)) = MODEL.iter().find(|(known, _)| *known == path) {
        return Some((*name).into());
    }
    let (layer, rest) = in_layer(path, "layers.")?;
    if let Some((_, name)) = NORMS.iter().find(|(known, _)| *known == rest) {
        return Some(format!("blk.{layer}.{name}"));
    }
    let (slot, part) = rest.rsplit_once('.')?;
    let (_, _, name) = SLOTS.iter().find(|(_, known, _)| *known == slot)?;
    PARTS.iter().any(|(_, known)| *known == part).then(|| format!("blk.{layer}.{name}.{part}"))
}

/// `blk.0.ffn_up.weight` → `layers.0.mlp.up.weight`; `None` for a tensor that no model here has.
pub(super) fn to_path(name: &str) -> Option<String> {
    if let Some((path, _)) = MODEL.iter().find(|(_, known)| *known == name) {
        return Some((*path).into());
    }
    let (layer, rest) = in_layer(name, "blk.")?;
    if let Some((path, _)) = NORMS.iter().find(|(_, known)| *known == rest) {
        return Some(format!("layers.{layer}.{path}"));
    }
    let (slot, part) = rest.split_once('.')?;
    let (_, path, _) = SLOTS.iter().find(|(_, _, known)| *known == slot)?;
    PARTS.iter().any(|(_, known)| *known == part).then(|| format!("layers.{layer}.{path}.{part}"))
}

/// The slot and the tensor of it that a path stands for; `None` outside of slots.
pub(super) fn slot(path: &str) -> Option<(Slot, Part)> {
    let (_, rest) = in_layer(path, "layers.")?;
    let (slot, part) = rest.rsplit_once('.')?;
    let slot = SLOTS.iter().find(|(_, known, _)| *known == slot)?.0;
    Some((slot, PARTS.iter().find(|(_, known)| *known == part)?.0))
}

/// The number of a layer and what stands below it.
fn in_layer<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (layer, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    let number = layer.parse().ok()?;
    // `+1` and `01` are numbers too, but no names.
    (layer == format!("{number}")).then_some((number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads_in_both_directions() {
        let mut paths: Vec<String> = MODEL.iter().map(|(path, _)| (*path).to_owned()).collect();
        for layer in [0, 7, 30] {
            paths.extend(NORMS.iter().map(|(path, _)| format!("layers.{layer}.{path}")));
            for (_, slot, _) in SLOTS {
                paths.extend(PARTS.iter().map(|(_, part)| format!("layers.{layer}.{slot}.{part}")));
            }
        }
        let names: Vec<String> = paths.iter().map(|path| to_gguf(path).unwrap()).collect();
        let distinct: std::collections::HashSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), paths.len());
        for (path, name) in paths.iter().zip(&names) {
            assert_eq!(to_path(name).as_ref(), Some(path), "{name}");
        }
    }

    #[test]
    fn names_are_llama_cpps() {
        for (path, name) in [
            ("embedding.weight", "token_embd.weight"),
            ("head.weight", "output.weight"),
            ("layers.0.attention.query.weight", "blk.0.attn_q.weight"),
            ("layers.11.attention.output.bias", "blk.11.attn_output.bias"),
            ("layers.1.mlp.down.scale", "blk.1.ffn_down.scale"),
            ("layers.1.mlp.down.sub_norm.norm.gain", "blk.1.ffn_sub_norm.weight"),
            ("layers.2.attention_norm.gain", "blk.2.attn_norm.weight"),
        ] {
            assert_eq!(to_gguf(path).as_deref(), Some(name));
            assert_eq!(to_path(name).as_deref(), Some(path));
        }
        for path in
            ["layers.0.attention.query.sub_norm.norm.gain", "layers.x.mlp_norm.gain", "layers.0", "rope"]
        {
            assert_eq!(to_gguf(path), None, "{path}");
        }
        for name in
            ["blk.01.attn_q.weight", "blk.0.attn_qkv.weight", "blk.0.attn_q.lora_a", "rope_freqs.weight"]
        {
            assert_eq!(to_path(name), None, "{name}");
        }
        assert_eq!(slot("layers.3.attention.key.bias"), Some((Slot::Key, Part::Bias)));
        assert_eq!(slot("layers.3.mlp_norm.gain"), None);
        assert_eq!(slot("embedding.weight"), None);
    }
}
