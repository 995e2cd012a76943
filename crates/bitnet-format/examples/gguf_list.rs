//! Lists a GGUF file: `cargo run --example gguf_list -- model.gguf`.
//!
//! One line per key, one per tensor; for ternary tensors also the scale and the share of zero codes.

use std::error::Error;

use bitnet_format::gguf::{Gguf, Tensor, TensorType};
use bitnet_format::{FormatError, Granularity, TernaryMatrix, q2_0, tq1_0, tq2_0};
use sha2::{Digest, Sha256};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: gguf_list FILE")?;
    let bytes = std::fs::read(path)?;
    let file = Gguf::read(&bytes)?;
    for (key, value) in file.metadata() {
        match value.as_array() {
            Some(array) => println!("{key} = {} x {:?}", array.len(), array.item_type()),
            None => println!("{key} = {value:?}"),
        }
    }
    for tensor in file.tensors() {
        print!("{} {} {:?} {}", tensor.name, tensor.kind, tensor.shape, sha256(tensor.data));
        if let Some(matrix) = ternary(&tensor)? {
            let codes: Vec<u8> = matrix.codes().iter().map(|&code| code as u8).collect();
            print!(" codes {} zeros {:.3}", sha256(&codes), matrix.sparsity());
            if let Ok(matrix) = matrix.regroup(Granularity::Tensor) {
                print!(" scale {}", matrix.scales()[0].get());
            }
        }
        println!();
    }
    Ok(())
}

/// The tensor's codes and scales, if its type is a ternary one.
fn ternary(tensor: &Tensor) -> Result<Option<TernaryMatrix>, FormatError> {
    let &[d_output, d_input] = &tensor.shape[..] else { return Ok(None) };
    let unpack = match tensor.kind {
        TensorType::Tq1_0 => tq1_0::unpack,
        TensorType::Tq2_0 => tq2_0::unpack,
        TensorType::Q2_0 => q2_0::unpack,
        _ => return Ok(None),
    };
    unpack(tensor.data, [d_output, d_input]).map(Some)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
