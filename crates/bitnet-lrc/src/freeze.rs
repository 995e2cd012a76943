//! What trains and what does not.

use std::collections::HashSet;

use bitnet_layers::{Form, Outliers, Slots, for_each_slot};
use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::Tensor;
use serde::Serialize;

use crate::LrcError;
use crate::slots::try_each;

/// What is trained beside the corrections and adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trainable {
    /// Nothing.
    #[default]
    AdaptersOnly,
    /// The weights of the slots that have one, straight through.
    WithWeights,
}

/// How many values train and how many do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Values that an optimizer changes.
    pub trainable: usize,
    /// All others, codes of packed weights among them.
    pub frozen: usize,
}

/// Freezes every parameter except the factors of corrections and adapters.
///
/// A frozen parameter gets no gradient, so no optimizer touches it, weight decay included; gradients still pass through
/// frozen layers to the factors below them.
///
/// # Errors
/// - [`LrcError::NoAdapter`] where no slot has a correction or adapter
/// - [`LrcError::DeadFactors`] where both factors of one are zero
/// - [`LrcError::NoLatentWeight`] where the weight of a packed slot is to be trained
/// - [`LrcError::Layer`] where the device fails
pub fn freeze_except_adapters<M: Module + Slots>(
    model: M,
    trainable: Trainable,
) -> Result<(M, Counts), LrcError> {
    let mut kept = HashSet::new();
    try_each(&model, |path, slot| {
        let Some(low_rank) = &slot.low_rank else {
            return Ok(());
        };
        if low_rank.is_dead().map_err(LrcError::layer(path))? {
            return Err(LrcError::DeadFactors { slot: path.into() });
        }
        kept.extend([low_rank.u.id, low_rank.v.id]);
        if trainable == Trainable::WithWeights {
            kept.extend(match &slot.form {
                Form::Dense(linear) => [linear.weight.id],
                Form::Bit(linear) => [linear.weight.id],
                Form::Packed(_) => {
                    return Err(LrcError::NoLatentWeight { slot: path.into(), purpose: "training it" });
                }
            });
            if let Some(Outliers::Salient(salient)) = &slot.outliers {
                kept.insert(salient.weight.id);
            }
        }
        Ok(())
    })?;
    if kept.is_empty() {
        return Err(LrcError::NoAdapter);
    }
    Ok(set_trainable(model, |id| kept.contains(&id)))
}

/// Lets every parameter train again, except the scales of packed weights, whose codes cannot follow them.
pub fn unfreeze<M: Module + Slots>(model: M) -> (M, Counts) {
    let mut fixed = HashSet::new();
    for_each_slot(&model, |_, slot| {
        if let Form::Packed(linear) = &slot.form {
            fixed.insert(linear.scales.id);
        }
    });
    set_trainable(model, |id| !fixed.contains(&id))
}

fn set_trainable<M: Module + Slots>(model: M, trains: impl Fn(ParamId) -> bool) -> (M, Counts) {
    let mut mapper = Freezer { trains, counts: Counts::default() };
    let model = model.map(&mut mapper);
    let mut counts = mapper.counts;
    for_each_slot(&model, |_, slot| {
        if let Form::Packed(linear) = &slot.form {
            counts.frozen += linear.d_output() * linear.d_input();
        }
    });
    (model, counts)
}

struct Freezer<F> {
    trains: F,
    counts: Counts,
}

impl<F: Fn(ParamId) -> bool> ModuleMapper for Freezer<F> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let trains = (self.trains)(param.id);
        let n = param.lazy_shape().num_elements();
        if trains {
            self.counts.trainable += n;
        } else {
            self.counts.frozen += n;
        }
        param.set_require_grad(trains)
    }
}
