//! What can be wrong with a λ, a schedule or a warm-up.

/// An invalid λ, schedule or warm-up setting.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WarmupError {
    /// λ is outside 0..=1 or not a number.
    #[error("λ is {found}, expected a number in 0..=1")]
    Lambda {
        /// The value given.
        found: f32,
    },
    /// The bounds of a warm-up are outside 0..=1, not numbers, or in the wrong order.
    #[error("warm-up runs from min {min} to max {max}, expected 0 <= min <= max <= 1")]
    Bounds {
        /// λ before the first step.
        min: f32,
        /// λ after the last step.
        max: f32,
    },
    /// The steepness `k` of a schedule is not a positive number.
    #[error("steepness k of the {schedule} schedule is {found}, expected a finite number above 0")]
    Steepness {
        /// The schedule's name.
        schedule: &'static str,
        /// The value given.
        found: f64,
    },
    /// A text names no schedule.
    #[error(
        "unknown schedule `{found}`, expected linear, cosine, exponential, exponential:K, sigmoid or sigmoid:K"
    )]
    UnknownSchedule {
        /// The text given.
        found: String,
    },
}

/// Returns `lambda` if it is a quantization strength, that is a number in 0..=1.
///
/// # Errors
/// [`WarmupError::Lambda`] if it is outside 0..=1 or not a number.
pub fn check_lambda(lambda: f32) -> Result<f32, WarmupError> {
    if (0.0..=1.0).contains(&lambda) { Ok(lambda) } else { Err(WarmupError::Lambda { found: lambda }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lambda_is_a_number_in_0_to_1() {
        for good in [0.0, f32::MIN_POSITIVE, 0.5, 1.0] {
            assert_eq!(check_lambda(good), Ok(good));
        }
        for bad in [-f32::MIN_POSITIVE, 1.0 + f32::EPSILON, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(matches!(check_lambda(bad), Err(WarmupError::Lambda { .. })), "{bad}");
        }
    }
}
