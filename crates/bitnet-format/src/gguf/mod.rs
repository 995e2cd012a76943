//! GGUF files: a reader on bytes and a streaming writer.
//!
//! A file is a header (metadata, and a name, type, shape and offset per tensor), then the data section, in
//! which every tensor starts on a multiple of `general.alignment` (32 unless the metadata say otherwise) and
//! is padded to one. All numbers are little-endian.
//!
//! **Order of axes.** Shapes in this crate are row-major, `[d_output, d_input]`. The file stores them the
//! other way round, `d_input` first; [`Gguf`] and [`Header`] turn them, nothing else needs to know.
//!
//! Source: `docs/gguf.md` of ggml, and `gguf.cpp` of llama.cpp where that says more.

mod cursor;
mod reader;
mod tensor_type;
mod value;
mod writer;

pub use reader::{Gguf, Tensor};
pub use tensor_type::TensorType;
pub use value::{Array, MAX_ARRAY_DEPTH, Value, ValueType};
pub use writer::{Header, Writer};

use crate::FormatError;

const MAGIC: [u8; 4] = *b"GGUF";
const VERSION: u32 = 3;
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: usize = 32;
const MAX_AXES: usize = 4;

/// The alignment that a `general.alignment` value sets.
fn alignment(value: &Value) -> Result<usize, FormatError> {
    match *value {
        Value::U32(found) if found.is_power_of_two() && found >= 8 => Ok(found as usize),
        ref found => Err(FormatError::Alignment { found: format!("{found:?}") }),
    }
}
