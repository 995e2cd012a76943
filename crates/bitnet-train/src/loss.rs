use std::time::Instant;

use bitnet_model::CausalLm;
use bitnet_quant::next_token_cross_entropy;
use bitnet_text::{FileWindows, TokenWindows};
use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::{DType, Int, Tensor};
use serde::Serialize;

use crate::TrainError;

/// Mean cross-entropy of each token given those before it, in nats.
///
/// # Shapes
/// - `sequences`: equally long, T tokens each; T − 1 of them are predicted
/// - returns `[1]`
///
/// # Errors
/// Those of [`CausalLm::batch`]; [`TrainError::Config`] for sequences of a single token.
pub fn next_token_loss<B: AsRef<[S]>, S: AsRef<[u32]>>(
    model: &CausalLm,
    sequences: &B,
) -> Result<Tensor<1>, TrainError> {
    let tokens = model.batch(sequences.as_ref())?;
    cross_entropy(model.forward(tokens.clone()), tokens)
}

/// Mean cross-entropy of each token but the first in the logits of the one before.
///
/// # Shapes
/// - `logits`: `[B, T, vocab_size]`, `tokens`: `[B, T]`; returns `[1]`
pub(crate) fn cross_entropy(logits: Tensor<3>, tokens: Tensor<2, Int>) -> Result<Tensor<1>, TrainError> {
    let [batch, length, vocab_size] = logits.dims();
    if length < 2 {
        return Err(TrainError::Config {
            field: "window",
            found: length.to_string(),
            expected: "at least 2 tokens, one to predict".into(),
        });
    }
    if let Some(loss) = next_token_cross_entropy(&logits, &tokens) {
        return Ok(loss);
    }
    let logits = logits.narrow(1, 0, length - 1).cast(DType::F32);
    let logits = logits.reshape([batch * (length - 1), vocab_size]);
    let targets = tokens.narrow(1, 1, length - 1).reshape([batch * (length - 1)]);
    Ok(CrossEntropyLossConfig::new().init(&logits.device()).forward(logits, targets))
}

/// A mean cross-entropy above counts as this one: its `exp`, about 1e304, is a number that JSON has. Infinity is none.
const MAX_LOSS: f64 = 700.0;

fn exp(loss: f64) -> f64 {
    loss.min(MAX_LOSS).exp()
}

/// `exp` of the mean cross-entropy over all windows, `batch_size` at a time, without gradients; at most 1e304.
///
/// # Errors
/// Those of [`next_token_loss`]; [`TrainError::EvaluationNotFinite`] where the mean is not finite.
pub fn perplexity(model: &CausalLm, windows: &TokenWindows, batch_size: usize) -> Result<f64, TrainError> {
    let all: Vec<&[u32]> = (0..windows.len()).filter_map(|i| windows.get(i)).collect();
    mean_loss(model, all.chunks(batch_size.max(1)).map(Ok)).map(|(loss, _)| exp(loss))
}

/// What [`evaluate`] found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Evaluation {
    /// `exp` of the mean cross-entropy, at most 1e304.
    pub perplexity: f64,
    /// Tokens of the windows.
    pub tokens: u64,
    /// Of those, per second.
    pub tokens_per_second: f64,
}

/// [`perplexity`] over the first windows of a file, at most `max_windows`.
///
/// # Errors
/// Those of [`perplexity`] and [`FileWindows::get`].
pub fn evaluate(
    model: &CausalLm,
    windows: &FileWindows,
    max_windows: u64,
    batch_size: usize,
) -> Result<Evaluation, TrainError> {
    let start = Instant::now();
    let n_windows = windows.len().min(max_windows);
    let batches = (0..n_windows).step_by(batch_size.max(1)).map(|first| {
        let batch = (first..n_windows.min(first + batch_size.max(1) as u64)).map(|i| windows.get(i));
        Ok(batch.collect::<Result<Vec<_>, _>>()?)
    });
    let (loss, n_windows) = mean_loss(model, batches)?;
    let tokens = (n_windows * windows.window()) as u64;
    let tokens_per_second = tokens as f64 / start.elapsed().as_secs_f64();
    Ok(Evaluation { perplexity: exp(loss), tokens, tokens_per_second })
}

/// The mean cross-entropy over all windows of the batches, and their number.
fn mean_loss<B: AsRef<[S]>, S: AsRef<[u32]>>(
    model: &CausalLm,
    batches: impl Iterator<Item = Result<B, TrainError>>,
) -> Result<(f64, usize), TrainError> {
    let model = model.valid();
    let (mut sum, mut n_windows) = (0.0, 0);
    for batch in batches {
        let batch = batch?;
        let n = batch.as_ref().len();
        sum += read(next_token_loss(&model, &batch)?)? * n as f64;
        n_windows += n;
    }
    let mean = sum / n_windows as f64;
    if mean.is_finite() {
        Ok((mean, n_windows))
    } else {
        Err(TrainError::EvaluationNotFinite { found: mean })
    }
}

/// The one number of a tensor.
pub(crate) fn read(tensor: Tensor<1>) -> Result<f64, TrainError> {
    let value = tensor.cast(DType::F32).try_into_scalar::<f32>();
    value.map(f64::from).map_err(|error| TrainError::Device(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_perplexity_is_a_number_of_json() {
        assert_eq!(exp(2.0), 2f64.exp());
        for loss in [MAX_LOSS, 710.0, 1e30, f64::MAX] {
            let json = serde_json::to_string(&exp(loss)).unwrap();
            let read: f64 = serde_json::from_str(&json).unwrap();
            assert!((read / MAX_LOSS.exp() - 1.0).abs() < 1e-12, "{json}");
        }
    }
}
