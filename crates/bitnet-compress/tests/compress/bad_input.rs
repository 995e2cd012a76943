//! What is refused, by name, with nothing written and the source as it was.

use std::fs;
use std::path::Path;

use bitnet_compress::{CompressError, Float, Granularity, Options, Plan, Rule};
use safetensors::Dtype;

use crate::shared::tree;
use crate::support::*;

const Q: &str = "model.layers.0.self_attn.q_proj.weight";

fn one() -> Vec<Given> {
    vec![given(Q, Dtype::F32, &[8, 24])]
}

/// Compresses what must be refused, and checks that nothing else happened.
#[track_caller]
fn refused(source: &Path, target: &Path, options: &Options) -> CompressError {
    let before = tree(source);
    let error = run(source, target, options).unwrap_err();
    assert_eq!(tree(source), before);
    assert!(!target.exists() && !target.with_file_name(".target.partial").exists(), "{error}");
    error
}

#[test]
fn damaged_files_are_named() {
    let (_work, source, target) = checkpoint(&one(), "{}");
    let path = source.join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = whole.len() - 8 * 24 * 4;
    for cut in [0, 1, 7, 8, 20, header - 1, header, header + 1, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        let error = refused(&source, &target, &Options::default());
        assert!(
            matches!(&error, CompressError::Damaged { path: found, .. } if *found == path),
            "{cut}: {error}"
        );
    }
    for at in 0..header {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x21;
        fs::write(&path, &bytes).unwrap();
        // Some changes make another valid header: no panic is what counts then.
        let _ = Plan::new(&source, &target, &Options::default());
    }
    let mut longer = whole.clone();
    longer.push(0);
    fs::write(&path, &longer).unwrap();
    assert!(matches!(refused(&source, &target, &Options::default()), CompressError::Damaged { .. }));
    let mut huge = whole;
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, &huge).unwrap();
    assert!(matches!(refused(&source, &target, &Options::default()), CompressError::Damaged { .. }));
}

#[test]
fn weights_that_are_not_finite_are_named_with_their_index() {
    for (bad, dtype) in
        [(f32::NAN, Dtype::F32), (f32::INFINITY, Dtype::BF16), (f32::NEG_INFINITY, Dtype::F16)]
    {
        let mut w = noise("w", 3 * 8 * 4);
        w[2 * 32 + 5 * 4 + 3] = bad;
        let name = "layers.1.mlp.experts.w1.weight";
        let stack = Given { name: name.into(), dtype, shape: vec![3, 8, 4], bytes: encode(dtype, &w) };
        let (_work, source, target) = checkpoint(&[stack], "{}");
        let error = refused(&source, &target, &Options::default());
        assert!(
            matches!(&error, CompressError::NotFinite { name: found, index, .. } if found == name && *index == [2, 5, 3]),
            "{error}"
        );
    }
    // In GPT-2's order the index is that of the file, too.
    let mut w = noise("w", 4 * 12);
    w[2 * 12 + 7] = f32::NAN;
    let (_work, source, target) =
        checkpoint(&[values("h.0.attn.c_attn.weight", &[4, 12], &w)], r#"{"model_type": "gpt2"}"#);
    let error = refused(&source, &target, &Options::default());
    assert!(matches!(&error, CompressError::NotFinite { index, .. } if *index == [2, 7]), "{error}");

    let (_work, source, target) = checkpoint(&[values(Q, &[2, 2], &[3e38; 4])], "{}");
    assert!(matches!(refused(&source, &target, &Options::default()), CompressError::Overflow { .. }));
}

#[test]
fn masks_and_norms_that_are_not_finite_are_left_alone() {
    let mut all = one();
    all.push(values("mask", &[2, 2], &[0.0, f32::NEG_INFINITY, f32::NAN, 1.0]));
    let (_work, source, target) = checkpoint(&all, "{}");
    run(&source, &target, &Options::default()).unwrap();
    let file = |folder: &Path| tensors(&folder.join("model.safetensors"))["mask"].clone();
    assert_eq!(file(&source), file(&target));
}

#[test]
fn numbers_that_the_type_cannot_hold_are_named() {
    let f16 = Options { dtype: Some(Float::F16), ..Options::default() };
    let mut all = one();
    all.push(values("model.norm.weight", &[2], &[1.0, 1e5]));
    let (_work, source, target) = checkpoint(&all, "{}");
    let error = refused(&source, &target, &f16);
    assert!(
        matches!(&error, CompressError::Range { name, dtype: "f16", .. } if name == "model.norm.weight"),
        "{error}"
    );
    let (_work, source, target) = checkpoint(&[values(Q, &[2, 2], &[1e5, -1e5, 2e5, 1e5])], "{}");
    assert!(matches!(refused(&source, &target, &f16), CompressError::Range { .. }));
    let tiny = Options { rule: Rule::Threshold(0.1), ..f16 };
    let (_work, source, target) = checkpoint(&[values(Q, &[1 << 1, 2], &[1e-8, -2e-8, 3e-8, 1e-8])], "{}");
    assert!(matches!(refused(&source, &target, &tiny), CompressError::Range { .. }));
}

#[test]
fn options_that_cannot_be_are_refused() {
    let (_work, source, target) = checkpoint(&one(), "{}");
    let with = |rule| Options { rule, ..Options::default() };
    for threshold in [-0.1, f32::NAN, f32::INFINITY] {
        let error = refused(&source, &target, &with(Rule::Threshold(threshold)));
        assert!(matches!(error, CompressError::Option { option: "threshold", .. }));
    }
    for group in [0, 3] {
        let error = refused(&source, &target, &with(Rule::Absmean(Granularity::Group(group))));
        assert!(matches!(error, CompressError::Option { option: "group", .. }));
    }
    let error = refused(&source, &target, &with(Rule::Absmean(Granularity::Group(16))));
    assert!(
        matches!(&error, CompressError::Group { name, group: 16, d_input: 24, .. } if name == Q),
        "{error}"
    );
    assert!(serde_json::from_str::<Options>(r#"{"pakced": true}"#).is_err());
}

#[test]
fn targets_that_are_taken_are_refused() {
    let (work, source, target) = checkpoint(&one(), "{}");
    let default = Options::default();
    fs::create_dir(&target).unwrap();
    fs::write(target.join("mine"), "").unwrap();
    assert!(matches!(run(&source, &target, &default), Err(CompressError::Exists { .. })));
    assert_eq!(names(&target), ["mine"]);
    let file = work.path().join("file");
    fs::write(&file, "mine").unwrap();
    assert!(matches!(run(&source, &file, &default), Err(CompressError::Exists { .. })));
    assert!(matches!(run(&source, &file.join("below"), &default), Err(CompressError::Write { .. })));
    assert!(matches!(run(&source, &source.join("below"), &default), Err(CompressError::InsideSource { .. })));
    assert!(matches!(run(&source, &source, &default), Err(CompressError::Exists { .. })));
    assert_eq!(names(&source), ["config.json", "model.safetensors"]);
    // An empty folder is as good as none.
    let empty = work.path().join("empty");
    fs::create_dir(&empty).unwrap();
    run(&source, &empty, &default).unwrap();
}

#[test]
fn sources_without_weights_or_with_wrong_indexes_are_named() {
    let (work, source, target) = checkpoint(&one(), "{}");
    let default = Options::default();
    let empty = work.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(matches!(refused(&empty, &target, &default), CompressError::NoWeights { .. }));
    assert!(matches!(run(&work.path().join("absent"), &target, &default), Err(CompressError::Read { .. })));
    let gguf = work.path().join("model.gguf");
    fs::write(&gguf, b"GGUF\x03\0\0\0").unwrap();
    let error = run(&gguf, &target, &default).unwrap_err();
    assert!(matches!(&error, CompressError::Gguf { path } if *path == gguf), "{error}");
    let index = source.join("model.safetensors.index.json");
    for (text, expected) in [
        (r#"{"weight_map": {"a": "../model.safetensors"}}"#, "expected a file name"),
        (r#"{"weight_map": 3}"#, "`weight_map` is no object"),
        (r#"{"weight_map": {"a": "model.safetensors"}}"#, "tensor `a` is missing"),
        (r#"{"weight_map": {"a": "absent.safetensors"}}"#, "absent.safetensors"),
        (r#"{"weight_map": {}, "metadata": []}"#, "`metadata` is no object"),
        (r#"{"weight_map": {}, "metadata": "none"}"#, "`metadata` is no object"),
        ("{", "model.safetensors.index.json"),
    ] {
        fs::write(&index, text).unwrap();
        let error = refused(&source, &target, &default).to_string();
        assert!(error.contains(expected), "{error}");
    }
    fs::remove_file(&index).unwrap();
    fs::write(source.join("config.json"), "{").unwrap();
    assert!(matches!(refused(&source, &target, &default), CompressError::Json { .. }));
    // Two files with the same tensor.
    fs::write(source.join("config.json"), "{}").unwrap();
    fs::rename(source.join("model.safetensors"), source.join("a.safetensors")).unwrap();
    fs::copy(source.join("a.safetensors"), source.join("b.safetensors")).unwrap();
    assert!(
        matches!(refused(&source, &target, &default), CompressError::TwiceInSource { name, .. } if name == Q)
    );
}

/// A file with a header of a terabyte and nothing on the disk.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_too_small_is_found_before_anything_is_written() {
    let (work, source, target) = checkpoint(&one(), "{}");
    let [rows, columns] = [1u64 << 20, 1 << 17];
    let bytes = rows * columns * 2;
    let header: serde_json::Map<String, serde_json::Value> = (0..4u64)
        .map(|i| {
            let entry = serde_json::json!({
                "dtype": "BF16", "shape": [rows, columns], "data_offsets": [i * bytes, (i + 1) * bytes],
            });
            (format!("layers.{i}.q_proj.weight"), entry)
        })
        .collect();
    let header = serde_json::Value::Object(header).to_string().into_bytes();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(&header);
    let path = source.join("model.safetensors");
    fs::write(&path, &file).unwrap();
    let sparse = fs::OpenOptions::new().write(true).open(&path).unwrap();
    sparse.set_len(file.len() as u64 + 4 * bytes).unwrap();
    let error = run(&source, &target, &Options::default()).unwrap_err();
    assert!(
        matches!(&error, CompressError::Space { needed, free, .. } if *needed > 4 * bytes && free < needed),
        "{error}"
    );
    assert_eq!(names(work.path()), ["source"]);
}
