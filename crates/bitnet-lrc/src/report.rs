use std::fmt;

use serde::Serialize;

/// What [`add_lrc`](crate::add_lrc), [`calibrate`](crate::calibrate) or [`add_lora`](crate::add_lora) did to each slot.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct LrcReport {
    /// In the model's order.
    pub slots: Vec<SlotReport>,
}

impl LrcReport {
    /// Number of slots that got a correction or adapter.
    pub fn n_added(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot.action, SlotAction::Added { .. })).count()
    }

    pub(crate) fn push(&mut self, path: &str, shape: [usize; 2], action: SlotAction) {
        self.slots.push(SlotReport { path: path.into(), shape, action });
    }
}

/// What was done to one slot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SlotReport {
    /// Its path in the module.
    pub path: String,
    /// `[d_output, d_input]`.
    pub shape: [usize; 2],
    /// What was done.
    #[serde(flatten)]
    pub action: SlotAction,
}

/// What was done to a slot.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum SlotAction {
    /// It got a correction or adapter.
    Added {
        /// Its rank.
        rank: usize,
        /// Values in both factors.
        parameters: usize,
        /// What quantization costs before and after, where the initialization looks at it.
        error: Option<ErrorReport>,
    },
    /// It is as it was.
    Left(LeftBecause),
}

/// Why a slot was left as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "because", content = "detail")]
pub enum LeftBecause {
    /// No rule matches it.
    NotSelected,
    /// This glob excludes it.
    Excluded(String),
    /// It is dense: there is nothing to correct.
    Dense,
    /// It has a correction or adapter already.
    HasOne,
    /// It stands in none of the blocks that were calibrated.
    OutsideBlocks,
}

/// The error of a slot, as a share of what it should be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ErrorReport {
    /// What the errors are of.
    pub of: ErrorOf,
    /// Without a correction.
    pub before: f64,
    /// With it; then after each round of fitting the ternary weight again, whether it was kept or not.
    pub after: Vec<f64>,
}

/// What an error is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorOf {
    /// `‖W − Ŵ − U Vᵀ‖ / ‖W‖`
    Weight,
    /// `‖W X − Ŵ Qa(X) − U Vᵀ X‖ / ‖W X‖` on the calibration data
    Output,
}

impl fmt::Display for LrcReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for SlotReport { path, shape, action } in &self.slots {
            writeln!(f, "{path} {shape:?}: {action:?}")?;
        }
        Ok(())
    }
}
