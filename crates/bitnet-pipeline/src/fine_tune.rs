//! Stage `fine_tune`: a run of bitnet-train, which goes on by itself wherever it was killed.

use std::path::PathBuf;

use bitnet_train::{Best, Opening, Run};
use serde::{Deserialize, Serialize};

use crate::convert::{CONVERTED, Converted};
use crate::pipeline::{Context, Pipeline};
use crate::{Event, PipelineError, Stage};

/// The run's folder.
pub(crate) const RUN: &str = "run";

/// What stage `fine_tune` leaves, beside the folder.
#[derive(Serialize, Deserialize)]
pub(crate) struct Trained {
    /// Steps that were taken.
    pub(crate) steps: u64,
    pub(crate) best: Best,
    /// Whether the best model of training is better than the converted one, and goes on.
    pub(crate) kept: bool,
}

pub(crate) fn run(context: &mut Context) -> Result<(), PipelineError> {
    let converted: Converted = context.work.result(Stage::Convert, Stage::FineTune)?;
    context.forget_dense();
    let Pipeline { source, config, data, device_name, .. } = context.pipeline;
    let folder = context.work.path(CONVERTED);
    let mut settings = config.run(data, &context.work.path(RUN), &folder, device_name);
    if let Some(distill) = &mut settings.distill {
        distill.teacher.get_or_insert_with(|| source.to_string_lossy().into_owned());
    }
    // The run would refuse to go on where the folders that it names have other paths. That it is the same run says the
    // work folder's own fingerprint.
    context.work.clear("run/config.toml")?;
    let events = &mut *context.events;
    let mut run = Run::open(&settings, &folder, |opening| match opening {
        Opening::Loading(done, total) | Opening::Tokenizing(done, total) | Opening::Asking(done, total) => {
            events(Event::Part(done, total));
        }
        Opening::Warning(warning) => events(Event::Note(warning)),
    })?;
    if run.steps_taken() > 0 {
        events(Event::Note(&format!("training goes on after step {}", run.steps_taken())));
    }
    // Decided by steps and the best evaluation alone, so that a run that was killed ends at the same step.
    let exhausted = |run: &Run| match (config.patience, run.best()) {
        (Some(patience), Some(best)) => {
            run.steps_taken() >= patience.saturating_mul(config.eval.every).saturating_add(best.steps)
        }
        _ => false,
    };
    while !run.is_done() && !exhausted(&run) {
        let report = run.step()?;
        events(Event::Step(report));
    }
    let steps = run.steps_taken();
    let best = match run.best() {
        Some(best) => best,
        None => Best { steps, perplexity: run.evaluate()?.perplexity },
    };
    run.finish()?;
    let kept = best.perplexity < converted.perplexity;
    if !kept {
        events(Event::Note("training made no better model: the converted one goes on"));
    }
    context.work.finish(Stage::FineTune, &Trained { steps, best, kept })
}

/// The folder of the model that goes on, with latent weights in f32.
pub(crate) fn chosen(context: &Context, by: Stage) -> Result<PathBuf, PipelineError> {
    if context.pipeline.config.train.is_some() {
        let trained: Trained = context.work.result(Stage::FineTune, by)?;
        if trained.kept {
            let name = if trained.best.steps == trained.steps { "model" } else { "best" };
            return Ok(context.work.path(RUN).join(name));
        }
    }
    let _: Converted = context.work.result(Stage::Convert, by)?;
    Ok(context.work.path(CONVERTED))
}
