//! Which tensors are ternarized, architecture by architecture.

use bitnet_compress::{CompressError, Granularity, Options, PACKED_FOLDER, Rule, read_packed};
use bitnet_cpu::Kernel;
use safetensors::Dtype;

use crate::support::*;

/// Runs a checkpoint of noise, and compares which tensors became ternary with the `true` ones of the table.
fn check(config: &str, table: &[(&str, &[usize], bool)]) {
    let given: Vec<Given> = table.iter().map(|(name, shape, _)| given(name, Dtype::BF16, shape)).collect();
    let (_work, source, target) = checkpoint(&given, config);
    let stats = run(&source, &target, &Options { packed: true, ..Options::default() }).unwrap();
    let (old, new) = (tensors(&source.join("model.safetensors")), tensors(&target.join("model.safetensors")));
    for (name, _, expected) in table {
        let tensor = stats.tensors.iter().find(|tensor| tensor.name == *name).unwrap();
        assert_eq!(tensor.ternary.is_some(), *expected, "{name}: {:?}", tensor.decision);
        assert_eq!(old[*name] == new[*name], !expected, "{name}");
    }
}

#[test]
fn mixtures_of_experts() {
    check(
        r#"{"model_type": "mixtral", "num_local_experts": 4, "vocab_size": 100}"#,
        &[
            ("model.embed_tokens.weight", &[100, 16], false),
            ("model.layers.0.self_attn.q_proj.weight", &[16, 16], true),
            ("model.layers.0.block_sparse_moe.gate.weight", &[4, 16], false),
            ("model.layers.0.block_sparse_moe.experts.0.w1.weight", &[32, 16], true),
            ("model.layers.0.block_sparse_moe.experts.3.w2.weight", &[16, 32], true),
            ("model.layers.0.mlp.shared_expert_gate.weight", &[1, 16], false),
            ("lm_head.weight", &[100, 16], false),
        ],
    );
    // Stacks, biases with two axes, and a router that only its shape gives away.
    check(
        "{}",
        &[
            ("model.layers.0.mlp.experts.gate_up_proj", &[6, 32, 16], true),
            ("model.layers.0.mlp.experts.down_proj", &[6, 16, 16], true),
            ("model.layers.0.mlp.experts.gate_up_proj_bias", &[6, 32], false),
            ("model.layers.0.mlp.chooser.weight", &[6, 16], false),
            ("model.layers.0.mlp.other.weight", &[8, 16], true),
        ],
    );
}

#[test]
fn fused_projections_encoders_and_vision() {
    check(
        r#"{"model_type": "gpt_neox", "vocab_size": 60}"#,
        &[
            ("gpt_neox.embed_in.weight", &[60, 16], false),
            ("gpt_neox.layers.0.attention.query_key_value.weight", &[48, 16], true),
            ("gpt_neox.layers.0.attention.dense.weight", &[16, 16], true),
            ("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", &[64, 16], true),
            ("gpt_neox.layers.0.input_layernorm.weight", &[16], false),
            ("embed_out.weight", &[60, 16], false),
        ],
    );
    check(
        r#"{"model_type": "bert", "type_vocab_size": 2}"#,
        &[
            ("bert.embeddings.word_embeddings.weight", &[60, 16], false),
            ("bert.embeddings.token_type_embeddings.weight", &[2, 16], false),
            ("bert.embeddings.position_embeddings.weight", &[32, 16], false),
            ("bert.embeddings.LayerNorm.weight", &[16], false),
            ("bert.encoder.layer.0.attention.self.query.weight", &[16, 16], true),
            ("bert.encoder.layer.0.output.dense.weight", &[16, 64], true),
            ("bert.pooler.dense.weight", &[16, 16], false),
            ("cls.predictions.transform.dense.weight", &[16, 16], false),
            ("classifier.weight", &[3, 16], false),
        ],
    );
    check(
        r#"{"model_type": "vit"}"#,
        &[
            ("cls_token", &[1, 1, 16], false),
            ("pos_embed", &[1, 10, 16], false),
            ("patch_embed.proj.weight", &[16, 3, 4, 4], false),
            ("blocks.0.attn.qkv.weight", &[48, 16], true),
            ("blocks.0.attn.proj.weight", &[16, 16], true),
            ("blocks.0.mlp.fc1.weight", &[64, 16], true),
            ("blocks.0.norm1.weight", &[16], false),
            ("head.weight", &[10, 16], false),
        ],
    );
    check(
        r#"{"model_type": "mamba"}"#,
        &[
            ("backbone.embeddings.weight", &[60, 16], false),
            ("backbone.layers.0.mixer.A_log", &[32, 8], false),
            ("backbone.layers.0.mixer.conv1d.weight", &[32, 1, 4], false),
            ("backbone.layers.0.mixer.in_proj.weight", &[64, 16], true),
            ("backbone.layers.0.mixer.out_proj.weight", &[16, 32], true),
        ],
    );
}

#[test]
fn conv1d_is_the_other_way_round() {
    let config = r#"{"model_type": "gpt2", "vocab_size": 50, "n_positions": 20}"#;
    let names = ["h.0.attn.c_attn.weight", "h.0.attn.c_proj.weight", "h.0.mlp.c_fc.weight"];
    let shapes: [[usize; 2]; 3] = [[16, 48], [16, 16], [16, 64]];
    let mut all: Vec<Given> =
        names.iter().zip(shapes).map(|(name, shape)| given(name, Dtype::F32, &shape)).collect();
    all.push(given("wte.weight", Dtype::F32, &[50, 16]));
    all.push(given("wpe.weight", Dtype::F32, &[20, 16]));
    all.push(given("h.0.attn.bias", Dtype::F32, &[1, 1, 20, 20]));
    all.push(given("h.0.attn.c_attn.bias", Dtype::F32, &[48]));
    for (config, alone) in [(config, false), ("", true)] {
        let (_work, source, target) = checkpoint(&all, config);
        if alone {
            std::fs::remove_file(source.join("config.json")).unwrap();
        }
        let rule = Rule::Absmean(Granularity::Row);
        let stats = run(&source, &target, &Options { rule, packed: true, ..Options::default() }).unwrap();
        assert_eq!(stats.total.ternarized, 3);
        for (name, [d_input, d_output]) in names.iter().zip(shapes) {
            let stored = decode(Dtype::F32, &tensors(&source.join("model.safetensors"))[*name].2);
            let w: Vec<f32> =
                (0..stored.len()).map(|i| stored[i % d_input * d_output + i / d_input]).collect();
            let expected =
                Kernel::scalar().absmean_ternarize(&w, d_output, d_input, Granularity::Row).unwrap();
            let packed = read_packed(&target.join(PACKED_FOLDER).join("model.safetensors"), name).unwrap();
            assert!(packed.transposed);
            assert_eq!(packed.matrices[0].codes(), expected.codes);
            let dense = decode(Dtype::F32, &tensors(&target.join("model.safetensors"))[*name].2);
            assert_eq!(dense, packed.dequantize(), "{name}");
        }
    }
    // GPT-BigCode has the same names and ordinary layers.
    let (_work, source, target) = checkpoint(&all[..3], r#"{"model_type": "gpt_bigcode"}"#);
    let stats = run(&source, &target, &Options::default()).unwrap();
    assert!(stats.tensors.iter().all(|tensor| !tensor.ternary.as_ref().unwrap().matrices.transposed));
}

#[test]
fn experts_have_scales_of_their_own() {
    let mut w = noise("a", 2 * 8 * 4);
    w[32..].iter_mut().for_each(|w| *w *= 10.0);
    for (config, transposed) in [("{}", false), (r#"{"text_config": {"model_type": "llama4_text"}}"#, true)] {
        let (_work, source, target) =
            checkpoint(&[values("layers.0.mlp.experts.gate_up_proj", &[2, 8, 4], &w)], config);
        run(&source, &target, &Options { packed: true, ..Options::default() }).unwrap();
        let path = target.join(PACKED_FOLDER).join("model.safetensors");
        let packed = read_packed(&path, "layers.0.mlp.experts.gate_up_proj").unwrap();
        assert_eq!((packed.matrices.len(), packed.transposed), (2, transposed));
        let [a, b] = [0, 1].map(|i| packed.matrices[i].scales()[0].get());
        assert!(b > 5.0 * a, "{a} {b}");
        let dense = &tensors(&target.join("model.safetensors"))["layers.0.mlp.experts.gate_up_proj"].2;
        assert_eq!(decode(Dtype::F32, dense), packed.dequantize());
    }
}

#[test]
fn globs_overrule_names() {
    let all = [
        given("model.layers.0.self_attn.q_proj.weight", Dtype::F32, &[16, 16]),
        given("model.layers.0.self_attn.k_proj.weight", Dtype::F32, &[16, 16]),
        given("model.layers.0.mlp.gate.weight", Dtype::F32, &[16, 16]),
        given("model.layers.0.norm.weight", Dtype::F32, &[16]),
    ];
    let (_work, source, target) = checkpoint(&all, "{}");
    let options = Options {
        include: vec!["*.mlp.*".into(), "*.gate.weight".into()],
        exclude: vec!["*.k_proj.*".into()],
        ..Options::default()
    };
    let stats = run(&source, &target, &options).unwrap();
    assert!(because(&stats, "model.layers.0.mlp.gate.weight").contains("Included(\"*.mlp.*\")"));
    assert!(because(&stats, "model.layers.0.self_attn.k_proj.weight").contains("Excluded(\"*.k_proj.*\")"));
    assert_eq!(stats.total.ternarized, 2);

    let refused = |include: &[&str], exclude: &[&str]| {
        let words = |globs: &[&str]| globs.iter().map(|glob| (*glob).to_owned()).collect();
        let options = Options { include: words(include), exclude: words(exclude), ..Options::default() };
        run(&source, &target.with_file_name("other"), &options).unwrap_err()
    };
    assert!(matches!(refused(&["[a"], &[]), CompressError::Glob { glob, .. } if glob == "[a"));
    assert!(
        matches!(refused(&[], &["*.q_prj.*"]), CompressError::GlobMatchesNothing { glob, .. } if glob == "*.q_prj.*")
    );
    assert!(matches!(
        refused(&["*.norm.*"], &[]),
        CompressError::GlobMatchesNothing { expected: "matrix of floats", .. }
    ));
    assert!(matches!(
        refused(&["*.gate.*"], &["*.mlp.*"]),
        CompressError::Contradiction { name, .. } if name == "model.layers.0.mlp.gate.weight"
    ));
    assert!(matches!(refused(&[], &["*"]), CompressError::NothingToDo { tensors: 4 }));
}
