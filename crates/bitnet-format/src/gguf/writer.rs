//! Writing a GGUF file in one pass: the header first, then each tensor's bytes as they become ready.

use std::collections::{HashSet, VecDeque};
use std::io::{self, Read, Write};

use super::cursor::Cursor;
use super::value::encode_string;
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_AXES, TensorType, VERSION, Value, alignment};
use crate::FormatError;

/// The longest key that the specification allows.
const MAX_KEY: usize = 65535;
/// The longest tensor name that llama.cpp allows.
const MAX_NAME: usize = 63;

/// The header of a file to be written: metadata and what tensors will follow.
///
/// ```
/// use bitnet_format::gguf::{Gguf, Header, TensorType};
///
/// let mut header = Header::new();
/// header.set("general.architecture", "llama")?;
/// header.set("llama.block_count", 2u32)?;
/// header.tensor("output_norm.weight", TensorType::F32, &[4])?;
///
/// let mut writer = header.write_to(Vec::new())?;
/// writer.tensor("output_norm.weight", &1f32.to_le_bytes().repeat(4))?;
/// let bytes = writer.finish()?;
///
/// let file = Gguf::read(&bytes)?;
/// assert_eq!(file.get("llama.block_count").and_then(|value| value.as_u64()), Some(2));
/// # Ok::<(), bitnet_format::FormatError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Header {
    keys: HashSet<String>,
    metadata: Vec<u8>,
    alignment: usize,
    names: HashSet<String>,
    tensors: Vec<Announced>,
}

#[derive(Debug, Clone)]
struct Announced {
    name: String,
    kind: TensorType,
    shape: Vec<usize>,
    len: usize,
}

impl Default for Header {
    fn default() -> Self {
        Self::new()
    }
}

impl Header {
    /// A header without metadata and tensors.
    pub fn new() -> Self {
        let (keys, names) = Default::default();
        Self { keys, metadata: Vec::new(), alignment: DEFAULT_ALIGNMENT, names, tensors: Vec::new() }
    }

    /// Adds a key and its value. `general.alignment`, a u32, sets the alignment of the tensors.
    ///
    /// # Errors
    /// - [`FormatError::Key`] if the key is empty, longer than 65535 bytes, or not ASCII.
    /// - [`FormatError::DuplicateKey`] if it is set already.
    /// - [`FormatError::Alignment`] if it is `general.alignment` and the value is no power of two of at least
    ///   8.
    /// - [`FormatError::Depth`] if the value has arrays nested deeper than
    ///   [`MAX_ARRAY_DEPTH`](super::MAX_ARRAY_DEPTH).
    pub fn set<'v>(&mut self, key: &str, value: impl Into<Value<'v>>) -> Result<(), FormatError> {
        let value = value.into();
        if !key.is_ascii() || !(1..=MAX_KEY).contains(&key.len()) {
            return Err(FormatError::Key { found: key.into() });
        }
        if key == ALIGNMENT_KEY {
            self.alignment = alignment(&value)?;
        }
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        // What the reader refuses is never written.
        Cursor { bytes: &bytes, at: 0 }.value(value.value_type(), 0)?;
        if !self.keys.insert(key.into()) {
            return Err(FormatError::DuplicateKey { key: key.into() });
        }
        encode_string(key, &mut self.metadata);
        self.metadata.extend((value.value_type() as u32).to_le_bytes());
        self.metadata.extend(bytes);
        Ok(())
    }

    /// Announces a tensor. Its data follow in the same order.
    ///
    /// # Shapes
    /// - `shape`: row-major, a weight is `[d_output, d_input]`
    ///
    /// # Errors
    /// - [`FormatError::TensorName`] if the name is empty or longer than 63 bytes.
    /// - [`FormatError::DuplicateTensor`] if it is announced already.
    /// - [`FormatError::Axes`] if the shape has more than four axes.
    /// - [`FormatError::TensorShape`] if the last axis does not consist of whole blocks, or the size
    ///   overflows.
    pub fn tensor(&mut self, name: &str, kind: TensorType, shape: &[usize]) -> Result<(), FormatError> {
        if !(1..=MAX_NAME).contains(&name.len()) {
            return Err(FormatError::TensorName { found: name.into() });
        }
        if shape.len() > MAX_AXES {
            return Err(FormatError::Axes { name: name.into(), found: shape.len() });
        }
        let Some(len) = kind.data_len(shape) else {
            return Err(misfit(name, kind, shape));
        };
        if !self.names.insert(name.into()) {
            return Err(FormatError::DuplicateTensor { name: name.into() });
        }
        self.tensors.push(Announced { name: name.into(), kind, shape: shape.to_vec(), len });
        Ok(())
    }

    /// Writes the header and gives what writes the tensors.
    ///
    /// # Errors
    /// - [`FormatError::TensorShape`] if the tensors together are larger than any file.
    /// - [`FormatError::Write`] if the output cannot be written.
    pub fn write_to<W: Write>(self, mut out: W) -> Result<Writer<W>, FormatError> {
        let mut header = Vec::from(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.keys.len() as u64).to_le_bytes());
        header.extend(&self.metadata);
        let mut offset = 0u64;
        for Announced { name, kind, shape, len } in &self.tensors {
            encode_string(name, &mut header);
            header.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|&axis| header.extend((axis as u64).to_le_bytes()));
            header.extend(kind.id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            let padded = len.checked_next_multiple_of(self.alignment);
            let end = padded.and_then(|padded| offset.checked_add(padded as u64));
            offset = end.ok_or_else(|| misfit(name, *kind, shape))?;
        }
        out.write_all(&header)?;
        if !self.tensors.is_empty() {
            pad(&mut out, header.len(), self.alignment)?;
        }
        let left = self.tensors.into_iter().map(|tensor| (tensor.name, tensor.len)).collect();
        Ok(Writer { out, alignment: self.alignment, left, written: 0 })
    }
}

fn misfit(name: &str, kind: TensorType, shape: &[usize]) -> FormatError {
    let shape = shape.iter().map(|&axis| axis as u64).collect();
    FormatError::TensorShape { name: name.into(), shape, kind, block: kind.block().0 }
}

/// Writes the zeros that follow `len` bytes.
fn pad(out: &mut impl Write, len: usize, alignment: usize) -> Result<(), FormatError> {
    let zeros = (len.next_multiple_of(alignment) - len) as u64;
    io::copy(&mut io::repeat(0).take(zeros), out)?;
    Ok(())
}

/// A file whose header is written, and whose tensors follow one by one.
#[derive(Debug)]
#[must_use = "a file is complete only after `finish`"]
pub struct Writer<W> {
    out: W,
    alignment: usize,
    /// Names and lengths of the tensors that are not written yet.
    left: VecDeque<(String, usize)>,
    /// How much of the first of them is written.
    written: usize,
}

impl<W: Write> Writer<W> {
    /// Writes the next tensor's data and padding.
    ///
    /// # Errors
    /// - [`FormatError::TensorOrder`] if another tensor, or none, is next.
    /// - [`FormatError::TensorLen`] if the number of bytes is not what type and shape imply.
    /// - [`FormatError::Write`] if the output cannot be written.
    pub fn tensor(&mut self, name: &str, data: &[u8]) -> Result<(), FormatError> {
        let expected = self.expect(name)?;
        let found = self.written + data.len();
        if found != expected {
            return Err(FormatError::TensorLen { name: name.into(), found, expected });
        }
        self.part(name, data)
    }

    /// Writes the next bytes of the next tensor, and its padding after the last of them, so that a tensor need not
    /// be in memory as a whole.
    ///
    /// # Errors
    /// - [`FormatError::TensorOrder`] if another tensor, or none, is next.
    /// - [`FormatError::TensorLen`] if the parts are longer than type and shape imply.
    /// - [`FormatError::Write`] if the output cannot be written.
    pub fn part(&mut self, name: &str, data: &[u8]) -> Result<(), FormatError> {
        let expected = self.expect(name)?;
        let found = self.written + data.len();
        if found > expected {
            return Err(FormatError::TensorLen { name: name.into(), found, expected });
        }
        self.out.write_all(data)?;
        self.written = found;
        if found == expected {
            self.left.pop_front();
            self.written = 0;
            pad(&mut self.out, expected, self.alignment)?;
        }
        Ok(())
    }

    /// The length of the next tensor, which must be the one of this name.
    fn expect(&self, name: &str) -> Result<usize, FormatError> {
        match self.left.front() {
            Some((next, len)) if next == name => Ok(*len),
            next => {
                let expected = next.map(|(name, _)| name.clone());
                Err(FormatError::TensorOrder { found: name.into(), expected })
            }
        }
    }

    /// Flushes the output and gives it back.
    ///
    /// # Errors
    /// - [`FormatError::Unfinished`] if a tensor is not written yet.
    /// - [`FormatError::Write`] if the output cannot be flushed.
    pub fn finish(mut self) -> Result<W, FormatError> {
        if let Some((name, _)) = self.left.front() {
            return Err(FormatError::Unfinished { name: name.clone(), count: self.left.len() });
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Array, MAX_ARRAY_DEPTH, ValueType};

    #[test]
    fn keys_and_values_are_checked() {
        let mut header = Header::new();
        for bad in ["", "schlüssel", &"k".repeat(65536)] {
            assert!(matches!(header.set(bad, 1u8), Err(FormatError::Key { found }) if found == bad));
        }
        header.set("a", 1u8).unwrap();
        assert!(matches!(header.set("a", "text"), Err(FormatError::DuplicateKey { key }) if key == "a"));
        for bad in [Value::U32(0), Value::U32(4), Value::U32(48), Value::U64(32), Value::String("32")] {
            assert!(matches!(header.set("general.alignment", bad), Err(FormatError::Alignment { .. })));
        }
        header.set("general.alignment", 64u32).unwrap();

        let mut value = Value::U8(1);
        for depth in 1..=MAX_ARRAY_DEPTH + 1 {
            value = Array::new(value.value_type(), [value]).unwrap().into();
            let set = header.set(&format!("depth {depth}"), value.clone());
            assert_eq!(set.is_ok(), depth <= MAX_ARRAY_DEPTH, "{depth}");
        }
        assert_eq!(value.as_array().map(Array::item_type), Some(ValueType::Array));
    }

    #[test]
    fn tensors_are_checked() {
        let mut header = Header::new();
        for bad in ["", &"n".repeat(64)] {
            let added = header.tensor(bad, TensorType::F32, &[1]);
            assert!(matches!(added, Err(FormatError::TensorName { found }) if found == bad));
        }
        header.tensor("a", TensorType::F32, &[1, 1, 1, 1]).unwrap();
        let added = header.tensor("a", TensorType::F16, &[1]);
        assert!(matches!(added, Err(FormatError::DuplicateTensor { name }) if name == "a"));
        let added = header.tensor("b", TensorType::F32, &[1; 5]);
        assert!(matches!(added, Err(FormatError::Axes { name, found: 5 }) if name == "b"));
        for shape in [[3, 255], [usize::MAX, 256]] {
            let added = header.tensor("b", TensorType::Tq2_0, &shape);
            assert!(matches!(added, Err(FormatError::TensorShape { name, block: 256, .. }) if name == "b"));
        }
    }

    #[test]
    fn more_than_any_file_holds_is_refused() {
        for axes in [&[usize::MAX][..], &[usize::MAX - 31, usize::MAX / 2]] {
            let mut header = Header::new();
            for (i, &axis) in axes.iter().enumerate() {
                header.tensor(&i.to_string(), TensorType::I8, &[axis]).unwrap();
            }
            assert!(matches!(header.write_to(io::sink()), Err(FormatError::TensorShape { .. })));
        }
    }

    #[test]
    fn data_come_in_the_announced_order() {
        let mut header = Header::new();
        header.tensor("a", TensorType::I8, &[3]).unwrap();
        header.tensor("b", TensorType::I8, &[1]).unwrap();
        let mut writer = header.write_to(Vec::new()).unwrap();
        assert!(matches!(
            writer.tensor("b", &[1]),
            Err(FormatError::TensorOrder { found, expected: Some(next) }) if found == "b" && next == "a"
        ));
        assert!(matches!(
            writer.tensor("a", &[1; 4]),
            Err(FormatError::TensorLen { found: 4, expected: 3, .. })
        ));
        writer.tensor("a", &[1, 2, 3]).unwrap();
        writer.tensor("b", &[4]).unwrap();
        assert!(matches!(writer.tensor("b", &[4]), Err(FormatError::TensorOrder { expected: None, .. })));
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes.len() % 32, 0);
        assert_eq!(bytes[bytes.len() - 64..][..4], [1, 2, 3, 0]);

        let mut header = Header::new();
        header.tensor("a", TensorType::I8, &[3]).unwrap();
        let unfinished = header.write_to(Vec::new()).unwrap().finish();
        assert!(matches!(unfinished, Err(FormatError::Unfinished { name, count: 1 }) if name == "a"));
    }

    #[test]
    fn parts_make_the_same_file() {
        let header = || {
            let mut header = Header::new();
            header.tensor("a", TensorType::I8, &[40]).unwrap();
            header.tensor("b", TensorType::I8, &[2]).unwrap();
            header
        };
        let data: Vec<u8> = (0..40).collect();
        let mut whole = header().write_to(Vec::new()).unwrap();
        whole.tensor("a", &data).unwrap();
        whole.tensor("b", &[1, 2]).unwrap();

        let mut parts = header().write_to(Vec::new()).unwrap();
        for part in data.chunks(7) {
            parts.part("a", part).unwrap();
        }
        parts.part("b", &[]).unwrap();
        parts.part("b", &[1]).unwrap();
        assert!(matches!(parts.part("a", &[1]), Err(FormatError::TensorOrder { .. })));
        for too_long in [parts.part("b", &[2, 3]), parts.tensor("b", &[2, 3])] {
            assert!(matches!(too_long, Err(FormatError::TensorLen { found: 3, expected: 2, .. })));
        }
        parts.part("b", &[2]).unwrap();
        assert_eq!(parts.finish().unwrap(), whole.finish().unwrap());

        let mut half = header().write_to(Vec::new()).unwrap();
        half.part("a", &data[..39]).unwrap();
        assert!(matches!(half.finish(), Err(FormatError::Unfinished { name, count: 2 }) if name == "a"));
    }

    #[test]
    fn a_full_disk_is_reported() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let written = Header::new().write_to(Full);
        assert!(
            matches!(written, Err(FormatError::Write(error)) if error.kind() == io::ErrorKind::StorageFull)
        );
    }
}
