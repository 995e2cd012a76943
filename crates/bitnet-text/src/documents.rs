//! Reading documents in pieces: text files, and JSON objects one per line.

use std::io::{self, BufRead, Read};
use std::path::Path;

use serde_json::Value;

use crate::TextError;

/// A text is encoded in pieces of whole lines, about this many bytes each.
const PIECE: usize = 1 << 20;

/// A longer line is cut, between two characters: memory stays bounded.
const MAX_LINE: usize = 8 << 20;

/// A text file in pieces of whole lines.
pub(crate) struct TextPieces<'a, R> {
    path: &'a Path,
    reader: R,
    /// Bytes that were read and belong to the next piece.
    rest: Vec<u8>,
    /// Lines that were given out.
    lines: u64,
}

impl<'a, R: BufRead> TextPieces<'a, R> {
    pub(crate) fn new(path: &'a Path, reader: R) -> Self {
        Self { path, reader, rest: Vec::new(), lines: 0 }
    }

    /// The next piece; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<String>, TextError> {
        let mut bytes = std::mem::take(&mut self.rest);
        let mut at_end = false;
        while bytes.len() < PIECE {
            let n = self.read_line(&mut bytes)?;
            at_end = n == 0;
            if at_end {
                break;
            }
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        if let Err(error) = std::str::from_utf8(&bytes) {
            let valid = error.valid_up_to();
            if error.error_len().is_some() || at_end || valid == 0 {
                let line = self.lines + newlines(&bytes[..valid]) + 1;
                let reason = "expected UTF-8 text".into();
                return Err(TextError::Line { path: self.path.to_owned(), line, reason });
            }
            self.rest = bytes.split_off(valid); // a line was cut within a character
        }
        self.lines += newlines(&bytes);
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn read_line(&mut self, bytes: &mut Vec<u8>) -> Result<usize, TextError> {
        let limit = MAX_LINE.saturating_sub(bytes.len()).max(1) as u64;
        let read = (&mut self.reader).take(limit).read_until(b'\n', bytes);
        read.map_err(|source| TextError::Read { path: self.path.to_owned(), source })
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// A line of JSONL is in memory as a whole.
const MAX_DOCUMENT: u64 = 1 << 28;

/// Calls `document` with the text in a field of each line's object, and the line's length in bytes. Blank lines are
/// passed over.
pub(crate) fn json_lines(
    path: &Path,
    mut reader: impl BufRead,
    field: &str,
    document: &mut dyn FnMut(&str, u64) -> Result<(), TextError>,
) -> Result<(), TextError> {
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        let n = reader.by_ref().take(MAX_DOCUMENT + 1).read_until(b'\n', &mut text);
        let n = n.map_err(|source: io::Error| TextError::Read { path: path.to_owned(), source })?;
        if n == 0 {
            return Ok(());
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let wrong = |reason: String| TextError::Line { path: path.to_owned(), line, reason };
        if n as u64 > MAX_DOCUMENT {
            return Err(wrong(format!("expected at most {MAX_DOCUMENT} bytes in a line")));
        }
        let value: Value =
            serde_json::from_slice(&text).map_err(|error| wrong(format!("no JSON: {error}")))?;
        let object = value.as_object().ok_or_else(|| wrong("expected a JSON object".into()))?;
        let value = object.get(field).ok_or_else(|| {
            let fields: Vec<&String> = object.keys().collect();
            wrong(format!("there is no field `{field}` but {fields:?}"))
        })?;
        let found = value.as_str().ok_or_else(|| wrong(format!("`{field}` is no text")))?;
        document(found, n as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(bytes: &[u8]) -> Result<Vec<String>, TextError> {
        let mut pieces = TextPieces::new(Path::new("x"), bytes);
        let mut found = Vec::new();
        while let Some(piece) = pieces.next()? {
            found.push(piece);
        }
        Ok(found)
    }

    #[test]
    fn pieces_are_whole_lines_and_together_the_text() {
        let line = "äöü and some more words\n";
        let text = line.repeat(3 * PIECE / line.len());
        let found = pieces(text.as_bytes()).unwrap();
        assert!(found.len() >= 3 && found.iter().all(|piece| piece.ends_with('\n')));
        assert_eq!(found.concat(), text);
        assert_eq!(pieces(b"").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_line_without_end_is_cut_between_characters() {
        let text = format!("x{}", "ü".repeat(MAX_LINE));
        let found = pieces(text.as_bytes()).unwrap();
        assert!(found.len() >= 2 && found.iter().all(|piece| piece.len() <= MAX_LINE));
        assert_eq!(found.concat(), text);
    }

    #[test]
    fn the_line_that_is_not_text_is_named() {
        let good = "line\n".repeat(PIECE / 5 + 10);
        let bad = [good.as_bytes(), b"ok\nb\xffd\n"].concat();
        let line = good.lines().count() as u64 + 2;
        assert!(matches!(pieces(&bad), Err(TextError::Line { line: found, .. }) if found == line));
        assert!(
            matches!(pieces(b"cut \xc3"), Err(TextError::Line { line: 1, .. })),
            "half a character at the end"
        );
    }

    #[test]
    fn the_line_that_is_no_object_is_named() {
        let reason = |text: &str| {
            let found = json_lines(Path::new("x"), text.as_bytes(), "t", &mut |_, _| Ok(()));
            found.unwrap_err().to_string()
        };
        assert!(reason("{\"t\": \"\"}\n\n{\"t\"\n").contains("line 3: no JSON"));
        assert!(reason("[]").contains("line 1: expected a JSON object"));
        assert!(reason("{\"u\": 1}").contains("[\"u\"]"));
        assert!(reason("{\"t\": 1}").contains("`t` is no text"));
    }
}
