//! Files and tensors that transformers and the gguf Python package made, see make_goldens.py.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::PathBuf;

use bitnet_format::gguf::{Gguf, Header, TensorType, Value};
use bitnet_format::{Granularity, HfScale, ScaleHome, TernaryMatrix, WeightScale, hf, tq1_0, tq2_0};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

fn golden(name: &str) -> Vec<u8> {
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap()
}

fn expected() -> Json {
    serde_json::from_slice(&golden("expected.json")).unwrap()
}

fn sha256(bytes: impl IntoIterator<Item = u8>) -> String {
    Sha256::digest(bytes.into_iter().collect::<Vec<_>>()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256_of_codes(matrix: &TernaryMatrix) -> String {
    sha256(matrix.codes().iter().map(|&code| code as u8))
}

fn shape(case: &Json) -> [usize; 2] {
    [0, 1].map(|axis| case["shape"][axis].as_u64().unwrap() as usize)
}

/// Everything in the file, written again.
fn rewritten(file: &Gguf) -> Vec<u8> {
    let mut header = Header::new();
    for (key, value) in file.metadata() {
        header.set(key, value).unwrap();
    }
    for tensor in file.tensors() {
        header.tensor(tensor.name, tensor.kind, &tensor.shape).unwrap();
    }
    let mut writer = header.write_to(Vec::new()).unwrap();
    for tensor in file.tensors() {
        writer.tensor(tensor.name, tensor.data).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn models_have_their_parents_codes() {
    let cases = expected();
    let cases = cases["gguf"].as_array().unwrap();
    assert_eq!(cases.len(), 12);
    for case in cases {
        let bytes = golden(case["file"].as_str().unwrap());
        let file = Gguf::read(&bytes).unwrap();
        let tensor = file.tensor(case["tensor"].as_str().unwrap()).unwrap();
        assert_eq!(
            (&tensor.shape[..], sha256(tensor.data.to_vec())),
            (&shape(case)[..], case["bytes"].as_str().unwrap().into())
        );

        let matrix = match tensor.kind {
            TensorType::Tq1_0 => tq1_0::unpack(tensor.data, shape(case)),
            TensorType::Tq2_0 => tq2_0::unpack(tensor.data, shape(case)),
            other => panic!("{other}"),
        };
        let matrix = matrix.unwrap().regroup(Granularity::Tensor).unwrap();
        assert_eq!(sha256_of_codes(&matrix), case["codes"].as_str().unwrap(), "{case}");
        assert_eq!(matrix.scales()[0].get(), case["scale"].as_f64().unwrap() as f32, "{case}");

        let pack = if tensor.kind == TensorType::Tq1_0 { tq1_0::pack } else { tq2_0::pack };
        assert!(pack(&matrix, ScaleHome::Block).unwrap() == tensor.data, "{case}");
    }
}

#[test]
fn files_are_rewritten_byte_by_byte() {
    for (name, file_type) in [
        ("llama_tied_TQ1_0", tq1_0::FILE_TYPE),
        ("llama_tied_TQ2_0", tq2_0::FILE_TYPE),
        ("bitnet_silu_TQ1_0", tq1_0::FILE_TYPE),
        ("bitnet_silu_TQ2_0", tq2_0::FILE_TYPE),
    ] {
        let bytes = golden(&format!("{name}.gguf"));
        let file = Gguf::read(&bytes).unwrap();
        assert_eq!((file.version(), file.alignment()), (3, 32));
        assert_eq!(file.get("general.file_type"), Some(Value::U32(file_type)));
        assert_eq!(file.tensors().count(), 4);
        assert_eq!(file.tensor("output_norm.weight").unwrap().shape, [256]);
        assert!(rewritten(&file) == bytes, "{name}");
    }
    let bytes = golden("all_types.gguf");
    assert!(rewritten(&Gguf::read(&bytes).unwrap()) == bytes);
}

#[test]
fn every_metadata_type_is_read() {
    let bytes = golden("all_types.gguf");
    let file = Gguf::read(&bytes).unwrap();
    assert_eq!(file.alignment(), 64);
    for (key, value) in [
        ("general.architecture", "test".into()),
        ("general.alignment", 64u32.into()),
        ("u8", 200u8.into()),
        ("i8", (-100i8).into()),
        ("u16", 60_000u16.into()),
        ("i16", (-30_000i16).into()),
        ("u32", 4_000_000_000u32.into()),
        ("i32", (-2_000_000_000i32).into()),
        ("f32", 0.1f32.into()),
        ("u64", ((1u64 << 63) + 1).into()),
        ("i64", (-(1i64 << 62)).into()),
        ("f64", 0.1f64.into()),
        ("yes", true.into()),
        ("no", false.into()),
        ("string", "grüße\n".into()),
        ("empty", "".into()),
        ("strings", (&["a", "", "ü"][..]).into()),
        ("i32s", (&[1i32, -2, 3][..]).into()),
        ("f32s", (&[0.5f32, -0.25][..]).into()),
        ("bools", (&[true, false][..]).into()),
        ("bytes", (&[0u8, 255][..]).into()),
    ] {
        assert_eq!(file.get(key), Some::<Value>(value), "{key}");
    }
    let nested = file.get("nested").unwrap();
    let nested: Vec<_> = nested.as_array().unwrap().iter().collect();
    assert_eq!(nested, [Value::from(&[1i32, 2][..]), Value::from(&[3i32][..])]);
    assert_eq!(file.metadata().count(), 22);
    assert_eq!(file.get("general"), None);
}

#[test]
fn every_tensor_type_is_sliced() {
    let bytes = golden("all_types.gguf");
    let file = Gguf::read(&bytes).unwrap();
    let found: Vec<_> = file.tensors().map(|tensor| (tensor.kind, tensor.shape)).collect();
    let expected_tensors = [
        (TensorType::Tq1_0, vec![2, 512]),
        (TensorType::Tq2_0, vec![2, 512]),
        (TensorType::Q8_0, vec![2, 512]),
        (TensorType::Q4_0, vec![2, 512]),
        (TensorType::F32, vec![2, 3, 4]),
        (TensorType::F16, vec![1]),
        (TensorType::I8, vec![5]),
        (TensorType::Bf16, vec![1, 2]),
    ];
    assert_eq!(found, expected_tensors);

    let floats: Vec<u8> = (0..24u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    assert_eq!(file.tensor("F32").unwrap().data, floats);
    assert_eq!(file.tensor("F16").unwrap().data, [0x00, 0x38]);
    assert_eq!(file.tensor("BF16").unwrap().data, [0x80, 0x3f, 0x80, 0x3f]);
    assert_eq!(file.tensor("F"), None);

    // The last block is all zero: the package wrote d = 0 there, and any scale fits.
    for (name, unpack) in [("TQ1_0", tq1_0::unpack as fn(&_, _) -> _), ("TQ2_0", tq2_0::unpack)] {
        let blocks: TernaryMatrix = unpack(file.tensor(name).unwrap().data, [2, 512]).unwrap();
        assert_eq!(blocks.scales()[3], WeightScale::ONE);
        let matrix = blocks.regroup(Granularity::Tensor).unwrap();
        assert_eq!(matrix.scales(), [WeightScale::new(0.375).unwrap()]);
        assert_eq!(sha256_of_codes(&matrix), expected()["all_types_codes"].as_str().unwrap());
    }
}

#[test]
fn checkpoints_have_their_parents_codes() {
    let packed = golden("hf.bin");
    let cases = expected();
    let cases = cases["hf"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let number = |key: &str| case[key].as_f64().unwrap() as f32;
        let [at, len] = ["at", "len"].map(|key| case[key].as_u64().unwrap() as usize);
        let direction = match case["direction"].as_str().unwrap() {
            "divide" => HfScale::Divide,
            _ => HfScale::Multiply,
        };
        let stored = number("weight_scale");
        let scale = direction.load(stored).unwrap();
        // f32 checkpoints to a unit in the last place, bf16 ones to half a unit in bf16's.
        let tolerance =
            if case["checkpoint"].as_str().unwrap().ends_with("bf16") { 2f32.powi(-8) } else { 1.2e-7 };
        assert!((scale.get() / number("scale") - 1.0).abs() <= tolerance, "{case}");
        assert_eq!(HfScale::likely(stored), direction);

        let bytes = &packed[at..][..len];
        let matrix = hf::unpack(bytes, shape(case), scale).unwrap();
        assert_eq!(sha256_of_codes(&matrix), case["codes"].as_str().unwrap(), "{case}");
        assert_eq!(hf::pack(&matrix).unwrap(), bytes, "{case}");
    }
}

#[test]
fn tensor_types_are_the_packages() {
    let expected = expected();
    let table = expected["tensor_types"].as_object().unwrap();
    for (name, numbers) in table {
        let [id, block, bytes] = [0, 1, 2].map(|i| numbers[i].as_u64().unwrap());
        let kind = TensorType::from_id(id as u32).unwrap();
        let (our_block, our_bytes) = kind.block();
        assert_eq!((kind.name(), our_block as u64), (&name[..], block));
        // ggml stores Q8_1's two scales as f16; the package still counts f32.
        assert!(our_bytes as u64 == bytes || kind == TensorType::Q8_1, "{name}");
    }
    let missing: Vec<_> =
        TensorType::ALL.iter().map(|kind| kind.name()).filter(|&name| !table.contains_key(name)).collect();
    assert_eq!(missing, ["I2_S", "Q2_0"], "the package does not know bitnet.cpp's type and the newest one");
}
