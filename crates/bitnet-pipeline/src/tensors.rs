//! What became of every tensor of the source, for the report.

use std::collections::BTreeMap;

use bitnet_compress::{
    Decision, Headers, LeftBecause, Matrices, TensorStats, TernarizedBecause, TernaryStats, relative_error,
    shares,
};
use bitnet_convert::{Action, Checkpoint, LeftBecause as Left};
use bitnet_format::TernaryMatrix;
use bitnet_layers::{Form, LayerError, Projection, for_each_slot};
use burn::tensor::Tensor;

use crate::convert::Converted;
use crate::pipeline::Context;
use crate::{PipelineError, Stage};

/// The tensors in the source's order, and the sums of squared errors and of squares over all ternary weights.
pub(crate) fn tensors(
    context: &Context,
    bitnet: &Checkpoint,
    latent: &Checkpoint,
    dense: &Headers,
    packed: Option<&Headers>,
) -> Result<(Vec<TensorStats>, [f64; 2]), PipelineError> {
    let converted: Converted = context.work.result(Stage::Convert, Stage::Write)?;
    let actions: BTreeMap<_, _> =
        converted.report.tensors.into_iter().map(|tensor| (tensor.name, tensor.action)).collect();
    let mut ternary = ternary(bitnet, latent)?;
    let bytes = |headers: &Headers, name: &str| {
        headers.tensors.iter().find(|tensor| tensor.name == name).map_or(0, |tensor| tensor.bytes)
    };
    let mut sums = [0.0; 2];
    let source = &context.pipeline.headers.tensors;
    let tensors = source.iter().map(|tensor| {
        let name = &tensor.name;
        let found = ternary.remove(name);
        if let Some((_, of)) = &found {
            sums = [sums[0] + of[0], sums[1] + of[1]];
        }
        TensorStats {
            name: name.clone(),
            file: tensor.file.clone(),
            shape: tensor.shape.clone(),
            dtype: tensor.dtype.clone(),
            decision: decision(actions.get(name)),
            bytes_before: tensor.bytes,
            bytes_after: bytes(dense, name),
            bytes_packed: packed.map(|packed| bytes(packed, name) + bytes(packed, &format!("{name}_scale"))),
            ternary: found.map(|(stats, _)| stats),
        }
    });
    Ok((tensors.collect(), sums))
}

fn decision(action: Option<&Action>) -> Decision {
    Decision::Left(match action {
        Some(Action::Ternarized | Action::TurnedAndTernarized) => {
            return Decision::Ternarized(TernarizedBecause::Projection);
        }
        Some(Action::Left(Left::Embedding)) => LeftBecause::Embedding,
        Some(Action::Left(Left::Head)) => LeftBecause::Head,
        Some(Action::Left(Left::Norm)) => LeftBecause::Norm,
        Some(Action::Left(Left::Bias)) => LeftBecause::Bias,
        Some(Action::Left(Left::Excluded(glob))) => LeftBecause::Excluded(glob.clone()),
        _ => LeftBecause::NoProjection,
    })
}

/// Of every ternary weight, by its tensor's name.
type Ternary = BTreeMap<String, (TernaryStats, [f64; 2])>;

fn ternary(bitnet: &Checkpoint, latent: &Checkpoint) -> Result<Ternary, PipelineError> {
    let mut weights = BTreeMap::new();
    for_each_slot(&latent.model, |path, slot| {
        if slot.is_bit() {
            weights.insert(path.to_owned(), slot.latent_weight());
        }
    });
    let (mut found, mut result) = (BTreeMap::new(), Ok(()));
    for_each_slot(&bitnet.model, |path, slot| {
        if let (Some(Some(weight)), true) = (weights.remove(path), result.is_ok()) {
            let name = format!("{}.weight", bitnet.slot_name(path));
            match of_slot(path, slot, weight) {
                Ok(stats) => found.extend([(name, stats)]),
                Err(error) => result = Err(error),
            }
        }
    });
    result.map(|()| found)
}

fn of_slot(
    path: &str,
    slot: &Projection,
    latent: Tensor<2>,
) -> Result<(TernaryStats, [f64; 2]), PipelineError> {
    let quantized = values(path, slot.quantized_weight()?)?;
    let latent = values(path, latent)?;
    let square = |value: f64| value * value;
    let errors = latent.iter().zip(&quantized).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let squares = latent.iter().map(|value| square(f64::from(*value))).sum();
    let Some(ternary) = codes(slot)? else {
        return Err(PipelineError::Device { slot: path.into(), reason: "it is dense".into() });
    };
    let mut counts = [0; 3];
    ternary.codes().iter().for_each(|code| counts[(code + 1) as usize] += 1);
    let scales = ternary.scales().iter().map(|scale| scale.get());
    let range = scales.fold([f32::INFINITY, 0.0], |[low, high]: [f32; 2], s| [low.min(s), high.max(s)]);
    let [d_output, d_input] = ternary.shape();
    let stats = TernaryStats {
        matrices: Matrices { count: 1, d_output, d_input, transposed: false },
        already_ternary: 0,
        codes: counts,
        shares: shares(counts),
        scales: range,
        relative_error: relative_error(errors, squares),
    };
    Ok((stats, [errors, squares]))
}

/// Codes and scales of a BitNet slot.
pub(crate) fn codes(slot: &Projection) -> Result<Option<TernaryMatrix>, LayerError> {
    match &slot.form {
        Form::Dense(_) => Ok(None),
        Form::Bit(linear) => linear.ternary().map(Some),
        Form::Packed(linear) => linear.ternary().map(Some),
    }
}

/// The values of a tensor.
pub(crate) fn values<const D: usize>(slot: &str, tensor: Tensor<D>) -> Result<Vec<f32>, PipelineError> {
    tensor
        .inner()
        .try_into_vec_as()
        .map_err(|error| PipelineError::Device { slot: slot.into(), reason: error.to_string() })
}
