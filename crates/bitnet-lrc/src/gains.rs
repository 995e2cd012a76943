//! Gains of sub-norms that suit calibration data.

use bitnet_layers::{Blocks, Form, Projection, SubLnOrigin, for_each_slot_mut};
use burn::module::Module;

use crate::LrcError;
use crate::observe::activations_of;
use crate::slots::{try_each, try_each_mut};

/// Gives sub-norms that conversion inserted the root mean square of what enters them as their gain, measured in the dense
/// model, which the slots are at λ = 0: so the converted model starts nearer to the dense one at λ = 1. `wanted` chooses
/// slots by their paths. Returns the gain of each slot that has got one.
///
/// The model comes back without autodiff, as [`Module::valid`] gives it; each slot has the λ that it had.
///
/// # Errors
/// - [`LrcError::NoData`] without a batch, [`LrcError::NotFinite`] where an input is not finite
/// - [`LrcError::Unseen`] where the inputs of a slot are all zero, or none reach it
/// - [`LrcError::NoLatentWeight`] for a packed slot: it cannot compute what the dense one did
///
/// # Source
/// docs/numerics.md#rmsnorm.
pub fn calibrate_gains<M: Module + Blocks>(
    model: M,
    batches: &[M::Batch],
    wanted: impl Fn(&str) -> bool,
) -> Result<(M, Vec<(String, f64)>), LrcError> {
    let wanted = |path: &str, slot: &Projection| {
        wanted(path) && slot.sub_norm.as_ref().is_some_and(|norm| norm.origin == SubLnOrigin::Inserted)
    };
    let purpose = "calibrating the gain of its sub-norm";
    try_each(&model, |path, slot| match &slot.form {
        Form::Packed(_) if wanted(path, slot) => Err(LrcError::NoLatentWeight { slot: path.into(), purpose }),
        _ => Ok(()),
    })?;
    let mut model = model.valid();
    let mut lambdas = Vec::new();
    for_each_slot_mut(&mut model, |_, slot| lambdas.push(slot.lambda.replace(0.0)));
    let seen = activations_of(&mut model, batches, wanted);
    let mut lambdas = lambdas.into_iter();
    for_each_slot_mut(&mut model, |_, slot| slot.lambda = lambdas.next().flatten());
    let seen = seen?;
    let mut gains = Vec::new();
    try_each_mut(&mut model, |path, slot| {
        if !wanted(path, slot) {
            return Ok(());
        }
        let found = seen.iter().find(|(seen, activations)| seen == path && activations.rms > 0.0);
        let Some((_, activations)) = found else {
            return Err(LrcError::Unseen { slot: path.into() });
        };
        if let Some(norm) = &mut slot.sub_norm {
            norm.norm.set_gain(activations.rms);
        }
        gains.push((path.to_owned(), activations.rms));
        Ok(())
    })?;
    Ok((model, gains))
}
