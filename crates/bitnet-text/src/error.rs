//! What can be wrong with text, tokens and tokenizers.

use std::io;
use std::path::PathBuf;
use std::str::Utf8Error;

/// An unusable text, token or tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file or folder cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is not text.
    #[error("file `{}` is not UTF-8 text", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Utf8Error,
    },
    /// A line of a text or JSONL file cannot be used.
    #[error("`{}`, line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of tokens cannot be used.
    #[error("`{}` is no file of tokens: {reason}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What was found, and what was expected.
        reason: String,
    },
    /// The separator of documents is no token.
    #[error("separator `{token}` is not in the tokenizer's vocabulary")]
    Separator {
        /// The text given.
        token: String,
    },
    /// A folder contains itself, by way of a link.
    #[error("folder `{}` is a link to a folder that contains it", path.display())]
    FolderLoop {
        /// The link.
        path: PathBuf,
    },
    /// There is no text at all in the files and folders given.
    #[error("no text in {paths:?}, expected at least one file that is not empty")]
    NoText {
        /// The files and folders.
        paths: Vec<PathBuf>,
    },
    /// A file is not a tokenizer.
    #[error("`{}` is not a tokenizer.json that can be used", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The tokenizer library's reason.
        source: tokenizers::Error,
    },
    /// A text cannot be encoded.
    #[error("cannot encode a text of {bytes} bytes")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// The tokenizer library's reason.
        source: tokenizers::Error,
    },
    /// Tokens cannot be decoded.
    #[error("cannot decode {tokens} tokens")]
    Decode {
        /// Number of tokens.
        tokens: usize,
        /// The tokenizer library's reason.
        source: tokenizers::Error,
    },
    /// A token to decode is not in the vocabulary.
    #[error("token {token} at position {position} is not in the tokenizer's vocabulary")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Its index among the tokens given.
        position: usize,
    },
    /// A tokenizer cannot be trained.
    #[error("cannot train a tokenizer")]
    Train {
        /// The tokenizer library's reason.
        source: tokenizers::Error,
    },
    /// The vocabulary asked for cannot hold the 256 bytes and the special tokens.
    #[error("vocabulary of {found} tokens, expected at least {minimum} for the bytes and special tokens")]
    VocabTooSmall {
        /// The size asked for.
        found: usize,
        /// The least size.
        minimum: usize,
    },
    /// A window is too short to predict anything in it.
    #[error("window of {window} tokens, expected at least 2")]
    WindowTooShort {
        /// The length asked for.
        window: usize,
    },
    /// The text does not fill one window.
    #[error("text of {tokens} tokens, expected at least one window of {window}")]
    TextTooShort {
        /// Length of the text.
        tokens: usize,
        /// Length of a window.
        window: usize,
    },
    /// A token lies outside the model's vocabulary.
    #[error("token {token} at position {position}, expected a token below the vocabulary size {vocab_size}")]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Its index in the tokens of the windows.
        position: usize,
        /// The model's vocabulary size.
        vocab_size: usize,
    },
    /// A split would leave one side empty.
    #[error("held-out share {share} of {windows} windows, expected at least one window on each side")]
    Split {
        /// The share asked for.
        share: f64,
        /// Number of windows to split.
        windows: usize,
    },
    /// A batch without windows.
    #[error("batch of 0 windows, expected at least 1")]
    EmptyBatch,
}
