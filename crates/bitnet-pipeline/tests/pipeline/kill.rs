//! Runs that are killed: the same bytes in the end, and never half of them under the final name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bitnet_pipeline::Pipeline;

use crate::shared::tree;
use crate::support::*;

const FOLDER: &str = "BITNET_PIPELINE_FOLDER";
const TARGET: &str = "BITNET_PIPELINE_TARGET";

/// Every stage, each with something to do.
const SETTINGS: &str = "dtype = 'f16'\ntrain = { steps = 6 }\nbatch = { micro_batch = 2 }\n\
    eval = { every = 3, windows = 2 }\nsnapshots = { every = 2, keep = 2 }\ncalibration = { windows = 4 }\n\
    export = { latent = true, hf = 'bitlinear', gguf = 'f16' }";

/// What the test runs in a process of its own.
#[test]
#[ignore = "run by the test below"]
fn child() {
    let path = |name| PathBuf::from(std::env::var_os(name).unwrap());
    let (folder, target) = (path(FOLDER), path(TARGET));
    let config = toml::from_str(&fs::read_to_string(folder.join("settings.toml")).unwrap()).unwrap();
    Pipeline::new(folder.join("source"), target, &config).unwrap().run(&mut |_| ()).unwrap();
}

fn spawn(folder: &Path, target: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--ignored"])
        .env(FOLDER, folder)
        .env(TARGET, target)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn runs_killed_at_random_moments_end_with_the_same_bytes() {
    let work = Work::new("llama_tied");
    let config = work.config(SETTINGS);
    fs::write(work.path("settings.toml"), toml::to_string(&config).unwrap()).unwrap();
    let (folder, before) = (work.folder.path(), tree(&work.source()));
    let start = Instant::now();
    assert!(spawn(folder, &work.target()).wait().unwrap().success());
    let (lasts, whole) = (start.elapsed(), tree(&work.target()));
    assert!(!work.path(".target.partial").exists());

    let (target, partial) = (work.path("killed"), work.path(".killed.partial"));
    let mut stages = std::collections::BTreeSet::new();
    let (mut kills, mut ended, mut state) = (0, 0, 88_172_645_463_325_252u64);
    while kills < 24 || ended == 0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mut child = spawn(folder, &target);
        let share = 0.05 + 0.5 * (state % 1000) as f64 / 1000.0;
        std::thread::sleep(lasts.mul_f64(share) + Duration::from_micros(state % 997));
        let lives = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        assert!(child.wait().unwrap().success() || lives, "it failed by itself");
        kills += usize::from(lives);
        if target.exists() {
            assert!(tree(&target) == whole, "after {kills} kills");
            // What is left of the work is cleared away, by whoever asks for the same again.
            assert!(spawn(folder, &target).wait().unwrap().success() || !partial.exists());
            assert!(!partial.exists());
            fs::remove_dir_all(&target).unwrap();
            ended += 1;
        } else if let Ok(entries) = fs::read_dir(&partial) {
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            stages.extend(names.filter(|name| name.ends_with(".json")));
        }
    }
    eprintln!("killed {kills} times in {ended} whole runs of {:.1} s, after {stages:?}", lasts.as_secs_f64());
    assert!(stages.len() >= 3, "runs were not killed between stages: {stages:?}");
    assert!(spawn(folder, &target).wait().unwrap().success());
    assert!(tree(&target) == whole);
    assert!(tree(&work.source()) == before, "the source is only read");
}
