/// What is wrong with the slices or numbers handed to this crate.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// A slice does not have the length that the shapes imply.
    #[error("`{name}` has {found} elements, expected {expected}")]
    Length {
        /// The argument.
        name: &'static str,
        /// Its length.
        found: usize,
        /// The length that the shapes imply.
        expected: usize,
    },
    /// A weight needs at least one row and between 1 and [`MAX_D_INPUT`](crate::MAX_D_INPUT) inputs.
    #[error(
        "weight shape [{d_output}, {d_input}], expected at least one row and 1 to {} inputs",
        crate::MAX_D_INPUT
    )]
    Shape {
        /// Rows of the weight.
        d_output: usize,
        /// Columns of the weight.
        d_input: usize,
    },
    /// A group size that is not a power of two dividing `d_input`.
    #[error("group size {group}, expected a power of two that divides d_input = {d_input}")]
    Group {
        /// The group size asked for.
        group: usize,
        /// Columns of the weight.
        d_input: usize,
    },
    /// A weight code outside −1..=1.
    #[error("code {found} at row {row}, input {input}, expected -1, 0 or 1")]
    Code {
        /// Row of the code.
        row: usize,
        /// Column of the code.
        input: usize,
        /// The code.
        found: i8,
    },
    /// A packed weight that is not the right factor which a product asks for.
    #[error("packed weight {found:?}, expected {expected:?} for the product")]
    Factor {
        /// `[d_output, d_input]`
        found: [usize; 2],
        /// `[k, n]`
        expected: [usize; 2],
    },
    /// Heads that attention cannot be computed with.
    #[error(
        "{n_heads} query heads and {n_kv_heads} key heads of {head_dim} numbers, expected at least one key head, a multiple \
         of them as query heads, and an even number of numbers"
    )]
    Heads {
        /// Query heads.
        n_heads: usize,
        /// Key heads.
        n_kv_heads: usize,
        /// Numbers of a head.
        head_dim: usize,
    },
    /// A bit width that activations cannot have.
    #[error("activations of {found} bits, expected 2 to 8")]
    Bits {
        /// The bit width asked for.
        found: u32,
    },
}

/// Checks that `name` has `expected` elements.
pub(crate) fn check_length(name: &'static str, found: usize, expected: usize) -> Result<(), CpuError> {
    if found == expected { Ok(()) } else { Err(CpuError::Length { name, found, expected }) }
}
