//! The tokenizer of a folder as GGUF metadata.

use std::collections::HashMap;
use std::path::Path;

use bitnet_format::FormatError;
use bitnet_format::gguf::Header;
use serde_json::Value;

use super::pre_tokenizer;
use super::sentence_piece;
use super::special_tokens::SpecialTokens;
use super::tokenizer_file::{AddedToken, TokenizerFile};
use crate::ConvertError;

/// llama.cpp's types of tokens, with its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum TokenType {
    Normal = 1,
    Unknown = 2,
    /// Not text: begins, ends and separates.
    Control = 3,
    /// Text that is one token wherever it stands.
    UserDefined = 4,
    /// A row of the embedding without a token.
    Unused = 5,
    /// One byte, for text that no token covers.
    Byte = 6,
}

/// How llama.cpp splits text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Splitting {
    /// Byte-level BPE after a named pre-tokenizer: merges in order, `"a b"`.
    Bytes { pre: &'static str, merges: Vec<String> },
    /// SentencePiece's BPE: the neighbours whose token has the highest score join first.
    SentencePiece { scores: Vec<f32>, space_prefix: bool },
}

/// A tokenizer, with one token for each row of the embedding.
#[derive(Debug, Clone)]
pub(super) struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<TokenType>,
    splitting: Splitting,
    special: SpecialTokens,
    /// What the user should know.
    pub(super) notes: Vec<String>,
}

impl Vocabulary {
    /// Reads `tokenizer.json`, and `tokenizer_config.json`, `generation_config.json` and `config.json` for the tokens
    /// that begin and end texts. `rows` is the number of rows of the embedding.
    ///
    /// # Errors
    /// - [`ConvertError::Read`], [`ConvertError::Json`] for the files
    /// - [`ConvertError::PreTokenizer`] where llama.cpp has no such pre-tokenizer
    /// - [`ConvertError::Tokenizer`] for what GGUF files cannot express otherwise
    /// - [`ConvertError::TokenizerTooLarge`] where a token has no row
    pub(super) fn read(folder: &Path, rows: usize) -> Result<Self, ConvertError> {
        let file = TokenizerFile::read(folder)?;
        let special = SpecialTokens::read(folder, &file)?;
        let (mut tokens, mut types) = tokens(&file, rows)?;
        let mut notes = Vec::new();
        let splitting = if file.model.byte_fallback {
            let pieces = sentence_piece::read(&file, &mut tokens, &mut types)?;
            Splitting::SentencePiece { scores: pieces.scores, space_prefix: pieces.space_prefix }
        } else {
            notes.extend(check_normalizer(&file)?);
            let found = pre_tokenizer::find(file.pre_tokenizer.as_ref(), file.model.ignore_merges)
                .map_err(|found| ConvertError::PreTokenizer { path: file.path.clone(), found })?;
            notes.extend(found.note.map(|note| format!("pre-tokenizer {}: {note}", found.name)));
            let merges = file.model.merges.iter().filter_map(|merge| merge.pair()).map(|pair| pair.join(" "));
            Splitting::Bytes { pre: found.name, merges: merges.collect() }
        };
        let spaced = |token: &&AddedToken| token.lstrip || token.rstrip || token.single_word;
        if let Some(token) = file.added_tokens.iter().find(spaced) {
            notes.push(format!(
                "llama.cpp keeps the spaces around `{}`, which the tokenizer drops",
                token.content
            ));
        }
        notes.extend_from_slice(&special.notes);
        check_unique(&file, &tokens)?;
        Ok(Self { tokens, types, splitting, special, notes })
    }

    /// Writes the metadata.
    ///
    /// # Errors
    /// Those of [`Header::set`], where a key is set already.
    pub(super) fn set(&self, header: &mut Header) -> Result<(), FormatError> {
        match &self.splitting {
            Splitting::Bytes { pre, .. } => {
                header.set("tokenizer.ggml.model", "gpt2")?;
                header.set("tokenizer.ggml.pre", *pre)?;
            }
            Splitting::SentencePiece { .. } => {
                header.set("tokenizer.ggml.model", "llama")?;
                header.set("tokenizer.ggml.pre", "default")?;
            }
        }
        header.set("tokenizer.ggml.tokens", texts(&self.tokens).as_slice())?;
        let types: Vec<i32> = self.types.iter().map(|kind| *kind as i32).collect();
        header.set("tokenizer.ggml.token_type", types.as_slice())?;
        match &self.splitting {
            Splitting::Bytes { merges, .. } => {
                header.set("tokenizer.ggml.merges", texts(merges).as_slice())?;
            }
            Splitting::SentencePiece { scores, space_prefix } => {
                header.set("tokenizer.ggml.scores", scores.as_slice())?;
                header.set("tokenizer.ggml.add_space_prefix", *space_prefix)?;
            }
        }
        self.special.set(header)
    }
}

fn texts(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

/// A token and its type for each row.
fn tokens(file: &TokenizerFile, rows: usize) -> Result<(Vec<String>, Vec<TokenType>), ConvertError> {
    let mut tokens: Vec<String> = (0..rows).map(|row| format!("[PAD{row}]")).collect();
    let mut types = vec![TokenType::Unused; rows];
    let ids = file.model.vocab.values().copied().chain(file.added_tokens.iter().map(|token| token.id));
    let n_tokens = ids.max().map_or(0, |id| id as usize + 1);
    if n_tokens > rows {
        return Err(ConvertError::TokenizerTooLarge { tokens: n_tokens, rows });
    }
    for (text, &id) in &file.model.vocab {
        let taken = std::mem::replace(&mut types[id as usize], TokenType::Normal) != TokenType::Unused;
        if taken {
            let found = format!("`{text}` and `{}` have the id {id}", tokens[id as usize]);
            return Err(file.refuse("model.vocab", found, "an id for each token"));
        }
        tokens[id as usize].clone_from(text);
    }
    for token in &file.added_tokens {
        let control = token.special || looks_special(&token.content);
        types[token.id as usize] = if control { TokenType::Control } else { TokenType::UserDefined };
        // llama.cpp looks for such tokens before it writes spaces as `▁`.
        tokens[token.id as usize] =
            if control { token.content.clone() } else { token.content.replace('▁', " ") };
    }
    Ok((tokens, types))
}

/// Added tokens that some models forgot to mark as special, as llama.cpp's converter knows them.
fn looks_special(text: &str) -> bool {
    let between = |start, end| text.starts_with(start) && text.ends_with(end);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

/// llama.cpp does not normalize text for byte-level tokenizers.
fn check_normalizer(file: &TokenizerFile) -> Result<Option<String>, ConvertError> {
    let kind =
        file.normalizer.as_ref().map(|step| step.get("type").and_then(Value::as_str).unwrap_or("none"));
    match kind {
        None => Ok(None),
        Some("NFC") => {
            Ok(Some("llama.cpp does not bring text into form NFC first, as the tokenizer does".into()))
        }
        Some(_) => {
            let found = file.normalizer.as_ref().map(Value::to_string).unwrap_or_default();
            Err(file.refuse("normalizer", found, "none or NFC for a byte-level tokenizer"))
        }
    }
}

/// llama.cpp ends itself where two tokens have one text.
fn check_unique(file: &TokenizerFile, tokens: &[String]) -> Result<(), ConvertError> {
    let mut seen = HashMap::with_capacity(tokens.len());
    for (id, text) in tokens.iter().enumerate() {
        if let Some(first) = seen.insert(text, id) {
            let found = format!("`{text}` with the ids {first} and {id}");
            return Err(file.refuse("added_tokens", found, "one id for each text"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_format::gguf::Gguf;
    use serde_json::json;

    /// A folder with these JSON files.
    pub(in crate::gguf) fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, json) in files {
            std::fs::write(folder.path().join(name), json.to_string()).unwrap();
        }
        folder
    }

    /// A byte-level tokenizer of six tokens and one added.
    fn small() -> Value {
        json!({
            "added_tokens": [
                { "id": 0, "content": "<|endoftext|>", "special": true },
                { "id": 6, "content": "a▁word", "special": false },
            ],
            "normalizer": null,
            "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "use_regex": true },
            "post_processor": null,
            "model": {
                "type": "BPE",
                "vocab": { "<|endoftext|>": 0, "a": 1, "b": 2, "Ġ": 3, "ab": 4 },
                "merges": ["a b", ["Ġ", "ab"]],
            },
        })
    }

    fn edited(pointer: &str, value: Value) -> Value {
        let mut json = small();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.into(), value);
        json
    }

    fn refused(tokenizer: Value, others: &[(&str, Value)], rows: usize) -> ConvertError {
        let mut files = vec![("tokenizer.json", tokenizer)];
        files.extend_from_slice(others);
        Vocabulary::read(folder(&files).path(), rows).unwrap_err()
    }

    #[test]
    fn rows_without_a_token_are_padded() {
        let folder = folder(&[("tokenizer.json", small())]);
        let vocabulary = Vocabulary::read(folder.path(), 9).unwrap();
        let mut header = Header::new();
        vocabulary.set(&mut header).unwrap();
        let bytes = header.write_to(Vec::new()).unwrap().finish().unwrap();
        let file = Gguf::read(&bytes).unwrap();
        let texts = |key: &str| {
            let value = file.get(key).unwrap();
            let array = value.as_array().unwrap();
            array.iter().map(|text| text.as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let expected = ["<|endoftext|>", "a", "b", "Ġ", "ab", "[PAD5]", "a word", "[PAD7]", "[PAD8]"];
        assert_eq!(texts("tokenizer.ggml.tokens"), expected);
        assert_eq!(texts("tokenizer.ggml.merges"), ["a b", "Ġ ab"]);
        let types = file.get("tokenizer.ggml.token_type").unwrap();
        assert_eq!(types, [3, 1, 1, 1, 1, 5, 4, 5, 5i32].as_slice().into());
        for (key, value) in [("model", "gpt2"), ("pre", "gpt-2")] {
            assert_eq!(file.get(&format!("tokenizer.ggml.{key}")).unwrap().as_str(), Some(value));
        }
        for key in ["bos", "eos"] {
            assert_eq!(file.get(&format!("tokenizer.ggml.{key}_token_id")).unwrap().as_u64(), Some(0));
            assert_eq!(file.get(&format!("tokenizer.ggml.add_{key}_token")), Some(false.into()));
        }
        assert_eq!(vocabulary.notes.len(), 1, "{:?}", vocabulary.notes);
    }

    #[test]
    fn what_gguf_cannot_say_is_refused() {
        let error = refused(small(), &[], 6);
        assert!(matches!(error, ConvertError::TokenizerTooLarge { tokens: 7, rows: 6 }), "{error}");
        let whitespace = json!({ "type": "Whitespace" });
        let error = refused(edited("/pre_tokenizer", whitespace), &[], 9);
        assert!(
            matches!(&error, ConvertError::PreTokenizer { found, .. } if found.contains("Whitespace")),
            "{error}"
        );
        let same_id = json!({ "a": 1, "b": 1 });
        let padding = json!({ "[PAD5]": 1, "<|endoftext|>": 0, "b": 2 });
        for (pointer, value, field) in [
            ("/normalizer", json!({ "type": "Lowercase" }), "normalizer"),
            ("/model/type", json!("Unigram"), "model.type"),
            ("/model/dropout", json!(0.1), "model.dropout"),
            ("/model/continuing_subword_prefix", json!("##"), "model.continuing_subword_prefix"),
            ("/model/end_of_word_suffix", json!("</w>"), "model.end_of_word_suffix"),
            ("/model/merges", json!([["a b", "c"]]), "model.merges"),
            ("/model/merges", json!(["ab"]), "model.merges"),
            ("/model/vocab", same_id, "model.vocab"),
            ("/model/vocab", padding, "added_tokens"),
            ("/post_processor", json!({ "type": "BertProcessing" }), "post_processor"),
        ] {
            let error = refused(edited(pointer, value), &[], 9);
            assert!(
                matches!(&error, ConvertError::Tokenizer { field: found, .. } if *found == field),
                "{error}"
            );
        }
        let no_end = edited("/added_tokens", json!([]));
        let no_end = {
            let mut json = no_end;
            json["model"]["vocab"] = json!({ "a": 0, "b": 1, "ab": 2 });
            json
        };
        let error = refused(no_end, &[], 9);
        assert!(matches!(error, ConvertError::Tokenizer { field: "eos_token", .. }), "{error}");
        assert!(matches!(refused(json!({ "model": 1 }), &[], 9), ConvertError::Json { .. }));
        assert!(matches!(refused(small(), &[("config.json", json!([]))], 9), ConvertError::Json { .. }));
        let absent = tempfile::tempdir().unwrap();
        assert!(matches!(Vocabulary::read(absent.path(), 9), Err(ConvertError::Read { .. })));
    }

    #[test]
    fn text_that_is_normalized_is_noted() {
        let folder = folder(&[("tokenizer.json", edited("/normalizer", json!({ "type": "NFC" })))]);
        let vocabulary = Vocabulary::read(folder.path(), 7).unwrap();
        assert!(vocabulary.notes.iter().any(|note| note.contains("NFC")), "{:?}", vocabulary.notes);
        let mut spaced = small();
        spaced["added_tokens"][1]["lstrip"] = json!(true);
        let folder = super::tests::folder(&[("tokenizer.json", spaced)]);
        let vocabulary = Vocabulary::read(folder.path(), 7).unwrap();
        assert!(vocabulary.notes.iter().any(|note| note.contains("a▁word")), "{:?}", vocabulary.notes);
    }

    #[test]
    fn forgotten_control_tokens_are_known() {
        for text in ["<pad>", "<|im_start|>", "<｜User｜>", "<unused7>", "[@BOS@]"] {
            assert!(looks_special(text), "{text}");
        }
        for text in ["<h1>", "|>", "pad", "<|a"] {
            assert!(!looks_special(text), "{text}");
        }
    }
}
