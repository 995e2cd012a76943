//! What slots see on calibration data.

use std::sync::{Arc, Mutex, PoisonError};

use bitnet_layers::{Blocks, InputHook, Projection, for_each_slot_mut};
use burn::module::Module;
use burn::tensor::{DType, Tensor};
use faer::Mat;
use serde::{Deserialize, Serialize};

use crate::LrcError;
use crate::slots::matrix;

/// An input is an outlier from this many times the root mean square of its token on.
pub const OUTLIER: f64 = 6.0;

/// What enters a slot's map, over all tokens of some batches.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Activations {
    /// The largest `|x|`.
    pub absmax: f64,
    /// Root mean square of all inputs.
    pub rms: f64,
    /// The share of inputs that are [`OUTLIER`] times as large as their token's root mean square, or larger.
    pub outliers: f64,
}

/// The inputs of every slot on these batches, by the slots' paths, in the model's order. Slots outside of the blocks, and
/// those that nothing reaches, are left out.
///
/// # Errors
/// [`LrcError::NoData`] without a batch, [`LrcError::NotFinite`] where an input is not finite, [`LrcError::Device`]
pub fn activations<M: Module + Blocks>(
    model: &M,
    batches: &[M::Batch],
) -> Result<Vec<(String, Activations)>, LrcError> {
    activations_of(&mut model.valid(), batches, |_, _| true)
}

/// The same, of the slots that are wanted, for the model as it is.
pub(crate) fn activations_of<M: Module + Blocks>(
    model: &mut M,
    batches: &[M::Batch],
    wanted: impl Fn(&str, &Projection) -> bool,
) -> Result<Vec<(String, Activations)>, LrcError> {
    if batches.is_empty() {
        return Err(LrcError::NoData);
    }
    let seen = observe(model, batches, wanted, sums)?.into_iter().filter(|(_, seen)| !seen.is_empty());
    seen.map(|(path, seen)| {
        let total = |column: usize| seen.iter().map(|sums| sums[(0, column)]).sum::<f64>();
        let n = total(3);
        let absmax = seen.iter().map(|sums| sums[(0, 0)]).fold(0.0, f64::max);
        let found = Activations { absmax, rms: (total(1) / n).sqrt(), outliers: total(2) / n };
        if found.absmax.is_finite() && found.rms.is_finite() {
            Ok((path, found))
        } else {
            Err(LrcError::NotFinite { slot: path, what: "its input on the calibration data" })
        }
    })
    .collect()
}

/// The largest `|x|`, the sum of squares, the number of outliers and that of all inputs, `[1, 4]`.
fn sums(x: Tensor<2>) -> Tensor<2> {
    let n = x.shape().num_elements();
    let x = x.cast(DType::F32).abs();
    let squares = x.clone().square();
    let rms = squares.clone().mean_dim(1).sqrt();
    let outliers = x.clone().greater_equal(rms * OUTLIER).float().cast(DType::F32);
    // A token of zeros has none, though each is as large as zero.
    let outliers = outliers * x.clone().greater_elem(0.0).float().cast(DType::F32);
    let over_all = |x: Tensor<2>| x.sum_dim(1).sum_dim(0);
    let absmax = x.max_dim(1).max_dim(0);
    let n = absmax.zeros_like() + n as f64;
    Tensor::cat(vec![absmax, over_all(squares), over_all(outliers), n], 1)
}

/// A slot's path, and what was kept of its inputs.
pub(crate) type Seen = (String, Vec<Mat<f64>>);

/// Runs batches through a model's blocks, and keeps what `reduce` makes of the inputs `[tokens, d_input]` of the slots
/// that are wanted, once per forward.
pub(crate) fn observe<M: Module + Blocks>(
    model: &mut M,
    batches: &[M::Batch],
    wanted: impl Fn(&str, &Projection) -> bool,
    reduce: fn(Tensor<2>) -> Tensor<2>,
) -> Result<Vec<Seen>, LrcError> {
    let mut seen = Vec::new();
    for_each_slot_mut(model, |path, slot| {
        if wanted(path, slot) {
            let reduced = Arc::new(Mutex::new(Vec::new()));
            seen.push(((path.to_owned(), Vec::new()), reduced.clone()));
            slot.on_input = Some(InputHook::new(move |x| {
                reduced.lock().unwrap_or_else(PoisonError::into_inner).push(reduce(x));
            }));
        }
    });
    let result = batches.iter().try_for_each(|batch| {
        (0..model.n_blocks()).fold(model.enter(batch), |state, block| model.forward_block(block, state));
        for ((path, kept), reduced) in &mut seen {
            for reduced in std::mem::take(&mut *reduced.lock().unwrap_or_else(PoisonError::into_inner)) {
                kept.push(matrix(path, reduced)?);
            }
        }
        Ok(())
    });
    for_each_slot_mut(model, |_, slot| slot.on_input = None);
    result.map(|()| seen.into_iter().map(|(seen, _)| seen).collect())
}
