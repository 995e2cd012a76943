//! Writes a GGUF file with every metadata type and ternary tensors: `cargo run --example gguf_write --
//! out.gguf`.
//!
//! `tests/read_with_gguf.py out.gguf` reads it with the gguf Python package.

use std::error::Error;
use std::fs::File;
use std::io::BufWriter;

use bitnet_format::gguf::{Array, Header, TensorType, Value, ValueType};
use bitnet_format::{ScaleHome, TernaryMatrix, WeightScale, tq1_0, tq2_0};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: gguf_write FILE")?;
    let codes: Vec<i8> = (0..4 * 512).map(|i| (i * i / 7 % 3) as i8 - 1).collect();
    let matrix = TernaryMatrix::per_tensor(codes, [4, 512], WeightScale::new(0.3)?)?;

    let mut header = Header::new();
    header.set("general.architecture", "test")?;
    header.set("general.alignment", 64u32)?;
    header.set("general.file_type", tq2_0::FILE_TYPE)?;
    header.set("u8", u8::MAX)?;
    header.set("i8", i8::MIN)?;
    header.set("u16", u16::MAX)?;
    header.set("i16", i16::MIN)?;
    header.set("i32", i32::MIN)?;
    header.set("f32", 0.5f32)?;
    header.set("u64", u64::MAX)?;
    header.set("i64", i64::MIN)?;
    header.set("f64", 0.1f64)?;
    header.set("bool", true)?;
    header.set("tokenizer.ggml.tokens", &["a", "ü", ""][..])?;
    header.set("tokenizer.ggml.scores", &[0.5f32, -1.0, 0.0][..])?;
    header.set(
        "nested",
        Array::new(ValueType::Array, [Value::from(&[1i32, 2][..]), Value::from(&[3i32][..])])?,
    )?;
    header.tensor("tq1.weight", TensorType::Tq1_0, &matrix.shape())?;
    header.tensor("tq2.weight", TensorType::Tq2_0, &matrix.shape())?;
    header.tensor("tq2.scale", TensorType::F32, &[1])?;
    header.tensor("norm", TensorType::F32, &[3])?;

    let mut writer = header.write_to(BufWriter::new(File::create(path)?))?;
    writer.tensor("tq1.weight", &tq1_0::pack(&matrix, ScaleHome::Block)?)?;
    writer.tensor("tq2.weight", &tq2_0::pack(&matrix, ScaleHome::Tensor)?)?;
    writer.tensor("tq2.scale", &matrix.scales()[0].get().to_le_bytes())?;
    writer.tensor("norm", &[1f32, 2.0, 3.0].map(f32::to_le_bytes).concat())?;
    writer.finish()?;
    Ok(())
}
