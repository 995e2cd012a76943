//! Comparisons, and the tolerances that several cases share.

use burn::tensor::{DType, Int, Tensor};

/// The acceptance vectors of docs/numerics.md have six decimals, so they hold to 1e-5.
pub const VECTOR: f32 = 1e-5;

/// Relative to the largest magnitude: two f32 sums of up to 160 products in different orders.
pub const SUMMATION: f32 = 1e-5;

/// The values of a tensor, in f32.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.cast(DType::F32).try_into_vec_as().unwrap()
}

/// The values of an integer tensor.
pub fn integers<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i64> {
    tensor.try_into_vec_as().unwrap()
}

/// The largest difference of two equally long lists; infinite where a number is not finite.
pub fn max_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len(), "number of values");
    let difference = |(a, b): (&f32, &f32)| if a == b { 0.0 } else { (a - b).abs() };
    found
        .iter()
        .zip(expected)
        .map(difference)
        .fold(0.0, |max, d| if d.is_finite() { max.max(d) } else { f32::INFINITY })
}

/// The largest magnitude of a list.
pub fn max_magnitude(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, value| max.max(value.abs()))
}

/// Fails where a value is further than `tolerance` from the expected one.
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    let difference = max_difference(found, expected);
    assert!(difference <= tolerance, "{what}: off by {difference:e}, tolerance {tolerance:e}");
}

/// Fails where a value is further off than `tolerance` of the largest expected magnitude. Returns that share.
pub fn assert_close_relative(what: &str, found: &[f32], expected: &[f32], tolerance: f32) -> f32 {
    let magnitude = max_magnitude(expected).max(f32::MIN_POSITIVE);
    let share = max_difference(found, expected) / magnitude;
    assert!(share <= tolerance, "{what}: off by {share:e} of {magnitude:e}, tolerance {tolerance:e}");
    share
}
