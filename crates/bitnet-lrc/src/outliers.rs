//! Slots that treat outliers of their input apart: conversions that go before ternarizing.

use bitnet_layers::{Blocks, Form, Projection, Slots};
use burn::module::Module;
use burn::tensor::DType;
use faer::Mat;
use serde::{Deserialize, Serialize};

use crate::config::{Selected, Selection};
use crate::observe::observe;
use crate::slots::{matrix, paths, try_each, try_each_mut};
use crate::{LrcError, SlotRule};

/// Which slots [`rotate`] turns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HadamardConfig {
    /// Globs on the slots' paths.
    pub slots: Vec<String>,
    /// Globs on paths of slots that are left all the same.
    pub exclude: Vec<String>,
}

impl Default for HadamardConfig {
    /// The maps after attention and at the end of the MLP, whose inputs have the largest outliers.
    fn default() -> Self {
        Self { slots: ["*output", "*down"].map(str::to_owned).to_vec(), exclude: Vec::new() }
    }
}

/// Which columns [`keep_salient`] takes out of quantization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SalientConfig {
    /// Globs on the slots' paths.
    pub slots: Vec<String>,
    /// Globs on paths of slots that are left all the same.
    pub exclude: Vec<String>,
    /// The share of a slot's columns that it keeps, at least one.
    pub ratio: f64,
}

impl Default for SalientConfig {
    fn default() -> Self {
        Self { slots: vec!["*".into()], exclude: Vec::new(), ratio: 0.01 }
    }
}

/// What [`rotate`] or [`keep_salient`] did to each slot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct OutlierReport {
    /// Paths and what was done, in the model's order.
    pub slots: Vec<(String, OutlierAction)>,
}

impl OutlierReport {
    /// Number of slots that were changed.
    pub fn n_changed(&self) -> usize {
        self.slots.iter().filter(|(_, action)| !matches!(action, OutlierAction::Left(_))).count()
    }
}

/// What was done to a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutlierAction {
    /// Its weight and input are turned.
    Rotated {
        /// Inputs of the map: the next power of two.
        d_operand: usize,
    },
    /// It keeps these columns in full precision.
    Kept {
        /// Ascending.
        columns: Vec<usize>,
    },
    /// It is as it was.
    Left(OutlierLeft),
}

/// Why a slot was left as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutlierLeft {
    /// No glob matches it.
    NotSelected,
    /// This glob excludes it.
    Excluded(String),
    /// It treats outliers already.
    TreatsThem,
}

/// Turns weight and input of every slot that the config selects by a Hadamard matrix, which spreads outliers of the input
/// before they are quantized. Widths that are no power of two are filled up with zeros. At λ = 0 the model computes what it
/// did; slots that treat outliers already are left.
///
/// # Errors
/// [`LrcError::Pattern`] for a glob that cannot be read or matches nothing; [`LrcError::NoLatentWeight`] for a packed slot;
/// [`LrcError::Layer`] where a group of weights does not fit the turned one.
///
/// # Source
/// docs/numerics.md#hadamard.
pub fn rotate<M: Module + Slots>(
    mut model: M,
    config: &HadamardConfig,
) -> Result<(M, OutlierReport), LrcError> {
    let (paths, rules) = (paths(&model), rules(&config.slots));
    let selection = Selection::new(&rules, &config.exclude, &paths)?;
    check(&model, &selection)?;
    let mut report = OutlierReport::default();
    try_each_mut(&mut model, |path, slot| {
        let action = match left(&selection, path, slot) {
            Some(because) => OutlierAction::Left(because),
            None => {
                slot.rotate().map_err(LrcError::layer(path))?;
                OutlierAction::Rotated { d_operand: slot.d_operand() }
            }
        };
        report.slots.push((path.into(), action));
        Ok(())
    })?;
    Ok((model, report))
}

/// Takes the columns that matter most on calibration data out of quantization, in every slot that the config selects:
/// those of the largest `mean|xⱼ| · ‖W:ⱼ‖₂`. At λ = 0 the model computes what it did; slots that treat outliers already are
/// left.
///
/// The scores are of the inputs that the model sees as it is: take them before a model is ternarized. The model comes back
/// without autodiff, as [`Module::valid`] gives it.
///
/// # Errors
/// - [`LrcError::Ratio`] unless the ratio is above 0 and below 1; [`LrcError::Pattern`] for a glob
/// - [`LrcError::NoData`] without a batch, [`LrcError::Unseen`] where none reaches a slot, [`LrcError::NotFinite`] where an input or weight is not finite
/// - [`LrcError::NoLatentWeight`] for a packed slot, [`LrcError::Layer`] where a group does not divide the columns left
///
/// # Source
/// docs/numerics.md#salient-columns.
pub fn keep_salient<M: Module + Blocks>(
    model: M,
    batches: &[M::Batch],
    config: &SalientConfig,
) -> Result<(M, OutlierReport), LrcError> {
    if !(config.ratio > 0.0 && config.ratio < 1.0) {
        return Err(LrcError::Ratio { found: config.ratio });
    }
    if batches.is_empty() {
        return Err(LrcError::NoData);
    }
    let mut model = model.valid();
    let (paths, rules) = (paths(&model), rules(&config.slots));
    let selection = Selection::new(&rules, &config.exclude, &paths)?;
    check(&model, &selection)?;
    let mut observed = magnitudes(&mut model, batches, &selection)?;
    let mut report = OutlierReport::default();
    try_each_mut(&mut model, |path, slot| {
        let action = match left(&selection, path, slot) {
            Some(because) => OutlierAction::Left(because),
            None => {
                let at = observed.iter().position(|(seen, _)| seen == path);
                let magnitudes = at.map(|at| observed.swap_remove(at).1).unwrap_or_default();
                let columns = salient_columns(path, slot, &magnitudes, config.ratio)?;
                slot.keep_salient(&columns).map_err(LrcError::layer(path))?;
                OutlierAction::Kept { columns }
            }
        };
        report.slots.push((path.into(), action));
        Ok(())
    })?;
    Ok((model, report))
}

fn rules(globs: &[String]) -> Vec<SlotRule> {
    globs.iter().map(|glob| SlotRule::default().on(glob)).collect()
}

/// Why a slot is left.
fn left(selection: &Selection, path: &str, slot: &Projection) -> Option<OutlierLeft> {
    match selection.of(path) {
        _ if slot.outliers.is_some() => Some(OutlierLeft::TreatsThem),
        Selected::By(_) => None,
        Selected::Excluded(pattern) => Some(OutlierLeft::Excluded(pattern)),
        Selected::No => Some(OutlierLeft::NotSelected),
    }
}

fn check(model: &impl Slots, selection: &Selection) -> Result<(), LrcError> {
    try_each(model, |path, slot| match (left(selection, path, slot), &slot.form) {
        (None, Form::Packed(_)) => {
            Err(LrcError::NoLatentWeight { slot: path.into(), purpose: "treating outliers apart" })
        }
        _ => Ok(()),
    })
}

/// The sum of `|x|` over all tokens, per slot and input: the order of its scores is that of the means.
fn magnitudes<M: Module + Blocks>(
    model: &mut M,
    batches: &[M::Batch],
    selection: &Selection,
) -> Result<Vec<(String, Vec<f64>)>, LrcError> {
    let wanted = |path: &str, slot: &Projection| left(selection, path, slot).is_none();
    let seen = observe(model, batches, wanted, |x| x.cast(DType::F32).abs().sum_dim(0))?;
    let totals = seen.into_iter().map(|(path, sums)| {
        let d_input = sums.first().map_or(0, Mat::ncols);
        (path, (0..d_input).map(|j| sums.iter().map(|sum| sum[(0, j)]).sum()).collect())
    });
    Ok(totals.collect())
}

/// The columns of the largest scores, ascending; of equal ones the first.
fn salient_columns(
    path: &str,
    slot: &Projection,
    magnitudes: &[f64],
    ratio: f64,
) -> Result<Vec<usize>, LrcError> {
    let purpose = "treating outliers apart";
    let weight = slot.latent_weight().ok_or(LrcError::NoLatentWeight { slot: path.into(), purpose })?;
    let weight = matrix(path, weight)?;
    let scores: Vec<f64> =
        magnitudes.iter().enumerate().map(|(j, magnitude)| magnitude * weight.col(j).norm_l2()).collect();
    if scores.iter().any(|score| !score.is_finite()) {
        return Err(LrcError::NotFinite {
            slot: path.into(),
            what: "its input on the calibration data, or its weight",
        });
    }
    if scores.iter().all(|score| *score == 0.0) {
        return Err(LrcError::Unseen { slot: path.into() });
    }
    let mut columns: Vec<usize> = (0..scores.len()).collect();
    columns.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    columns.truncate(((scores.len() as f64 * ratio) as usize).max(1));
    columns.sort_unstable();
    Ok(columns)
}
