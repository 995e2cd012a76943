//! Ternary weights in memory at two bits each, with scales of any granularity.

use crate::{FormatError, Granularity, TernaryMatrix, WeightScale, pack4, unpack4};

/// Ternary weights, four to a byte: the crate's own packed form, which holds every shape and granularity.
///
/// Byte `[r, m]` of `[d_output, ceil(d_input / 4)]` holds the codes 4m..4m+4 of row r as [`pack4`] does; a
/// ragged row is filled up with zero codes.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedTernary {
    bytes: Vec<u8>,
    shape: [usize; 2],
    granularity: Granularity,
    scales: Vec<WeightScale>,
}

impl PackedTernary {
    /// Packs the codes and keeps the scales.
    pub fn pack(matrix: &TernaryMatrix) -> Self {
        let [_, d_input] = matrix.shape();
        let rows = matrix.codes().chunks_exact(d_input);
        let bytes = rows.flat_map(|row| row.chunks(4).map(pack_up_to_4)).collect();
        Self {
            bytes,
            shape: matrix.shape(),
            granularity: matrix.granularity(),
            scales: matrix.scales().to_vec(),
        }
    }

    /// Checks and takes packed bytes, for example from a file.
    ///
    /// # Shapes
    /// - `bytes`: `[d_output, ceil(d_input / 4)]`, row-major
    /// - `shape`: `[d_output, d_input]`, of the weights
    /// - `scales`: `[1]`, `[d_output]` or `[d_output, d_input / group]`, as `granularity` says
    ///
    /// # Errors
    /// - [`FormatError::PackedLen`] if the number of bytes does not fit the shape.
    /// - As [`TernaryMatrix::new`].
    pub fn from_bytes(
        bytes: Vec<u8>,
        shape: [usize; 2],
        granularity: Granularity,
        scales: Vec<WeightScale>,
    ) -> Result<Self, FormatError> {
        let expected = packed_len(shape)?;
        if bytes.len() != expected {
            return Err(FormatError::PackedLen { format: "two-bit", found: bytes.len(), expected });
        }
        let packed = Self { bytes, shape, granularity, scales };
        packed.unpack()?;
        Ok(packed)
    }

    /// The codes and scales.
    ///
    /// # Errors
    /// None for packed weights that exist: the checks of [`TernaryMatrix::new`] have passed before.
    pub fn unpack(&self) -> Result<TernaryMatrix, FormatError> {
        let [_, d_input] = self.shape;
        let rows = self.bytes.chunks_exact(d_input.div_ceil(4));
        let codes = rows.flat_map(|row| row.iter().flat_map(|&byte| unpack4(byte)).take(d_input)).collect();
        TernaryMatrix::new(codes, self.shape, self.granularity, self.scales.clone())
    }

    /// The packed codes `[d_output, ceil(d_input / 4)]`, row-major.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// `[d_output, d_input]`, of the weights.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// What one scale covers.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// The scales: `[1]`, `[d_output]` or `[d_output, d_input / group]`.
    pub fn scales(&self) -> &[WeightScale] {
        &self.scales
    }
}

/// Packs up to four codes, the missing ones as zero.
fn pack_up_to_4(codes: &[i8]) -> u8 {
    let mut four = [0; 4];
    four[..codes.len()].copy_from_slice(codes);
    pack4(four)
}

/// The number of bytes of a matrix `[d_output, d_input]`, without scales.
///
/// # Errors
/// [`FormatError::Shape`] if an axis is 0 or the product overflows.
pub fn packed_len(shape: [usize; 2]) -> Result<usize, FormatError> {
    crate::matrix::element_count(shape)?;
    let [d_output, d_input] = shape;
    Ok(d_output * d_input.div_ceil(4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{any_matrix, golden_trits};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn unpacking_inverts_packing(matrix in any_matrix(1, 1)) {
            let packed = PackedTernary::pack(&matrix);
            prop_assert_eq!(packed.bytes().len(), packed_len(matrix.shape()).unwrap());
            prop_assert_eq!(&packed.unpack().unwrap(), &matrix);
            let again = PackedTernary::from_bytes(
                packed.bytes().to_vec(), packed.shape(), packed.granularity(), packed.scales().to_vec());
            prop_assert_eq!(again.unwrap(), packed);
        }
    }

    #[test]
    fn rows_are_padded_with_zero_codes() {
        let matrix = TernaryMatrix::per_tensor(vec![1, 1, 1, 1, -1, 0, 0, 0, 0, 1], [2, 5], WeightScale::ONE);
        assert_eq!(
            PackedTernary::pack(&matrix.unwrap()).bytes(),
            [0b10_10_10_10, 0b01_01_01_00, 0x55, 0b01_01_01_10]
        );
    }

    #[test]
    fn bytes_that_do_not_fit_are_refused() {
        let bytes = PackedTernary::pack(&golden_trits([8, 32])).bytes().to_vec();
        let from = |bytes: &[u8], shape, count| {
            PackedTernary::from_bytes(
                bytes.to_vec(),
                shape,
                Granularity::Tensor,
                vec![WeightScale::ONE; count],
            )
        };
        assert!(matches!(
            from(&bytes[1..], [8, 32], 1),
            Err(FormatError::PackedLen { format: "two-bit", found: 63, expected: 64 })
        ));
        assert!(matches!(from(&bytes, [8, 0], 1), Err(FormatError::Shape { .. })));
        assert!(matches!(from(&bytes, [8, 32], 2), Err(FormatError::ScaleCount { .. })));
        let mut spare = bytes.clone();
        spare[9] |= 0b1100;
        assert!(matches!(from(&spare, [8, 32], 1), Err(FormatError::Code { row: 1, column: 5, found: 2 })));
    }
}
