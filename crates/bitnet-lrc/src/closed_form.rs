//! The correction that suits calibration data best.

use faer::diag::DiagRef;
use faer::{Mat, MatRef};

use crate::Svd;
use crate::linalg::{cholesky, solve_lower, solve_transposed, truncated_svd};
use crate::moments::Moments;

/// The ridge, as a share of the mean of `Σ x xᵀ`'s diagonal.
const RIDGE: f64 = 0.01;

/// The factors `U` `[d_output, rank]` and `V` `[d_input, rank]` that minimise
/// `‖w·X − ŵ·Qa(X) − U Vᵀ X‖² + δ ‖residual − U Vᵀ‖²`; `None` where a decomposition fails.
///
/// `residual` is `w − ŵ`, both as maps of the input; `quantized` is `ŵ`, as a map of the quantized operand. With
/// `Σ = XXᵀ + δI = LLᵀ` and `R = residual·Σ + ŵ(X − Qa(X))Xᵀ`, the minimum is the best approximation of `R L⁻ᵀ`, times `L⁻¹`.
///
/// # Source
/// arXiv 2412.07902, §3; docs/numerics.md#low-rank-correction.
pub(crate) fn calibrated(
    residual: MatRef<f64>,
    quantized: MatRef<f64>,
    moments: &Moments,
    rank: usize,
    svd: Svd,
) -> Option<(Mat<f64>, Mat<f64>)> {
    let ridged = with_ridge(moments.xx.as_ref());
    let l = cholesky(ridged.as_ref())?;
    let r = residual * &ridged + quantized * &moments.ex;
    let whitened = solve_lower(l.as_ref(), r.transpose().to_owned()); // (R L⁻ᵀ)ᵀ, [d_input, d_output]
    let svd = truncated_svd(whitened.transpose(), rank, svd)?;
    let v = solve_transposed(l.as_ref(), &svd.v * DiagRef::from_slice(&svd.s));
    Some((svd.u, v))
}

/// The weight `w′` of the quantized operand that minimises `‖target·X − w′·Qa(X)‖² + δ ‖w′ − target‖²`, where `target` is
/// what the correction leaves to it; `None` where the decomposition fails. Ternarized, it is the next `ŵ`.
///
/// `p` is the map from the input to the operand before quantization, `[d_operand, d_input]`.
pub(crate) fn refitted(target: MatRef<f64>, moments: &Moments, p: MatRef<f64>) -> Option<Mat<f64>> {
    let ridge = ridge(moments.xx.as_ref());
    let px = p * &moments.xx; // Σ (p·x) xᵀ
    // With q = p·x − e the quantized operand: Σ x qᵀ and Σ q qᵀ.
    let xq = px.transpose() - moments.ex.transpose();
    let pe = p * moments.ex.transpose(); // Σ (p·x) eᵀ
    let mut qq = &px * p.transpose() - &pe - pe.transpose() + &moments.ee;
    for i in 0..qq.nrows() {
        qq[(i, i)] += ridge;
    }
    let right_side = target * (xq + ridge * p.transpose().to_owned()); // [d_output, d_operand]
    let l = cholesky(qq.as_ref())?;
    let solved = solve_transposed(l.as_ref(), solve_lower(l.as_ref(), right_side.transpose().to_owned()));
    Some(solved.transpose().to_owned())
}

fn ridge(xx: MatRef<f64>) -> f64 {
    let trace: f64 = (0..xx.nrows()).map(|i| xx[(i, i)]).sum();
    // Inputs that are all zero leave nothing to fit: any positive ridge keeps the system solvable.
    (RIDGE * trace / xx.nrows() as f64).max(f64::MIN_POSITIVE.sqrt())
}

fn with_ridge(xx: MatRef<f64>) -> Mat<f64> {
    let ridge = ridge(xx);
    Mat::from_fn(xx.nrows(), xx.ncols(), |i, j| if i == j { xx[(i, j)] + ridge } else { xx[(i, j)] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::noise;

    /// A weight, a coarse version of it, and moments of correlated inputs that are rounded coarsely.
    fn problem() -> (Mat<f64>, Mat<f64>, Moments) {
        let mix = noise(8, 8, 1);
        let x = mix * noise(8, 50, 2); // [d_input, tokens]
        let (weight, mut moments) = (noise(6, 8, 3), Moments::new(8, 8));
        let values: Vec<f32> = x.col_iter().flat_map(|token| token.iter().map(|v| *v as f32)).collect();
        let error: Vec<f32> = values.iter().map(|v| v - (v * 4.0).round_ties_even() / 4.0).collect();
        assert!(moments.add(&values, &error));
        let quantized = Mat::from_fn(6, 8, |i, j| weight[(i, j)].signum() * 0.2);
        (&weight - &quantized, quantized, moments.finish())
    }

    /// What the closed form minimises.
    fn objective(residual: &Mat<f64>, quantized: &Mat<f64>, moments: &Moments, product: &Mat<f64>) -> f64 {
        let left = residual - product;
        let ridge = ridge(moments.xx.as_ref());
        moments.squared_error(left.as_ref(), quantized.as_ref()) + ridge * left.norm_l2().powi(2)
    }

    #[test]
    fn nothing_of_its_rank_is_better() {
        let (residual, quantized, moments) = problem();
        for rank in [1, 3, 6] {
            let (u, v) =
                calibrated(residual.as_ref(), quantized.as_ref(), &moments, rank, Svd::Exact).unwrap();
            let best = objective(&residual, &quantized, &moments, &(&u * v.transpose()));
            for seed in 0..40 {
                for step in [1e-1, 1e-3] {
                    let other = (&u + step * noise(6, rank, 100 + seed))
                        * (&v + step * noise(8, rank, 200 + seed)).transpose();
                    assert!(objective(&residual, &quantized, &moments, &other) > best, "rank {rank}");
                }
            }
        }
    }

    #[test]
    fn at_full_rank_it_is_the_ridge_regression() {
        let (residual, quantized, moments) = problem();
        let (u, v) = calibrated(residual.as_ref(), quantized.as_ref(), &moments, 6, Svd::Exact).unwrap();
        let ridged = with_ridge(moments.xx.as_ref());
        let normal_equations = u * v.transpose() * &ridged - (&residual * &ridged + &quantized * &moments.ex);
        assert!(normal_equations.norm_max() < 1e-9, "{}", normal_equations.norm_max());
    }

    #[test]
    fn the_refitted_weight_is_a_ridge_regression_on_quantized_inputs() {
        let (residual, quantized, moments) = problem();
        let target = residual + quantized;
        let identity = Mat::identity(8, 8);
        let fitted = refitted(target.as_ref(), &moments, identity.as_ref()).unwrap();
        let error = |weight: &Mat<f64>| {
            // target·x − weight·(x − e) = (target − weight)·x + weight·e
            let left = &target - weight;
            let ridge = ridge(moments.xx.as_ref());
            moments.squared_error(left.as_ref(), weight.as_ref()) + ridge * left.norm_l2().powi(2)
        };
        for seed in 0..40 {
            assert!(error(&(&fitted + 1e-3 * noise(6, 8, 300 + seed))) > error(&fitted));
        }
        assert!(error(&fitted) < error(&target));
    }
}
