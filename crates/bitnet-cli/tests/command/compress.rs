//! `bitnet compress`: the words of the command. What is written is tested in bitnet-compress.

use std::fs;

use crate::support::{names, read_json, repository, small};

#[test]
fn a_model_becomes_ternary_and_loads() {
    let work = tempfile::tempdir().unwrap();
    let target = work.path().join("target");
    let run = bitnet!("compress", &small(), &target, "--packed", "--exclude", "*.down_proj.*");
    assert!(run.err.contains("mode `tensors`, chosen automatically"), "{}", run.err);
    let text = run.ok();
    for word in ["2 bits", "TQ1_0", "int8", "0 differ", "compression_stats.json"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let stats = read_json(&target.join("compression_stats.json"));
    assert_eq!(stats["options"]["exclude"][0], "*.down_proj.*");
    assert_eq!(stats["verification"]["differences"], 0);
    assert_eq!(names(work.path()), ["target"]);
    bitnet!("inspect", &target).ok();

    let again = bitnet!("compress", &small(), &target).failed();
    assert!(again.contains("exists already"), "{again}");
    let quiet = bitnet!("compress", &small(), &work.path().join("quiet"), "--quiet", "--mode", "tensors");
    assert_eq!((quiet.status, quiet.out, quiet.err), (0, String::new(), String::new()));
}

#[test]
fn options_may_stand_in_a_file() {
    let work = tempfile::tempdir().unwrap();
    let (config, target) = (work.path().join("options.toml"), work.path().join("target"));
    fs::write(&config, "rule = { threshold = 0.2 }\ndtype = 'bf16'\n").unwrap();
    bitnet!("compress", &small(), &target, "--config", &config).ok();
    let stats = read_json(&target.join("compression_stats.json"));
    assert_eq!(stats["options"]["dtype"], "bf16");
    fs::write(&config, "dtype = 'bf16'\npakced = true\n").unwrap();
    let error = bitnet!("compress", &small(), &work.path().join("b"), "--config", &config).failed();
    assert!(
        error.contains("options.toml") && error.contains("line 2") && error.contains("pakced"),
        "{error}"
    );
    fs::write(&config, "dtype = 'bf16'\n").unwrap();
    fs::write(&config, "mode = 'tensors'\ndevice = 'flex'\n").unwrap();
    let device = bitnet!("compress", &small(), "x", "--config", &config).failed();
    assert!(device.contains("because `device` is given"), "{device}");
    fs::write(&config, "dtype = 'bf16'\n").unwrap();
    let twice = bitnet!("compress", &small(), "x", "--config", &config, "--dtype", "f16").failed();
    assert!(twice.contains("`dtype` is \"bf16\" in the file and \"f16\" as a flag"), "{twice}");
    let beside = work.path().join("beside");
    bitnet!("compress", &small(), &beside, "--config", &config, "--packed").ok();
    assert!(beside.join("packed").is_dir());
    let both = bitnet!("compress", &small(), "x", "--threshold", "0.1", "--granularity", "row").misused();
    assert!(both.contains("--threshold"), "{both}");
}

#[test]
fn refusals_are_one_line_and_write_nothing() {
    let work = tempfile::tempdir().unwrap();
    let target = work.path().join("target");
    let refused = |words: &[&str]| {
        let mut command = crate::support::command();
        command.arg("compress").arg(small()).arg(&target).args(words);
        crate::support::run(&mut command).failed()
    };
    assert!(refused(&["--exclude", "*.q_prj.*"]).contains("`*.q_prj.*` matches no tensor"));
    assert!(refused(&["--include", "[a"]).contains("[a"));
    assert!(refused(&["--granularity", "group:4096"]).contains("groups of 4096 do not fit"));
    assert!(refused(&["--threshold=-1"]).contains("threshold is -1"));
    let nothing = bitnet!("compress", &repository("crates"), &target).failed();
    assert!(nothing.contains("holds no safetensors files"), "{nothing}");
    assert_eq!(names(work.path()), Vec::<String>::new());
}

#[test]
fn data_ask_for_a_model_and_a_verdict() {
    let work = tempfile::tempdir().unwrap();
    let (config, target) = (work.path().join("settings.toml"), work.path().join("target"));
    let settings =
        format!("eval = {{ windows = 4 }}\n[data]\ncache = '{}'\n", work.path().join("cache").display());
    fs::write(&config, settings).unwrap();
    let data = repository("docs/numerics.md");
    let compress = |target: &std::path::Path, more: &[&str]| {
        let mut command = crate::support::command();
        command
            .arg("compress")
            .arg(small())
            .arg(target)
            .arg("--config")
            .arg(&config)
            .arg("--data")
            .arg(&data);
        command.args(["--window", "32", "--windows", "4"]).args(more);
        crate::support::run(&mut command)
    };
    let worse = compress(&target, &["--max-ratio", "0.5"]);
    assert_eq!(worse.status, 3, "{}", worse.err);
    assert!(worse.err.contains("mode `model`, chosen automatically"), "{}", worse.err);
    assert!(worse.err.contains("error: the result is written and WORSE than asked for"), "{}", worse.err);
    assert!(worse.out.contains("packed and read again"), "{}", worse.out);
    assert_eq!(
        names(&target),
        [
            "compression_stats.json",
            "config.json",
            "model.safetensors",
            "packed",
            "report.html",
            "tokenizer.json"
        ]
    );
    bitnet!("inspect", &target.join("packed")).ok();

    let good = work.path().join("good");
    let text =
        compress(&good, &["--max-ratio", "1000", "--gguf", "auto", "--sub-norm", "none", "--dtype", "f16"])
            .ok();
    assert!(text.contains("verdict     good enough"), "{text}");
    let stats = read_json(&good.join("compression_stats.json"));
    assert_eq!(
        (&stats["mode"], &stats["model"]["settings"]["convert"]["sub_norm"]),
        (&"model".into(), &"none".into())
    );
    bitnet!("inspect", &good.join("model.gguf")).ok();
    assert_eq!(names(work.path()), ["cache", "good", "settings.toml", "target"]);

    let quiet = compress(&work.path().join("quiet"), &["--max-ratio", "1000", "--quiet"]);
    assert_eq!((quiet.status, quiet.out, quiet.err), (0, String::new(), String::new()));
}

#[test]
fn modes_that_do_not_go_with_the_source_or_the_settings() {
    let work = tempfile::tempdir().unwrap();
    let target = work.path().join("target");
    let data = repository("docs/numerics.md");
    let gpt2 = bitnet!("compress", &repository("tests/data/hf/gpt2"), &target, "--data", &data).failed();
    assert!(gpt2.contains("`data` needs mode `model`") && gpt2.contains("gpt2"), "{gpt2}");
    let tensors = bitnet!("compress", &small(), &target, "--data", &data, "--mode", "tensors").failed();
    assert!(tensors.contains("`mode` is tensors: expected model, because `data` is given"), "{tensors}");
    let model = bitnet!("compress", &small(), &target, "--mode", "model").failed();
    assert!(model.contains("`data` is nothing"), "{model}");
    let slot = bitnet!("compress", &small(), &target, "--data", &data, "--exclude", "*.q_prj").failed();
    assert!(slot.contains("`*.q_prj`: matches no slot"), "{slot}");
    let unknown = bitnet!("compress", &small(), &target, "--mode", "tensor").misused();
    assert!(unknown.contains("tensor"), "{unknown}");
    assert_eq!(names(work.path()), Vec::<String>::new());
}
