//! Tokenizers against recorded encodings, and tokenizers trained here.

#![expect(clippy::unwrap_used, reason = "the functions beside the tests are tests too")]

use std::fs;
use std::path::{Path, PathBuf};

use bitnet_text::{TextError, TextStream, Tokenizer};
use serde_json::{Value, json};

const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// A byte-level BPE of 512 tokens, and what Hugging Face's Python package makes of some texts with it.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn small() -> Tokenizer {
    Tokenizer::from_file(data("tokenizer.json")).unwrap()
}

fn small_json() -> Value {
    serde_json::from_slice(&fs::read(data("tokenizer.json")).unwrap()).unwrap()
}

/// Loads a tokenizer from JSON in memory.
fn load(json: &Value) -> Result<Tokenizer, TextError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, json.to_string()).unwrap();
    Tokenizer::from_file(path)
}

/// Trains on one file with this text.
fn train(text: &str, vocab_size: usize) -> Result<Tokenizer, TextError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("corpus.txt");
    fs::write(&path, text).unwrap();
    Tokenizer::train_byte_level_bpe(&[path], vocab_size, &SPECIAL)
}

#[test]
fn every_recorded_encoding_and_decoding_is_equal() {
    let tokenizer = small();
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(data("encodings.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), case["decoded"].as_str().unwrap(), "{text:?}");
    }
}

/// The pieces that a stream gives, the rest at the end included.
fn streamed(tokenizer: &Tokenizer, prompt: &[u32], tokens: &[u32], skip_special: bool) -> Vec<String> {
    let mut stream = TextStream::new(tokenizer, prompt, skip_special).unwrap();
    let mut pieces: Vec<String> = tokens.iter().map(|&token| stream.push(token).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn a_stream_gives_the_text_of_all_tokens_without_half_characters() {
    let tokenizer = small();
    let text = "Grüße, 世界! 🦀🦀 <|im_end|> done";
    let tokens = tokenizer.encode(text).unwrap();
    for split in 0..tokens.len() {
        let (prompt, rest) = tokens.split_at(split);
        let pieces = streamed(&tokenizer, prompt, rest, false);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
        let before = tokenizer.decode(prompt).unwrap();
        assert_eq!(before.trim_end_matches('\u{FFFD}').to_owned() + &pieces.concat(), text, "{split}");
    }
    let crab = tokenizer.encode("🦀").unwrap();
    assert!(crab.len() > 1, "the character takes several tokens");
    let pieces = streamed(&tokenizer, &[], &crab, false);
    assert!(pieces[..crab.len() - 1].iter().all(String::is_empty), "{pieces:?}");
    assert_eq!(pieces[crab.len() - 1], "🦀");
}

#[test]
fn a_stream_ends_with_what_is_left_and_can_leave_special_tokens_out() {
    let tokenizer = small();
    let crab = tokenizer.encode("a🦀").unwrap();
    let pieces = streamed(&tokenizer, &[], &crab[..crab.len() - 1], true);
    assert_eq!(pieces[0], "a");
    assert!(pieces[crab.len() - 1].chars().all(|c| c == '\u{FFFD}') && !pieces[crab.len() - 1].is_empty());

    let tokens = tokenizer.encode("a<|im_end|>b").unwrap();
    assert_eq!(streamed(&tokenizer, &[], &tokens, false).concat(), "a<|im_end|>b");
    assert_eq!(streamed(&tokenizer, &[], &tokens, true).concat(), "ab");
    // Neither a token without an entry nor many of them in a row.
    assert_eq!(streamed(&tokenizer, &[9999], &[tokens[0], 9999, 512, tokens[2]], true).concat(), "ab");
}

#[test]
fn a_sentencepiece_space_after_the_prompt_is_kept() {
    let json = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
        "model": { "type": "WordLevel", "unk_token": "?", "vocab": { "?": 0, "▁Hello": 1, "▁you": 2, "!": 3 } },
    });
    let tokenizer = load(&json).unwrap();
    assert_eq!(streamed(&tokenizer, &[], &[1, 2, 3], true), ["Hello", " you", "!", ""]);
    assert_eq!(streamed(&tokenizer, &[1], &[2, 3, 2], true), [" you", "!", " you", ""]);
}

#[test]
fn special_tokens_are_put_around_a_text_on_request() {
    let mut json = small_json();
    json["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "<|im_start|>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
        "special_tokens": { "<|im_start|>": { "id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"] } },
    });
    let tokenizer = load(&json).unwrap();
    let plain = tokenizer.encode("hello").unwrap();
    let with_start = tokenizer.encode_with_special_tokens("hello").unwrap();
    assert_eq!((with_start[0], &with_start[1..]), (1, &plain[..]));
    assert_eq!(small().encode_with_special_tokens("hello").unwrap(), plain);
}

#[test]
fn tokens_and_ids_look_each_other_up() {
    let tokenizer = small();
    assert_eq!(tokenizer.vocab_size(), 512);
    for (id, token) in SPECIAL.into_iter().enumerate() {
        assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
    }
    for id in 0..512 {
        let token = tokenizer.id_to_token(id).unwrap();
        assert_eq!(tokenizer.token_to_id(&token), Some(id));
    }
    assert_eq!(tokenizer.id_to_token(512), None);
    assert_eq!(tokenizer.token_to_id("no such token"), None);
}

#[test]
fn holes_between_ids_count_as_vocabulary_but_do_not_decode() {
    let mut json = small_json();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    vocab.insert("<|far|>".to_owned(), json!(599));
    let tokenizer = load(&json).unwrap();
    assert_eq!(tokenizer.vocab_size(), 600);
    assert_eq!(tokenizer.decode(&[599]).unwrap(), "<|far|>");
    assert!(matches!(
        tokenizer.decode(&[42, 599, 512, 600]),
        Err(TextError::UnknownToken { token: 512, position: 2 })
    ));

    let mut json = small_json();
    let mut added = json["added_tokens"][0].clone();
    (added["content"], added["id"]) = (json!("<|added|>"), json!(512));
    json["added_tokens"].as_array_mut().unwrap().push(added);
    let tokenizer = load(&json).unwrap();
    assert_eq!(tokenizer.vocab_size(), 513);
    assert_eq!(tokenizer.encode("<|added|>").unwrap(), [512]);
}

#[test]
fn truncation_padding_and_added_tokens_of_the_file_do_not_apply() {
    let mut json = small_json();
    json["truncation"] =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    json["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}});
    let text = "The licensee may copy and distribute the Program.";
    assert_eq!(load(&json).unwrap().encode(text).unwrap(), small().encode(text).unwrap());
}

#[test]
fn any_text_comes_back_unchanged() {
    let tokenizer = small();
    let all_chars: String = (0..=0x2_ffff).step_by(37).filter_map(char::from_u32).collect();
    for text in ["\0", "\r\n \t", "a\u{301}", "<|im_start|", "<|im_end|><|im_end|>", &all_chars] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
    }
}

#[test]
fn a_missing_file_is_named() {
    let missing = data("missing.json");
    assert!(matches!(Tokenizer::from_file(&missing), Err(TextError::Read { path, .. }) if path == missing));
}

/// Replaces each part of the file in turn by values of every kind: that may load or not, but must not panic.
#[test]
fn malformed_tokenizers_are_errors() {
    let good = small_json();
    let mut pointers = vec![String::new()];
    collect_pointers(&good, "", &mut pointers);
    assert!(pointers.len() > 50);
    let mut refused = 0;
    for pointer in pointers {
        for bad in [json!(null), json!(-1), json!(1e9), json!("x"), json!([]), json!({}), json!(true)] {
            let mut json = good.clone();
            *json.pointer_mut(&pointer).unwrap() = bad;
            match load(&json) {
                Ok(tokenizer) => drop(tokenizer.encode("Hello").and_then(|ids| tokenizer.decode(&ids))),
                Err(error) => {
                    assert!(matches!(error, TextError::Tokenizer { .. }), "{pointer}: {error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

/// JSON pointers to every value; of a long list or table, to the first few entries.
fn collect_pointers(value: &Value, at: &str, pointers: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().take(20).map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(values) => values.iter().take(3).enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
        _ => Vec::new(),
    };
    for (name, child) in children {
        let pointer = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
        collect_pointers(child, &pointer, pointers);
        pointers.push(pointer);
    }
}

#[test]
fn a_trained_tokenizer_has_special_tokens_bytes_then_merges() {
    let text = "low lower lowest\nnew newer newest\n".repeat(10);
    let tokenizer = train(&text, 270).unwrap();
    assert_eq!(tokenizer.vocab_size(), 270);
    for (id, token) in SPECIAL.into_iter().enumerate() {
        assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
    }
    assert!((3..259).all(|id| tokenizer.id_to_token(id).unwrap().chars().count() == 1));
    assert!((259..270).all(|id| tokenizer.id_to_token(id).unwrap().chars().count() > 1));
    assert_eq!(
        tokenizer.id_to_token(259).as_deref(),
        Some("we"),
        "in lower, lowest, newer, newest: 40 times"
    );
    for text in [&*text, "北京 🙂 <|im_end|>\n", "\u{0}\u{7f}"] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
    }
    assert_eq!(tokenizer.encode("a<|im_end|>").unwrap().last(), Some(&2));
}

#[test]
fn a_short_text_gives_a_smaller_vocabulary() {
    assert_eq!(train("ab ab", 1000).unwrap().vocab_size(), 261, "ab and, after a space, ab");
}

#[test]
fn training_repeats_and_saving_keeps_everything() {
    let text = include_str!("tokenizer.rs");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let tokenizer = train(text, 400).unwrap();
    tokenizer.save(path("first.json")).unwrap();
    train(text, 400).unwrap().save(path("second.json")).unwrap();
    let saved = fs::read(path("first.json")).unwrap();
    assert_eq!(saved, fs::read(path("second.json")).unwrap());

    let loaded = Tokenizer::from_file(path("first.json")).unwrap();
    assert_eq!(loaded.encode(text).unwrap(), tokenizer.encode(text).unwrap());
    assert_eq!(loaded.vocab_size(), tokenizer.vocab_size());
    loaded.save(path("second.json")).unwrap(); // over an existing file
    assert_eq!(fs::read(path("second.json")).unwrap(), saved);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside");
}

#[test]
fn a_file_that_cannot_be_written_is_named_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("folder");
    fs::create_dir_all(taken.join("inside")).unwrap();
    assert!(matches!(small().save(&taken), Err(TextError::Write { path, .. }) if path == taken));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn training_refuses_bad_input() {
    assert!(matches!(train("text", 258), Err(TextError::VocabTooSmall { found: 258, minimum: 259 })));
    assert!(matches!(train("", 300), Err(TextError::NoText { .. })));
    assert_eq!(train("text", 259).unwrap().vocab_size(), 259);
}
