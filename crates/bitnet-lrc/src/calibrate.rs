//! Corrections that suit calibration data.

use std::sync::{Arc, Mutex, PoisonError};

use bitnet_layers::{Blocks, InputHook, LowRank, Projection, Slots, for_each_slot_mut};
use burn::module::Module;
use burn::tensor::Tensor;
use faer::Mat;
use serde::Serialize;

use crate::add::{check, kind, settle, shape, wanted};
use crate::closed_form::{calibrated, refitted};
use crate::config::Selection;
use crate::moments::Moments;
use crate::report::{ErrorOf, ErrorReport, LeftBecause, LrcReport, SlotAction};
use crate::slots::{matrix, paths, tensor, try_each, try_each_mut, values};
use crate::{Init, LrcConfig, LrcError};

/// What calibration did, and what it kept in memory.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Calibration {
    /// What was done to each slot.
    pub report: LrcReport,
    /// Tokens of all batches together.
    pub tokens: usize,
    /// The most bytes that statistics and cached hidden states took at one time, beside the model and one forward of one
    /// batch through one block.
    pub peak_bytes: usize,
}

/// Puts a correction beside every BitNet slot that the config selects, fitted to what the slot's quantization loses on
/// calibration data: with `X` the slot's inputs, the factors of the given rank that bring `Ŵ·Qa(X) + U Vᵀ X` closest to
/// `W·X`. Slots that have a correction or adapter are left.
///
/// It goes through the model block by block. The hidden states before a block are kept for all batches, `4 · tokens ·
/// d_model` bytes; the block's slots see them once, and each keeps three sums of `8 · d_input²` bytes. After the block's
/// slots are corrected, the states go through it again, so that later blocks see what it computes then.
///
/// With `rounds` in [`Init::Calibrated`], the ternary weight is fitted to what the correction leaves, and the correction
/// to that weight, in turn. A round is kept if the error fell, else it is the last one. The slot's latent weight is then
/// the one that its new codes are made from.
///
/// The model comes back without autodiff, as [`Module::valid`] gives it; training takes it up again.
///
/// # Errors
/// - those of [`add_lrc`](crate::add_lrc); [`LrcError::Init`] unless the config says [`Init::Calibrated`]
/// - [`LrcError::NoData`] without a batch, [`LrcError::NotFinite`] where an input is not finite
/// - [`LrcError::Lambda`] for a slot that is not at λ = 1
/// - [`LrcError::NoLatentWeight`] for a packed slot
///
/// # Source
/// arXiv 2412.07902, §3; docs/numerics.md#low-rank-correction.
pub fn calibrate<M: Module + Blocks>(
    model: M,
    batches: &[M::Batch],
    config: &LrcConfig,
) -> Result<(M, Calibration), LrcError> {
    let Init::Calibrated { rounds } = config.init else {
        return Err(LrcError::Init { found: config.init.name(), expected: "calibrated" });
    };
    if batches.is_empty() {
        return Err(LrcError::NoData);
    }
    let mut model = model.valid();
    let paths = paths(&model);
    let selection = Selection::new(&config.slots, &config.exclude, &paths)?;
    check(&model, &selection, true)?;
    at_full_strength(&model)?;

    let mut states: Vec<Tensor<3>> = batches.iter().map(|batch| model.enter(batch)).collect();
    let sizes = states.iter().map(|state| state.shape().num_elements());
    let cached_bytes = 4 * sizes.sum::<usize>();
    let mut calibration = Calibration::default();
    let mut actions = Vec::new();
    for block in 0..model.n_blocks() {
        let mut slots = observe(&mut model, block, &states, &selection)?;
        let statistics: usize = slots.iter().map(Observed::bytes).sum();
        calibration.peak_bytes = calibration.peak_bytes.max(cached_bytes + statistics);
        calibration.tokens =
            slots.iter().map(|slot| slot.moments.tokens()).chain([calibration.tokens]).max().unwrap_or(0);
        try_each_mut(&mut model, |path, slot| {
            let Some(index) = slots.iter().position(|observed| observed.path == path) else {
                return Ok(());
            };
            let Observed { rank, moments, .. } = slots.swap_remove(index);
            let (low_rank, error) = fit(path, slot, &moments.finish(), rank, rounds, config)?;
            actions.push((path.to_owned(), settle(path, slot, low_rank, Some(error), config)?));
            Ok(())
        })?;
        for state in &mut states {
            *state = model.forward_block(block, state.clone());
        }
    }
    // In the model's order, slots that were left included.
    try_each(&model, |path, slot| {
        let done = actions.iter().position(|(done, _)| done == path).map(|i| actions.swap_remove(i).1);
        let action = done.unwrap_or_else(|| {
            SlotAction::Left(wanted(&selection, path, slot).err().unwrap_or(LeftBecause::OutsideBlocks))
        });
        calibration.report.push(path, shape(slot), action);
        Ok(())
    })?;
    Ok((model, calibration))
}

/// Refuses a slot whose inputs would be others than those that its correction is for.
fn at_full_strength(model: &impl Slots) -> Result<(), LrcError> {
    try_each(model, |path, slot| match slot.effective_lambda() {
        found if slot.is_bit() && found != 1.0 => Err(LrcError::Lambda { slot: path.into(), found }),
        _ => Ok(()),
    })
}

/// A slot of the block at hand.
struct Observed {
    path: String,
    rank: usize,
    moments: Moments,
    inputs: Arc<Mutex<Vec<Tensor<2>>>>,
}

impl Observed {
    fn bytes(&self) -> usize {
        let (d_operand, d_input) = self.moments.ex.shape();
        Moments::bytes(d_input, d_operand)
    }

    fn take_inputs(&self) -> Vec<Tensor<2>> {
        std::mem::take(&mut *self.inputs.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs all states through a block and sums up what its slots see.
fn observe<M: Module + Blocks>(
    model: &mut M,
    block: usize,
    states: &[Tensor<3>],
    selection: &Selection,
) -> Result<Vec<Observed>, LrcError> {
    let prefix = format!("{}.", model.block_path(block));
    let mut slots = Vec::new();
    for_each_slot_mut(model, |path, slot| {
        if let (true, Ok(rule)) = (path.starts_with(&prefix), wanted(selection, path, slot)) {
            let inputs = Arc::new(Mutex::new(Vec::new()));
            let seen = inputs.clone();
            slot.on_input = Some(InputHook::new(move |x| {
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(x);
            }));
            let moments = Moments::new(slot.d_input(), slot.d_operand());
            slots.push(Observed { path: path.into(), rank: rule.rank_for(shape(slot)), moments, inputs });
        }
    });
    let result = states.iter().try_for_each(|state| {
        model.forward_block(block, state.clone());
        sum_up(model, &mut slots)
    });
    for_each_slot_mut(model, |path, slot| {
        if path.starts_with(&prefix) {
            slot.on_input = None;
        }
    });
    result.map(|()| slots)
}

/// Adds what the slots saw last to their sums.
fn sum_up(model: &impl Slots, slots: &mut [Observed]) -> Result<(), LrcError> {
    try_each(model, |path, slot| {
        let Some(observed) = slots.iter_mut().find(|observed| observed.path == path) else {
            return Ok(());
        };
        let not_finite =
            || LrcError::NotFinite { slot: path.into(), what: "its input on the calibration data" };
        for x in observed.take_inputs() {
            let seen = values(path, x.clone())?;
            // Before it is quantized: not every backend has codes for what is not finite.
            if !seen.iter().all(|value| value.is_finite()) {
                return Err(not_finite());
            }
            let e = slot.operand(x.clone()) - slot.quantized_operand(x);
            if !observed.moments.add(&seen, &values(path, e)?) {
                return Err(not_finite());
            }
        }
        Ok(())
    })
}

/// The correction of a slot, fitted to its moments; with rounds, its weight too.
fn fit(
    path: &str,
    slot: &mut Projection,
    moments: &Moments,
    rank: usize,
    rounds: usize,
    config: &LrcConfig,
) -> Result<(LowRank, ErrorReport), LrcError> {
    let purpose = "calibration";
    let latent = slot.latent_weight().ok_or(LrcError::NoLatentWeight { slot: path.into(), purpose })?;
    let problem = Problem { path, moments, rank, config, weight: matrix(path, latent)? };

    let norm = moments.squared_output(problem.weight.as_ref()).sqrt();
    let share = |error: f64| if norm > 0.0 { error / norm } else { 0.0 };
    if !norm.is_finite() || !problem.weight.norm_l2().is_finite() {
        return Err(LrcError::NotFinite { slot: path.into(), what: "its weight" });
    }
    let Quantized { residual, operand_weight } = problem.quantized(slot)?;
    let before = problem.error(&residual, &operand_weight);
    let mut best = problem.solve(slot)?;
    let mut after = vec![share(best.error)];
    for _ in 0..rounds {
        let candidate = problem.refit(slot, &best)?;
        let next = problem.solve(&candidate)?;
        after.push(share(next.error));
        if next.error >= best.error {
            break;
        }
        *slot = candidate;
        best = next;
    }
    Ok((best.low_rank, ErrorReport { of: ErrorOf::Output, before: share(before), after }))
}

/// What is fixed while a slot is fitted.
struct Problem<'a> {
    path: &'a str,
    moments: &'a Moments,
    rank: usize,
    config: &'a LrcConfig,
    /// What the slot should compute with, `W`.
    weight: Mat<f64>,
}

/// What a slot computes with instead, at λ = 1.
struct Quantized {
    /// `W − Ŵ`, `[d_output, d_input]`
    residual: Mat<f64>,
    /// `Ŵ` as it meets the quantized operand, `[d_output, d_operand]`
    operand_weight: Mat<f64>,
}

/// A correction, what it gives, and what it leaves.
struct Solution {
    low_rank: LowRank,
    product: Mat<f64>,
    error: f64,
}

impl Problem<'_> {
    fn quantized(&self, slot: &Projection) -> Result<Quantized, LrcError> {
        let quantized = slot.quantized_weight().map_err(LrcError::layer(self.path))?;
        let operand_weight = slot.quantized_operand_weight().map_err(LrcError::layer(self.path))?;
        Ok(Quantized {
            residual: &self.weight - matrix(self.path, quantized)?,
            operand_weight: matrix(self.path, operand_weight)?,
        })
    }

    /// `‖W X − Ŵ Qa(X) − U Vᵀ X‖`, where the residual is `W − Ŵ − U Vᵀ`.
    fn error(&self, residual: &Mat<f64>, operand_weight: &Mat<f64>) -> f64 {
        self.moments.squared_error(residual.as_ref(), operand_weight.as_ref()).sqrt()
    }

    /// The best correction beside a slot's ternary weight, as the slot will compute it.
    fn solve(&self, slot: &Projection) -> Result<Solution, LrcError> {
        let Self { path, moments, rank, config, .. } = self;
        let Quantized { residual, operand_weight } = self.quantized(slot)?;
        let (u, v) = calibrated(residual.as_ref(), operand_weight.as_ref(), moments, *rank, config.svd)
            .ok_or(LrcError::Decomposition { slot: (*path).into(), decomposition: "calibration" })?;
        let device = slot.device();
        let low_rank = LowRank::new(tensor(u.as_ref(), &device), tensor(v.as_ref(), &device), kind(config))
            .map_err(LrcError::layer(path))?;
        let product = matrix(path, low_rank.product(1.0))?;
        let error = self.error(&(&residual - &product), &operand_weight);
        Ok(Solution { low_rank, product, error })
    }

    /// The slot with a weight that suits what a correction leaves to it.
    fn refit(&self, slot: &Projection, solution: &Solution) -> Result<Projection, LrcError> {
        let Self { path, moments, weight, .. } = self;
        let target = weight - &solution.product;
        let d_input = weight.ncols();
        let device = slot.device().inner();
        // One row per input: the map from the input to the operand, transposed.
        let operand = matrix(path, slot.operand(Tensor::eye(d_input, &device)))?;
        let fitted =
            refitted(target.as_ref(), moments, operand.transpose()).ok_or(LrcError::Decomposition {
                slot: (*path).into(),
                decomposition: "Cholesky decomposition",
            })?;
        let mut slot = slot.clone();
        slot.update_operand_weight(|_| tensor(fitted.as_ref(), &device)).map_err(LrcError::layer(path))?;
        Ok(slot)
    }
}
