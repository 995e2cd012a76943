//! A ternary weight at two bits a code, on any device.

use bitnet_cpu::PackedTernary;
use bitnet_format::{TernaryMatrix, WeightScale};
use burn::tensor::{DType, Device, Int, Tensor, TensorData, module::linear};

#[cfg(any(feature = "flex", feature = "ndarray", feature = "cube"))]
use crate::backends::packed_linear as fused;
use crate::linear::integer_product;
use crate::{ActivationQuant, Granularity, QuantError, quantize_activations, straight_through};

/// Output rows of a tile, inputs of a block: the layout of [`PackedTernary`].
pub(crate) const TILE_ROWS: usize = 32;
pub(crate) const BLOCK_INPUTS: usize = 16;

/// The shape of a packed weight, and what shares a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedLayout {
    /// Rows of the weight.
    pub d_output: usize,
    /// Inputs of a row, at most 131 072.
    pub d_input: usize,
    /// How many weights share one scale.
    pub granularity: Granularity,
}

impl PackedLayout {
    /// Inputs that share a scale: the group, or else the row.
    pub(crate) fn segment(self) -> usize {
        match self.granularity {
            Granularity::Tensor | Granularity::Row => self.d_input,
            Granularity::Group(group) => group,
        }
    }

    /// `[tiles, blocks, 32]`; every segment is padded to whole blocks.
    pub(crate) fn words_shape(self) -> [usize; 3] {
        let blocks = self.d_input / self.segment() * self.segment().div_ceil(BLOCK_INPUTS);
        [self.d_output.div_ceil(TILE_ROWS), blocks, TILE_ROWS]
    }

    /// `[1, 1, 1]` per tensor, otherwise `[tiles, segments, 32]`.
    pub(crate) fn scales_shape(self) -> [usize; 3] {
        match self.granularity {
            Granularity::Tensor => [1, 1, 1],
            _ => [self.d_output.div_ceil(TILE_ROWS), self.d_input / self.segment(), TILE_ROWS],
        }
    }
}

/// Ternary codes at two bits each, and their scales: `w ≈ codes · scale`.
///
/// The layout is that of [`PackedTernary`], whose kernels read these tensors where they lie: 32 rows side by side, so
/// that neighbouring threads of a GPU read neighbouring words.
#[derive(Debug, Clone)]
pub struct PackedWeight {
    /// 16 codes of a row per word, i32 `[tiles, blocks, 32]`.
    pub words: Tensor<3, Int>,
    /// f32 `[1, 1, 1]` per tensor, otherwise `[tiles, segments, 32]`.
    pub scales: Tensor<3>,
    /// What the words stand for.
    pub layout: PackedLayout,
}

impl PackedWeight {
    /// Packs codes and scales for a device.
    ///
    /// # Errors
    /// [`QuantError::Packed`] where a row has more than 131 072 inputs.
    pub fn pack(ternary: &TernaryMatrix, device: &Device) -> Result<Self, QuantError> {
        let [d_output, d_input] = ternary.shape();
        let granularity = ternary.granularity();
        let scales: Vec<f32> = ternary.scales().iter().map(|scale| scale.get()).collect();
        let packed = PackedTernary::pack(ternary.codes(), &scales, d_output, d_input, granularity)
            .map_err(QuantError::Packed)?;
        let (words, scales) = packed.into_parts();
        let layout = PackedLayout { d_output, d_input, granularity };
        let words = TensorData::new(words, layout.words_shape());
        let scales = TensorData::new(scales, layout.scales_shape());
        Ok(Self {
            words: Tensor::from_data(words, (device, DType::I32)),
            scales: Tensor::from_data(scales, (device, DType::F32)),
            layout,
        })
    }

    /// The codes and scales again, read from the device.
    ///
    /// # Errors
    /// [`QuantError::Device`] where the device fails, [`QuantError::Packed`] and [`QuantError::Codes`] where the words or
    /// scales are none that packing gives.
    pub fn unpack(&self) -> Result<TernaryMatrix, QuantError> {
        let PackedLayout { d_output, d_input, granularity } = self.layout;
        let words = self.words.clone().try_into_vec_as::<i32>().map_err(QuantError::device)?;
        let scales = self.scales.clone().inner().try_into_vec_as::<f32>().map_err(QuantError::device)?;
        let packed = PackedTernary::from_words(&words, &scales, d_output, d_input, granularity);
        let weight = packed.map_err(QuantError::Packed)?.unpack();
        let scales = weight.scales.into_iter().map(WeightScale::new).collect::<Result<_, _>>();
        scales
            .and_then(|scales| TernaryMatrix::new(weight.codes, [d_output, d_input], granularity, scales))
            .map_err(|error| QuantError::Codes(error.to_string()))
    }

    /// Bytes that the words and scales take on the device.
    pub fn size_in_bytes(&self) -> usize {
        4 * (self.words.shape().num_elements() + self.scales.shape().num_elements())
    }

    /// The codes as f32, `[d_output, segments, inputs per segment]`.
    fn codes(&self) -> Tensor<3> {
        let PackedLayout { d_output, d_input, .. } = self.layout;
        let segment = self.layout.segment();
        let [tiles, _, _] = self.words.dims();
        let digits = (0..BLOCK_INPUTS as i32).map(|input| {
            let shift = 8 * (input % 4) + 2 * (input / 4); // byte k, plane p holds input 4·p + k
            self.words.clone().bitwise_right_shift_scalar(shift).bitwise_and_scalar(3)
        });
        let codes: Tensor<4, Int> = Tensor::stack(digits.collect(), 3);
        let padded = segment.next_multiple_of(BLOCK_INPUTS);
        codes
            .sub_scalar(1)
            .float()
            .cast(DType::F32)
            .swap_dims(1, 2) // [tiles, 32, blocks, 16]
            .reshape([tiles * TILE_ROWS, d_input / segment, padded])
            .narrow(0, 0, d_output)
            .narrow(2, 0, segment)
    }

    /// The scales, `[d_output, segments, 1]`, or `[1, 1, 1]` per tensor.
    fn natural_scales(&self) -> Tensor<3> {
        if self.layout.granularity == Granularity::Tensor {
            return self.scales.clone();
        }
        let [tiles, segments, _] = self.scales.dims();
        let rows = self.scales.clone().swap_dims(1, 2).reshape([tiles * TILE_ROWS, segments, 1]);
        rows.narrow(0, 0, self.layout.d_output)
    }

    /// `codes · scale`, f32 `[d_output, d_input]`.
    pub fn dequantize(&self) -> Tensor<2> {
        let PackedLayout { d_output, d_input, .. } = self.layout;
        (self.codes() * self.natural_scales()).reshape([d_output, d_input])
    }
}

/// The BitNet layer at λ = 1 with a packed weight: `y = acc · (w_scale · x_scale) + bias`, where `acc = Σ code · x` is an
/// exact integer. With a scale per group, the groups' products are added in ascending order.
///
/// The gradient with respect to `x` is `g · (codes · scale)`, straight through the activations' quantization; the weight
/// has none. This is one operation on int8 activations and the words where they lie, on CPUs and on GPUs.
///
/// # Shapes
/// - `x`: `[.., d_input]`, `bias`: `[d_output]`
/// - returns `[.., d_output]`
///
/// # Panics
/// Where the last axis of `x` is not `d_input`.
///
/// # Source
/// arXiv 2402.17764, §2; docs/numerics.md#packed-weights.
pub fn packed_linear<const D: usize>(
    x: Tensor<D>,
    weight: &PackedWeight,
    bias: Option<Tensor<1>>,
    activation: ActivationQuant,
) -> Tensor<D> {
    let PackedLayout { d_output, d_input, .. } = weight.layout;
    let mut shape = x.dims();
    let tokens = shape[..D - 1].iter().product();
    shape[D - 1] = d_output;
    let x = x.reshape([tokens, d_input]);
    let y = match fused(&x, weight, activation) {
        Some(y) => y,
        None => packed_linear_reference(x, weight, activation),
    };
    let y = y.reshape(shape);
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

/// [`packed_linear`] in plain tensor operations, for every backend: the definition.
///
/// # Shapes
/// - `x`: `[tokens, d_input]`
/// - returns `[tokens, d_output]`, in the dtype of `x`
pub fn packed_linear_reference(
    x: Tensor<2>,
    weight: &PackedWeight,
    activation: ActivationQuant,
) -> Tensor<2> {
    let dtype = x.dtype();
    let Some(quantized) = quantize_activations(x.clone().inner(), activation) else {
        return linear(x, weight.dequantize().cast(dtype).transpose(), None);
    };
    if x.is_autodiff() {
        // The value is that of the integers, the gradient that of the dequantized operands.
        let y = packed_linear_reference(x.clone().inner(), weight, activation);
        let through = linear(x, weight.dequantize().cast(dtype).transpose(), None);
        return straight_through(through, y, 1.0);
    }
    integer_product(&quantized, weight.codes(), weight.natural_scales()).cast(dtype)
}

/// Without a backend there is no operation of its own.
#[cfg(not(any(feature = "flex", feature = "ndarray", feature = "cube")))]
fn fused(_: &Tensor<2>, _: &PackedWeight, _: ActivationQuant) -> Option<Tensor<2>> {
    None
}
