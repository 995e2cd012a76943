//! Every `unpack` on any bytes: no panic, and what it read packs to bytes that unpack to the same.
//!
//! The first three bytes choose format, rows and columns; the rest are the packed bytes.
#![no_main]

use bitnet_format::{
    FormatError, Granularity, I2sLayout, PackedTernary, ScaleHome, TernaryMatrix, WeightScale, hf, i2_s,
    q2_0, tq1_0, tq2_0, two_bit,
};
use libfuzzer_sys::fuzz_target;

type Pack = fn(&TernaryMatrix) -> Result<Vec<u8>, FormatError>;
type Unpack = fn(&[u8], [usize; 2]) -> Result<TernaryMatrix, FormatError>;
type PackedLen = fn([usize; 2]) -> Result<usize, FormatError>;

/// Smallest shape, length of a shape, and both directions of each format.
const FORMATS: [([usize; 2], PackedLen, Pack, Unpack); 7] = [
    ([4, 1], hf::packed_len, hf::pack, |bytes, shape| hf::unpack(bytes, shape, WeightScale::ONE)),
    ([1, 256], tq1_0::packed_len, |matrix| tq1_0::pack(matrix, ScaleHome::Block), tq1_0::unpack),
    ([1, 256], tq2_0::packed_len, |matrix| tq2_0::pack(matrix, ScaleHome::Block), tq2_0::unpack),
    ([1, 64], q2_0::packed_len, |matrix| q2_0::pack(matrix, ScaleHome::Block), q2_0::unpack),
    (
        [1, 128],
        i2_s::packed_len,
        |matrix| i2_s::pack(matrix, I2sLayout::X86),
        |bytes, shape| i2_s::unpack(bytes, shape, I2sLayout::X86),
    ),
    (
        [1, 128],
        i2_s::packed_len,
        |matrix| i2_s::pack(matrix, I2sLayout::Arm),
        |bytes, shape| i2_s::unpack(bytes, shape, I2sLayout::Arm),
    ),
    (
        [1, 1],
        two_bit::packed_len,
        |matrix| Ok(PackedTernary::pack(matrix).bytes().to_vec()),
        |bytes, shape| {
            PackedTernary::from_bytes(bytes.to_vec(), shape, Granularity::Tensor, vec![WeightScale::ONE])?
                .unpack()
        },
    ),
];

fuzz_target!(|bytes: &[u8]| {
    let [format, rows, columns, bytes @ ..] = bytes else { return };
    let ([rows_by, columns_by], packed_len, pack, unpack) = FORMATS[usize::from(*format) % FORMATS.len()];

    // Any shape, which rarely fits.
    let any = [usize::from(*rows), usize::from(*columns) * columns_by / 4];
    let read = unpack(bytes, any);
    assert!(read.is_err() || packed_len(any).is_ok_and(|len| len == bytes.len()));

    // A small shape that the format can hold, with as many of the bytes as it takes.
    let shape = [(usize::from(*rows) % 4 + 1) * rows_by, (usize::from(*columns) % 4 + 1) * columns_by];
    let len = packed_len(shape).expect("the shape is a multiple of the smallest");
    let mut bytes = bytes.to_vec();
    bytes.resize(len, 0);
    let Ok(matrix) = unpack(&bytes, shape) else { return };
    assert_eq!((matrix.shape(), matrix.dequantize().len()), (shape, shape[0] * shape[1]));
    let packed = pack(&matrix).expect("what was read can be written");
    let again = unpack(&packed, shape).expect("what was written can be read");
    assert_eq!(again, matrix);
    assert_eq!(pack(&again).expect("it could be written before"), packed);
});
