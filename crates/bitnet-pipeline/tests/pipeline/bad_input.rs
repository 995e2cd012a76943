//! What cannot be compressed, and that nothing is written then.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use bitnet_compress::{CompressError, Options, compress};
use bitnet_convert::ConvertError;
use bitnet_pipeline::{Mode, Pipeline, PipelineError, Stage, choose};

use crate::shared::tree;
use crate::support::*;

fn refused(work: &Work, settings: &str) -> PipelineError {
    let error = work.run(settings).unwrap_err();
    assert_eq!(names(work.folder.path()), ["source", "tokens"], "{error}");
    error
}

#[test]
fn settings_that_do_not_fit_the_model() {
    let work = Work::new("llama_tied");
    let before = tree(&work.source());
    for (settings, word) in [
        ("exclude = ['*.q_prj']", "`*.q_prj`: matches no slot"),
        ("exclude = ['[a']", "`[a`"),
        ("exclude = ['*']", "`exclude` is everything"),
        ("rule = { absmean = { group = 128 } }", "128"),
        ("device = 'tpu'", "tpu"),
    ] {
        let error = refused(&work, settings).to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(tree(&work.source()) == before);
}

#[test]
fn the_mode_is_chosen_by_source_and_settings() {
    let work = Work::new("llama_tied");
    let none = toml::from_str("").unwrap();
    let (mode, why) = choose(&work.source(), &none).unwrap();
    assert_eq!(mode, Mode::Tensors);
    assert!(why.contains("no data"), "{why}");
    let (mode, why) = choose(&work.source(), &work.config("")).unwrap();
    assert_eq!(mode, Mode::Model);
    assert!(why.starts_with("chosen automatically"), "{why}");
    let forced = toml::from_str("mode = 'tensors'").unwrap();
    assert_eq!(choose(&work.source(), &forced).unwrap().0, Mode::Tensors);

    let gpt2 = golden("gpt2");
    assert_eq!(choose(&gpt2, &none).unwrap().0, Mode::Tensors);
    let error = choose(&gpt2, &work.config("")).unwrap_err().to_string();
    assert!(error.contains("`data` needs mode `model`") && error.contains("gpt2"), "{error}");
    let steps = toml::from_str("train = { steps = 3 }").unwrap();
    let error = choose(&work.source(), &steps).unwrap_err().to_string();
    assert!(error.contains("`data` is nothing"), "{error}");
}

#[test]
fn targets_that_cannot_be() {
    let work = Work::new("llama_tied");
    let new = |target: PathBuf| Pipeline::new(work.source(), target, &work.config(""));
    let inside = new(work.source().join("target")).err().unwrap();
    assert!(matches!(inside, PipelineError::Compress(CompressError::InsideSource { .. })), "{inside}");
    fs::create_dir(work.target()).unwrap();
    assert!(new(work.target()).is_ok(), "an empty folder will do");
    fs::write(work.target().join("mine"), "").unwrap();
    let exists = new(work.target()).err().unwrap();
    assert!(matches!(exists, PipelineError::Compress(CompressError::Exists { .. })), "{exists}");
    // Root may write into read-only folders; nobody can below a file.
    let below = new(work.path("tokens").join("target")).unwrap().run(&mut |_| ()).unwrap_err();
    assert!(matches!(below, PipelineError::Compress(CompressError::Write { .. })), "{below}");
}

#[test]
fn a_target_is_worked_on_by_one_process() {
    let work = Work::new("llama_tied");
    let pipeline =
        Pipeline::new(work.source(), work.target(), &work.config("eval = { windows = 2 }")).unwrap();
    let mut second = None;
    pipeline
        .run(&mut |_| {
            if second.is_none() {
                second = Some(pipeline.run(&mut |_| ()).unwrap_err());
            }
        })
        .unwrap();
    let second = second.unwrap();
    assert!(matches!(second, PipelineError::Compress(CompressError::Busy { .. })), "{second}");
}

#[test]
fn what_the_other_mode_left_is_not_touched() {
    let work = Work::new("llama_tied");
    let partial = work.path(".target.partial");
    let tensors = |source: PathBuf, last: bool| {
        compress(&source, &work.target(), &Options::default(), &mut |_, _, _| assert!(!last, "killed"))
    };
    assert!(catch_unwind(AssertUnwindSafe(|| tensors(work.source(), true))).is_err());
    let before = tree(&partial);
    assert!(before.contains_key("model.safetensors"));
    let error = work.run("").unwrap_err();
    let PipelineError::Compress(CompressError::OtherMode { path, found, .. }) = error else {
        panic!("{error}")
    };
    assert_eq!((path, found.as_str()), (partial.clone(), "tensors"));
    assert!(tree(&partial) == before);
    fs::remove_dir_all(&partial).unwrap();

    let pipeline = Pipeline::new(work.source(), work.target(), &work.config("")).unwrap();
    pipeline.run_stage(Stage::Validate, &mut |_| ()).unwrap();
    let before = tree(&partial);
    let error = tensors(work.source(), false).unwrap_err();
    assert!(matches!(&error, CompressError::OtherMode { found, .. } if found == "model"), "{error}");
    assert!(tree(&partial) == before);

    // Nor is a source there.
    let source = partial.join("source");
    fs::rename(work.source(), &source).unwrap();
    let before = tree(&partial);
    for error in [
        tensors(source.clone(), false).unwrap_err(),
        match Pipeline::new(&source, work.target(), &work.config("")) {
            Err(PipelineError::Compress(error)) => error,
            other => panic!("{:?}", other.err()),
        },
    ] {
        assert!(matches!(error, CompressError::SourceInUnfinished { .. }), "{error}");
    }
    assert!(tree(&partial) == before);
}

#[test]
fn damaged_sources_and_data() {
    let work = Work::new("llama_tied");
    let weights = work.source().join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 1]).unwrap();
    let error = refused(&work, "");
    assert!(matches!(error, PipelineError::Convert(ConvertError::Safetensors { .. })), "{error}");

    let mut nan = whole.clone();
    let n = nan.len();
    nan[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, nan).unwrap();
    let error = work.run("").unwrap_err();
    assert!(matches!(error, PipelineError::Convert(ConvertError::NotFinite { .. })), "{error}");
    assert!(!work.target().exists());
    fs::write(&weights, whole).unwrap();
    fs::remove_dir_all(work.path(".target.partial")).unwrap();

    let tokens = work.path("tokens");
    fs::rename(&tokens, work.path("elsewhere")).unwrap();
    let error = work.run("").unwrap_err().to_string();
    assert!(error.contains("tokens"), "{error}");
}

/// A header that claims more than any disk, and a file without the bytes.
#[test]
fn a_disk_that_is_too_small_is_found_before_anything_is_written() {
    let work = Work::new("llama_tied");
    let rows = (1u64 << 31) - 1;
    let path = work.source().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["vocab_size"] = rows.into();
    fs::write(&path, config.to_string()).unwrap();
    let weights = work.source().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let end = bytes.len() as u64 - 8 - length as u64;
    let embedding = &mut header["model.embed_tokens.weight"];
    embedding["shape"][0] = rows.into();
    embedding["dtype"] = "BF16".into();
    embedding["data_offsets"] = serde_json::json!([end, end + rows * 64 * 2]);
    // What the embedding took belongs to a tensor that nobody asks for.
    let old = serde_json::from_slice::<serde_json::Value>(&bytes[8..8 + length]).unwrap();
    header["unused"] = old["model.embed_tokens.weight"].clone();
    let mut text = header.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let new = [&(text.len() as u64).to_le_bytes()[..], &text, &bytes[8 + length..]].concat();
    fs::write(&weights, &new).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&weights).unwrap();
    file.set_len(new.len() as u64 + rows * 64 * 2).unwrap();
    let error = refused(&work, "train = { steps = 1000 }\nsnapshots = { every = 1, keep = 1000 }");
    let PipelineError::Compress(CompressError::Space { needed, free, .. }) = error else { panic!("{error}") };
    assert!(needed > free && needed > rows * 64 * 12 * 1000, "{needed} {free}");
}

/// Numbers beyond all disks and all times.
#[test]
fn more_snapshots_and_more_patience_than_there_are_steps_cost_nothing() {
    let work = Work::new("llama_tied");
    let report = work.run(
        "train = { steps = 3 }\npatience = 9223372036854775807\nbatch = { micro_batch = 2 }\n\
         eval = { every = 2, windows = 2 }\nsnapshots = { every = 1, keep = 9223372036854775807 }",
    );
    assert_eq!(report.unwrap().model.training.unwrap().steps, 3);
}
