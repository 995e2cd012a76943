//! What a run needs before its first step, checked.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use bitnet_convert::{
    Checkpoint, ConversionReport, ConvertError, LoadOptions, auto_convert, check_tokenizer,
    convert_calibrated, is_bitnet, load,
};
use bitnet_layers::{Form, LowRank, Outliers, for_each_slot};
use bitnet_model::CausalLm;
use bitnet_text::{FileWindows, TokenFile, TokenSource, Tokenizer};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use sha2::{Digest, Sha256};

use crate::distill::check_vocabulary;
use crate::{
    DataConfig, DistillConfig, Distillation, LogitKl, RunConfig, TeacherLogits, TrainError, Trainable,
};

/// What someone who waits for [`Run::open`](crate::Run::open) may want to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening<'a> {
    /// So many weights of so many are loaded.
    Loading(u64, u64),
    /// So many bytes of text of so many are made tokens.
    Tokenizing(u64, u64),
    /// A teacher has been asked about so many sequences of so many.
    Asking(u64, u64),
    /// Something is odd, and the run goes on.
    Warning(&'a str),
}

/// Makes the run's folder, locks it, and removes what a killed process left unfinished in it.
pub(crate) fn lock(folder: &Path) -> Result<File, TrainError> {
    let path = folder.join("lock");
    let write = |error: std::io::Error| TrainError::Write { path: path.clone(), reason: error.to_string() };
    fs::create_dir_all(folder).map_err(write)?;
    let file = File::create(&path).map_err(write)?;
    match file.try_lock() {
        Ok(()) => {
            for entry in fs::read_dir(folder).map_err(write)? {
                let entry = entry.map_err(write)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with('.') && name.contains(".partial-") {
                    let is_folder = entry.file_type().map_err(write)?.is_dir();
                    let remove = if is_folder { fs::remove_dir_all::<PathBuf> } else { fs::remove_file };
                    remove(entry.path()).map_err(write)?;
                }
            }
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => Err(TrainError::InUse { path: folder.into() }),
        Err(TryLockError::Error(error)) => Err(write(error)),
    }
}

pub(crate) fn refuse_other(config: &RunConfig, begun: &RunConfig) -> Result<(), TrainError> {
    match begun.difference(config)? {
        Some((field, found, expected)) => Err(other_run(config, &field, found, expected)),
        None => Ok(()),
    }
}

pub(crate) fn other_run(
    config: &RunConfig,
    field: &str,
    found: impl ToString,
    expected: impl ToString,
) -> TrainError {
    TrainError::OtherRun {
        path: config.out.clone(),
        field: field.into(),
        found: found.to_string(),
        expected: expected.to_string(),
    }
}

/// The model to train: converted, on what of the training data the policy looks at, unless it is BitNet already; and what
/// conversion did.
pub(crate) fn converted(
    checkpoint: Checkpoint,
    config: &RunConfig,
    train: &FileWindows,
) -> Result<(Checkpoint, Option<ConversionReport>), TrainError> {
    let policy = &config.model.policy;
    let (checkpoint, report) = if policy.needs_data() && !is_bitnet(&checkpoint.model) {
        let (n, size) = (train.len().min(config.model.calibration as u64), config.batch.micro_batch);
        let batches = (0..n).step_by(size).map(|first| {
            let sequences = train.batch(config.seed, first, size.min((n - first) as usize))?;
            Ok(checkpoint.model.batch(&sequences)?)
        });
        let batches = batches.collect::<Result<Vec<_>, TrainError>>()?;
        let (checkpoint, report) = convert_calibrated(checkpoint, policy, &batches)?;
        (checkpoint, Some(report))
    } else {
        auto_convert(checkpoint, policy)?
    };
    if report.as_ref().is_some_and(|report| report.n_converted() == 0) {
        return Err(ConvertError::NothingToConvert.into());
    }
    Ok((checkpoint, report))
}

/// What the student is compared with: the teacher in memory, or what it says about the run's data, which it is asked for
/// where that has not been done yet.
pub(crate) fn distillation(
    config: &RunConfig,
    distill: &DistillConfig,
    teacher: impl FnOnce() -> Result<CausalLm, TrainError>,
    student: &CausalLm,
    (train, data): (&FileWindows, &str),
    progress: impl FnMut(u64, u64),
) -> Result<Distillation, TrainError> {
    let Some(LogitKl { top_k: Some(top_k), temperature, .. }) = distill.logit_kl else {
        return Distillation::new(teacher()?, student, distill.clone());
    };
    distill.validate()?;
    let path = config.out.join("teacher.safetensors");
    let of = Sha256::digest(format!("{:?}, {data}", distill.teacher));
    let of: String = of.iter().map(|byte| format!("{byte:02x}")).collect();
    // One of another teacher or other data is from a run that never had a snapshot: else it has been refused by now.
    if !TeacherLogits::open(&path).is_ok_and(|kept| kept.of() == of) {
        let teacher = teacher()?;
        check_vocabulary(student, teacher.config().vocab_size)?;
        // The first epoch deals every window once, so these are all that the run will see.
        let n = train.len().min(config.train.steps.saturating_mul(config.windows_per_step()));
        let sequence = |i| Ok(train.batch(config.seed, i, 1)?.swap_remove(0));
        let sizes = (n, config.data.window, config.batch.micro_batch);
        TeacherLogits::create(&path, &of, &teacher, (top_k, temperature), sizes, sequence, progress)?;
    }
    Distillation::from_logits(TeacherLogits::open(&path)?, student, distill.clone())
}

/// The teacher's model: the one that the settings name, or the source as it was before conversion, if it was dense.
pub(crate) fn teacher(
    config: &DistillConfig,
    source: Option<CausalLm>,
    device: &Device,
) -> Result<CausalLm, TrainError> {
    match (&config.teacher, source) {
        (Some(folder), _) => Ok(load(folder, device, &LoadOptions::default())?.model),
        (None, Some(source)) => Ok(source),
        (None, None) => Err(TrainError::Config {
            field: "distill.teacher",
            found: "nothing".into(),
            expected: "a folder, because the source is BitNet already".into(),
        }),
    }
}

/// Freezes everything but the sub-norms.
pub(crate) struct OnlySubNorms {
    pub(crate) containers: Vec<bool>,
}

impl ModuleMapper for OnlySubNorms {
    fn enter_module(&mut self, _name: &str, container: &str) {
        self.containers.push(container == "Struct:SubLn");
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.containers.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let trains = self.containers.contains(&true);
        if trains { param } else { param.no_grad() }
    }
}

/// Codes of every slot that is ternary in training, by the slot's path.
pub(crate) type Codes = BTreeMap<String, Vec<i8>>;

pub(crate) fn codes(model: &CausalLm) -> Result<Codes, TrainError> {
    let mut codes = BTreeMap::new();
    let mut failed = Ok(());
    for_each_slot(&model.valid(), |path, slot| {
        if let (Form::Bit(linear), true) = (&slot.form, failed.is_ok()) {
            match linear.ternary() {
                Ok(ternary) => drop(codes.insert(path.to_owned(), ternary.codes().to_vec())),
                Err(error) => failed = Err(TrainError::Device(error.to_string())),
            }
        }
    });
    failed.map(|()| codes)
}

/// The columns that each slot keeps in full precision.
pub(crate) fn salient_columns(model: &CausalLm) -> BTreeMap<String, Vec<usize>> {
    let mut columns = BTreeMap::new();
    for_each_slot(model, |path, slot| {
        if let Some(Outliers::Salient(salient)) = &slot.outliers {
            columns.insert(path.to_owned(), salient.columns().to_vec());
        }
    });
    columns
}

/// Refuses a model of which nothing can be trained.
pub(crate) fn refuse_frozen(model: &CausalLm, trainable: Trainable) -> Result<(), TrainError> {
    let mut found = Trains(false);
    model.clone().train().visit(&mut found);
    if found.0 {
        return Ok(());
    }
    Err(TrainError::Config {
        field: "model.trainable",
        found: format!("{trainable:?}"),
        expected: "what the model has: no parameter of it is to be trained".into(),
    })
}

struct Trains(bool);

impl ModuleVisitor for Trains {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0 |= param.val().is_require_grad();
    }
}

/// A packed model has no weights that could change.
pub(crate) fn refuse_packed(model: &CausalLm) -> Result<(), TrainError> {
    let mut packed = false;
    for_each_slot(model, |_, slot| packed |= matches!(slot.form, Form::Packed(_)));
    if !packed {
        return Ok(());
    }
    Err(TrainError::Config {
        field: "model.source",
        found: "a packed model".into(),
        expected: "one with latent weights, which alone can be trained".into(),
    })
}

/// Dropout is drawn in no fixed order on several devices: a resumed run would be another one.
pub(crate) fn refuse_dropout(model: &CausalLm, more_devices: &[String]) -> Result<(), TrainError> {
    let mut found = None;
    for_each_slot(model, |path, slot| {
        let dropout = slot.low_rank.as_ref().map_or(0.0, LowRank::dropout);
        if dropout > 0.0 {
            found = Some(format!("{more_devices:?}, with dropout {dropout} in `{path}`"));
        }
    });
    match found.filter(|_| !more_devices.is_empty()) {
        Some(found) => Err(TrainError::Config {
            field: "more_devices",
            found,
            expected: "none, or a model without dropout, which several devices cannot draw again".into(),
        }),
        None => Ok(()),
    }
}

/// The tokens of a run's data, each of which the model knows. `source` is the model's folder, `progress` hears how many
/// bytes of text of how many are done.
///
/// # Errors
/// [`TrainError::Text`] for data and tokenizer, [`TrainError::Convert`] for a tokenizer that is too large for the model.
pub fn tokens(
    data: &DataConfig,
    source: &Path,
    model: &CausalLm,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<TokenFile, TrainError> {
    if let TokenSource::Tokens { path, tensor } = &data.source {
        let tokens = TokenFile::open(path, tensor)?;
        tokens.check_vocab(model.config().vocab_size)?;
        return Ok(tokens);
    }
    let path = data.tokenizer.clone().unwrap_or_else(|| source.join("tokenizer.json"));
    let tokenizer = Tokenizer::from_file(path)?;
    check_tokenizer(&tokenizer, model)?;
    Ok(data.source.open(&tokenizer, data.separator.as_deref(), &data.cache, progress)?)
}
