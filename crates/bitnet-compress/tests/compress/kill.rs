//! Runs that end early: the same bytes in the end, and never half of them under the final name.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bitnet_compress::{CompressError, Options, Stage, compress};
use safetensors::Dtype;

use crate::shared::tree;
use crate::support::*;

const SOURCE: &str = "BITNET_COMPRESS_SOURCE";
const TARGET: &str = "BITNET_COMPRESS_TARGET";

fn options() -> Options {
    Options { packed: true, ..Options::default() }
}

fn blocks(n: usize, width: usize) -> Vec<Given> {
    let mut all = vec![given("model.embed_tokens.weight", Dtype::BF16, &[100, width])];
    for layer in 0..n {
        all.push(given(&format!("model.layers.{layer}.mlp.up_proj.weight"), Dtype::BF16, &[width, width]));
        all.push(given(&format!("model.layers.{layer}.norm.weight"), Dtype::BF16, &[width]));
    }
    all
}

/// What the kill test runs in a process of its own.
#[test]
#[ignore = "run by the test below"]
fn child() {
    let path = |name| PathBuf::from(std::env::var_os(name).unwrap());
    run(&path(SOURCE), &path(TARGET), &options()).unwrap();
}

fn spawn(source: &Path, target: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--ignored"])
        .env(SOURCE, source)
        .env(TARGET, target)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn runs_killed_at_random_moments_end_with_the_same_bytes() {
    let (work, source, whole) = checkpoint(&blocks(24, 512), "{}");
    let before = tree(&source);
    let start = Instant::now();
    assert!(spawn(&source, &whole).wait().unwrap().success());
    let (lasts, whole) = (start.elapsed(), tree(&whole));
    let target = work.path().join("killed");
    let partial = work.path().join(".killed.partial");
    let (mut kills, mut resumed, mut state) = (0, 0, 88_172_645_463_325_252u64);
    while kills < 24 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mut child = spawn(&source, &target);
        std::thread::sleep(
            lasts.mul_f64((state % 1000) as f64 / 1000.0) + Duration::from_micros(state % 997),
        );
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            kills += 1;
        }
        if target.exists() {
            assert_eq!(tree(&target), whole);
            fs::remove_dir_all(&target).unwrap();
        } else if let Ok(progress) = fs::read_to_string(partial.join(".progress.jsonl"))
            && progress.lines().count() > 2
        {
            resumed += 1;
        }
    }
    assert!(resumed > 2, "no run was killed between two tensors");
    assert!(spawn(&source, &target).wait().unwrap().success());
    assert_eq!(tree(&target), whole);
    assert_eq!(tree(&source), before);
    assert!(!partial.exists());
}

/// Runs until so many steps of a stage are done, and ends there as a crash would.
fn crash(source: &Path, target: &Path, options: &Options, stage: Stage, steps: usize) {
    let mut left = steps;
    let mut progress = |found, _, _| {
        if found == stage {
            left -= 1;
            assert!(left > 0, "crash");
        }
    };
    let run = AssertUnwindSafe(|| compress(source, target, options, &mut progress));
    assert!(catch_unwind(run).is_err());
}

#[test]
fn what_is_finished_is_not_done_again_and_what_is_wrong_is_found() {
    let (work, source, target) = checkpoint(&blocks(4, 64), "{}");
    let tampered = |name: &str, stage, steps| {
        crash(&source, &target, &options(), stage, steps);
        let path = work.path().join(".target.partial").join(name);
        let mut bytes = fs::read(&path).unwrap();
        let n = bytes.len();
        // The last tensor of the file, in its first bytes: another weight, another code.
        let at = if name.starts_with("packed") { n - 64 * 16 } else { n - 64 };
        bytes[at] ^= 0x03;
        bytes[at + 1] ^= 0x80;
        fs::write(&path, &bytes).unwrap();
        run(&source, &target, &options())
    };
    // Every tensor is written, so none is written again, and the change stays until it is found.
    for name in ["model.safetensors", "packed/model.safetensors"] {
        let error = tampered(name, Stage::Verify, 1).unwrap_err();
        assert!(matches!(&error, CompressError::Verification { file, .. } if file == name), "{error}");
        assert!(!target.exists());
        run(&source, &target, &options()).unwrap();
        let fresh = work.path().join("fresh");
        run(&source, &fresh, &options()).unwrap();
        assert_eq!(tree(&target), tree(&fresh));
        fs::remove_dir_all(&target).unwrap();
        fs::remove_dir_all(&fresh).unwrap();
    }
    // The last tensor is not written yet: it is, over the change.
    assert!(tampered("model.safetensors", Stage::Write, 2).is_ok());
}

#[test]
fn another_source_or_other_options_begin_anew() {
    let (_work, source, target) = checkpoint(&blocks(4, 64), "{}");
    let expected = |options: &Options| {
        let fresh = target.with_file_name("fresh");
        run(&source, &fresh, options).unwrap();
        let found = tree(&fresh);
        fs::remove_dir_all(&fresh).unwrap();
        found
    };
    crash(&source, &target, &options(), Stage::Write, 4);
    let other = Options { packed: false, ..options() };
    run(&source, &target, &other).unwrap();
    assert_eq!(tree(&target), expected(&other));
    fs::remove_dir_all(&target).unwrap();

    crash(&source, &target, &options(), Stage::Write, 4);
    let mut blocks = blocks(4, 64);
    blocks[1].bytes.rotate_left(2);
    std::thread::sleep(Duration::from_millis(20));
    write(&source.join("model.safetensors"), &blocks);
    run(&source, &target, &options()).unwrap();
    assert_eq!(tree(&target), expected(&options()));
}

/// A matrix with a row for each token is a table, and only the config says how many tokens there are.
#[test]
fn another_config_begins_anew() {
    let mut all = blocks(3, 64);
    all.extend((0..3).map(|i| given(&format!("model.layers.{i}.odd.weight"), Dtype::F32, &[48, 64])));
    let (_work, source, target) = checkpoint(&all, "{}");
    crash(&source, &target, &options(), Stage::Write, 9);
    fs::write(source.join("config.json"), r#"{"vocab_size": 48}"#).unwrap();
    let stats = run(&source, &target, &options()).unwrap();
    assert_eq!(because(&stats, "model.layers.0.odd.weight"), "Left(TableShape)");
    let fresh = target.with_file_name("fresh");
    run(&source, &fresh, &options()).unwrap();
    assert!(tree(&target) == tree(&fresh));
}
