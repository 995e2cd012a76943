//! The order of rows in query and key projections.
//!
//! RoPE turns pairs of values. In checkpoints of Hugging Face, and here, a pair stands half a head apart, in
//! llama.cpp's `llama` side by side: row `p · D/2 + j` of a head becomes row `2j + p`, p ∈ {0, 1}.

use bitnet_format::{FormatError, Granularity, TernaryMatrix};

/// Which order the rows are brought into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The halves of a head one after the other, as Hugging Face has them.
    Halves,
    /// The two rows of a pair side by side, as llama.cpp's `llama` has them.
    Pairs,
}

/// Where each row of the new order comes from.
fn sources(rows: usize, head_dim: usize, order: Order) -> impl Iterator<Item = usize> {
    let half = head_dim / 2;
    (0..rows).map(move |row| {
        let (head, i) = (row / head_dim, row % head_dim);
        head * head_dim
            + match order {
                Order::Pairs => i % 2 * half + i / 2,
                Order::Halves => i % half * 2 + i / half,
            }
    })
}

/// Rows of equal length in another order; for a bias they have one value each.
pub(super) fn reorder<T: Copy>(values: &[T], rows: usize, head_dim: usize, order: Order) -> Vec<T> {
    let width = values.len() / rows;
    let mut reordered = Vec::with_capacity(values.len());
    for row in sources(rows, head_dim, order) {
        reordered.extend_from_slice(&values[row * width..][..width]);
    }
    reordered
}

/// [`reorder`] of codes and of the scales of their rows.
///
/// # Errors
/// Those of [`TernaryMatrix::new`], which has checked the matrix before.
pub(super) fn reorder_matrix(
    matrix: TernaryMatrix,
    head_dim: usize,
    order: Order,
) -> Result<TernaryMatrix, FormatError> {
    let [rows, _] = matrix.shape();
    let scales = match matrix.granularity() {
        Granularity::Tensor => matrix.scales().to_vec(),
        Granularity::Row | Granularity::Group(_) => reorder(matrix.scales(), rows, head_dim, order),
    };
    let codes = reorder(matrix.codes(), rows, head_dim, order);
    TernaryMatrix::new(codes, matrix.shape(), matrix.granularity(), scales)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_format::WeightScale;

    #[test]
    fn pairs_stand_side_by_side() {
        // Two heads of six: new row h·D + 2j + p is old row h·D + p·D/2 + j.
        let rows: Vec<u8> = (0..12).collect();
        let pairs = reorder(&rows, 12, 6, Order::Pairs);
        assert_eq!(pairs, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert_eq!(reorder(&pairs, 12, 6, Order::Halves), rows);
    }

    #[test]
    fn rows_move_with_their_scales() {
        let scales: Vec<WeightScale> = (1..=8).map(|i| WeightScale::new(i as f32).unwrap()).collect();
        let codes: Vec<i8> = (0..32).map(|i| (i % 3) as i8 - 1).collect();
        for (granularity, n_scales) in
            [(Granularity::Tensor, 1), (Granularity::Row, 4), (Granularity::Group(4), 8)]
        {
            let scales = scales[..n_scales].to_vec();
            let matrix = TernaryMatrix::new(codes.clone(), [4, 8], granularity, scales).unwrap();
            let pairs = reorder_matrix(matrix.clone(), 4, Order::Pairs).unwrap();
            assert_eq!(pairs.dequantize(), reorder(&matrix.dequantize(), 4, 4, Order::Pairs));
            assert_eq!(reorder_matrix(pairs, 4, Order::Halves).unwrap(), matrix);
        }
    }
}
