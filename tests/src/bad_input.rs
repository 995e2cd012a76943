//! What users get wrong: each a typed error that names the culprit, and nothing written.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bitnet_arch::convert::{
    Checkpoint, ConvertError, LoadOptions, Policy, TensorProblem, WeightType, check_tokenizer, convert, load,
    save, stage1,
};
use bitnet_arch::model::{CausalLmConfig, GenerateOptions, ModelError};
use bitnet_arch::quant::{DeviceError, device as named_device};
use bitnet_arch::text::{TextError, TokenWindows, Tokenizer};
use bitnet_arch::train::{TrainError, next_token_loss, perplexity};
use burn::tensor::Device;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::checkpoints::{edit_config, golden, read_json, scratch};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The types that weights are read from.
const FLOATS: &str = "F32, F16 or BF16";

/// The error of loading a folder; converting it gives the same one and writes nothing.
fn refused(folder: &Path, device: &Device, options: &LoadOptions) -> ConvertError {
    let Err(error) = load(folder, device, options) else {
        panic!("{} loads", folder.display());
    };
    let parent = tempfile::tempdir().unwrap();
    let again = stage1(folder, parent.path().join("out"), &Policy::default(), device, options).unwrap_err();
    assert_eq!(again.to_string(), error.to_string());
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0, "{error}: nothing is written");
    error
}

fn refused_leniently(folder: &Path, device: &Device) -> ConvertError {
    refused(folder, device, &LoadOptions::default())
}

/// The problems of a folder whose tensors are not those of its config.
fn problems(folder: &Path, device: &Device, strict: bool) -> Vec<TensorProblem> {
    match refused(folder, device, &LoadOptions { strict }) {
        ConvertError::Tensors { problems } => problems,
        error => panic!("{error}"),
    }
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Rewrites the tensors of a folder's one file.
fn edit_tensors(folder: &Path, edit: impl FnOnce(&mut Tensors)) {
    let path = folder.join(WEIGHTS);
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Tensors = file
        .tensors()
        .into_iter()
        .map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect();
    edit(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// No file, a file cut short anywhere, and bytes that are no safetensors file.
pub fn weight_files_that_are_damaged(device: &Device) {
    let folder = scratch("llama_tied");
    let path = folder.path().join(WEIGHTS);
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;

    let names_the_file = |bytes: &[u8], what: &str| {
        fs::write(&path, bytes).unwrap();
        let error = refused_leniently(folder.path(), device);
        assert!(
            matches!(&error, ConvertError::Safetensors { path: found, .. } if *found == path),
            "{what}: {error}"
        );
    };
    for length in
        [0, 1, 7, 8, 9, header / 2, header - 1, header, header + 1, whole.len() / 2, whole.len() - 1]
    {
        names_the_file(&whole[..length], &format!("{length} bytes of {}", whole.len()));
    }
    let with_length = |length: u64| [&length.to_le_bytes(), &whole[8..]].concat();
    names_the_file(&with_length(u64::MAX), "a header of 2⁶⁴ − 1 bytes");
    names_the_file(&with_length(whole.len() as u64), "a header longer than the file");
    names_the_file(&with_length(0), "a header of no bytes");
    names_the_file(&with_length(header as u64 - 8 - 5), "a header cut short");
    names_the_file(&[whole.as_slice(), &[0]].concat(), "one byte too many");
    let garbage: Vec<u8> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    names_the_file(&garbage, "garbage");
    names_the_file(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer");
    let header = br#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}"#;
    names_the_file(
        &[&(header.len() as u64).to_le_bytes()[..], header, &[0; 16]].concat(),
        "a shape that overflows",
    );

    fs::remove_file(&path).unwrap();
    let error = refused_leniently(folder.path(), device);
    assert!(matches!(&error, ConvertError::NoWeights { folder: found } if found == folder.path()), "{error}");
    let error = load(folder.path().join("absent"), device, &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, ConvertError::Read { .. }), "{error}");
}

/// An index that names an absent or damaged shard, and one that is no index.
pub fn indexes_that_are_damaged(device: &Device) {
    let folder = scratch("llama_sharded");
    let index = folder.path().join(INDEX);
    let sound = fs::read(&index).unwrap();
    let shard = "model-00003-of-00005.safetensors";
    let shard_bytes = fs::read(folder.path().join(shard)).unwrap();

    fs::remove_file(folder.path().join(shard)).unwrap();
    let error = refused_leniently(folder.path(), device);
    assert!(matches!(&error, ConvertError::AbsentShard { shard: found, .. } if found == shard), "{error}");
    fs::write(folder.path().join(shard), &shard_bytes[..shard_bytes.len() - 1]).unwrap();
    let error = refused_leniently(folder.path(), device);
    assert!(matches!(&error, ConvertError::Safetensors { path, .. } if path.ends_with(shard)), "{error}");
    fs::write(folder.path().join(shard), &shard_bytes).unwrap();

    let changed = |change: &dyn Fn(&mut Value)| {
        let mut json: Value = serde_json::from_slice(&sound).unwrap();
        change(&mut json);
        json.to_string().into_bytes()
    };
    let name = "model.norm.weight";
    let bad: [(&str, Vec<u8>); 7] = [
        ("garbage", b"\x00\xff no json".to_vec()),
        ("cut short", sound[..sound.len() / 2].to_vec()),
        ("a list", b"[]".to_vec()),
        ("no weight_map", b"{\"metadata\": {}}".to_vec()),
        ("a weight_map that is a list", changed(&|json| json["weight_map"] = json!([]))),
        ("a shard that is a number", changed(&|json| json["weight_map"][name] = json!(3))),
        (
            "a shard outside the folder",
            changed(&|json| json["weight_map"][name] = json!("../other.safetensors")),
        ),
    ];
    for (what, bytes) in bad {
        fs::write(&index, bytes).unwrap();
        let error = refused_leniently(folder.path(), device);
        let named = match &error {
            ConvertError::Json { path, .. } | ConvertError::Read { path, .. } => *path == index,
            _ => false,
        };
        assert!(named, "{what}: {error}");
    }

    // The shards decide what is there: an index that claims more is a missing tensor.
    fs::write(&index, changed(&|json| json["weight_map"]["model.extra"] = json!(shard))).unwrap();
    assert_eq!(
        load(folder.path(), device, &LoadOptions { strict: true }).unwrap().unexpected,
        Vec::<String>::new()
    );
}

/// Tensors that are missing, unexpected, of another shape or type: all of them are listed.
pub fn tensors_that_the_config_does_not_imply(device: &Device) {
    let missing =
        ["model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.up_proj.weight", "model.norm.weight"];
    let folder = scratch("llama_tied");
    edit_tensors(folder.path(), |tensors| {
        missing.iter().for_each(|name| drop(tensors.remove(*name).unwrap()))
    });
    let found = problems(folder.path(), device, false);
    assert_eq!(sorted(found), missing.map(|name| TensorProblem::Missing { name: name.into() }));

    let folder = scratch("llama_tied");
    edit_tensors(folder.path(), |tensors| {
        for name in ["model.layers.0.self_attn.q_proj.bias", "model.layers.7.extra"] {
            tensors.insert(name.into(), (Dtype::F32, vec![1], vec![0; 4]));
        }
    });
    let unexpected = ["model.layers.0.self_attn.q_proj.bias", "model.layers.7.extra"];
    let lenient = load(folder.path(), device, &LoadOptions::default()).unwrap();
    assert_eq!(lenient.unexpected, unexpected);
    let found = problems(folder.path(), device, true);
    assert_eq!(sorted(found), unexpected.map(|name| TensorProblem::Unexpected { name: name.into() }));

    let folder = scratch("llama_tied");
    edit_config(folder.path(), |config| drop(config.insert("intermediate_size".into(), json!(96))));
    let found = problems(folder.path(), device, false);
    assert_eq!(found.len(), 9, "three weights in each of three layers");
    assert!(found.contains(&TensorProblem::Shape {
        name: "model.layers.1.mlp.down_proj.weight".into(),
        found: vec![64, 160],
        expected: vec![64, 96],
    }));
    let folder = scratch("llama_tied");
    edit_tensors(folder.path(), |tensors| {
        tensors.get_mut("model.layers.0.self_attn.k_proj.weight").unwrap().1 = vec![64, 32]; // transposed
        tensors.get_mut("model.norm.weight").unwrap().1 = vec![1, 64];
    });
    assert_eq!(problems(folder.path(), device, false).len(), 2);

    let folder = scratch("llama_tied");
    edit_tensors(folder.path(), |tensors| {
        let (name, values) = ("model.layers.0.self_attn.k_proj.weight", 32 * 64);
        tensors.insert(name.into(), (Dtype::I8, vec![32, 64], vec![1; values]));
        tensors.insert("model.norm.weight".into(), (Dtype::F64, vec![64], vec![0; 64 * 8]));
    });
    let found = sorted(problems(folder.path(), device, false));
    assert_eq!(
        found,
        [
            TensorProblem::DType {
                name: "model.layers.0.self_attn.k_proj.weight".into(),
                found: "I8".into(),
                expected: FLOATS,
            },
            TensorProblem::DType { name: "model.norm.weight".into(), found: "F64".into(), expected: FLOATS },
        ]
    );

    // More layers than the files have, down to absurdly many: refused before anything is allocated for them.
    for n_layers in [4_u64, 60_000] {
        let folder = scratch("llama_tied");
        edit_config(folder.path(), |config| drop(config.insert("num_hidden_layers".into(), json!(n_layers))));
        let error = refused_leniently(folder.path(), device);
        assert!(error.to_string().contains("model.layers.3."), "{error}");
    }
}

/// Sizes far beyond the files are refused by their shapes, before anything is allocated for them.
pub fn sizes_that_no_memory_holds(device: &Device) {
    let folder = scratch("llama_tied");
    edit_config(folder.path(), |config| {
        config.insert("hidden_size".into(), json!(1 << 30));
        config.insert("intermediate_size".into(), json!(1 << 30));
    });
    let found = problems(folder.path(), device, false);
    assert!(found.iter().all(|problem| matches!(problem, TensorProblem::Shape { .. })), "{found:?}");
}

/// What `save` would not be able to load again is refused, and nothing is written.
pub fn checkpoints_that_would_not_load_again(device: &Device) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let refused = |checkpoint: &Checkpoint| {
        let error = save(checkpoint, &out).unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{error}");
        error
    };

    let mut checkpoint = golden("llama_tied", device);
    checkpoint.model.norm.gain = checkpoint.model.norm.gain.clone().map(|gain| gain * 1e6);
    let error = refused(&checkpoint.clone().with_type(WeightType::F16));
    assert!(matches!(&error, ConvertError::NotFinite { name, .. } if name == "model.norm.weight"), "{error}");
    checkpoint.model.norm.gain = checkpoint.model.norm.gain.clone().map(|gain| gain * f32::NAN);
    assert!(matches!(refused(&checkpoint), ConvertError::NotFinite { index: 0, .. }));

    let dense = golden("llama_tied", device);
    let (converted, _) = convert(dense.clone(), &Policy::default()).unwrap();
    let error = refused(&converted.with_model(dense.model));
    let ConvertError::Slot { name, found: "dense", expected: "BitNet" } = &error else {
        panic!("{error}");
    };
    assert_eq!(name, "model.layers.0.self_attn.q_proj");
}

/// A pattern with a slip in it matches nothing: silence would ternarize what it should protect.
pub fn exclude_patterns_that_match_nothing(device: &Device) {
    let policy = |pattern: &str| Policy { exclude: vec![pattern.into()], ..Policy::default() };
    let error = convert(golden("llama_tied", device), &policy("*.dwon_proj")).unwrap_err();
    assert!(matches!(&error, ConvertError::Pattern { pattern, .. } if pattern == "*.dwon_proj"), "{error}");
    convert(golden("llama_tied", device), &policy("lm_head")).unwrap();
}

fn sorted(mut problems: Vec<TensorProblem>) -> Vec<TensorProblem> {
    problems.sort_by_key(ToString::to_string);
    problems
}

/// A weight that is NaN or infinite, in each type that is read.
pub fn weights_that_are_not_finite(device: &Device) {
    let name = "model.layers.1.self_attn.o_proj.weight";
    let f32_bits = |value: f32| value.to_le_bytes().to_vec();
    let bf16_bits = |value: f32| value.to_le_bytes()[2..].to_vec();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (source, bytes) in [("llama_tied", f32_bits(value)), ("llama_bf16", bf16_bits(value))] {
            let folder = scratch(source);
            edit_tensors(folder.path(), |tensors| {
                let data = &mut tensors.get_mut(name).unwrap().2;
                data[5 * bytes.len()..6 * bytes.len()].copy_from_slice(&bytes);
            });
            let error = refused_leniently(folder.path(), device);
            let ConvertError::NotFinite { name: found, index: 5, value: read } = &error else {
                panic!("{source}: {error}");
            };
            assert_eq!(found, name);
            assert_eq!(read.to_bits() & 0xffff_0000, value.to_bits() & 0xffff_0000, "{source}");
        }
    }
}

/// Configs that are no config, name nothing known, or describe no possible model.
pub fn configs_that_describe_no_model(device: &Device) {
    let config_of = |edits: &[(&str, Value)]| {
        let folder = scratch("llama_tied");
        edit_config(folder.path(), |config| {
            for (key, value) in edits {
                if *key == "-" {
                    config.remove(value.as_str().unwrap());
                } else {
                    config.insert((*key).into(), value.clone());
                }
            }
        });
        let error = refused_leniently(folder.path(), device);
        (error.to_string(), error)
    };

    for (field, expected, edits) in [
        (
            "n_heads",
            "d_model = 64",
            vec![
                ("-", json!("head_dim")),
                ("num_attention_heads", json!(3)),
                ("num_key_value_heads", json!(1)),
            ],
        ),
        ("n_kv_heads", "n_heads = 4", vec![("num_key_value_heads", json!(3))]),
        ("n_kv_heads", "n_heads = 4", vec![("num_key_value_heads", json!(8))]),
        ("head_dim", "even", vec![("head_dim", json!(15))]),
        ("head_dim", "from 1 to", vec![("head_dim", json!(0))]),
        ("vocab_size", "from 1 to", vec![("vocab_size", json!(0))]),
        ("d_model", "from 1 to", vec![("hidden_size", json!(0))]),
        ("d_ff", "from 1 to", vec![("intermediate_size", json!(0))]),
        ("n_layers", "from 1 to", vec![("num_hidden_layers", json!(0))]),
        ("n_heads", "from 1 to", vec![("num_attention_heads", json!(0))]),
        ("n_kv_heads", "from 1 to", vec![("num_key_value_heads", json!(0))]),
        ("max_positions", "from 1 to", vec![("max_position_embeddings", json!(0))]),
        ("d_model", "from 1 to", vec![("hidden_size", json!(1_u64 << 40))]),
        ("n_layers", "from 1 to", vec![("num_hidden_layers", json!(1_u64 << 60))]),
        (
            "n_layers",
            "at most",
            vec![("model_type", json!("gemma2")), ("num_hidden_layers", json!(1_u64 << 20))],
        ),
        ("norm_eps", "positive", vec![("rms_norm_eps", json!(0.0))]),
        ("rope.theta", "above 1", vec![("rope_parameters", json!({"rope_theta": -1.0}))]),
        ("rope.factor", "from 1", vec![("rope_parameters", json!({"rope_type": "linear", "factor": 0.0}))]),
    ] {
        let (message, error) = config_of(&edits);
        let ConvertError::Model(ModelError::Config { field: found, .. }) = error else {
            panic!("{edits:?}: {message}");
        };
        assert_eq!(found, field, "{edits:?}: {message}");
        assert!(message.contains(expected), "{edits:?}: {message}");
    }

    for (culprit, edits) in [
        ("hidden_size", vec![("-", json!("hidden_size"))]),
        ("vocab_size", vec![("vocab_size", json!(-1))]),
        ("vocab_size", vec![("vocab_size", json!(1.5))]),
        ("num_attention_heads", vec![("num_attention_heads", json!("four"))]),
        ("model_type", vec![("-", json!("model_type"))]),
        ("model_type", vec![("model_type", json!(7))]),
        ("rope_parameters.factor", vec![("rope_parameters", json!({"rope_type": "linear"}))]),
        ("rope_parameters", vec![("rope_parameters", json!("linear"))]),
    ] {
        let (message, error) = config_of(&edits);
        assert!(matches!(error, ConvertError::Json { .. }), "{message}");
        assert!(message.contains(culprit), "{edits:?}: {message}");
    }

    let (message, error) = config_of(&[("model_type", json!("falcon"))]);
    assert!(matches!(error, ConvertError::UnknownModelType { found, .. } if found == "falcon"), "{message}");
    for (culprit, edits) in [
        ("longrope", vec![("rope_parameters", json!({"rope_type": "longrope"}))]),
        ("tanh", vec![("hidden_act", json!("tanh"))]),
        ("gptq", vec![("quantization_config", json!({"quant_method": "gptq"}))]),
    ] {
        let (message, error) = config_of(&edits);
        assert!(matches!(error, ConvertError::Unsupported { .. }), "{message}");
        assert!(message.contains(culprit), "{edits:?}: {message}");
    }

    let folder = scratch("llama_tied");
    let path = folder.path().join("config.json");
    for text in ["", "{", "[]", "3", "{\"model_type\": \"llama\"", "\u{0}"] {
        fs::write(&path, text).unwrap();
        let error = refused_leniently(folder.path(), device);
        assert!(
            matches!(&error, ConvertError::Json { path: found, .. } if *found == path),
            "{text:?}: {error}"
        );
    }
    fs::remove_file(&path).unwrap();
    let error = refused_leniently(folder.path(), device);
    assert!(matches!(&error, ConvertError::Read { path: found, .. } if *found == path), "{error}");
}

/// A tokenizer with more tokens than the embedding has rows.
pub fn a_tokenizer_larger_than_the_embedding(device: &Device) {
    let tokenizer = Tokenizer::from_file(crate::data("hf/llama_tied/tokenizer.json")).unwrap();
    assert_eq!(tokenizer.vocab_size(), 512);
    let model = |rows| CausalLmConfig::new(rows, 8, 8, 1, 2).init(device).unwrap();
    check_tokenizer(&tokenizer, &model(512)).unwrap();
    let error = check_tokenizer(&tokenizer, &model(511)).unwrap_err();
    assert!(matches!(error, ConvertError::TokenizerTooLarge { tokens: 512, rows: 511 }), "{error}");
}

/// Token sequences that the model cannot compute, in a batch, a loss and a generation.
pub fn tokens_that_do_not_suit_the_model(device: &Device) {
    let model = golden("llama_tied", device).model;
    let limit = model.config().position_limit();
    assert_eq!(limit, 256);
    let out_of_range = ModelError::TokenOutOfRange { token: 512, position: 2, vocab_size: 512 };
    let cases: [(Vec<Vec<u32>>, ModelError); 6] = [
        (vec![vec![0, 1, 2], vec![0, 1, 512]], out_of_range.clone()),
        (vec![vec![u32::MAX]], ModelError::TokenOutOfRange { token: u32::MAX, position: 0, vocab_size: 512 }),
        (vec![], ModelError::Batch { lengths: vec![] }),
        (vec![vec![], vec![]], ModelError::Batch { lengths: vec![0, 0] }),
        (vec![vec![1, 2], vec![1, 2, 3], vec![1]], ModelError::Batch { lengths: vec![2, 3, 1] }),
        (vec![vec![1; limit + 1]], ModelError::SequenceTooLong { found: limit + 1, limit }),
    ];
    for (sequences, expected) in cases {
        assert_eq!(model.batch(&sequences).unwrap_err(), expected);
        let error = next_token_loss(&model, &sequences).unwrap_err();
        assert!(matches!(&error, TrainError::Model(found) if *found == expected), "{error}");
    }
    assert_eq!(model.batch(&[vec![1; limit]]).unwrap().dims(), [1, limit]);

    let generate = |prompt: &[u32], n| model.generate(prompt, &GenerateOptions::greedy(n)).unwrap_err();
    assert_eq!(generate(&[0, 1, 512], 1), out_of_range);
    assert_eq!(generate(&[], 1), ModelError::Batch { lengths: vec![0] });
    assert_eq!(generate(&[1; 200], 57), ModelError::SequenceTooLong { found: 257, limit });
    assert_eq!(generate(&[1], usize::MAX), ModelError::SequenceTooLong { found: usize::MAX, limit });

    let error = next_token_loss(&model, &vec![vec![1_u32], vec![2]]).unwrap_err();
    assert!(matches!(&error, TrainError::Config { field: "window", .. }), "{error}");
    let windows = TokenWindows::new(vec![1, 2, 3, 600], 2).unwrap();
    let error = perplexity(&model, &windows, 2).unwrap_err();
    assert!(matches!(error, TrainError::Model(ModelError::TokenOutOfRange { token: 600, .. })), "{error}");
}

/// Text that fills no window, and none at all.
pub fn text_that_is_too_short(_device: &Device) {
    let tokenizer = Tokenizer::from_file(crate::data("hf/llama_tied/tokenizer.json")).unwrap();
    let tokens = tokenizer.encode("Hello, world!").unwrap();
    let n_tokens = tokens.len();
    let error = TokenWindows::new(tokens, 64).unwrap_err();
    assert!(matches!(error, TextError::TextTooShort { tokens, window: 64 } if tokens == n_tokens), "{error}");
    let error = TokenWindows::new(tokenizer.encode("").unwrap(), 64).unwrap_err();
    assert!(matches!(error, TextError::TextTooShort { tokens: 0, window: 64 }), "{error}");
}

/// A device that nobody knows, that is not compiled in, or that this machine lacks.
pub fn devices_that_cannot_be_had(_device: &Device) {
    for name in ["", "tpu", "Flex", "flex:", "flex:-1", "flex:x", "cuda:0:1", "cuda 0"] {
        let error = named_device(name).unwrap_err();
        assert_eq!(error, DeviceError::Unknown { name: name.into() });
        assert!(error.to_string().contains("expected flex, ndarray, wgpu, vulkan or cuda"), "{error}");
    }
    let compiled = [
        ("flex", cfg!(feature = "flex")),
        ("ndarray", cfg!(feature = "ndarray")),
        ("wgpu", cfg!(feature = "wgpu")),
        ("vulkan", cfg!(feature = "vulkan")),
        ("cuda", cfg!(feature = "cuda")),
    ];
    assert!(compiled.iter().any(|(_, compiled)| *compiled));
    for (feature, compiled) in compiled {
        let name = format!("{feature}:4096");
        let error = named_device(&name).unwrap_err();
        if compiled {
            let named = matches!(&error, DeviceError::NotPresent { name: found, feature: of, .. } if *found == name && *of == feature);
            assert!(named, "{error}");
        } else {
            assert_eq!(error, DeviceError::NotCompiled { name, feature });
        }
    }
}

/// A tensor that the model has no place for is not written, and the report names it.
pub fn unexpected_tensors_stand_in_the_report(device: &Device) {
    let folder = scratch("llama_tied");
    edit_tensors(folder.path(), |tensors| {
        tensors.insert("model.extra".into(), (Dtype::F32, vec![1], vec![0; 4]));
    });
    let parent = tempfile::tempdir().unwrap();
    let dst = parent.path().join("out");
    stage1(folder.path(), &dst, &Policy::default(), device, &LoadOptions::default()).unwrap();
    assert_eq!(read_json(&dst.join("report.json"))["unexpected"], json!(["model.extra"]));
    let written = fs::read(dst.join(WEIGHTS)).unwrap();
    let written = SafeTensors::deserialize(&written).unwrap();
    assert!(!written.names().contains(&"model.extra"));
}
