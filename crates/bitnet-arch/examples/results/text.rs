//! The text that experiments train on.

use std::error::Error;

use bitnet_arch::text::{TokenWindows, Tokenizer, read_text};

use crate::repository;

/// The repository's text in the small model's tokens, as windows to train on and held-out ones.
pub(crate) fn windows(window: usize) -> Result<(TokenWindows, TokenWindows), Box<dyn Error>> {
    let tokenizer = Tokenizer::from_file(repository::small_model().join("tokenizer.json"))?;
    let mut tokens = Vec::new();
    for file in read_text(&repository::text_files())? {
        tokens.extend(tokenizer.encode(&file.text)?);
    }
    Ok(TokenWindows::new(tokens, window)?.split(0.05)?)
}
