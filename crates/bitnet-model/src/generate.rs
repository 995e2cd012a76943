use bitnet_quant::with_awake_threads;
use burn::module::Module;
use burn::tensor::{DType, Int, Tensor};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::{CausalLm, KvCache, ModelError};

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub enum Sampling {
    /// The most likely token.
    Greedy,
    /// Drawn at random.
    Random {
        /// Divides the logits; lower is more certain. Above 0.
        temperature: f64,
        /// Only the most likely tokens whose probabilities sum to this. Above 0, up to 1.
        top_p: f64,
        /// Only this many most likely tokens.
        top_k: Option<usize>,
        /// The same seed draws the same tokens.
        seed: u64,
    },
}

/// What [`CausalLm::generate`] is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Number of tokens, unless one of `stop` comes first.
    pub max_new_tokens: usize,
    /// How each is chosen.
    pub sampling: Sampling,
    /// Tokens that end the text; the one that does is the last returned.
    pub stop: Vec<u32>,
}

impl GenerateOptions {
    /// The most likely continuation of this many tokens.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, sampling: Sampling::Greedy, stop: Vec::new() }
    }

    /// A random continuation at temperature 1 over the whole vocabulary.
    pub fn random(max_new_tokens: usize, seed: u64) -> Self {
        let sampling = Sampling::Random { temperature: 1.0, top_p: 1.0, top_k: None, seed };
        Self { max_new_tokens, sampling, stop: Vec::new() }
    }
}

impl CausalLm {
    /// Continues a text of tokens. Returns the new tokens only.
    ///
    /// # Errors
    /// Those of [`continuation`](Self::continuation) and of its tokens.
    pub fn generate(&self, prompt: &[u32], options: &GenerateOptions) -> Result<Vec<u32>, ModelError> {
        self.continuation(prompt, options)?.collect()
    }

    /// Continues a text of tokens, one token at a time: nothing is computed before it is asked for.
    ///
    /// # Errors
    /// - those of [`batch`](Self::batch), with the new tokens counted into the sequence
    /// - [`ModelError::Sampling`] for a setting out of range
    pub fn continuation(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Continuation, ModelError> {
        let chooser = Chooser::new(&options.sampling)?;
        let length = prompt.len().saturating_add(options.max_new_tokens);
        let limit = self.config().position_limit();
        if length > limit {
            return Err(ModelError::SequenceTooLong { found: length, limit });
        }
        let model = self.valid();
        let input = model.batch(&[prompt])?;
        Ok(Continuation {
            model,
            chooser,
            cache: KvCache::new(),
            next_input: Some(input),
            n_given: 0,
            max_new_tokens: options.max_new_tokens,
            stop: options.stop.clone(),
        })
    }
}

/// The tokens that continue a text, from [`CausalLm::continuation`].
///
/// It ends after the number of tokens that was asked for, after a stop token, and after an error:
/// [`ModelError::LogitsNotFinite`] or [`ModelError::Device`] where the model cannot say a next token.
#[derive(Debug)]
pub struct Continuation {
    model: CausalLm,
    chooser: Chooser,
    cache: KvCache,
    /// What the model has not seen yet, `[1, T]`; none at the end.
    next_input: Option<Tensor<2, Int>>,
    n_given: usize,
    max_new_tokens: usize,
    stop: Vec<u32>,
}

impl Continuation {
    fn step(&mut self, input: Tensor<2, Int>) -> Result<u32, ModelError> {
        let device = input.device();
        let logits = with_awake_threads(&device, || {
            let logits = self.model.next_logits(input, &mut self.cache).cast(DType::F32);
            logits.try_into_vec_as::<f32>().map_err(|error| ModelError::Device(error.to_string()))
        })?;
        let token = self.chooser.choose(&logits).ok_or(ModelError::LogitsNotFinite { step: self.n_given })?;
        if !self.stop.contains(&token) {
            self.next_input = Some(self.model.batch(&[[token]])?);
        }
        self.n_given += 1;
        Ok(token)
    }
}

impl Iterator for Continuation {
    type Item = Result<u32, ModelError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.n_given == self.max_new_tokens {
            return None;
        }
        let input = self.next_input.take()?;
        Some(self.step(input))
    }
}

#[derive(Debug)]
enum Chooser {
    Greedy,
    Random { temperature: f64, top_p: f64, top_k: usize, rng: Box<StdRng> },
}

impl Chooser {
    fn new(sampling: &Sampling) -> Result<Self, ModelError> {
        let Sampling::Random { temperature, top_p, top_k, seed } = *sampling else {
            return Ok(Self::Greedy);
        };
        let error = |field, found, expected| Err(ModelError::Sampling { field, found, expected });
        if !(temperature > 0.0 && temperature.is_finite()) {
            return error("temperature", temperature, "a positive number");
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return error("top_p", top_p, "above 0, up to 1");
        }
        if top_k == Some(0) {
            return error("top_k", 0.0, "above 0");
        }
        let rng = Box::new(StdRng::seed_from_u64(seed));
        Ok(Self::Random { temperature, top_p, top_k: top_k.unwrap_or(usize::MAX), rng })
    }

    /// The next token; `None` where a logit is not finite.
    fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        if logits.iter().any(|logit| !logit.is_finite()) {
            return None;
        }
        let best = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        match self {
            Self::Greedy => (0..logits.len()).min_by(best).map(|token| token as u32),
            Self::Random { temperature, top_p, top_k, rng } => {
                let mut order: Vec<usize> = (0..logits.len()).collect();
                order.sort_unstable_by(best);
                order.truncate(*top_k);
                let highest = f64::from(logits[*order.first()?]);
                let weight = |token: &usize| ((f64::from(logits[*token]) - highest) / *temperature).exp();
                let weights: Vec<f64> = order.iter().map(weight).collect();
                let mut nucleus = weights.iter().sum::<f64>() * *top_p;
                let mut kept = 0.0;
                let mut n_kept = 0;
                for weight in &weights {
                    kept += weight;
                    n_kept += 1;
                    nucleus -= weight;
                    if nucleus <= 0.0 {
                        break;
                    }
                }
                let mut draw = rng.random::<f64>() * kept;
                for (token, weight) in order.iter().zip(&weights).take(n_kept) {
                    draw -= weight;
                    if draw < 0.0 {
                        return Some(*token as u32);
                    }
                }
                order.get(n_kept - 1).map(|&token| token as u32)
            }
        }
    }
}
