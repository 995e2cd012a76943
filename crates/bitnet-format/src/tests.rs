//! What the modules' tests share.

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use crate::{Granularity, TernaryMatrix, WeightScale};

/// 256 pseudo-random codes of a fixed sequence, scale 0.5.
pub(crate) fn golden_trits(shape: [usize; 2]) -> TernaryMatrix {
    let mut x = 1u32;
    let codes = std::iter::repeat_with(|| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((x >> 16) % 3) as i8 - 1
    });
    TernaryMatrix::per_tensor(codes.take(256).collect(), shape, WeightScale::new(0.5).unwrap()).unwrap()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first 16 hex digits of the sha256.
pub(crate) fn short_sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes)[..8])
}

/// Matrices `[m · rows, n · columns]` of every granularity, with some all-zero rows and scales that f16 holds
/// well.
pub(crate) fn any_matrix(rows: usize, columns: usize) -> impl Strategy<Value = TernaryMatrix> {
    let shape = (1usize..6, 1usize..5).prop_map(move |(m, n)| [m * rows, n * columns]);
    shape
        .prop_flat_map(|[d_output, d_input]| {
            let groups = (0..=d_input.trailing_zeros()).map(|exponent| Granularity::Group(1 << exponent));
            let all: Vec<_> = groups.chain([Granularity::Tensor, Granularity::Row]).collect();
            (Just([d_output, d_input]), prop::sample::select(all))
        })
        .prop_flat_map(|(shape, granularity)| {
            let codes = prop::collection::vec(-1i8..=1, shape[0] * shape[1]);
            let scales = prop::collection::vec(1e-4f32..6e4, granularity.scale_count(shape).unwrap());
            let zero_rows = prop::collection::vec(prop::bool::weighted(0.2), shape[0]);
            (Just(shape), Just(granularity), codes, scales, zero_rows)
        })
        .prop_map(|(shape, granularity, mut codes, scales, zero_rows)| {
            let rows = codes.chunks_exact_mut(shape[1]).zip(zero_rows);
            rows.filter(|(_, zero)| *zero).for_each(|(row, _)| row.fill(0));
            let scales = scales.into_iter().map(|scale| WeightScale::new(scale).unwrap()).collect();
            TernaryMatrix::new(codes, shape, granularity, scales).unwrap()
        })
}

/// The codes of any matrix with its first scale, for a format that holds only one.
pub(crate) fn with_one_scale(matrix: TernaryMatrix) -> TernaryMatrix {
    let (shape, scale) = (matrix.shape(), matrix.scales()[0]);
    TernaryMatrix::per_tensor(matrix.into_codes(), shape, scale).unwrap()
}

#[test]
fn golden_trits_are_the_specified_ones() {
    let matrix = golden_trits([1, 256]);
    assert_eq!(matrix.codes()[..8], [0, 1, 0, 0, -1, -1, 1, -1]);
    let count = |wanted| matrix.codes().iter().filter(|&&code| code == wanted).count();
    assert_eq!([-1, 0, 1].map(count), [78, 94, 84]);
    assert_eq!(matrix.sparsity(), 94.0 / 256.0);
}
