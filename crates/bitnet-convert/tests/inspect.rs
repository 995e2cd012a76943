//! What `inspect` says of sound and of broken files.

#![expect(clippy::unwrap_used, reason = "the functions beside the tests are tests too")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bitnet_convert::{
    Container, ConvertError, Form, Inspection, LoadOptions, Placement, Policy, ProblemKind, Role, inspect,
    stage1,
};
use bitnet_format::gguf::{Header, TensorType, Value};
use bitnet_format::{HfScale, TernaryMatrix, WeightScale, hf};
use burn::tensor::Device;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn look(path: &Path) -> Inspection {
    inspect(path).unwrap()
}

/// Tensors and bytes of one role and form.
fn total(found: &Inspection, role: Role, form: Form) -> (u64, u64) {
    let totals = found.totals.iter().filter(|total| total.role == role && total.form == form);
    totals.fold((0, 0), |(tensors, bytes), total| (tensors + total.tensors, bytes + total.bytes))
}

fn kinds(found: &Inspection) -> Vec<ProblemKind> {
    found.problems.iter().map(|problem| problem.kind).collect()
}

/// The messages of all problems of a kind.
fn messages(found: &Inspection, kind: ProblemKind) -> String {
    let of_kind = found.problems.iter().filter(|problem| problem.kind == kind);
    of_kind.map(|problem| problem.message.as_str()).collect::<Vec<_>>().join("\n")
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let owned = |view: TensorView| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    tensors.tensors().into_iter().map(|(name, view)| (name, owned(view))).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(path, serialize(views, None).unwrap()).unwrap();
}

fn edit_config(folder: &Path, edit: impl FnOnce(&mut Json)) {
    let path = folder.join("config.json");
    let mut config: Json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

/// `llama_tied` with packed projections, whose scales are stored in this direction under this class.
fn packed(class: &str, direction: HfScale) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = repository("tests/data/hf/llama_tied");
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(source.join(file), folder.path().join(file)).unwrap();
    }
    edit_config(folder.path(), |config| {
        config["quantization_config"] = json!({ "quant_method": "bitnet", "linear_class": class });
    });
    let mut tensors = Tensors::new();
    for (name, (dtype, shape, data)) in read(&source.join("model.safetensors")) {
        let Some(slot) = name.strip_suffix("_proj.weight") else {
            tensors.insert(name, (dtype, shape, data));
            continue;
        };
        let scale = WeightScale::new(0.02).unwrap();
        let codes = (0..shape[0] * shape[1]).map(|i| (i % 3) as i8 - 1).collect();
        let matrix = TernaryMatrix::per_tensor(codes, [shape[0], shape[1]], scale).unwrap();
        let stored = direction.store(scale).unwrap().to_le_bytes().to_vec();
        tensors.insert(format!("{slot}_proj.weight_scale"), (Dtype::F32, vec![1], stored));
        tensors.insert(name, (Dtype::U8, vec![shape[0] / 4, shape[1]], hf::pack(&matrix).unwrap()));
    }
    write(&folder.path().join("model.safetensors"), &tensors);
    folder
}

#[test]
fn a_dense_folder() {
    let found = look(&repository("assets/small-model"));
    assert_eq!((found.container, &found.problems, &found.quantization), (Container::Folder, &vec![], &None));
    let architecture = found.architecture.clone().unwrap();
    assert_eq!((architecture.name.as_str(), architecture.tied_head), ("llama", Some(true)));
    assert_eq!((architecture.d_model, architecture.n_kv_heads), (Some(256), Some(2)));
    assert_eq!(found.tokenizer.as_ref().map(|tokens| tokens.n_tokens), Some(512));
    assert_eq!(total(&found, Role::Projection, Form::Float).0, 14);
    assert_eq!(total(&found, Role::Embedding, Form::Float), (1, 512 * 256 * 2));
    assert_eq!(total(&found, Role::Norm, Form::Float).0, 5);
    let bytes: u64 = found.totals.iter().map(|total| total.bytes).sum();
    assert_eq!(bytes, found.tensors.iter().map(|tensor| tensor.bytes).sum::<u64>());
    assert!(found.totals.iter().all(|total| total.dtype == "BF16" && total.bytes == 2 * total.weights));
    assert!(serde_json::to_value(&found).unwrap()["tensors"][0]["role"].is_string());
}

#[test]
fn latent_weights_of_a_bitnet_folder() {
    let found = look(&repository("tests/data/hf/bitnet_online"));
    assert_eq!(found.quantization.as_deref(), Some("bitnet, autobitlinear, online"));
    assert_eq!(total(&found, Role::Projection, Form::Latent).0, 14);
    assert_eq!(total(&found, Role::Projection, Form::Float).0, 0);
    assert_eq!(total(&found, Role::SubNorm, Form::Float).0, 4);
    assert_eq!(kinds(&found), [ProblemKind::Tokenizer]); // the fixture has none

    // What transformers has no words for is in ours.
    let work = tempfile::tempdir().unwrap();
    let policy =
        Policy { sub_norm: Placement::Output, exclude: vec!["*.q_proj".into()], ..Policy::default() };
    let (source, target) = (repository("assets/small-model"), work.path().join("out"));
    stage1(source, &target, &policy, &Device::flex(), &LoadOptions::default()).unwrap();
    let found = look(&target);
    assert!(found.quantization.as_ref().is_some_and(|words| words.contains("SubLN Output")), "{found:?}");
    assert_eq!((total(&found, Role::Projection, Form::Latent).0, found.problems), (12, vec![]));

    for group in [0, 3, 1 << 20] {
        edit_config(&target, |config| {
            config["bitnet_arch"]["quantization"]["weight"] = json!({ "group": group })
        });
        let found = look(&target);
        assert_eq!(kinds(&found), [ProblemKind::Config], "{group}");
        assert!(messages(&found, ProblemKind::Config).contains(&group.to_string()), "{:?}", found.problems);
    }
}

#[test]
fn every_fixture_with_weights_is_sound() {
    let mut n_seen = 0;
    for entry in fs::read_dir(repository("tests/data/hf")).unwrap() {
        let path = entry.unwrap().path();
        if path.join("model.safetensors").exists() || path.join("model.safetensors.index.json").exists() {
            let found = look(&path);
            let sound = |kind: &ProblemKind| *kind == ProblemKind::Tokenizer;
            assert!(kinds(&found).iter().all(sound), "{}: {:?}", path.display(), found.problems);
            n_seen += 1;
        }
    }
    assert!(n_seen >= 14, "{n_seen} fixtures");
}

#[test]
fn packed_folders_and_the_direction_of_their_scales() {
    for (class, claimed) in [("bitlinear", HfScale::Divide), ("autobitlinear", HfScale::Multiply)] {
        for stored in [HfScale::Divide, HfScale::Multiply] {
            let found = look(packed(class, stored).path());
            assert_eq!(total(&found, Role::Projection, Form::Ternary).0, 21);
            assert_eq!(total(&found, Role::Scale, Form::Float), (21, 84));
            let query =
                found.tensors.iter().find(|tensor| tensor.name.ends_with("0.self_attn.q_proj.weight"));
            let query = query.unwrap();
            assert_eq!((query.shape.as_slice(), query.bytes), (&[64, 64][..], 64 * 64 / 4));
            let scales = found.scales.clone().unwrap();
            assert_eq!((scales.claimed, scales.likely, scales.n_scales), (Some(claimed), Some(stored), 21));
            if stored == claimed {
                assert_eq!(found.problems, []);
            } else {
                assert_eq!(kinds(&found), [ProblemKind::ScaleDirection]);
                let message = &found.problems[0].message;
                assert!(message.starts_with("21 of 21 scales") && message.contains(class), "{message}");
            }
        }
    }
}

#[test]
fn broken_packed_folders() {
    let folder = packed("bitlinear", HfScale::Divide);
    let path = folder.path().join("model.safetensors");
    let mut tensors = read(&path);
    let mut names =
        tensors.keys().filter(|name| name.ends_with(".weight_scale")).cloned().collect::<Vec<_>>();
    let mut take = || names.pop().unwrap();
    let (gone, zero, two, large) = (take(), take(), take(), take());
    tensors.remove(&gone);
    tensors.get_mut(&zero).unwrap().2 = vec![0; 4];
    tensors.insert(two.clone(), (Dtype::F32, vec![2], vec![0; 8]));
    let weight = large.replace("_scale", "");
    tensors.insert(weight.clone(), (Dtype::U8, vec![1, 64], vec![0; 64]));
    tensors.insert("model.norm.weight".into(), (Dtype::I64, vec![64], vec![0; 512]));
    tensors.insert("model.extra".into(), (Dtype::F32, vec![1], vec![0; 4]));
    tensors.remove("model.embed_tokens.weight");
    write(&path, &tensors);

    let found = look(folder.path());
    let scale = messages(&found, ProblemKind::Scale);
    for name in [&gone.replace("_scale", ""), &zero, &two] {
        assert!(scale.contains(&format!("`{name}`")), "{name}: {scale}");
    }
    let shape = messages(&found, ProblemKind::Shape);
    assert!(shape.contains(&format!("`{weight}` has shape [4, 64], the config implies")), "{shape}");
    assert!(messages(&found, ProblemKind::Dtype).contains("`model.norm.weight` has dtype I64"));
    assert_eq!(messages(&found, ProblemKind::UnexpectedTensor), "tensor `model.extra` is unexpected");
    assert_eq!(messages(&found, ProblemKind::MissingTensor), "tensor `model.embed_tokens.weight` is missing");
    assert_eq!(found.scales.unwrap().n_scales, 18);
}

#[test]
fn folders_that_are_incomplete_or_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let error = inspect(folder.path()).unwrap_err();
    assert!(matches!(error, ConvertError::NoWeights { .. }), "{error}");

    // Only a config, of an architecture that is not computed here.
    let found = look(&repository("tests/data/hf/gpt2"));
    assert_eq!(found.architecture.clone().unwrap().name, "gpt2");
    assert_eq!(kinds(&found), [ProblemKind::Weights, ProblemKind::Config, ProblemKind::Tokenizer]);

    // Only weights.
    let small = repository("assets/small-model");
    fs::copy(small.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let found = look(folder.path());
    assert_eq!((found.tensors.len(), found.architecture.clone()), (20, None));
    assert_eq!(kinds(&found), [ProblemKind::Config, ProblemKind::Tokenizer]);

    for (config, kind) in [
        ("[]", ProblemKind::Config),
        ("{", ProblemKind::Config),
        (r#"{"model_type": "llama"}"#, ProblemKind::Config),
        (r#"{"quantization_config": 7}"#, ProblemKind::Config),
    ] {
        fs::write(folder.path().join("config.json"), config).unwrap();
        assert!(kinds(&look(folder.path())).contains(&kind), "{config}");
    }

    // A tokenizer that is damaged, then one with more tokens than the embedding has rows, then a depth without end.
    fs::copy(small.join("config.json"), folder.path().join("config.json")).unwrap();
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert_eq!(kinds(&look(folder.path())), [ProblemKind::Tokenizer]);
    fs::copy(small.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    edit_config(folder.path(), |config| config["vocab_size"] = json!(500));
    let found = look(folder.path());
    assert_eq!(kinds(&found), [ProblemKind::Shape, ProblemKind::Tokenizer]);
    edit_config(folder.path(), |config| config["num_hidden_layers"] = json!(60_000));
    assert!(kinds(&look(folder.path())).contains(&ProblemKind::MissingTensor));
}

#[test]
fn a_bare_safetensors_file_at_any_length() {
    let folder = packed("bitlinear", HfScale::Divide);
    let path = folder.path().join("model.safetensors");
    let found = look(&path);
    assert_eq!((found.container, total(&found, Role::Other, Form::Ternary).0), (Container::Safetensors, 21));
    let scales = found.scales.unwrap();
    assert_eq!((scales.claimed, scales.likely), (None, Some(HfScale::Divide)));

    let bytes = fs::read(&path).unwrap();
    for len in (0..4096).step_by(7).chain([bytes.len() - 1]) {
        fs::write(&path, &bytes[..len]).unwrap();
        let error = inspect(&path).unwrap_err();
        assert!(matches!(error, ConvertError::Safetensors { .. }), "{len}: {error}");
    }
    let error = inspect(folder.path().join("nothing")).unwrap_err();
    assert!(matches!(error, ConvertError::Read { .. }), "{error}");
}

/// Writes a GGUF file of one-axis tensors.
fn write_gguf(path: &Path, metadata: &[(&str, Value)], tensors: &[(&str, TensorType, &[u8])]) {
    let mut header = Header::new();
    for (key, value) in metadata {
        header.set(key, value.clone()).unwrap();
    }
    for (name, kind, data) in tensors {
        let (weights, bytes) = kind.block();
        header.tensor(name, *kind, &[data.len() / bytes * weights]).unwrap();
    }
    let mut writer = header.write_to(Vec::new()).unwrap();
    for (name, _, data) in tensors {
        writer.tensor(name, data).unwrap();
    }
    fs::write(path, writer.finish().unwrap()).unwrap();
}

#[test]
fn gguf_files() {
    // The golden file holds some of the tensors that its metadata imply.
    let found = look(&repository("crates/bitnet-format/tests/golden/llama_tied_TQ2_0.gguf"));
    assert_eq!(found.container, Container::Gguf);
    let architecture = found.architecture.clone().unwrap();
    assert_eq!((architecture.name.as_str(), architecture.tied_head), ("llama", Some(true)));
    assert_eq!(
        architecture.head_dim.zip(architecture.n_heads).map(|(dim, heads)| dim * heads),
        architecture.d_model
    );
    assert!(total(&found, Role::Projection, Form::Ternary).0 > 0);
    assert!(messages(&found, ProblemKind::MissingTensor).contains("`token_embd.weight`"));

    // One with all of them.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let tokens: &[&str] = &["a"];
    let metadata = [
        ("general.architecture", Value::from("bitnet")),
        ("general.file_type", Value::from(37u32)),
        ("bitnet.block_count", Value::from(1u32)),
        ("tokenizer.ggml.model", Value::from("gpt2")),
        ("tokenizer.ggml.pre", Value::from("smollm")),
        ("tokenizer.ggml.tokens", Value::from(tokens)),
    ];
    let (packed, one) = ([0; 66], 1f32.to_le_bytes());
    let projections = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let projections = projections.map(|stem| format!("blk.0.{stem}.weight"));
    let norms = ["attn_norm", "ffn_norm", "attn_sub_norm", "ffn_sub_norm"];
    let norms = norms.map(|stem| format!("blk.0.{stem}.weight"));
    let floats = ["token_embd.weight", "output_norm.weight", "blk.0.attn_q.scale"];
    let tensors: Vec<_> = projections
        .iter()
        .map(|name| (name.as_str(), TensorType::Tq2_0, &packed[..]))
        .chain(norms.iter().map(String::as_str).chain(floats).map(|name| (name, TensorType::F32, &one[..])))
        .collect();
    write_gguf(&path, &metadata, &tensors);
    let found = look(&path);
    assert_eq!((&found.problems, found.quantization.as_deref()), (&vec![], Some("file type 37")));
    assert_eq!(total(&found, Role::Projection, Form::Ternary), (7, 7 * 66));
    assert_eq!(total(&found, Role::SubNorm, Form::Float).0, 2);
    assert_eq!(total(&found, Role::Scale, Form::Float).0, 1);
    assert_eq!(look(folder.path()).path, path, "a folder with nothing but one GGUF file is that file");

    let bytes = fs::read(&path).unwrap();
    for len in (4..bytes.len()).step_by(11) {
        fs::write(&path, &bytes[..len]).unwrap();
        let error = inspect(&path).unwrap_err();
        assert!(matches!(error, ConvertError::Gguf { .. }), "{len}: {error}");
    }
}

#[test]
fn gguf_files_that_lack_something() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let file = |metadata: &[(&str, Value)], tensors: &[(&str, TensorType, &[u8])]| {
        write_gguf(&path, metadata, tensors);
        look(&path)
    };
    let found = file(&[], &[]);
    assert_eq!(kinds(&found), [ProblemKind::Config, ProblemKind::Tokenizer]);
    let found = file(&[("general.architecture", "llama".into())], &[]);
    assert_eq!(kinds(&found), [ProblemKind::Config, ProblemKind::Tokenizer]);

    let tokens: &[&str] = &["a", "b"];
    let metadata = [
        ("general.architecture", Value::from("bitnet")),
        ("bitnet.block_count", Value::from(1u32)),
        ("bitnet.embedding_length", Value::from(1u32)),
        ("bitnet.attention.head_count", Value::from(0u32)),
        ("tokenizer.ggml.model", Value::from("gpt2")),
        ("tokenizer.ggml.tokens", Value::from(tokens)),
    ];
    let (one, zero) = (1f32.to_le_bytes(), 0f32.to_le_bytes());
    let tensors = [
        ("token_embd.weight", TensorType::F32, &one[..]),
        ("output.weight", TensorType::F32, &one[..]),
        ("blk.0.attn_q.scale", TensorType::F32, &zero[..]),
        ("blk.0.attn_k.scale", TensorType::F32, &one[..]),
        ("blk.0.attn_v.scale", TensorType::F16, &[0, 0]),
    ];
    let found = file(&metadata, &tensors);
    let missing = messages(&found, ProblemKind::MissingTensor);
    assert_eq!(missing.lines().count(), 1 + 7 + 2 + 2, "{missing}");
    assert!(missing.contains("`output_norm.weight`") && missing.contains("`blk.0.ffn_sub_norm.weight`"));
    let scales = messages(&found, ProblemKind::Scale);
    assert!(
        scales.contains("`blk.0.attn_q.scale` holds 0") && scales.contains("`blk.0.attn_v.scale`"),
        "{scales}"
    );
    assert!(!scales.contains("attn_k"));
    assert!(messages(&found, ProblemKind::UnexpectedTensor).contains("`output.weight`"));
    let tokenizer = messages(&found, ProblemKind::Tokenizer);
    assert!(tokenizer.contains("tokenizer.ggml.pre") && tokenizer.contains("2 tokens, the embedding 1 rows"));

    let deep = [("general.architecture", Value::from("llama")), ("llama.block_count", Value::from(u64::MAX))];
    assert_eq!(
        kinds(&file(&deep, &tensors)),
        [ProblemKind::MissingTensor, ProblemKind::Scale, ProblemKind::Scale, ProblemKind::Tokenizer]
    );
}

/// Whatever is in a file: a message, or problems, and never a panic.
#[test]
fn damaged_files_are_told_of() {
    let packed = packed("autobitlinear", HfScale::Multiply);
    let gguf = packed.path().join("model.gguf");
    fs::copy(repository("crates/bitnet-format/tests/golden/llama_tied_TQ2_0.gguf"), &gguf).unwrap();
    let mut random = 1u32;
    let mut next = |below: usize| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) as usize % below
    };
    let mut n_looked_at = 0;
    // Headers and configs; what follows them is not read.
    for (name, header, looked_at) in
        [("model.safetensors", 6000, ""), ("model.gguf", 3000, "model.gguf"), ("config.json", 800, "")]
    {
        let path = packed.path().join(name);
        let whole = fs::read(&path).unwrap();
        for _ in 0..400 {
            let mut damaged = whole.clone();
            for _ in 0..=next(3) {
                let at = next(header.min(whole.len()));
                damaged[at] = match next(3) {
                    0 => b'0' + next(10) as u8,
                    1 => 0xff,
                    _ => damaged[at].wrapping_add(1),
                };
            }
            fs::write(&path, damaged).unwrap();
            if let Ok(found) = inspect(packed.path().join(looked_at)) {
                serde_json::to_string(&found).unwrap();
                n_looked_at += 1;
            }
        }
        fs::write(&path, whole).unwrap();
    }
    assert!(n_looked_at > 100, "{n_looked_at} of 1200 could be looked at");
}
