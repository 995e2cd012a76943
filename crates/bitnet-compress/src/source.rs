//! A checkpoint on disk: its safetensors files, `config.json`, and what lies beside.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::Value;

use crate::page::PAGE;
use crate::plan::STATS;
use crate::{CompressError, at};

/// Headers beyond this are refused, as by the safetensors crate.
const MAX_HEADER: u64 = 100_000_000;
/// Other files of this size are copied.
const MAX_COMPANION: u64 = 256 << 20;
/// What is written beside the tensors: a file of that name in the source is another's.
const RESERVED: [&str; 2] = [STATS, PAGE];
/// Files of weights in forms that would contradict the new ones.
const WEIGHTS: [&str; 12] =
    ["safetensors", "bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx", "gguf", "npz", "tflite", "ot"];

/// One safetensors file.
pub(crate) struct SourceFile {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) bytes: u64,
    /// Nanoseconds since 1970.
    modified: u128,
    /// The strings of its header.
    pub(crate) metadata: BTreeMap<String, String>,
}

/// One tensor of it.
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Index of the file.
    pub(crate) file: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: Dtype,
    /// Where its bytes begin in the file.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// A checkpoint.
pub(crate) struct Source {
    pub(crate) files: Vec<SourceFile>,
    /// By file, then by offset.
    pub(crate) tensors: Vec<Tensor>,
    /// `config.json`.
    pub(crate) config: Option<Value>,
    /// Name and content of the index.
    pub(crate) index: Option<(String, Value)>,
    /// What is copied: path from the source's folder, and bytes.
    pub(crate) companions: Vec<(PathBuf, u64)>,
    /// What is not.
    pub(crate) skipped: Vec<String>,
    /// Where companions lie.
    pub(crate) folder: PathBuf,
}

impl Source {
    /// Reads the headers of a safetensors file or of a folder's.
    pub(crate) fn open(path: &Path) -> Result<Self, CompressError> {
        let metadata = fs::metadata(path).map_err(read_error(path))?;
        let (folder, names, index) = if metadata.is_dir() {
            let index = find_index(path)?;
            (path.to_owned(), weight_files(path, index.as_ref())?, index)
        } else {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let folder = path.parent().unwrap_or(Path::new("")).to_owned();
            (folder, vec![name], None)
        };
        let mut source = Self {
            files: Vec::new(),
            tensors: Vec::new(),
            config: None,
            index,
            companions: Vec::new(),
            skipped: Vec::new(),
            folder,
        };
        for name in names {
            source.open_file(name)?;
        }
        source.check_names()?;
        let config = source.folder.join("config.json");
        if config.is_file() {
            source.config = Some(read_json(&config)?);
        }
        if metadata.is_dir() {
            source.find_companions(Path::new(""))?;
        }
        Ok(source)
    }

    fn open_file(&mut self, name: String) -> Result<(), CompressError> {
        let path = self.folder.join(&name);
        let read = read_error(&path);
        let file = File::open(&path).map_err(&read)?;
        let (bytes, modified) = size_and_time(&file).map_err(&read)?;
        let damaged = |reason: String| CompressError::Damaged { path: path.clone(), reason };
        if bytes < 8 {
            return Err(damaged(format!("it has {bytes} bytes, a header has at least 8")));
        }
        let mut length = [0; 8];
        at::read(&file, &mut length, 0).map_err(&read)?;
        if length.starts_with(b"GGUF") {
            return Err(CompressError::Gguf { path: path.clone() });
        }
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER || length + 8 > bytes {
            return Err(damaged(format!("its header claims {length} bytes, the file has {bytes}")));
        }
        let mut header = vec![0; length as usize];
        at::read(&file, &mut header, 8).map_err(&read)?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|error| damaged(format!("its header: {error}")))?;
        let expected = 8 + length + header.data_len() as u64;
        if bytes != expected {
            return Err(damaged(format!("it has {bytes} bytes, its header implies {expected}")));
        }
        let mut tensors: Vec<Tensor> = header
            .tensors()
            .into_iter()
            .map(|(name, info)| Tensor {
                name,
                file: self.files.len(),
                shape: info.shape.clone(),
                dtype: info.dtype,
                offset: 8 + length + info.data_offsets.0 as u64,
                bytes: (info.data_offsets.1 - info.data_offsets.0) as u64,
            })
            .collect();
        tensors.sort_by(|a, b| (a.offset, a.bytes, &a.name).cmp(&(b.offset, b.bytes, &b.name)));
        self.tensors.extend(tensors);
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        self.files.push(SourceFile { name, path: path.clone(), file, bytes, modified, metadata });
        Ok(())
    }

    /// Each name once, and where the index says.
    fn check_names(&self) -> Result<(), CompressError> {
        let mut known = BTreeMap::new();
        for tensor in &self.tensors {
            if let Some(first) = known.insert(tensor.name.as_str(), tensor.file) {
                return Err(CompressError::TwiceInSource {
                    name: tensor.name.clone(),
                    first: self.files[first].name.clone(),
                    second: self.files[tensor.file].name.clone(),
                });
            }
        }
        let Some((_, index)) = &self.index else { return Ok(()) };
        for (name, file) in index["weight_map"].as_object().into_iter().flatten() {
            let file = file.as_str().unwrap_or_default();
            if known.get(name.as_str()).is_none_or(|&found| self.files[found].name != file) {
                return Err(CompressError::MissingTensor { name: name.clone(), file: file.into() });
            }
        }
        Ok(())
    }

    /// Sorts the other files of a folder, and of those below it, into copied and not.
    fn find_companions(&mut self, below: &Path) -> Result<(), CompressError> {
        let folder = self.folder.join(below);
        let mut entries = Vec::new();
        for entry in fs::read_dir(&folder).map_err(read_error(&folder))? {
            entries.push(entry.map_err(read_error(&folder))?.file_name());
        }
        entries.sort();
        for name in entries {
            let (path, text) = (below.join(&name), name.to_string_lossy().into_owned());
            let whole = self.folder.join(&path);
            let at_top = below.as_os_str().is_empty();
            // Follows links: the hub's cache is made of them. Some lead nowhere, or back to a folder that they are in.
            let metadata = match (fs::metadata(&whole), fs::canonicalize(&whole), fs::canonicalize(&folder)) {
                (Ok(metadata), Ok(target), Ok(folder)) if !folder.starts_with(&target) => metadata,
                _ => {
                    self.skipped.push(path.to_string_lossy().into_owned());
                    continue;
                }
            };
            if at_top && (self.files.iter().any(|file| file.name == text) || self.is_index(&text)) {
                continue;
            }
            if text.starts_with('.') || (at_top && RESERVED.contains(&text.as_str())) {
                self.skipped.push(path.to_string_lossy().into_owned());
                continue;
            }
            let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            let is_weights = WEIGHTS.contains(&extension.as_str()) || text.ends_with(".index.json");
            if metadata.is_dir() {
                self.find_companions(&path)?;
            } else if metadata.is_file() && !is_weights && metadata.len() <= MAX_COMPANION {
                self.companions.push((path, metadata.len()));
            } else {
                self.skipped.push(path.to_string_lossy().into_owned());
            }
        }
        Ok(())
    }

    fn is_index(&self, name: &str) -> bool {
        self.index.as_ref().is_some_and(|(index, _)| index == name)
    }

    /// Whether every file is as it was when it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<(), CompressError> {
        for file in &self.files {
            let found = fs::metadata(&file.path).map_err(read_error(&file.path))?;
            let found = (found.len(), nanoseconds(&found).map_err(read_error(&file.path))?);
            if found != (file.bytes, file.modified) {
                return Err(CompressError::Changed { path: file.path.clone() });
            }
        }
        Ok(())
    }

    /// Name, size and time of each file: what a run that is resumed must find again.
    pub(crate) fn fingerprint(&self) -> Vec<String> {
        let files = self.files.iter();
        files.map(|file| format!("{} {} {}", file.name, file.bytes, file.modified)).collect()
    }
}

/// The index of a folder's files.
fn find_index(folder: &Path) -> Result<Option<(String, Value)>, CompressError> {
    let mut names = names_ending(folder, ".safetensors.index.json")?;
    names.sort_by_key(|name| name != "model.safetensors.index.json");
    let Some(name) = names.into_iter().next() else { return Ok(None) };
    let path = folder.join(&name);
    let index = read_json(&path)?;
    let wrong = |reason: String| CompressError::Json { path: path.clone(), reason };
    let Some(map) = index["weight_map"].as_object() else {
        return Err(wrong("`weight_map` is no object".into()));
    };
    for (tensor, file) in map {
        let plain = file.as_str().filter(|file| Path::new(file).file_name() == Some(file.as_ref()));
        if plain.is_none() {
            return Err(wrong(format!("`weight_map.{tensor}` is {file}, expected a file name")));
        }
    }
    // `total_size` is written there.
    if !(index["metadata"].is_null() || index["metadata"].is_object()) {
        return Err(wrong("`metadata` is no object".into()));
    }
    Ok(Some((name, index)))
}

/// Those that an index names, else `model.safetensors`, else all.
fn weight_files(folder: &Path, index: Option<&(String, Value)>) -> Result<Vec<String>, CompressError> {
    if let Some((_, index)) = index {
        let map = index["weight_map"].as_object().into_iter().flatten();
        let mut names: Vec<String> = map.filter_map(|(_, file)| Some(file.as_str()?.to_owned())).collect();
        names.sort();
        names.dedup();
        return Ok(names);
    }
    let mut names = names_ending(folder, ".safetensors")?;
    if names.iter().any(|name| name == "model.safetensors") {
        names = vec!["model.safetensors".into()];
    }
    if names.is_empty() { Err(CompressError::NoWeights { path: folder.into() }) } else { Ok(names) }
}

fn names_ending(folder: &Path, end: &str) -> Result<Vec<String>, CompressError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(read_error(folder))? {
        let name = entry.map_err(read_error(folder))?.file_name().to_string_lossy().into_owned();
        if name.ends_with(end) && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn read_json(path: &Path) -> Result<Value, CompressError> {
    let text = fs::read(path).map_err(read_error(path))?;
    serde_json::from_slice(&text)
        .map_err(|error| CompressError::Json { path: path.into(), reason: error.to_string() })
}

fn size_and_time(file: &File) -> std::io::Result<(u64, u128)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), nanoseconds(&metadata)?))
}

fn nanoseconds(metadata: &fs::Metadata) -> std::io::Result<u128> {
    Ok(metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos())
}

pub(crate) fn read_error(path: &Path) -> impl Fn(std::io::Error) -> CompressError {
    move |source| CompressError::Read { path: path.into(), source }
}

pub(crate) fn write_error(path: &Path) -> impl Fn(std::io::Error) -> CompressError {
    move |source| CompressError::Write { path: path.into(), source }
}
