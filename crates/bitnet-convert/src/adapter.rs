//! The corrections and adapters of a model, on their way into files of their own.

use bitnet_layers::for_each_slot;
use burn::tensor::{DType, Tensor};

use crate::{Checkpoint, ConvertError};

/// The low-rank map of one slot as a LoRA: `scale · B·A·x`.
pub(crate) struct AdapterSlot {
    /// The slot's path in the model.
    pub(crate) path: String,
    /// The slot's name in Hugging Face's words.
    pub(crate) name: String,
    pub(crate) rank: usize,
    pub(crate) d_input: usize,
    pub(crate) d_output: usize,
    /// `A`, `[rank, d_input]`, row-major: `Vᵀ`.
    pub(crate) a: Vec<f32>,
    /// `B`, `[d_output, rank]`, row-major: `U`.
    pub(crate) b: Vec<f32>,
    /// The factor of the product at λ = 1.
    pub(crate) scale: f32,
    /// The share of the input that training drops.
    pub(crate) dropout: f64,
}

/// Every low-rank map of a model, its factors as they are used: quantized where they are.
///
/// # Errors
/// [`ConvertError::NotExportable`] where there is none, [`ConvertError::Lambda`] for a correction that is not at λ = 1,
/// [`ConvertError::NotFinite`] and [`ConvertError::Device`].
pub(crate) fn adapter_slots(
    checkpoint: &Checkpoint,
    format: &'static str,
) -> Result<Vec<AdapterSlot>, ConvertError> {
    let names = checkpoint.names();
    let mut slots = Ok(Vec::new());
    for_each_slot(&checkpoint.model, |path, slot| {
        let (Some(low_rank), Ok(found)) = (&slot.low_rank, &mut slots) else {
            return;
        };
        let name = names.slot(path).unwrap_or_else(|| path.into());
        let lambda = slot.effective_lambda();
        // A LoRA acts alike at every λ, a correction does not.
        if low_rank.strength(lambda) != low_rank.strength(1.0) {
            slots = Err(ConvertError::Lambda { name, found: lambda });
            return;
        }
        let (u, v) = low_rank.factors();
        let factors = read(v.transpose(), &name, "lrc_v").and_then(|a| Ok((a, read(u, &name, "lrc_u")?)));
        match factors {
            Ok((a, b)) => found.push(AdapterSlot {
                path: path.into(),
                name,
                rank: low_rank.rank(),
                d_input: low_rank.d_input(),
                d_output: low_rank.d_output(),
                a,
                b,
                scale: low_rank.strength(1.0),
                dropout: low_rank.dropout(),
            }),
            Err(error) => slots = Err(error),
        }
    });
    match slots {
        Ok(slots) if slots.is_empty() => {
            let reason = "the model has no correction and no adapter".into();
            Err(ConvertError::NotExportable { format, reason })
        }
        slots => slots,
    }
}

fn read(factor: Tensor<2>, slot: &str, factor_name: &str) -> Result<Vec<f32>, ConvertError> {
    let name = format!("{slot}.{factor_name}");
    let values = factor.inner().cast(DType::F32).try_into_vec_as::<f32>();
    let values =
        values.map_err(|error| ConvertError::Device { name: name.clone(), reason: error.to_string() })?;
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(ConvertError::NotFinite { name, index, value: values[index] }),
        None => Ok(values),
    }
}
