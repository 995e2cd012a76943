//! Reading numbers, strings and values from bytes, forwards, without ever trusting a length.

use std::borrow::Cow;

use super::{Array, MAX_ARRAY_DEPTH, Value, ValueType};
use crate::FormatError;

/// A place in the bytes of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn left(self) -> usize {
        self.bytes.len() - self.at
    }

    /// Fails unless at least `count` items of at least `size` bytes are left.
    pub(super) fn expect(self, count: u64, size: usize, what: &'static str) -> Result<usize, FormatError> {
        let needed = count.saturating_mul(size as u64);
        match usize::try_from(needed) {
            Ok(len) if len <= self.left() => Ok(count as usize),
            _ => Err(FormatError::Truncated { what, at: self.at, needed, found: self.left() }),
        }
    }

    pub(super) fn take(&mut self, len: u64, what: &'static str) -> Result<&'a [u8], FormatError> {
        let len = self.expect(len, 1, what)?;
        let start = self.at;
        self.at += len;
        Ok(&self.bytes[start..self.at])
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], FormatError> {
        let bytes = self.take(N as u64, what)?;
        Ok(std::array::from_fn(|i| bytes[i]))
    }

    pub(super) fn magic(&mut self) -> Result<[u8; 4], FormatError> {
        self.array("magic number")
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, FormatError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, FormatError> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(super) fn string(&mut self, what: &'static str) -> Result<&'a str, FormatError> {
        let len = self.u64(what)?;
        let at = self.at;
        std::str::from_utf8(self.take(len, what)?).map_err(|source| FormatError::Utf8 { what, at, source })
    }

    fn bool(&mut self) -> Result<bool, FormatError> {
        match self.array("boolean")? {
            [0] => Ok(false),
            [1] => Ok(true),
            [found] => Err(FormatError::Bool { at: self.at - 1, found }),
        }
    }

    pub(super) fn value_type(&mut self) -> Result<ValueType, FormatError> {
        let at = self.at;
        let found = self.u32("metadata type")?;
        ValueType::from_id(found).ok_or(FormatError::UnknownValueType { at, found })
    }

    /// Reads a value. `depth` counts the arrays around it.
    pub(super) fn value(&mut self, kind: ValueType, depth: usize) -> Result<Value<'a>, FormatError> {
        let what = "metadata value";
        Ok(match kind {
            ValueType::U8 => Value::U8(u8::from_le_bytes(self.array(what)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            ValueType::U32 => Value::U32(self.u32(what)?),
            ValueType::I32 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            ValueType::Bool => Value::Bool(self.bool()?),
            ValueType::String => Value::String(self.string("metadata string")?),
            ValueType::Array => Value::Array(self.items(depth + 1)?),
            ValueType::U64 => Value::U64(self.u64(what)?),
            ValueType::I64 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(self.array(what)?)),
        })
    }

    /// Checks every item of an array and keeps its bytes. `depth` counts the array itself.
    fn items(&mut self, depth: usize) -> Result<Array<'a>, FormatError> {
        if depth > MAX_ARRAY_DEPTH {
            return Err(FormatError::Depth { at: self.at, max: MAX_ARRAY_DEPTH });
        }
        let item = self.value_type()?;
        let count = self.u64("array length")?;
        let len = self.expect(count, item.min_len(), "array")?;
        let start = self.at;
        match item {
            ValueType::Bool | ValueType::String | ValueType::Array => {
                for _ in 0..len {
                    self.value(item, depth)?;
                }
            }
            numbers => self.at += len * numbers.min_len(),
        }
        Ok(Array { item, len, bytes: Cow::Borrowed(&self.bytes[start..self.at]) })
    }
}
