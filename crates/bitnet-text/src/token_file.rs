//! Files of tokens: one integer tensor in a safetensors file, read by position.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::TextError;

/// The tensor in files that are written here.
pub(crate) const TENSOR: &str = "tokens";

/// A safetensors header larger than this is none.
const MAX_HEADER: u64 = 100_000_000;

/// The header of files that are written here, its length included: the number of tokens is known last.
const HEADER: usize = 256;

/// Tokens read at once where all are looked at.
const PIECE: u64 = 1 << 16;

/// One tensor of tokens in a safetensors file, of any shape, in U16, I32, U32 or I64.
///
/// It is read by position and never held: memory stays the same whatever its size.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    file: File,
    /// Where the tensor begins in the file.
    start: u64,
    len: u64,
    dtype: Dtype,
}

impl TokenFile {
    /// Opens a tensor of tokens.
    ///
    /// # Errors
    /// - [`TextError::Read`] where the file cannot be read
    /// - [`TextError::TokenFile`] where it is no safetensors file, or the tensor is absent, of another type or cut off
    pub fn open(path: impl AsRef<Path>, tensor: &str) -> Result<Self, TextError> {
        let path = path.as_ref();
        let read = |source| TextError::Read { path: path.into(), source };
        let wrong = |reason: String| TextError::TokenFile { path: path.into(), reason };
        let mut file = File::open(path).map_err(read)?;
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| wrong("it is shorter than 8 bytes".into()))?;
        let header_len = u64::from_le_bytes(length);
        let file_len = file.metadata().map_err(read)?.len();
        if header_len > MAX_HEADER || header_len > file_len.saturating_sub(8) {
            return Err(wrong("expected safetensors, with the header's length first".into()));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).map_err(read)?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|error| wrong(error.to_string()))?;
        let info = header.info(tensor).ok_or_else(|| {
            let mut names: Vec<String> = header.tensors().into_keys().collect();
            names.sort();
            wrong(format!("there is no tensor `{tensor}` but {names:?}"))
        })?;
        if !matches!(info.dtype, Dtype::U16 | Dtype::I32 | Dtype::U32 | Dtype::I64) {
            return Err(wrong(format!("`{tensor}` is {:?}: expected U16, I32, U32 or I64", info.dtype)));
        }
        let (from, to) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let data = 8 + header_len;
        if to < from || data.checked_add(to).is_none_or(|end| end > file_len) {
            return Err(wrong(format!(
                "it has {file_len} bytes, `{tensor}` ends at {to} behind the first {data}"
            )));
        }
        let len = (to - from) / width(info.dtype) as u64;
        Ok(Self { path: path.into(), file, start: data + from, len, dtype: info.dtype })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of tokens.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `count` tokens from `first` on; fewer at the end.
    ///
    /// # Errors
    /// [`TextError::Read`] where the file cannot be read, [`TextError::TokenFile`] for a negative or too large token.
    pub fn read(&self, first: u64, count: usize) -> Result<Vec<u32>, TextError> {
        let first = first.min(self.len);
        let count = (count as u64).min(self.len - first) as usize;
        let width = width(self.dtype);
        let mut bytes = vec![0; count * width];
        read_exact_at(&self.file, &mut bytes, self.start + first * width as u64)
            .map_err(|source| TextError::Read { path: self.path.clone(), source })?;
        let tokens = bytes.chunks_exact(width).enumerate().map(|(i, bytes)| {
            decode(self.dtype, bytes).ok_or_else(|| TextError::TokenFile {
                path: self.path.clone(),
                reason: format!("position {} holds no token", first + i as u64),
            })
        });
        tokens.collect()
    }

    /// SHA-256 of the tokens, as little-endian u32, in one pass over the file.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn fingerprint(&self) -> Result<String, TextError> {
        let mut hash = Sha256::new();
        for first in (0..self.len).step_by(PIECE as usize) {
            let tokens = self.read(first, PIECE as usize)?;
            hash.update(tokens.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Checks that a model with this vocabulary knows every token, in one pass over the file.
    ///
    /// # Errors
    /// [`TextError::TokenFile`] names the first token that is too high, and those of [`read`](Self::read).
    pub fn check_vocab(&self, vocab_size: usize) -> Result<(), TextError> {
        for first in (0..self.len).step_by(PIECE as usize) {
            let tokens = self.read(first, PIECE as usize)?;
            if let Some(i) = tokens.iter().position(|&token| token as usize >= vocab_size) {
                let (token, position) = (tokens[i], first + i as u64);
                let reason = format!(
                    "token {token} at position {position}: expected below the vocabulary size {vocab_size}"
                );
                return Err(TextError::TokenFile { path: self.path.clone(), reason });
            }
        }
        Ok(())
    }
}

/// Bytes of a token.
fn width(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

/// A token from its bytes; `None` for what is none.
fn decode(dtype: Dtype, bytes: &[u8]) -> Option<u32> {
    match dtype {
        Dtype::U16 => Some(u16::from_le_bytes(bytes.try_into().ok()?).into()),
        Dtype::I64 => u32::try_from(i64::from_le_bytes(bytes.try_into().ok()?)).ok(),
        Dtype::I32 => u32::try_from(i32::from_le_bytes(bytes.try_into().ok()?)).ok(),
        _ => Some(u32::from_le_bytes(bytes.try_into().ok()?)),
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(not(unix))]
fn read_exact_at(mut file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(bytes)
}

/// A token file in the making: one U32 tensor, `tokens`, written from front to back.
pub(crate) struct TokenWriter {
    file: BufWriter<File>,
    len: u64,
}

impl TokenWriter {
    /// Begins with an empty file.
    pub(crate) fn new(file: File) -> std::io::Result<Self> {
        file.set_len(0)?;
        let mut file = BufWriter::new(file);
        file.seek(SeekFrom::Start(HEADER as u64))?;
        Ok(Self { file, len: 0 })
    }

    pub(crate) fn write(&mut self, tokens: &[u32]) -> std::io::Result<()> {
        for token in tokens {
            self.file.write_all(&token.to_le_bytes())?;
        }
        self.len += tokens.len() as u64;
        Ok(())
    }

    /// Writes the header, waits until all is on the disk and returns the number of tokens.
    pub(crate) fn finish(mut self) -> std::io::Result<u64> {
        let info = json!({ "dtype": "U32", "shape": [self.len], "data_offsets": [0, 4 * self.len] });
        let mut header = json!({ TENSOR: info }).to_string().into_bytes();
        header.resize(HEADER - 8, b' ');
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&(header.len() as u64).to_le_bytes())?;
        self.file.write_all(&header)?;
        self.file.into_inner().map_err(|error| error.into_error())?.sync_all()?;
        Ok(self.len)
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn file_of(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let view = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        std::fs::write(file.path(), safetensors::serialize([("ids", view)], None).unwrap()).unwrap();
        file
    }

    #[test]
    fn every_type_of_token_is_read_at_any_position() {
        let tokens = [0u32, 7, 65_535, 3, 9, 11];
        let encoded: [(Dtype, Vec<u8>); 4] = [
            (Dtype::U16, tokens.iter().flat_map(|&t| (t as u16).to_le_bytes()).collect()),
            (Dtype::I32, tokens.iter().flat_map(|&t| (t as i32).to_le_bytes()).collect()),
            (Dtype::U32, tokens.iter().flat_map(|&t| t.to_le_bytes()).collect()),
            (Dtype::I64, tokens.iter().flat_map(|&t| i64::from(t).to_le_bytes()).collect()),
        ];
        for (dtype, bytes) in encoded {
            let file = file_of(dtype, &[2, 3], &bytes);
            let found = TokenFile::open(file.path(), "ids").unwrap();
            assert_eq!(found.len(), 6);
            for first in 0..7 {
                for count in 0..8 {
                    let expected = &tokens[first.min(6)..(first + count).min(6)];
                    assert_eq!(found.read(first as u64, count).unwrap(), expected, "{dtype:?}");
                }
            }
            assert!(found.read(u64::MAX, 1).unwrap().is_empty());
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = TokenWriter::new(file.reopen().unwrap()).unwrap();
        writer.write(&[1, 2]).unwrap();
        writer.write(&[3]).unwrap();
        assert_eq!(writer.finish().unwrap(), 3);
        assert_eq!(TokenFile::open(file.path(), TENSOR).unwrap().read(0, 9).unwrap(), [1, 2, 3]);
        let bytes = std::fs::read(file.path()).unwrap();
        assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().names(), [TENSOR]);
    }

    #[test]
    fn damaged_files_are_refused() {
        let reason = |bytes: &[u8], tensor: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            match TokenFile::open(file.path(), tensor) {
                Err(TextError::TokenFile { reason, .. }) => reason,
                other => panic!("{other:?}"),
            }
        };
        let good = std::fs::read(file_of(Dtype::U32, &[4], &[0; 16])).unwrap();
        assert!(reason(b"text", "ids").contains("8 bytes"));
        assert!(reason(b"a text of no interest", "ids").contains("header"));
        assert!(reason(&good[..good.len() - 1], "ids").contains("ends at"));
        assert!(reason(&good, "tokens").contains("[\"ids\"]"));
        let floats = std::fs::read(file_of(Dtype::F32, &[4], &[0; 16])).unwrap();
        assert!(reason(&floats, "ids").contains("F32"));
        assert!(matches!(TokenFile::open("no such file", "ids"), Err(TextError::Read { .. })));
        // Each tensor is as long as its offsets say, and all of them together nearly wrap around.
        let most = u64::MAX / 8;
        let tensor = |dtype: &str, len: u64, from: u64, to: u64| json!({ "dtype": dtype, "shape": [len], "data_offsets": [from, to] });
        let mut header = serde_json::Map::new();
        for i in 0..8 {
            header.insert(format!("{i}"), tensor("U8", most, i * most, (i + 1) * most));
        }
        header.insert("ids".into(), tensor("U32", 1, 8 * most, 8 * most + 4));
        let header = serde_json::to_vec(&header).unwrap();
        let crafted = [&(header.len() as u64).to_le_bytes()[..], &header, &[0; 16]].concat();
        assert!(reason(&crafted, "ids").contains("ends at 18446744073709551612"));
    }

    #[test]
    fn tokens_out_of_range_are_named() {
        let file = file_of(Dtype::I32, &[3], &[5_i32, -1, 9].map(i32::to_le_bytes).concat());
        let tokens = TokenFile::open(file.path(), "ids").unwrap();
        assert!(tokens.read(0, 1).is_ok());
        assert!(tokens.read(0, 3).unwrap_err().to_string().contains("position 1"));
        let file = file_of(Dtype::I32, &[3], &[5_i32, 3, 9].map(i32::to_le_bytes).concat());
        let tokens = TokenFile::open(file.path(), "ids").unwrap();
        tokens.check_vocab(10).unwrap();
        assert!(tokens.check_vocab(9).unwrap_err().to_string().contains("token 9 at position 2"));
    }
}
