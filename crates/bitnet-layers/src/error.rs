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
    /// A slot that is not at λ = 1 cannot be packed: it computes with more than its codes.
    #[error("slot at λ = {found}: expected λ = 1")]
    Lambda {
        /// The slot's λ.
        found: f32,
    },
    /// Codes do not have the shape of the slot that they are for.
    #[error("codes of shape {found:?}: expected {expected:?}")]
    Shape {
        /// The codes' shape.
        found: [usize; 2],
        /// `[d_output, d_input]` of the slot.
        expected: [usize; 2],
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
