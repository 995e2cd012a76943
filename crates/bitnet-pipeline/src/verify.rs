//! Stage `verify`: everything is read again, compared, and measured.

use std::collections::BTreeMap;

use bitnet_compress::{Float, Verification, headers};
use bitnet_convert::Checkpoint;
use bitnet_format::{TernaryMatrix, WeightScale};
use bitnet_layers::{Form, Projection, Slots, for_each_slot, for_each_slot_mut};
use bitnet_model::CausalLm;
use bitnet_quant::ActivationQuant;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::fine_tune::chosen;
use crate::pipeline::Context;
use crate::tensors::{codes, values};
use crate::write::{
    DENSE, GGUF, HF, Packed, Written, check_unchanged, make_dense, remove_additions, set_bias,
};
use crate::{PipelineError, Stage};

/// Tokens that logits are compared on, at most.
const TOKENS: usize = 64;

/// What was compared beyond codes. A difference beyond what is allowed is an error, so a report has none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checks {
    /// Held-out tokens that logits were compared on.
    pub tokens: usize,
    /// The largest logit's size.
    pub largest_logit: f64,
    /// The largest difference between the model's logits and those of the dense folder, where the model's inputs are
    /// neither normed by inserted sub-norms nor quantized, and its scales are rounded to the dense folder's type.
    pub difference: f64,
    /// How large it might be.
    pub allowed: f64,
    /// Codes of exports that are those of the model.
    pub exported_codes: u64,
}

/// What stage `verify` leaves.
#[derive(Serialize, Deserialize)]
pub(crate) struct Verified {
    pub(crate) verification: Verification,
    pub(crate) checks: Checks,
    /// Of the model itself, and of the dense folder.
    pub(crate) perplexity: [f64; 2],
}

pub(crate) fn run(context: &mut Context) -> Result<(), PipelineError> {
    let Packed { model } = context.work.result(Stage::Pack, Stage::Verify)?;
    let _: Written = context.work.result(Stage::Write, Stage::Verify)?;
    let latent = context.open_model(&chosen(context, Stage::Verify)?)?;
    let bitnet = context.open_model(&context.work.path(&model))?;
    let dense = context.open_model(&context.work.path(DENSE))?;
    let n_codes = same_codes("packed", &latent, &bitnet)?;
    let types = types(context)?;
    let mut verification = Verification {
        dense_codes: same_weights(&bitnet, &dense, &types)?,
        packed_codes: if model == crate::write::PACKED { n_codes } else { 0 },
        ..Verification::default()
    };
    verification.copied_bytes = same_floats(&bitnet.model, &dense.model, &types)?;
    let mut exported_codes = 0;
    for name in [HF, GGUF] {
        let path = context.work.path(name);
        if path.exists() {
            exported_codes += same_codes(name, &bitnet, &context.open_model(&path)?)?;
        }
    }
    let checks = same_logits(context, &bitnet, &dense.model, &types, exported_codes)?;
    let perplexity = [context.perplexity(&bitnet.model)?, context.perplexity(&dense.model)?];
    check_unchanged(context.pipeline)?;
    context.work.finish(Stage::Verify, &Verified { verification, checks, perplexity })
}

/// The type of every tensor in the dense folder.
fn types(context: &Context) -> Result<BTreeMap<String, Float>, PipelineError> {
    let tensors = headers(&context.work.path(DENSE))?.tensors.into_iter();
    Ok(tensors.filter_map(|tensor| Some((tensor.name, tensor.float?))).collect())
}

/// The ternary slots of a model, by path.
fn all_codes(model: &impl Slots) -> Result<BTreeMap<String, TernaryMatrix>, PipelineError> {
    let (mut found, mut result) = (BTreeMap::new(), Ok(()));
    for_each_slot(model, |path, slot| {
        if result.is_ok() {
            result = codes(slot).map(|codes| found.extend(codes.map(|codes| (path.to_owned(), codes))));
        }
    });
    result?;
    Ok(found)
}

/// Compares the codes of all slots that are ternary in both; their number.
fn same_codes(
    artifact: &'static str,
    expected: &Checkpoint,
    found: &Checkpoint,
) -> Result<u64, PipelineError> {
    let (expected, found) = (all_codes(&expected.model)?, all_codes(&found.model)?);
    let mut compared = 0;
    for (path, expected) in &expected {
        let Some(found) = found.get(path) else { continue };
        let differences = expected.codes().iter().zip(found.codes()).filter(|(a, b)| a != b).count();
        if differences > 0 || expected.shape() != found.shape() {
            let what = format!("codes of {path}");
            return Err(PipelineError::Differs { artifact, what, found: differences as f64, expected: 0.0 });
        }
        compared += expected.codes().len() as u64;
    }
    Ok(compared)
}

/// Compares each ternary slot of the model with the dense folder's weight; the number of weights.
fn same_weights(
    bitnet: &Checkpoint,
    dense: &Checkpoint,
    types: &BTreeMap<String, Float>,
) -> Result<u64, PipelineError> {
    let mut weights = BTreeMap::new();
    for_each_slot(&dense.model, |path, slot| drop(weights.insert(path.to_owned(), slot.latent_weight())));
    let (mut compared, mut result) = (0, Ok(()));
    for_each_slot(&bitnet.model, |path, slot| {
        if let (true, true, Some(Some(found))) = (slot.is_bit(), result.is_ok(), weights.remove(path)) {
            let float = float_of(bitnet, path, types);
            result = same_weight(path, slot, found, float).map(|n| compared += n);
        }
    });
    result.map(|()| compared)
}

fn same_weight(path: &str, slot: &Projection, found: Tensor<2>, float: Float) -> Result<u64, PipelineError> {
    // Sums and products of other weights are not the same bits on every device.
    let slack = if is_plain(slot) { 0.0 } else { epsilon(float) };
    let mut expected = slot.clone();
    make_dense(&mut expected)?;
    let Form::Dense(linear) = &expected.form else { return Ok(0) };
    let expected = values(path, linear.weight.val().transpose())?;
    let found = values(path, found)?;
    let differ = |(expected, found): (&f32, &f32)| {
        let rounded = float.round(*expected);
        let lost = rounded == 0.0 && *expected != 0.0 && is_plain(slot);
        lost || (rounded - found).abs() > slack * expected.abs().max(1e-3)
    };
    let differences = expected.iter().zip(&found).filter(|pair| differ(*pair)).count();
    if differences > 0 || expected.len() != found.len() {
        let what = format!("weights of {path}");
        return Err(PipelineError::Differs {
            artifact: DENSE,
            what,
            found: differences as f64,
            expected: 0.0,
        });
    }
    Ok(expected.len() as u64)
}

/// Whether a slot's weight is nothing but codes · scale.
fn is_plain(slot: &Projection) -> bool {
    slot.outliers.is_none() && slot.low_rank.is_none()
}

fn epsilon(float: Float) -> f32 {
    match float {
        Float::F32 => 1e-5,
        Float::F16 => 2e-3,
        Float::Bf16 => 1e-2,
    }
}

fn float_of(checkpoint: &Checkpoint, path: &str, types: &BTreeMap<String, Float>) -> Float {
    types.get(&format!("{}.weight", checkpoint.slot_name(path))).copied().unwrap_or(Float::F32)
}

/// Compares the parameters that are no maps' weights, up to the types that the dense folder rounds to; their bytes in f32.
fn same_floats(
    bitnet: &CausalLm,
    dense: &CausalLm,
    types: &BTreeMap<String, Float>,
) -> Result<u64, PipelineError> {
    let mut rounded = types.values().copied().collect::<Vec<_>>();
    rounded.dedup();
    let read = |model: &CausalLm| {
        let mut model = model.clone();
        // What is left of a slot without its form are norms.
        let empty = |slot: &mut Projection| {
            remove_additions(slot);
            slot.low_rank = None;
            slot.outliers = None;
        };
        for_each_slot_mut(&mut model, |_, slot| empty(slot));
        let mut found = Floats::default();
        model.visit(&mut found);
        found.values
    };
    let (expected, found) = (read(bitnet), read(dense));
    let mut bytes = 0;
    for (path, expected) in &expected {
        let Some(found) = found.get(path) else { continue };
        let same = |float: &Float| {
            let mut pairs = expected.iter().zip(found);
            pairs.all(|(expected, found)| float.round(*expected).to_bits() == found.to_bits())
        };
        if expected.len() != found.len() || !rounded.iter().any(same) {
            let what = format!("values of {path}");
            return Err(PipelineError::Differs { artifact: DENSE, what, found: 1.0, expected: 0.0 });
        }
        bytes += 4 * expected.len() as u64;
    }
    Ok(bytes)
}

/// The parameters outside of slots' forms, by path.
#[derive(Default)]
struct Floats {
    path: Vec<String>,
    values: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Floats {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !self.path.iter().any(|name| name == "form")
            && let Ok(values) = param.val().inner().cast(DType::F32).try_into_vec_as()
        {
            self.values.insert(self.path.join("."), values);
        }
    }
}

/// Compares what the model and the dense folder compute where both see the same inputs.
fn same_logits(
    context: &mut Context,
    bitnet: &Checkpoint,
    dense: &CausalLm,
    types: &BTreeMap<String, Float>,
    exported_codes: u64,
) -> Result<Checks, PipelineError> {
    let mut slots = BTreeMap::new();
    for_each_slot(&bitnet.model, |path, slot| {
        if slot.is_bit() {
            slots.insert(path.to_owned(), slot.clone());
        }
    });
    // Everything but the ternary slots is the dense folder's.
    let mut weights_alone = dense.clone();
    let (mut plain, mut coarsest, mut result) = (true, Float::F32, Ok(()));
    for_each_slot_mut(&mut weights_alone, |path, slot| {
        if let (Some(mut ternary), true) = (slots.remove(path), result.is_ok()) {
            let float = float_of(bitnet, path, types);
            plain &= is_plain(&ternary);
            if epsilon(float) > epsilon(coarsest) {
                coarsest = float;
            }
            result = without_activations(path, &mut ternary, float);
            set_bias(&mut ternary, slot.bias().cloned());
            *slot = ternary;
        }
    });
    result?;
    let mut window = context.windows()?.held_out.get(0)?;
    window.truncate(TOKENS);
    let tokens = bitnet.model.batch(&[&window])?;
    let expected = values("the head", dense.forward(tokens.clone()))?;
    let found = values("the head", weights_alone.forward(tokens))?;
    let largest_logit = largest(expected.iter().map(|value| value.abs()));
    let difference = largest(expected.iter().zip(&found).map(|(a, b)| (a - b).abs()));
    // Plain weights are the same numbers on both sides; others are rounded in the dense folder alone.
    let share = if plain { 1e-3 } else { 10.0 * epsilon(coarsest).max(1e-4) };
    let allowed = f64::from(share * largest_logit.max(1.0));
    let difference = f64::from(difference);
    if difference.is_nan() || difference > allowed {
        let what = "logits of packed and dense weights".into();
        return Err(PipelineError::Differs { artifact: DENSE, what, found: difference, expected: allowed });
    }
    let largest_logit = f64::from(largest_logit);
    Ok(Checks { tokens: window.len(), largest_logit, difference, allowed, exported_codes })
}

/// The largest of these, from 0; NaN if one is.
fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(0.0, |found, next| if found.is_nan() || found >= next { found } else { next })
}

/// A slot whose inputs are neither normed nor quantized, with scales as the dense folder's type has them.
fn without_activations(path: &str, slot: &mut Projection, float: Float) -> Result<(), PipelineError> {
    let Some(ternary) = codes(slot)? else { return Ok(()) };
    let wrong = |reason: String| PipelineError::Device { slot: path.into(), reason };
    let round = if is_plain(slot) { float } else { Float::F32 };
    let scales = ternary.scales().iter().map(|scale| WeightScale::new(round.round(scale.get())));
    let rounded = scales
        .collect::<Result<Vec<_>, _>>()
        .and_then(|scales| {
            TernaryMatrix::new(ternary.codes().to_vec(), ternary.shape(), ternary.granularity(), scales)
        })
        .map_err(|error| wrong(error.to_string()))?;
    slot.set_packed(&rounded, ActivationQuant::Off)?;
    remove_additions(slot);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_is_never_lost() {
        for values in [[f32::NAN, 1.0, 2.0], [1.0, f32::NAN, 2.0], [1.0, 2.0, f32::NAN]] {
            assert!(largest(values.into_iter()).is_nan(), "{values:?}");
        }
        assert_eq!(largest([1.0, 3.0, 2.0].into_iter()), 3.0);
        assert_eq!(largest([].into_iter()), 0.0);
    }
}
