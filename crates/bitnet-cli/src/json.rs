//! JSON as Python's `json.dumps` writes it, and the files beside a model.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use serde_json::{Map, Value};

use crate::error::CliError;

/// The object in a file of a folder; an empty one where there is no such file.
pub(crate) fn read_object(folder: &Path, name: &str) -> Result<Map<String, Value>, CliError> {
    let path = folder.join(name);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(source) => return Err(CliError::Read { path, source }),
    };
    serde_json::from_slice(&text).map_err(|error| CliError::Read { path, source: error.into() })
}

/// Writes a value with a space after commas and colons, or indented.
pub(crate) fn to_python(value: &impl Serialize, indent: Option<usize>) -> serde_json::Result<String> {
    let mut text = Vec::new();
    match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut text, Spaced))?,
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut text, formatter))?;
        }
    }
    String::from_utf8(text).map_err(serde::ser::Error::custom)
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Reference: Python 3, `json.dumps(value, ensure_ascii=False)`, and with `indent=2`.
    #[test]
    fn json_is_written_as_python_writes_it() {
        let value = json!({ "a": [1, "<é>", null], "b": {} });
        assert_eq!(to_python(&value, None).unwrap(), r#"{"a": [1, "<é>", null], "b": {}}"#);
        let indented = "{\n  \"a\": [\n    1,\n    \"<é>\",\n    null\n  ],\n  \"b\": {}\n}";
        assert_eq!(to_python(&value, Some(2)).unwrap(), indented);
    }
}
