//! The end of an adapter's life.

use bitnet_layers::{Form, LowRankKind, Projection, Slots, for_each_slot_mut};
use burn::module::Module;

use crate::LrcError;
use crate::slots::{try_each, try_each_mut};

/// Adds every LoRA to the weight beside it and removes it. Returns the paths of the slots.
///
/// Only a dense slot, or a BitNet slot at λ = 0, can take one up and compute the same as before: above λ = 0 the sum would be
/// ternarized. To train on from the sum nevertheless, set λ = 0 for the merge.
///
/// # Errors
/// [`LrcError::Merge`] for a slot where the result would be another function: at λ > 0, with packed codes, or with a
/// correction, which stands for what no ternary weight can hold. Nothing is merged then.
pub fn merge<M: Module + Slots>(mut model: M) -> Result<(M, Vec<String>), LrcError> {
    try_each(&model, |path, slot| match obstacle(slot) {
        Some(reason) => Err(LrcError::Merge { slot: path.into(), reason }),
        None => Ok(()),
    })?;
    let mut merged = Vec::new();
    try_each_mut(&mut model, |path, slot| {
        let Some(low_rank) = slot.low_rank.take() else {
            return Ok(());
        };
        let product = slot.to_operand_weight(low_rank.product(1.0));
        slot.update_operand_weight(|weight| weight + product).map_err(LrcError::layer(path))?;
        merged.push(path.to_owned());
        Ok(())
    })?;
    Ok((model, merged))
}

/// Takes every correction and adapter away, whatever it has learnt. Returns the paths of the slots.
pub fn remove<M: Module + Slots>(mut model: M) -> (M, Vec<String>) {
    let mut removed = Vec::new();
    for_each_slot_mut(&mut model, |path, slot| {
        if slot.low_rank.take().is_some() {
            removed.push(path.to_owned());
        }
    });
    (model, removed)
}

/// Why merging the adapter of a slot would change what it computes.
fn obstacle(slot: &Projection) -> Option<&'static str> {
    let low_rank = slot.low_rank.as_ref()?;
    match (&slot.form, low_rank.kind()) {
        (_, LowRankKind::Correction | LowRankKind::QuantizedCorrection(_)) => {
            Some("it is a correction of quantization, which a quantized weight cannot take up")
        }
        (Form::Packed(_), _) => Some("its weight is packed: expected a latent one"),
        (Form::Bit(_), _) if slot.effective_lambda() != 0.0 => {
            Some("the sum would be ternarized: expected λ = 0")
        }
        _ => None,
    }
}
