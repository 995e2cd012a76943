use bitnet_model::CausalLm;
use bitnet_text::TokenWindows;
use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::{DType, Tensor};

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
    let [batch, length] = tokens.dims();
    if length < 2 {
        return Err(TrainError::Config {
            field: "window",
            found: length.to_string(),
            expected: "at least 2 tokens, one to predict".into(),
        });
    }
    let logits = model.forward(tokens.clone()).narrow(1, 0, length - 1).cast(DType::F32);
    let vocab_size = logits.dims()[2];
    let logits = logits.reshape([batch * (length - 1), vocab_size]);
    let targets = tokens.narrow(1, 1, length - 1).reshape([batch * (length - 1)]);
    Ok(CrossEntropyLossConfig::new().init(&logits.device()).forward(logits, targets))
}

/// `exp` of the mean cross-entropy over all windows, `batch_size` at a time, without gradients.
///
/// # Errors
/// Those of [`next_token_loss`]; [`TrainError::EvaluationNotFinite`] where the mean is not finite.
pub fn perplexity(model: &CausalLm, windows: &TokenWindows, batch_size: usize) -> Result<f64, TrainError> {
    let model = model.valid();
    let all: Vec<&[u32]> = (0..windows.len()).filter_map(|i| windows.get(i)).collect();
    let mut sum = 0.0;
    for batch in all.chunks(batch_size.max(1)) {
        let loss = next_token_loss(&model, &batch)?;
        sum += read(loss)? * batch.len() as f64;
    }
    let mean = sum / all.len() as f64;
    if mean.is_finite() { Ok(mean.exp()) } else { Err(TrainError::EvaluationNotFinite { found: mean }) }
}

/// The one number of a tensor.
pub(crate) fn read(tensor: Tensor<1>) -> Result<f64, TrainError> {
    let value = tensor.cast(DType::F32).try_into_scalar::<f32>();
    value.map(f64::from).map_err(|error| TrainError::Device(error.to_string()))
}
