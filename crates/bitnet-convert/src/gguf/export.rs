//! A checkpoint as a GGUF file, one tensor in memory at a time.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use bitnet_format::gguf::{Header, TensorType, Writer};
use bitnet_format::{FormatError, Granularity};
use bitnet_model::CausalLmConfig;

use super::architecture::{self, Architecture, Misfit, SubNormUse, Traits};
use super::hyperparameters;
use super::names::{self, FREQUENCY_FACTORS, Part};
use super::options::{GgufOptions, GgufType};
use super::packing::{GRANULARITY_KEY, I2S_KEY, Packing, granularity_name, i2_s_name};
use super::plan::{self, Data, Step};
use super::report::{GgufReport, GgufTensor};
use super::rotation::{Order, reorder, reorder_matrix};
use super::vocabulary::Vocabulary;
use crate::json::write_file;
use crate::progress::Progress;
use crate::source::{Content, Entry, Source, read_floats, read_ternary};
use crate::{ConvertError, HfConfig, Placement, Tensors, WeightType};

/// Values that are encoded at a time.
const PIECE: usize = 1 << 18;

/// Writes a checkpoint as a GGUF file for llama.cpp or, with I2_S, for bitnet.cpp, under its name whole or not at all.
/// `progress` is called with the weights written and their total number.
///
/// BitNet slots hold codes and scales, in F16 and F32 files codes times scale; latent weights are ternarized. Biases
/// and gains are F32. Where llama.cpp can compute only a part of the model's context, the file says so, and the
/// report says why.
///
/// # Errors
/// - [`ConvertError::NotExportable`] where no architecture of llama.cpp computes the model, with all that it lacks, and
///   for a ternary type of a dense model
/// - [`ConvertError::Lambda`] for a slot that is not at λ = 1, unless `any_lambda`
/// - [`ConvertError::Tokenizer`], [`ConvertError::PreTokenizer`], [`ConvertError::TokenizerTooLarge`] for a tokenizer that
///   GGUF files cannot hold
/// - [`ConvertError::Format`] for scales that the type cannot hold, [`ConvertError::NotFinite`] for a value beyond its
///   range
/// - [`ConvertError::Exists`] where something stands under the name, unless `overwrite`
/// - those of reading the source; [`ConvertError::Write`]
///
/// # Source
/// docs/formats.md#gguf-models
pub fn export_gguf(
    tensors: &Tensors,
    dst: impl AsRef<Path>,
    options: &GgufOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<GgufReport, ConvertError> {
    let (source, dst) = (tensors.source(), dst.as_ref());
    if let Some((name, found)) = tensors.unfinished_slot()
        && !options.any_lambda
    {
        return Err(ConvertError::Lambda { name, found });
    }
    if let Some(loss) = source.config().additions.loss() {
        let reason = format!(
            "llama.cpp has no words for {loss}; low-rank maps can be exported as an adapter, beside the model without them"
        );
        return Err(ConvertError::NotExportable { format: "GGUF", reason });
    }
    let weights = plan::weights(source, options.weights)?;
    let architecture = choose(source, weights)?;
    let model = source.config().model();
    let Some(folder) = source.tokenizer_folder() else {
        let reason =
            "the source has no tokenizer.json, and a file without a tokenizer generates no text".into();
        return Err(ConvertError::NotExportable { format: "GGUF", reason });
    };
    let vocabulary = Vocabulary::read(folder, model.vocab_size)?;
    let steps = plan::steps(source, architecture, weights, options)?;
    let (context_length, cut) = architecture::context_length(architecture, model);
    let factors = hyperparameters::frequency_factors(&model.rope, model.head_dim());
    let plan = Plan { architecture, weights, steps, vocabulary, context_length, factors };
    let header = plan.header(model, folder).map_err(|error| failure(dst, error))?;

    let mut progress = Progress::new(source, &mut progress);
    write_file(dst, options.overwrite, |file| {
        let out =
            header.write_to(BufWriter::with_capacity(1 << 20, file)).map_err(|error| failure(dst, error))?;
        let mut file = OutputFile { path: dst, out, scales: BTreeMap::new() };
        for step in &plan.steps {
            file.write(source, step)?;
            progress.advance(step.entry);
        }
        if let Some(factors) = &plan.factors {
            file.part(FREQUENCY_FACTORS, &WeightType::F32.encode(factors))?;
        }
        file.out.finish().map(drop).map_err(|error| failure(dst, error))
    })?;

    Ok(plan.report(cut))
}

/// All that is decided before a byte is written.
struct Plan<'a> {
    architecture: &'static Architecture,
    weights: GgufType,
    steps: Vec<Step<'a>>,
    vocabulary: Vocabulary,
    context_length: usize,
    /// Of Llama 3's RoPE scaling.
    factors: Option<Vec<f32>>,
}

impl Plan<'_> {
    /// The metadata, and the tensors in the order of the steps.
    fn header(&self, model: &CausalLmConfig, folder: &Path) -> Result<Header, FormatError> {
        let mut header = Header::new();
        header.set("general.architecture", self.architecture.name)?;
        header.set("general.type", "model")?;
        if let Some(name) = folder.file_name() {
            header.set("general.name", &*name.to_string_lossy())?;
        }
        header.set("general.file_type", self.file_type())?;
        header.set("general.quantization_version", 2u32)?;
        hyperparameters::set(&mut header, self.architecture, model, self.context_length)?;
        self.vocabulary.set(&mut header)?;
        if let Some(granularity) = self.granularity() {
            header.set(GRANULARITY_KEY, granularity_name(granularity).as_str())?;
        }
        if let Some(Packing::I2S(layout)) = self.weights.packing() {
            header.set(I2S_KEY, i2_s_name(layout))?;
        }
        for step in &self.steps {
            header.tensor(&step.name, step.kind(), &step.entry.shape)?;
            if let Some(name) = step.scale_name() {
                header.tensor(&name, TensorType::F32, &[1])?;
            }
        }
        if let Some(factors) = &self.factors {
            header.tensor(FREQUENCY_FACTORS, TensorType::F32, &[factors.len()])?;
        }
        Ok(header)
    }

    /// `general.file_type`: what most weights are.
    fn file_type(&self) -> u32 {
        let is_written = |packing: &Packing| self.steps.iter().any(|step| step.kind() == packing.kind());
        match self.weights.packing().filter(is_written) {
            Some(packing) => packing.file_type(),
            None if self.weights == GgufType::F32 => 0,
            None => 1,
        }
    }

    /// How finely the BitNet slots are scaled.
    fn granularity(&self) -> Option<Granularity> {
        self.steps.iter().find_map(|step| match step.entry.content {
            Content::Float => None,
            Content::Latent(granularity) | Content::Packed(granularity) => Some(granularity),
        })
    }

    /// What was written; `cut` says why the context is shorter than the model's.
    fn report(self, cut: Option<String>) -> GgufReport {
        let mut tensors = Vec::new();
        let mut add = |source: &str, name: String, kind: TensorType, shape: &[usize], because| {
            let bytes = kind.data_len(shape).unwrap_or_default();
            let (source, kind) = (source.to_owned(), kind.to_string());
            tensors.push(GgufTensor { source, name, kind, shape: shape.into(), bytes, because });
        };
        for step in &self.steps {
            let Entry { name, shape, .. } = step.entry;
            add(name, step.name.clone(), step.kind(), shape, step.because.clone());
            if let Some(scale) = step.scale_name() {
                add(name, scale, TensorType::F32, &[1], None);
            }
        }
        if let Some(factors) = &self.factors {
            add("config.json", FREQUENCY_FACTORS.into(), TensorType::F32, &[factors.len()], None);
        }
        let mut notes = self.vocabulary.notes;
        notes.extend(cut);
        let (architecture, weights) = (self.architecture.name.into(), self.weights.to_string());
        GgufReport { architecture, weights, tensors, notes }
    }
}

/// An error of the file's format; one of the disk is an error of writing.
pub(super) fn failure(path: &Path, error: FormatError) -> ConvertError {
    match error {
        FormatError::Write(source) => ConvertError::Write { path: path.into(), source },
        source => ConvertError::Gguf { path: path.into(), source },
    }
}

/// The architecture that computes a model.
pub(super) fn choose(source: &dyn Source, weights: GgufType) -> Result<&'static Architecture, ConvertError> {
    let config = source.config();
    let traits = Traits {
        model: config.model(),
        model_type: config.model_type,
        sub_norms: sub_norms(source.entries(), config),
        for_bitnet_cpp: matches!(weights.packing(), Some(Packing::I2S(_))),
    };
    Architecture::choose(&traits).map_err(|Misfit { nearest, reasons }| ConvertError::NotExportable {
        format: if traits.for_bitnet_cpp { "GGUF for bitnet.cpp" } else { "GGUF for llama.cpp" },
        reason: format!("no architecture runs this model; `{nearest}` does not: {}", reasons.join("; ")),
    })
}

/// Which sub-norms a model has, native and inserted ones alike.
fn sub_norms(entries: &[Entry], config: &HfConfig) -> SubNormUse {
    let (model, state) = (config.model(), config.bitnet.as_ref());
    let inserted = state.filter(|state| state.sub_norm != Placement::None);
    let gains: Vec<&Entry> =
        entries.iter().filter(|entry| entry.path.ends_with(".sub_norm.norm.gain")).collect();
    if let Some(other) = gains.iter().find(|entry| names::to_gguf(&entry.path).is_none()) {
        return SubNormUse::Other(format!("the SubLN `{}`", other.name));
    }
    let everywhere = 2 * model.n_layers;
    match inserted.and_then(|state| state.sub_norm_eps) {
        _ if gains.is_empty() => SubNormUse::None,
        _ if gains.len() != everywhere => {
            let found = format!("a SubLN before {} of {everywhere} output and down projections", gains.len());
            SubNormUse::Other(found)
        }
        Some(eps) if eps as f32 != model.norm_eps as f32 => {
            SubNormUse::Other(format!("a SubLN with epsilon {eps}, other norms with {}", model.norm_eps))
        }
        _ => SubNormUse::Output,
    }
}

/// A file whose header is written.
struct OutputFile<'a, W: Write> {
    path: &'a Path,
    out: Writer<W>,
    /// The scale beside the weight of each slot, by the path of the slot.
    scales: BTreeMap<&'a str, f32>,
}

impl<'a, W: Write> OutputFile<'a, W> {
    fn part(&mut self, name: &str, bytes: &[u8]) -> Result<(), ConvertError> {
        self.out.part(name, bytes).map_err(|error| failure(self.path, error))
    }

    fn write(&mut self, source: &dyn Source, step: &Step<'a>) -> Result<(), ConvertError> {
        let wrong = |source| ConvertError::Format { name: step.entry.name.clone(), source };
        let head_dim = source.config().model().head_dim();
        let ternary = match read_ternary(source, step.entry)? {
            Some(matrix) if step.is_reordered() => {
                Some(reorder_matrix(matrix, head_dim, Order::Pairs).map_err(wrong)?)
            }
            matrix => matrix,
        };
        match (step.data, ternary) {
            (Data::Floats(weight_type), Some(matrix)) => {
                let values = matrix.dequantize();
                drop(matrix);
                self.floats(step, weight_type, 0, &values)
            }
            (Data::Floats(weight_type), None) => self.stream(source, step, weight_type, head_dim),
            (Data::Ternary(packing, home), Some(matrix)) => {
                let bytes = packing.pack(&matrix, home).map_err(wrong)?;
                self.part(&step.name, &bytes)?;
                match (step.scale_name(), matrix.scales()) {
                    (Some(name), [scale]) => {
                        let slot = step.entry.path.trim_end_matches(".weight");
                        self.scales.insert(slot, scale.get());
                        self.part(&name, &scale.get().to_le_bytes())
                    }
                    _ => Ok(()),
                }
            }
            (Data::Ternary(..), None) => Err(ConvertError::absent(step.entry)),
        }
    }

    /// Float values as they come, moved or changed where the file wants it.
    fn stream(
        &mut self,
        source: &dyn Source,
        step: &Step,
        weight_type: WeightType,
        head_dim: usize,
    ) -> Result<(), ConvertError> {
        let entry = step.entry;
        if step.is_reordered() {
            let values = read_floats(source, entry)?;
            let values = reorder(&values, entry.shape[0], head_dim, Order::Pairs);
            return self.floats(step, weight_type, 0, &values);
        }
        // The file holds whole gains, a checkpoint of Gemma what they are more than 1.
        let is_gain = entry.path.ends_with(".gain");
        let offset = if is_gain { source.config().model().norm_gain_offset as f32 } else { 0.0 };
        let scale = match step.slot {
            Some((slot, Part::Bias)) if slot.is_mlp() => {
                self.scales.get(entry.path.trim_end_matches(".bias")).copied()
            }
            _ => None,
        };
        let mut at = 0;
        source.floats(entry, &mut |piece| {
            let changed: Vec<f32>;
            let piece = match (offset, scale) {
                (0.0, None) => piece,
                // llama.cpp adds this bias before it multiplies by the scale.
                _ => {
                    changed = piece.iter().map(|value| (value + offset) / scale.unwrap_or(1.0)).collect();
                    &changed
                }
            };
            self.floats(step, weight_type, at, piece)?;
            at += piece.len();
            Ok(())
        })
    }

    /// Encodes and writes values that begin at element `at` of a tensor.
    fn floats(
        &mut self,
        step: &Step,
        weight_type: WeightType,
        at: usize,
        values: &[f32],
    ) -> Result<(), ConvertError> {
        if let Some(i) = values.iter().position(|value| !weight_type.holds(*value)) {
            let (name, index, value) = (step.entry.name.clone(), at + i, values[i]);
            return Err(ConvertError::NotFinite { name, index, value });
        }
        values.chunks(PIECE).try_for_each(|piece| self.part(&step.name, &weight_type.encode(piece)))
    }
}
