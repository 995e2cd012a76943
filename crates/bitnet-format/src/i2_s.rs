//! I2_S, the type of bitnet.cpp: two bits per weight and one f32 scale for the whole tensor.
//!
//! The data are n / 4 bytes of digits (code + 1), then a tail of 32 bytes: the f32 scale that multiplies the
//! codes, and zeros. The digits' order differs between processors and the file does not say which one it has,
//! so [`I2sLayout`] must be chosen for the machine that will run the file.
//!
//! Its type id 36 and file type 40 are bitnet.cpp's own: upstream llama.cpp refuses the one and gives the
//! other another meaning.
//!
//! Source: bitnet.cpp, `ggml-bitnet-mad.cpp`.

use std::array::from_fn;

use crate::matrix::element_count;
use crate::{FormatError, TernaryMatrix, WeightScale, pack4, unpack4};

pub(crate) const FORMAT: &str = "I2_S";

/// A row is a multiple of this many weights, in either layout.
pub const BLOCK: usize = 128;
/// `general.file_type` of a file of mostly this type, in bitnet.cpp.
pub const FILE_TYPE: u32 = 40;

/// The order of the digits, which depends on the processor that will run the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum I2sLayout {
    /// x86: 128 weights in 32 bytes. Also what bitnet.cpp's own converter writes everywhere.
    X86,
    /// ARM: 64 weights in 16 bytes.
    Arm,
}

impl I2sLayout {
    /// Bytes that the digits are spread over. Byte j of them holds the codes j, j + stride, j + 2·stride and
    /// j + 3·stride, the first in the *highest* bits.
    fn stride(self) -> usize {
        match self {
            Self::X86 => 32,
            Self::Arm => 16,
        }
    }
}

/// What follows the digits.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct I2sTail {
    /// The tensor's scale, f32 little-endian.
    pub scale: [u8; 4],
    /// Written as zeros, not read.
    pub padding: [u8; 28],
}

const _: () = assert!(size_of::<I2sTail>() == 32 && align_of::<I2sTail>() == 1);

/// Packs a matrix.
///
/// # Shapes
/// - `matrix`: `[d_output, d_input]`
/// - returns d_output · d_input / 4 + 32 bytes
///
/// # Errors
/// - [`FormatError::Divisible`] if `d_input` is not a multiple of 128.
/// - [`FormatError::Granularity`] if the matrix has more than one scale.
pub fn pack(matrix: &TernaryMatrix, layout: I2sLayout) -> Result<Vec<u8>, FormatError> {
    let len = packed_len(matrix.shape())?;
    matrix.granularity().expect_tensor(FORMAT)?;
    let stride = layout.stride();
    let mut bytes = Vec::with_capacity(len);
    for codes in matrix.codes().chunks_exact(4 * stride) {
        bytes.extend((0..stride).map(|j| pack4(from_fn(|n| codes[j + (3 - n) * stride]))));
    }
    let tail = I2sTail { scale: matrix.scale_at(0, 0).get().to_le_bytes(), padding: [0; 28] };
    bytes.extend(tail.scale);
    bytes.extend(tail.padding);
    Ok(bytes)
}

/// Unpacks a matrix `[d_output, d_input]`.
///
/// # Errors
/// - [`FormatError::Shape`] if an axis is 0 or the product overflows.
/// - [`FormatError::Divisible`] if `d_input` is not a multiple of 128.
/// - [`FormatError::PackedLen`] if the number of bytes does not fit the shape.
/// - [`FormatError::Scale`] if the scale is not finite and above zero.
/// - [`FormatError::Code`] if a digit is 3.
pub fn unpack(bytes: &[u8], shape: [usize; 2], layout: I2sLayout) -> Result<TernaryMatrix, FormatError> {
    let expected = packed_len(shape)?;
    let found = bytes.len();
    let Some((digits, tail)) =
        bytes.split_last_chunk::<{ size_of::<I2sTail>() }>().filter(|_| found == expected)
    else {
        return Err(FormatError::PackedLen { format: FORMAT, found, expected });
    };
    let scale = WeightScale::new(f32::from_le_bytes(from_fn(|i| tail[i])))?;
    let stride = layout.stride();
    let mut codes = Vec::with_capacity(4 * digits.len());
    for bytes in digits.chunks_exact(stride) {
        codes.extend((0..4).flat_map(|n| bytes.iter().map(move |&byte| unpack4(byte)[3 - n])));
    }
    TernaryMatrix::per_tensor(codes, shape, scale)
}

/// The number of bytes of a matrix `[d_output, d_input]`, with its scale.
///
/// # Errors
/// - [`FormatError::Shape`] if an axis is 0 or the product overflows.
/// - [`FormatError::Divisible`] if `d_input` is not a multiple of 128.
pub fn packed_len(shape: [usize; 2]) -> Result<usize, FormatError> {
    let elements = element_count(shape)?;
    let [_, d_input] = shape;
    if d_input % BLOCK != 0 {
        return Err(FormatError::Divisible { format: FORMAT, axis: "d_input", found: d_input, by: BLOCK });
    }
    Ok(elements / 4 + size_of::<I2sTail>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Granularity;
    use crate::tests::{any_matrix, golden_trits, hex, short_sha256, with_one_scale};
    use proptest::prelude::*;

    const LAYOUTS: [I2sLayout; 2] = [I2sLayout::X86, I2sLayout::Arm];

    #[test]
    fn golden_trits_give_the_golden_bytes() {
        let matrix = golden_trits([2, 128]);
        let [x86, arm] = LAYOUTS.map(|layout| pack(&matrix, layout).unwrap());
        assert_eq!(hex(&x86[..8]), "52896a4a1925a221");
        assert_eq!(short_sha256(&x86), "483bdf24d86857de");
        assert_eq!(short_sha256(&arm), "64010cdc8326dba5");
        assert_eq!(x86[64..], [&0.5f32.to_le_bytes()[..], &[0; 28]].concat());
    }

    proptest! {
        #[test]
        fn unpacking_inverts_packing(matrix in any_matrix(1, BLOCK)) {
            let matrix = with_one_scale(matrix);
            for layout in LAYOUTS {
                let bytes = pack(&matrix, layout).unwrap();
                prop_assert_eq!(bytes.len(), packed_len(matrix.shape()).unwrap());
                prop_assert_eq!(&unpack(&bytes, matrix.shape(), layout).unwrap(), &matrix);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let ragged = TernaryMatrix::per_tensor(vec![0; 192], [1, 192], WeightScale::ONE).unwrap();
        let one_row = golden_trits([1, 256]).regroup(Granularity::Row).unwrap();
        let rows = golden_trits([2, 128]).regroup(Granularity::Row).unwrap();
        for layout in LAYOUTS {
            assert!(matches!(
                pack(&ragged, layout),
                Err(FormatError::Divisible { format: "I2_S", axis: "d_input", found: 192, by: 128 })
            ));
            assert!(matches!(pack(&one_row, layout), Err(FormatError::Granularity { .. })));
            assert!(matches!(pack(&rows, layout), Err(FormatError::Granularity { .. })));

            let good = pack(&golden_trits([2, 128]), layout).unwrap();
            for len in 0..good.len() {
                assert!(matches!(
                    unpack(&good[..len], [2, 128], layout),
                    Err(FormatError::PackedLen { found, expected: 96, .. }) if found == len
                ));
            }
            assert!(matches!(unpack(&good, [2, 0], layout), Err(FormatError::Shape { .. })));
            let changed = |at: usize, byte| {
                let mut bytes = good.clone();
                bytes[at] = byte;
                unpack(&bytes, [2, 128], layout)
            };
            assert!(matches!(changed(67, 0xff), Err(FormatError::Scale { .. })));
            assert!(changed(95, 1).is_ok(), "the padding is not read");
        }
        let spare = |layout| {
            let mut bytes = pack(&golden_trits([2, 128]), layout).unwrap();
            bytes[1] |= 0b11; // the last digit of the byte
            unpack(&bytes, [2, 128], layout)
        };
        assert!(matches!(spare(I2sLayout::X86), Err(FormatError::Code { row: 0, column: 97, found: 2 })));
        assert!(matches!(spare(I2sLayout::Arm), Err(FormatError::Code { row: 0, column: 49, found: 2 })));
    }
}
