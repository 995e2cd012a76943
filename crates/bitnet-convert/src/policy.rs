use bitnet_quant::Quantization;
use globset::{Glob, GlobMatcher};
use serde::{Deserialize, Serialize};

use crate::ConvertError;

/// Where conversion inserts a SubLN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Nowhere.
    None,
    /// Before the attention's output projection and the MLP's down projection.
    #[default]
    Output,
    /// Before every projection.
    All,
}

impl Placement {
    /// Whether a slot gets a SubLN.
    pub(crate) fn wants(self, is_output: bool) -> bool {
        match self {
            Self::None => false,
            Self::Output => is_output,
            Self::All => true,
        }
    }
}

impl std::str::FromStr for Placement {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "none" => Ok(Self::None),
            "output" => Ok(Self::Output),
            "all" => Ok(Self::All),
            other => Err(format!("SubLN placement `{other}`: expected none, output or all")),
        }
    }
}

/// The gains that inserted SubLNs start with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubNormGain {
    /// 1.
    #[default]
    Ones,
    /// The root mean square of what enters each, measured on calibration data in the dense model.
    Calibrated,
}

/// What conversion does. The default is b1.58 with SubLN before the output projections.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Where a SubLN is inserted. A slot that has one keeps it and gets no second.
    pub sub_norm: Placement,
    /// What the gains of those start with.
    pub sub_norm_gain: SubNormGain,
    /// Globs on full names, as in `model.layers.0.*` or `*.down_proj`; `*` crosses dots. What matches stays dense,
    /// in addition to embedding and head.
    pub exclude: Vec<String>,
    /// What is quantized, and how finely.
    pub quantization: Quantization,
    /// Whether the attention's output projection and the MLP's down projection are turned by a Hadamard matrix first.
    pub hadamard: bool,
    /// The share of columns that other slots keep in full precision, the best on calibration data; `None` for none.
    pub salient: Option<f64>,
}

impl Policy {
    /// Whether conversion looks at calibration data: then it needs [`convert_calibrated`](crate::convert_calibrated) or
    /// [`stage1_calibrated`](crate::stage1_calibrated).
    pub fn needs_data(&self) -> bool {
        self.salient.is_some() || self.calibrates_gains()
    }

    pub(crate) fn calibrates_gains(&self) -> bool {
        self.sub_norm != Placement::None && self.sub_norm_gain == SubNormGain::Calibrated
    }

    /// # Errors
    /// [`ConvertError::Pattern`] for a glob that cannot be read.
    pub(crate) fn excluded(&self) -> Result<Vec<GlobMatcher>, ConvertError> {
        self.exclude.iter().map(|pattern| compile(pattern)).collect()
    }
}

/// A glob on full names.
pub(crate) fn compile(pattern: &str) -> Result<GlobMatcher, ConvertError> {
    Glob::new(pattern)
        .map(|glob| glob.compile_matcher())
        .map_err(|error| ConvertError::Pattern { pattern: pattern.into(), reason: error.kind().to_string() })
}
