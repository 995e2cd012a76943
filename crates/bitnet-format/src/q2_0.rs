//! Q2_0: 64 weights in 18 bytes (2.25 bits each).
//!
//! Source: ggml `block_q2_0`. llama.cpp runs it on CUDA, Vulkan, Metal, SYCL and NEON, and scalar on x86.

use std::array::from_fn;

use half::f16;

use crate::{FormatError, ScaleHome, TernaryMatrix, blocks, pack4, unpack4};

pub(crate) const FORMAT: &str = "Q2_0";

/// Weights per block.
pub const BLOCK: usize = 64;
/// Bytes per block.
pub const BLOCK_BYTES: usize = 18;
/// `general.file_type` of a file of mostly this type.
pub const FILE_TYPE: u32 = 41;

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockQ2_0 {
    /// The scale, f16 little-endian.
    pub d: [u8; 2],
    /// Byte j holds the codes 4j..4j+4, as [`pack4`] does.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ2_0>() == BLOCK_BYTES && align_of::<BlockQ2_0>() == 1);

impl BlockQ2_0 {
    /// Packs codes in −1..=1 and their scale.
    pub fn encode(codes: &[i8; BLOCK], d: f16) -> Self {
        Self { d: d.to_le_bytes(), qs: from_fn(|j| pack4(from_fn(|n| codes[4 * j + n]))) }
    }

    /// The codes and their scale. The digit 3, which the format has and ternary weights do not, reads as code
    /// 2.
    pub fn decode(&self) -> ([i8; BLOCK], f16) {
        let quads = self.qs.map(unpack4);
        (from_fn(|i| quads[i / 4][i % 4]), f16::from_le_bytes(self.d))
    }

    /// The block in `bytes`.
    pub fn from_bytes(bytes: &[u8; BLOCK_BYTES]) -> Self {
        Self { d: from_fn(|i| bytes[i]), qs: from_fn(|i| bytes[2 + i]) }
    }

    /// The block's bytes.
    pub fn to_bytes(self) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        bytes[..2].copy_from_slice(&self.d);
        bytes[2..].copy_from_slice(&self.qs);
        bytes
    }
}

/// Packs a matrix.
///
/// # Shapes
/// - `matrix`: `[d_output, d_input]`
/// - returns `[d_output, d_input / 64]` blocks of 18 bytes, row-major
///
/// # Errors
/// - [`FormatError::Divisible`] if `d_input` is not a multiple of 64.
/// - [`FormatError::Granularity`] if `home` cannot hold the matrix's scales.
/// - [`FormatError::HalfScale`] if a scale goes into the blocks and f16 cannot hold it.
pub fn pack(matrix: &TernaryMatrix, home: ScaleHome) -> Result<Vec<u8>, FormatError> {
    blocks::pack(FORMAT, matrix, home, |codes, d| BlockQ2_0::encode(codes, d).to_bytes())
}

/// Unpacks a matrix `[d_output, d_input]` with one scale per block, which [`TernaryMatrix::regroup`] joins.
///
/// # Errors
/// - [`FormatError::Shape`] if an axis is 0 or the product overflows.
/// - [`FormatError::Divisible`] if `d_input` is not a multiple of 64.
/// - [`FormatError::PackedLen`] if the number of bytes does not fit the shape.
/// - [`FormatError::Scale`] if a `d` is not finite and above zero; 0 is allowed in an all-zero block.
/// - [`FormatError::Code`] if a digit is 3.
pub fn unpack(bytes: &[u8], shape: [usize; 2]) -> Result<TernaryMatrix, FormatError> {
    blocks::unpack(FORMAT, bytes, shape, |block| BlockQ2_0::from_bytes(block).decode())
}

/// The number of bytes of a matrix `[d_output, d_input]`.
///
/// # Errors
/// - [`FormatError::Shape`] if an axis is 0 or the product overflows.
/// - [`FormatError::Divisible`] if `d_input` is not a multiple of 64.
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
        let bytes = pack(&golden_trits([4, 64]), ScaleHome::Block).unwrap();
        assert_eq!(hex(&bytes[..8]), "003859208482a904");
        assert_eq!(short_sha256(&bytes), "b7056f3b1f94d88b");
    }

    #[test]
    fn blocks_obey_the_laws() {
        laws::round_trip(BLOCK, pack, unpack);
        laws::scale_beside(BLOCK, pack, unpack);
        laws::half_scales(BLOCK, pack, unpack);
        laws::malformed(BLOCK, 0, pack, unpack);
    }

    #[test]
    fn the_spare_digit_is_refused() {
        let mut bytes = pack(&golden_trits([4, 64]), ScaleHome::Block).unwrap();
        bytes[18 + 2 + 3] |= 0b1100; // second block, codes 12..16
        assert!(matches!(unpack(&bytes, [4, 64]), Err(FormatError::Code { row: 1, column: 13, found: 2 })));
    }
}
