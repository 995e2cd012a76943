//! A model that is loaded to be run, and the files beside it that say how to talk to it.

use std::path::{Path, PathBuf};

use bitnet_convert::{Checkpoint, LoadOptions, Tensors, WeightType, check_tokenizer, pack};
use bitnet_model::CausalLm;
use bitnet_quant::device;
use bitnet_text::Tokenizer;
use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::bar::Bar;
use crate::chat::{self, Message};
use crate::error::CliError;
use crate::flags::Global;
use crate::json::read_object;
use crate::source::resolve;

/// Loads a model onto the device that the flags name, with a note about whatever is odd about it.
pub(crate) fn load(source: &str, global: &Global) -> Result<(PathBuf, Checkpoint), CliError> {
    let device = device(&global.device)?;
    let path = resolve(source, global.quiet)?;
    let tensors = Tensors::open(&path, &LoadOptions::default())?;
    let mut bar = Bar::new("loading", global.quiet);
    let checkpoint = tensors.load_watched(&device, |done, total| bar.set(done, total))?;
    drop(bar);
    if !global.quiet {
        for (names, what) in [
            (&checkpoint.unexpected, "tensors that the model has no place for"),
            (
                &checkpoint.suspicious_scales,
                "scales whose size speaks against their direction in config.json",
            ),
        ] {
            if let Some(first) = names.first() {
                eprintln!("note: {} {what}, as `{first}`", names.len());
            }
        }
    }
    Ok((path, checkpoint))
}

/// The type that the output head computes in: it is read whole for every token that is generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Head {
    /// f16 where the model's file holds it in 16 bits, else f32
    Auto,
    /// f16: half the time, exact to 1 part in 2048
    F16,
    /// f32
    F32,
}

/// Makes a model ready to generate: weights packed at two bits, the head as asked for. Packing changes no result.
/// Returns whether the head is f16.
pub(crate) fn make_ready(checkpoint: Checkpoint, head: Head) -> Result<(CausalLm, bool), CliError> {
    let halve = match head {
        Head::Auto => checkpoint.head_type() != WeightType::F32,
        Head::F16 => true,
        Head::F32 => false,
    };
    let mut model = pack(checkpoint)?.0.model;
    let halved = halve && model.halve_head()?;
    if head == Head::F16 && !halved {
        return Err(CliError::Run { reason: "it does not compute in f16: --head f32 does without".into() });
    }
    Ok((model, halved))
}

/// The folder whose files say how to talk to a model: its own, a GGUF file's, or the one that `--tokenizer` names.
pub(crate) fn talk_folder(model: &Path, other: Option<&Path>) -> PathBuf {
    match other.filter(|other| other.is_dir()) {
        Some(folder) => folder.into(),
        None if model.is_dir() => model.into(),
        None => model.parent().unwrap_or(Path::new("")).into(),
    }
}

/// The tokenizer in that folder, or the file that `--tokenizer` names.
pub(crate) fn tokenizer(
    folder: &Path,
    other: Option<&Path>,
    model: &CausalLm,
) -> Result<Tokenizer, CliError> {
    let path = match other.filter(|other| !other.is_dir()) {
        Some(file) => file.into(),
        None => folder.join("tokenizer.json"),
    };
    if !path.is_file() {
        return Err(CliError::NoTokenizer { path });
    }
    let tokenizer = Tokenizer::from_file(&path)?;
    check_tokenizer(&tokenizer, model)?;
    Ok(tokenizer)
}

/// The files beside the tokenizer.
pub(crate) struct Companions {
    tokenizer_config: Map<String, Value>,
    generation_config: Map<String, Value>,
    config: Map<String, Value>,
    chat_template: Option<String>,
}

impl Companions {
    /// Reads those that are there.
    pub(crate) fn read(folder: &Path) -> Result<Self, CliError> {
        let path = folder.join("chat_template.jinja");
        let chat_template = match path.is_file() {
            true => Some(std::fs::read_to_string(&path).map_err(|source| CliError::Read { path, source })?),
            false => None,
        };
        Ok(Self {
            tokenizer_config: read_object(folder, "tokenizer_config.json")?,
            generation_config: read_object(folder, "generation_config.json")?,
            config: read_object(folder, "config.json")?,
            chat_template,
        })
    }

    /// The tokens that end a text: those of generation_config.json, else of config.json, and the tokenizer's own, with
    /// which chats end.
    pub(crate) fn stop_tokens(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let listed = [&self.generation_config, &self.config].map(|object| ids(object.get("eos_token_id")));
        let mut stop = listed.into_iter().find(|ids| !ids.is_empty()).unwrap_or_default();
        let own = match self.tokenizer_config.get("eos_token") {
            Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
            token => token.and_then(Value::as_str),
        };
        stop.extend(own.and_then(|token| tokenizer.token_to_id(token)));
        stop
    }

    /// The text of a conversation that the model is to answer.
    pub(crate) fn render(&self, messages: &[Message]) -> Result<String, CliError> {
        let template = chat::template(self.chat_template.clone(), &self.tokenizer_config);
        chat::render(&template.ok_or(CliError::NoChatTemplate)?, messages, &self.tokenizer_config)
    }
}

/// One id or a list of them.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(values)) => values.iter().filter_map(id).collect(),
        value => value.and_then(id).into_iter().collect(),
    }
}
