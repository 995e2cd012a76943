//! The command line itself: exit status, help, completions, the reference, a closed pipe, an interruption.

use std::fs;
use std::process::Stdio;

use crate::support::{command, names, repository, small};

#[test]
fn help_and_version_succeed_and_misuse_does_not() {
    let help = bitnet!("--help").ok();
    for word in [
        "inspect",
        "convert",
        "compress",
        "lrc",
        "export",
        "logits",
        "generate",
        "bench",
        "devices",
        "completions",
        "Examples:",
    ] {
        assert!(help.contains(word), "{word}");
    }
    assert!(!help.contains("reference"), "a command for this repository alone");
    assert!(bitnet!("generate", "--help").ok().contains("Examples:"));
    assert!(bitnet!("--version").ok().starts_with("bitnet "));

    assert!(bitnet!().misused().contains("Usage: bitnet"));
    assert!(bitnet!("dance").misused().contains("dance"));
    assert!(bitnet!("inspect").misused().contains("SRC"));
    let small = small();
    assert!(bitnet!("export", &small, "x", "--format", "gguf-q9_9").misused().contains("gguf-q9_9"));
    assert!(
        bitnet!("export", &small, "x", "--format", "gguf", "--floats", "f16").misused().contains("--floats")
    );
    assert!(
        bitnet!("export", &small, "x", "--format", "hf-online", "--scale", "block")
            .misused()
            .contains("--scale")
    );
    assert!(bitnet!("convert", &small, "x", "--granularity", "group:3").misused().contains("power of two"));
    assert!(bitnet!("generate", &small).misused().contains("--prompt"));
    assert!(bitnet!("generate", &small, "--prompt", "a", "--top-k", "3").misused().contains("--temperature"));
    assert!(bitnet!("generate", &small, "--prompt", "a", "--temperature", "0").misused().contains("above 0"));
    assert!(bitnet!("logits", &small, "--out", "x", "--text", "a", "--ids", "b").misused().contains("--ids"));
    assert!(bitnet!("devices", "--threads", "0").misused().contains("--threads"));
    let unknown = bitnet!("logits", &small, "--text", "a", "--out", "x", "--device", "abacus").misused();
    assert!(unknown.starts_with("error: unknown device `abacus`"), "{unknown}");
}

#[test]
fn what_is_no_model_is_named() {
    let missing = bitnet!("inspect", "no such thing").failed();
    assert!(missing.contains("`no such thing` is no file or folder"), "{missing}");
    let source = repository("crates");
    for words in [vec!["convert", "to"], vec!["bench"], vec!["generate", "--prompt", "a"]] {
        let mut command = command();
        command.arg(words[0]).arg(&source).args(&words[1..]);
        let error = crate::support::run(&mut command).failed();
        assert!(error.contains("cannot read") && error.contains("config.json"), "{error}");
    }
}

#[test]
fn devices_are_listed() {
    let devices = bitnet!("devices").ok();
    let lines: Vec<&str> = devices.lines().collect();
    assert_eq!(lines.len(), 5);
    let name = |line: &str| line.split(' ').next().unwrap().to_owned();
    assert_eq!(
        lines.iter().map(|line| name(line)).collect::<Vec<_>>(),
        ["flex", "ndarray", "wgpu", "vulkan", "cuda"]
    );
    assert!(lines.iter().all(|line| line.ends_with(" present") || line.contains(" absent: ")), "{devices}");
    assert!(cfg!(not(feature = "flex")) || lines[0] == "flex present");
}

#[test]
fn completions_are_scripts_of_each_shell() {
    for (shell, word) in
        [("bash", "complete -F _bitnet"), ("zsh", "#compdef bitnet"), ("fish", "complete -c bitnet")]
    {
        let script = bitnet!("completions", shell).ok();
        assert!(script.contains(word) && script.contains("inspect"), "{shell}");
    }
    bitnet!("completions", "abacus").misused();
}

/// To write it anew: `cargo run -p bitnet-cli -- reference > docs/bitnet.md`.
#[test]
fn the_reference_is_up_to_date() {
    let reference = bitnet!("reference").ok();
    let written = fs::read_to_string(repository("docs/bitnet.md")).unwrap();
    assert!(reference == written, "docs/bitnet.md: cargo run -p bitnet-cli -- reference > docs/bitnet.md");
    assert!(reference.lines().all(|line| line == line.trim_end()));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = command()
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[cfg(unix)]
#[test]
fn an_interruption_leaves_nothing_behind() {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use safetensors::Dtype;
    use serde_json::json;

    // A model of zeros that takes a moment to write.
    let (vocab_size, d_model, d_ff, n_layers) = (512, 512, 2048, 4);
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    fs::create_dir(&source).unwrap();
    let config = json!({
        "model_type": "llama", "vocab_size": vocab_size, "hidden_size": d_model, "intermediate_size": d_ff,
        "num_hidden_layers": n_layers, "num_attention_heads": 8, "tie_word_embeddings": true,
    });
    fs::write(source.join("config.json"), config.to_string()).unwrap();
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![vocab_size, d_model])];
    shapes.push(("model.norm.weight".to_owned(), vec![d_model]));
    for layer in 0..n_layers {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()))
        };
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{name}"), &[d_model, d_model]);
        }
        add("mlp.gate_proj", &[d_ff, d_model]);
        add("mlp.up_proj", &[d_ff, d_model]);
        add("mlp.down_proj", &[d_model, d_ff]);
        add("input_layernorm", &[d_model]);
        add("post_attention_layernorm", &[d_model]);
    }
    let zeros = vec![0; d_model * d_ff * 4];
    let views = shapes.iter().map(|(name, shape)| {
        let bytes = shape.iter().product::<usize>() * 4;
        (
            name.clone(),
            safetensors::tensor::TensorView::new(Dtype::F32, shape.clone(), &zeros[..bytes]).unwrap(),
        )
    });
    fs::write(source.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();

    let target = work.path().join("target");
    let mut child =
        command().arg("convert").arg(&source).arg(&target).stderr(Stdio::piped()).spawn().unwrap();
    let partial = format!(".target.partial-{}", child.id());
    let start = Instant::now();
    while !work.path().join(&partial).exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "it never began to write");
        assert_eq!(child.try_wait().unwrap(), None, "it ended before it was interrupted");
        std::thread::sleep(Duration::from_millis(1));
    }
    Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(names(work.path()), ["source"]);
}
