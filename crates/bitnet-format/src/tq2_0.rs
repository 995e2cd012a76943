//! TQ2_0: 256 weights in 66 bytes (2.06 bits each).
//!
//! Source: ggml `block_tq2_0`. llama.cpp runs it on CPU, Vulkan and Metal.

use std::array::from_fn;

use half::f16;

use crate::{FormatError, ScaleHome, TernaryMatrix, blocks, pack4, unpack4};

pub(crate) const FORMAT: &str = "TQ2_0";

/// Weights per block.
pub const BLOCK: usize = 256;
/// Bytes per block.
pub const BLOCK_BYTES: usize = 66;
/// `general.file_type` of a file of mostly this type.
pub const FILE_TYPE: u32 = 37;

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockTq2_0 {
    /// Byte 32h + m (h < 2, m < 32) holds the codes 128h + m + 32n, n < 4, as [`pack4`] does.
    pub qs: [u8; 64],
    /// The scale, f16 little-endian.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<BlockTq2_0>() == BLOCK_BYTES && align_of::<BlockTq2_0>() == 1);

impl BlockTq2_0 {
    /// Packs codes in −1..=1 and their scale.
    pub fn encode(codes: &[i8; BLOCK], d: f16) -> Self {
        let first = |i: usize| i / 32 * 128 + i % 32;
        Self { qs: from_fn(|i| pack4(from_fn(|n| codes[first(i) + 32 * n]))), d: d.to_le_bytes() }
    }

    /// The codes and their scale. A spare digit 3 reads as code 2.
    pub fn decode(&self) -> ([i8; BLOCK], f16) {
        let mut codes = [0; BLOCK];
        for (i, &byte) in self.qs.iter().enumerate() {
            let places = (i / 32 * 128 + i % 32..).step_by(32);
            places.zip(unpack4(byte)).for_each(|(place, code)| codes[place] = code);
        }
        (codes, f16::from_le_bytes(self.d))
    }

    /// The block in `bytes`.
    pub fn from_bytes(bytes: &[u8; BLOCK_BYTES]) -> Self {
        Self { qs: from_fn(|i| bytes[i]), d: from_fn(|i| bytes[64 + i]) }
    }

    /// The block's bytes.
    pub fn to_bytes(self) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        bytes[..64].copy_from_slice(&self.qs);
        bytes[64..].copy_from_slice(&self.d);
        bytes
    }
}

/// Packs a matrix.
///
/// # Shapes
/// - `matrix`: `[d_output, d_input]`
/// - returns `[d_output, d_input / 256]` blocks of 66 bytes, row-major
///
/// # Errors
/// - [`FormatError::Divisible`] if `d_input` is not a multiple of 256.
/// - [`FormatError::Granularity`] if `home` cannot hold the matrix's scales.
/// - [`FormatError::HalfScale`] if a scale goes into the blocks and f16 cannot hold it.
pub fn pack(matrix: &TernaryMatrix, home: ScaleHome) -> Result<Vec<u8>, FormatError> {
    blocks::pack(FORMAT, matrix, home, |codes, d| BlockTq2_0::encode(codes, d).to_bytes())
}

/// Unpacks a matrix `[d_output, d_input]` with one scale per block, which [`TernaryMatrix::regroup`] joins.
///
/// # Errors
/// - [`FormatError::Shape`] if an axis is 0 or the product overflows.
/// - [`FormatError::Divisible`] if `d_input` is not a multiple of 256.
/// - [`FormatError::PackedLen`] if the number of bytes does not fit the shape.
/// - [`FormatError::Scale`] if a `d` is not finite and above zero; 0 is allowed in an all-zero block.
/// - [`FormatError::Code`] if a digit is 3.
pub fn unpack(bytes: &[u8], shape: [usize; 2]) -> Result<TernaryMatrix, FormatError> {
    blocks::unpack(FORMAT, bytes, shape, |block| BlockTq2_0::from_bytes(block).decode())
}

/// The number of bytes of a matrix `[d_output, d_input]`.
///
/// # Errors
/// - [`FormatError::Shape`] if an axis is 0 or the product overflows.
/// - [`FormatError::Divisible`] if `d_input` is not a multiple of 256.
pub fn packed_len(shape: [usize; 2]) -> Result<usize, FormatError> {
    blocks::packed_len::<BLOCK, BLOCK_BYTES>(FORMAT, shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::laws;
    use crate::tests::{golden_trits, hex, short_sha256};

    #[test]
    fn golden_trits_give_the_golden_bytes() {
        let bytes = pack(&golden_trits([1, 256]), ScaleHome::Block).unwrap();
        assert_eq!(hex(&bytes[..8]), "8562a9a164588a48");
        assert_eq!(short_sha256(&bytes), "d322fa7fdaefd579");
    }

    #[test]
    fn blocks_obey_the_laws() {
        laws::round_trip(BLOCK, pack, unpack);
        laws::scale_beside(BLOCK, pack, unpack);
        laws::half_scales(BLOCK, pack, unpack);
        laws::malformed(BLOCK, 64, pack, unpack);
    }

    #[test]
    fn the_spare_digit_is_refused() {
        let mut bytes = pack(&golden_trits([1, 256]), ScaleHome::Block).unwrap();
        bytes[33] |= 0b1100; // codes 128 + 1 + 32
        assert!(matches!(unpack(&bytes, [1, 256]), Err(FormatError::Code { row: 0, column: 161, found: 2 })));
    }
}
