//! Conversion in place: dense slots become BitNet slots.

use std::collections::BTreeMap;

use bitnet_layers::{LayerError, RmsNormConfig, Slots, SubLn, SubLnOrigin, for_each_slot, for_each_slot_mut};
use bitnet_lrc::{SalientConfig, calibrate_gains, keep_salient};
use bitnet_quant::check_granularity;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Int, Tensor};
use globset::GlobMatcher;

use crate::bitnet_state::BitNetState;
use crate::names::{Names, is_output_slot};
use crate::param_path::ParamPath;
use crate::{
    Action, Checkpoint, ConversionReport, ConvertError, HfConfig, LeftBecause, Placement, Policy,
    TensorReport,
};

/// Turns every dense slot of a model into a BitNet slot, except those that the policy excludes, and inserts SubLN
/// as it says. Weights keep their values, device and trainability; a second conversion changes nothing.
///
/// # Errors
/// - [`ConvertError::Pattern`] for a glob that cannot be read or matches nothing
/// - [`ConvertError::Layer`] where the granularity does not fit a weight; no slot is changed then
/// - [`ConvertError::MixedPolicy`] where some slots are BitNet already and the policy asks the rest to be otherwise
/// - [`ConvertError::NeedsData`] for a policy that looks at calibration data: see [`convert_calibrated`]
pub fn convert(
    checkpoint: Checkpoint,
    policy: &Policy,
) -> Result<(Checkpoint, ConversionReport), ConvertError> {
    if policy.needs_data() {
        return Err(ConvertError::NeedsData);
    }
    convert_checkpoint(checkpoint, policy)
}

/// [`convert`], for a policy that looks at calibration data: batches of tokens `[B, T]`, as
/// [`CausalLm::batch`](bitnet_model::CausalLm::batch) makes them.
///
/// The model comes back without autodiff where the policy does look at them.
///
/// # Errors
/// Those of [`convert`], and [`ConvertError::Lrc`] for the data.
pub fn convert_calibrated(
    mut checkpoint: Checkpoint,
    policy: &Policy,
    batches: &[Tensor<2, Int>],
) -> Result<(Checkpoint, ConversionReport), ConvertError> {
    if let Some(ratio) = policy.salient {
        let (names, excluded) = (checkpoint.names(), policy.excluded()?);
        let mut slots = Vec::new();
        for_each_slot(&checkpoint.model, |path, slot| {
            let name = names.slot(path).unwrap_or_else(|| path.into());
            let turned = policy.hadamard && is_output_slot(path);
            if !slot.is_bit() && !turned && !excluded.iter().any(|glob| glob.is_match(&name)) {
                slots.push(globset::escape(path));
            }
        });
        let config = SalientConfig { slots, ratio, ..SalientConfig::default() };
        checkpoint.model = keep_salient(checkpoint.model, batches, &config)?.0;
    }
    let mut normed = Vec::new();
    for_each_slot(&checkpoint.model, |path, slot| {
        if slot.sub_norm.is_some() {
            normed.push(path.to_owned());
        }
    });
    let (mut checkpoint, report) = convert_checkpoint(checkpoint, policy)?;
    if policy.calibrates_gains() {
        let new = |path: &str| !normed.iter().any(|normed| normed == path);
        checkpoint.model = calibrate_gains(checkpoint.model, batches, new)?.0;
    }
    Ok((checkpoint, report))
}

fn convert_checkpoint(
    mut checkpoint: Checkpoint,
    policy: &Policy,
) -> Result<(Checkpoint, ConversionReport), ConvertError> {
    let eps = checkpoint.config.model.norm_eps;
    let names = checkpoint.names();
    let slot_name = |path: &str| names.slot(path).unwrap_or_else(|| path.into());
    let done = convert_slots_named(&mut checkpoint.model, policy, eps, is_output_slot, slot_name)?;
    if done.values().any(|done| matches!(done, SlotDone::Converted { .. })) {
        let inserted =
            done.values().any(|done| matches!(done, SlotDone::Converted { norm_inserted: true, .. }));
        // The architecture's own norms are where the policy wants some: config.json needs no word of ours.
        let native = policy.sub_norm != Placement::None && !inserted;
        let state = BitNetState {
            quantization: policy.quantization,
            sub_norm: if native { Placement::None } else { policy.sub_norm },
            origin: if native { SubLnOrigin::Native } else { SubLnOrigin::Inserted },
            sub_norm_eps: None,
            packed: None,
            dense: dense_slots(&checkpoint.model).iter().map(|path| slot_name(path)).collect(),
        };
        if let Some(before) = checkpoint.config.bitnet.replace(state.clone())
            && !before.agrees_with(&state)
        {
            return Err(ConvertError::MixedPolicy { found: before.to_string(), asked: state.to_string() });
        }
    }
    let names = checkpoint.names();
    let report = report(&checkpoint.model, &done, |path| names.tensor(path));
    Ok((checkpoint, report))
}

/// [`convert`], unless the model is BitNet already: then nothing is done, and the report is `None`.
///
/// # Errors
/// Those of [`convert`].
pub fn auto_convert(
    checkpoint: Checkpoint,
    policy: &Policy,
) -> Result<(Checkpoint, Option<ConversionReport>), ConvertError> {
    if is_bitnet(&checkpoint.model) {
        return Ok((checkpoint, None));
    }
    convert(checkpoint, policy).map(|(checkpoint, report)| (checkpoint, Some(report)))
}

/// Converts the slots of any module, by the paths of its own fields. `is_output` says which slots
/// [`Placement::Output`] norms, `eps` is the epsilon of inserted norms.
///
/// # Errors
/// Those of [`convert`].
pub fn convert_slots<M: Module + Slots>(
    mut module: M,
    policy: &Policy,
    eps: f64,
    is_output: impl Fn(&str) -> bool,
) -> Result<(M, ConversionReport), ConvertError> {
    if policy.needs_data() {
        return Err(ConvertError::NeedsData);
    }
    let done = convert_slots_named(&mut module, policy, eps, is_output, str::to_owned)?;
    let report = report(&module, &done, |path| Some(path.into()));
    Ok((module, report))
}

/// Checks a policy against the model that a config describes, before any weight is read. Returns the names of the slots
/// that it will convert.
///
/// # Errors
/// [`ConvertError::Pattern`] and [`ConvertError::Layer`], as of [`convert`].
pub fn check_policy(config: &HfConfig, policy: &Policy) -> Result<Vec<String>, ConvertError> {
    // Parameters are allocated when they are first used: this is the model's structure alone.
    let model = config.model.init(&Device::default())?;
    let names = Names::new(&config.model, config.sub_norm_names());
    let excluded = policy.excluded()?;
    let (mut slots, mut unused, mut result) = (Vec::new(), excluded.iter().collect::<Vec<_>>(), Ok(()));
    for_each_slot(&model, |path, slot| {
        let name = names.slot(path).unwrap_or_else(|| path.into());
        unused.retain(|glob| !glob.is_match(&name));
        if excluded.iter().any(|glob| glob.is_match(&name)) || result.is_err() {
            return;
        }
        let turned = policy.hadamard && is_output_slot(path);
        let d_input = if turned { slot.d_input().next_power_of_two() } else { slot.d_input() };
        // Salient columns are taken out of the rest, which is then grouped: only conversion can tell.
        if policy.salient.is_none() || turned {
            result = check_granularity(policy.quantization.weight, [slot.d_output(), d_input])
                .map_err(|source| LayerError::Quantization { name: name.clone(), source });
        }
        slots.push(name);
    });
    result?;
    match unused.first() {
        Some(glob) => {
            Err(ConvertError::Pattern { pattern: glob.glob().to_string(), reason: "matches no slot".into() })
        }
        None => Ok(slots),
    }
}

/// Whether any slot of a module is a BitNet layer.
pub fn is_bitnet(module: &impl Slots) -> bool {
    let mut found = false;
    for_each_slot(module, |_, slot| found |= slot.is_bit());
    found
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SlotDone {
    Converted { norm_inserted: bool, turned: bool },
    AlreadyBitNet,
    Excluded(String),
}

fn convert_slots_named(
    module: &mut impl Slots,
    policy: &Policy,
    eps: f64,
    is_output: impl Fn(&str) -> bool,
    name: impl Fn(&str) -> String,
) -> Result<BTreeMap<String, SlotDone>, ConvertError> {
    let norm = RmsNormConfig::new(1).with_eps(eps);
    norm.validate()?;
    let excluded = policy.excluded()?;
    let mut done = BTreeMap::new();
    let mut misfit = None;
    for_each_slot(module, |path, slot| {
        let name = name(path);
        let decision = match excluded.iter().find(|glob| glob.is_match(&name)) {
            _ if slot.is_bit() => SlotDone::AlreadyBitNet,
            Some(glob) => SlotDone::Excluded(glob.glob().to_string()),
            None => {
                let turned = policy.hadamard && is_output(path) && slot.outliers.is_none();
                let d_input = slot.form.d_input();
                let shape = [slot.d_output(), if turned { d_input.next_power_of_two() } else { d_input }];
                if let Err(source) = check_granularity(policy.quantization.weight, shape) {
                    misfit.get_or_insert(bitnet_layers::LayerError::Quantization { name, source });
                }
                let norm_inserted = slot.sub_norm.is_none() && policy.sub_norm.wants(is_output(path));
                SlotDone::Converted { norm_inserted, turned }
            }
        };
        done.insert(path.to_owned(), decision);
    });
    if let Some(error) = misfit {
        return Err(error.into());
    }
    let names: Vec<String> = done.keys().map(|path| name(path)).collect();
    let always_left = ["model.embed_tokens", "lm_head"].map(str::to_owned);
    let known = |glob: &GlobMatcher| names.iter().chain(&always_left).any(|name| glob.is_match(name));
    if let Some(glob) = excluded.iter().find(|glob| !known(glob)) {
        return Err(ConvertError::Pattern {
            pattern: glob.glob().to_string(),
            reason: "matches no slot".into(),
        });
    }
    let mut failed = None;
    for_each_slot_mut(module, |path, slot| {
        let Some(SlotDone::Converted { norm_inserted, turned }) = done.get(path) else {
            return;
        };
        let turn = if *turned { slot.rotate() } else { Ok(false) };
        if let Err(error) = turn.and_then(|_| slot.convert(policy.quantization)) {
            failed.get_or_insert(error);
            return;
        }
        if *norm_inserted {
            let norm = RmsNormConfig::new(slot.d_input()).with_eps(eps);
            slot.sub_norm = Some(SubLn::inserted(&norm, &slot.device()));
        }
    });
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(done),
    }
}

/// Paths of the slots that are dense.
fn dense_slots(module: &impl Slots) -> Vec<String> {
    let mut dense = Vec::new();
    for_each_slot(module, |path, slot| {
        if !slot.is_bit() {
            dense.push(path.to_owned());
        }
    });
    dense
}

fn report(
    module: &impl Module,
    done: &BTreeMap<String, SlotDone>,
    name: impl Fn(&str) -> Option<String>,
) -> ConversionReport {
    let mut visitor = Reporter { done, name, path: ParamPath::default(), tensors: Vec::new() };
    module.visit(&mut visitor);
    ConversionReport { tensors: visitor.tensors }
}

struct Reporter<'a, F> {
    done: &'a BTreeMap<String, SlotDone>,
    name: F,
    path: ParamPath,
    tensors: Vec<TensorReport>,
}

impl<F: Fn(&str) -> Option<String>> Reporter<'_, F> {
    fn action(&self) -> Action {
        let fields = self.path.fields();
        let slot = (0..fields.len()).rev().find_map(|end| self.done.get(&fields[..end].join(".")));
        Action::Left(match (slot, self.path.container(), fields.last().copied().unwrap_or_default()) {
            _ if fields.contains(&"low_rank") => LeftBecause::LowRank,
            _ if fields.contains(&"outliers") => LeftBecause::Salient,
            (Some(SlotDone::Converted { norm_inserted: true, .. }), "Struct:RmsNorm", _) => {
                return Action::InsertedSubNorm;
            }
            (_, "Struct:RmsNorm", _) => LeftBecause::Norm,
            (Some(_), _, "bias") => LeftBecause::Bias,
            (Some(SlotDone::Converted { turned: true, .. }), ..) => return Action::TurnedAndTernarized,
            (Some(SlotDone::Converted { .. }), ..) => return Action::Ternarized,
            (Some(SlotDone::AlreadyBitNet), ..) => LeftBecause::AlreadyBitNet,
            (Some(SlotDone::Excluded(pattern)), ..) => LeftBecause::Excluded(pattern.clone()),
            (None, "Struct:Embedding", _) => LeftBecause::Embedding,
            (None, ..) if fields.first() == Some(&"head") => LeftBecause::Head,
            (None, ..) => LeftBecause::NotInASlot,
        })
    }
}

impl<F: Fn(&str) -> Option<String>> ModuleVisitor for Reporter<'_, F> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.path.path();
        let shape = self.path.stored_shape(&param.lazy_shape());
        let name = (self.name)(&path).unwrap_or(path);
        self.tensors.push(TensorReport { name, shape, action: self.action() });
    }
}

impl Checkpoint {
    pub(crate) fn names(&self) -> Names {
        Names::new(&self.config.model, self.config.sub_norm_names())
    }
}
