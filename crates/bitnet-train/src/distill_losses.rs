//! The losses of a distillation.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor};

/// Kullback–Leibler divergence of the student's distribution of the next token from the teacher's, mean over all
/// tokens: `Σ p·(ln p − ln q)` with `p = softmax(teacher/τ)`, `q = softmax(student/τ)`.
///
/// # Shapes
/// - `student`, `teacher`: logits `[B, T, vocab_size]`; returns `[1]`
///
/// # Source
/// arXiv 2510.13998, stage 3.
pub fn logit_kl(student: Tensor<3>, teacher: Tensor<3>, temperature: f64) -> Tensor<1> {
    let softened = |logits: Tensor<3>| log_softmax(logits.cast(DType::F32) / temperature, 2);
    divergence(softened(student), softened(teacher))
}

/// Kullback–Leibler divergence of the student's relations of tokens from the teacher's, mean over heads and tokens.
/// Relations are `softmax(A·Aᵀ/√d)` over all pairs of tokens, `A` a state split into heads of size `d`.
///
/// # Shapes
/// - `student`, `teacher`: queries, keys or values `[B, T, width]`; the two widths may differ, `heads` divides both
/// - returns `[1]`
///
/// # Source
/// MiniLMv2, arXiv 2012.15828; arXiv 2510.13998, stage 3.
pub fn relation_kl(student: Tensor<3>, teacher: Tensor<3>, heads: usize) -> Tensor<1> {
    let relations = |x: Tensor<3>| {
        let [batch, tokens, width] = x.dims();
        let size = width / heads;
        let x = x.cast(DType::F32).reshape([batch, tokens, heads, size]).swap_dims(1, 2);
        let scores = (x.clone() / (size as f64).sqrt()).matmul(x.transpose()); // [B, heads, T, T]
        log_softmax(scores, 3).reshape([batch, heads * tokens, tokens])
    };
    divergence(relations(student), relations(teacher))
}

/// Mean square of the difference of two residual streams, as a share of the teacher's mean square, so that layers count
/// alike.
///
/// # Shapes
/// - `student`, `teacher`: `[B, T, d_model]`; returns `[1]`
pub fn hidden_mse(student: Tensor<3>, teacher: Tensor<3>) -> Tensor<1> {
    let mean_square = |x: Tensor<3>| x.cast(DType::F32).square().mean_dim(2).mean();
    let size = mean_square(teacher.clone());
    mean_square(student - teacher) / size.clamp_min(f32::MIN_POSITIVE)
}

/// Mean over the first two axes of `Σ p·(ln p − ln q)`, from logarithms. The last axis is summed first: a sum over the
/// whole of a large tensor would follow the threads.
fn divergence(log_student: Tensor<3>, log_teacher: Tensor<3>) -> Tensor<1> {
    (log_teacher.clone().exp() * (log_teacher - log_student)).sum_dim(2).mean()
}

/// [`logit_kl`] where only a teacher's likeliest tokens are known: all others count as one token.
///
/// # Shapes
/// - `student`: logits `[B, T, vocab_size]`; returns `[1]`
/// - `tokens`, `log_p`: those tokens and the logarithms of their probabilities at the same temperature, `[B, T, k]`
pub(crate) fn logit_kl_of_top(
    student: Tensor<3>,
    tokens: Tensor<3, Int>,
    log_p: Tensor<3>,
    temperature: f64,
) -> Tensor<1> {
    let log_q = log_softmax(student.cast(DType::F32) / temperature, 2).gather(2, tokens);
    let rest = |log: Tensor<3>| -log.exp().sum_dim(2) + 1.0;
    // What is left of 1 after sums in f32; without others it is nothing, and its term too.
    let (p, q) = (rest(log_p.clone()).clamp_min(0.0), rest(log_q.clone()).clamp_min(REST));
    let of_rest = p.clone() * (p.clamp_min(REST).log() - q.log());
    ((log_p.clone().exp() * (log_p - log_q)).sum_dim(2) + of_rest).mean()
}

/// The least that the tokens beyond the likeliest are taken for together: below it a difference of sums in f32 is noise.
const REST: f64 = 1e-6;

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    /// f32 against f64.
    const TOLERANCE: f64 = 1e-6;

    fn tensor(values: &[f32], shape: [usize; 3]) -> Tensor<3> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
    }

    fn softmax(row: &[f64]) -> Vec<f64> {
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        row.iter().map(|x| x.exp() / sum).collect()
    }

    fn kl(p: &[f64], q: &[f64]) -> f64 {
        p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum()
    }

    fn scalar(tensor: Tensor<1>) -> f64 {
        crate::loss::read(tensor).unwrap()
    }

    #[test]
    fn logits_are_compared_as_the_paper_says() {
        let student = [0.3_f32, -1.0, 2.0, 0.5, 0.1, -0.7];
        let teacher = [1.0_f32, 0.0, -0.5, 2.5, -1.5, 0.2];
        for temperature in [1.0, 5.0] {
            let rows = |values: &[f32]| -> Vec<Vec<f64>> {
                let row = |row: &[f32]| row.iter().map(|&x| f64::from(x) / temperature).collect::<Vec<_>>();
                values.chunks(3).map(|chunk| softmax(&row(chunk))).collect()
            };
            let pairs = rows(&teacher).into_iter().zip(rows(&student));
            let expected = pairs.map(|(p, q)| kl(&p, &q)).sum::<f64>() / 2.0;
            let found =
                scalar(logit_kl(tensor(&student, [1, 2, 3]), tensor(&teacher, [1, 2, 3]), temperature));
            assert!((found - expected).abs() < TOLERANCE, "{found} {expected}");
        }
        assert!(
            scalar(logit_kl(tensor(&student, [1, 2, 3]), tensor(&student, [1, 2, 3]), 2.0)).abs() < TOLERANCE
        );
    }

    #[test]
    fn relations_are_compared_as_the_paper_says() {
        let student: Vec<f32> = (0..12).map(|i| (i as f32 * 0.7).sin()).collect(); // 3 tokens of width 4
        let teacher: Vec<f32> = (0..18).map(|i| (i as f32 * 0.4).cos()).collect(); // 3 tokens of width 6
        let relations = |values: &[f32], width: usize, head: usize| -> Vec<Vec<f64>> {
            let size = width / 2;
            let token = |t: usize| &values[t * width + head * size..][..size];
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let row = |t| (0..3).map(|u| dot(token(t), token(u)) / (size as f64).sqrt()).collect::<Vec<_>>();
            (0..3).map(|t| softmax(&row(t))).collect()
        };
        let mut expected = 0.0;
        for head in 0..2 {
            for (p, q) in relations(&teacher, 6, head).iter().zip(relations(&student, 4, head)) {
                expected += kl(p, &q) / 6.0;
            }
        }
        let found = scalar(relation_kl(tensor(&student, [1, 3, 4]), tensor(&teacher, [1, 3, 6]), 2));
        assert!((found - expected).abs() < TOLERANCE, "{found} {expected}");
    }

    #[test]
    fn streams_are_compared_by_their_size() {
        let (student, teacher) = ([1.0_f32, 2.0, 3.0, 4.0], [2.0_f32, 2.0, 1.0, 4.0]);
        let found = scalar(hidden_mse(tensor(&student, [1, 2, 2]), tensor(&teacher, [1, 2, 2])));
        assert!((found - 5.0 / 25.0).abs() < TOLERANCE, "{found}");
    }
}
