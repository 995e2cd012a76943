use thiserror::Error;

/// What a model's configuration or input can have wrong.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A configuration value that no model can have.
    #[error("config `{field}` is {found}: expected {expected}")]
    Config {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A token that the embedding has no row for.
    #[error("token {token} at position {position}: the embedding has {vocab_size} rows")]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Where it stands in its sequence.
        position: usize,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// More tokens than the model has positions.
    #[error("a sequence of {found} tokens: the model has {limit} positions")]
    SequenceTooLong {
        /// Length of the sequence, generated tokens included.
        found: usize,
        /// The model's positions.
        limit: usize,
    },
    /// A batch without tokens, or with sequences of different lengths.
    #[error("a batch of sequences of {lengths:?} tokens: expected equal lengths above 0")]
    Batch {
        /// The length of each sequence.
        lengths: Vec<usize>,
    },
    /// A sampling setting out of range.
    #[error("sampling `{field}` is {found}: expected {expected}")]
    Sampling {
        /// The field.
        field: &'static str,
        /// Its value.
        found: f64,
        /// What it should be.
        expected: &'static str,
    },
    /// The logits of a step are not finite, so no token can be chosen.
    #[error("logits of generated token {step} are not finite")]
    LogitsNotFinite {
        /// Which new token, from 0.
        step: usize,
    },
    /// The device could not run the model.
    #[error("device: {0}")]
    Device(String),
}
