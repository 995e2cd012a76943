//! The stage after the main job: low-rank corrections beside the trained ternary weights, which stay as they are.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use bitnet_arch::convert::Checkpoint;
use bitnet_arch::layers::{Form, for_each_slot};
use bitnet_arch::lrc::{LrcConfig, Trainable, add_lrc, freeze_except_adapters, stats};
use bitnet_arch::model::CausalLm;
use bitnet_arch::text::TokenWindows;
use bitnet_arch::train::{MetricsLog, Progress, TrainConfig, Trainer, next_token_loss, perplexity};
use bitnet_arch::warmup::{LambdaWarmupConfig, Schedule};
use serde_json::{Value, json};

use crate::checks::Checks;
use crate::flags::Flags;
use crate::{largest_difference, save_and_reload};

/// Adds corrections that are nothing at first, trains them alone at λ = 1, and writes `checkpoint-lrc`.
pub(crate) fn stage(
    trained: &Checkpoint,
    train: &TokenWindows,
    held_out: &TokenWindows,
    flags: &Flags,
    log: &mut MetricsLog,
    checks: &mut Checks,
    run_folder: &Path,
) -> Result<Value, Box<dyn Error>> {
    let evaluate = |model: &CausalLm| perplexity(model, held_out, flags.batch);
    let before = evaluate(&trained.model)?;
    let weights = ternary_weights(&trained.model)?;
    let (model, report) = add_lrc(trained.model.clone(), &LrcConfig::default())?;
    let difference = largest_difference(&trained.model, &model, held_out)?;
    checks.that(
        "a new correction changes nothing",
        difference == 0.0 && report.n_added() == weights.len(),
        format!("{} slots, logits differ by {difference:.1e}", report.n_added()),
    );

    let (model, counts) = freeze_except_adapters(model, Trainable::AdaptersOnly)?;
    let config = TrainConfig {
        lambda: LambdaWarmupConfig::new(Schedule::Linear, 0),
        learning_rate: flags.learning_rate,
        weight_decay: 0.01,
        ..TrainConfig::new(flags.steps)
    };
    let mut trainer = Trainer::new(model, &config)?;
    let progress = Progress::new("LRC", flags.steps, train.window() * flags.batch);
    for batch in train.batches(flags.batch, flags.seed)?.take(flags.steps as usize) {
        let report = trainer.step(&[batch], next_token_loss)?;
        log.write(
            &json!({ "run": "lrc", "step": report.step, "loss": report.loss, "grad_norm": report.grad_norm }),
        )?;
        progress.show(&report);
    }
    progress.finish();
    let model = trainer.into_model();

    let stats = stats(&model);
    let after = evaluate(&model)?;
    println!(
        "perplexity with a trained correction {after:6.3}   {} values train, {:.2} bytes for each of the codes",
        counts.trainable,
        stats.overhead().unwrap_or_default(),
    );
    checks.that("training the correction helps", after < before, format!("{before:.3} → {after:.3}"));
    checks.that(
        "the ternary weights stay as they are",
        ternary_weights(&model)? == weights,
        format!("{} values frozen", counts.frozen),
    );
    let corrected = trained.clone().with_model(model);
    let reloaded = save_and_reload(
        &corrected,
        &run_folder.join("checkpoint-lrc"),
        &corrected.model.embedding.weight.device(),
    )?;
    let difference = largest_difference(&corrected.model, &reloaded.model, held_out)?;
    checks.that(
        "the corrected checkpoint reloads",
        difference == 0.0,
        format!("logits differ by {difference:.1e}"),
    );
    Ok(json!({
        "perplexity": after,
        "trainable": counts.trainable,
        "frozen": counts.frozen,
        "bytes": stats.bytes(),
        "packed_weight_bytes": stats.packed_weight_bytes(),
    }))
}

/// The latent weights, by slot.
fn ternary_weights(model: &CausalLm) -> Result<BTreeMap<String, Vec<f32>>, Box<dyn Error>> {
    let mut weights = Ok(BTreeMap::new());
    for_each_slot(model, |path, slot| {
        if let (Form::Bit(linear), Ok(found)) = (&slot.form, &mut weights) {
            match linear.weight.val().try_into_vec_as::<f32>() {
                Ok(values) => drop(found.insert(path.to_owned(), values)),
                Err(error) => weights = Err(error),
            }
        }
    });
    Ok(weights?)
}
