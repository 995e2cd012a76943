//! Typed access to the metadata of a GGUF file, whose errors name the key.

use std::path::Path;

use bitnet_format::gguf::{Gguf, Value};

use crate::ConvertError;

/// The metadata of a file.
pub(super) struct Metadata<'a> {
    path: &'a Path,
    file: &'a Gguf<'a>,
    /// The prefix of the architecture's keys.
    architecture: &'a str,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(path: &'a Path, file: &'a Gguf<'a>, architecture: &'a str) -> Self {
        Self { path, file, architecture }
    }

    /// The value of one of the architecture's keys.
    fn value(&self, key: &str) -> (String, Option<Value<'a>>) {
        let key = format!("{}.{key}", self.architecture);
        let value = self.file.get(&key);
        (key, value)
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, ConvertError> {
        let (key, value) = self.value(key);
        let size = |value: Value| {
            let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
            size.ok_or_else(|| wrong(self.path, key, &value, "a size"))
        };
        value.map(size).transpose()
    }

    pub(super) fn require_size(&self, key: &str) -> Result<usize, ConvertError> {
        self.size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A number; an f32 as the decimal that it was written from.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ConvertError> {
        let (key, value) = self.value(key);
        let number = |value: Value| match value {
            Value::F32(number) => Ok(decimal(number)),
            Value::F64(number) => Ok(number),
            value => Err(wrong(self.path, key, &value, "a float")),
        };
        value.map(number).transpose()
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ConvertError> {
        let (key, value) = self.value(key);
        value.map(|value| value.as_str().ok_or_else(|| wrong(self.path, key, &value, "a string"))).transpose()
    }

    pub(super) fn flags(&self, key: &str) -> Result<Option<Vec<bool>>, ConvertError> {
        let (key, value) = self.value(key);
        let flags = |value: Value<'a>| {
            let flag = |value: Value| match value {
                Value::Bool(flag) => Some(flag),
                value => value.as_u64().map(|number| number != 0),
            };
            let flags = value.as_array().and_then(|array| array.iter().map(flag).collect());
            flags.ok_or_else(|| wrong(self.path, key, &value, "an array of flags"))
        };
        value.map(flags).transpose()
    }

    /// An error about the value of one of the architecture's keys.
    pub(super) fn unsupported(
        &self,
        key: &str,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> ConvertError {
        ConvertError::GgufKey {
            path: self.path.into(),
            key: format!("{}.{key}", self.architecture),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    fn missing(&self, key: &str) -> ConvertError {
        self.unsupported(key, "missing", "a size")
    }
}

/// An error about a value of another type.
pub(super) fn wrong(path: &Path, key: String, found: &Value, expected: &str) -> ConvertError {
    ConvertError::GgufKey { path: path.into(), key, found: format!("{found:?}"), expected: expected.into() }
}

/// The shortest decimal that rounds to an f32: 1e-5 for the f32 next to it.
fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}
