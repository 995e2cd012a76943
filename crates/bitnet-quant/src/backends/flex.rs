use burn::backend::Flex;
use burn::backend::tensor::{FloatTensor, IntTensor};

use super::BitLinearOps;
use super::autodiff::{Weight, forward};
use super::cpu::CpuBackend;
use crate::{KeptCodes, Quantization};

impl CpuBackend for Flex {
    fn read<R>(tensor: &FloatTensor<Self>, read: impl FnOnce(&[f32]) -> R) -> R {
        match tensor.as_slice::<f32>() {
            Some(values) => read(values),
            None => read(tensor.to_contiguous().as_slice().unwrap_or_default()),
        }
    }

    fn into_values(tensor: FloatTensor<Self>) -> Vec<f32> {
        match tensor.into_data().try_into_vec() {
            Ok(values) => values,
            Err(error) => unreachable!("the operations call this with f32 tensors only: {error}"),
        }
    }

    fn read_words<R>(tensor: &IntTensor<Self>, read: impl FnOnce(&[i32]) -> R) -> R {
        match tensor.as_slice::<i32>() {
            Some(words) => read(words),
            None => read(tensor.to_contiguous().as_slice().unwrap_or_default()),
        }
    }
}

impl BitLinearOps for Flex {
    fn bit_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        quantization: Quantization,
        lambda: f32,
        _: &KeptCodes,
    ) -> FloatTensor<Self> {
        let weight = Weight::<Self>::new(weight, quantization, lambda, None);
        forward(x, weight, quantization, lambda).0
    }
}
