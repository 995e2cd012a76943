use burn::backend::NdArray;
use burn::backend::tensor::{FloatTensor, IntTensor};

use super::BitLinearOps;
use super::autodiff::{Weight, forward};
use super::cpu::CpuBackend;
use crate::{KeptCodes, Quantization};

impl CpuBackend for NdArray {
    fn read<R>(tensor: &FloatTensor<Self>, read: impl FnOnce(&[f32]) -> R) -> R {
        type NdArrayTensor = FloatTensor<NdArray>;
        match tensor {
            NdArrayTensor::F32(values) => match values.view().as_slice() {
                Some(values) => read(values),
                None => read(&values.view().iter().copied().collect::<Vec<_>>()),
            },
            _ => unreachable!("the layer calls this with f32 tensors only"),
        }
    }

    fn read_words<R>(tensor: &IntTensor<Self>, read: impl FnOnce(&[i32]) -> R) -> R {
        type NdArrayTensor = IntTensor<NdArray>;
        match tensor {
            NdArrayTensor::I32(words) => match words.view().as_slice() {
                Some(words) => read(words),
                None => read(&words.view().iter().copied().collect::<Vec<_>>()),
            },
            _ => unreachable!("words are i32"),
        }
    }
}

impl BitLinearOps for NdArray {
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
