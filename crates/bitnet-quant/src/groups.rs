use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::{QuantError, straight_through};

/// Smallest scale of a group.
const MIN_SCALE: f32 = 1e-8;

/// How the factors of a low-rank correction are quantized: 4 or 8 bits, one scale per group of consecutive values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct GroupQuant {
    bits: u8,
    group: usize,
}

/// [`GroupQuant`] before it is checked.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    bits: u8,
    #[serde(default = "default_group")]
    group: usize,
}

fn default_group() -> usize {
    GroupQuant::GROUP
}

impl GroupQuant {
    /// Values that share a scale, unless something else is asked for.
    pub const GROUP: usize = 32;

    /// # Errors
    /// [`QuantError::GroupBits`] unless `bits` is 4 or 8, [`QuantError::EmptyGroup`] for a group of no values.
    pub fn new(bits: u8, group: usize) -> Result<Self, QuantError> {
        match (bits, group) {
            (_, 0) => Err(QuantError::EmptyGroup),
            (4 | 8, _) => Ok(Self { bits, group }),
            _ => Err(QuantError::GroupBits { found: bits }),
        }
    }

    /// Bits of a value: 4 or 8.
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// Values that share a scale.
    pub fn group(self) -> usize {
        self.group
    }

    /// Bytes that `n` values and their f32 scales take.
    pub fn bytes(self, n: usize) -> usize {
        (n * usize::from(self.bits)).div_ceil(8) + 4 * n.div_ceil(self.group)
    }
}

impl TryFrom<Fields> for GroupQuant {
    type Error = QuantError;

    fn try_from(Fields { bits, group }: Fields) -> Result<Self, QuantError> {
        Self::new(bits, group)
    }
}

impl From<GroupQuant> for Fields {
    fn from(GroupQuant { bits, group }: GroupQuant) -> Self {
        Self { bits, group }
    }
}

/// The values that a matrix has after quantization in groups, with the gradient of the matrix itself.
///
/// A group is `group` consecutive values in row-major order; the last one is filled up with zeros. With `q = 2^(b−1) − 1`:
/// `scale = max(max|x| / q, 1e-8)`, `code = clamp(round(x / scale), −q − 1, q)`, value `code · scale`.
///
/// # Shapes
/// - `x`: `[rows, columns]`, any float dtype; the same out
///
/// # Source
/// docs/numerics.md#low-rank-correction.
pub fn fake_quantize_groups(x: Tensor<2>, quant: GroupQuant) -> Tensor<2> {
    let [rows, columns] = x.dims();
    let (n, group) = (rows * columns, quant.group);
    let filled = n.next_multiple_of(group);
    let flat = x.clone().inner().cast(DType::F32).reshape([n]);
    let flat = match filled - n {
        0 => flat,
        missing => Tensor::cat(vec![flat.clone(), Tensor::zeros([missing], (&flat.device(), DType::F32))], 0),
    };
    let grouped = flat.reshape([filled / group, group]);
    let max_code = (1_i32 << (quant.bits - 1)) - 1;
    let scale = grouped.clone().max_abs_dim(1).div_scalar(max_code as f32).clamp_min(MIN_SCALE);
    let codes = (grouped / scale.clone()).round().clamp(-max_code - 1, max_code);
    let values = (codes * scale).reshape([filled]).narrow(0, 0, n).reshape([rows, columns]);
    straight_through(x, values, 1.0)
}
