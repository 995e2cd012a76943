//! What the headers of a checkpoint's files say, for whoever compresses it in another way.

use std::path::{Path, PathBuf};

use crate::source::Source;
use crate::{CompressError, Float};

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its full name.
    pub name: String,
    /// The file that it is in.
    pub file: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its type, as reports name it.
    pub dtype: String,
    /// The same where linear weights can have it.
    pub float: Option<Float>,
    /// Its bytes.
    pub bytes: u64,
}

/// A checkpoint's tensors, and what lies beside them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headers {
    /// Names and sizes of the safetensors files.
    pub files: Vec<(String, u64)>,
    /// By file, then by offset.
    pub tensors: Vec<Header>,
    /// Other small files, from the checkpoint's folder.
    pub companions: Vec<PathBuf>,
    /// Files that do not go with ternary weights: weights in other forms, hidden and very large files.
    pub skipped: Vec<String>,
    /// Name, size and time of each safetensors file: another one is another checkpoint.
    pub fingerprint: Vec<String>,
}

/// Reads the headers of a safetensors file, or of those of a folder.
///
/// # Errors
/// Those of [`Plan::new`](crate::Plan::new) that concern the source.
pub fn headers(path: &Path) -> Result<Headers, CompressError> {
    let source = Source::open(path)?;
    let fingerprint = source.fingerprint();
    let tensors = source.tensors.into_iter().map(|tensor| Header {
        file: source.files[tensor.file].name.clone(),
        dtype: format!("{:?}", tensor.dtype).to_lowercase(),
        float: Float::of(tensor.dtype),
        name: tensor.name,
        shape: tensor.shape,
        bytes: tensor.bytes,
    });
    Ok(Headers {
        tensors: tensors.collect(),
        files: source.files.iter().map(|file| (file.name.clone(), file.bytes)).collect(),
        companions: source.companions.into_iter().map(|(path, _)| path).collect(),
        skipped: source.skipped,
        fingerprint,
    })
}
