//! Distillation: a student that is compared with a dense teacher, in the same process or on disk.

use std::collections::BTreeMap;

use bitnet_model::{CausalLm, CausalLmConfig};
use burn::module::Module;
use burn::tensor::{Int, Tensor};

use crate::config::check;
use crate::distill_losses::{hidden_mse, logit_kl, logit_kl_of_top, relation_kl};
use crate::loss::{cross_entropy, read};
use crate::teacher_logits::TeacherLogits;
use crate::{DistillConfig, HiddenMse, LogitKl, RelationKl, TrainError};

/// A teacher, and what a student is compared with it by.
pub struct Distillation {
    teacher: Teacher,
    config: DistillConfig,
}

enum Teacher {
    InMemory(Box<CausalLm>),
    OnDisk(TeacherLogits),
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
        check_vocabulary(student, teaches.vocab_size)?;
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
        if let Some(top_k) = config.top_k() {
            let expected = "nothing, for a teacher in memory: `Distillation::from_logits` takes one on disk";
            check("distill.logit_kl.top_k", top_k, false, expected)?;
        }
        Ok(Self { teacher: Teacher::InMemory(Box::new(teacher.valid())), config })
    }

    /// Compares with logits that were kept, in place of a teacher in memory.
    ///
    /// # Errors
    /// [`TrainError::Config`] unless the settings ask for that, at the temperature and number that were kept, and the
    /// student has the teacher's vocabulary.
    pub fn from_logits(
        logits: TeacherLogits,
        student: &CausalLm,
        config: DistillConfig,
    ) -> Result<Self, TrainError> {
        config.validate()?;
        check_vocabulary(student, logits.vocab_size())?;
        let asked = config.logit_kl.and_then(|settings| Some((settings.top_k?, settings.temperature)));
        let kept = (logits.top_k(), logits.temperature());
        let expected = format!("top_k = {} and temperature = {}, as they were kept", kept.0, kept.1);
        check("distill.logit_kl", format!("{asked:?}"), asked == Some(kept), &expected)?;
        Ok(Self { teacher: Teacher::OnDisk(logits), config })
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
        let (mut terms, logits) = match &self.teacher {
            Teacher::InMemory(teacher) => self.compared(student, teacher, sequences, tokens.clone())?,
            Teacher::OnDisk(kept) => {
                let logits = student.forward(tokens.clone());
                let LogitKl { weight, temperature, .. } = self.config.logit_kl.unwrap_or_default();
                let (top, log_p) = kept.read(sequences, &logits.device())?;
                let value = logit_kl_of_top(logits.clone(), top, log_p, temperature);
                (vec![Term { name: "logit_kl", weight, value }], logits)
            }
        };
        let value = cross_entropy(logits, tokens)?;
        terms.push(Term { name: "cross_entropy", weight: self.config.cross_entropy, value });
        Ok(terms)
    }

    /// The terms that a teacher in memory gives, and the student's logits.
    fn compared(
        &self,
        student: &CausalLm,
        teacher: &CausalLm,
        sequences: &[Vec<u32>],
        tokens: Tensor<2, Int>,
    ) -> Result<(Vec<Term>, Tensor<3>), TrainError> {
        let (output, states) = split_last(student.hidden_states(tokens));
        let (teacher_output, teacher_states) = split_last(teacher.hidden_states(teacher.batch(sequences)?));
        let mut terms = Vec::new();
        if let Some(RelationKl { weight, layer, heads }) = self.config.relation_kl {
            let layer = layer.unwrap_or(states.len() - 1);
            let teacher_layer = teacher_states.len() + layer - states.len(); // checked to be one
            let found = student.attention_states(layer, states[layer].clone()).into_iter().flatten();
            let expected = teacher.attention_states(teacher_layer, teacher_states[teacher_layer].clone());
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
        if let Some(LogitKl { weight, temperature, .. }) = self.config.logit_kl {
            let teacher_logits = lift(teacher.logits(teacher_output), &logits);
            let value = logit_kl(logits.clone(), teacher_logits, temperature);
            terms.push(Term { name: "logit_kl", weight, value });
        }
        Ok((terms, logits))
    }
}

pub(crate) fn check_vocabulary(student: &CausalLm, found: usize) -> Result<(), TrainError> {
    let vocab_size = student.config().vocab_size;
    check("distill.teacher", found, found == vocab_size, &format!("a vocabulary of {vocab_size}"))
}

/// The last of the states, which is the output, and those before it.
fn split_last(mut states: Vec<Tensor<3>>) -> (Tensor<3>, Vec<Tensor<3>>) {
    let last = states.len() - 1; // a model without layers still has an output
    (states.remove(last), states)
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

/// The values of terms over the micro-batches of a step, by their index: several devices finish them in any order.
#[derive(Default)]
pub(crate) struct TermMeans(BTreeMap<usize, Vec<(&'static str, f64)>>);

impl TermMeans {
    pub(crate) fn add(&mut self, index: usize, terms: &[Term]) -> Result<(), TrainError> {
        let values = terms.iter().map(|term| Ok((term.name, read(term.value.clone())?)));
        let values = values.collect::<Result<_, TrainError>>()?;
        self.0.insert(index, values);
        Ok(())
    }

    pub(crate) fn means(&self) -> BTreeMap<&'static str, f64> {
        let mut means = BTreeMap::new();
        for (name, value) in self.0.values().flatten() {
            *means.entry(*name).or_default() += value;
        }
        means.values_mut().for_each(|sum| *sum /= self.0.len() as f64);
        means
    }
}

/// A teacher's tensor, for use beside a student's: on its device, of its type, and with autodiff of the same kind where the
/// student has it.
fn lift<const D: usize>(teacher: Tensor<D>, student: &Tensor<D>) -> Tensor<D> {
    let teacher = teacher.inner().to_device(&student.device().inner()).cast(student.dtype());
    match student.gradient_checkpointing_strategy() {
        Some(strategy) => Tensor::from_inner(teacher).with_gradient_checkpointing_strategy(strategy),
        None => teacher,
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn means_do_not_follow_the_order_in_which_devices_finish() {
        let means = |order: [usize; 3]| {
            let mut means = TermMeans::default();
            for index in order {
                let value = Tensor::from_floats([[1e30, 3.0, -1e30][index]], &Device::flex());
                means.add(index, &[Term { name: "logit_kl", weight: 1.0, value }]).unwrap();
            }
            means.means()["logit_kl"].to_bits()
        };
        assert_eq!(means([2, 0, 1]), means([0, 1, 2]));
    }
}
