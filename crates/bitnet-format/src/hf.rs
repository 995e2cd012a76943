//! The packing of Hugging Face `bitnet` checkpoints: `X.weight`, uint8 `[d_output / 4, d_input]`.
//!
//! With R = d_output / 4, byte `[r, c]` holds the codes of column c in the rows r, R + r, 2R + r and 3R + r,
//! as [`pack4`] does. The one scale of the tensor is stored beside it as `X.weight_scale` `[1]`; [`HfScale`]
//! says in which direction.
//!
//! Source: transformers, `integrations/bitnet.py`.
//!
//! [`HfScale`]: crate::HfScale

use crate::matrix::element_count;
use crate::{FormatError, Granularity, TernaryMatrix, WeightScale, pack4, unpack4};

pub(crate) const FORMAT: &str = "HF bitnet";

/// Output rows that share a byte.
pub const BLOCK: usize = 4;

/// Packs the codes.
///
/// # Shapes
/// - `matrix`: `[d_output, d_input]`
/// - returns `[d_output / 4, d_input]`, row-major
///
/// # Errors
/// - [`FormatError::Granularity`] if the matrix has more than one scale.
/// - [`FormatError::Divisible`] if `d_output` is not a multiple of 4.
pub fn pack(matrix: &TernaryMatrix) -> Result<Vec<u8>, FormatError> {
    check(matrix.shape(), matrix.granularity())?;
    let len = packed_len(matrix.shape())?;
    let codes = matrix.codes();
    Ok((0..len)
        .map(|at| pack4([codes[at], codes[len + at], codes[2 * len + at], codes[3 * len + at]]))
        .collect())
}

/// Whether a matrix can be packed.
///
/// # Errors
/// Those of [`pack`].
pub fn check(shape: [usize; 2], granularity: Granularity) -> Result<(), FormatError> {
    packed_len(shape)?;
    granularity.expect_tensor(FORMAT)
}

/// Unpacks the codes and joins them with their scale.
///
/// # Shapes
/// - `bytes`: `[d_output / 4, d_input]`, row-major
/// - `shape`: `[d_output, d_input]`, of the weights
///
/// # Errors
/// - [`FormatError::Shape`] if an axis is 0 or the product overflows.
/// - [`FormatError::Divisible`] if `d_output` is not a multiple of 4.
/// - [`FormatError::PackedLen`] if the number of bytes does not fit the shape.
/// - [`FormatError::Code`] if a digit is 3.
pub fn unpack(bytes: &[u8], shape: [usize; 2], scale: WeightScale) -> Result<TernaryMatrix, FormatError> {
    let expected = packed_len(shape)?;
    if bytes.len() != expected {
        return Err(FormatError::PackedLen { format: FORMAT, found: bytes.len(), expected });
    }
    let codes = (0..BLOCK).flat_map(|quarter| bytes.iter().map(move |&byte| unpack4(byte)[quarter]));
    TernaryMatrix::per_tensor(codes.collect(), shape, scale)
}

/// The number of bytes of a matrix `[d_output, d_input]`, without its scale.
///
/// # Errors
/// - [`FormatError::Shape`] if an axis is 0 or the product overflows.
/// - [`FormatError::Divisible`] if `d_output` is not a multiple of 4.
pub fn packed_len(shape: [usize; 2]) -> Result<usize, FormatError> {
    let elements = element_count(shape)?;
    let [d_output, _] = shape;
    if d_output % BLOCK != 0 {
        return Err(FormatError::Divisible { format: FORMAT, axis: "d_output", found: d_output, by: BLOCK });
    }
    Ok(elements / BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{any_matrix, golden_trits, short_sha256, with_one_scale};
    use proptest::prelude::*;

    #[test]
    fn golden_trits_give_the_golden_bytes() {
        let matrix = golden_trits([8, 32]);
        let bytes = pack(&matrix).unwrap();
        assert_eq!(bytes.len(), 64);
        assert_eq!(bytes[..4], [0x61, 0x1a, 0x49, 0x49]);
        assert_eq!(short_sha256(&bytes), "4a314f66186b8836");
        assert_eq!(unpack(&bytes, [8, 32], matrix.scales()[0]).unwrap(), matrix);
    }

    proptest! {
        #[test]
        fn unpacking_inverts_packing(matrix in any_matrix(4, 1)) {
            let matrix = with_one_scale(matrix);
            let bytes = pack(&matrix).unwrap();
            prop_assert_eq!(unpack(&bytes, matrix.shape(), matrix.scales()[0]).unwrap(), matrix);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let odd = TernaryMatrix::per_tensor(vec![0; 12], [6, 2], WeightScale::ONE).unwrap();
        assert!(matches!(
            pack(&odd),
            Err(FormatError::Divisible { format: "HF bitnet", axis: "d_output", found: 6, by: 4 })
        ));
        let rows = golden_trits([8, 32]).regroup(Granularity::Row).unwrap();
        assert!(matches!(pack(&rows), Err(FormatError::Granularity { found: Granularity::Row, .. })));

        let unpack = |bytes: &[u8], shape| unpack(bytes, shape, WeightScale::ONE);
        assert!(matches!(unpack(&[0; 3], [6, 2]), Err(FormatError::Divisible { .. })));
        assert!(matches!(unpack(&[], [4, 0]), Err(FormatError::Shape { .. })));
        assert!(matches!(unpack(&[0; 3], [4, 4]), Err(FormatError::PackedLen { found: 3, expected: 4, .. })));
        assert!(matches!(
            unpack(&[0, 0, 0, 0b11_00_00], [4, 4]),
            Err(FormatError::Code { row: 2, column: 3, found: 2 })
        ));
    }
}
