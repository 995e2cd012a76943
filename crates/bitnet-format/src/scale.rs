//! The dequantization step and the direction in which a Hugging Face file stores it.

use serde::{Deserialize, Serialize};

use crate::FormatError;

/// The dequantization step of ternary weights: `w ≈ codes · scale`. Finite and above zero.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct WeightScale(f32);

impl WeightScale {
    /// The scale of bare codes.
    pub const ONE: Self = Self(1.0);

    /// Checks a scale.
    ///
    /// # Errors
    /// [`FormatError::Scale`] if it is not a finite number above zero.
    pub fn new(scale: f32) -> Result<Self, FormatError> {
        if scale > 0.0 && scale.is_finite() {
            Ok(Self(scale))
        } else {
            Err(FormatError::Scale { found: scale })
        }
    }

    /// The factor in `w ≈ codes · scale`.
    pub fn get(self) -> f32 {
        self.0
    }

    /// The divisor in `w ≈ codes / divisor`. Infinite for scales below 2.9e-39.
    pub fn reciprocal(self) -> f32 {
        self.0.recip()
    }
}

/// What a Hugging Face `weight_scale` does to the codes. It depends on the checkpoint's `linear_class`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HfScale {
    /// `w ≈ codes · weight_scale`: class `autobitlinear`.
    Multiply,
    /// `w ≈ codes / weight_scale`: class `bitlinear`.
    Divide,
}

impl HfScale {
    /// The number to store as `weight_scale`.
    ///
    /// # Errors
    /// [`FormatError::Scale`] if the reciprocal of a tiny scale is not finite.
    pub fn store(self, scale: WeightScale) -> Result<f32, FormatError> {
        match self {
            Self::Multiply => Ok(scale.get()),
            Self::Divide => WeightScale::new(scale.reciprocal()).map(WeightScale::get),
        }
    }

    /// The scale that a stored `weight_scale` means.
    ///
    /// With [`HfScale::Divide`] a scale changes by at most one unit in the last place on its way through a
    /// file.
    ///
    /// # Errors
    /// [`FormatError::Scale`] if the number, or its reciprocal, is not finite and above zero.
    pub fn load(self, stored: f32) -> Result<WeightScale, FormatError> {
        let stored = WeightScale::new(stored)?;
        match self {
            Self::Multiply => Ok(stored),
            Self::Divide => WeightScale::new(stored.reciprocal()),
        }
    }

    /// The direction that a stored number's size suggests: weights are mostly smaller than 1, so a number
    /// above 1 is most likely a divisor. A hint to check a configuration against, never a reason to override
    /// it.
    pub fn likely(stored: f32) -> Self {
        if stored > 1.0 { Self::Divide } else { Self::Multiply }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_finite_and_above_zero() {
        for good in [f32::MIN_POSITIVE, 0.5, 1.0, f32::MAX] {
            assert_eq!(WeightScale::new(good).unwrap().get(), good);
        }
        for bad in [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(matches!(WeightScale::new(bad), Err(FormatError::Scale { .. })), "{bad}");
        }
    }

    #[test]
    fn both_directions_round_trip() {
        let scale = WeightScale::new(0.015).unwrap();
        assert_eq!(HfScale::Multiply.store(scale).unwrap(), 0.015);
        assert_eq!(HfScale::Multiply.load(0.015).unwrap(), scale);
        assert_eq!(HfScale::Divide.store(scale).unwrap(), 1.0 / 0.015);
        assert_eq!(HfScale::Divide.load(4.0).unwrap().get(), 0.25);
        for i in 1..2000 {
            let scale = i as f32 * 1e-3;
            let back = HfScale::Divide.load(HfScale::Divide.store(WeightScale::new(scale).unwrap()).unwrap());
            let distance = back.unwrap().get().to_bits().abs_diff(scale.to_bits());
            assert!(distance <= 1, "{scale}");
        }
    }

    #[test]
    fn what_has_no_reciprocal_is_refused() {
        let tiny = WeightScale::new(1e-39).unwrap();
        assert!(matches!(HfScale::Divide.store(tiny), Err(FormatError::Scale { .. })));
        assert!(matches!(HfScale::Divide.load(1e-39), Err(FormatError::Scale { .. })));
        assert!(matches!(HfScale::Divide.load(0.0), Err(FormatError::Scale { .. })));
        assert!(matches!(HfScale::Multiply.load(f32::NAN), Err(FormatError::Scale { .. })));
    }

    #[test]
    fn the_size_suggests_the_direction() {
        assert_eq!(HfScale::likely(0.02), HfScale::Multiply);
        assert_eq!(HfScale::likely(50.0), HfScale::Divide);
    }
}
