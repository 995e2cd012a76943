//! Safetensors files of a checkpoint folder: memory-mapped for reading, written beside and renamed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors, View};
use serde_json::{Map, Value, json};

use crate::ConvertError;
use crate::json::{read_json, write_json};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The type that float weights are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
}

impl WeightType {
    fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    /// The name in config.json's `dtype`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
        }
    }

    /// Whether a value stays finite in this type.
    fn holds(self, value: f32) -> bool {
        match self {
            Self::F32 => value.is_finite(),
            Self::F16 => f16::from_f32(value).is_finite(),
            Self::BF16 => bf16::from_f32(value).is_finite(),
        }
    }

    /// Little-endian bytes of f32 values in this type, rounded to nearest even.
    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            Self::BF16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        }
    }
}

/// Where each tensor of a checkpoint stands and in which type: kept to write a folder that looks like its source.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// File name and type per tensor.
    tensors: BTreeMap<String, (String, WeightType)>,
    /// The type of tensors that have no place yet.
    new_type: Option<WeightType>,
}

impl Layout {
    /// The same files with every tensor in one type.
    pub fn with_type(mut self, weight_type: WeightType) -> Self {
        for (_, found) in self.tensors.values_mut() {
            *found = weight_type;
        }
        self.new_type = Some(weight_type);
        self
    }

    /// File and type for a tensor: its own, else those of the tensor with the longest common name, so that a new
    /// norm lands beside its projection.
    fn place(&self, name: &str) -> (&str, WeightType) {
        let shared = |other: &str| name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let found = self
            .tensors
            .get(name)
            .or_else(|| self.tensors.iter().max_by_key(|(other, _)| shared(other)).map(|(_, place)| place));
        let new_type = self.new_type.unwrap_or(WeightType::F32);
        found.map_or((SINGLE, new_type), |(file, weight_type)| (file.as_str(), *weight_type))
    }
}

struct Shard {
    path: PathBuf,
    map: Mmap,
    /// Where the tensors' bytes begin.
    start: usize,
    header: Metadata,
}

/// The tensors of a checkpoint folder, on disk.
pub(crate) struct Shards {
    shards: Vec<Shard>,
    /// Index into `shards` per tensor.
    tensors: BTreeMap<String, usize>,
}

impl Shards {
    /// Maps the one file, or all that the index names.
    pub(crate) fn open(folder: &Path) -> Result<Self, ConvertError> {
        let (index, single) = (folder.join(INDEX), folder.join(SINGLE));
        if index.is_file() {
            return Self::open_index(&index, folder);
        }
        if !single.is_file() {
            return Err(ConvertError::NoWeights { folder: folder.into() });
        }
        let shard = Shard::open(single)?;
        let tensors = shard.header.tensors().into_keys().map(|name| (name, 0)).collect();
        Ok(Self { shards: vec![shard], tensors })
    }

    fn open_index(index: &Path, folder: &Path) -> Result<Self, ConvertError> {
        let json = read_json(index)?;
        let wrong = |reason: &str| ConvertError::Json { path: index.into(), reason: reason.into() };
        let weight_map = json
            .get("weight_map")
            .and_then(Value::as_object)
            .ok_or_else(|| wrong("`weight_map` is no object"))?;
        let mut files: Vec<&str> = Vec::new();
        let mut tensors = BTreeMap::new();
        for (name, file) in weight_map {
            let file = file.as_str().ok_or_else(|| wrong(&format!("`weight_map.{name}` is no string")))?;
            if Path::new(file).file_name() != Some(file.as_ref()) {
                return Err(wrong(&format!("`weight_map.{name}` is `{file}`: expected a file name")));
            }
            let shard = files.iter().position(|known| *known == file).unwrap_or_else(|| {
                files.push(file);
                files.len() - 1
            });
            tensors.insert(name.clone(), shard);
        }
        let mut shards = Vec::with_capacity(files.len());
        for file in files {
            let path = folder.join(file);
            if !path.is_file() {
                return Err(ConvertError::AbsentShard { index: index.into(), shard: file.into() });
            }
            shards.push(Shard::open(path)?);
        }
        // A tensor that its shard lacks is missing, one that only a shard knows is there: the shards decide.
        tensors.retain(|name, shard| shards[*shard].header.info(name).is_some());
        for (i, shard) in shards.iter().enumerate() {
            for name in shard.header.tensors().into_keys() {
                tensors.entry(name).or_insert(i);
            }
        }
        Ok(Self { shards, tensors })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of a tensor and its type, as text where it is no float type that is read.
    pub(crate) fn info(&self, name: &str) -> Option<(&[usize], Result<WeightType, String>)> {
        let (_, info) = self.find(name)?;
        Some((&info.shape, WeightType::of(info.dtype).ok_or_else(|| format!("{:?}", info.dtype))))
    }

    /// The values of a tensor, widened to f32.
    ///
    /// # Errors
    /// [`ConvertError::NotFinite`] at the first NaN or infinity.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<f32>>, ConvertError> {
        let Some((shard, info)) = self.find(name) else {
            return Ok(None);
        };
        let (from, to) = info.data_offsets;
        let bytes = &shard.map[shard.start + from..shard.start + to];
        let values: Vec<f32> = match WeightType::of(info.dtype) {
            Some(WeightType::F32) => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Some(WeightType::F16) => {
                bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
            }
            Some(WeightType::BF16) => {
                bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
            None => return Ok(None),
        };
        shard.forget(shard.start + from, to - from);
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(ConvertError::NotFinite { name: name.into(), index, value: values[index] }),
            None => Ok(Some(values)),
        }
    }

    pub(crate) fn layout(&self) -> Layout {
        let tensors = self.tensors.iter().filter_map(|(name, &shard)| {
            let file = self.shards[shard].path.file_name()?.to_string_lossy().into_owned();
            let weight_type = WeightType::of(self.shards[shard].header.info(name)?.dtype)?;
            Some((name.clone(), (file, weight_type)))
        });
        Layout { tensors: tensors.collect(), new_type: None }
    }

    fn find(&self, name: &str) -> Option<(&Shard, &TensorInfo)> {
        let shard = &self.shards[*self.tensors.get(name)?];
        Some((shard, shard.header.info(name)?))
    }
}

impl Shard {
    #[allow(unsafe_code, reason = "a memory map is how a checkpoint is read without holding it twice")]
    fn open(path: PathBuf) -> Result<Self, ConvertError> {
        let read = |source| ConvertError::Read { path: path.clone(), source };
        let file = File::open(&path).map_err(read)?;
        // SAFETY: the map is read only. Another process that truncates the file meanwhile would end this one with a
        // signal, as for every mapped file; nothing else can go wrong, since all bytes are valid numbers.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        let unsound = |reason| ConvertError::Safetensors { path: path.clone(), reason };
        let (header_len, header) =
            SafeTensors::read_metadata(&map).map_err(|error| unsound(error.to_string()))?;
        let start = header_len + size_of::<u64>();
        let (found, expected) = (map.len() - start, header.data_len());
        if found != expected {
            return Err(unsound(format!("{found} bytes of tensors, the header implies {expected}")));
        }
        Ok(Self { path, map, start, header })
    }

    /// Lets the system take back the pages of a range that has been read, so that a file is never in memory as a whole.
    #[allow(unsafe_code, reason = "the advice has no safe form")]
    fn forget(&self, offset: usize, len: usize) {
        // SAFETY: the map is read only and backed by the file: a page that is dropped is read from there again.
        // A system that does not take the advice only keeps more memory in use.
        #[cfg(unix)]
        let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, len) };
        #[cfg(not(unix))]
        let _ = (offset, len);
    }
}

/// One tensor to be written: read from its device only when its turn comes.
pub(crate) struct Pending<'a> {
    pub(crate) shape: Vec<usize>,
    pub(crate) read: Box<dyn Fn() -> Result<Vec<f32>, ConvertError> + 'a>,
}

struct Encoded<'a> {
    name: &'a str,
    pending: &'a Pending<'a>,
    weight_type: WeightType,
    /// The first error of a read: [`View::data`] cannot return one.
    failure: &'a std::cell::RefCell<Option<ConvertError>>,
}

impl View for Encoded<'_> {
    fn dtype(&self) -> Dtype {
        self.weight_type.dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.pending.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let finite = |values: Vec<f32>| match values.iter().position(|&value| !self.weight_type.holds(value))
        {
            Some(index) => {
                Err(ConvertError::NotFinite { name: self.name.into(), index, value: values[index] })
            }
            None => Ok(values),
        };
        match (self.pending.read)().and_then(finite) {
            Ok(values) => Cow::Owned(self.weight_type.encode(&values)),
            Err(error) => {
                self.failure.borrow_mut().get_or_insert(error);
                Cow::Owned(vec![0; self.data_len()])
            }
        }
    }

    fn data_len(&self) -> usize {
        self.pending.shape.iter().product::<usize>() * self.dtype().bitsize() / 8
    }
}

/// Writes all tensors into the files of a layout, one tensor in memory at a time, with an index if there are
/// several files. The folder is not yet under its final name.
pub(crate) fn write_shards(
    folder: &Path,
    layout: &Layout,
    tensors: &BTreeMap<String, Pending>,
) -> Result<(), ConvertError> {
    let failure = std::cell::RefCell::new(None);
    let mut files: BTreeMap<&str, Vec<(&str, Encoded)>> = BTreeMap::new();
    for (name, pending) in tensors {
        let (file, weight_type) = layout.place(name);
        files
            .entry(file)
            .or_default()
            .push((name, Encoded { name, pending, weight_type, failure: &failure }));
    }
    let mut weight_map = Map::new();
    let mut total_size = 0;
    let n_files = files.len();
    let single = files.keys().all(|file| *file == SINGLE);
    for (file, tensors) in files {
        for (name, encoded) in &tensors {
            weight_map.insert((*name).into(), json!(file));
            total_size += encoded.data_len();
        }
        let path = folder.join(file);
        let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
        let write = |source| ConvertError::Write { path: path.clone(), source };
        // The library renames a private temporary file into place: give it the mode of an ordinary new file.
        let permissions = File::create(&path).and_then(|file| file.metadata()).map_err(write)?.permissions();
        safetensors::serialize_to_file(tensors, metadata, &path)
            .map_err(|error| write(std::io::Error::other(error.to_string())))?;
        std::fs::set_permissions(&path, permissions).map_err(write)?;
        if let Some(error) = failure.borrow_mut().take() {
            return Err(error);
        }
    }
    if n_files > 1 || !single {
        let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
        write_json(&folder.join(INDEX), &index)?;
    }
    Ok(())
}
