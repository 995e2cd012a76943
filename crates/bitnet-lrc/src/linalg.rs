//! Decompositions in f64, through faer.

use faer::diag::DiagRef;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{Accum, Mat, MatRef, Side, get_global_parallelism};
use rand::rngs::ChaCha12Rng;
use rand::{Rng, SeedableRng};

use crate::Svd;

/// Below this size, the exact decomposition takes no time worth saving.
const LARGE: usize = 512;

/// The leading singular triplets of a matrix: `a ≈ u · diag(s) · vᵀ`.
pub(crate) struct TruncatedSvd {
    /// `[rows, rank]`
    pub(crate) u: Mat<f64>,
    /// Descending.
    pub(crate) s: Vec<f64>,
    /// `[columns, rank]`
    pub(crate) v: Mat<f64>,
}

impl TruncatedSvd {
    /// `U √S` and `V √S`.
    pub(crate) fn balanced(&self) -> (Mat<f64>, Mat<f64>) {
        let roots: Vec<f64> = self.s.iter().map(|s| s.sqrt()).collect();
        let roots = DiagRef::from_slice(&roots);
        (&self.u * roots, &self.v * roots)
    }
}

/// The best approximation of a rank; `None` where the iteration does not converge.
pub(crate) fn truncated_svd(a: MatRef<f64>, rank: usize, svd: Svd) -> Option<TruncatedSvd> {
    let smaller = a.nrows().min(a.ncols());
    let randomized = match svd {
        Svd::Exact => false,
        Svd::Randomized => true,
        Svd::Auto => smaller >= LARGE && rank * 4 <= smaller,
    };
    match randomized {
        false => exact(a, rank),
        // The random projection is cheaper from the shorter side.
        true if a.nrows() > a.ncols() => {
            let TruncatedSvd { u, s, v } = randomized_svd(a.transpose(), rank)?;
            Some(TruncatedSvd { u: v, s, v: u })
        }
        true => randomized_svd(a, rank),
    }
}

fn exact(a: MatRef<f64>, rank: usize) -> Option<TruncatedSvd> {
    let svd = a.thin_svd().ok()?;
    Some(TruncatedSvd {
        u: svd.U().subcols(0, rank).to_owned(),
        s: (0..rank).map(|i| svd.S()[i]).collect(),
        v: svd.V().subcols(0, rank).to_owned(),
    })
}

/// Projects onto the range of `a · aᵀ · a · Ω` for a random Ω of a few more columns than the rank, and decomposes what is
/// left exactly.
///
/// # Source
/// Halko, Martinsson, Tropp 2011 (arXiv 0909.4061), algorithms 4.4 and 5.1, with one power iteration.
fn randomized_svd(a: MatRef<f64>, rank: usize) -> Option<TruncatedSvd> {
    let (rows, columns) = a.shape();
    let sketch = (rank + rank / 10 + 10).min(rows).min(columns);
    let mut random = ChaCha12Rng::seed_from_u64(0);
    let omega = Mat::from_fn(columns, sketch, |_, _| if random.next_u32() & 1 == 0 { 1.0 } else { -1.0 });
    let range = orthonormal(a * orthonormal(a.transpose() * (a * omega)));
    let projected = a.transpose() * &range; // [columns, sketch]
    let qr = projected.qr();
    let small = qr.thin_R().thin_svd().ok()?;
    Some(TruncatedSvd {
        u: range * small.V().subcols(0, rank),
        s: (0..rank).map(|i| small.S()[i]).collect(),
        v: qr.compute_thin_Q() * small.U().subcols(0, rank),
    })
}

fn orthonormal(a: Mat<f64>) -> Mat<f64> {
    a.qr().compute_thin_Q()
}

/// The Cholesky factor `L` of a positive definite matrix, of which the lower half is read; `None` if it is not one.
pub(crate) fn cholesky(a: MatRef<f64>) -> Option<Mat<f64>> {
    Some(a.llt(Side::Lower).ok()?.L().to_owned())
}

/// `L⁻¹ · b`
pub(crate) fn solve_lower(l: MatRef<f64>, mut b: Mat<f64>) -> Mat<f64> {
    solve_lower_triangular_in_place(l, b.as_mut(), get_global_parallelism());
    b
}

/// `L⁻ᵀ · b`
pub(crate) fn solve_transposed(l: MatRef<f64>, mut b: Mat<f64>) -> Mat<f64> {
    solve_upper_triangular_in_place(l.transpose(), b.as_mut(), get_global_parallelism());
    b
}

/// `sum += a · aᵀ`, the lower half only.
pub(crate) fn add_gram(sum: &mut Mat<f64>, a: MatRef<f64>) {
    triangular::matmul(
        sum,
        BlockStructure::TriangularLower,
        Accum::Add,
        a,
        BlockStructure::Rectangular,
        a.transpose(),
        BlockStructure::Rectangular,
        1.0,
        get_global_parallelism(),
    );
}

/// Copies the lower half of a square matrix to its upper half.
pub(crate) fn mirror(a: &mut Mat<f64>) {
    for column in 1..a.ncols() {
        for row in 0..column {
            a[(row, column)] = a[(column, row)];
        }
    }
}

/// `Σ aᵢⱼ bᵢⱼ`
pub(crate) fn dot(a: MatRef<f64>, b: MatRef<f64>) -> f64 {
    let column = |j: usize| a.col(j).iter().zip(b.col(j).iter()).map(|(a, b)| a * b).sum::<f64>();
    (0..a.ncols()).map(column).sum()
}

/// Values of a distribution that is nearly normal, from a seed.
#[cfg(test)]
pub(crate) fn noise(rows: usize, columns: usize, seed: u64) -> Mat<f64> {
    let mut random = ChaCha12Rng::seed_from_u64(seed);
    let mut uniform = move || f64::from(random.next_u32()) / f64::from(u32::MAX) - 0.5;
    Mat::from_fn(rows, columns, |_, _| (0..4).map(|_| uniform()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix with the given singular values.
    fn with_spectrum(rows: usize, columns: usize, value: impl Fn(usize) -> f64) -> Mat<f64> {
        let n = rows.min(columns);
        let values: Vec<f64> = (0..n).map(value).collect();
        let (u, v) = (orthonormal(noise(rows, n, 1)), orthonormal(noise(columns, n, 2)));
        u * DiagRef::from_slice(&values) * v.transpose()
    }

    fn error(a: &Mat<f64>, svd: &TruncatedSvd) -> f64 {
        let (u, v) = svd.balanced();
        (a - u * v.transpose()).norm_l2()
    }

    #[test]
    fn the_exact_one_leaves_the_other_singular_values() {
        for (rows, columns) in [(30, 20), (20, 30)] {
            let a = with_spectrum(rows, columns, |i| 1.0 / (1 + i) as f64);
            for rank in [1, 5, 20] {
                let svd = truncated_svd(a.as_ref(), rank, Svd::Exact).unwrap();
                assert!((svd.s[rank - 1] - 1.0 / rank as f64).abs() < 1e-12);
                let rest: f64 = (rank..20).map(|i| (1.0 / (1 + i) as f64).powi(2)).sum();
                assert!((error(&a, &svd) - rest.sqrt()).abs() < 1e-12, "rank {rank}");
            }
        }
    }

    #[test]
    fn the_randomized_one_is_within_a_tenth_of_the_exact_one() {
        type Spectrum = fn(usize) -> f64;
        let spectra: [(&str, Spectrum); 4] = [
            ("flat", |_| 1.0),
            ("slow decay", |i| ((1 + i) as f64).powf(-0.5)),
            ("fast decay", |i| 0.9_f64.powi(i as i32)),
            ("a step", |i| if i < 12 { 1.0 } else { 0.05 }),
        ];
        for (rows, columns) in [(120, 200), (200, 120)] {
            for (name, spectrum) in spectra {
                let a = with_spectrum(rows, columns, spectrum);
                for rank in [1, 12, 36] {
                    let exact = error(&a, &truncated_svd(a.as_ref(), rank, Svd::Exact).unwrap());
                    let randomized = error(&a, &truncated_svd(a.as_ref(), rank, Svd::Randomized).unwrap());
                    let ratio = randomized / exact;
                    assert!((1.0 - 1e-9..1.1).contains(&ratio), "{name}, rank {rank}: {ratio}");
                }
            }
        }
    }

    #[test]
    fn the_randomized_one_at_full_rank_is_exact() {
        let a = noise(7, 11, 3);
        let svd = truncated_svd(a.as_ref(), 7, Svd::Randomized).unwrap();
        assert!(error(&a, &svd) < 1e-12);
    }

    /// What docs/benchmarks.md says: `cargo test -p bitnet-lrc -- --ignored --nocapture`, while nothing else runs.
    #[test]
    #[ignore = "a measurement"]
    fn the_randomized_one_is_ten_times_faster() {
        let a = noise(2048, 2048, 6);
        let timed = |svd| {
            let start = std::time::Instant::now();
            let svd = truncated_svd(a.as_ref(), 204, svd).unwrap();
            (start.elapsed().as_secs_f64(), error(&a, &svd))
        };
        let runs: Vec<_> = (0..3).map(|_| (timed(Svd::Randomized), timed(Svd::Exact))).collect();
        for ((fast, near), (slow, exact)) in &runs {
            println!("{fast:.2} s, {slow:.2} s: {:.1} times; error {:.3} times", slow / fast, near / exact);
        }
        assert!(runs.iter().all(|((fast, near), (slow, exact))| slow / fast > 10.0 && near / exact < 1.1));
    }

    #[test]
    fn cholesky_and_its_solves() {
        let a = noise(9, 30, 4);
        let mut gram = Mat::zeros(9, 9);
        add_gram(&mut gram, a.as_ref());
        let l = cholesky(gram.as_ref()).unwrap();
        mirror(&mut gram);
        assert!((&gram - &a * a.transpose()).norm_max() < 1e-12);
        assert!((&gram - &l * l.transpose()).norm_max() < 1e-12);
        let b = noise(9, 4, 5);
        assert!((&l * solve_lower(l.as_ref(), b.clone()) - &b).norm_max() < 1e-12);
        assert!((l.transpose() * solve_transposed(l.as_ref(), b.clone()) - &b).norm_max() < 1e-12);
        assert!((dot(b.as_ref(), b.as_ref()) - b.norm_l2().powi(2)).abs() < 1e-12);
        gram[(3, 3)] = -1.0;
        assert!(cholesky(gram.as_ref()).is_none());
    }
}
