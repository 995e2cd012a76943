//! Text to token ids and back.

use std::fs::{self, File};
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::{TextError, read_text};

/// A tokenizer as described by a Hugging Face `tokenizer.json`.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocab_size: usize,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// Its truncation and padding are switched off: training text must arrive whole, and windows set the length.
    ///
    /// # Errors
    /// - [`TextError::Read`] if the file cannot be read.
    /// - [`TextError::Tokenizer`] if it is not a tokenizer.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TextError> {
        let path = path.as_ref();
        let json = fs::read(path).map_err(|source| TextError::Read { path: path.to_owned(), source })?;
        let not_a_tokenizer = |source| TextError::Tokenizer { path: path.to_owned(), source };
        let mut inner = guard(|| tokenizers::Tokenizer::from_bytes(json)).map_err(not_a_tokenizer)?;
        inner.with_truncation(None).map_err(not_a_tokenizer)?;
        inner.with_padding(None);
        Ok(Self::new(inner))
    }

    /// Trains a byte-level BPE, as GPT-2's, on files and folders (see [`read_text`]).
    ///
    /// The special tokens get the first ids, the 256 bytes the next, then the most frequent pairs, until there are
    /// `vocab_size` tokens or nothing is left to merge. The same text always gives the same tokenizer, and every
    /// text can be encoded.
    ///
    /// # Errors
    /// - [`TextError::VocabTooSmall`] if `vocab_size` is below 256 plus the number of special tokens.
    /// - Those of [`read_text`].
    /// - [`TextError::Train`] if the tokenizer library fails.
    pub fn train_byte_level_bpe(
        files: &[PathBuf],
        vocab_size: usize,
        special_tokens: &[&str],
    ) -> Result<Self, TextError> {
        let minimum = 256 + special_tokens.len();
        if vocab_size < minimum {
            return Err(TextError::VocabTooSmall { found: vocab_size, minimum });
        }
        let texts = read_text(files)?;

        let mut inner = tokenizers::Tokenizer::new(ModelWrapper::BPE(BPE::default()));
        inner.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
        inner.with_decoder(Some(ByteLevel::default()));
        let trainer = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .special_tokens(special_tokens.iter().map(|&token| AddedToken::from(token, true)).collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .show_progress(false)
            .build();
        let lines = texts.iter().flat_map(|file| file.text.split_inclusive('\n'));
        inner
            .train(&mut TrainerWrapper::BpeTrainer(trainer), lines)
            .map_err(|source| TextError::Train { source })?;
        Ok(Self::new(inner))
    }

    fn new(inner: tokenizers::Tokenizer) -> Self {
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        Self { inner, vocab_size }
    }

    /// Writes a `tokenizer.json`: beside `path` first, then renamed, so that `path` never holds half a file.
    ///
    /// # Errors
    /// [`TextError::Write`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), TextError> {
        let path = path.as_ref();
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let write = || {
            let json = self.inner.to_string(true).map_err(io::Error::other)?;
            let mut file = File::create(&partial)?;
            file.write_all(json.as_bytes())?;
            file.sync_all()?;
            fs::rename(&partial, path)
        };
        write().map_err(|source| {
            fs::remove_file(&partial).ok(); // what matters is the first error
            TextError::Write { path: path.to_owned(), source }
        })
    }

    /// The tokenizer as JSON, the same text for the same tokenizer.
    pub(crate) fn to_json(&self) -> Result<String, TextError> {
        self.inner.to_string(false).map_err(|source| TextError::Encode { bytes: 0, source })
    }

    /// The tokens of a text. No special tokens are added; those written in the text are recognised.
    ///
    /// # Errors
    /// [`TextError::Encode`] if the tokenizer library fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|source| TextError::Encode { bytes: text.len(), source })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of a text with the special tokens that the tokenizer puts around one, as a beginning: what a model
    /// expects at the start of its input.
    ///
    /// # Errors
    /// [`TextError::Encode`] if the tokenizer library fails.
    pub fn encode_with_special_tokens(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|source| TextError::Encode { bytes: text.len(), source })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens, special tokens included. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// - [`TextError::UnknownToken`] if a token is not in the vocabulary.
    /// - [`TextError::Decode`] if the tokenizer library fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TextError> {
        if let Some(position) = tokens.iter().position(|&token| self.id_to_token(token).is_none()) {
            return Err(TextError::UnknownToken { token: tokens[position], position });
        }
        self.inner.decode(tokens, false).map_err(|source| TextError::Decode { tokens: tokens.len(), source })
    }

    /// The text of those tokens that are in the vocabulary.
    pub(crate) fn decode_known(&self, tokens: &[u32], skip_special: bool) -> Result<String, TextError> {
        self.inner
            .decode(tokens, skip_special)
            .map_err(|source| TextError::Decode { tokens: tokens.len(), source })
    }

    /// The highest token id, added tokens included, plus 1. Ids may have holes, so there may be fewer tokens.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token, as the vocabulary spells it; `None` if it is not there.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The vocabulary's spelling of a token; `None` if there is no such id.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }
}

/// Calls the tokenizer library, which panics on some malformed files, and makes a panic an error.
fn guard<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    // What a panic leaves half done is dropped with the call.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err("the tokenizer library panicked".into()))
}
