use bitnet_quant::QuantError;
use thiserror::Error;

/// What a layer's configuration can have wrong.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The quantization does not fit the weight.
    #[error("weight `{name}`: {source}")]
    Quantization {
        /// The layer's or parameter's name.
        name: String,
        /// What does not fit.
        source: QuantError,
    },
    /// A norm's epsilon is not a positive number.
    #[error("norm epsilon {found}: expected a positive number")]
    Epsilon {
        /// The value given.
        found: f64,
    },
    /// A name pattern cannot be read.
    #[error("name pattern `{pattern}`: {reason}")]
    Pattern {
        /// The pattern given.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No weight matched any pattern.
    #[error("no two-dimensional weight matches {patterns:?}")]
    NothingMatched {
        /// The patterns given.
        patterns: Vec<String>,
    },
}
