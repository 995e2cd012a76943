//! TQ1_0: 256 weights in 54 bytes (1.69 bits each), five base-3 digits to a byte.
//!
//! A digit is code + 1. A byte holds the number v of five digits, the most significant first, as
//! ceil(v · 256 / 243): the fraction v / 243 in 8 bits. Multiplying by 3 then moves the next digit above the
//! byte.
//!
//! Source: ggml `block_tq1_0`. llama.cpp runs it on CPU and Vulkan.

use std::array::from_fn;

use half::f16;

use crate::{FormatError, ScaleHome, TernaryMatrix, blocks};

pub(crate) const FORMAT: &str = "TQ1_0";

/// Weights per block.
pub const BLOCK: usize = 256;
/// Bytes per block.
pub const BLOCK_BYTES: usize = 54;
/// `general.file_type` of a file of mostly this type.
pub const FILE_TYPE: u32 = 36;

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockTq1_0 {
    /// m < 32: the codes m + 32n; then m < 16: the codes 160 + m + 16n; n < 5.
    pub qs: [u8; 48],
    /// j < 4: the codes 240 + j + 4n, n < 4, and a zero digit.
    pub qh: [u8; 4],
    /// The scale, f16 little-endian.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<BlockTq1_0>() == BLOCK_BYTES && align_of::<BlockTq1_0>() == 1);

impl BlockTq1_0 {
    /// Packs codes in −1..=1 and their scale.
    pub fn encode(codes: &[i8; BLOCK], d: f16) -> Self {
        let qs = |m| match m {
            0..32 => pack5(from_fn(|n| codes[m + 32 * n])),
            _ => pack5(from_fn(|n| codes[160 + (m - 32) + 16 * n])),
        };
        let qh = |j| pack5([codes[240 + j], codes[244 + j], codes[248 + j], codes[252 + j], -1]);
        Self { qs: from_fn(qs), qh: from_fn(qh), d: d.to_le_bytes() }
    }

    /// The codes, always in −1..=1, and their scale.
    pub fn decode(&self) -> ([i8; BLOCK], f16) {
        let mut codes = [0; BLOCK];
        let (first, second) = self.qs.split_at(32);
        for (start, bytes) in [(0, first), (160, second), (240, &self.qh[..])] {
            for (m, &byte) in bytes.iter().enumerate() {
                let places = (start + m..BLOCK).step_by(bytes.len());
                places.zip(unpack5(byte)).for_each(|(place, code)| codes[place] = code);
            }
        }
        (codes, f16::from_le_bytes(self.d))
    }

    /// The block in `bytes`.
    pub fn from_bytes(bytes: &[u8; BLOCK_BYTES]) -> Self {
        Self { qs: from_fn(|i| bytes[i]), qh: from_fn(|i| bytes[48 + i]), d: from_fn(|i| bytes[52 + i]) }
    }

    /// The block's bytes.
    pub fn to_bytes(self) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        bytes[..48].copy_from_slice(&self.qs);
        bytes[48..52].copy_from_slice(&self.qh);
        bytes[52..].copy_from_slice(&self.d);
        bytes
    }
}

/// Five codes in −1..=1 as ceil(v · 256 / 243), where v has the base-3 digits code + 1, the first most
/// significant.
pub fn pack5(codes: [i8; 5]) -> u8 {
    let v = codes.iter().fold(0, |v, &code| 3 * v + u32::from(code.wrapping_add(1) as u8));
    (v * 256).div_ceil(243) as u8
}

/// The inverse of [`pack5`]. Any byte gives codes in −1..=1.
pub fn unpack5(byte: u8) -> [i8; 5] {
    let mut fraction = byte;
    from_fn(|_| {
        let next = u16::from(fraction) * 3;
        fraction = next as u8;
        (next >> 8) as i8 - 1
    })
}

/// Packs a matrix.
///
/// # Shapes
/// - `matrix`: `[d_output, d_input]`
/// - returns `[d_output, d_input / 256]` blocks of 54 bytes, row-major
///
/// # Errors
/// - [`FormatError::Divisible`] if `d_input` is not a multiple of 256.
/// - [`FormatError::Granularity`] if `home` cannot hold the matrix's scales.
/// - [`FormatError::HalfScale`] if a scale goes into the blocks and f16 cannot hold it.
pub fn pack(matrix: &TernaryMatrix, home: ScaleHome) -> Result<Vec<u8>, FormatError> {
    blocks::pack(FORMAT, matrix, home, |codes, d| BlockTq1_0::encode(codes, d).to_bytes())
}

/// Unpacks a matrix `[d_output, d_input]` with one scale per block, which [`TernaryMatrix::regroup`] joins.
///
/// # Errors
/// - [`FormatError::Shape`] if an axis is 0 or the product overflows.
/// - [`FormatError::Divisible`] if `d_input` is not a multiple of 256.
/// - [`FormatError::PackedLen`] if the number of bytes does not fit the shape.
/// - [`FormatError::Scale`] if a `d` is not finite and above zero; 0 is allowed in an all-zero block.
pub fn unpack(bytes: &[u8], shape: [usize; 2]) -> Result<TernaryMatrix, FormatError> {
    blocks::unpack(FORMAT, bytes, shape, |block| BlockTq1_0::from_bytes(block).decode())
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
        assert_eq!(hex(&bytes[..8]), "7bc2a86f3547ec3f");
        assert_eq!(short_sha256(&bytes), "440937510d2d9266");
    }

    #[test]
    fn every_group_of_five_and_every_byte_decodes() {
        pack5([i8::MIN; 5]); // other codes give some byte
        let mut seen = std::collections::HashSet::new();
        for v in 0..243u16 {
            let codes: [i8; 5] = from_fn(|n| (v / 3u16.pow(4 - n as u32) % 3) as i8 - 1);
            let byte = pack5(codes);
            assert!(seen.insert(byte));
            assert_eq!(unpack5(byte), codes);
        }
        for byte in 0..=255u8 {
            // The formula as the format states it: digit n is (((b·3ⁿ) mod 256)·3) >> 8.
            let stated = from_fn(|n| ((u32::from(byte) * 3u32.pow(n as u32) % 256 * 3) >> 8) as i8 - 1);
            assert_eq!(unpack5(byte), stated);
            assert!(stated.iter().all(|code| (-1..=1).contains(code)));
        }
    }

    #[test]
    fn blocks_obey_the_laws() {
        laws::round_trip(BLOCK, pack, unpack);
        laws::scale_beside(BLOCK, pack, unpack);
        laws::half_scales(BLOCK, pack, unpack);
        laws::malformed(BLOCK, 52, pack, unpack);
    }
}
