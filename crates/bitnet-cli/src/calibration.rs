//! Text on which a command decides something about weights.

use std::path::{Path, PathBuf};

use bitnet_model::CausalLm;
use bitnet_text::{TokenWindows, Tokenizer, read_text};
use burn::tensor::{Int, Tensor};
use clap::Args;

use crate::error::CliError;

/// Where the text is, and how much of it is looked at.
#[derive(Debug, Args)]
pub(crate) struct CalibrationFlags {
    /// Text to calibrate on: a file, or a folder of them; may be repeated
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Vec<PathBuf>,

    /// How many windows of the text are looked at; all if there are fewer
    #[arg(long, value_name = "N", default_value_t = 32, requires = "data")]
    windows: usize,

    /// Tokens in a window
    #[arg(long, value_name = "N", default_value_t = 256, requires = "data")]
    window: usize,

    /// What the choice of windows depends on
    #[arg(long, value_name = "N", default_value_t = 0, requires = "data")]
    seed: u64,
}

impl CalibrationFlags {
    /// The windows of tokens; none without text.
    pub(crate) fn windows(&self, tokenizer: &Path) -> Result<Vec<Vec<u32>>, CliError> {
        if self.data.is_empty() {
            return Ok(Vec::new());
        }
        if !tokenizer.is_file() {
            return Err(CliError::NoTokenizer { path: tokenizer.into() });
        }
        let tokenizer = Tokenizer::from_file(tokenizer)?;
        let mut tokens = Vec::new();
        for file in read_text(&self.data)? {
            tokens.extend(tokenizer.encode(&file.text)?);
        }
        let windows = TokenWindows::new(tokens, self.window)?;
        let chosen = windows.shuffled_order(self.seed, 0).into_iter().take(self.windows);
        Ok(chosen.filter_map(|window| windows.get(window)).map(<[u32]>::to_vec).collect())
    }
}

/// The windows as batches of a few.
pub(crate) fn batches(model: &CausalLm, windows: &[Vec<u32>]) -> Result<Vec<Tensor<2, Int>>, CliError> {
    Ok(windows.chunks(4).map(|batch| model.batch(batch)).collect::<Result<_, _>>()?)
}
