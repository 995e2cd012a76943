//! What the GGUF block types TQ1_0, TQ2_0 and Q2_0 share: `N` codes and one f16 scale `d` in `B` bytes.

use half::f16;

use crate::matrix::element_count;
use crate::{FormatError, Granularity, TernaryMatrix, WeightScale};

/// Where the scale goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleHome {
    /// Into each block's `d`, rounded to f16 (by up to 0.05 %). Holds one scale per tensor, per row, or per
    /// group of a multiple of the block.
    Block,
    /// Into a tensor of its own, exactly: `blk.N.X.scale`, f32 `[1]`. Every block gets `d` = 1. Holds one
    /// scale per tensor; the caller writes it.
    Tensor,
}

/// The number of bytes of a matrix whose rows consist of blocks.
pub(crate) fn packed_len<const N: usize, const B: usize>(
    format: &'static str,
    shape: [usize; 2],
) -> Result<usize, FormatError> {
    let elements = element_count(shape)?;
    let [_, d_input] = shape;
    if d_input % N != 0 {
        return Err(FormatError::Divisible { format, axis: "d_input", found: d_input, by: N });
    }
    Ok(elements / N * B)
}

/// Packs row by row, block by block.
pub(crate) fn pack<const N: usize, const B: usize>(
    format: &'static str,
    matrix: &TernaryMatrix,
    home: ScaleHome,
    encode: impl Fn(&[i8; N], f16) -> [u8; B],
) -> Result<Vec<u8>, FormatError> {
    let mut bytes = Vec::with_capacity(packed_len::<N, B>(format, matrix.shape())?);
    match home {
        ScaleHome::Tensor => matrix.granularity().expect_tensor(format)?,
        ScaleHome::Block => expect_blocks(format, matrix.granularity(), N)?,
    }
    let [_, d_input] = matrix.shape();
    let (blocks, _) = matrix.codes().as_chunks::<N>();
    for (i, codes) in blocks.iter().enumerate() {
        let d = match home {
            ScaleHome::Tensor => f16::ONE,
            ScaleHome::Block => block_scale(matrix, i * N / d_input, i * N % d_input, codes)?,
        };
        bytes.extend(encode(codes, d));
    }
    Ok(bytes)
}

/// Fails unless all weights of a block share a scale.
pub(crate) fn expect_blocks(
    format: &'static str,
    granularity: Granularity,
    block: usize,
) -> Result<(), FormatError> {
    match granularity {
        Granularity::Group(group) if group % block != 0 => {
            let expected = "tensor, row, or group of a multiple of the block";
            Err(FormatError::Granularity { format, found: granularity, expected })
        }
        _ => Ok(()),
    }
}

/// The scale of the block that starts at `row`, `column`, as f16.
fn block_scale(matrix: &TernaryMatrix, row: usize, column: usize, codes: &[i8]) -> Result<f16, FormatError> {
    let scale = matrix.scale_at(row, column).get();
    let d = f16::from_f32(scale);
    // Half a unit in the last place of f16, which subnormal numbers may miss.
    if (d.to_f32() - scale).abs() <= scale * 2f32.powi(-11) {
        Ok(d)
    } else if codes.iter().all(|&code| code == 0) {
        Ok(f16::ONE) // any scale is right
    } else {
        Err(FormatError::HalfScale { row, column, found: scale })
    }
}

/// Unpacks to one scale per block.
pub(crate) fn unpack<const N: usize, const B: usize>(
    format: &'static str,
    bytes: &[u8],
    shape: [usize; 2],
    decode: impl Fn(&[u8; B]) -> ([i8; N], f16),
) -> Result<TernaryMatrix, FormatError> {
    let expected = packed_len::<N, B>(format, shape)?;
    if bytes.len() != expected {
        return Err(FormatError::PackedLen { format, found: bytes.len(), expected });
    }
    let (blocks, _) = bytes.as_chunks::<B>();
    let mut codes = Vec::with_capacity(blocks.len() * N);
    let mut scales = Vec::with_capacity(blocks.len());
    for block in blocks {
        let (block_codes, d) = decode(block);
        let empty = block_codes.iter().all(|&code| code == 0);
        // llama.cpp writes d = 0 for an all-zero block, where any scale is right.
        scales.push(if empty && d == f16::ZERO { WeightScale::ONE } else { WeightScale::new(d.to_f32())? });
        codes.extend(block_codes);
    }
    TernaryMatrix::new(codes, shape, Granularity::Group(N), scales)
}

/// The laws that every block type's `pack` and `unpack` obey.
#[cfg(test)]
pub(crate) mod laws {
    use super::*;
    use crate::tests::{any_matrix, golden_trits};
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    type Pack = fn(&TernaryMatrix, ScaleHome) -> Result<Vec<u8>, FormatError>;
    type Unpack = fn(&[u8], [usize; 2]) -> Result<TernaryMatrix, FormatError>;

    /// Codes come back exactly, scales rounded to f16, for every shape and granularity that the format can
    /// hold.
    pub(crate) fn round_trip(block: usize, pack: Pack, unpack: Unpack) {
        let mut runner = TestRunner::new(Config::with_cases(200));
        runner
            .run(&any_matrix(1, block), |matrix| {
                let granularity = matrix.granularity();
                let packed = pack(&matrix, ScaleHome::Block);
                if matches!(granularity, Granularity::Group(group) if group % block != 0) {
                    let refused = matches!(packed, Err(FormatError::Granularity { .. }));
                    prop_assert!(refused);
                    return Ok(());
                }
                let back = unpack(&packed.unwrap(), matrix.shape()).unwrap();
                prop_assert_eq!(back.granularity(), Granularity::Group(block));
                prop_assert_eq!(back.codes(), matrix.codes());
                let half = |scale: &WeightScale| f16::from_f32(scale.get()).to_f32();
                let halves = matrix.scales().iter().map(|scale| WeightScale::new(half(scale)).unwrap());
                let rounded = TernaryMatrix::new(
                    matrix.codes().to_vec(),
                    matrix.shape(),
                    granularity,
                    halves.collect(),
                );
                prop_assert_eq!(back.regroup(granularity).unwrap(), rounded.unwrap());
                Ok(())
            })
            .unwrap();
    }

    /// With the scale beside the tensor, d = 1 and the scale is exact.
    pub(crate) fn scale_beside(block: usize, pack: Pack, unpack: Unpack) {
        let matrix = golden_trits([256 / block, block]);
        let matrix = TernaryMatrix::per_tensor(
            matrix.into_codes(),
            [256 / block, block],
            WeightScale::new(0.3).unwrap(),
        );
        let matrix = matrix.unwrap();
        let back = unpack(&pack(&matrix, ScaleHome::Tensor).unwrap(), matrix.shape()).unwrap();
        let back = back.regroup(Granularity::Tensor).unwrap();
        assert_eq!((back.scales(), back.codes()), (&[WeightScale::ONE][..], matrix.codes()));
        let rows = matrix.regroup(Granularity::Row).unwrap();
        assert!(matches!(pack(&rows, ScaleHome::Tensor), Err(FormatError::Granularity { .. })));
    }

    /// Scales that f16 cannot hold are refused, unless the codes do not need them.
    pub(crate) fn half_scales(block: usize, pack: Pack, unpack: Unpack) {
        let pack = |code, scale| {
            let mut codes = vec![0; 2 * block];
            codes[block + 1] = code;
            pack(
                &TernaryMatrix::per_tensor(codes, [2, block], WeightScale::new(scale).unwrap()).unwrap(),
                ScaleHome::Block,
            )
        };
        for good in [6.2e-5, 2f32.powi(-24), 0.3, 65504.0] {
            assert!(pack(1, good).is_ok(), "{good}");
        }
        for bad in [1e-5, 1e-9, 65536.0, f32::MAX] {
            assert!(
                matches!(pack(1, bad), Err(FormatError::HalfScale { row: 1, found, .. }) if found == bad)
            );
            let zeros = unpack(&pack(0, bad).unwrap(), [2, block]).unwrap();
            assert_eq!(zeros.scales(), [WeightScale::ONE; 2]);
        }
    }

    /// Bytes of another length, a ragged row and a bad d are refused; d = 0 is a zero block's.
    pub(crate) fn malformed(block: usize, d_at: usize, pack: Pack, unpack: Unpack) {
        let shape = [1, 2 * block];
        let codes = |block_code| [vec![block_code; block], vec![1; block]].concat();
        let bytes = |code| {
            pack(&TernaryMatrix::per_tensor(codes(code), shape, WeightScale::ONE).unwrap(), ScaleHome::Block)
                .unwrap()
        };
        let good = bytes(1);
        for len in 0..good.len() {
            let cut = unpack(&good[..len], shape);
            assert!(matches!(cut, Err(FormatError::PackedLen { found, .. }) if found == len));
        }
        assert!(matches!(
            unpack(&good, [1, 2 * block + 1]),
            Err(FormatError::Divisible { axis: "d_input", .. })
        ));
        assert!(matches!(unpack(&good, [0, block]), Err(FormatError::Shape { .. })));
        assert!(matches!(unpack(&good, [usize::MAX, block]), Err(FormatError::Shape { .. })));

        let with_d = |code, d: f16| {
            let mut bytes = bytes(code);
            bytes[d_at..d_at + 2].copy_from_slice(&d.to_le_bytes());
            unpack(&bytes, shape)
        };
        for bad in [f16::ZERO, f16::NAN, f16::INFINITY, f16::NEG_ONE] {
            assert!(matches!(with_d(1, bad), Err(FormatError::Scale { .. })), "{bad}");
        }
        assert_eq!(with_d(0, f16::ZERO).unwrap().scales(), [WeightScale::ONE; 2]);
    }
}
