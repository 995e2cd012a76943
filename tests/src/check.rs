//! Comparisons, and the tolerances that several cases share.

use burn::tensor::{DType, Device, Int, Tensor};

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

/// How far two f32 scales may lie apart where a device's division is not exactly rounded, as WGSL allows.
const SCALE_ULPS: f32 = 4.0;

/// How near to a tie, relative to the value that is rounded, a code may fall either way on such a device: the
/// scale's 4 ulp and the rounding of one product, 5 · 2⁻²³ together.
const TIE: f64 = 1e-6;

/// Whether the device rounds divisions as the CPU does. It must not be asked about accuracy beyond that.
pub fn divides_exactly(device: &Device) -> bool {
    let divisors: Vec<f32> = (1..=1000).map(|i| i as f32 * 0.7).collect();
    let expected: Vec<f32> = divisors.iter().map(|divisor| 127.0 / divisor).collect();
    let divisors = Tensor::<1>::from_data(divisors.as_slice(), device);
    values(divisors.full_like(127.0) / divisors) == expected
}

/// Whether the device's `exp` is as good as a CPU's, 2 ulp; WGSL allows `3 + 2|x|`.
pub fn exponentiates_exactly(device: &Device) -> bool {
    let x: Vec<f32> = (-800..=0).map(|i| i as f32 * 0.01).collect();
    let found = values(Tensor::<1>::from_data(x.as_slice(), device).exp());
    let error = |(x, found): (&f32, f32)| (f64::from(found) / f64::from(*x).exp() - 1.0).abs();
    x.iter().zip(found).map(error).fold(0.0, f64::max) <= 2.0 * f64::from(f32::EPSILON)
}

/// Fails where scales differ by more than `ulps`, and 4 more on a device that does not divide exactly.
pub fn assert_scales(what: &str, device: &Device, found: &[f32], expected: &[f32], ulps: f32) {
    let ulps = if divides_exactly(device) { ulps } else { ulps + SCALE_ULPS };
    assert_eq!(found.len(), expected.len(), "{what}: number of scales");
    for (found, expected) in found.iter().zip(expected) {
        let difference = (found - expected).abs() / (expected.abs() * f32::EPSILON);
        assert!(difference <= ulps, "{what}: scale {found:e}, expected {expected:e}: {difference} ulp apart");
    }
}

/// Fails where codes differ. On a device that does not divide exactly, a code may fall either way of a tie; such
/// codes are counted, printed and returned. `scaled` are the values before rounding.
pub fn assert_codes(what: &str, device: &Device, found: &[i64], expected: &[i64], scaled: &[f64]) -> usize {
    assert_eq!((found.len(), scaled.len()), (expected.len(), expected.len()), "{what}: number of codes");
    let differing: Vec<usize> = (0..found.len()).filter(|&i| found[i] != expected[i]).collect();
    for &i in &differing {
        let to_tie = (scaled[i] - scaled[i].floor() - 0.5).abs();
        let excused = !divides_exactly(device) && to_tie <= TIE * scaled[i].abs();
        assert!(excused, "{what}: code {i} is {}, expected {} for {}", found[i], expected[i], scaled[i]);
    }
    if !differing.is_empty() {
        eprintln!("{what}: {} of {} codes fell the other way of a tie", differing.len(), found.len());
    }
    differing.len()
}
