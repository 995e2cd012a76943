//! Generation: greedy as transformers does it, with and without the cache, sampled with a seed.

use bitnet_arch::model::{CausalLm, GenerateOptions, KvCache, ModelError, Sampling};
use burn::tensor::{Device, Tensor};

use crate::check::{assert_close, values};
use crate::checkpoints::{
    DENSE, LOGITS, QUANTIZED, assert_close_but_for_flips, golden, logits, reference, sequences,
};
use crate::golden::Golden;
use crate::hf::rope;

/// Tokens of the prompt of the references.
const PROMPT: usize = 8;
/// Tokens that the references continue it with.
const NEW: usize = 12;

/// Greedy tokens of every architecture are the reference's.
pub fn greedy_tokens_are_the_references(device: &Device) {
    for name in DENSE.into_iter().chain(QUANTIZED) {
        let expected = greedy_of(&reference(name));
        let model = golden(name, device).model;
        let found = model.generate(&expected[..PROMPT], &GenerateOptions::greedy(NEW)).unwrap();
        assert_eq!(found, expected[PROMPT..], "{name}");
    }
}

/// Without the cache the same tokens come next, and the logits with it are the same, however the tokens arrive.
pub fn the_cache_changes_nothing(device: &Device) {
    for name in DENSE.into_iter().chain(QUANTIZED) {
        let tokens = greedy_of(&reference(name));
        let model = golden(name, device).model;
        let whole = logits(&model, std::slice::from_ref(&tokens));
        // Causal: the logits of one forward are those of each growing sequence.
        let chosen: Vec<u32> =
            values(whole.clone().argmax(2).float()).into_iter().map(|token| token as u32).collect();
        assert_eq!(chosen[PROMPT - 1..PROMPT - 1 + NEW], tokens[PROMPT..], "{name}");

        let pieces = in_pieces(&model, &tokens, &[PROMPT, 1, 3, 1, 7]);
        let (found, expected) = (values(pieces), values(whole));
        if QUANTIZED.contains(&name) {
            assert_close_but_for_flips(name, &found, &expected);
        } else {
            assert_close(name, &found, &expected, LOGITS);
        }
    }
}

/// Dynamic RoPE scaling from within the model's positions to beyond them: cached keys keep their rotation.
pub fn dynamic_rope_generates_beyond_its_positions(device: &Device) {
    let reference = Golden::open("rope/dynamic_long/ref.safetensors");
    let expected = greedy_of(&reference);
    let prompt = expected.len() - NEW;
    let model = rope("dynamic_long", device).model;
    assert!(prompt < model.config().max_positions && expected.len() > model.config().max_positions);
    let found = model.generate(&expected[..prompt], &GenerateOptions::greedy(NEW)).unwrap();
    assert_eq!(found, expected[prompt..]);
}

/// A seed draws its tokens again; other seeds draw others; the smallest nucleus is greedy.
pub fn sampling_follows_its_seed(device: &Device) {
    let expected = greedy_of(&reference("llama_tied"));
    let model = golden("llama_tied", device).model;
    let draw = |sampling| {
        let options = GenerateOptions { max_new_tokens: NEW, sampling, stop: Vec::new() };
        model.generate(&expected[..PROMPT], &options).unwrap()
    };
    let random = |seed| Sampling::Random { temperature: 1.0, top_p: 1.0, top_k: None, seed };
    assert_eq!(draw(random(1)), draw(random(1)));
    assert_ne!(draw(random(1)), draw(random(2)));
    let greedy = &expected[PROMPT..];
    assert_eq!(draw(Sampling::Random { temperature: 1.0, top_p: 1.0, top_k: Some(1), seed: 3 }), greedy);
    assert_eq!(draw(Sampling::Random { temperature: 1.0, top_p: 1e-9, top_k: None, seed: 3 }), greedy);
    assert_eq!(draw(Sampling::Random { temperature: 1e-6, top_p: 1.0, top_k: None, seed: 3 }), greedy);
}

/// A stop token ends the text and is its last one; no new tokens give an empty text.
pub fn a_stop_token_ends_the_text(device: &Device) {
    let expected = greedy_of(&reference("llama_untied"));
    let model = golden("llama_untied", device).model;
    let mut options = GenerateOptions::greedy(NEW);
    options.stop = vec![expected[PROMPT + 2]];
    let end = expected[PROMPT..].iter().position(|token| options.stop.contains(token)).unwrap();
    let found = model.generate(&expected[..PROMPT], &options).unwrap();
    assert_eq!(found, expected[PROMPT..=PROMPT + end]);
    assert!(model.generate(&expected[..PROMPT], &GenerateOptions::greedy(0)).unwrap().is_empty());
}

/// A continuation gives its tokens one by one: as many as are asked for, and none after the end.
pub fn a_continuation_comes_token_by_token(device: &Device) {
    let expected = greedy_of(&reference("llama_tied"));
    let model = golden("llama_tied", device).model;
    let (prompt, new) = expected.split_at(PROMPT);
    let mut tokens = model.continuation(prompt, &GenerateOptions::greedy(NEW)).unwrap();
    assert_eq!(tokens.next(), Some(Ok(new[0])));
    assert_eq!(tokens.by_ref().take(3).collect::<Result<Vec<_>, _>>().unwrap(), new[1..4]);
    assert_eq!(tokens.by_ref().collect::<Result<Vec<_>, _>>().unwrap(), new[4..]);
    assert_eq!((tokens.next(), tokens.next()), (None, None));
    let stop = GenerateOptions { stop: vec![new[0]], ..GenerateOptions::greedy(NEW) };
    let mut tokens = model.continuation(prompt, &stop).unwrap();
    assert_eq!((tokens.next(), tokens.next()), (Some(Ok(new[0])), None));

    // The logits of the last position alone are those of all positions.
    let next = model.next_logits(model.batch(&[prompt]).unwrap(), &mut KvCache::new());
    assert_eq!(next.dims(), [1, model.config().vocab_size]);
    let all = logits(&model, &[prompt.to_vec()]).narrow(1, PROMPT - 1, 1);
    assert_close("last logits", &values(next), &values(all), LOGITS);
}

/// Sampling settings out of range are refused by name.
pub fn bad_sampling_settings_are_refused(device: &Device) {
    let model = golden("gemma", device).model;
    let base = (1.0, 1.0, None);
    let cases = [
        ("temperature", (0.0, base.1, base.2)),
        ("temperature", (f64::NAN, base.1, base.2)),
        ("temperature", (f64::INFINITY, base.1, base.2)),
        ("top_p", (base.0, 0.0, base.2)),
        ("top_p", (base.0, 1.5, base.2)),
        ("top_k", (base.0, base.1, Some(0))),
    ];
    for (expected, (temperature, top_p, top_k)) in cases {
        let sampling = Sampling::Random { temperature, top_p, top_k, seed: 0 };
        let options = GenerateOptions { max_new_tokens: 1, sampling, stop: Vec::new() };
        let error = model.generate(&[1], &options).unwrap_err();
        assert!(
            matches!(error, ModelError::Sampling { field, .. } if field == expected),
            "{expected}: {error}"
        );
    }
}

/// The one row of `greedy`: prompt and continuation.
fn greedy_of(reference: &Golden) -> Vec<u32> {
    sequences(reference, "greedy").remove(0)
}

/// The logits of tokens that arrive in pieces of these lengths.
fn in_pieces(model: &CausalLm, tokens: &[u32], lengths: &[usize]) -> Tensor<3> {
    assert_eq!(lengths.iter().sum::<usize>(), tokens.len());
    let mut cache = KvCache::new();
    let mut rest = tokens;
    let pieces = lengths.iter().map(|&length| {
        let (piece, after) = rest.split_at(length);
        rest = after;
        model.forward_cached(model.batch(&[piece]).unwrap(), &mut cache)
    });
    let logits = Tensor::cat(pieces.collect(), 1);
    assert_eq!(cache.len(), tokens.len());
    logits
}
