//! The GGUF reader and writer on any contents, and the reader on malformed files.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs::File;
use std::io::{BufWriter, Read};

use bitnet_format::FormatError;
use bitnet_format::gguf::{Array, Gguf, Header, MAX_ARRAY_DEPTH, TensorType, Value, ValueType};
use proptest::prelude::*;

/// A small file as bytes, every part of which a test can change.
#[derive(Clone)]
struct Raw {
    magic: [u8; 4],
    version: u32,
    counts: [Option<u64>; 2],
    metadata: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    alignment: usize,
    data: usize,
}

fn raw() -> Raw {
    Raw {
        magic: *b"GGUF",
        version: 3,
        counts: [None; 2],
        metadata: vec![metadata("a", ValueType::U8, &[7])],
        tensors: vec![tensor("t", &[4], 0, 0), tensor("u", &[8], 24, 32)],
        alignment: 32,
        data: 64,
    }
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

fn metadata(key: &str, kind: ValueType, value: &[u8]) -> Vec<u8> {
    [&string(key.as_bytes())[..], &(kind as u32).to_le_bytes(), value].concat()
}

fn array(item: u32, len: u64, items: &[u8]) -> Vec<u8> {
    [&item.to_le_bytes()[..], &len.to_le_bytes(), items].concat()
}

fn tensor(name: &str, axes: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let axes: Vec<u8> = axes.iter().flat_map(|axis| axis.to_le_bytes()).collect();
    let count = (axes.len() / 8) as u32;
    [&string(name.as_bytes())[..], &count.to_le_bytes(), &axes, &kind.to_le_bytes(), &offset.to_le_bytes()]
        .concat()
}

impl Raw {
    fn bytes(&self) -> Vec<u8> {
        let [tensors, entries] = self.counts;
        let tensors = tensors.unwrap_or(self.tensors.len() as u64);
        let entries = entries.unwrap_or(self.metadata.len() as u64);
        let mut bytes =
            [&self.magic[..], &self.version.to_le_bytes(), &tensors.to_le_bytes(), &entries.to_le_bytes()]
                .concat();
        bytes.extend(self.metadata.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(self.alignment) + self.data, 1);
        bytes
    }
}

/// The error that the file gives after `change`.
fn error(change: impl FnOnce(&mut Raw)) -> FormatError {
    let mut raw = raw();
    change(&mut raw);
    Gguf::read(&raw.bytes()).expect_err("the file is malformed")
}

/// Asserts that a file is refused with an error of this form.
macro_rules! refused {
    ($change:expr, $pattern:pat $(if $guard:expr)?) => {
        let found = error($change);
        assert!(matches!(&found, $pattern $(if $guard)?), "{found:?}");
    };
}

#[test]
fn the_unchanged_file_is_read() {
    let bytes = raw().bytes();
    let file = Gguf::read(&bytes).unwrap();
    assert_eq!(file.get("a"), Some(Value::U8(7)));
    assert_eq!(file.tensor("t").unwrap().data, [1; 16]);
    assert_eq!(file.tensor("u").unwrap().shape, [8]);
    assert_eq!(Gguf::read(&Raw { version: 2, ..raw() }.bytes()).unwrap().version(), 2);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let golden = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/all_types.gguf")).unwrap();
    for bytes in [raw().bytes(), golden] {
        assert!(Gguf::read(&bytes).is_ok());
        for len in 0..bytes.len() {
            let error = Gguf::read(&bytes[..len]).expect_err("the file is cut");
            let named = matches!(error, FormatError::Truncated { .. } | FormatError::OutOfRange { .. });
            assert!(named, "{len}: {error}");
        }
    }
}

#[test]
fn a_changed_byte_never_panics() {
    let golden = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/all_types.gguf")).unwrap();
    let mut refused = 0;
    for at in 0..golden.len() {
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = golden.clone();
            bytes[at] = byte;
            match Gguf::read(&bytes) {
                // A changed count may leave a shorter, valid file.
                Ok(file) if at >= 24 => {
                    assert_eq!((file.metadata().count(), file.tensors().count()), (22, 8))
                }
                Ok(_) => {}
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn other_files_are_refused() {
    refused!(|raw| raw.magic = *b"GGML", FormatError::Magic { found: [b'G', b'G', b'M', b'L'] });
    refused!(|raw| raw.version = 1, FormatError::Version { found: 1 });
    refused!(|raw| raw.version = 4, FormatError::Version { found: 4 });
    refused!(|raw| raw.version = 3u32.swap_bytes(), FormatError::Version { found: 0x0300_0000 });
}

#[test]
fn huge_counts_are_refused() {
    for huge in [3, 1000, u64::from(u32::MAX), u64::MAX / 13, u64::MAX] {
        refused!(
            |raw| raw.counts[1] = Some(huge),
            FormatError::Truncated { .. } | FormatError::UnknownValueType { .. } | FormatError::Utf8 { .. }
        );
        refused!(|raw| raw.counts[0] = Some(huge), FormatError::Truncated { .. } | FormatError::Axes { .. });
        let value = |item: ValueType| array(item as u32, huge, &[0; 2]);
        for item in [ValueType::U8, ValueType::F64, ValueType::String, ValueType::Array, ValueType::Bool] {
            refused!(
                |raw| {
                    *raw = Raw { tensors: vec![], data: 0, alignment: 1, ..raw.clone() };
                    raw.metadata.push(metadata("b", ValueType::Array, &value(item)));
                },
                FormatError::Truncated { .. }
            );
        }
        refused!(
            |raw| raw.metadata[0] = [&(huge + 300 * u64::from(huge == 3)).to_le_bytes()[..], b"a"].concat(),
            FormatError::Truncated { what: "metadata key", .. }
        );
    }
    refused!(
        |raw| raw.counts[1] = Some(u64::MAX),
        FormatError::Truncated { what: "metadata", at: 24, needed: u64::MAX, .. }
    );
}

#[test]
fn malformed_metadata_are_refused() {
    let value = |kind, bytes: &[u8]| {
        let entry = metadata("b", kind, bytes);
        move |raw: &mut Raw| raw.metadata.push(entry)
    };
    refused!(
        |raw| raw.metadata.push(metadata("a", ValueType::U8, &[8])),
        FormatError::DuplicateKey { key } if key == "a"
    );
    refused!(
        |raw| raw.metadata.push([&string(b"b")[..], &13u32.to_le_bytes(), &[0; 8]].concat()),
        FormatError::UnknownValueType { found: 13, .. }
    );
    refused!(
        value(ValueType::Array, &array(13, 1, &[0; 8])),
        FormatError::UnknownValueType { found: 13, .. }
    );
    refused!(value(ValueType::Bool, &[2]), FormatError::Bool { found: 2, .. });
    refused!(
        value(ValueType::Array, &array(ValueType::Bool as u32, 3, &[0, 1, 255])),
        FormatError::Bool { found: 255, .. }
    );
    refused!(value(ValueType::String, &string(b"\xff")), FormatError::Utf8 { what: "metadata string", .. });
    refused!(
        value(ValueType::Array, &array(ValueType::String as u32, 1, &string(b"a\xc0"))),
        FormatError::Utf8 { .. }
    );
    refused!(
        |raw| raw.metadata[0] = [&string(b"\xff")[..], &[0; 5]].concat(),
        FormatError::Utf8 { what: "metadata key", .. }
    );

    let nested =
        |depth| (1..depth).fold(array(0, 1, &[1]), |inner, _| array(ValueType::Array as u32, 1, &inner));
    refused!(
        value(ValueType::Array, &nested(MAX_ARRAY_DEPTH + 1)),
        FormatError::Depth { max: MAX_ARRAY_DEPTH, .. }
    );
    refused!(value(ValueType::Array, &nested(5_000)), FormatError::Depth { .. });
    let mut deep = raw();
    value(ValueType::Array, &nested(MAX_ARRAY_DEPTH))(&mut deep);
    assert!(Gguf::read(&deep.bytes()).is_ok());

    for bad in [0u32, 1, 4, 33, 96, u32::MAX] {
        let entry = metadata("general.alignment", ValueType::U32, &bad.to_le_bytes());
        refused!(
            |raw| raw.metadata.push(entry),
            FormatError::Alignment { found } if *found == format!("U32({bad})")
        );
    }
    let wrong_type = metadata("general.alignment", ValueType::U64, &32u64.to_le_bytes());
    refused!(|raw| raw.metadata.push(wrong_type), FormatError::Alignment { .. });
}

#[test]
fn malformed_tensors_are_refused() {
    let second = |entry: Vec<u8>| move |raw: &mut Raw| raw.tensors[1] = entry;
    refused!(second(tensor("t", &[8], 24, 32)), FormatError::DuplicateTensor { name } if name == "t");
    refused!(second(tensor("u", &[1; 5], 24, 32)), FormatError::Axes { name, found: 5 } if name == "u");
    refused!(
        second(tensor("u", &[8], 31, 32)),
        FormatError::UnknownTensorType { name, found: 31 } if name == "u"
    );
    refused!(
        second(tensor("u", &[48], 8, 32)),
        FormatError::TensorShape { name, block: 32, .. } if name == "u"
    );
    for axes in [[1 << 32, 1 << 32], [u64::MAX, 2], [u64::MAX / 2, 2]] {
        refused!(
            second(tensor("u", &axes, 28, 32)),
            FormatError::TensorShape { shape, .. } if *shape == [axes[1], axes[0]]
        );
    }
    refused!(
        |raw| raw.tensors[0] = [&string(b"\xff")[..], &[0; 16]].concat(),
        FormatError::Utf8 { what: "tensor name", .. }
    );
}

#[test]
fn data_out_of_place_are_refused() {
    let second = |axes: u64, offset| move |raw: &mut Raw| raw.tensors[1] = tensor("u", &[axes], 24, offset);
    refused!(second(8, 33), FormatError::Unaligned { name, found: 33, alignment: 32 } if name == "u");
    for (len, offset) in
        [(33, 32), (8, 64), (8, 1 << 40), (8, u64::MAX - 31), (u64::MAX / 2, 32), (u64::MAX, 32)]
    {
        refused!(
            second(len, offset),
            FormatError::OutOfRange { name, .. } | FormatError::TensorShape { name, .. } if name == "u"
        );
    }
    refused!(
        second(8, 0),
        FormatError::Overlap { first, second, offset: 0 } if first == "t" && second == "u"
    );
    refused!(
        |raw| {
            raw.tensors[0] = tensor("t", &[33], 24, 0);
            raw.data = 64;
        },
        FormatError::Overlap { first, second, offset: 32 } if first == "t" && second == "u"
    );
    // In any order of the entries.
    refused!(
        |raw| raw.tensors = vec![tensor("late", &[32], 24, 32), tensor("early", &[33], 24, 0)],
        FormatError::Overlap { first, second, .. } if first == "early" && second == "late"
    );
    refused!(|raw| raw.data = 32, FormatError::OutOfRange { name, .. } if name == "u");
    refused!(
        |raw| *raw = Raw { alignment: 1, data: 0, ..raw.clone() },
        FormatError::Truncated { what: "padding", .. } | FormatError::OutOfRange { .. }
    );

    // Swapped, empty and unpadded-adjacent tensors are fine.
    let fine = Raw {
        tensors: vec![tensor("c", &[32], 24, 32), tensor("a", &[32], 24, 0), tensor("b", &[0], 24, 32)],
        ..raw()
    };
    let bytes = fine.bytes();
    let file = Gguf::read(&bytes).unwrap();
    let names: Vec<_> = file.tensors().map(|tensor| tensor.name).collect();
    assert_eq!(names, ["c", "a", "b"]);
    assert!(file.tensor("b").unwrap().data.is_empty());
}

#[test]
fn a_file_on_disk_can_be_mapped_or_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut header = Header::new();
    header.set("general.name", "tiny").unwrap();
    header.tensor("w", TensorType::I16, &[3, 2]).unwrap();
    let mut writer = header.write_to(BufWriter::new(File::create(&path).unwrap())).unwrap();
    writer.tensor("w", &[5; 12]).unwrap();
    writer.finish().unwrap();

    let mut bytes = Vec::new();
    File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
    let file = Gguf::read(&bytes).unwrap();
    let tensor = file.tensor("w").unwrap();
    assert_eq!((tensor.kind, tensor.shape, tensor.data), (TensorType::I16, vec![3, 2], &[5u8; 12][..]));
    // On disk, the last axis comes first.
    let name = bytes.windows(9).position(|window| window == b"\x01\0\0\0\0\0\0\0w").unwrap();
    assert_eq!(
        bytes[name + 9..][..20],
        [&2u32.to_le_bytes()[..], &2u64.to_le_bytes(), &3u64.to_le_bytes()].concat()
    );
}

/// A plain value or an array of any type, three levels deep.
fn any_value() -> impl Strategy<Value = Value<'static>> {
    let scalar = prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        (-1e9f32..1e9).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        prop::sample::select(vec!["", "a", "grüße", "\0\n"]).prop_map(Value::String),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e9f64..1e9).prop_map(Value::F64),
    ];
    scalar.prop_recursive(3, 16, 4, |inner| {
        prop::collection::vec(inner, 0..4).prop_map(|values| {
            let item = values.first().map_or(ValueType::U8, Value::value_type);
            let same = values.into_iter().filter(|value| value.value_type() == item);
            Array::new(item, same).unwrap().into()
        })
    })
}

fn any_tensor() -> impl Strategy<Value = (TensorType, Vec<usize>)> {
    let shape = prop::collection::vec(0usize..4, 0..=4);
    (prop::sample::select(TensorType::ALL.to_vec()), shape).prop_map(|(kind, mut shape)| {
        match shape.last_mut() {
            Some(last) => *last *= kind.block().0,
            None => shape.push(kind.block().0),
        }
        (kind, shape)
    })
}

proptest! {
    #[test]
    fn reading_inverts_writing(
        values in prop::collection::vec(any_value(), 0..6),
        tensors in prop::collection::vec(any_tensor(), 0..5),
        alignment in prop::option::of(3u32..9),
    ) {
        let mut header = Header::new();
        for (i, value) in values.iter().enumerate() {
            header.set(&format!("key.{i}"), value.clone()).unwrap();
        }
        if let Some(exponent) = alignment {
            header.set("general.alignment", 1u32 << exponent).unwrap();
        }
        for (i, (kind, shape)) in tensors.iter().enumerate() {
            header.tensor(&format!("tensor.{i}"), *kind, shape).unwrap();
        }
        let mut writer = header.write_to(Vec::new()).unwrap();
        let data = |i: usize| vec![i as u8 + 1; tensors[i].0.data_len(&tensors[i].1).unwrap()];
        for i in 0..tensors.len() {
            writer.tensor(&format!("tensor.{i}"), &data(i)).unwrap();
        }
        let bytes = writer.finish().unwrap();

        let file = Gguf::read(&bytes).unwrap();
        prop_assert_eq!(file.alignment(), alignment.map_or(32, |exponent| 1 << exponent));
        for (i, value) in values.iter().enumerate() {
            let key = format!("key.{i}");
            prop_assert_eq!(file.get(&key), Some(value.clone()));
        }
        prop_assert_eq!(file.metadata().count(), values.len() + usize::from(alignment.is_some()));
        prop_assert_eq!(file.tensors().count(), tensors.len());
        for (i, (kind, shape)) in tensors.iter().enumerate() {
            let tensor = file.tensor(&format!("tensor.{i}")).unwrap();
            prop_assert_eq!((tensor.kind, &tensor.shape), (*kind, shape));
            prop_assert_eq!(tensor.data, data(i));
            let at = tensor.data.as_ptr() as usize - bytes.as_ptr() as usize;
            prop_assert!(tensor.data.is_empty() || at.is_multiple_of(file.alignment()));
        }
    }
}
