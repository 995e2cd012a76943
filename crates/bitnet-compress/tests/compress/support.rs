//! Small checkpoints and reading what became of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bitnet_compress::{CompressError, Options, Stats, compress};
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// A tensor to be written.
#[derive(Clone)]
pub(crate) struct Given {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// Numbers between −1 and 1 that differ from name to name.
pub(crate) fn noise(seed: &str, n: usize) -> Vec<f32> {
    let mut state = seed.bytes().fold(0x9e37_79b9_7f4a_7c15u64, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next() * next().abs()).collect()
}

pub(crate) fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        other => panic!("{other:?}"),
    }
}

/// A tensor of noise.
pub(crate) fn given(name: &str, dtype: Dtype, shape: &[usize]) -> Given {
    let bytes = encode(dtype, &noise(name, shape.iter().product()));
    Given { name: name.into(), dtype, shape: shape.into(), bytes }
}

/// A tensor of these values.
pub(crate) fn values(name: &str, shape: &[usize], values: &[f32]) -> Given {
    Given { name: name.into(), dtype: Dtype::F32, shape: shape.into(), bytes: encode(Dtype::F32, values) }
}

pub(crate) fn write(path: &Path, tensors: &[Given]) {
    let metadata = [("format".to_owned(), "pt".to_owned()), ("made".to_owned(), "here".to_owned())].into();
    let views = tensors.iter().map(|tensor| {
        (tensor.name.clone(), TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

/// A folder `source` with one file and these tensors, and the path of a target beside it.
pub(crate) fn checkpoint(tensors: &[Given], config: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let work = tempfile::tempdir().unwrap();
    let (source, target) = (work.path().join("source"), work.path().join("target"));
    fs::create_dir(&source).unwrap();
    write(&source.join("model.safetensors"), tensors);
    fs::write(source.join("config.json"), config).unwrap();
    (work, source, target)
}

pub(crate) fn run(source: &Path, target: &Path, options: &Options) -> Result<Stats, CompressError> {
    compress(source, target, options, &mut |_, _, _| {})
}

/// Type, shape and bytes of every tensor in a file.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let of = |(name, view): (String, TensorView)| {
        (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    file.tensors().into_iter().map(of).collect()
}

/// Names below a folder's own level, hidden ones too.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What was decided for a tensor, as the report has it.
pub(crate) fn because(stats: &Stats, name: &str) -> String {
    let tensor = stats.tensors.iter().find(|tensor| tensor.name == name).unwrap();
    format!("{:?}", tensor.decision)
}
