//! Metadata values: numbers, booleans, strings, and arrays of one of these or of arrays.

use std::borrow::Cow;

use super::cursor::Cursor;
use crate::FormatError;

/// How deep arrays may be nested: an array of numbers has depth 1.
pub const MAX_ARRAY_DEPTH: usize = 8;

/// The type of a metadata value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// 8-bit unsigned integer.
    U8,
    /// 8-bit signed integer.
    I8,
    /// 16-bit unsigned integer.
    U16,
    /// 16-bit signed integer.
    I16,
    /// 32-bit unsigned integer.
    U32,
    /// 32-bit signed integer.
    I32,
    /// 32-bit float.
    F32,
    /// One byte, 0 or 1.
    Bool,
    /// UTF-8 text.
    String,
    /// Values of one type.
    Array,
    /// 64-bit unsigned integer.
    U64,
    /// 64-bit signed integer.
    I64,
    /// 64-bit float.
    F64,
}

impl ValueType {
    /// Every type, in order of id: the first has id 0.
    pub const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    pub(super) fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(id as usize).copied()
    }

    /// The bytes of a value of this type; for strings and arrays the bytes of an empty one.
    pub(super) fn min_len(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

/// A metadata value. Strings and arrays may borrow from a file.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each variant is the type of the same name, see ValueType")]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(&'a str),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// The value's type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// An integer of any width that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// A float of either width.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&'a str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array<'a>> {
        if let Self::Array(array) = self { Some(array) } else { None }
    }

    /// Appends the value's bytes, without its type.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(value) => out.push(*value),
            Self::I8(value) => out.extend(value.to_le_bytes()),
            Self::U16(value) => out.extend(value.to_le_bytes()),
            Self::I16(value) => out.extend(value.to_le_bytes()),
            Self::U32(value) => out.extend(value.to_le_bytes()),
            Self::I32(value) => out.extend(value.to_le_bytes()),
            Self::F32(value) => out.extend(value.to_le_bytes()),
            Self::Bool(value) => out.push((*value).into()),
            Self::String(text) => encode_string(text, out),
            Self::Array(array) => {
                out.extend((array.item as u32).to_le_bytes());
                out.extend((array.len as u64).to_le_bytes());
                out.extend_from_slice(&array.bytes);
            }
            Self::U64(value) => out.extend(value.to_le_bytes()),
            Self::I64(value) => out.extend(value.to_le_bytes()),
            Self::F64(value) => out.extend(value.to_le_bytes()),
        }
    }
}

pub(super) fn encode_string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Values of one type, kept as the bytes that a file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Array<'a> {
    pub(super) item: ValueType,
    pub(super) len: usize,
    pub(super) bytes: Cow<'a, [u8]>,
}

impl Array<'_> {
    /// An array of `item`s.
    ///
    /// # Errors
    /// [`FormatError::ArrayItem`] if a value is of another type.
    pub fn new<'v>(
        item: ValueType,
        values: impl IntoIterator<Item = Value<'v>>,
    ) -> Result<Array<'static>, FormatError> {
        let (mut len, mut bytes) = (0, Vec::new());
        for value in values {
            if value.value_type() != item {
                return Err(FormatError::ArrayItem { index: len, found: value.value_type(), expected: item });
            }
            value.encode(&mut bytes);
            len += 1;
        }
        Ok(Array { item, len, bytes: bytes.into() })
    }

    /// The items' type.
    pub fn item_type(&self) -> ValueType {
        self.item
    }

    /// The number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The items in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'_>> {
        let mut cursor = Cursor { bytes: &self.bytes, at: 0 };
        // The bytes were written by `new` or checked by the reader, so every item is there.
        (0..self.len).map_while(move |_| cursor.value(self.item, 0).ok())
    }
}

/// Values and arrays from plain numbers.
macro_rules! from {
    ($($number:ty => $variant:ident,)*) => {$(
        impl From<$number> for Value<'_> {
            fn from(value: $number) -> Self {
                Self::$variant(value)
            }
        }

        impl From<&[$number]> for Value<'_> {
            fn from(values: &[$number]) -> Self {
                let mut bytes = Vec::with_capacity(size_of_val(values));
                values.iter().for_each(|&value| Value::$variant(value).encode(&mut bytes));
                Self::Array(Array { item: ValueType::$variant, len: values.len(), bytes: bytes.into() })
            }
        }
    )*};
}

from! {
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool,
    u64 => U64, i64 => I64, f64 => F64,
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::String(text)
    }
}

impl From<&[&str]> for Value<'_> {
    fn from(texts: &[&str]) -> Self {
        let mut bytes = Vec::new();
        texts.iter().for_each(|text| encode_string(text, &mut bytes));
        Self::Array(Array { item: ValueType::String, len: texts.len(), bytes: bytes.into() })
    }
}

impl<'a> From<Array<'a>> for Value<'a> {
    fn from(array: Array<'a>) -> Self {
        Self::Array(array)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_types_agree() {
        for (id, kind) in ValueType::ALL.into_iter().enumerate() {
            assert_eq!((kind as u32 as usize, ValueType::from_id(id as u32)), (id, Some(kind)));
        }
        assert_eq!(ValueType::from_id(13), None);
    }

    #[test]
    fn numbers_convert_where_they_fit() {
        for value in [
            Value::U8(7),
            7i8.into(),
            7u16.into(),
            7i16.into(),
            7u32.into(),
            7i32.into(),
            7u64.into(),
            7i64.into(),
        ] {
            assert_eq!((value.as_u64(), value.as_f64(), value.as_str()), (Some(7), None, None), "{value:?}");
        }
        assert_eq!(Value::from(u64::MAX).as_u64(), Some(u64::MAX));
        for negative in [Value::I8(-1), Value::I16(-1), Value::I32(-1), Value::I64(-1)] {
            assert_eq!(negative.as_u64(), None);
        }
        assert_eq!((Value::F32(0.5).as_f64(), Value::F64(0.1).as_f64()), (Some(0.5), Some(0.1)));
        assert_eq!(
            (Value::from("a").as_str(), Value::from("7").as_u64(), Value::from(true).as_u64()),
            (Some("a"), None, None)
        );
    }

    #[test]
    fn arrays_hold_one_type() {
        let numbers = Value::from(&[1u16, 2, 3][..]);
        let array = numbers.as_array().unwrap();
        assert_eq!((array.item_type(), array.len(), array.is_empty()), (ValueType::U16, 3, false));
        assert_eq!(array.iter().collect::<Vec<_>>(), [1u16, 2, 3].map(Value::from));

        let texts = Value::from(&["a", "", "ü"][..]);
        assert_eq!(
            texts
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|text| text.as_str().map(str::to_owned))
                .collect::<Vec<_>>(),
            ["a", "", "ü"]
        );

        let nested = Array::new(ValueType::Array, [numbers.clone(), texts.clone()]).unwrap();
        assert_eq!(nested.iter().collect::<Vec<_>>(), [numbers, texts]);
        assert!(Array::new(ValueType::F32, []).unwrap().is_empty());

        let mixed = Array::new(ValueType::U8, [Value::U8(1), Value::I8(1)]);
        assert!(matches!(
            mixed,
            Err(FormatError::ArrayItem { index: 1, found: ValueType::I8, expected: ValueType::U8 })
        ));
    }
}
