use bitnet_quant::QuantError;
use thiserror::Error;

use crate::LowRankKind;

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
    /// A low-rank map has no rank that its sizes allow.
    #[error("rank {found} for a map of shape {shape:?}: expected 1 to {limit}")]
    Rank {
        /// The rank given.
        found: usize,
        /// The smaller of the two sizes.
        limit: usize,
        /// `[d_output, d_input]`.
        shape: [usize; 2],
    },
    /// The two factors of a low-rank map do not have one rank.
    #[error("factors of shapes {u:?} and {v:?}: expected the same number of columns")]
    Factors {
        /// `[d_output, rank]`.
        u: [usize; 2],
        /// `[d_input, rank]`.
        v: [usize; 2],
    },
    /// A low-rank map is for a map of another shape than the slot's.
    #[error("low-rank map of shape {found:?}: expected {expected:?}, that of the slot")]
    LowRankShape {
        /// `[d_output, d_input]` of the low-rank map.
        found: [usize; 2],
        /// `[d_output, d_input]` of the slot.
        expected: [usize; 2],
    },
    /// A LoRA's α is not a positive number.
    #[error("LoRA α {found}: expected a positive number")]
    Alpha {
        /// The value given.
        found: f64,
    },
    /// A share of inputs to drop is out of range, or not for this kind of map.
    #[error("dropout {found} in {kind:?}: expected 0 to below 1 in a LoRA, 0 elsewhere")]
    Dropout {
        /// The value given.
        found: f64,
        /// The kind of map.
        kind: LowRankKind,
    },
    /// A packed slot holds codes only.
    #[error("packed slot: expected one with its latent weight")]
    NoLatentWeight,
    /// Columns to keep in full precision are not there, or leave none to quantize.
    #[error("salient columns {found:?} of {d_input}: expected ascending ones, at least one and not all")]
    Columns {
        /// The columns given.
        found: Vec<usize>,
        /// Columns of the weight.
        d_input: usize,
    },
    /// A weight of salient columns has another number of them.
    #[error("weight of {found} salient columns: expected {expected}")]
    ColumnWeight {
        /// The weight's columns.
        found: usize,
        /// Those listed.
        expected: usize,
    },
    /// The device failed while a parameter was read from it.
    #[error("device: {0}")]
    Device(String),
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
