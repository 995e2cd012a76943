//! Safetensors files of a checkpoint folder: memory-mapped for reading, written beside and renamed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bitnet_format::{HfScale, TernaryMatrix, WeightScale, hf};
use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::folder::{FLOATS, packed_shape, scale_name};
use crate::json::{read_json, write_json};
use crate::mapped::Mapped;
use crate::progress::Progress;
use crate::source::{Content, Entry, Sink, Source, read_ternary, weight_of_bias};
use crate::{ConvertError, TensorProblem};

pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

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

    /// Bytes of one value.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Replaces `values` by those of little-endian bytes, widened to f32.
    pub(crate) fn decode(self, bytes: &[u8], values: &mut Vec<f32>) {
        values.clear();
        match self {
            Self::F32 => values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
            Self::F16 => values.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
            Self::BF16 => values.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
        }
    }

    /// Whether a value stays finite in this type.
    pub(crate) fn holds(self, value: f32) -> bool {
        match self {
            Self::F32 => value.is_finite(),
            Self::F16 => f16::from_f32(value).is_finite(),
            Self::BF16 => bf16::from_f32(value).is_finite(),
        }
    }

    /// Little-endian bytes of f32 values in this type, rounded to nearest even.
    pub(crate) fn encode(self, values: &[f32]) -> Vec<u8> {
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
    /// The strings of each file's header.
    strings: BTreeMap<String, BTreeMap<String, String>>,
    /// The type of tensors that have no place yet.
    new_type: Option<WeightType>,
}

impl Layout {
    /// One file with tensors of these types.
    pub(crate) fn of_one_file(types: impl Iterator<Item = (String, WeightType)>) -> Self {
        let tensors = types.map(|(name, weight_type)| (name, (SINGLE.to_owned(), weight_type))).collect();
        Self { tensors, ..Self::default() }
    }

    /// The same files with every tensor in one type.
    pub fn with_type(mut self, weight_type: WeightType) -> Self {
        for (_, found) in self.tensors.values_mut() {
            *found = weight_type;
        }
        self.new_type = Some(weight_type);
        self
    }

    /// What the header of a file says beside its tensors: what the source's does, and, unless that says otherwise, that
    /// they stand as PyTorch has them, which transformers asks for.
    fn strings(&self, file: &str) -> BTreeMap<String, String> {
        let mut strings = self.strings.get(file).cloned().unwrap_or_default();
        strings.entry("format".into()).or_insert_with(|| "pt".into());
        strings
    }

    /// File and type for a tensor: its own, else those of the tensor with the longest common name, so that a new
    /// norm lands beside its projection.
    pub(crate) fn place(&self, name: &str) -> (&str, WeightType) {
        let shared = |other: &str| name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let found = self
            .tensors
            .get(name)
            .or_else(|| self.tensors.iter().max_by_key(|(other, _)| shared(other)).map(|(_, place)| place));
        let new_type = self.new_type.unwrap_or(WeightType::F32);
        found.map_or((SINGLE, new_type), |(file, weight_type)| (file.as_str(), *weight_type))
    }
}

/// The file of each tensor, as an index names it: plain file names.
fn weight_map(index: &Path, json: &Value) -> Result<BTreeMap<String, String>, ConvertError> {
    let wrong = |reason: &str| ConvertError::Json { path: index.into(), reason: reason.into() };
    let entries = json.get("weight_map").and_then(Value::as_object);
    let mut map = BTreeMap::new();
    for (name, file) in entries.ok_or_else(|| wrong("`weight_map` is no object"))? {
        let file = file.as_str().ok_or_else(|| wrong(&format!("`weight_map.{name}` is no string")))?;
        if Path::new(file).file_name() != Some(file.as_ref()) {
            return Err(wrong(&format!("`weight_map.{name}` is `{file}`: expected a file name")));
        }
        map.insert(name.clone(), file.to_owned());
    }
    Ok(map)
}

/// The files that an index names.
#[cfg(feature = "hub")]
pub(crate) fn shard_names(index: &Path) -> Result<BTreeSet<String>, ConvertError> {
    Ok(weight_map(index, &read_json(index)?)?.into_values().collect())
}

struct Shard {
    file: Mapped,
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
        Self::open_file(&single)
    }

    /// Maps one file of any name.
    pub(crate) fn open_file(path: &Path) -> Result<Self, ConvertError> {
        let shard = Shard::open(path.into())?;
        let tensors = shard.header.tensors().into_keys().map(|name| (name, 0)).collect();
        Ok(Self { shards: vec![shard], tensors })
    }

    fn open_index(index: &Path, folder: &Path) -> Result<Self, ConvertError> {
        let weight_map = weight_map(index, &read_json(index)?)?;
        let files: Vec<&String> = BTreeSet::from_iter(weight_map.values()).into_iter().collect();
        let place = |file| files.binary_search(&file).ok();
        let mut tensors: BTreeMap<String, usize> =
            weight_map.iter().filter_map(|(name, file)| Some((name.clone(), place(file)?))).collect();
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

    /// Shape and type of a tensor.
    pub(crate) fn info(&self, name: &str) -> Option<(&[usize], Dtype)> {
        let (_, info) = self.find(name)?;
        Some((&info.shape, info.dtype))
    }

    /// Bytes of a tensor in its file.
    pub(crate) fn n_bytes(&self, name: &str) -> Option<u64> {
        self.find(name).map(|(_, info)| (info.data_offsets.1 - info.data_offsets.0) as u64)
    }

    /// Calls `read` with the bytes of a tensor.
    pub(crate) fn with_bytes<R>(&self, name: &str, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let (shard, info) = self.find(name)?;
        Some(shard.file.with(shard.range(info), read))
    }

    /// The values of a tensor, widened to f32.
    ///
    /// # Errors
    /// Those of [`read_pieces`](Self::read_pieces).
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<f32>>, ConvertError> {
        let Some((shape, _)) = self.info(name) else {
            return Ok(None);
        };
        let mut values = Vec::with_capacity(shape.iter().product());
        self.read_pieces(name, &mut |piece| {
            values.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(Some(values))
    }

    /// Gives the values of a tensor, widened to f32, in consecutive pieces.
    ///
    /// # Errors
    /// [`ConvertError::Tensors`] where there is no such tensor of floats, [`ConvertError::NotFinite`] at the first NaN or
    /// infinity, and those of `sink`.
    pub(crate) fn read_pieces(&self, name: &str, sink: &mut Sink) -> Result<(), ConvertError> {
        let problem = |problem| Err(ConvertError::Tensors { problems: vec![problem] });
        let Some((shard, info)) = self.find(name) else {
            return problem(TensorProblem::Missing { name: name.into() });
        };
        let Some(weight_type) = WeightType::of(info.dtype) else {
            return problem(TensorProblem::DType {
                name: name.into(),
                found: format!("{:?}", info.dtype),
                expected: FLOATS,
            });
        };
        shard.file.floats(name, shard.range(info), weight_type, sink)
    }

    pub(crate) fn layout(&self) -> Layout {
        let tensors = self.tensors.iter().filter_map(|(name, &shard)| {
            let weight_type = WeightType::of(self.shards[shard].header.info(name)?.dtype)?;
            Some((name.clone(), (self.shards[shard].file_name()?, weight_type)))
        });
        let strings = self.shards.iter().filter_map(|shard| {
            let strings = shard.header.metadata().clone()?;
            Some((shard.file_name()?, strings.into_iter().collect()))
        });
        Layout { tensors: tensors.collect(), strings: strings.collect(), new_type: None }
    }

    fn find(&self, name: &str) -> Option<(&Shard, &TensorInfo)> {
        let shard = &self.shards[*self.tensors.get(name)?];
        Some((shard, shard.header.info(name)?))
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, ConvertError> {
        let file = Mapped::open(path.clone())?;
        let unsound = |reason| ConvertError::Safetensors { path: path.clone(), reason };
        let (header_len, header) =
            SafeTensors::read_metadata(file.bytes()).map_err(|error| unsound(error.to_string()))?;
        let start = header_len + size_of::<u64>();
        let (found, expected) = (file.bytes().len() - start, header.data_len());
        if found != expected {
            return Err(unsound(format!("{found} bytes of tensors, the header implies {expected}")));
        }
        Ok(Self { file, start, header })
    }

    fn file_name(&self) -> Option<String> {
        Some(self.file.path().file_name()?.to_string_lossy().into_owned())
    }

    /// Where a tensor's bytes stand in the file.
    fn range(&self, info: &TensorInfo) -> Range<usize> {
        let (from, to) = info.data_offsets;
        self.start + from..self.start + to
    }
}

/// Writes all tensors of a source into the files of a layout, piece by piece, with an index if there are several
/// files. A weight that the source holds packed, or every BitNet weight where `pack` says so, becomes codes and a scale
/// of that direction. The folder is not yet under its final name.
pub(crate) fn write_shards(
    folder: &Path,
    layout: &Layout,
    source: &dyn Source,
    pack: Option<HfScale>,
    progress: &mut Progress,
) -> Result<(), ConvertError> {
    let mut files: BTreeMap<&str, Vec<Output>> = BTreeMap::new();
    for entry in source.entries() {
        let (file, weight_type) = layout.place(&entry.name);
        let stored = match (entry.content, pack) {
            // transformers multiplies the sum of product and bias.
            (Content::Float, Some(HfScale::Multiply)) => match weight_of_bias(source.entries(), entry) {
                Some(weight) => Stored::Divided(weight),
                None => Stored::Float(weight_type),
            },
            (Content::Float, _) | (Content::Latent(_), None) => Stored::Float(weight_type),
            (Content::Latent(granularity) | Content::Packed(granularity), direction) => {
                let shape = entry.matrix_shape()?;
                let wrong = |source| ConvertError::Format { name: entry.name.clone(), source };
                hf::check(shape, granularity).map_err(wrong)?;
                Stored::Packed(direction.unwrap_or(HfScale::Multiply))
            }
        };
        files.entry(file).or_default().push(Output { entry, stored });
    }
    let mut weight_map = Map::new();
    let mut total_size = 0;
    let single = files.keys().all(|file| *file == SINGLE);
    for (file, outputs) in files {
        let mut writer = ShardWriter::create(&folder.join(file), &outputs, &layout.strings(file))?;
        for output in &outputs {
            output.write(source, &mut writer)?;
            progress.advance(output.entry);
        }
        for (name, len) in writer.finish()? {
            weight_map.insert(name, json!(file));
            total_size += len;
        }
    }
    if !single {
        let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
        write_json(&folder.join(INDEX), &index)?;
    }
    Ok(())
}

/// How a tensor is written.
enum Stored<'a> {
    Float(WeightType),
    /// A bias, divided by the scale of its weight. In f32: the quotient of two numbers of a shorter type is none.
    Divided(&'a Entry),
    Packed(HfScale),
}

struct Output<'a> {
    entry: &'a Entry,
    stored: Stored<'a>,
}

impl Output<'_> {
    /// Names, types and shapes in the file.
    fn tensors(&self) -> Vec<(String, Dtype, Vec<usize>)> {
        let Entry { name, shape, .. } = self.entry;
        match self.stored {
            Stored::Float(weight_type) => vec![(name.clone(), weight_type.dtype(), shape.clone())],
            Stored::Divided(_) => vec![(name.clone(), Dtype::F32, shape.clone())],
            Stored::Packed(_) => vec![
                (name.clone(), Dtype::U8, packed_shape(shape)),
                (scale_name(self.entry), Dtype::F32, vec![1]),
            ],
        }
    }

    fn write(&self, source: &dyn Source, writer: &mut ShardWriter) -> Result<(), ConvertError> {
        let name = &self.entry.name;
        match self.stored {
            Stored::Float(weight_type) => self.write_floats(source, weight_type, 1.0, writer),
            Stored::Divided(weight) => {
                let (_, scale) = ternary_of(source, weight)?;
                self.write_floats(source, WeightType::F32, scale.get(), writer)
            }
            Stored::Packed(direction) => {
                let wrong = |source| ConvertError::Format { name: name.clone(), source };
                let (ternary, scale) = ternary_of(source, self.entry)?;
                writer.seek(name)?;
                writer.write(&hf::pack(&ternary).map_err(wrong)?)?;
                writer.seek(&scale_name(self.entry))?;
                writer.write(&direction.store(scale).map_err(wrong)?.to_le_bytes())
            }
        }
    }

    fn write_floats(
        &self,
        source: &dyn Source,
        weight_type: WeightType,
        divisor: f32,
        writer: &mut ShardWriter,
    ) -> Result<(), ConvertError> {
        let name = &self.entry.name;
        writer.seek(name)?;
        let mut at = 0;
        source.floats(self.entry, &mut |piece| {
            let values: Vec<f32> = piece.iter().map(|value| value / divisor).collect();
            if let Some(i) = values.iter().position(|&value| !weight_type.holds(value)) {
                let (index, value) = (at + i, values[i]);
                return Err(ConvertError::NotFinite { name: name.clone(), index, value });
            }
            at += values.len();
            writer.write(&weight_type.encode(&values))
        })
    }
}

/// The codes of a BitNet slot's weight and their only scale.
fn ternary_of(source: &dyn Source, weight: &Entry) -> Result<(TernaryMatrix, WeightScale), ConvertError> {
    let ternary = read_ternary(source, weight)?.ok_or_else(|| ConvertError::absent(weight))?;
    match *ternary.scales() {
        [scale] => Ok((ternary, scale)),
        _ => Err(ConvertError::absent(weight)),
    }
}

/// A file's header, with its strings in order: those of [`Metadata`] are in another one each time.
#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__")]
    strings: &'a BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: Metadata,
}

/// A safetensors file in the making: its header first, then its tensors in any order.
struct ShardWriter {
    path: PathBuf,
    file: File,
    /// Where each tensor begins, and its length.
    tensors: BTreeMap<String, (u64, u64)>,
}

impl ShardWriter {
    fn create(
        path: &Path,
        outputs: &[Output],
        strings: &BTreeMap<String, String>,
    ) -> Result<Self, ConvertError> {
        let write = |source| ConvertError::Write { path: path.into(), source };
        let mut tensors: Vec<_> = outputs.iter().flat_map(Output::tensors).collect();
        // Wide types first, so that every tensor is aligned.
        tensors.sort_by(|a, b| (b.1.bitsize(), &a.0).cmp(&(a.1.bitsize(), &b.0)));
        let (mut infos, mut places, mut end) = (Vec::new(), BTreeMap::new(), 0);
        for (name, dtype, shape) in tensors {
            let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            places.insert(name.clone(), (end as u64, len as u64));
            infos.push((name, TensorInfo { dtype, shape, data_offsets: (end, end + len) }));
            end += len;
        }
        let tensors = Metadata::new(None, infos).map_err(|error| write(std::io::Error::other(error)))?;
        let header = Header { strings, tensors };
        let mut header = serde_json::to_vec(&header).map_err(|error| write(error.into()))?;
        header.resize(header.len().next_multiple_of(size_of::<u64>()), b' ');
        let mut file = File::create(path).map_err(write)?;
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(write)?;
        file.write_all(&header).map_err(write)?;
        let start = (size_of::<u64>() + header.len()) as u64;
        places.values_mut().for_each(|(at, _)| *at += start);
        Ok(Self { path: path.into(), file, tensors: places })
    }

    /// The next bytes are those of this tensor.
    fn seek(&mut self, name: &str) -> Result<(), ConvertError> {
        let (at, _) = self.tensors.get(name).copied().unwrap_or_default();
        self.file.seek(SeekFrom::Start(at)).map_err(|source| self.error(source)).map(|_| ())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ConvertError> {
        self.file.write_all(bytes).map_err(|source| self.error(source))
    }

    /// Names and lengths of all tensors, once the file is on the disk.
    fn finish(self) -> Result<impl Iterator<Item = (String, u64)>, ConvertError> {
        self.file.sync_all().map_err(|source| self.error(source))?;
        Ok(self.tensors.into_iter().map(|(name, (_, len))| (name, len)))
    }

    fn error(&self, source: std::io::Error) -> ConvertError {
        ConvertError::Write { path: self.path.clone(), source }
    }
}
