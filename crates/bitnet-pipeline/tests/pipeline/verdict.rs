//! What counts as a success.

use bitnet_pipeline::{Pipeline, Stage};

use crate::support::*;

/// A short training of a model with random weights, which makes it better.
const TRAIN: &str = "batch = { micro_batch = 2 }\neval = { every = 4, windows = 4 }\n\
    snapshots = { every = 100 }\ncalibration = { windows = 4 }";

#[test]
fn a_worse_model_is_no_success() {
    let work = Work::new("llama_tied");
    let report = work.run(&format!("{TRAIN}\nverdict = {{ max_ratio = 0.5 }}")).unwrap();
    let (perplexity, verdict) = (report.model.perplexity, report.model.verdict);
    assert!(!verdict.success && verdict.ratio == perplexity.result / perplexity.dense, "{verdict}");
    assert!(report.to_string().contains("WORSE than asked for"), "{report}");
    assert!(work.target().join("packed").is_dir(), "it is written all the same");
}

/// Logits so large that `exp` of the loss is beyond all numbers.
#[test]
fn a_perplexity_beyond_all_numbers_is_no_failure() {
    let work = Work::new("llama_tied");
    let path = work.source().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let mut all = tensors(&work.source());
    let (_, _, gain) = all.get_mut("model.norm.weight").unwrap();
    gain.as_chunks_mut::<4>().0.iter_mut().for_each(|b| *b = (f32::from_le_bytes(*b) * 1e6).to_le_bytes());
    write(&path, &all);
    assert_ne!(std::fs::read(&path).unwrap(), bytes);
    let settings = format!("{TRAIN}\ntrain = {{ steps = 1 }}\nverdict = {{ max_ratio = 0.5 }}");
    let report = work.run(&settings).unwrap();
    let perplexity = report.model.perplexity;
    assert!(perplexity.dense > 1e303 && perplexity.result > 1e303, "{perplexity:?}");
    assert!(!report.model.verdict.success);
}

#[test]
fn the_best_of_training_goes_on() {
    let work = Work::new("llama_tied");
    let report = work.run(&format!("{TRAIN}\ntrain = {{ steps = 12, learning_rate = 0.01 }}")).unwrap();
    let (perplexity, training) = (report.model.perplexity, report.model.training.unwrap());
    assert!(training.kept && training.steps == 12, "{training:?}");
    assert!(perplexity.trained.unwrap() < perplexity.converted, "{perplexity:?}");
    let off = (perplexity.result / perplexity.trained.unwrap() - 1.0).abs();
    assert!(off < 1e-5, "packed in f32: {perplexity:?}");
    assert!(report.model.verdict.success);
}

#[test]
fn training_that_makes_nothing_better_is_not_kept_and_ends_early() {
    let work = Work::new("llama_tied");
    let settings = format!(
        "{TRAIN}\npatience = 2\n\
         train = {{ steps = 100, learning_rate = 1.0, lr_warmup_steps = 0, lr_decay = 'constant', clip_norm = inf }}"
    );
    let report = work.run(&settings).unwrap();
    let (perplexity, training) = (report.model.perplexity, report.model.training.unwrap());
    assert!(!training.kept && training.steps < 100, "{training:?}");
    assert_eq!(training.steps, training.best_steps + 8, "two evaluations later");
    assert!(perplexity.trained.unwrap() >= perplexity.converted, "{perplexity:?}");
    let off = (perplexity.result / perplexity.converted - 1.0).abs();
    assert!(off < 1e-5, "the converted model was packed: {perplexity:?}");
}

/// Gains are what makes a converted model start near the dense one.
#[test]
fn calibrated_gains_are_in_the_model() {
    let work = Work::new("llama_tied");
    let pipeline = Pipeline::new(work.source(), work.target(), &work.config(TRAIN)).unwrap();
    for stage in pipeline.stages().filter(|stage| *stage <= Stage::Convert) {
        pipeline.run_stage(stage, &mut |_| ()).unwrap();
    }
    let partial = work.path(".target.partial");
    let calibrated: serde_json::Value =
        serde_json::from_slice(&std::fs::read(partial.join("calibrate.json")).unwrap()).unwrap();
    let slots = calibrated["slots"].as_array().unwrap();
    assert_eq!(slots.len(), 21);
    let found = tensors(&partial.join("converted"));
    let slot = slots.iter().find(|slot| slot["slot"] == "model.layers.2.mlp.down_proj").unwrap();
    let norms: Vec<_> =
        found.iter().filter(|(name, _)| name.contains("layers.2.mlp") && name.contains("norm")).collect();
    let [(_, (dtype, _, bytes))] = norms[..] else { panic!("{:?}", found.keys()) };
    let rms = slot["rms"].as_f64().unwrap() as f32;
    assert!(floats(*dtype, bytes).iter().all(|gain| (gain / rms - 1.0).abs() < 1e-4), "{rms}");
}
