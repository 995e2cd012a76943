//! Reads the reference tensors of `data/`.

use std::fs;
use std::path::Path;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};

/// A safetensors file in memory.
pub struct Golden {
    bytes: Vec<u8>,
    path: String,
}

impl Golden {
    /// Reads a file of `data/`.
    pub fn open(path: &str) -> Self {
        Self::read(&crate::data(path))
    }

    /// Reads any safetensors file.
    pub fn read(path: &Path) -> Self {
        let name = path.display().to_string();
        Self { bytes: fs::read(path).unwrap_or_else(|error| panic!("{name}: {error}")), path: name }
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.file().names().into_iter().map(Into::into).collect();
        names.sort();
        names
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.file()
            .tensor(name)
            .unwrap_or_else(|error| panic!("{}: {name}: {error}", self.path))
            .shape()
            .to_vec()
    }

    /// The numbers of a tensor of f32, f64, i8 or i64.
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        let file = self.file();
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{}: {name}: {error}", self.path));
        let data = tensor.data();
        match tensor.dtype() {
            Dtype::F32 => numbers(data, |bytes| f32::from_le_bytes(bytes).into()),
            Dtype::F64 => numbers(data, f64::from_le_bytes),
            Dtype::I8 => numbers(data, |bytes| i8::from_le_bytes(bytes).into()),
            Dtype::I64 => numbers(data, |bytes| i64::from_le_bytes(bytes) as f64),
            other => panic!("{}: {name}: unexpected type {other:?}", self.path),
        }
    }

    /// The numbers of a tensor as f32, in which floats are stored.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.numbers(name).into_iter().map(|number| number as f32).collect()
    }

    /// A tensor on the device, f32.
    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new(self.floats(name), self.shape(name)), (device, DType::F32))
    }

    /// A tensor of integers on the device.
    pub fn int_tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D, Int> {
        let integers: Vec<i32> = self.numbers(name).into_iter().map(|number| number as i32).collect();
        Tensor::from_data(TensorData::new(integers, self.shape(name)), device)
    }
}

fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.chunks_exact(N).map(|chunk| number(chunk.try_into().unwrap())).collect()
}
