//! Models in and out: inspect, convert, export, logits.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    copy, edit_json, floats, json, max_difference, names, read_json, repository, small, write_tensor,
};

/// Sums in another order, as in the suites.
const LOGITS: f32 = 1e-4;

/// The small model, converted.
fn converted(work: &TempDir, flags: &[&str]) -> PathBuf {
    let target = work.path().join("converted");
    let mut command = crate::support::command();
    command.arg("convert").arg(small()).arg(&target).args(flags);
    crate::support::run(&mut command).ok();
    target
}

fn logits(model: &Path, work: &TempDir) -> Vec<f32> {
    let out = work.path().join("logits.safetensors");
    bitnet!("logits", model, "--text", "Once upon a time", "--out", &out, "--quiet").ok();
    floats(&out, "logits").1
}

#[test]
fn inspect_says_what_is_there() {
    let text = bitnet!("inspect", &small()).ok();
    for words in [
        "architecture  llama",
        "layers 2, d_model 256",
        "tied head",
        "512 tokens",
        "projection",
        "no problems found",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let found = json(&bitnet!("inspect", &small(), "--json").ok());
    assert_eq!(found["architecture"]["d_ff"], 512);
    assert_eq!(found["problems"], json!([]));
    let of_projections =
        found["totals"].as_array().unwrap().iter().find(|total| total["role"] == "projection");
    assert_eq!(of_projections.unwrap()["tensors"], 14);
    assert!(
        bitnet!("inspect", &small(), "--tensors")
            .ok()
            .contains("model.layers.1.mlp.up_proj.weight [512, 256] BF16")
    );

    // Problems are no failure.
    let gpt2 = bitnet!("inspect", &repository("tests/data/hf/gpt2")).ok();
    assert!(gpt2.contains("3 problems found") && gpt2.contains("model_type `gpt2`"), "{gpt2}");
    let work = tempfile::tempdir().unwrap();
    let broken = work.path().join("broken.gguf");
    fs::write(&broken, "GGUF").unwrap();
    assert!(bitnet!("inspect", &broken).failed().contains("broken.gguf"));
}

#[test]
fn convert_writes_a_model_and_says_what_it_did() {
    let work = tempfile::tempdir().unwrap();
    let target = work.path().join("new/converted");
    let text = bitnet!("convert", &small(), &target, "--exclude", "*.layers.0.mlp.*").ok();
    for words in [
        "projections made BitNet layers            11",
        "norms inserted before them                 3",
        "projections excluded                       3",
        "report.json",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(read_json(&target.join("report.json"))["n_converted"], 11);
    let found = json(&bitnet!("inspect", &target, "--json").ok());
    let latent = found["totals"].as_array().unwrap().iter().find(|total| total["form"] == "latent");
    assert_eq!(latent.unwrap()["tensors"], 11);
    assert_eq!(names(&work.path().join("new")), ["converted"]);

    let row = work.path().join("row");
    assert_eq!(
        bitnet!(
            "convert",
            &small(),
            &row,
            "--granularity",
            "row",
            "--activations",
            "token:4",
            "--sub-norm",
            "none",
            "--quiet"
        )
        .ok(),
        ""
    );
    let policy = &read_json(&row.join("report.json"))["policy"];
    assert_eq!(policy["quantization"], json!({ "weight": "row", "activation": { "per_token": 4 } }));
}

#[test]
fn refusals_write_nothing() {
    let work = tempfile::tempdir().unwrap();
    let bit = converted(&work, &["--sub-norm", "none"]);
    let target = work.path().join("target");
    let error = bitnet!("convert", &bit, &target).failed();
    assert!(error.contains("is a BitNet checkpoint already"), "{error}");
    let error = bitnet!("convert", &small(), &target, "--exclude", "*.q_prj").failed();
    assert!(error.contains("`*.q_prj`"), "{error}");
    for format in ["hf-bitlinear", "hf-online", "gguf-tq2_0", "i2_s-x86"] {
        let error = bitnet!("export", &small(), &target, "--format", format).failed();
        assert!(error.contains("dense"), "{format}: {error}");
    }
    let relu2 = repository("tests/data/hf/bitnet_online");
    for format in ["gguf", "gguf-f32"] {
        let error = bitnet!("export", &relu2, &target, "--format", format).failed();
        assert!(error.contains("Relu2"), "{error}");
    }
    assert!(!target.exists());
    let error = bitnet!("convert", &small(), &bit).failed();
    assert!(error.contains("exists"), "{error}");
    assert_eq!(names(work.path()), ["converted"]);
}

#[test]
fn force_replaces_a_model_and_nothing_else() {
    let work = tempfile::tempdir().unwrap();
    let target = converted(&work, &[]);
    fs::write(target.join("old"), "").unwrap();
    bitnet!("convert", &small(), &target, "--sub-norm", "all", "--force").ok();
    assert!(!target.join("old").exists());
    assert_eq!(read_json(&target.join("report.json"))["policy"]["sub_norm"], "all");

    let home = work.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("letter.txt"), "dear").unwrap();
    let error = bitnet!("convert", &small(), &home, "--force").failed();
    assert!(error.contains("is not replaced"), "{error}");
    let error = bitnet!("export", &target, &target, "--format", "hf-online", "--force").failed();
    assert!(error.contains("what is read"), "{error}");
    assert_eq!((names(&home), target.join("config.json").exists()), (vec!["letter.txt".to_owned()], true));

    let file = work.path().join("model.gguf");
    fs::write(&file, "old").unwrap();
    let plain = work.path().join("plain");
    bitnet!("convert", &small(), &plain, "--sub-norm", "none").ok();
    assert!(bitnet!("export", &plain, &file, "--format", "gguf").failed().contains("exists"));
    assert_eq!(fs::read(&file).unwrap(), b"old");
    bitnet!("export", &plain, &file, "--format", "gguf", "--force").ok();
    assert_eq!(fs::read(&file).unwrap()[..4], *b"GGUF");
}

/// The disk is full where no file may become longer than 100 kB: nothing new is left, and what was there stays.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_what_was_there() {
    let work = tempfile::tempdir().unwrap();
    let model = converted(&work, &["--sub-norm", "none"]);
    for (format, name, file) in [("gguf", "model.gguf", ""), ("hf-bitlinear", "packed", "model.safetensors")]
    {
        let target = work.path().join(name);
        let weights = || fs::read(if file.is_empty() { target.clone() } else { target.join(file) }).unwrap();
        let before = names(work.path());
        let script = "trap '' XFSZ; ulimit -f 100; exec \"$0\" export \"$1\" \"$2\" --force --format \"$3\"";
        let full = || {
            let mut bash = std::process::Command::new("bash");
            bash.args(["-c", script, env!("CARGO_BIN_EXE_bitnet")]).arg(&model).arg(&target).arg(format);
            crate::support::run(&mut bash).failed()
        };
        assert!(full().contains("cannot write"));
        assert_eq!(names(work.path()), before);
        bitnet!("export", &model, &target, "--format", format).ok();
        let expected = weights();
        assert!(full().contains("cannot write"));
        assert!(weights() == expected);
    }
}

#[test]
fn every_export_is_the_same_model() {
    let work = tempfile::tempdir().unwrap();
    let model = converted(&work, &["--sub-norm", "none"]);
    let expected = logits(&model, &work);
    for (format, is_exact) in [
        ("hf-bitlinear", true),
        ("hf-autobitlinear", true),
        ("hf-online", true),
        ("gguf", true),
        ("gguf-tq1_0", true),
        ("gguf-tq2_0", true),
        ("gguf-q2_0", true),
        ("gguf-f32", false), // float weights: llama.cpp quantizes no activations then
        ("gguf-f16", false),
        ("i2_s-x86", false),
        ("i2_s-arm", false),
    ] {
        let target = work.path().join(format);
        let text = bitnet!("export", &model, &target, "--format", format);
        if format.starts_with("i2_s") && text.status != 0 {
            // No architecture of bitnet.cpp may run this one; then it says so.
            assert!(text.failed().contains("bitnet.cpp"), "{format}");
            continue;
        }
        assert!(text.ok().contains("is written"));
        let found = json(&bitnet!("inspect", &target, "--json").ok());
        assert_eq!(found["problems"], json!([]), "{format}");
        if is_exact {
            let mut command = crate::support::command();
            let out = work.path().join("logits.safetensors");
            command
                .args(["logits", "--quiet", "--text", "Once upon a time"])
                .arg(&target)
                .arg("--out")
                .arg(&out);
            command.arg("--tokenizer").arg(small());
            crate::support::run(&mut command).ok();
            let off = max_difference(&floats(&out, "logits").1, &expected);
            // A scale's reciprocal, and a head in f16, which holds bf16 weights.
            assert!(off <= LOGITS, "{format}: off by {off:e}");
        }
    }
    let block = work.path().join("block.gguf");
    let text =
        bitnet!("export", &model, &block, "--format", "gguf-tq2_0", "--scale", "block", "--head", "f32").ok();
    assert!(
        text.contains("architecture llama, weights tq2_0") && text.contains("14 tensors TQ2_0"),
        "{text}"
    );
    let half = work.path().join("half");
    bitnet!("export", &model, &half, "--format", "hf-online", "--floats", "f16").ok();
    assert_eq!(read_json(&half.join("config.json"))["dtype"], "float16");
}

#[test]
fn logits_are_those_of_transformers() {
    let work = tempfile::tempdir().unwrap();
    let golden = repository("tests/data/hf/llama_tied");
    let reference = golden.join("ref.safetensors");
    let out = work.path().join("out/logits.safetensors");
    for flags in [&[][..], &["--cached"]] {
        let mut command = crate::support::command();
        command.arg("logits").arg(&golden).args(flags).arg("--ids").arg(&reference).arg("--out").arg(&out);
        assert_eq!(crate::support::run(&mut command).ok(), "");
        let (shape, found) = floats(&out, "logits");
        let (golden_shape, expected) = floats(&reference, "logits");
        assert_eq!(shape, [2, 24, 512]);
        // The fixture has the last positions only.
        let (rows, positions) = (golden_shape[0], golden_shape[1]);
        let last: Vec<f32> = (0..rows)
            .flat_map(|row| found[(row * 24 + 24 - positions) * 512..(row + 1) * 24 * 512].to_vec())
            .collect();
        let off = max_difference(&last, &expected);
        assert!(off <= LOGITS, "{flags:?}: off by {off:e}");
    }
    assert_eq!(names(&work.path().join("out")), ["logits.safetensors"]);
}

#[test]
fn files_of_ids_that_are_none() {
    let work = tempfile::tempdir().unwrap();
    let (ids, out) = (work.path().join("ids.safetensors"), work.path().join("out.safetensors"));
    let refused = |expected: &str| {
        let error = bitnet!("logits", &small(), "--ids", &ids, "--out", &out, "--quiet").failed();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!out.exists());
    };
    refused("cannot read");
    fs::write(&ids, "no file of tensors").unwrap();
    refused("no safetensors file");
    write_tensor(&ids, "tokens", Dtype::I64, &[1, 1], &[0; 8]);
    refused("there is no tensor `input_ids`");
    write_tensor(&ids, "input_ids", Dtype::I32, &[1, 2], &[0; 8]);
    refused("dtype I32: expected I64");
    for shape in [&[1][..], &[1, 1, 1]] {
        write_tensor(&ids, "input_ids", Dtype::I64, shape, &[0; 8]);
        refused("expected [batch, seq]");
    }
    write_tensor(&ids, "input_ids", Dtype::I64, &[0, 4], &[]);
    refused("expected [batch, seq]");
    write_tensor(&ids, "input_ids", Dtype::I64, &[1, 1], &(-1i64).to_le_bytes());
    refused("holds -1");
    write_tensor(&ids, "input_ids", Dtype::I64, &[1, 1], &512i64.to_le_bytes());
    refused("token 512 at position 0");
    write_tensor(&ids, "input_ids", Dtype::I64, &[1, 513], &[0; 513 * 8]);
    refused("513 tokens: the model has 512 positions");
}

#[test]
fn bench_measures_what_it_says() {
    let mut command = crate::support::command();
    command.arg("bench").arg(small());
    command.args([
        "--prompt-tokens",
        "8",
        "--generate-tokens",
        "3",
        "--repeat",
        "2",
        "--threads",
        "1",
        "--head",
        "f32",
    ]);
    let text = crate::support::run(&mut command).ok();
    assert!(
        text.contains("1 threads, head f32") && text.contains("prompt 8") && text.contains("tokens/s"),
        "{text}"
    );
    let report = json(&crate::support::run(command.arg("--json")).ok());
    assert_eq!(
        (&report["threads"], &report["head"], &report["architecture"]),
        (&json!(1), &json!("f32"), &json!("llama"))
    );
    assert_eq!(
        report["file_bytes"].as_u64().unwrap() * 2,
        report["memory_bytes"].as_u64().unwrap(),
        "bf16 becomes f32"
    );
    for kind in ["prompt", "generate"] {
        assert_eq!(report[kind]["seconds"].as_array().unwrap().len(), 2);
        assert!(report[kind]["tokens_per_second"].as_f64().unwrap() > 0.0);
    }
    let error = bitnet!("bench", &small(), "--prompt-tokens", "600", "--repeat", "1").failed();
    assert!(error.contains("512 positions"), "{error}");
}

#[test]
fn packed_weights_take_two_bits_in_memory() {
    let work = tempfile::tempdir().unwrap();
    let model = converted(&work, &["--sub-norm", "none"]);
    let report = json(
        &bitnet!(
            "bench",
            &model,
            "--prompt-tokens",
            "2",
            "--generate-tokens",
            "1",
            "--repeat",
            "1",
            "--head",
            "f32",
            "--json"
        )
        .ok(),
    );
    let linear = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 256 * 512);
    let rest = (512 * 256 + 5 * 256) * 4;
    let memory = report["memory_bytes"].as_u64().unwrap();
    let scales = memory - rest - linear / 4;
    assert!(scales <= 14 * 64, "{memory} bytes: {scales} more than codes and dense tensors");
}

#[test]
fn odd_models_are_noted_and_quiet_ones_are_not() {
    let work = tempfile::tempdir().unwrap();
    let packed = work.path().join("packed");
    let model = converted(&work, &["--sub-norm", "none"]);
    bitnet!("export", &model, &packed, "--format", "hf-bitlinear").ok();
    edit_json(&packed.join("config.json"), |config| {
        config["quantization_config"]["linear_class"] = json!("autobitlinear");
    });
    let out = work.path().join("out.safetensors");
    let run = bitnet!("logits", &packed, "--text", "a", "--out", &out);
    assert!(run.err.contains("note: 14 scales whose size speaks against"), "{}", run.err);
    run.ok();
    let run = bitnet!("logits", &packed, "--text", "a", "--out", &out, "--quiet");
    assert_eq!(run.err, "");
    assert!(bitnet!("inspect", &packed).ok().contains("14 of 14 scales speak against"));

    let bare = work.path().join("bare");
    copy(&small(), &bare);
    fs::remove_file(bare.join("tokenizer.json")).unwrap();
    let error = bitnet!("logits", &bare, "--text", "a", "--out", &out).failed();
    assert!(error.contains("there is no tokenizer"), "{error}");
    bitnet!("logits", &bare, "--text", "a", "--out", &out, "--tokenizer", &small().join("tokenizer.json"))
        .ok();
}
