//! Tokenizers that SentencePiece made (Llama 2, Gemma), read from `tokenizer.json`.
//!
//! There they are BPE with an ordered list of merges; in llama.cpp, as in SentencePiece, tokens have scores, and
//! of all neighbours whose joint text is a token the two with the highest score join, the leftmost first. Both give
//! the same tokens if the merges are all that the vocabulary allows, and if their order is one of the joint tokens.
//! That is checked here. (Where one token is made in two overlapping ways, as in a run of one letter, the order
//! of the merges decides in the one and the place in the other.)

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::tokenizer_file::TokenizerFile;
use super::vocabulary::TokenType;
use crate::ConvertError;

/// How a space is written in tokens.
const SPACE: &str = "▁";

#[derive(Debug, PartialEq)]
pub(super) struct Pieces {
    /// Per token.
    pub(super) scores: Vec<f32>,
    /// Whether a text starts with a space of its own.
    pub(super) space_prefix: bool,
}

/// Checks the file and finds the scores of `tokens`, whose `types` it completes.
///
/// # Errors
/// [`ConvertError::Tokenizer`] for what llama.cpp would tokenize otherwise.
pub(super) fn read(
    file: &TokenizerFile,
    tokens: &mut [String],
    types: &mut [TokenType],
) -> Result<Pieces, ConvertError> {
    if file.model.ignore_merges {
        return Err(file.refuse("model.ignore_merges", "true", "false with byte_fallback"));
    }
    let space_prefix = space_prefix(file)?;
    for byte in 0..=u8::MAX {
        let text = format!("<0x{byte:02X}>");
        match file.model.vocab.get(&text) {
            Some(&id) => types[id as usize] = TokenType::Byte,
            None => return Err(file.refuse("model.vocab", format!("no `{text}`"), "a token for each byte")),
        }
    }
    if let Some(id) = file.model.unk_token.as_ref().and_then(|unknown| file.id(unknown)) {
        types[id as usize] = TokenType::Unknown;
    }
    let ranks = ranks(file)?;
    check_complete(file, types)?;
    let last = -(ranks.len() as f32);
    let score = |(text, kind): (&String, &TokenType)| match kind {
        TokenType::Normal | TokenType::UserDefined => {
            ranks.get(text.as_str()).map_or(last, |rank| -(*rank as f32))
        }
        _ => 0.0,
    };
    let scores = tokens.iter().zip(&*types).map(score).collect();
    Ok(Pieces { scores, space_prefix })
}

/// Whether a text gets a space in front, and that spaces become `▁` and nothing else happens.
fn space_prefix(file: &TokenizerFile) -> Result<bool, ConvertError> {
    let steps = |step: &Option<Value>, list: &str| match step {
        None => Vec::new(),
        Some(step) => match step.get(list).and_then(Value::as_array) {
            Some(steps) => steps.clone(),
            None => vec![step.clone()],
        },
    };
    let text = |step: &Value, pointer: &str| step.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let (mut prefix, mut replaced) = (false, false);
    for step in steps(&file.normalizer, "normalizers") {
        match text(&step, "/type").as_deref() {
            Some("Prepend") if !replaced && text(&step, "/prepend").as_deref() == Some(SPACE) => {
                prefix = true
            }
            Some("Replace")
                if text(&step, "/pattern/String").as_deref() == Some(" ")
                    && text(&step, "/content").as_deref() == Some(SPACE) =>
            {
                replaced = true;
            }
            _ => {
                return Err(file.refuse(
                    "normalizer",
                    step.to_string(),
                    "Prepend `▁`, and Replace ` ` by `▁`",
                ));
            }
        }
    }
    for step in steps(&file.pre_tokenizer, "pretokenizers") {
        match text(&step, "/type").as_deref() {
            // There are no spaces left to split at.
            Some("Split") if replaced && text(&step, "/pattern/String").as_deref() == Some(" ") => {}
            Some("Metaspace")
                if text(&step, "/replacement").as_deref() == Some(SPACE)
                    && text(&step, "/prepend_scheme").as_deref() == Some("never")
                    && step.get("split") == Some(&Value::Bool(false)) =>
            {
                replaced = true;
            }
            _ => {
                let expected = "none, or Metaspace that neither splits nor prepends: llama.cpp puts its space before \
                                a text even where it starts with one, and after each special token";
                return Err(file.refuse("pre_tokenizer", step.to_string(), expected));
            }
        }
    }
    if replaced {
        Ok(prefix)
    } else {
        Err(file.refuse("normalizer", "spaces stay", "` ` replaced by `▁` with byte_fallback"))
    }
}

/// The number of each joint token in the order of the merges.
fn ranks(file: &TokenizerFile) -> Result<HashMap<String, usize>, ConvertError> {
    let mut ranks = HashMap::new();
    let mut last = String::new();
    for joint in file.model.merges.iter().filter_map(|merge| merge.pair()).map(|pair| pair.concat()) {
        if joint == last {
            continue;
        }
        let rank = ranks.len();
        if ranks.insert(joint.clone(), rank).is_some() {
            let found = format!("those of `{joint}` stand apart");
            return Err(file.refuse("model.merges", found, "all merges that make one token together"));
        }
        last = joint;
    }
    Ok(ranks)
}

/// llama.cpp joins any two neighbours whose joint text is a token: the merges must name them all.
fn check_complete(file: &TokenizerFile, types: &[TokenType]) -> Result<(), ConvertError> {
    let merges: HashSet<[&str; 2]> = file.model.merges.iter().filter_map(|merge| merge.pair()).collect();
    let is_symbol = |part: &str| file.model.vocab.contains_key(part) || part.chars().nth(1).is_none();
    for (text, &id) in &file.model.vocab {
        if types[id as usize] != TokenType::Normal {
            continue;
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if is_symbol(left) && is_symbol(right) && !merges.contains(&[left, right]) {
                let found = format!("none of `{left}` and `{right}`");
                let expected = "a merge for any two tokens whose joint text is a token";
                return Err(file.refuse("model.merges", found, expected));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// As transformers writes Llama 2's: bytes 3.., then single letters, then joint tokens.
    fn llama() -> Value {
        let mut vocab = serde_json::Map::new();
        let tokens = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
        let tokens = tokens.chain((0..256).map(|byte| format!("<0x{byte:02X}>")));
        for (id, text) in tokens.chain(["▁", "a", "b", "ab", "▁ab", "bab"].map(str::to_owned)).enumerate()
        {
            vocab.insert(text, json!(id));
        }
        let special = |id: u32, text: &str| json!({ "id": id, "content": text, "special": true });
        json!({
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "Prepend", "prepend": "▁" },
                { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
            ] },
            "pre_tokenizer": null,
            "post_processor": null,
            "model": {
                "type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "vocab": vocab,
                "merges": ["a b", "▁ ab", "b ab"],
            },
        })
    }

    fn pieces(tokenizer: &Value) -> Result<(Pieces, Vec<TokenType>), ConvertError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let file = TokenizerFile::read(folder.path())?;
        let n_tokens = file.model.vocab.values().max().map_or(0, |id| *id as usize + 1);
        let mut tokens: Vec<String> = vec![String::new(); n_tokens];
        let mut types = vec![TokenType::Normal; tokens.len()];
        file.model.vocab.iter().for_each(|(text, &id)| tokens[id as usize].clone_from(text));
        file.added_tokens.iter().for_each(|token| types[token.id as usize] = TokenType::Control);
        read(&file, &mut tokens, &mut types).map(|pieces| (pieces, types))
    }

    #[test]
    fn scores_follow_the_merges() {
        let (Pieces { scores, space_prefix }, types) = pieces(&llama()).unwrap();
        assert!(space_prefix);
        assert_eq!(scores[259..], [-3.0, -3.0, -3.0, 0.0, -1.0, -2.0]);
        assert!(scores[..259].iter().all(|score| *score == 0.0));
        assert_eq!(types[..3], [TokenType::Unknown, TokenType::Control, TokenType::Control]);
        assert!(types[3..259].iter().all(|kind| *kind == TokenType::Byte));
    }

    #[test]
    fn gemmas_texts_start_without_a_space() {
        let mut gemma = llama();
        gemma["normalizer"] = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
        gemma["pre_tokenizer"] =
            json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious" });
        assert!(!pieces(&gemma).unwrap().0.space_prefix);
        gemma["normalizer"] = Value::Null;
        gemma["pre_tokenizer"] = json!({
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": false,
        });
        assert!(!pieces(&gemma).unwrap().0.space_prefix);
    }

    #[test]
    fn what_would_be_tokenized_otherwise_is_refused() {
        let first =
            json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false });
        let without_a_byte = {
            let mut vocab = llama()["model"]["vocab"].clone();
            vocab.as_object_mut().unwrap().remove("<0xFF>");
            vocab
        };
        for (pointer, value, field) in [
            ("/model/ignore_merges", json!(true), "model.ignore_merges"),
            ("/model/merges", json!(["a b", "▁ ab"]), "model.merges"),
            ("/model/merges", json!(["a b", "▁ ab", "b ab", "▁a b", "a b"]), "model.merges"),
            ("/model/vocab", without_a_byte, "model.vocab"),
            ("/normalizer", Value::Null, "normalizer"),
            ("/normalizer", json!({ "type": "NFKC" }), "normalizer"),
            ("/pre_tokenizer", first, "pre_tokenizer"),
        ] {
            let mut tokenizer = llama();
            if let Some(place) = tokenizer.pointer_mut(pointer) {
                *place = value;
            } else {
                tokenizer["model"]["ignore_merges"] = value;
            }
            let error = pieces(&tokenizer).unwrap_err();
            assert!(
                matches!(&error, ConvertError::Tokenizer { field: found, .. } if *found == field),
                "{error}"
            );
        }
        let mut joint = llama();
        joint["model"]["vocab"]["cb"] = json!(265);
        let error = pieces(&joint).unwrap_err();
        assert!(error.to_string().contains("none of `c` and `b`"), "{error}");
    }
}
