//! Tokenizers, token windows, text and token files.
//!
//! From text to training batches, and back:
//!
//! 1. [`read_text`] reads files and folders, one text per file.
//! 2. A [`Tokenizer`] (a Hugging Face `tokenizer.json`, or one trained here) turns text into token ids and back.
//! 3. [`TokenWindows`] cuts the ids into windows of one length, holds some of them out, and deals the others in a
//!    shuffled order that a seed alone decides.
//! 4. [`Batches`] is the endless stream of batches; its position is one number, from which a resumed run continues.
//!
//! For data larger than memory there are [`TokenSource`], which makes a file of tokens from text once, and
//! [`FileWindows`], which deals windows of it in a shuffled order and holds none.
//!
//! A [`TextStream`] goes the other way while a model generates: tokens in, text out as soon as it is certain.
//!
//! ```
//! use bitnet_text::TokenWindows;
//!
//! let windows = TokenWindows::new((0..100).collect(), 8)?; // 12 windows; the last 4 tokens are dropped
//! let (train, held_out) = windows.split(0.25)?;
//! assert_eq!((train.len(), held_out.len()), (9, 3));
//! let mut batches = train.batches(2, 42)?; // 42 is the seed
//! assert_eq!(batches.next().map(|batch| batch.len()), Some(2));
//! # Ok::<(), bitnet_text::TextError>(())
//! ```
//!
//! This crate sees no tensor: ids are `u32`, shapes are the caller's.

mod batches;
mod documents;
mod error;
mod file_windows;
mod files;
mod stream;
mod token_file;
mod token_source;
mod tokenizer;
mod windows;

pub use batches::Batches;
pub use error::TextError;
pub use file_windows::FileWindows;
pub use files::{TextFile, read_text};
pub use stream::TextStream;
pub use token_file::TokenFile;
pub use token_source::TokenSource;
pub use tokenizer::Tokenizer;
pub use windows::TokenWindows;
