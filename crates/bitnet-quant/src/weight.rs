use bitnet_format::{Granularity, TernaryMatrix, WeightScale};
use burn::tensor::{DType, Int, Tensor};

use crate::{EPS, QuantError, fold_sum};

/// Checks that a weight of shape `[d_output, d_input]` can be scaled this way.
///
/// # Errors
/// - [`QuantError::Empty`] where a size is zero
/// - [`QuantError::Group`] where the group is no power of two or does not divide `d_input`
pub fn check_granularity(
    granularity: Granularity,
    [d_output, d_input]: [usize; 2],
) -> Result<(), QuantError> {
    if d_output == 0 || d_input == 0 {
        return Err(QuantError::Empty { d_output, d_input });
    }
    match granularity {
        Granularity::Group(group) if !group.is_power_of_two() || !d_input.is_multiple_of(group) => {
            Err(QuantError::Group { group, d_input })
        }
        _ => Ok(()),
    }
}

/// A ternary weight: codes in {−1, 0, 1} and the scale that undoes them, `w ≈ codes · scale`.
#[derive(Debug, Clone)]
pub struct TernaryWeight {
    codes: Tensor<2, Int>,
    scale: Tensor<2>,
    granularity: Granularity,
}

impl TernaryWeight {
    /// The integers −1, 0 and 1, `[d_output, d_input]`.
    pub fn codes(&self) -> Tensor<2, Int> {
        self.codes.clone()
    }

    /// The dequantization step, f32: `[1, 1]` per tensor, `[d_output, 1]` per row, `[d_output, d_input / group]`
    /// per group.
    pub fn scale(&self) -> Tensor<2> {
        self.scale.clone()
    }

    /// How many weights share one scale.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// `codes · scale`, f32 `[d_output, d_input]`.
    pub fn dequantize(&self) -> Tensor<2> {
        let shape = self.codes.dims();
        let codes = grouped(self.codes.clone().float().cast(DType::F32), self.granularity);
        (codes * self.scale.clone().unsqueeze_dim::<3>(2)).reshape(shape)
    }

    /// Codes and scales, read from the device.
    ///
    /// # Errors
    /// [`QuantError::Device`] where the device fails, [`QuantError::Codes`] where a scale is not finite.
    pub fn read(&self) -> Result<TernaryMatrix, QuantError> {
        let codes = self.codes.clone().try_into_vec_as::<i8>().map_err(QuantError::device)?;
        let scales = self.scale.clone().try_into_vec_as::<f32>().map_err(QuantError::device)?;
        let scales = scales.into_iter().map(WeightScale::new).collect::<Result<_, _>>();
        scales
            .and_then(|scales| TernaryMatrix::new(codes, self.codes.dims(), self.granularity, scales))
            .map_err(|error| QuantError::Codes(error.to_string()))
    }

    /// Share of the codes that are zero, 0..=1.
    pub fn sparsity(&self) -> f64 {
        let zeros = self.codes.clone().equal_scalar(0).int().sum().into_scalar::<i64>();
        zeros as f64 / self.codes.shape().num_elements() as f64
    }

    /// Bytes at two bits a code and four bytes a scale: what packing will take.
    pub fn packed_bytes(&self) -> usize {
        self.codes.shape().num_elements().div_ceil(4) + 4 * self.scale.shape().num_elements()
    }

    /// How many times smaller [`packed_bytes`](Self::packed_bytes) is than the same weight in f32.
    pub fn compression_ratio(&self) -> f64 {
        (4 * self.codes.shape().num_elements()) as f64 / self.packed_bytes() as f64
    }
}

/// Ternarizes a weight by absmean: `codes = clamp(round(w · 1/scale), −1, 1)`, `scale = max(mean|w|, 1e-5)`.
///
/// Rounding is half to even. Never ternarize a dequantized weight again: its mean is smaller by the share of zeros.
///
/// # Shapes
/// - `w`: `[d_output, d_input]`, any float dtype
///
/// # Errors
/// Those of [`check_granularity`].
///
/// # Source
/// arXiv 2402.17764, §2; docs/numerics.md#weights for the granularities and the order of operations.
pub fn ternarize(w: Tensor<2>, granularity: Granularity) -> Result<TernaryWeight, QuantError> {
    let shape = w.dims();
    check_granularity(granularity, shape)?;
    let (codes, scale) = absmean(w, granularity);
    let [n_rows, n_groups, _] = scale.dims();
    Ok(TernaryWeight {
        codes: codes.reshape(shape).int(),
        scale: scale.reshape([n_rows, n_groups]),
        granularity,
    })
}

/// Codes as f32 and their scales, both in the three axes of [`grouped`], for a granularity that was checked.
pub(crate) fn absmean(w: Tensor<2>, granularity: Granularity) -> (Tensor<3>, Tensor<3>) {
    let w = grouped(w.cast(DType::F32), granularity);
    let [_, _, n_inputs] = w.dims();
    let sums = fold_sum(w.clone().abs());
    let mean = match granularity {
        Granularity::Tensor => {
            let [n_rows, _, _] = sums.dims();
            fold_sum(sums.reshape([1, 1, n_rows])).div_scalar((n_rows * n_inputs) as f32)
        }
        Granularity::Row | Granularity::Group(_) => sums.div_scalar(n_inputs as f32),
    };
    let scale = mean.clamp_min(EPS);
    let codes = (w * scale.clone().recip()).round().clamp(-1.0, 1.0);
    (codes, scale)
}

/// `[d_output, d_input]` as `[d_output, groups, inputs per group]`; one group per row where there are none.
fn grouped(w: Tensor<2>, granularity: Granularity) -> Tensor<3> {
    let [d_output, d_input] = w.dims();
    match granularity {
        Granularity::Tensor | Granularity::Row => w.reshape([d_output, 1, d_input]),
        Granularity::Group(group) => w.reshape([d_output, d_input / group, group]),
    }
}
