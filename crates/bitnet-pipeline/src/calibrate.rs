//! Stage `calibrate`: what enters the slots of the dense model.

use bitnet_lrc::{Activations, activations};
use serde::{Deserialize, Serialize};

use crate::pipeline::Context;
use crate::{PipelineError, Stage};

/// The inputs of one slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlotStatistics {
    /// The slot's full name.
    pub slot: String,
    /// Their sizes, and the share of outliers.
    #[serde(flatten)]
    pub inputs: Activations,
}

/// What the stage leaves.
#[derive(Serialize, Deserialize)]
pub(crate) struct Calibrated {
    pub(crate) tokens: u64,
    /// In the model's order.
    pub(crate) slots: Vec<SlotStatistics>,
}

pub(crate) fn run(context: &mut Context) -> Result<(), PipelineError> {
    let dense = context.dense()?;
    let batches = context.batches(&dense.model)?;
    let tokens = batches.iter().map(|batch| batch.shape().num_elements() as u64).sum();
    let found = activations(&dense.model, &batches)?.into_iter();
    let slots = found.map(|(path, inputs)| SlotStatistics { slot: dense.slot_name(&path), inputs });
    context.work.finish(Stage::Calibrate, &Calibrated { tokens, slots: slots.collect() })
}
