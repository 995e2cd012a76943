//! A whole run: from a file of settings to a trained checkpoint, interrupted as often as need be.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bitnet_convert::{Checkpoint, LoadOptions, Tensors, WeightType, save};
use bitnet_layers::set_lambda;
use bitnet_lrc::{Activations, activations};
use bitnet_model::CausalLm;
use bitnet_quant::device;
use bitnet_text::FileWindows;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::distill::{Term, TermMeans, total};
use crate::files::{read_json, write_json, write_text};
use crate::opening::{
    Codes, OnlySubNorms, Opening, codes, converted, distillation, lock, other_run, refuse_dropout,
    refuse_frozen, refuse_other, refuse_packed, salient_columns, teacher, tokens,
};
use crate::working::check_bf16;
use crate::{
    Distillation, Evaluation, Loss, MetricsLog, Precision, Replicas, RunConfig, Snapshots, StepReport,
    TrainError, Trainable, Trainer, evaluate, next_token_loss,
};

/// How strongly a step's loss moves the mean that an explosion is measured against.
const MEAN_SHARE: f64 = 0.05;

/// A loss below limits nothing: what is compared with a teacher begins at nothing, and grows with λ.
const SMALL_LOSS: f64 = 0.1;

/// Steps before an explosion is looked for.
const SETTLING_STEPS: u64 = 20;

const STATE: &str = "run.json";

/// Sequences of one length, a micro-batch.
type Sequences = Vec<Vec<u32>>;

/// A micro-batch, and which of its step it is.
type Numbered = (usize, Sequences);

/// Numbers by their names.
type Numbers = BTreeMap<&'static str, f64>;

/// A line of the metrics: a step.
#[derive(Serialize)]
struct StepLine {
    #[serde(flatten)]
    report: StepReport,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    terms: Numbers,
}

/// A line of the metrics: an evaluation after a step.
#[derive(Serialize)]
struct EvaluationLine {
    step: u64,
    perplexity: f64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    grad_norms: Numbers,
    /// Of each slot.
    codes: BTreeMap<String, CodeShares>,
    /// What enters each slot at λ = 1, on held-out data.
    activations: BTreeMap<String, Activations>,
}

/// What a slot's codes are.
#[derive(Serialize)]
struct CodeShares {
    /// Of −1, 0 and 1.
    shares: [f64; 3],
    /// Of those that are not what they were before training.
    moved: f64,
    /// Of those that this step changed.
    flipped: f64,
}

/// The best evaluation of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Steps that had been taken.
    pub steps: u64,
    /// Perplexity at λ = 1 on held-out data.
    pub perplexity: f64,
}

/// What a run saves beside its trainer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunState {
    best: Option<Best>,
    /// The moving mean of the loss, as its bits: decimal digits need not come back as the same number.
    mean_loss: Option<u64>,
    /// A hash of the tokens, and the number of sequences: other data are another run.
    data: String,
    /// The columns that slots keep in full precision, which the weights of those belong to.
    salient: BTreeMap<String, Vec<usize>>,
}

/// A run in its folder.
///
/// | in the folder | what |
/// |---|---|
/// | `config.toml` | every setting with its value |
/// | `conversion.json` | what conversion did to every tensor |
/// | `metrics.jsonl` | a line per step, and one per evaluation |
/// | `teacher.safetensors` | a teacher's likeliest tokens, where the settings ask for them ([`TeacherLogits`](crate::TeacherLogits)) |
/// | `snapshots/` | the last snapshots and the best |
/// | `model/` | the trained checkpoint, once the run is done |
/// | `best/` | the checkpoint of the best evaluation, if that was not the last |
///
/// ```no_run
/// use bitnet_train::{Run, RunConfig};
///
/// let config = RunConfig::read("run.toml")?;
/// let mut run = Run::open(&config, &config.model.source, |_| ())?;
/// while !run.is_done() {
///     let report = run.step()?;
///     println!("step {}: loss {:.3}", report.step, report.loss);
/// }
/// run.finish()?;
/// # Ok::<(), bitnet_train::TrainError>(())
/// ```
pub struct Run {
    config: RunConfig,
    device: Device,
    /// The model's files, with an empty model.
    checkpoint: Checkpoint,
    trainer: Trainer<CausalLm>,
    distillation: Option<Arc<Distillation>>,
    /// The devices, if there are several.
    replicas: Option<Replicas<CausalLm>>,
    train: FileWindows,
    held_out: FileWindows,
    snapshots: Snapshots,
    state: RunState,
    log: MetricsLog,
    /// The source's codes.
    first_codes: Codes,
    /// Steps of the snapshot that was written or read last.
    saved: Option<u64>,
    /// The step that ended the run, if its loss exploded.
    exploded: Option<StepReport>,
    /// Locked as long as the run is open; the system unlocks it if the process is killed.
    _lock: File,
}

impl Run {
    /// Begins a run, or goes on with the one in its folder from the newest snapshot that is whole. `source` is the
    /// folder of the model that the settings name. `opening` hears how far it is.
    ///
    /// # Errors
    /// - those of [`RunConfig::validate`], [`TrainError::NoDevice`], [`TrainError::Convert`], [`TrainError::Text`]
    /// - [`TrainError::Config`] for a packed model, which cannot be trained, for dropout on several devices, and for bf16 on a
    ///   device that does not compute in it
    /// - [`TrainError::InUse`], and [`TrainError::OtherRun`] where the folder's run has other settings or data
    /// - [`TrainError::NoGoodSnapshot`], [`TrainError::Snapshot`], [`TrainError::Write`]
    pub fn open(
        config: &RunConfig,
        source: impl AsRef<Path>,
        mut opening: impl FnMut(Opening),
    ) -> Result<Self, TrainError> {
        config.validate()?;
        let device = device(config.device.as_deref().unwrap_or("flex"))?;
        let mut devices = vec![device.clone()];
        for more in &config.more_devices {
            devices.push(bitnet_quant::device(more)?);
        }
        if config.train.precision == Precision::Bf16 {
            check_bf16(&devices)?;
        }
        let replicas = (devices.len() > 1).then(|| Replicas::new(&devices)).transpose()?;
        let replicas = match config.shard_optimizer {
            true => replicas.map(Replicas::sharded),
            false => replicas,
        };
        let lock = lock(&config.out)?;
        let begun = config.out.join("config.toml");
        if begun.exists() {
            refuse_other(config, &RunConfig::read(&begun)?)?;
        }
        let source = source.as_ref();
        let loading = |done, total| opening(Opening::Loading(done, total));
        let checkpoint = Tensors::open(source, &LoadOptions::default())?.load_watched(&device, loading)?;
        refuse_packed(&checkpoint.model)?;
        refuse_dropout(&checkpoint.model, &config.more_devices)?;
        let tokens = tokens(&config.data, source, &checkpoint.model, &mut |done, total| {
            opening(Opening::Tokenizing(done, total));
        })?;
        let data = tokens.fingerprint()?;
        let (train, held_out) = FileWindows::new(tokens, config.data.window)?.split(config.data.held_out)?;
        let data = format!("{data}, {} sequences", train.len());
        // Before anything is written: what another run left stays.
        let snapshots = Snapshots::open(config.out.join("snapshots"), config.snapshots.keep)?;
        let newest = snapshots.newest(|warning| opening(Opening::Warning(warning)))?;
        let found: Option<(RunState, PathBuf)> = match newest {
            Some(folder) => Some((read_json(&folder.join(STATE))?, folder)),
            None => None,
        };
        if let Some((state, _)) = found.as_ref().filter(|(state, _)| state.data != data) {
            return Err(other_run(config, "data", &state.data, data));
        }
        checkpoint.model.batch(&[train.get(0)?])?; // suits the model's positions
        let dense = config.distill.as_ref().map(|_| checkpoint.model.clone());
        let (mut checkpoint, report) = converted(checkpoint, config, &train)?;
        let salient = salient_columns(&checkpoint.model);
        if let Some((state, _)) = found.as_ref().filter(|(state, _)| state.salient != salient) {
            let [found, expected] = [&state.salient, &salient].map(|columns| format!("{columns:?}"));
            return Err(other_run(config, "salient columns", found, expected));
        }
        let distillation = match (&config.distill, dense) {
            (Some(distill), Some(dense)) => {
                let source = report.is_some().then_some(dense);
                let teacher = || teacher(distill, source, &device);
                let asking = |done, total| opening(Opening::Asking(done, total));
                Some(Arc::new(distillation(
                    config,
                    distill,
                    teacher,
                    &checkpoint.model,
                    (&train, &data),
                    asking,
                )?))
            }
            _ => None,
        };
        write_text(&begun, &config.to_toml()?)?;
        if let Some(report) = report {
            write_json(&config.out.join("conversion.json"), &report.tensors)?;
        }

        let skeleton = checkpoint.config.model().init(&device)?; // drawn when it is used, which is never
        let mut model = std::mem::replace(&mut checkpoint.model, skeleton);
        if config.model.trainable == Trainable::SubNorms {
            model = model.map(&mut OnlySubNorms { containers: Vec::new() });
        }
        refuse_frozen(&model, config.model.trainable)?;
        let first_codes = codes(&model)?;
        let (trainer, state) = match found {
            Some((state, folder)) => (Trainer::load(model, &config.train, &folder)?, state),
            None => {
                let state = RunState { best: None, mean_loss: None, data, salient };
                (Trainer::new(model, &config.train)?, state)
            }
        };
        let steps = trainer.steps_taken();
        let log = MetricsLog::resume(config.out.join("metrics.jsonl"), steps)?;
        Ok(Self {
            config: config.clone(),
            device,
            checkpoint,
            trainer,
            distillation,
            replicas,
            train,
            held_out,
            snapshots,
            state,
            log,
            first_codes,
            saved: (steps > 0).then_some(steps),
            exploded: None,
            _lock: lock,
        })
    }

    /// Whether every step has been taken.
    pub fn is_done(&self) -> bool {
        self.steps_taken() >= self.config.train.steps
    }

    /// Steps taken so far, those before an interruption included.
    pub fn steps_taken(&self) -> u64 {
        self.trainer.steps_taken()
    }

    /// The best evaluation so far.
    pub fn best(&self) -> Option<Best> {
        self.state.best
    }

    /// The model as it is now.
    pub fn model(&self) -> &CausalLm {
        self.trainer.model()
    }

    /// The next step, logged, evaluated and saved as the settings say: on [`next_token_loss`], or on the terms of the
    /// distillation that the settings ask for.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] with the last good snapshot and the reason: a loss that is not finite or explodes, data
    /// that cannot be read, a file that cannot be written.
    pub fn step(&mut self) -> Result<StepReport, TrainError> {
        let Some(distillation) = self.distillation.clone() else {
            return self.step_with(next_token_loss);
        };
        let means = Arc::new(Mutex::new(TermMeans::default()));
        let (sums, asked) = (means.clone(), distillation.clone());
        let loss = move |model: &CausalLm, (index, batch): &Numbered| {
            let terms = asked.terms(model, batch)?;
            sums.lock().unwrap_or_else(PoisonError::into_inner).add(*index, &terms)?;
            Ok(total(&terms))
        };
        let values = || means.lock().unwrap_or_else(PoisonError::into_inner).means();
        self.stopped(|run| {
            run.try_step(Arc::new(loss), values, |run, batch| run.term_norms(&distillation, batch))
        })
    }

    /// [`step`](Self::step) with a loss of the caller's own.
    ///
    /// # Errors
    /// Those of [`step`](Self::step), and of `loss`.
    pub fn step_with(
        &mut self,
        loss: impl Fn(&CausalLm, &Sequences) -> Result<Tensor<1>, TrainError> + Send + Sync + 'static,
    ) -> Result<StepReport, TrainError> {
        let loss = move |model: &CausalLm, (_, batch): &Numbered| loss(model, batch);
        self.stopped(|run| run.try_step(Arc::new(loss), BTreeMap::new, |_, _| Ok(BTreeMap::new())))
    }

    /// Adds to an error where the run can go on from.
    fn stopped<T>(
        &mut self,
        action: impl FnOnce(&mut Self) -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        action(self).map_err(|source| TrainError::Stopped { snapshot: self.saved, source: Box::new(source) })
    }

    /// A step whose log has the values of `terms`, and their gradients' norms where it is evaluated.
    fn try_step(
        &mut self,
        loss: Loss<CausalLm, Numbered>,
        terms: impl FnOnce() -> Numbers,
        norms: impl FnOnce(&Self, &Sequences) -> Result<Numbers, TrainError>,
    ) -> Result<StepReport, TrainError> {
        if let Some(report) = self.exploded {
            self.watch(&report)?;
        }
        let step = self.steps_taken();
        // Whatever is random in a step depends on nothing before it, so that a resumed run repeats it.
        self.device.seed(self.config.seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let micro_batch = self.config.batch.micro_batch;
        let first = step * self.config.windows_per_step();
        let batches = (0..self.config.batch.accumulation).map(|i| {
            Ok((i, self.train.batch(self.config.seed, first + (i * micro_batch) as u64, micro_batch)?))
        });
        let batches = batches.collect::<Result<Vec<Numbered>, TrainError>>()?;
        let steps = step + 1;
        let due = |every: u64| steps.is_multiple_of(every) || steps >= self.config.train.steps;
        let (evaluation_due, mut snapshot_due) =
            (due(self.config.eval.every), due(self.config.snapshots.every));
        let codes_before = if evaluation_due { codes(self.model())? } else { BTreeMap::new() };
        let report = match &self.replicas {
            Some(replicas) => self.trainer.step_on(replicas, batches.clone(), &loss)?,
            None => self.trainer.step(&batches, &*loss)?,
        };
        self.watch(&report)?;
        self.log.write(&StepLine { report, terms: terms() })?;

        if evaluation_due {
            let codes = self.code_shares(&codes_before)?;
            drop(codes_before);
            let perplexity = self.evaluate()?.perplexity;
            let grad_norms = norms(self, &batches[0].1)?;
            let activations = self.activations()?;
            self.log.write(&EvaluationLine { step, perplexity, grad_norms, codes, activations })?;
            if perplexity.is_finite() && self.state.best.is_none_or(|best| perplexity < best.perplexity) {
                self.state.best = Some(Best { steps, perplexity });
                snapshot_due = true;
            }
        }
        if snapshot_due {
            self.try_save()?;
        }
        Ok(report)
    }

    /// The norm of the gradient of each weighted term.
    fn term_norms(&self, distillation: &Distillation, batch: &Sequences) -> Result<Numbers, TrainError> {
        let n_terms = distillation.terms(self.model(), batch)?.len();
        let norms = (0..n_terms).map(|i| {
            let mut name = "";
            let norm = self.trainer.gradient_norm(|model| {
                let Term { name: found, weight, value } = distillation.terms(model, batch)?.swap_remove(i);
                name = found;
                Ok(value * weight)
            })?;
            Ok((name, norm))
        });
        norms.collect()
    }

    /// The codes of each slot, counted, and compared with those of the source and those before a step.
    fn code_shares(&self, before: &Codes) -> Result<BTreeMap<String, CodeShares>, TrainError> {
        let now = codes(self.model())?.into_iter();
        let counted = now.map(|(path, now)| {
            let share = |n: usize| n as f64 / now.len() as f64;
            let of = |code| share(now.iter().filter(|found| **found == code).count());
            let other_than = |before: &Codes| {
                let before = before.get(&path).map_or(&now[..], Vec::as_slice);
                share(now.iter().zip(before).filter(|(now, before)| now != before).count())
            };
            let (moved, flipped) = (other_than(&self.first_codes), other_than(before));
            (path.clone(), CodeShares { shares: [-1, 0, 1].map(of), moved, flipped })
        });
        Ok(counted.collect())
    }

    /// The model as it is evaluated: at λ = 1, without autodiff.
    fn ternary_model(&self) -> CausalLm {
        let mut model = self.trainer.model().valid();
        set_lambda(&mut model, Some(1.0));
        model
    }

    /// What enters each slot, on the first held-out sequences.
    fn activations(&self) -> Result<BTreeMap<String, Activations>, TrainError> {
        let n = self.held_out.len().min(self.config.batch.micro_batch as u64);
        let sequences = (0..n).map(|i| self.held_out.get(i)).collect::<Result<Vec<_>, _>>()?;
        let model = self.ternary_model();
        let batch = model.batch(&sequences)?;
        Ok(activations(&model, &[batch])?.into_iter().collect())
    }

    /// Perplexity of the ternary model, at λ = 1, on the held-out data.
    ///
    /// # Errors
    /// Those of [`evaluate`].
    pub fn evaluate(&self) -> Result<Evaluation, TrainError> {
        evaluate(
            &self.ternary_model(),
            &self.held_out,
            self.config.eval.windows,
            self.config.batch.micro_batch,
        )
    }

    /// Writes a snapshot now, unless the newest has all steps, or the last one exploded.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] where it cannot be written.
    pub fn save(&mut self) -> Result<(), TrainError> {
        self.try_save()
            .map_err(|source| TrainError::Stopped { snapshot: self.saved, source: Box::new(source) })
    }

    fn try_save(&mut self) -> Result<(), TrainError> {
        let steps = self.steps_taken();
        if self.saved == Some(steps) || self.exploded.is_some() {
            return Ok(());
        }
        let (trainer, state) = (&self.trainer, &self.state);
        self.snapshots.save(steps, state.best.map(|best| best.steps), |folder| {
            trainer.save(folder)?;
            write_json(&folder.join(STATE), state)
        })?;
        self.saved = Some(steps);
        Ok(())
    }

    /// Compares a loss with the moving mean of those before, and moves the mean.
    fn watch(&mut self, report: &StepReport) -> Result<(), TrainError> {
        let StepReport { step, loss, .. } = *report;
        let mean = self.state.mean_loss.map_or(loss, f64::from_bits);
        let limit = self.config.explosion;
        if step >= SETTLING_STEPS && loss > limit * mean.max(SMALL_LOSS) {
            self.exploded = Some(*report);
            return Err(TrainError::Explosion { step, found: loss, mean, limit });
        }
        self.state.mean_loss = Some((mean + MEAN_SHARE * (loss - mean)).to_bits());
        Ok(())
    }

    /// Ends the run: writes the trained checkpoint as `model`, and that of the best evaluation as `best` if it is
    /// another one, in f32 as they were trained: a coarser type would change codes. What is there already stays.
    /// Returns the path of `model`.
    ///
    /// # Errors
    /// Those of [`save`](bitnet_convert::save), and [`TrainError::Best`] where the best snapshot is damaged or gone; `model` is
    /// written then.
    pub fn finish(self) -> Result<PathBuf, TrainError> {
        let Self { config, checkpoint, trainer, snapshots, state, .. } = self;
        let checkpoint = checkpoint.with_type(WeightType::F32);
        let last = trainer.steps_taken();
        let model = trainer.into_model();
        let folder = config.out.join("model");
        if !folder.exists() {
            save(&checkpoint.clone().with_model(model.clone()), &folder)?;
        }
        let best = state.best.filter(|best| best.steps != last);
        if let Some(best) = best.filter(|_| !config.out.join("best").exists()) {
            let best =
                snapshots.whole(best.steps).and_then(|best| Trainer::load(model, &config.train, &best));
            let best =
                best.map_err(|source| TrainError::Best { model: folder.clone(), source: Box::new(source) })?;
            save(&checkpoint.with_model(best.into_model()), config.out.join("best"))?;
        }
        Ok(folder)
    }
}
