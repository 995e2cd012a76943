//! Corrections and adapters that need no data.

use bitnet_layers::{Form, LowRank, LowRankKind, Projection, Slots, check_rank};
use burn::module::Module;
use burn::tensor::Tensor;

use crate::config::{Selected, Selection};
use crate::linalg::truncated_svd;
use crate::report::{ErrorOf, ErrorReport, LeftBecause, LrcReport, SlotAction};
use crate::slots::{matrix, paths, tensor, try_each, try_each_mut};
use crate::{Init, LoraConfig, LrcConfig, LrcError, SlotRule, Svd};

/// Puts a low-rank correction beside every BitNet slot that the config selects: `y = base(x) + λ·U(Vᵀx)`.
///
/// Dense slots have nothing to correct and are left, and so are slots that have a correction or adapter: a second call
/// changes nothing. The factors are f32 and train; with [`Init::Zeros`] they are frozen.
///
/// # Errors
/// - [`LrcError::RankAndPercentage`], [`LrcError::Percentage`], [`LrcError::Pattern`] for the rules
/// - [`LrcError::Layer`] for a rank above the smaller size of a slot, and for a slot that cannot be packed where
///   `keep_latent` is off
/// - [`LrcError::Init`] for [`Init::Calibrated`], which needs data: see [`calibrate`](crate::calibrate)
/// - [`LrcError::NoLatentWeight`] for [`Init::SvdResidual`] of a packed slot
/// - [`LrcError::NotFinite`], [`LrcError::Decomposition`] where a weight's residual cannot be decomposed
///
/// # Source
/// arXiv 2412.07902; docs/numerics.md#low-rank-correction.
pub fn add_lrc<M: Module + Slots>(mut model: M, config: &LrcConfig) -> Result<(M, LrcReport), LrcError> {
    if let Init::Calibrated { .. } = config.init {
        let (found, expected) =
            (config.init.name(), "kaiming, svd_residual or zeros; or calibrate with data");
        return Err(LrcError::Init { found, expected });
    }
    let paths = paths(&model);
    let selection = Selection::new(&config.slots, &config.exclude, &paths)?;
    check(&model, &selection, config.init == Init::SvdResidual)?;
    let mut report = LrcReport::default();
    try_each_mut(&mut model, |path, slot| {
        let rule = match wanted(&selection, path, slot) {
            Ok(rule) => rule,
            Err(because) => {
                report.push(path, shape(slot), SlotAction::Left(because));
                return Ok(());
            }
        };
        let rank = rule.rank_for(shape(slot));
        let (low_rank, error) = begin(path, slot, rank, config)?;
        let action = settle(path, slot, low_rank, error, config)?;
        report.push(path, shape(slot), action);
        Ok(())
    })?;
    Ok((model, report))
}

/// Puts a LoRA adapter beside every slot that the config selects, dense ones too: `y = base(x) + α/r · B·A·dropout(x)`.
///
/// `A` starts at random and `B` at zero, so the model computes what it did. Slots that have a correction or adapter are
/// left: a second call changes nothing.
///
/// # Errors
/// [`LrcError::RankAndPercentage`], [`LrcError::Percentage`], [`LrcError::Pattern`] for the rules; [`LrcError::Layer`] for a
/// rank above the smaller size of a slot, and for α or dropout out of range.
///
/// # Source
/// arXiv 2106.09685; docs/numerics.md#low-rank-correction.
pub fn add_lora<M: Module + Slots>(mut model: M, config: &LoraConfig) -> Result<(M, LrcReport), LrcError> {
    let paths = paths(&model);
    let selection = Selection::new(&config.slots, &config.exclude, &paths)?;
    let mut report = LrcReport::default();
    try_each_mut(&mut model, |path, slot| {
        let rule = match selected(&selection, path, slot) {
            Ok(rule) => rule,
            Err(because) => {
                report.push(path, shape(slot), SlotAction::Left(because));
                return Ok(());
            }
        };
        let kind = LowRankKind::Lora { alpha: config.alpha };
        let rank = rule.rank_for(shape(slot));
        let low_rank = LowRank::kaiming(shape(slot), rank, kind, &slot.device())
            .and_then(|low_rank| low_rank.with_dropout(config.dropout))
            .map_err(LrcError::layer(path))?;
        let action = added(&low_rank, None);
        slot.set_low_rank(low_rank).map_err(LrcError::layer(path))?;
        report.push(path, shape(slot), action);
        Ok(())
    })?;
    Ok((model, report))
}

/// `[d_output, d_input]`
pub(crate) fn shape(slot: &Projection) -> [usize; 2] {
    [slot.d_output(), slot.d_input()]
}

/// The rule for a slot, or why it is left.
fn selected<'a>(
    selection: &Selection<'a>,
    path: &str,
    slot: &Projection,
) -> Result<&'a SlotRule, LeftBecause> {
    match selection.of(path) {
        _ if slot.low_rank.is_some() => Err(LeftBecause::HasOne),
        Selected::By(rule) => Ok(rule),
        Selected::Excluded(pattern) => Err(LeftBecause::Excluded(pattern)),
        Selected::No => Err(LeftBecause::NotSelected),
    }
}

/// The same for a correction, which a dense slot does not need.
pub(crate) fn wanted<'a>(
    selection: &Selection<'a>,
    path: &str,
    slot: &Projection,
) -> Result<&'a SlotRule, LeftBecause> {
    let rule = selected(selection, path, slot)?;
    if slot.is_bit() { Ok(rule) } else { Err(LeftBecause::Dense) }
}

/// Finds what does not fit before anything is computed.
pub(crate) fn check(model: &impl Slots, selection: &Selection, needs_latent: bool) -> Result<(), LrcError> {
    try_each(model, |path, slot| {
        let Ok(rule) = wanted(selection, path, slot) else {
            return Ok(());
        };
        check_rank(rule.rank_for(shape(slot)), shape(slot)).map_err(LrcError::layer(path))?;
        match &slot.form {
            Form::Packed(_) if needs_latent => {
                let purpose = "an initialization from what ternarization loses";
                Err(LrcError::NoLatentWeight { slot: path.into(), purpose })
            }
            _ => Ok(()),
        }
    })
}

/// A correction as the config begins it, and the error that it leaves.
fn begin(
    path: &str,
    slot: &Projection,
    rank: usize,
    config: &LrcConfig,
) -> Result<(LowRank, Option<ErrorReport>), LrcError> {
    let ([d_output, d_input], device) = (shape(slot), slot.device());
    let kind = kind(config);
    let low_rank = match config.init {
        Init::SvdResidual => return svd_residual(path, slot, rank, kind, config.svd),
        Init::Zeros => {
            let zeros = |rows| Tensor::zeros([rows, rank], &device);
            let mut low_rank =
                LowRank::new(zeros(d_output), zeros(d_input), kind).map_err(LrcError::layer(path))?;
            low_rank.u = low_rank.u.set_require_grad(false);
            low_rank.v = low_rank.v.set_require_grad(false);
            low_rank
        }
        Init::Kaiming | Init::Calibrated { .. } => {
            LowRank::kaiming([d_output, d_input], rank, kind, &device).map_err(LrcError::layer(path))?
        }
    };
    Ok((low_rank, None))
}

/// The kind of correction that a config asks for.
pub(crate) fn kind(config: &LrcConfig) -> LowRankKind {
    config.factors.map_or(LowRankKind::Correction, LowRankKind::QuantizedCorrection)
}

/// The top of `W − Ŵ`, √S on each side.
fn svd_residual(
    path: &str,
    slot: &Projection,
    rank: usize,
    kind: LowRankKind,
    svd: Svd,
) -> Result<(LowRank, Option<ErrorReport>), LrcError> {
    let purpose = "its residual";
    let weight = slot.latent_weight().ok_or(LrcError::NoLatentWeight { slot: path.into(), purpose })?;
    let norm = matrix(path, weight.clone())?.norm_l2();
    // Before it is ternarized: not every backend has codes for what is not finite.
    if !norm.is_finite() {
        return Err(LrcError::NotFinite { slot: path.into(), what: "the weight" });
    }
    let quantized = slot.quantized_weight().map_err(LrcError::layer(path))?;
    let residual = matrix(path, weight - quantized)?;
    let decomposition = "singular value decomposition";
    let svd = truncated_svd(residual.as_ref(), rank, svd)
        .ok_or(LrcError::Decomposition { slot: path.into(), decomposition })?;
    let (u, v) = svd.balanced();
    let device = slot.device();
    let low_rank = LowRank::new(tensor(u.as_ref(), &device), tensor(v.as_ref(), &device), kind)
        .map_err(LrcError::layer(path))?;
    let left = &residual - matrix(path, low_rank.product(1.0))?;
    let share = |error: f64| if norm > 0.0 { error / norm } else { 0.0 };
    let error = ErrorReport {
        of: ErrorOf::Weight,
        before: share(residual.norm_l2()),
        after: vec![share(left.norm_l2())],
    };
    Ok((low_rank, Some(error)))
}

/// Puts a correction into its slot, and packs the slot where the latent weight is to go.
pub(crate) fn settle(
    path: &str,
    slot: &mut Projection,
    low_rank: LowRank,
    error: Option<ErrorReport>,
    config: &LrcConfig,
) -> Result<SlotAction, LrcError> {
    let action = added(&low_rank, error);
    slot.set_low_rank(low_rank).map_err(LrcError::layer(path))?;
    if !config.keep_latent {
        slot.pack().map_err(LrcError::layer(path))?;
    }
    Ok(action)
}

fn added(low_rank: &LowRank, error: Option<ErrorReport>) -> SlotAction {
    let rank = low_rank.rank();
    SlotAction::Added { rank, parameters: rank * (low_rank.d_output() + low_rank.d_input()), error }
}
