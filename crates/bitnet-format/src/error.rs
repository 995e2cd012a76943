//! What can be wrong with codes, scales, packed bytes and GGUF files.

use crate::Granularity;
use crate::gguf::{TensorType, ValueType};

/// Invalid codes, scales, packed bytes or GGUF contents.
///
/// Packed bytes have no name; a caller that unpacks a named tensor adds the name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A code is not ternary. In packed bytes the spare digit 3 reads as code 2.
    #[error("code at row {row}, column {column} is {found}, expected -1, 0 or 1")]
    Code {
        /// The output index.
        row: usize,
        /// The input index.
        column: usize,
        /// The code given.
        found: i8,
    },
    /// A matrix without elements, or with more than memory can address.
    #[error("matrix has shape {found:?}, expected both axes above 0 and a product that fits in memory")]
    Shape {
        /// `[d_output, d_input]`.
        found: [usize; 2],
    },
    /// The number of codes does not fit the shape.
    #[error("found {found} codes, shape {shape:?} implies {expected}")]
    CodeCount {
        /// The number given.
        found: usize,
        /// The product of the shape.
        expected: usize,
        /// `[d_output, d_input]`.
        shape: [usize; 2],
    },
    /// A scale is not a finite number above zero.
    #[error("scale is {found}, expected a finite number above 0")]
    Scale {
        /// The value given.
        found: f32,
    },
    /// The number of scales does not fit shape and granularity.
    #[error("found {found} scales, granularity {granularity:?} implies {expected}")]
    ScaleCount {
        /// The number given.
        found: usize,
        /// The number of tensors, rows or groups.
        expected: usize,
        /// What one scale covers.
        granularity: Granularity,
    },
    /// A group size is no power of two, or does not divide `d_input`.
    #[error("group size is {found}, expected a power of two that divides d_input = {d_input}")]
    Group {
        /// The group size given.
        found: usize,
        /// The length of a row.
        d_input: usize,
    },
    /// A format cannot hold scales of this granularity.
    #[error("{format} cannot hold scales per {found:?}, expected {expected}")]
    Granularity {
        /// The format.
        format: &'static str,
        /// The matrix's granularity.
        found: Granularity,
        /// What the format can hold.
        expected: &'static str,
    },
    /// Scales that should become one are different.
    #[error("no common scale for {granularity:?}: row {row}, column {column} has {found}, others {expected}")]
    ScalesDiffer {
        /// The granularity asked for.
        granularity: Granularity,
        /// The output index of the first code that differs.
        row: usize,
        /// Its input index.
        column: usize,
        /// Its scale.
        found: f32,
        /// The scale of the earlier codes.
        expected: f32,
    },
    /// An axis is not a multiple of what the format packs together.
    #[error("{format} needs {axis} divisible by {by}, found {found}")]
    Divisible {
        /// The format.
        format: &'static str,
        /// `d_output` or `d_input`.
        axis: &'static str,
        /// The axis' length.
        found: usize,
        /// The divisor.
        by: usize,
    },
    /// The number of packed bytes does not fit the shape.
    #[error("{format} data has {found} bytes, the shape implies {expected}")]
    PackedLen {
        /// The format.
        format: &'static str,
        /// The number given.
        found: usize,
        /// The number that the shape implies.
        expected: usize,
    },
    /// An f16 block scale would be off by more than f16's usual rounding.
    #[error(
        "scale {found} at row {row}, column {column} is outside f16's precise range 6.1e-5..=65504, \
         expected a scale inside it, or scales stored beside the tensor"
    )]
    HalfScale {
        /// The output index of the block.
        row: usize,
        /// The input index of its first code.
        column: usize,
        /// The scale.
        found: f32,
    },

    /// The file does not start with `GGUF`.
    #[error("file starts with {found:?}, expected b\"GGUF\"")]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A GGUF version of another layout.
    #[error("GGUF version is {found} ({found:#010x}), expected 2 or 3 in little-endian order")]
    Version {
        /// The version as little-endian number.
        found: u32,
    },
    /// The bytes end too early, or a count or length is larger than they allow.
    #[error("{what} at byte {at} needs {needed} bytes, found {found}")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        at: usize,
        /// The least number of bytes that it takes.
        needed: u64,
        /// The number of bytes that are left there.
        found: usize,
    },
    /// A string is not UTF-8.
    #[error("{what} at byte {at} is not UTF-8")]
    Utf8 {
        /// What was being read.
        what: &'static str,
        /// Where its text starts.
        at: usize,
        /// Where it goes wrong.
        source: std::str::Utf8Error,
    },
    /// No metadata type has this id.
    #[error("metadata type at byte {at} is {found}, expected 0..=12")]
    UnknownValueType {
        /// Where the id stands.
        at: usize,
        /// The id.
        found: u32,
    },
    /// A boolean byte is neither 0 nor 1.
    #[error("boolean at byte {at} is {found}, expected 0 or 1")]
    Bool {
        /// Where it stands.
        at: usize,
        /// The byte.
        found: u8,
    },
    /// Arrays inside arrays, too deep.
    #[error("array at byte {at} is nested deeper than {max} levels")]
    Depth {
        /// Where the array starts.
        at: usize,
        /// The deepest level allowed.
        max: usize,
    },
    /// `general.alignment` cannot align anything.
    #[error("general.alignment is {found}, expected a u32 power of two of at least 8")]
    Alignment {
        /// The value, as text.
        found: String,
    },
    /// A metadata key occurs twice.
    #[error("metadata key `{key}` occurs twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A tensor name occurs twice.
    #[error("tensor `{name}` occurs twice")]
    DuplicateTensor {
        /// The name.
        name: String,
    },
    /// No known tensor type has this id.
    #[error("tensor `{name}` has type id {found}, which is not known")]
    UnknownTensorType {
        /// The tensor.
        name: String,
        /// The id.
        found: u32,
    },
    /// A tensor has too many axes.
    #[error("tensor `{name}` has {found} axes, expected at most 4")]
    Axes {
        /// The tensor.
        name: String,
        /// The number of axes.
        found: usize,
    },
    /// A tensor's shape does not fit its type, or its size overflows.
    #[error(
        "tensor `{name}` has shape {shape:?}, type {kind} needs a last axis divisible by {block} \
         and a size that fits in memory"
    )]
    TensorShape {
        /// The tensor.
        name: String,
        /// Its shape, row-major.
        shape: Vec<u64>,
        /// Its type.
        kind: TensorType,
        /// The type's weights per block.
        block: usize,
    },
    /// A tensor's data does not start on the alignment.
    #[error("tensor `{name}` has offset {found}, expected a multiple of {alignment}")]
    Unaligned {
        /// The tensor.
        name: String,
        /// The offset in the data section.
        found: u64,
        /// The file's alignment.
        alignment: usize,
    },
    /// A tensor's data, with its padding, ends after the file.
    #[error(
        "tensor `{name}` takes {len} bytes and padding from offset {offset}, the data section has {found}"
    )]
    OutOfRange {
        /// The tensor.
        name: String,
        /// The offset in the data section.
        offset: u64,
        /// The data's length.
        len: usize,
        /// The length of the data section.
        found: usize,
    },
    /// Two tensors share bytes.
    #[error("tensor `{second}` starts at offset {offset}, inside tensor `{first}`")]
    Overlap {
        /// The tensor that starts first.
        first: String,
        /// The tensor that starts inside it.
        second: String,
        /// Where the second starts in the data section.
        offset: u64,
    },

    /// A metadata key that the specification does not allow.
    #[error("metadata key `{found}` has {} bytes, expected 1..=65535 bytes of ASCII", found.len())]
    Key {
        /// The key.
        found: String,
    },
    /// A tensor name that llama.cpp would refuse.
    #[error("tensor name `{found}` has {} bytes, expected 1..=63", found.len())]
    TensorName {
        /// The name.
        found: String,
    },
    /// An array item of another type.
    #[error("array item {index} is of type {found:?}, expected {expected:?}")]
    ArrayItem {
        /// The item's position.
        index: usize,
        /// The item's type.
        found: ValueType,
        /// The array's item type.
        expected: ValueType,
    },
    /// Tensor data for another tensor than the header announced next.
    #[error("tensor `{found}` was written, expected `{}`", .expected.as_deref().unwrap_or("none"))]
    TensorOrder {
        /// The name given.
        found: String,
        /// The tensor whose turn it is, if any is left.
        expected: Option<String>,
    },
    /// Tensor data of another length than the header announced.
    #[error("tensor `{name}` has {found} bytes, its type and shape imply {expected}")]
    TensorLen {
        /// The tensor.
        name: String,
        /// The number given.
        found: usize,
        /// The number announced.
        expected: usize,
    },
    /// A file was finished before all of its tensors were written.
    #[error("{count} tensors are not written yet, the next is `{name}`")]
    Unfinished {
        /// The next tensor.
        name: String,
        /// How many are left.
        count: usize,
    },
    /// The output cannot be written.
    #[error("cannot write the GGUF file")]
    Write(#[from] std::io::Error),
}
