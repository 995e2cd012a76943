//! The exponential, and what is summed of it.

use crate::kernel::LANES;
use crate::scalar::fold;

/// `eˣ` to 2 units in the last place, between 1.2e-38 (`x` ≤ −87.3) and 1.7e38 (`x` ≥ 88); NaN stays NaN. No branch and no table,
/// so that loops over it vectorise.
///
/// # Source
/// Cephes, `expf.c`: x = n·ln 2 + r, and a polynomial of r.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it rounds to an integer, which the sum's low bits then hold.
    const MAGIC: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons that are false for a NaN keep it.
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut sum = 1.987_569_1e-4;
    for factor in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        sum = sum * r + factor;
    }
    let two_to_n = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    (sum * r * r + r + 1.0) * two_to_n
}

/// The largest number; of an empty list −∞. A NaN may be passed over: it shows in the sum.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let (lines, rest) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for line in lines {
        for (lane, &x) in lanes.iter_mut().zip(line) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max })
}

/// `Σ x` in one fixed order: number i is added to lane i mod 32, and the lanes are folded in halves.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    let (lines, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for line in lines {
        for (lane, &x) in lanes.iter_mut().zip(line) {
            *lane += x;
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += x;
    }
    fold(&mut lanes)
}

/// `Σ x·y` of equally many numbers, in the order of [`sum`].
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for (x, y) in x.iter().zip(y) {
        for (lane, (&x, &y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane += x * y;
        }
    }
    for (lane, (&x, &y)) in lanes.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *lane += x * y;
    }
    fold(&mut lanes)
}

/// `x = softmax(x)`, by `exp(x − max)` over its sum.
#[inline(always)]
pub(crate) fn softmax(x: &mut [f32]) {
    let max = max(x);
    for x in x.iter_mut() {
        *x = exp(*x - max);
    }
    let factor = sum(x).recip();
    for x in x {
        *x *= factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_units() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) / expected - 1.0).abs();
            assert!(error <= 2.0 * f64::from(f32::EPSILON), "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38 && exp(f32::INFINITY) > 1.6e38);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn softmax_shows_what_is_not_finite() {
        let mut x = [1.0, f32::NAN, 2.0];
        softmax(&mut x);
        assert!(x.iter().all(|x| x.is_nan()));
        let mut x = [1.0, 1.0, f32::NEG_INFINITY];
        softmax(&mut x);
        assert!(x[0] == 0.5 && x[2] < 1e-37);
        softmax(&mut []);
    }
}
