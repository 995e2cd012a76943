//! A `tokenizer.json`, as far as GGUF files can say the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::ConvertError;

/// A tokenizer whose model is BPE.
#[derive(Debug, Deserialize)]
pub(super) struct TokenizerFile {
    #[serde(skip)]
    pub(super) path: PathBuf,
    #[serde(default)]
    pub(super) added_tokens: Vec<AddedToken>,
    pub(super) normalizer: Option<Value>,
    pub(super) pre_tokenizer: Option<Value>,
    pub(super) post_processor: Option<Value>,
    pub(super) model: Bpe,
}

/// A token that is taken out of a text before it is split.
#[derive(Debug, Deserialize)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) special: bool,
    #[serde(default)]
    pub(super) lstrip: bool,
    #[serde(default)]
    pub(super) rstrip: bool,
    #[serde(default)]
    pub(super) single_word: bool,
}

/// Byte pair encoding.
#[derive(Debug, Deserialize)]
pub(super) struct Bpe {
    pub(super) vocab: BTreeMap<String, u32>,
    pub(super) merges: Vec<Merge>,
    pub(super) dropout: Option<f32>,
    pub(super) unk_token: Option<String>,
    pub(super) continuing_subword_prefix: Option<String>,
    pub(super) end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
}

/// Two tokens that become one: `"a b"` in older files, `["a", "b"]` in newer ones.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Merge {
    Text(String),
    Pair([String; 2]),
}

impl Merge {
    /// The two tokens; `None` where the text does not hold exactly one space between two others.
    pub(super) fn pair(&self) -> Option<[&str; 2]> {
        let (left, right) = match self {
            Self::Text(text) => text.split_once(' ')?,
            Self::Pair([left, right]) => (left.as_str(), right.as_str()),
        };
        let whole = |part: &str| !part.is_empty() && !part.contains(' ');
        (whole(left) && whole(right)).then_some([left, right])
    }
}

/// The kind of a tokenizer's model alone: other kinds have another layout.
#[derive(Deserialize)]
struct Kind {
    model: KindOfModel,
}

#[derive(Deserialize)]
struct KindOfModel {
    #[serde(rename = "type")]
    name: Option<String>,
    merges: Option<IgnoredAny>,
}

impl TokenizerFile {
    /// Reads a folder's `tokenizer.json`.
    ///
    /// # Errors
    /// [`ConvertError::Read`], [`ConvertError::Json`] for the file, [`ConvertError::Tokenizer`] where its model is not
    /// BPE or has an option that GGUF files cannot express.
    pub(super) fn read(folder: &Path) -> Result<Self, ConvertError> {
        let path = folder.join("tokenizer.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConvertError::Read { path: path.clone(), source })?;
        let damaged =
            |error: serde_json::Error| ConvertError::Json { path: path.clone(), reason: error.to_string() };
        let Kind { model } = serde_json::from_str(&text).map_err(damaged)?;
        let is_bpe = model.name.as_deref().map_or(model.merges.is_some(), |name| name == "BPE");
        if !is_bpe {
            let found = model.name.unwrap_or_else(|| "none".into());
            return Err(refusal(&path, "model.type", found, "BPE"));
        }
        let mut file: Self = serde_json::from_str(&text).map_err(damaged)?;
        file.path = path;
        file.check_options()?;
        Ok(file)
    }

    /// A refusal of this file.
    pub(super) fn refuse(
        &self,
        field: &'static str,
        found: impl Into<String>,
        expected: &'static str,
    ) -> ConvertError {
        refusal(&self.path, field, found, expected)
    }

    /// The id of a token, as an added one or as one of the vocabulary.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        let added = self.added_tokens.iter().find(|token| token.content == text).map(|token| token.id);
        added.or_else(|| self.model.vocab.get(text).copied())
    }

    fn check_options(&self) -> Result<(), ConvertError> {
        let Bpe { dropout, continuing_subword_prefix, end_of_word_suffix, .. } = &self.model;
        if let Some(dropout) = dropout.filter(|dropout| *dropout > 0.0) {
            return Err(self.refuse("model.dropout", dropout.to_string(), "none"));
        }
        for (field, affix) in [
            ("model.continuing_subword_prefix", continuing_subword_prefix),
            ("model.end_of_word_suffix", end_of_word_suffix),
        ] {
            if let Some(affix) = affix.as_ref().filter(|affix| !affix.is_empty()) {
                return Err(self.refuse(field, format!("`{affix}`"), "none"));
            }
        }
        if let Some(merge) = self.model.merges.iter().find(|merge| merge.pair().is_none()) {
            return Err(self.refuse("model.merges", format!("{merge:?}"), "two tokens without spaces"));
        }
        Ok(())
    }
}

fn refusal(
    path: &Path,
    field: &'static str,
    found: impl Into<String>,
    expected: &'static str,
) -> ConvertError {
    ConvertError::Tokenizer { path: path.into(), field, found: found.into(), expected }
}
