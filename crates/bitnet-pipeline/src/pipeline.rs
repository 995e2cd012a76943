//! The stages of mode `model`, in order, and what they share.

use std::fs;
use std::path::{Path, PathBuf};

use bitnet_compress::{
    CompressError, Headers, STATS, check_outside, free, headers, is_inside, taken, unfinished,
};
use bitnet_convert::{
    Checkpoint, ConvertError, HfConfig, LoadOptions, Tensors, check_policy, is_bitnet_folder,
};
use bitnet_layers::set_lambda;
use bitnet_model::CausalLm;
use bitnet_quant::device;
use bitnet_text::{FileWindows, TokenSource};
use bitnet_train::{StepReport, evaluate, tokens};
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::config::Data;
use crate::work::Work;
use crate::{
    Config, PipelineError, Report, Stage, calibrate, convert, disk, fine_tune, report, verify, write,
};

/// Windows that go through a model together in calibration.
const BATCH: usize = 4;

/// What someone who waits for a run may want to see.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// A stage begins; or, if it is `done`, an earlier run has its result.
    Stage {
        /// Which one.
        stage: Stage,
        /// Whether there is nothing to do.
        done: bool,
    },
    /// So much of so much of something in the stage.
    Part(u64, u64),
    /// A training step.
    Step(StepReport),
    /// Something that is worth a line.
    Note(&'a str),
}

/// A checked job in mode `model`. Nothing is written yet.
///
/// ```no_run
/// # use bitnet_pipeline::{Config, Pipeline, Stage};
/// # let config = Config::default();
/// let pipeline = Pipeline::new("SmolLM2-135M", "out", &config)?;
/// for stage in [Stage::Validate, Stage::Load, Stage::Calibrate] {
///     pipeline.run_stage(stage, &mut |_| ())?;
/// }
/// # Ok::<(), bitnet_pipeline::PipelineError>(())
/// ```
pub struct Pipeline {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) config: Config,
    pub(crate) data: Data,
    pub(crate) headers: Headers,
    pub(crate) slots: Vec<String>,
    pub(crate) device: Device,
    pub(crate) device_name: String,
}

/// What stage `validate` leaves.
#[derive(Serialize, Deserialize)]
pub(crate) struct Validated {
    pub(crate) architecture: String,
    /// Full names of the slots that conversion will make BitNet layers.
    pub(crate) slots: Vec<String>,
    /// Bytes that the run may need on the disk.
    pub(crate) bytes: u64,
}

/// What stage `load` leaves.
#[derive(Serialize, Deserialize)]
pub(crate) struct Loaded {
    /// The file of tokens, which is named after its content where it was made from text.
    pub(crate) data: String,
    pub(crate) train_windows: u64,
    pub(crate) held_out_windows: u64,
    pub(crate) window: usize,
    pub(crate) perplexity: f64,
    /// Tensors that the model has no place for.
    pub(crate) unexpected: Vec<String>,
}

impl Pipeline {
    /// Checks settings, source, target, device and disk.
    ///
    /// # Errors
    /// - those of [`Config::validate`]; [`PipelineError::NoDevice`]
    /// - [`PipelineError::Convert`] for a source that is no dense model that is known, or whose files are damaged, and for
    ///   globs and groups that do not fit it
    /// - [`PipelineError::Compress`] for a target that exists or lies in the source, and a disk that is too small
    pub fn new(
        source: impl AsRef<Path>,
        target: impl AsRef<Path>,
        config: &Config,
    ) -> Result<Self, PipelineError> {
        let (source, target) = (source.as_ref(), target.as_ref());
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|source| PipelineError::Read { path: path.into(), source })
        };
        let (source, target) = (absolute(source)?, absolute(target)?);
        config.validate()?;
        config.validate_model()?;
        let Some(data) = config.data.clone() else {
            return Err(PipelineError::setting("data", "nothing", "text or tokens"));
        };
        let device_name = config.device.clone().unwrap_or_else(|| "flex".into());
        let device = device(&device_name)?;
        if target.file_name().is_none() || (is_full(&target) && !Work::is_left_over(&target)) {
            return Err(CompressError::Exists { path: target }.into());
        }
        if is_inside(&target, &source) {
            return Err(CompressError::InsideSource { path: target }.into());
        }
        check_outside(&source, &unfinished(&target))?;
        if is_bitnet_folder(&source)? {
            return Err(ConvertError::AlreadyBitNet { folder: source }.into());
        }
        let model = HfConfig::read(&source)?;
        let slots = check_policy(&model, &config.policy())?;
        if slots.is_empty() {
            return Err(PipelineError::setting("exclude", "everything", "globs that leave a slot"));
        }
        Tensors::open(&source, &LoadOptions::default())?;
        let headers = headers(&source)?;
        let pipeline =
            Self { source, target, config: config.clone(), data, headers, slots, device, device_name };
        let needed = disk::bytes(&pipeline).saturating_sub(taken(&unfinished(&pipeline.target)));
        match free(&pipeline.target) {
            Some(free) if free < needed => {
                Err(CompressError::Space { path: pipeline.target, needed, free }.into())
            }
            _ => Ok(pipeline),
        }
    }

    /// The stages that the settings ask for.
    pub fn stages(&self) -> impl Iterator<Item = Stage> + use<> {
        let trains = self.config.train.is_some();
        Stage::ALL.into_iter().filter(move |stage| *stage != Stage::FineTune || trains)
    }

    /// Runs one stage, whether it was run before or not, from the results of those before it. What later ones made of an
    /// earlier result of it is forgotten.
    ///
    /// # Errors
    /// [`PipelineError::NotReady`] where a result is missing, and those of the stage.
    pub fn run_stage(&self, stage: Stage, events: &mut dyn FnMut(Event)) -> Result<(), PipelineError> {
        let mut context = Context::open(self, events)?;
        context.run(stage)
    }

    /// Runs all stages that are not done, and gives the target its name.
    ///
    /// A run that was killed goes on in the stage that it was in. The bytes depend on source, data and settings alone;
    /// on the device `flex`, to the last bit.
    ///
    /// # Errors
    /// Those of the stages. A result that is worse than asked for is none: see [`Outcome`](crate::Outcome).
    pub fn run(&self, events: &mut dyn FnMut(Event)) -> Result<Report, PipelineError> {
        let mut context = Context::open(self, events)?;
        if is_full(&self.target) {
            // Killed after its last step.
            let finished = context.work.is_done(Stage::Verify) && !context.work.path(write::DENSE).exists();
            context.work.end()?;
            return if finished {
                report::read(&self.target.join(STATS))
            } else {
                Err(CompressError::Exists { path: self.target.clone() }.into())
            };
        }
        if context.work.is_done(Stage::Load) {
            let loaded: Loaded = context.work.result(Stage::Load, Stage::Load)?;
            if loaded.data != context.windows()?.id {
                context.run(Stage::Load)?; // other data: whatever follows is done again
            }
        }
        for stage in self.stages() {
            if context.work.is_done(stage) {
                (context.events)(Event::Stage { stage, done: true });
            } else {
                context.run(stage)?;
            }
        }
        report::finish(context)
    }

    /// What decides the result, as a hash.
    fn fingerprint(&self) -> Result<String, PipelineError> {
        let mut hash = Sha256::new();
        let settings = json!([env!("CARGO_PKG_VERSION"), self.headers.fingerprint, self.config]);
        hash.update(settings.to_string());
        for name in ["config.json", "tokenizer.json"] {
            hash.update(fs::read(self.source.join(name)).unwrap_or_default());
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

fn is_full(target: &Path) -> bool {
    target.is_file() || target.read_dir().is_ok_and(|mut entries| entries.next().is_some())
}

/// Windows of the data.
#[derive(Clone)]
pub(crate) struct Windows {
    pub(crate) id: String,
    pub(crate) train: FileWindows,
    pub(crate) held_out: FileWindows,
}

/// What the stages of one run share.
pub(crate) struct Context<'a> {
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) work: Work,
    pub(crate) events: &'a mut dyn FnMut(Event),
    dense: Option<Checkpoint>,
    windows: Option<Windows>,
}

impl<'a> Context<'a> {
    fn open(pipeline: &'a Pipeline, events: &'a mut dyn FnMut(Event)) -> Result<Self, PipelineError> {
        let work = Work::open(&pipeline.target, &pipeline.fingerprint()?)?;
        Ok(Self { pipeline, work, events, dense: None, windows: None })
    }

    fn run(&mut self, stage: Stage) -> Result<(), PipelineError> {
        (self.events)(Event::Stage { stage, done: false });
        match stage {
            Stage::Validate => {
                let (pipeline, bytes) = (self.pipeline, disk::bytes(self.pipeline));
                let architecture = HfConfig::read(&pipeline.source)?.model_type().to_owned();
                self.work.finish(stage, &Validated { architecture, slots: pipeline.slots.clone(), bytes })
            }
            Stage::Load => self.load(),
            Stage::Calibrate => calibrate::run(self),
            Stage::Convert => convert::run(self),
            Stage::FineTune => fine_tune::run(self),
            Stage::Pack => write::pack_stage(self),
            Stage::Write => write::run(self),
            Stage::Verify => verify::run(self),
        }
    }

    fn load(&mut self) -> Result<(), PipelineError> {
        let dense = self.dense()?;
        let Windows { id, train, held_out } = self.windows()?;
        dense.model.batch(&[train.get(0)?])?; // suits the model's positions
        let perplexity = self.perplexity(&dense.model)?;
        self.work.finish(
            Stage::Load,
            &Loaded {
                data: id,
                train_windows: train.len(),
                held_out_windows: held_out.len(),
                window: train.window(),
                perplexity,
                unexpected: dense.unexpected,
            },
        )
    }

    /// A model in a folder, onto the device.
    pub(crate) fn open_model(&mut self, folder: &Path) -> Result<Checkpoint, PipelineError> {
        let events = &mut *self.events;
        let tensors = Tensors::open(folder, &LoadOptions::default())?;
        Ok(tensors.load_watched(&self.pipeline.device, |done, total| events(Event::Part(done, total)))?)
    }

    /// The source.
    pub(crate) fn dense(&mut self) -> Result<Checkpoint, PipelineError> {
        let dense = match self.dense.take() {
            Some(dense) => dense,
            None => self.open_model(&self.pipeline.source)?,
        };
        self.dense = Some(dense.clone());
        Ok(dense)
    }

    /// The source is not needed any more.
    pub(crate) fn forget_dense(&mut self) {
        self.dense = None;
    }

    pub(crate) fn windows(&mut self) -> Result<Windows, PipelineError> {
        if let Some(windows) = &self.windows {
            return Ok(windows.clone());
        }
        let Pipeline { source, config, data, device_name, device, .. } = self.pipeline;
        // Allocated when it is used, which is never: what counts is the size of its vocabulary.
        let model = HfConfig::read(source)?.model().init(device)?;
        let run = config.run(data, Path::new("run"), source, device_name);
        let events = &mut *self.events;
        let tokens = tokens(&run.data, source, &model, &mut |done, total| events(Event::Part(done, total)))?;
        let name = tokens.path().file_name().unwrap_or_default().to_string_lossy();
        let modified = match &data.source {
            TokenSource::Tokens { path, .. } => fs::metadata(path).and_then(|data| data.modified()).ok(),
            _ => None,
        };
        let id = format!("{name} {} {modified:?}", tokens.len());
        let (train, held_out) = FileWindows::new(tokens, data.window)?.split(data.held_out)?;
        let windows = Windows { id, train, held_out };
        self.windows = Some(windows.clone());
        Ok(windows)
    }

    /// The windows to calibrate on.
    pub(crate) fn batches(&mut self, model: &CausalLm) -> Result<Vec<Tensor<2, Int>>, PipelineError> {
        let (train, config) = (self.windows()?.train, &self.pipeline.config);
        let count = train.len().min(config.calibration.windows as u64) as usize;
        let windows = train.batch(config.seed, 0, count)?;
        Ok(windows.chunks(BATCH).map(|batch| model.batch(batch)).collect::<Result<_, _>>()?)
    }

    /// Perplexity at λ = 1 on the held-out windows.
    pub(crate) fn perplexity(&mut self, model: &CausalLm) -> Result<f64, PipelineError> {
        let (held_out, config) = (self.windows()?.held_out, &self.pipeline.config);
        let mut model = model.clone();
        set_lambda(&mut model, Some(1.0));
        Ok(evaluate(&model, &held_out, config.eval.windows, config.batch.micro_batch)?.perplexity)
    }
}
