//! What is asked for.

use bitnet_format::Granularity;
use serde::{Deserialize, Serialize};

use crate::CompressError;
use crate::floats::Float;

/// How weights become codes (docs/numerics.md).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// b1.58's: `scale = mean|w|`, codes rounded.
    Absmean(Granularity),
    /// Per row: zero below this share of `mean|w|`, else the sign.
    Threshold(f32),
}

impl Default for Rule {
    fn default() -> Self {
        Self::Absmean(Granularity::Tensor)
    }
}

impl Rule {
    /// What one scale covers.
    pub fn granularity(self) -> Granularity {
        match self {
            Self::Absmean(granularity) => granularity,
            Self::Threshold(_) => Granularity::Row,
        }
    }
}

/// What to do with a checkpoint. The default is b1.58's rule and the source's own float types.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How weights become codes.
    pub rule: Rule,
    /// The type of all floats in the dense files; `None` for those of the source.
    pub dtype: Option<Float>,
    /// Whether packed files are written too.
    pub packed: bool,
    /// Globs on full names of matrices that are ternarized though the name tables leave them alone.
    pub include: Vec<String>,
    /// Globs on full names of tensors that are left alone.
    pub exclude: Vec<String>,
}

impl Options {
    /// Checks what does not depend on a checkpoint.
    ///
    /// # Errors
    /// [`CompressError::Option`] for a threshold outside 0..=10 or a group that is no power of two.
    pub fn validate(&self) -> Result<(), CompressError> {
        let wrong = |option, found: String, expected| Err(CompressError::Option { option, found, expected });
        match self.rule {
            Rule::Threshold(threshold) if !(0.0..=10.0).contains(&threshold) => {
                wrong("threshold", threshold.to_string(), "0 to 10, as a share of mean|w|")
            }
            Rule::Absmean(Granularity::Group(group)) if !group.is_power_of_two() => {
                wrong("group", group.to_string(), "a power of two")
            }
            _ => Ok(()),
        }
    }
}
