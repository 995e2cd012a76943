//! Visits that can fail, and values between the device and f64.

use bitnet_layers::{Projection, Slots, for_each_slot, for_each_slot_mut};
use burn::tensor::{DType, Device, Tensor, TensorData};
use faer::{Mat, MatRef};

use crate::LrcError;

/// The paths of all slots.
pub(crate) fn paths(model: &impl Slots) -> Vec<String> {
    let mut paths = Vec::new();
    for_each_slot(model, |path, _| paths.push(path.to_owned()));
    paths
}

/// Visits slots until one fails.
pub(crate) fn try_each(
    model: &impl Slots,
    mut visit: impl FnMut(&str, &Projection) -> Result<(), LrcError>,
) -> Result<(), LrcError> {
    let mut result = Ok(());
    for_each_slot(model, |path, slot| {
        if result.is_ok() {
            result = visit(path, slot);
        }
    });
    result
}

/// Visits slots until one fails, to change them.
pub(crate) fn try_each_mut(
    model: &mut impl Slots,
    mut visit: impl FnMut(&str, &mut Projection) -> Result<(), LrcError>,
) -> Result<(), LrcError> {
    let mut result = Ok(());
    for_each_slot_mut(model, |path, slot| {
        if result.is_ok() {
            result = visit(path, slot);
        }
    });
    result
}

/// The values of a tensor, in f32.
pub(crate) fn values(slot: &str, tensor: Tensor<2>) -> Result<Vec<f32>, LrcError> {
    tensor
        .cast(DType::F32)
        .try_into_vec_as()
        .map_err(|error| LrcError::Device { slot: slot.into(), reason: error.to_string() })
}

/// A tensor as a matrix in f64.
pub(crate) fn matrix(slot: &str, tensor: Tensor<2>) -> Result<Mat<f64>, LrcError> {
    let [rows, columns] = tensor.dims();
    let values = values(slot, tensor)?;
    Ok(Mat::from_fn(rows, columns, |i, j| f64::from(values[i * columns + j])))
}

/// A matrix as an f32 tensor.
pub(crate) fn tensor(matrix: MatRef<f64>, device: &Device) -> Tensor<2> {
    let (rows, columns) = matrix.shape();
    let values: Vec<f32> = (0..rows).flat_map(|i| (0..columns).map(move |j| matrix[(i, j)] as f32)).collect();
    Tensor::from_data(TensorData::new(values, [rows, columns]), (device, DType::F32))
}
