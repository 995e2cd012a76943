//! Low-rank corrections of checkpoints.

use bitnet_layers::for_each_slot;
use bitnet_lrc::{Calibration, Init, LrcConfig, SlotRule, add_lrc, calibrate};
use burn::tensor::{Int, Tensor};

use crate::policy::compile;
use crate::{Checkpoint, ConvertError, pack};

/// [`add_lrc`] on a checkpoint; with [`Init::Calibrated`] it is [`calibrate`], on batches of tokens `[B, T]`, as
/// [`CausalLm::batch`](bitnet_model::CausalLm::batch) makes them.
///
/// The config's globs are on full names, as in [`Policy`](crate::Policy), and the report has these names. Without
/// `keep_latent` every slot is packed, as a checkpoint's slots are either all packed or none. A report without data has 0
/// tokens.
///
/// # Errors
/// - [`ConvertError::Pattern`] for a glob that cannot be read or matches nothing
/// - [`ConvertError::Lrc`] for the config and the data; those of [`pack`]
pub fn correct(
    mut checkpoint: Checkpoint,
    config: &LrcConfig,
    batches: &[Tensor<2, Int>],
) -> Result<(Checkpoint, Calibration), ConvertError> {
    let names = checkpoint.names();
    let mut slots = Vec::new();
    for_each_slot(&checkpoint.model, |path, _| {
        slots.push((path.to_owned(), names.slot(path).unwrap_or_else(|| path.into())));
    });
    let by_path = on_paths(config, &slots)?;
    let (model, mut calibration) = match config.init {
        Init::Calibrated { .. } => calibrate(checkpoint.model, batches, &by_path)?,
        _ => {
            let (model, report) = add_lrc(checkpoint.model, &by_path)?;
            (model, Calibration { report, ..Calibration::default() })
        }
    };
    checkpoint.model = model;
    for (slot, (_, name)) in calibration.report.slots.iter_mut().zip(slots) {
        slot.path = name;
    }
    if !config.keep_latent {
        checkpoint = pack(checkpoint)?.0;
    }
    Ok((checkpoint, calibration))
}

/// The same config with globs on the slots' paths, one for each slot, and latent weights: packing comes later.
fn on_paths(config: &LrcConfig, slots: &[(String, String)]) -> Result<LrcConfig, ConvertError> {
    let paths = |pattern: &String| -> Result<Vec<String>, ConvertError> {
        let glob = compile(pattern)?;
        let found = slots.iter().filter(|(_, name)| glob.is_match(name));
        let found: Vec<String> = found.map(|(path, _)| globset::escape(path)).collect();
        if found.is_empty() {
            return Err(ConvertError::Pattern { pattern: pattern.clone(), reason: "matches no slot".into() });
        }
        Ok(found)
    };
    let mut by_path =
        LrcConfig { slots: Vec::new(), exclude: Vec::new(), keep_latent: true, ..config.clone() };
    for rule in &config.slots {
        rule.validate()?;
        by_path
            .slots
            .extend(paths(&rule.slots)?.iter().map(|path| SlotRule { slots: path.clone(), ..rule.clone() }));
    }
    for pattern in &config.exclude {
        by_path.exclude.extend(paths(pattern)?);
    }
    Ok(by_path)
}
