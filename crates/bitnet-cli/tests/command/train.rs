//! `bitnet train`: killed, interrupted, out of space, damaged, and still the same run; and `bitnet eval`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::support::{Run, command, names, read_json, repository, run, small, write_tensor};

/// Numbers that repeat: SplitMix64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Within 0..1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A folder with a model, tokens and settings.
struct Work {
    folder: tempfile::TempDir,
    settings: String,
}

impl Work {
    /// A model of random weights with one block, and tokens. The embedding, which is the head too, has more than the
    /// 4 Mi elements above which flex sums in an order that follows the threads, if it is `large`.
    fn new(large: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (vocab_size, d_model, d_ff) = (if large { 66_000 } else { 500 }, 64, 96);
        let model = folder.path().join("model");
        fs::create_dir(&model).unwrap();
        let config = json!({
            "model_type": "llama", "vocab_size": vocab_size, "hidden_size": d_model, "intermediate_size": d_ff,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
            "tie_word_embeddings": true,
        });
        fs::write(model.join("config.json"), config.to_string()).unwrap();
        let matrix = |name: &str, rows: usize, columns: usize| (name.to_owned(), vec![rows, columns]);
        let in_layer = |name: &str| format!("model.layers.0.{name}.weight");
        let mut shapes = vec![matrix("model.embed_tokens.weight", vocab_size, d_model)];
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            shapes.push(matrix(&in_layer(&format!("self_attn.{name}")), d_model, d_model));
        }
        shapes.push(matrix(&in_layer("mlp.gate_proj"), d_ff, d_model));
        shapes.push(matrix(&in_layer("mlp.up_proj"), d_ff, d_model));
        shapes.push(matrix(&in_layer("mlp.down_proj"), d_model, d_ff));
        for name in [&in_layer("input_layernorm"), &in_layer("post_attention_layernorm"), "model.norm.weight"]
        {
            shapes.push((name.to_owned(), vec![d_model]));
        }
        let mut numbers = Numbers(1);
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
            .into_iter()
            .map(|(name, shape)| {
                let mut value = || if shape.len() == 1 { 1.0 } else { 0.1 * (numbers.share() as f32 - 0.5) };
                let bytes = (0..shape.iter().product()).flat_map(|_| value().to_le_bytes()).collect();
                (name, shape, bytes)
            })
            .collect();
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        fs::write(model.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        let tokens: Vec<u8> =
            (0..4000).flat_map(|_| ((numbers.share().powi(3) * 500.0) as i32).to_le_bytes()).collect();
        write_tensor(&folder.path().join("tokens"), "tokens", Dtype::I32, &[4000], &tokens);
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let settings = format!(
            "out = 'OUT'\nseed = 5\nmodel = {{ source = '{}' }}\nbatch = {{ micro_batch = 2, accumulation = 2 }}\n\
             eval = {{ every = 8, windows = 2 }}\nsnapshots = {{ every = 3, keep = 2 }}\n\
             [data]\nsource = {{ tokens = {{ path = '{}', tensor = 'tokens' }} }}\nwindow = 16\n\
             [train]\nsteps = 24\nweight_decay = 0.1\nlr_decay = {{ two_stage = {{ at = 0.6 }} }}\n",
            at("model"),
            at("tokens"),
        );
        Self { folder, settings }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The settings of a run of this name, with a change.
    fn config(&self, name: &str, change: (&str, &str)) -> PathBuf {
        let path = self.path(&format!("{name}.toml"));
        assert!(self.settings.contains(change.0), "{}", change.0);
        let settings = self.settings.replace(change.0, change.1);
        fs::write(&path, settings.replace("OUT", self.path(name).to_str().unwrap())).unwrap();
        path
    }

    /// Trains from beginning to end, or from wherever the run is.
    fn train(&self, name: &str) -> Run {
        let config = self.config(name, ("", ""));
        bitnet!("train", &config)
    }

    /// What a run leaves: the metrics and the weights.
    fn result(&self, name: &str) -> (String, Vec<u8>) {
        let metrics = fs::read_to_string(self.path(name).join("metrics.jsonl")).unwrap();
        (metrics, fs::read(self.path(name).join("model").join("model.safetensors")).unwrap())
    }
}

/// Killed at twenty random moments, some of them while it writes, a run still takes the same steps, bit by bit.
#[test]
fn a_run_that_is_killed_goes_on_as_if_nothing_had_been() {
    let mut work = Work::new(true);
    work.settings = work.settings.replace("steps = 24", "steps = 8").replace("every = 3", "every = 2");
    let start = Instant::now();
    work.train("whole").ok();
    let time = start.elapsed();
    let whole = work.result("whole");
    assert_eq!(whole.0.matches("loss").count(), 8);
    assert_eq!(whole.0.matches("perplexity").count(), 1);

    let mut numbers = Numbers(2);
    let (mut kills, mut rounds) = (0, 0);
    while kills < 20 {
        rounds += 1;
        let name = format!("killed-{rounds}");
        let config = work.config(&name, ("", ""));
        loop {
            let mut child = command().arg("train").arg(&config).arg("--quiet").spawn().unwrap();
            if kills < 20 {
                std::thread::sleep(time.mul_f64(0.35 * numbers.share()));
            }
            if kills == 20 || child.try_wait().unwrap().is_some() {
                assert!(child.wait().unwrap().success());
                break;
            }
            child.kill().unwrap(); // SIGKILL
            child.wait().unwrap();
            kills += 1;
        }
        assert!(work.result(&name) == whole, "round {rounds}: {} {}", work.result(&name).0, whole.0);
        let leftovers = names(&work.path(&name).join("snapshots"));
        assert!(leftovers.iter().all(|name| !name.starts_with('.')), "{leftovers:?}");
        fs::remove_dir_all(work.path(&name)).unwrap();
    }
    eprintln!("killed {kills} times in {rounds} runs of {:.1} s", time.as_secs_f64());
}

/// Waits until a child has written its first snapshot.
#[cfg(unix)]
fn wait_for_snapshot(child: &mut std::process::Child, run: &Path) {
    let start = Instant::now();
    while !run.join("snapshots/step-00000003").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "it never saved");
        assert!(child.try_wait().unwrap().is_none(), "it ended before");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(unix)]
#[test]
fn an_interruption_saves_and_succeeds() {
    use std::process::{Command, Stdio};

    let mut work = Work::new(false);
    work.settings = work.settings.replace("steps = 24", "steps = 3000").replace("every = 8", "every = 3000");
    let config = work.config("run", ("", ""));
    let mut child = command().arg("train").arg(&config).stdout(Stdio::piped()).spawn().unwrap();
    wait_for_snapshot(&mut child, &work.path("run"));
    // Another process may not work on it meanwhile.
    let error = bitnet!("train", &config).failed();
    assert!(error.ends_with("is in use by another process"), "{error}");
    Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let out = String::from_utf8(output.stdout).unwrap();
    let (_, steps) = out.split_once("stopped after step ").unwrap();
    let steps: u64 = steps.split(':').next().unwrap().parse().unwrap();
    let saved = names(&work.path("run/snapshots"));
    assert_eq!(saved.last().unwrap(), &format!("step-{steps:08}"));
    assert_eq!(read_json(&work.path("run/snapshots").join(&saved[0]).join("run.json"))["best"], Value::Null);
    assert!(!work.path("run/model").exists());
}

#[test]
fn a_damaged_snapshot_is_passed_over() {
    let work = Work::new(false);
    work.train("whole").ok();
    let whole = work.result("whole");
    let run = work.path("run");
    let config = work.config("run", ("", ""));
    bitnet!("train", &config).ok();
    let snapshots = names(&run.join("snapshots"));
    assert!(snapshots.len() >= 2 && snapshots.last().unwrap() == "step-00000024", "{snapshots:?}");
    let file = run.join("snapshots/step-00000024/moments_2.bpk");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    fs::remove_dir_all(run.join("model")).unwrap();
    let again = bitnet!("train", &config);
    assert!(
        again.err.contains("warning: snapshot") && again.err.contains("moments_2.bpk is damaged"),
        "{}",
        again.err
    );
    assert!(again.err.contains("goes on after step"), "{}", again.err);
    again.ok();
    assert!(work.result("run") == whole);
}

#[test]
fn a_run_of_other_settings_is_refused() {
    let work = Work::new(false);
    work.train("run").ok();
    let done = work.train("run"); // nothing left to do
    assert!(done.ok().contains("model is written"));
    let other = work.config("run", ("weight_decay = 0.1", "weight_decay = 0.2"));
    let error = bitnet!("train", &other).failed();
    assert!(error.contains("was begun with train.weight_decay = 0.1"), "{error}");
    let metrics = fs::read_to_string(work.path("run/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let rate = |step: usize| {
        let line = lines.iter().find(|line| line["step"] == step && line["loss"].is_number());
        line.unwrap()["learning_rate"].as_f64().unwrap()
    };
    assert!(rate(14) < 0.75 * rate(13) && rate(14) > 0.5 * rate(13), "the second stage begins at 0.6 · 24");
}

/// The disk is full where no file may become longer than 100 kB: the metrics fit, a snapshot does not.
#[cfg(unix)]
#[test]
fn a_full_disk_ends_with_the_last_good_snapshot() {
    use std::process::Command;

    let work = Work::new(false);
    let config = work.config("run", ("every = 3", "every = 1"));
    let full = || {
        let script = "trap '' XFSZ; ulimit -f 100; exec \"$0\" train \"$1\" --quiet";
        run(Command::new("bash").args(["-c", script, env!("CARGO_BIN_EXE_bitnet")]).arg(&config))
    };
    let error = full().failed();
    assert!(error.contains("cannot write") && error.ends_with("there is no snapshot yet"), "{error}");
    assert_eq!(names(&work.path("run/snapshots")), Vec::<String>::new());
    bitnet!("train", &config, "--quiet").ok();
    let whole = work.result("run");
    fs::remove_dir_all(work.path("run/model")).unwrap();
    fs::remove_dir_all(work.path("run/snapshots/step-00000024")).unwrap();
    let error = full().failed();
    assert!(error.contains("cannot write") && error.contains("last good snapshot has 23 steps"), "{error}");
    bitnet!("train", &config, "--quiet").ok();
    assert!(work.result("run") == whole);
}

#[test]
fn an_exploding_loss_ends_with_the_last_good_snapshot() {
    let work = Work::new(false);
    let config = work.config("run", ("seed = 5", "seed = 5\nexplosion = 1.0000001"));
    let config_text = fs::read_to_string(&config).unwrap().replace("steps = 24", "steps = 200");
    fs::write(&config, config_text).unwrap();
    let error = bitnet!("train", &config, "--quiet").failed();
    assert!(error.contains("loss of step") && error.contains("the last good snapshot has"), "{error}");
    let config_text = fs::read_to_string(&config).unwrap().replace("explosion = 1.0000001", "explosion = 30");
    fs::write(&config, config_text).unwrap();
    bitnet!("train", &config, "--quiet").ok();
    assert!(Path::new(&work.path("run/model")).exists());
}

#[test]
fn settings_and_data_that_are_wrong_are_named() {
    let work = Work::new(false);
    let fails = |change: (&str, &str), expected: &str| {
        let config = work.config("bad", change);
        let error = bitnet!("train", &config).failed();
        assert!(error.contains(expected), "{error}");
    };
    fails(("window = 16", "windows = 16"), "bad.toml`, line 9: unknown field `windows`");
    fails(("window = 16", "window = 1"), "bad.toml`, line 9: training `data.window` is 1");
    fails(("weight_decay = 0.1", "weight_decay = -1"), "line 12: training `weight_decay` is -1");
    fails(("window = 16", "window = 65"), "65");
    fails(("tensor = 'tokens'", "tensor = 'ids'"), "there is no tensor `ids` but [\"tokens\"]");
    fails(("path = '", "path = '/absent"), "cannot read `/absent");
    write_tensor(
        &work.path("high"),
        "tokens",
        Dtype::I32,
        &[40],
        &[600_i32; 40].map(i32::to_le_bytes).concat(),
    );
    fails(("/tokens'", "/high'"), "token 600 at position 0: expected below the vocabulary size 500");
    assert!(bitnet!("train", "absent.toml").failed().contains("absent.toml"));
    assert!(!work.path("bad/model").exists());
}

/// Distilled from the source, killed once: every term is logged, and the steps are the same.
#[test]
fn a_distilled_run_logs_its_terms_and_reports() {
    let mut work = Work::new(false);
    let distill = "[distill]\nlogit_kl = { weight = 2.0 }\nrelation_kl = { weight = 0.5, heads = 4 }\nhidden_mse = { weight = 3.0 }\n";
    work.settings = format!("{}{distill}", work.settings.replace("steps = 24", "steps = 9"));
    work.train("whole").ok();
    let whole = work.result("whole");
    let lines: Vec<Value> = whole.0.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<&Value> = lines.iter().filter(|line| line["loss"].is_number()).collect();
    assert_eq!(steps.len(), 9);
    for line in steps {
        let term = |name: &str| line["terms"][name].as_f64().unwrap();
        let sum = term("cross_entropy")
            + 2.0 * term("logit_kl")
            + 0.5 * term("relation_kl")
            + 3.0 * term("hidden_mse");
        let loss = line["loss"].as_f64().unwrap();
        assert!((sum - loss).abs() < 1e-5 * loss, "{line}"); // sums in f32
    }
    let first = &lines[0]["terms"];
    for name in ["logit_kl", "relation_kl", "hidden_mse"] {
        let value = first[name].as_f64().unwrap().abs();
        assert!(value < 1e-5, "{name}: at λ = 0 the student is the teacher: {first}");
    }
    let evaluation = lines.iter().find(|line| line["perplexity"].is_number()).unwrap();
    for name in ["cross_entropy", "logit_kl", "relation_kl", "hidden_mse"] {
        assert!(evaluation["grad_norms"][name].as_f64().unwrap() > 0.0, "{evaluation}");
    }
    let shares = evaluation["codes"].as_object().unwrap();
    assert_eq!(shares.len(), 7);
    for codes in shares.values() {
        let (share, moved) = (&codes["shares"], codes["moved"].as_f64().unwrap());
        assert!(moved > 0.0 && moved < 0.5, "{codes}");
        let sum: f64 = share.as_array().unwrap().iter().map(|share| share.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{share}");
    }

    let config = work.config("again", ("", ""));
    let mut child = command().arg("train").arg(&config).arg("--quiet").spawn().unwrap();
    while !work.path("again/snapshots/step-00000003").exists() {
        assert!(child.try_wait().unwrap().is_none_or(|status| status.success()));
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    bitnet!("train", &config, "--quiet").ok();
    assert!(work.result("again") == whole);

    bitnet!("report", &work.path("whole"), &work.path("again"), "--quiet").ok();
    let page = fs::read_to_string(work.path("whole/report.html")).unwrap();
    assert_eq!(
        page.matches("<svg").count(),
        12,
        "five plots, the terms, their norms, three of codes, two of activations"
    );
    let error = bitnet!("report", &work.path("nowhere")).failed();
    assert!(error.contains("metrics.jsonl"), "{error}");

    let heads = work.config("heads", ("heads = 4", "heads = 5"));
    let error = bitnet!("train", &heads).failed();
    assert!(error.contains("`distill.relation_kl.heads` is 5"), "{error}");
}

/// From text, through training, to an evaluation that agrees with the run's own.
#[test]
fn text_is_tokenized_once_and_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let text = repository("docs/numerics.md");
    let settings = format!(
        "out = '{}'\nmodel = {{ source = '{}' }}\nbatch = {{ micro_batch = 2 }}\n[data]\nsource = {{ text = ['{}'] }}\n\
         window = 32\ncache = '{}'\n[train]\nsteps = 2\n",
        at("run"),
        small().display(),
        text.display(),
        at("cache"),
    );
    fs::write(at("run.toml"), settings).unwrap();
    let out = bitnet!("train", at("run.toml").as_str()).ok();
    assert!(out.contains("[train.lambda]") && out.contains("best perplexity"), "{out}");
    assert_eq!(
        names(Path::new(&at("run"))),
        ["config.toml", "conversion.json", "lock", "metrics.jsonl", "model", "snapshots"]
    );
    assert_eq!(names(Path::new(&at("cache"))).len(), 1);

    let eval = |extra: &[&str]| {
        let mut command = command();
        command
            .args(["eval", &at("run/model"), "--cache", &at("cache"), "--window", "32", "--json"])
            .args(extra);
        serde_json::from_str::<Value>(&run(&mut command).ok()).unwrap()
    };
    let text = text.to_str().unwrap();
    let whole = eval(&["--data", text, "--batch", "4"]);
    assert_eq!(names(Path::new(&at("cache"))).len(), 1, "the same tokens");
    let some = eval(&["--data", text, "--windows", "3"]);
    assert_eq!(some["tokens"], 96);
    assert!(whole["tokens"].as_u64().unwrap() > 1000 && whole["perplexity"].as_f64().unwrap() > 1.0);
    let cached = names(Path::new(&at("cache")));
    let cached = at(&format!("cache/{}", cached[0]));
    let tokens = eval(&["--data", &cached, "--tokens", "tokens", "--batch", "4"]);
    assert_eq!(tokens["perplexity"], whole["perplexity"]);
    fs::write(at("lines"), json!({ "body": fs::read_to_string(text).unwrap() }).to_string()).unwrap();
    let jsonl = eval(&["--data", &at("lines"), "--jsonl", "body", "--batch", "4"]);
    assert_eq!(jsonl["perplexity"], whole["perplexity"]);
    let bytes = fs::read(&cached).unwrap();
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().names(), ["tokens"]);
}
