use serde::{Deserialize, Serialize};

/// A part of a run that leaves a result, in the order of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Settings, source, target and disk are checked: what [`Pipeline::new`](crate::Pipeline::new) did, as a manifest.
    Validate,
    /// The dense model is read whole, the data are made tokens and split, and its perplexity is measured.
    Load,
    /// Statistics of what enters every slot.
    Calibrate,
    /// The BitNet model: policy, gains of sub-norms, low-rank corrections.
    Convert,
    /// The trained model, or the converted one where training made none better. Only with settings for it.
    FineTune,
    /// Codes and scales.
    Pack,
    /// The dense folder of codes · scale, and exports.
    Write,
    /// Everything is read again, compared and judged.
    Verify,
}

impl Stage {
    /// All, in their order.
    pub const ALL: [Self; 8] = [
        Self::Validate,
        Self::Load,
        Self::Calibrate,
        Self::Convert,
        Self::FineTune,
        Self::Pack,
        Self::Write,
        Self::Verify,
    ];

    /// Its name, which its manifest has too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Validate => "validate",
            Self::Load => "load",
            Self::Calibrate => "calibrate",
            Self::Convert => "convert",
            Self::FineTune => "fine_tune",
            Self::Pack => "pack",
            Self::Write => "write",
            Self::Verify => "verify",
        }
    }
}
