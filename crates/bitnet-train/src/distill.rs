//! Distillation: a dense teacher in the same process, and a student that is compared with it.

use std::collections::BTreeMap;

use bitnet_model::{CausalLm, CausalLmConfig};
use burn::module::Module;
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::config::check;
use crate::loss::cross_entropy;

/// The loss of a distillation: a weighted sum of cross-entropy and what is compared with a teacher.
///
/// # Source
/// BitDistill, arXiv 2510.13998, stage 3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillConfig {
    /// The teacher's checkpoint folder; the run's own dense source if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// Weight of [`next_token_loss`](crate::next_token_loss). 1 if it is left out.
    #[serde(default = "one")]
    pub cross_entropy: f64,
    /// Compares the distributions of the next token, by [`logit_kl`]; not if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_kl: Option<LogitKl>,
    /// Compares how tokens relate in one layer, by [`relation_kl`]; not if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relation_kl: Option<RelationKl>,
    /// Compares the residual stream after every layer, by [`hidden_mse`]; not if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_mse: Option<HiddenMse>,
}

fn one() -> f64 {
    1.0
}

/// The settings of [`logit_kl`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogitKl {
    /// Its weight, λ_ld in the paper.
    pub weight: f64,
    /// What logits are divided by.
    pub temperature: f64,
}

impl Default for LogitKl {
    /// As in the paper.
    fn default() -> Self {
        Self { weight: 10.0, temperature: 5.0 }
    }
}

/// The settings of [`relation_kl`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelationKl {
    /// Its weight, γ in the paper.
    pub weight: f64,
    /// The student's layer, from 0; the last if it is left out. The teacher's is as far from its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// Number of heads that query, key and value are split into for it.
    pub heads: usize,
}

impl Default for RelationKl {
    fn default() -> Self {
        Self { weight: 1e-5, layer: None, heads: 8 }
    }
}

/// The settings of [`hidden_mse`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HiddenMse {
    /// Its weight.
    pub weight: f64,
}

impl Default for HiddenMse {
    fn default() -> Self {
        Self { weight: 1.0 }
    }
}

impl DistillConfig {
    pub(crate) fn validate(&self) -> Result<(), TrainError> {
        let weight = |field, weight: f64| check(field, weight, weight >= 0.0 && weight.is_finite(), "from 0");
        weight("distill.cross_entropy", self.cross_entropy)?;
        let any = self.logit_kl.is_some() || self.relation_kl.is_some() || self.hidden_mse.is_some();
        check("distill", "no term", any, "logit_kl, relation_kl or hidden_mse")?;
        weight("distill.hidden_mse.weight", self.hidden_mse.map_or(0.0, |settings| settings.weight))?;
        if let Some(LogitKl { weight: w, temperature }) = self.logit_kl {
            weight("distill.logit_kl.weight", w)?;
            let positive = temperature > 0.0 && temperature.is_finite();
            check("distill.logit_kl.temperature", temperature, positive, "a positive number")?;
        }
        if let Some(RelationKl { weight: w, heads, .. }) = self.relation_kl {
            weight("distill.relation_kl.weight", w)?;
            check("distill.relation_kl.heads", heads, heads > 0, "at least 1")?;
        }
        Ok(())
    }
}

/// A teacher, and what a student is compared with it by.
pub struct Distillation {
    teacher: CausalLm,
    config: DistillConfig,
}

/// One term of a loss: its name, its weight, and its value before weighting, `[1]`.
pub struct Term {
    /// The setting's name: `cross_entropy`, `logit_kl`, `relation_kl` or `hidden_mse`.
    pub name: &'static str,
    /// The factor in the sum.
    pub weight: f64,
    /// The value.
    pub value: Tensor<1>,
}

impl Distillation {
    /// Checks that teacher and student can be compared.
    ///
    /// # Errors
    /// [`TrainError::Config`] names the setting, and what of the two models it does not suit.
    pub fn new(teacher: CausalLm, student: &CausalLm, config: DistillConfig) -> Result<Self, TrainError> {
        config.validate()?;
        let (taught, teaches) = (student.config(), teacher.config());
        let vocab_size = teaches.vocab_size;
        let expected = format!("a vocabulary of {}", taught.vocab_size);
        check("distill.teacher", vocab_size, vocab_size == taught.vocab_size, &expected)?;
        if let Some(relations) = config.relation_kl {
            let layer = relations.layer.unwrap_or(taught.n_layers - 1);
            let from_end = taught.n_layers.saturating_sub(layer);
            let expected = format!("a layer of both models, below {}", taught.n_layers);
            let both = from_end > 0 && from_end <= teaches.n_layers;
            check("distill.relation_kl.layer", layer, both, &expected)?;
            let widths = [taught, teaches]
                .map(|model| [model.n_heads * model.head_dim(), model.n_kv_heads() * model.head_dim()]);
            let divides = widths.as_flattened().iter().all(|width| width.is_multiple_of(relations.heads));
            let expected = format!("a divisor of the widths {widths:?} of query and key");
            check("distill.relation_kl.heads", relations.heads, divides, &expected)?;
        }
        if config.hidden_mse.is_some() {
            let shape = |model: &CausalLmConfig| [model.n_layers, model.d_model];
            let expected = format!("{:?} layers and their width, for hidden_mse", shape(taught));
            let found = shape(teaches);
            check("distill.teacher", format!("{found:?}"), found == shape(taught), &expected)?;
        }
        Ok(Self { teacher: teacher.valid(), config })
    }

    /// The weighted sum of the [`terms`](Self::terms), `[1]`.
    ///
    /// # Errors
    /// Those of [`terms`](Self::terms).
    pub fn loss(&self, student: &CausalLm, sequences: &[Vec<u32>]) -> Result<Tensor<1>, TrainError> {
        self.terms(student, sequences).map(|terms| total(&terms))
    }

    /// The terms of the loss for a batch of equally long sequences.
    ///
    /// # Errors
    /// Those of [`next_token_loss`](crate::next_token_loss).
    pub fn terms(&self, student: &CausalLm, sequences: &[Vec<u32>]) -> Result<Vec<Term>, TrainError> {
        let tokens = student.batch(sequences)?;
        let mut states = student.hidden_states(tokens.clone());
        let mut teacher_states = self.teacher.hidden_states(self.teacher.batch(sequences)?);
        let last = states.pop().zip(teacher_states.pop());
        let Some((output, teacher_output)) = last else { return Ok(Vec::new()) }; // there is always an output
        let mut terms = Vec::new();
        if let Some(RelationKl { weight, layer, heads }) = self.config.relation_kl {
            let layer = layer.unwrap_or(states.len() - 1);
            let teacher_layer = teacher_states.len() + layer - states.len(); // checked to be one
            let found = student.attention_states(layer, states[layer].clone()).into_iter().flatten();
            let expected =
                self.teacher.attention_states(teacher_layer, teacher_states[teacher_layer].clone());
            let divergences = found
                .zip(expected.into_iter().flatten())
                .map(|(state, teacher)| relation_kl(state.clone(), lift(teacher, &state), heads));
            let value = mean(divergences);
            terms.extend(value.map(|value| Term { name: "relation_kl", weight, value }));
        }
        if let Some(HiddenMse { weight }) = self.config.hidden_mse {
            // The first is the embedding's, before any layer.
            let found = states.iter().skip(1).chain([&output]);
            let expected = teacher_states.iter().skip(1).chain([&teacher_output]);
            let errors = found
                .zip(expected)
                .map(|(state, teacher)| hidden_mse(state.clone(), lift(teacher.clone(), state)));
            terms.extend(mean(errors).map(|value| Term { name: "hidden_mse", weight, value }));
        }
        let logits = student.logits(output);
        if let Some(LogitKl { weight, temperature }) = self.config.logit_kl {
            let teacher_logits = lift(self.teacher.logits(teacher_output), &logits);
            let value = logit_kl(logits.clone(), teacher_logits, temperature);
            terms.push(Term { name: "logit_kl", weight, value });
        }
        let value = cross_entropy(logits, tokens)?;
        terms.push(Term { name: "cross_entropy", weight: self.config.cross_entropy, value });
        Ok(terms)
    }
}

/// The mean of losses.
fn mean(losses: impl Iterator<Item = Tensor<1>>) -> Option<Tensor<1>> {
    let losses: Vec<Tensor<1>> = losses.collect();
    (!losses.is_empty()).then(|| Tensor::cat(losses, 0).mean())
}

/// The weighted sum of terms.
pub(crate) fn total(terms: &[Term]) -> Tensor<1> {
    let weighted: Vec<Tensor<1>> = terms.iter().map(|term| term.value.clone() * term.weight).collect();
    Tensor::cat(weighted, 0).sum()
}

/// The values of terms over the micro-batches of a step.
#[derive(Default)]
pub(crate) struct TermMeans {
    sums: BTreeMap<&'static str, f64>,
    n: usize,
}

impl TermMeans {
    pub(crate) fn add(&mut self, terms: &[Term]) -> Result<(), TrainError> {
        for Term { name, value, .. } in terms {
            *self.sums.entry(*name).or_default() += crate::loss::read(value.clone())?;
        }
        self.n += 1;
        Ok(())
    }

    pub(crate) fn means(&self) -> BTreeMap<&'static str, f64> {
        self.sums.iter().map(|(name, sum)| (*name, sum / self.n as f64)).collect()
    }
}

/// A teacher's tensor, for use beside a student's: of its type, and with autodiff of the same kind where the student has
/// it.
fn lift<const D: usize>(teacher: Tensor<D>, student: &Tensor<D>) -> Tensor<D> {
    let teacher = teacher.inner().cast(student.dtype());
    match student.gradient_checkpointing_strategy() {
        Some(strategy) => Tensor::from_inner(teacher).with_gradient_checkpointing_strategy(strategy),
        None => teacher,
    }
}

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

    #[test]
    fn settings_out_of_range_are_named() {
        let good = "logit_kl = {}\nrelation_kl = { heads = 2 }";
        let read = |text: &str| toml::from_str::<DistillConfig>(text).unwrap();
        read(good).validate().unwrap();
        assert_eq!(read(good).logit_kl, Some(LogitKl::default()));
        for (text, expected) in [
            ("", "distill"),
            ("cross_entropy = -1.0\nlogit_kl = {}", "distill.cross_entropy"),
            ("logit_kl = { temperature = 0.0 }", "distill.logit_kl.temperature"),
            ("hidden_mse = { weight = -1.0 }", "distill.hidden_mse.weight"),
            ("logit_kl = { weight = inf }", "distill.logit_kl.weight"),
            ("relation_kl = { heads = 0 }", "distill.relation_kl.heads"),
        ] {
            let error = read(text).validate().unwrap_err();
            assert!(matches!(error, TrainError::Config { field, .. } if field == expected), "{error}");
        }
    }
}
