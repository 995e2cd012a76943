use std::fmt;

use serde::{Deserialize, Serialize};

/// Why conversion left a tensor as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "because", content = "detail")]
pub enum LeftBecause {
    /// It is the embedding, which stays in full precision.
    Embedding,
    /// It is the head, which stays in full precision.
    Head,
    /// It is the gain of a norm.
    Norm,
    /// It is a bias: biases are never quantized.
    Bias,
    /// This pattern of the policy excludes its slot.
    Excluded(String),
    /// Its slot is BitNet already.
    AlreadyBitNet,
    /// It is a factor of a low-rank map.
    LowRank,
    /// It holds salient columns, which stay in full precision.
    Salient,
    /// It stands in no projection slot.
    NotInASlot,
}

/// What conversion did to a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum Action {
    /// The weight of a slot that became a BitNet layer.
    Ternarized,
    /// The same, turned by a Hadamard matrix before.
    TurnedAndTernarized,
    /// The gain of a SubLN that conversion inserted.
    InsertedSubNorm,
    /// Unchanged.
    Left(LeftBecause),
}

/// One tensor of the converted model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorReport {
    /// Its full name.
    pub name: String,
    /// Its shape, as the checkpoint stores it.
    pub shape: Vec<usize>,
    /// What was done to it.
    #[serde(flatten)]
    pub action: Action,
}

/// Every tensor of a converted model and what was done to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConversionReport {
    /// In the model's order.
    pub tensors: Vec<TensorReport>,
}

impl ConversionReport {
    /// Number of slots that became BitNet layers.
    pub fn n_converted(&self) -> usize {
        let converted = |action: &Action| matches!(action, Action::Ternarized | Action::TurnedAndTernarized);
        self.tensors.iter().filter(|tensor| converted(&tensor.action)).count()
    }
}

impl fmt::Display for ConversionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for TensorReport { name, shape, action } in &self.tensors {
            writeln!(f, "{name} {shape:?}: {action:?}")?;
        }
        Ok(())
    }
}
