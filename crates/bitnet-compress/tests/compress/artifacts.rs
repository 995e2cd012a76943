//! What is written: values, bytes, sizes.

use std::fs;
use std::path::Path;

use bitnet_compress::{Float, Granularity, Options, PACKED_FOLDER, PAGE, Rule, STATS, Stats, read_packed};
use bitnet_cpu::Kernel;
use safetensors::Dtype;

use crate::shared::tree;
use crate::support::*;

fn small() -> Vec<Given> {
    vec![
        given("model.embed_tokens.weight", Dtype::F32, &[40, 16]),
        given("model.layers.0.self_attn.q_proj.weight", Dtype::F32, &[24, 16]),
        given("model.layers.0.self_attn.q_proj.bias", Dtype::F32, &[24]),
        given("model.layers.0.mlp.down_proj.weight", Dtype::BF16, &[16, 32]),
        given("model.layers.0.mlp.up_proj.weight", Dtype::F16, &[32, 16]),
        given("model.norm.weight", Dtype::F32, &[16]),
        Given { name: "steps".into(), dtype: Dtype::I64, shape: vec![1], bytes: vec![7; 8] },
    ]
}

/// What the reference gives for a weight that is in memory.
fn reference(w: &[f32], rows: usize, columns: usize, rule: Rule) -> (Vec<i8>, Vec<f32>) {
    let kernel = Kernel::scalar();
    let ternary = match rule {
        Rule::Absmean(granularity) => kernel.absmean_ternarize(w, rows, columns, granularity),
        Rule::Threshold(threshold) => kernel.threshold_ternarize(w, rows, columns, threshold),
    }
    .unwrap();
    (ternary.codes, ternary.scales)
}

#[test]
fn linear_weights_are_codes_times_scale_and_nothing_else_changes() {
    for rule in [
        Rule::default(),
        Rule::Absmean(Granularity::Row),
        Rule::Absmean(Granularity::Group(8)),
        Rule::Threshold(0.1),
    ] {
        let (_work, source, target) = checkpoint(&small(), "{}");
        let before = tree(&source);
        let options = Options { rule, packed: true, ..Options::default() };
        let stats = run(&source, &target, &options).unwrap();
        assert_eq!(tree(&source), before);

        let (old, new) =
            (tensors(&source.join("model.safetensors")), tensors(&target.join("model.safetensors")));
        assert_eq!(old.keys().collect::<Vec<_>>(), new.keys().collect::<Vec<_>>());
        let packed = target.join(PACKED_FOLDER).join("model.safetensors");
        for (name, (dtype, shape, bytes)) in &old {
            let (new_dtype, new_shape, new_bytes) = &new[name];
            assert_eq!((dtype, shape), (new_dtype, new_shape));
            if !name.contains("_proj.weight") {
                assert_eq!(bytes, new_bytes, "{name}");
                assert_eq!(&tensors(&packed)[name].2, bytes, "{name}");
                continue;
            }
            let (codes, scales) = reference(&decode(*dtype, bytes), shape[0], shape[1], rule);
            let per_scale = codes.len() / scales.len();
            let expected: Vec<f32> =
                codes.iter().enumerate().map(|(i, &code)| f32::from(code) * scales[i / per_scale]).collect();
            // The type rounds the scale, as it does any weight.
            assert_eq!(decode(*dtype, new_bytes), decode(*dtype, &encode(*dtype, &expected)), "{name}");

            let weight = read_packed(&packed, name).unwrap();
            assert_eq!(weight.matrices[0].codes(), codes);
            assert_eq!(weight.dequantize(), expected);
            let scales_found: Vec<f32> =
                weight.matrices[0].scales().iter().map(|scale| scale.get()).collect();
            assert_eq!(scales_found, scales);
        }
        assert_eq!((stats.total.ternarized, stats.total.left, stats.verification.differences), (3, 4, 0));
        assert_eq!(stats.verification.dense_codes, 24 * 16 + 2 * 16 * 32);
        assert_eq!(stats.verification.packed_codes, stats.verification.dense_codes);
        let text = fs::read_to_string(target.join(STATS)).unwrap();
        assert_eq!(text, serde_json::to_string_pretty(&stats).unwrap() + "\n");
        assert_eq!(serde_json::from_str::<Stats>(&text).unwrap().verification, stats.verification);
    }
}

#[test]
fn statistics_are_those_of_the_weights() {
    let w = [0.8, -0.5, 1.2, -1.5, 0.4, -0.9, 1.3, -0.7, 0.2];
    let (_work, source, target) = checkpoint(&[values("layers.0.q_proj.weight", &[3, 3], &w)], "{}");
    let stats = run(&source, &target, &Options::default()).unwrap();
    let ternary = stats.tensors[0].ternary.as_ref().unwrap();
    assert_eq!(ternary.codes, [4, 2, 3]);
    assert!((ternary.scales[0] - 0.833_333_3).abs() < 1e-6 && ternary.scales[0] == ternary.scales[1]);
    let scale = f64::from(ternary.scales[0]);
    let codes = [1., -1., 1., -1., 0., -1., 1., -1., 0.];
    let errors: f64 = w.iter().zip(codes).map(|(w, code)| (f64::from(*w) - code * scale).powi(2)).sum();
    let squares: f64 = w.iter().map(|w| f64::from(*w).powi(2)).sum();
    // Sums in f32 lanes.
    assert!((ternary.relative_error.unwrap() - (errors / squares).sqrt()).abs() < 1e-6);
    assert!((ternary.shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
}

#[test]
fn ratios_are_of_bytes_that_are_there() {
    let (_work, source, target) = checkpoint(
        &[
            given("layers.0.mlp.up_proj.weight", Dtype::F32, &[1024, 512]),
            given("layers.0.mlp.wide_proj.weight", Dtype::F32, &[64, 100]),
            given("model.embed_tokens.weight", Dtype::F32, &[64, 512]),
        ],
        "{}",
    );
    let options = Options { packed: true, exclude: vec!["*.wide_proj.*".into()], ..Options::default() };
    let stats = run(&source, &target, &options).unwrap();
    let ratio = |form: bitnet_compress::Form| form.linear_ratio_to_f32;
    assert!((ratio(stats.total.two_bit) - 15.9995).abs() < 1e-4);
    assert!((ratio(stats.total.tq1_0) - 18.963).abs() < 1e-3);
    assert!((ratio(stats.total.int8) - 4.0).abs() < 1e-3);
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    let total = &stats.total;
    assert_eq!(total.file_bytes_before, size(&source.join("model.safetensors")));
    assert_eq!(total.file_bytes_after, size(&target.join("model.safetensors")));
    let packed = size(&target.join(PACKED_FOLDER).join("model.safetensors"));
    assert_eq!(total.file_bytes_packed, Some(packed));
    // All but the longer header.
    assert!(packed.abs_diff(total.two_bit.file_bytes) < 600, "{packed} {}", total.two_bit.file_bytes);
    assert!(
        (total.two_bit.file_ratio - total.file_bytes_before as f64 / total.two_bit.file_bytes as f64).abs()
            < 1e-9
    );

    let whole = Options::default();
    let stats = run(&source, &target.with_file_name("whole"), &whole).unwrap();
    assert_eq!((stats.total.ternarized, stats.total.tq1_0.not_held), (2, 1), "100 is no multiple of 256");
}

#[test]
fn other_files_and_shards_are_carried_over() {
    let work = tempfile::tempdir().unwrap();
    let (source, target) = (work.path().join("source"), work.path().join("target"));
    fs::create_dir_all(source.join("1_Pooling")).unwrap();
    fs::create_dir(source.join(".cache")).unwrap();
    let parts = [small()[..3].to_vec(), small()[3..].to_vec()];
    let mut map = std::collections::BTreeMap::new();
    for (i, part) in parts.iter().enumerate() {
        let name = format!("model-0000{}-of-00002.safetensors", i + 1);
        write(&source.join(&name), part);
        map.extend(part.iter().map(|tensor| (tensor.name.clone(), name.clone())));
    }
    let index = serde_json::json!({ "metadata": { "total_size": 1, "kept": true }, "weight_map": map });
    fs::write(source.join("model.safetensors.index.json"), index.to_string()).unwrap();
    for name in ["config.json", "tokenizer.json", "1_Pooling/config.json", "modeling.py", ".cache/x", ".env"]
    {
        fs::write(source.join(name), format!("{{\"name\": \"{name}\"}}")).unwrap();
    }
    fs::write(source.join("1_Pooling/.gitattributes"), "hidden").unwrap();
    fs::write(source.join("pytorch_model.bin"), "dense weights that would contradict").unwrap();
    // Names that are written here, and links that lead nowhere or back.
    for name in ["report.html", ".progress.jsonl"] {
        fs::write(source.join(name), "another's").unwrap();
    }
    std::os::unix::fs::symlink(".", source.join("loop")).unwrap();
    std::os::unix::fs::symlink("absent", source.join("nowhere")).unwrap();
    let options = Options { packed: true, ..Options::default() };
    let stats = run(&source, &target, &options).unwrap();
    fs::remove_file(source.join("loop")).unwrap();
    fs::remove_file(source.join("nowhere")).unwrap();
    let (old, new) = (tree(&source), tree(&target));
    for name in [
        "config.json",
        "tokenizer.json",
        "1_Pooling/config.json",
        "modeling.py",
        "model.safetensors.index.json",
    ] {
        assert_eq!(old[name], new[name], "{name}");
    }
    let skipped = [
        ".cache",
        ".env",
        ".progress.jsonl",
        "1_Pooling/.gitattributes",
        "loop",
        "nowhere",
        "pytorch_model.bin",
        "report.html",
    ];
    assert_eq!(stats.skipped, skipped);
    assert_ne!(old["report.html"], new["report.html"]);
    assert!(
        !new.contains_key("pytorch_model.bin")
            && !new.keys().any(|name| name.contains("/.") || name.starts_with('.'))
    );
    for i in 1..=2 {
        let name = format!("model-0000{i}-of-00002.safetensors");
        let file = |tree: &std::collections::BTreeMap<String, Vec<u8>>| SafeTensorsNames::of(&tree[&name]);
        assert_eq!(file(&old), file(&new));
    }
    let packed: serde_json::Value =
        serde_json::from_slice(&new["packed/model.safetensors.index.json"]).unwrap();
    let map = packed["weight_map"].as_object().unwrap();
    for (name, file) in map {
        assert!(tensors(&target.join(PACKED_FOLDER).join(file.as_str().unwrap())).contains_key(name));
    }
    assert_eq!(map.len(), 10);

    // In another type the index has the new size.
    let target = work.path().join("f16");
    run(&source, &target, &Options { dtype: Some(Float::F16), ..Options::default() }).unwrap();
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(target.join("model.safetensors.index.json")).unwrap()).unwrap();
    let n: usize = small().iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    assert_eq!(index["metadata"], serde_json::json!({ "total_size": 2 * (n - 1) + 8, "kept": true }));
}

/// Names in a file, and the strings of its header.
#[derive(Debug, PartialEq)]
struct SafeTensorsNames(std::collections::BTreeSet<String>, std::collections::BTreeMap<String, String>);

impl SafeTensorsNames {
    fn of(bytes: &[u8]) -> Self {
        let (_, metadata) = safetensors::SafeTensors::read_metadata(bytes).unwrap();
        let strings = metadata.metadata().clone().unwrap().into_iter().collect();
        Self(metadata.tensors().into_keys().collect(), strings)
    }
}

#[test]
fn the_target_may_have_another_type() {
    let (_work, source, target) = checkpoint(&small(), "{}");
    let options = Options { dtype: Some(Float::F16), ..Options::default() };
    run(&source, &target, &options).unwrap();
    for (name, (dtype, _, bytes)) in tensors(&target.join("model.safetensors")) {
        let (old_dtype, _, old) = tensors(&source.join("model.safetensors"))[&name].clone();
        if name == "steps" {
            assert_eq!((dtype, &bytes), (Dtype::I64, &old));
            continue;
        }
        assert_eq!(dtype, Dtype::F16);
        if !name.ends_with("_proj.weight") {
            assert_eq!(bytes, encode(Dtype::F16, &decode(old_dtype, &old)), "{name}");
        }
    }
}

#[test]
fn ternary_weights_keep_their_magnitude() {
    let w: Vec<f32> = (0..64).map(|i| [0.25, 0.0, -0.25, 0.0, 0.0][i % 5]).collect();
    for rule in [Rule::default(), Rule::Absmean(Granularity::Group(4)), Rule::Threshold(0.5)] {
        let (_work, source, target) = checkpoint(&[values("layers.0.q_proj.weight", &[4, 16], &w)], "{}");
        let stats = run(&source, &target, &Options { rule, ..Options::default() }).unwrap();
        assert_eq!(tree(&source)["model.safetensors"].len(), tree(&target)["model.safetensors"].len());
        let (_, _, bytes) = &tensors(&target.join("model.safetensors"))["layers.0.q_proj.weight"];
        assert_eq!(decode(Dtype::F32, bytes), w);
        assert_eq!(stats.tensors[0].ternary.as_ref().unwrap().already_ternary, 1);
    }
}

#[test]
fn added_tokens_and_resized_embeddings_come_out_as_they_were() {
    // 40 tokens, eight of them added, in an embedding of 48 rows.
    let mut tensors_given = small();
    tensors_given[0] = given("model.embed_tokens.weight", Dtype::F32, &[48, 16]);
    tensors_given.push(given("lm_head.weight", Dtype::F32, &[48, 16]));
    let (_work, source, target) = checkpoint(&tensors_given, r#"{"vocab_size": 48}"#);
    let added: Vec<_> =
        (32..40).map(|id| serde_json::json!({ "id": id, "content": format!("<t{id}>") })).collect();
    fs::write(source.join("tokenizer.json"), serde_json::json!({ "added_tokens": added }).to_string())
        .unwrap();
    run(&source, &target, &Options::default()).unwrap();
    let (old, new) = (tensors(&source.join("model.safetensors")), tensors(&target.join("model.safetensors")));
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        assert_eq!(old[name], new[name]);
    }
    assert_eq!(tree(&source)["tokenizer.json"], tree(&target)["tokenizer.json"]);
    assert_eq!(tree(&source)["config.json"], tree(&target)["config.json"]);
}

#[test]
fn a_file_alone_is_a_checkpoint_too() {
    let (work, source, _) = checkpoint(&small(), "{}");
    let file = work.path().join("alone.safetensors");
    fs::copy(source.join("model.safetensors"), &file).unwrap();
    let target = work.path().join("deep").join("target");
    run(&file, &target, &Options::default()).unwrap();
    assert_eq!(names(&target), ["alone.safetensors", STATS, PAGE]);
    assert_eq!(names(&work.path().join("deep")), ["target"]);
}
