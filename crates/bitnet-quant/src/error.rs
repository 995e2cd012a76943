use thiserror::Error;

/// What a quantization setting or input can have wrong.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum QuantError {
    /// The number of bits is outside 2..=8.
    #[error("activations of {found} bits: expected 2 to 8")]
    Bits {
        /// The number given.
        found: u8,
    },
    /// Factors have another number of bits than 4 or 8.
    #[error("factors of {found} bits: expected 4 or 8")]
    GroupBits {
        /// The number given.
        found: u8,
    },
    /// A group of factor values holds none.
    #[error("group size 0: expected at least one value per scale")]
    EmptyGroup,
    /// The group size does not fit the weight's rows.
    #[error("group size {group}: expected a power of two that divides d_input = {d_input}")]
    Group {
        /// The group size given.
        group: usize,
        /// The length of a weight row.
        d_input: usize,
    },
    /// A weight cannot be packed.
    #[error("packed weight: {0}")]
    Packed(bitnet_cpu::CpuError),
    /// The words or scales of a packed weight are none that packing gives.
    #[error("packed weight: {0}")]
    Codes(String),
    /// The device failed while a packed weight was read from it.
    #[error("device: {0}")]
    Device(String),
    /// The weight has no elements.
    #[error("a weight of shape [{d_output}, {d_input}]: expected no zero size")]
    Empty {
        /// Rows.
        d_output: usize,
        /// Columns.
        d_input: usize,
    },
}

impl QuantError {
    pub(crate) fn device(reason: impl ToString) -> Self {
        Self::Device(reason.to_string())
    }
}
