//! Corrections: fitted, saved, run, exported in two parts.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use crate::support::{floats, max_difference, names, read_json, repository, small};

/// The small model, ternarized without norms.
fn ternarized(work: &TempDir) -> PathBuf {
    let target = work.path().join("ternarized");
    bitnet!("convert", &small(), &target, "--sub-norm", "none", "--quiet").ok();
    target
}

fn text() -> PathBuf {
    repository("README.md")
}

fn logits(model: &Path, work: &TempDir) -> Vec<f32> {
    let out = work.path().join("logits.safetensors");
    bitnet!("logits", model, "--text", "Once upon a time", "--out", &out, "--quiet").ok();
    floats(&out, "logits").1
}

fn size(values: &[f32]) -> f32 {
    values.iter().map(|value| value * value).sum::<f32>().sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    size(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>())
}

#[test]
fn corrections_bring_the_dense_model_nearer() {
    let work = tempfile::tempdir().unwrap();
    let (bare, dense) = (ternarized(&work), logits(&small(), &work));
    let plain = distance(&logits(&bare, &work), &dense);
    let (fitted, residual) = (work.path().join("fitted"), work.path().join("residual"));
    let printed = bitnet!(
        "lrc",
        &bare,
        &fitted,
        "--data",
        &text(),
        "--windows",
        "8",
        "--window",
        "64",
        "--percentage",
        "0.3"
    )
    .ok();
    for words in
        ["projections corrected             14", "tokens of calibration            512", "report.json"]
    {
        assert!(printed.contains(words), "{words}: {printed}");
    }
    bitnet!("lrc", &bare, &residual, "--percentage", "0.3", "--quiet").ok();
    for target in [&fitted, &residual] {
        let corrected = distance(&logits(target, &work), &dense);
        assert!(corrected < 0.9 * plain, "{}: {corrected} against {plain}", target.display());
    }
    let report = read_json(&fitted.join("report.json"));
    assert_eq!(report["tokens"], 512);
    assert_eq!(report["config"]["init"], json!({ "calibrated": { "rounds": 0 } }));
    let slot = &report["slots"][0];
    assert_eq!((&slot["path"], &slot["rank"]), (&json!("model.layers.0.self_attn.q_proj"), &json!(76)));
    assert!(slot["error"]["after"][0].as_f64() < slot["error"]["before"].as_f64(), "{slot}");
    assert!(bitnet!("generate", &fitted, "--prompt", "The ", "--max-tokens", "4").ok().len() > 1);
    assert!(bitnet!("inspect", &fitted).ok().contains("no problems found"));
}

#[test]
fn settings_reach_the_slots() {
    let work = tempfile::tempdir().unwrap();
    let bare = ternarized(&work);
    let target = work.path().join("target");
    bitnet!(
        "lrc",
        &bare,
        &target,
        "--rank",
        "5",
        "--slots",
        "*.mlp.*",
        "--exclude",
        "*.layers.1.*",
        "--bits",
        "4",
        "--group",
        "16",
        "--pack",
        "--quiet"
    )
    .ok();
    let config = read_json(&target.join("config.json"));
    let low_rank = config["bitnet_arch_slots"]["low_rank"].as_object().unwrap();
    let mlp = ["down_proj", "gate_proj", "up_proj"].map(|name| format!("model.layers.0.mlp.{name}"));
    assert_eq!(low_rank.keys().cloned().collect::<Vec<_>>(), mlp);
    for map in low_rank.values() {
        assert_eq!(
            *map,
            json!({ "rank": 5, "kind": { "quantized_correction": { "bits": 4, "group": 16 } } })
        );
    }
    let found = bitnet!("inspect", &target).ok();
    assert!(found.contains("ternary") && found.contains("no problems found"), "{found}");

    // Rounds fit the weight too.
    let rounds = work.path().join("rounds");
    bitnet!(
        "lrc",
        &bare,
        &rounds,
        "--data",
        &text(),
        "--rounds",
        "1",
        "--windows",
        "4",
        "--window",
        "64",
        "--slots",
        "*.layers.0.mlp.up_proj",
        "--quiet"
    )
    .ok();
    let report = read_json(&rounds.join("report.json"));
    let up =
        report["slots"].as_array().unwrap().iter().find(|slot| slot["path"] == "model.layers.0.mlp.up_proj");
    assert_eq!(up.unwrap()["error"]["after"].as_array().unwrap().len(), 2);
}

#[test]
fn other_engines_take_two_parts() {
    let work = tempfile::tempdir().unwrap();
    let bare = ternarized(&work);
    let lrc = work.path().join("lrc");
    bitnet!("lrc", &bare, &lrc, "--quiet").ok();
    let path = |name: &str| work.path().join(name);
    let error = bitnet!("export", &lrc, &path("whole"), "--format", "hf-autobitlinear").failed();
    assert!(error.contains("low-rank maps"), "{error}");
    bitnet!("export", &lrc, &path("base"), "--format", "hf-autobitlinear", "--part", "base", "--quiet").ok();
    assert!(max_difference(&logits(&path("base"), &work), &logits(&bare, &work)) < 1e-4);
    let printed =
        bitnet!("export", &lrc, &path("peft"), "--format", "hf-autobitlinear", "--part", "adapter").ok();
    assert!(printed.contains("a LoRA of 14 projections"), "{printed}");
    assert_eq!(names(&path("peft")), ["adapter_config.json", "adapter_model.safetensors"]);
    bitnet!("export", &lrc, &path("base.gguf"), "--format", "gguf", "--part", "base", "--quiet").ok();
    bitnet!("export", &lrc, &path("lora.gguf"), "--format", "gguf", "--part", "adapter", "--quiet").ok();
    assert_eq!(fs::read(path("lora.gguf")).unwrap()[..4], *b"GGUF");
    let error = bitnet!("export", &bare, &path("none"), "--format", "gguf", "--part", "adapter").failed();
    assert!(error.contains("no correction and no adapter"), "{error}");
}

#[test]
fn salient_columns_and_turned_weights() {
    let work = tempfile::tempdir().unwrap();
    let target = work.path().join("target");
    bitnet!(
        "convert",
        &small(),
        &target,
        "--sub-norm",
        "none",
        "--hadamard",
        "--salient",
        "0.02",
        "--data",
        &text(),
        "--windows",
        "4",
        "--window",
        "64",
        "--quiet"
    )
    .ok();
    let slots = &read_json(&target.join("config.json"))["bitnet_arch_slots"];
    assert_eq!(slots["hadamard"].as_array().unwrap().len(), 4);
    assert_eq!(slots["salient"].as_object().unwrap().len(), 10);
    assert_eq!(slots["salient"]["model.layers.0.self_attn.q_proj"].as_array().unwrap().len(), 5);
    let dense = logits(&small(), &work);
    let [treated, plain] = [&target, &ternarized(&work)].map(|model| distance(&logits(model, &work), &dense));
    assert!(treated < plain, "{treated} against {plain}");
}

#[test]
fn refusals_write_nothing() {
    let work = tempfile::tempdir().unwrap();
    let bare = ternarized(&work);
    let target = work.path().join("target");
    let error = bitnet!("lrc", &small(), &target).failed();
    assert!(error.contains("14 are dense"), "{error}");
    let error = bitnet!("lrc", &bare, &target, "--rank", "257").failed();
    assert!(error.contains("rank 257") && error.contains("1 to 256"), "{error}");
    let error = bitnet!("lrc", &bare, &target, "--slots", "*.upp").failed();
    assert!(error.contains("`*.upp`"), "{error}");
    let short = work.path().join("short.txt");
    fs::write(&short, "A few words.").unwrap();
    assert!(bitnet!("lrc", &bare, &target, "--data", &short).failed().contains("256"));
    assert!(
        bitnet!("lrc", &bare, &target, "--rank", "4", "--percentage", "0.2")
            .misused()
            .contains("--percentage")
    );
    assert!(bitnet!("lrc", &bare, &target, "--init", "calibrated").misused().contains("--data"));
    assert!(bitnet!("lrc", &bare, &target, "--init", "svd", "--data", &text()).misused().contains("--init"));
    assert!(bitnet!("lrc", &bare, &target, "--bits", "5").misused().contains("4 or 8"));
    assert!(bitnet!("lrc", &bare, &target, "--rounds", "2").misused().contains("--data"));
    assert!(bitnet!("convert", &small(), &target, "--data", &text()).misused().contains("--salient"));
    assert!(bitnet!("convert", &small(), &target, "--salient", "0.1").misused().contains("--data"));
    assert_eq!(names(work.path()), ["short.txt", "ternarized"]);
    let lrc = work.path().join("lrc");
    bitnet!("lrc", &bare, &lrc, "--quiet").ok();
    let error = bitnet!("lrc", &lrc, &target).failed();
    assert!(error.contains("14 have a correction"), "{error}");
    assert!(bitnet!("lrc", &bare, &lrc).failed().contains("exists"));
    bitnet!("lrc", &bare, &lrc, "--force", "--quiet").ok();
}
