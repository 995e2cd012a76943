//! Stages one by one.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bitnet_pipeline::{Event, Pipeline, PipelineError, Stage};

use crate::shared::tree;
use crate::support::*;

const SETTINGS: &str = "calibration = { windows = 4 }\neval = { windows = 2 }";

#[test]
fn stages_run_alone_and_are_not_run_twice() {
    let work = Work::new("llama_tied");
    let config = work.config(SETTINGS);
    let pipeline = Pipeline::new(work.source(), work.target(), &config).unwrap();
    let error = pipeline.run_stage(Stage::Pack, &mut |_| ()).unwrap_err();
    assert!(matches!(error, PipelineError::NotReady { stage: "pack", missing: "convert" }), "{error}");
    let stages: Vec<Stage> = pipeline.stages().collect();
    assert!(!stages.contains(&Stage::FineTune) && stages.len() == 7);
    for stage in &stages {
        pipeline.run_stage(*stage, &mut |_| ()).unwrap();
    }
    assert!(!work.target().exists());

    let mut done = Vec::new();
    let mut note = |event: Event| {
        if let Event::Stage { stage, done: found } = event {
            assert!(found, "{stage:?}");
            done.push(stage);
        }
    };
    pipeline.run(&mut note).unwrap();
    assert_eq!(done, stages);
    let one_by_one = tree(&work.target());

    let other = work.path("other");
    Pipeline::new(work.source(), &other, &config).unwrap().run(&mut |_| ()).unwrap();
    assert!(tree(&other) == one_by_one);
    assert_eq!(names(work.folder.path()), ["other", "source", "target", "tokens"]);
}

/// A stage that is run again forgets what later ones made of it.
#[test]
fn other_settings_and_other_data_begin_anew() {
    let work = Work::new("llama_tied");
    let expected = {
        let target = work.path("expected");
        let config = work.config(&format!("{SETTINGS}\nconvert = {{ sub_norm = 'none' }}"));
        Pipeline::new(work.source(), &target, &config).unwrap().run(&mut |_| ()).unwrap();
        tree(&target)
    };
    let until = |settings: &str, last: Stage| {
        let pipeline = Pipeline::new(work.source(), work.target(), &work.config(settings)).unwrap();
        for stage in pipeline.stages().filter(|stage| *stage <= last) {
            pipeline.run_stage(stage, &mut |_| ()).unwrap();
        }
    };
    until(SETTINGS, Stage::Write);
    work.run(&format!("{SETTINGS}\nconvert = {{ sub_norm = 'none' }}")).unwrap();
    assert!(tree(&work.target()) == expected, "other settings");
    fs::remove_dir_all(work.target()).unwrap();

    until(SETTINGS, Stage::Write);
    until(SETTINGS, Stage::Convert);
    assert!(!work.path(".target.partial/pack.json").exists());

    // Other tokens under the same name.
    until(SETTINGS, Stage::Convert);
    let mut tokens = fs::read(work.path("tokens")).unwrap();
    let n = tokens.len();
    tokens[n - 4] ^= 1;
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(work.path("tokens"), tokens).unwrap();
    let mut loaded = false;
    let pipeline = Pipeline::new(work.source(), work.target(), &work.config(SETTINGS)).unwrap();
    let mut note = |event: Event| loaded |= event == Event::Stage { stage: Stage::Load, done: false };
    pipeline.run(&mut note).unwrap();
    assert!(loaded);
}

/// A run that is killed goes on under another name of the folder that it is in.
#[test]
fn training_goes_on_where_the_folder_was_renamed() {
    let work = Work::new("llama_tied");
    let tokens = Work::new("llama_tied");
    let settings = "train = { steps = 4 }\ndistill = { logit_kl = { top_k = 8 } }\nbatch = { micro_batch = 2 }\n\
        eval = { every = 2, windows = 2 }\nsnapshots = { every = 1 }\ncalibration = { windows = 4 }";
    let config = tokens.config(settings);
    let (before, after) = (work.path("before"), work.path("after"));
    fs::create_dir(&before).unwrap();
    fs::rename(work.source(), before.join("source")).unwrap();
    let pipeline = |folder: &Path, target| Pipeline::new(folder.join("source"), folder.join(target), &config);
    pipeline(&before, "whole").unwrap().run(&mut |_| ()).unwrap();

    let killed = pipeline(&before, "target").unwrap();
    let mut steps = 0;
    let mut kill = |event: Event| {
        steps += u32::from(matches!(event, Event::Step(_)));
        assert!(steps < 3, "killed");
    };
    assert!(catch_unwind(AssertUnwindSafe(|| killed.run(&mut kill))).is_err());
    fs::rename(&before, &after).unwrap();
    let mut goes_on = false;
    let mut note = |event: Event| {
        goes_on |= matches!(event, Event::Note(note) if note == "training goes on after step 3");
    };
    pipeline(&after, "target").unwrap().run(&mut note).unwrap();
    assert!(goes_on);
    assert!(tree(&after.join("target")) == tree(&after.join("whole")));
}

/// What is said to be needed is never too little, and not several times too much.
#[test]
fn a_run_takes_no_more_of_the_disk_than_it_says() {
    let train = "train = { steps = 5, learning_rate = 0.01 }\nbatch = { micro_batch = 2 }\n\
        snapshots = { every = 1, keep = 1 }";
    let all = "export = { latent = true, hf = 'online', gguf = 'f32' }";
    let turned = "convert = { hadamard = true }\nlrc = { slots = [{ rank = 16 }] }";
    for settings in [String::new(), all.into(), format!("{all}\n{train}"), format!("{turned}\n{train}")] {
        let work = Work::new("llama_tied");
        let settings =
            format!("calibration = {{ windows = 4 }}\neval = {{ every = 2, windows = 2 }}\n{settings}");
        let pipeline = Pipeline::new(work.source(), work.target(), &work.config(&settings)).unwrap();
        let partial = work.path(".target.partial");
        let size = || if partial.exists() { tree(&partial).values().map(Vec::len).sum() } else { 0 };
        let (mut said, mut most) = (0, 0);
        for stage in pipeline.stages() {
            pipeline.run_stage(stage, &mut |_| most = most.max(size())).unwrap();
            most = most.max(size());
            if stage == Stage::Validate {
                let json = fs::read(partial.join("validate.json")).unwrap();
                let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
                said = json["bytes"].as_u64().unwrap() as usize;
            }
        }
        assert!(most <= said && said < 3 * most, "{settings}: {said} said, {most} found");
    }
}

#[test]
fn what_was_changed_on_the_disk_is_found() {
    let work = Work::new("llama_tied");
    let pipeline = Pipeline::new(work.source(), work.target(), &work.config(SETTINGS)).unwrap();
    for stage in pipeline.stages().filter(|stage| *stage < Stage::Verify) {
        pipeline.run_stage(stage, &mut |_| ()).unwrap();
    }
    let partial = work.path(".target.partial");
    for (artifact, tensor, what) in [
        ("packed", "model.layers.1.mlp.up_proj.weight", "codes of layers.1.mlp"),
        ("dense", "model.layers.1.mlp.up_proj.weight", "weights of layers.1.mlp"),
        ("dense", "model.norm.weight", "values of norm"),
    ] {
        let path = partial.join(artifact).join("model.safetensors");
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let start = 8 + header + json[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        // Of packed codes another one; of floats another size.
        bytes[start] ^= if artifact == "packed" { 3 } else { 0x40 };
        bytes[start] =
            if artifact == "packed" && bytes[start] & 3 == 3 { bytes[start] ^ 1 } else { bytes[start] };
        fs::write(&path, &bytes).unwrap();
        let error = pipeline.run_stage(Stage::Verify, &mut |_| ()).unwrap_err();
        assert!(
            matches!(error, PipelineError::Differs { .. }) && error.to_string().contains(what),
            "{error}"
        );
        fs::write(&path, whole).unwrap();
    }
    pipeline.run(&mut |_| ()).unwrap();
}
