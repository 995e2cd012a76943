//! What tensor names say. Names are compared segment by segment (`a.b.c` has three), never as substrings of the whole.

/// What a name says its tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bias,
    Norm,
    Embedding,
    Position,
    Router,
    Head,
    Convolution,
    LowRank,
    /// A linear map, by the name of its module.
    Linear,
    /// Nothing that is known.
    Unknown,
}

/// Modules that are linear maps, in every architecture that has them.
const LINEAR: &[&str] = &[
    // Llama, Mistral, Qwen, Gemma, Phi, OPT, BART, Whisper, CLIP, SigLIP
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "out_proj",
    "qkv_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "gate_up_proj",
    "fc1",
    "fc2",
    "linear_fc1",
    "linear_fc2",
    // DeepSeek
    "q_a_proj",
    "q_b_proj",
    "kv_a_proj",
    "kv_a_proj_with_mqa",
    "kv_b_proj",
    // GPT-2 and its relatives, GPT-J, CodeGen
    "c_attn",
    "q_attn",
    "c_proj",
    "c_fc",
    "fc_in",
    "fc_out",
    // Falcon, BLOOM, GPT-NeoX, MPT
    "query_key_value",
    "dense_h_to_4h",
    "dense_4h_to_h",
    "wqkv",
    "qkv",
    // BERT, ViT, DistilBERT
    "query",
    "key",
    "value",
    "dense",
    "q_lin",
    "k_lin",
    "v_lin",
    "out_lin",
    "lin1",
    "lin2",
    "proj",
    // Mixtral, Meta's own Llama, InternLM, T5
    "w1",
    "w2",
    "w3",
    "wq",
    "wk",
    "wv",
    "wo",
    "wi",
    "wi_0",
    "wi_1",
    // torch's MultiheadAttention and TransformerEncoderLayer
    "in_proj_weight",
    "linear1",
    "linear2",
    // Mamba
    "in_proj",
    "x_proj",
    "dt_proj",
    // Granite's and JetMoE's experts
    "input_linear",
    "output_linear",
];

const EMBEDDINGS: &[&str] = &["wte", "shared", "cls_token", "mask_token", "class_token", "tok", "codebook"];
const POSITIONS: &[&str] = &["wpe", "relative_attention_bias", "relative_position_bias_table", "inv_freq"];
const ROUTERS: &[&str] = &[
    "gate",
    "router",
    "gating",
    "switch",
    "routing",
    "wg",
    "shared_expert_gate",
    "shared_experts_gate",
    "gate_network",
];
const HEADS: &[&str] = &[
    "lm_head",
    "head",
    "heads",
    "classifier",
    "score",
    "embed_out",
    "cls",
    "pooler",
    "qa_outputs",
    "visual_projection",
    "text_projection",
    "out_head",
    "value_head",
    "v_head",
    "prediction_head",
    "logits",
];

/// What a name says.
pub(crate) fn kind(name: &str) -> Kind {
    let lower = name.to_lowercase();
    let segments: Vec<&str> = lower.split('.').collect();
    let last = segments.last().copied().unwrap_or_default();
    let any = |test: &dyn Fn(&str) -> bool| segments.iter().any(|segment| test(segment));
    let has_word = |segment: &str, word: &str| segment.split('_').any(|found| found == word);
    if POSITIONS.contains(&last)
        || any(&|segment| {
            POSITIONS.contains(&segment)
                || ["pos", "position", "positions", "positional", "rotary", "rope"]
                    .iter()
                    .any(|word| has_word(segment, word))
        })
    {
        return Kind::Position;
    }
    if last == "bias" || last.ends_with("_bias") || last.starts_with("bias_") {
        return Kind::Bias;
    }
    let is_layer_norm = |segment: &str| {
        let digits = segment.strip_prefix("ln").map(|rest| rest.trim_start_matches('_'));
        digits.is_some_and(|rest| rest.is_empty() || rest == "f" || rest.bytes().all(|b| b.is_ascii_digit()))
    };
    if any(&|segment| segment.contains("norm") || is_layer_norm(segment) || has_word(segment, "ln")) {
        return Kind::Norm;
    }
    if any(&|segment| segment.starts_with("lora_") || has_word(segment, "lora")) {
        return Kind::LowRank;
    }
    if any(&|segment| ROUTERS.contains(&segment) || has_word(segment, "router")) {
        return Kind::Router;
    }
    if any(&|segment| {
        HEADS.contains(&segment) || has_word(segment, "head") || has_word(segment, "classifier")
    }) || (!is_in_block(name) && ["output", "fc", "decoder", "proj_out"].contains(&module(&segments)))
    {
        return Kind::Head;
    }
    if EMBEDDINGS.contains(&module(&segments)) || any(&|segment| segment.contains("embed")) {
        return Kind::Embedding;
    }
    if any(&|segment| segment.contains("conv")) {
        return Kind::Convolution;
    }
    if LINEAR.contains(&module(&segments)) { Kind::Linear } else { Kind::Unknown }
}

/// The last segment that names a module: without `weight`, which a stack of experts may lack.
fn module<'a>(segments: &[&'a str]) -> &'a str {
    match segments {
        [.., module, "weight"] => module,
        [.., module] => module,
        [] => "",
    }
}

/// Whether a name stands in a numbered block, as `h.3.attn.weight`: behind a number that is not the module's own, as it
/// is in `projector.0.weight`.
pub(crate) fn is_in_block(name: &str) -> bool {
    let segments: Vec<&str> = name.split('.').collect();
    let is_number = |segment: &str| !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit());
    (1..segments.len())
        .any(|i| is_number(segments[i]) && segments[i + 1..].iter().any(|segment| *segment != "weight"))
}

/// Whether a name is that of experts' weights, as in `mlp.experts.gate_up_proj`.
pub(crate) fn is_expert(name: &str) -> bool {
    name.split('.').any(|segment| ["experts", "input_linear", "output_linear"].contains(&segment))
}

/// The part in front of `.experts.`: that of the block that chooses between them.
pub(crate) fn expert_block(name: &str) -> Option<&str> {
    name.find(".experts.").map(|at| &name[..at])
}

/// The number of an expert: 3 of `mlp.experts.3.w1.weight`.
pub(crate) fn expert_number(name: &str) -> Option<usize> {
    let at = name.find(".experts.")?;
    name[at + ".experts.".len()..].split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_many_architectures_are_known() {
        let cases: &[(Kind, &[&str])] = &[
            (
                Kind::Linear,
                &[
                    "model.layers.0.self_attn.q_proj.weight",
                    "model.layers.0.mlp.gate_proj.weight",
                    "transformer.h.0.attn.c_attn.weight",
                    "h.0.mlp.c_fc.weight",
                    "gpt_neox.layers.1.attention.query_key_value.weight",
                    "bert.encoder.layer.0.attention.output.dense.weight",
                    "bert.encoder.layer.0.output.dense.weight",
                    "blocks.0.attn.qkv.weight",
                    "blocks.0.attn.Wqkv.weight",
                    "model.layers.0.block_sparse_moe.experts.7.w2.weight",
                    "model.layers.0.mlp.experts.gate_up_proj",
                    "decoder.block.0.layer.0.SelfAttention.q.weight.q_proj.weight",
                    "text_model.encoder.layers.0.self_attn.out_proj.weight",
                    "model.layers.3.self_attn.kv_a_proj_with_mqa.weight",
                    "encoder.layers.0.self_attn.in_proj_weight",
                ],
            ),
            (Kind::Bias, &["h.0.attn.c_attn.bias", "model.layers.0.mlp.experts.gate_up_proj_bias"]),
            (
                Kind::Norm,
                &[
                    "model.layers.0.input_layernorm.weight",
                    "transformer.h.0.ln_1.weight",
                    "transformer.ln_f.weight",
                    "model.layers.0.self_attn.q_norm.weight",
                    "bert.embeddings.LayerNorm.weight",
                    "blocks.0.norm1.weight",
                    "model.ln.weight",
                ],
            ),
            (
                Kind::Embedding,
                &[
                    "model.embed_tokens.weight",
                    "transformer.wte.weight",
                    "bert.embeddings.word_embeddings.weight",
                    "shared.weight",
                    "visual.patch_embed.proj.weight",
                    "tok_embeddings.weight",
                ],
            ),
            (
                Kind::Position,
                &[
                    "transformer.wpe.weight",
                    "vit.embeddings.position_embeddings",
                    "pos_embed",
                    "model.decoder.embed_positions.weight",
                    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                    "layers.0.blocks.0.attn.relative_position_bias_table",
                ],
            ),
            (
                Kind::Router,
                &[
                    "model.layers.0.block_sparse_moe.gate.weight",
                    "model.layers.0.mlp.router.weight",
                    "model.layers.0.mlp.shared_expert_gate.weight",
                    "transformer.blocks.0.ffn.router.layer.weight",
                    "encoder.block.1.layer.1.mlp.router.classifier.weight",
                ],
            ),
            (
                Kind::Head,
                &[
                    "lm_head.weight",
                    "output.weight",
                    "score.weight",
                    "classifier.dense.weight",
                    "cls.predictions.decoder.weight",
                    "embed_out.weight",
                    "model.layers.61.shared_head.head.weight",
                    "bert.pooler.dense.weight",
                ],
            ),
            (Kind::Convolution, &["backbone.layers.0.mixer.conv1d.weight", "model.encoder.conv1.weight"]),
            (Kind::LowRank, &["model.layers.0.self_attn.q_proj.lora_A.weight"]),
            (Kind::Unknown, &["blocks.0.time_mix.receptance.weight", "a.weight", "x", ""]),
        ];
        for (expected, names) in cases {
            for name in *names {
                assert_eq!(kind(name), *expected, "{name}");
            }
        }
    }

    #[test]
    fn blocks_are_numbered() {
        for (name, expected) in [
            ("model.layers.0.x.weight", true),
            ("h.11.mlp", true),
            ("blocks.0.mlp.2.weight", true),
            ("layers.3", false),
            ("mm_projector.0.weight", false),
            ("lm_head.weight", false),
            ("0.weight", false),
            ("a.b2.c", false),
            ("", false),
        ] {
            assert_eq!(is_in_block(name), expected, "{name}");
        }
        assert_eq!(expert_number("l.0.mlp.experts.12.w1.weight"), Some(12));
        assert_eq!(expert_number("l.0.mlp.experts.w1"), None);
        assert_eq!(expert_block("l.0.mlp.experts.w1"), Some("l.0.mlp"));
    }
}
