//! From latent weights to packed ones, in memory.

use std::fmt;

use bitnet_format::{Granularity, HfScale};
use bitnet_layers::{Form, Slots, for_each_slot, for_each_slot_mut};
use serde::Serialize;

use crate::{Checkpoint, ConvertError};

/// A slot that was packed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PackedSlot {
    /// Its name.
    pub name: String,
    /// `[d_output, d_input]`
    pub shape: [usize; 2],
    /// How many weights share one scale.
    pub granularity: Granularity,
    /// Bytes of codes and scales in memory.
    pub bytes: usize,
    /// Share of the codes that are zero, 0..=1.
    pub sparsity: f64,
}

/// What packing did. Slots that are not named were dense or packed already.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct PackReport {
    /// In the model's order.
    pub slots: Vec<PackedSlot>,
}

impl PackReport {
    /// How many times smaller the packed weights are than the same weights in f32.
    pub fn ratio_to_f32(&self) -> f64 {
        let weights: usize = self.slots.iter().map(|slot| slot.shape.iter().product::<usize>()).sum();
        let bytes: usize = self.slots.iter().map(|slot| slot.bytes).sum();
        4.0 * weights as f64 / bytes as f64
    }
}

impl fmt::Display for PackReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for PackedSlot { name, shape, granularity, bytes, sparsity } in &self.slots {
            writeln!(
                f,
                "{name} {shape:?}: {bytes} bytes, per {granularity:?}, {:.1} % zeros",
                100.0 * sparsity
            )?;
        }
        write!(f, "{} slots packed, {:.1} times smaller than f32", self.slots.len(), self.ratio_to_f32())
    }
}

/// Turns every BitNet slot into a packed one with the same codes and scales. A second call changes nothing.
///
/// # Errors
/// [`ConvertError::Lambda`] for a slot that is not at λ = 1, [`ConvertError::Layer`] for one that cannot be packed.
pub fn pack(mut checkpoint: Checkpoint) -> Result<(Checkpoint, PackReport), ConvertError> {
    let names = checkpoint.names();
    let name = |path: &str| names.slot(path).unwrap_or_else(|| path.into());
    let report = pack_named(&mut checkpoint.model, name)?;
    if let Some(state) = &mut checkpoint.config.bitnet {
        state.packed.get_or_insert(HfScale::Multiply);
    }
    Ok((checkpoint, report))
}

/// [`pack`] for any module, by the paths of its own fields.
///
/// # Errors
/// Those of [`pack`].
pub fn pack_slots<M: Slots>(mut module: M) -> Result<(M, PackReport), ConvertError> {
    let report = pack_named(&mut module, str::to_owned)?;
    Ok((module, report))
}

fn pack_named(module: &mut impl Slots, name: impl Fn(&str) -> String) -> Result<PackReport, ConvertError> {
    // Before any slot is changed.
    let mut unfinished = None;
    for_each_slot(module, |path, slot| {
        let found = slot.effective_lambda();
        if matches!(slot.form, Form::Bit(_)) && found != 1.0 {
            unfinished.get_or_insert(ConvertError::Lambda { name: name(path), found });
        }
    });
    if let Some(error) = unfinished {
        return Err(error);
    }
    let mut report = PackReport::default();
    let mut result = Ok(());
    for_each_slot_mut(module, |path, slot| {
        if result.is_err() {
            return;
        }
        result = slot.pack().map_err(ConvertError::from).and_then(|packed| {
            if packed && let Form::Packed(linear) = &slot.form {
                let ternary = linear.ternary()?;
                report.slots.push(PackedSlot {
                    name: name(path),
                    shape: ternary.shape(),
                    granularity: ternary.granularity(),
                    bytes: linear.weight().size_in_bytes(),
                    sparsity: ternary.sparsity(),
                });
            }
            Ok(())
        });
    });
    result.map(|()| report)
}
