//! The tokens that begin, end and pad texts, and the chat template.

use std::collections::BTreeMap;
use std::path::Path;

use bitnet_format::FormatError;
use bitnet_format::gguf::Header;
use serde_json::{Map, Value};

use super::tokenizer_file::TokenizerFile;
use crate::ConvertError;
use crate::json::read_json;

/// Hugging Face's name of a role, and the key in GGUF files.
const ROLES: [(&str, &str); 6] = [
    ("bos", "tokenizer.ggml.bos_token_id"),
    ("eos", "tokenizer.ggml.eos_token_id"),
    ("unk", "tokenizer.ggml.unknown_token_id"),
    ("sep", "tokenizer.ggml.seperator_token_id"), // spelled so in the specification
    ("pad", "tokenizer.ggml.padding_token_id"),
    ("mask", "tokenizer.ggml.mask_token_id"),
];

/// Texts of tokens at which llama.cpp stops by itself; the first are the ends of plain texts.
const ENDS: [&str; 10] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
];

/// What a folder says about special tokens.
#[derive(Debug, Clone, Default)]
pub(super) struct SpecialTokens {
    ids: BTreeMap<&'static str, u32>,
    add_bos: bool,
    add_eos: bool,
    /// The default template, and others by name.
    templates: BTreeMap<String, String>,
    pub(super) notes: Vec<String>,
}

/// The JSON files of a folder that name special tokens; an absent one is empty.
struct Folder<'a> {
    file: &'a TokenizerFile,
    tokenizer_config: Map<String, Value>,
    config: Map<String, Value>,
    generation_config: Map<String, Value>,
}

impl SpecialTokens {
    /// # Errors
    /// [`ConvertError::Read`], [`ConvertError::Json`] for a damaged file; [`ConvertError::Tokenizer`] for a post-processor
    /// that llama.cpp cannot follow, and where no token ends a text.
    pub(super) fn read(folder: &Path, file: &TokenizerFile) -> Result<Self, ConvertError> {
        let object = |name: &str| match folder.join(name) {
            path if !path.is_file() => Ok(Map::new()),
            path => match read_json(&path)? {
                Value::Object(object) => Ok(object),
                _ => Err(ConvertError::Json { path, reason: "is no object".into() }),
            },
        };
        let files = Folder {
            file,
            tokenizer_config: object("tokenizer_config.json")?,
            config: object("config.json")?,
            generation_config: object("generation_config.json")?,
        };
        let mut special = Self::default();
        for (role, key) in ROLES {
            if let Some(&id) = files.ids(role).first() {
                special.ids.insert(key, id);
            }
        }
        special.read_template(&files)?;
        special.find_ends(&files)?;
        special.templates = files.chat_templates(folder)?;
        Ok(special)
    }

    /// Writes the metadata.
    ///
    /// # Errors
    /// Those of [`Header::set`].
    pub(super) fn set(&self, header: &mut Header) -> Result<(), FormatError> {
        for (key, id) in &self.ids {
            header.set(key, *id)?;
        }
        header.set("tokenizer.ggml.add_bos_token", self.add_bos)?;
        header.set("tokenizer.ggml.add_eos_token", self.add_eos)?;
        let others: Vec<&str> =
            self.templates.keys().map(String::as_str).filter(|name| *name != "default").collect();
        for (name, template) in &self.templates {
            match name.as_str() {
                "default" => header.set("tokenizer.chat_template", template.as_str())?,
                name => header.set(&format!("tokenizer.chat_template.{name}"), template.as_str())?,
            }
        }
        if !others.is_empty() {
            header.set("tokenizer.chat_templates", others.as_slice())?;
        }
        Ok(())
    }

    /// Which tokens the tokenizer puts around a text.
    fn read_template(&mut self, files: &Folder) -> Result<(), ConvertError> {
        let flag = |name: &str| files.tokenizer_config.get(name).and_then(Value::as_bool).unwrap_or(false);
        let [bos, eos] = [ROLES[0].1, ROLES[1].1];
        let Some([before, after]) = around_text(files.file)? else {
            self.add_bos = flag("add_bos_token") && self.ids.contains_key(bos);
            self.add_eos = flag("add_eos_token") && self.ids.contains_key(eos);
            return Ok(());
        };
        // llama.cpp puts the token that begins texts there: that is what this one does.
        if let Some(id) = before {
            self.ids.insert(bos, id);
        }
        if after.is_some() && after != self.ids.get(eos).copied() {
            let found = format!("a template that ends texts with token {}", after.unwrap_or_default());
            return Err(files.file.refuse("post_processor", found, "eos_token or nothing at the end"));
        }
        (self.add_bos, self.add_eos) = (before.is_some(), after.is_some());
        Ok(())
    }

    /// The token that ends a text, and others that do.
    fn find_ends(&mut self, files: &Folder) -> Result<(), ConvertError> {
        let [bos, eos] = [ROLES[0].1, ROLES[1].1];
        let stop = match self.ids.get(eos) {
            Some(&id) => id,
            None => {
                let known = ENDS.iter().find_map(|text| files.file.id(text).map(|id| (text, id)));
                let Some((text, id)) = known else {
                    let expected = "eos_token in tokenizer_config.json, or eos_token_id in config.json: llama.cpp would \
                                    take an ordinary token for it";
                    return Err(files.file.refuse("eos_token", "none", expected));
                };
                self.notes.push(format!("no eos_token is named: `{text}` is taken, which llama.cpp knows"));
                self.ids.insert(eos, id);
                id
            }
        };
        // Without the key, llama.cpp takes token 11 for the one that begins texts.
        self.ids.entry(bos).or_insert(stop);
        let known = |id: u32| ENDS.iter().any(|text| files.file.id(text) == Some(id));
        let mut others = files.ids("eos");
        others.retain(|&id| id != stop && !known(id));
        let keys = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
        self.ids.extend(keys.into_iter().zip(others.iter().copied()));
        if let Some(id) = others.get(keys.len()) {
            self.notes.push(format!("llama.cpp does not stop at token {id}, which eos_token_id lists"));
        }
        Ok(())
    }
}

impl Folder<'_> {
    /// All ids that the files give a role, the most important first, each once.
    fn ids(&self, role: &str) -> Vec<u32> {
        let named = match self.tokenizer_config.get(&format!("{role}_token")) {
            Some(Value::String(text)) => Some(text.as_str()),
            Some(token) => token.get("content").and_then(Value::as_str),
            None => None,
        };
        let key = format!("{role}_token_id");
        let listed = [&self.config, &self.generation_config].into_iter().filter_map(|json| json.get(&key));
        let numbers = listed.flat_map(|value| match value {
            Value::Array(list) => list.iter().collect(),
            value => vec![value],
        });
        let numbers = numbers.filter_map(|value| u32::try_from(value.as_u64()?).ok());
        let mut ids = Vec::new();
        for id in named.and_then(|text| self.file.id(text)).into_iter().chain(numbers) {
            let exists = self.file.added_tokens.iter().any(|token| token.id == id)
                || self.file.model.vocab.values().any(|other| *other == id);
            if exists && !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    fn chat_templates(&self, folder: &Path) -> Result<BTreeMap<String, String>, ConvertError> {
        let path = folder.join("chat_template.jinja");
        let named = |template: &Value| {
            let text = |key: &str| template.get(key).and_then(Value::as_str).map(str::to_owned);
            Some((text("name")?, text("template")?))
        };
        Ok(match self.tokenizer_config.get("chat_template") {
            Some(Value::String(template)) => BTreeMap::from([("default".to_owned(), template.clone())]),
            Some(Value::Array(list)) => list.iter().filter_map(named).collect(),
            _ if path.is_file() => {
                let template = std::fs::read_to_string(&path)
                    .map_err(|source| ConvertError::Read { path: path.clone(), source })?;
                BTreeMap::from([("default".to_owned(), template)])
            }
            _ => BTreeMap::new(),
        })
    }
}

/// The tokens that the post-processor puts before and after a text; `None` where there is none.
fn around_text(file: &TokenizerFile) -> Result<Option<[Option<u32>; 2]>, ConvertError> {
    let Some(processor) = &file.post_processor else {
        return Ok(None);
    };
    let steps = match processor.get("processors").and_then(Value::as_array) {
        Some(steps) => steps.iter().collect(),
        None => vec![processor],
    };
    let mut around = [None, None];
    for step in steps {
        match step.get("type").and_then(Value::as_str) {
            Some("ByteLevel") => {}
            Some("TemplateProcessing") => {
                let pieces = step.get("single").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let text = pieces.iter().position(|piece| piece.get("Sequence").is_some());
                let sides = text.map(|text| [&pieces[..text], &pieces[text + 1..]]);
                for (side, pieces) in sides.into_iter().flatten().enumerate() {
                    around[side] = match pieces {
                        [] => None,
                        [piece] => piece
                            .pointer("/SpecialToken/id")
                            .and_then(Value::as_str)
                            .and_then(|token| file.id(token)),
                        _ => None,
                    };
                    if around[side].is_none() && !pieces.is_empty() {
                        let expected = "at most one known token before a text and one after it";
                        return Err(file.refuse("post_processor", step.to_string(), expected));
                    }
                }
            }
            _ => {
                let expected = "ByteLevel, TemplateProcessing or none";
                return Err(file.refuse("post_processor", step.to_string(), expected));
            }
        }
    }
    Ok(Some(around))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_format::gguf::{Gguf, Value as GgufValue};
    use serde_json::json;

    /// Tokens `<s>` 0, `</s>` 1, `<x>` 2, `<y>` 3, `<z>` 4, `a` 5.
    fn tokenizer(post_processor: &Value) -> Value {
        let added = ["<s>", "</s>", "<x>", "<y>", "<z>"];
        let added = added.iter().enumerate();
        let added: Vec<Value> =
            added.map(|(id, text)| json!({ "id": id, "content": text, "special": true })).collect();
        json!({
            "added_tokens": added,
            "post_processor": post_processor,
            "model": { "type": "BPE", "vocab": { "a": 5 }, "merges": [] },
        })
    }

    fn read(post_processor: &Value, files: &[(&str, Value)]) -> Result<SpecialTokens, ConvertError> {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = ("tokenizer.json", tokenizer(post_processor));
        for (name, json) in files.iter().chain([&tokenizer]) {
            std::fs::write(folder.path().join(name), json.to_string()).unwrap();
        }
        std::fs::write(folder.path().join("chat_template.jinja"), "from a file").unwrap();
        SpecialTokens::read(folder.path(), &TokenizerFile::read(folder.path())?)
    }

    /// The metadata without `tokenizer.ggml.` and `tokenizer.`.
    fn metadata(special: &SpecialTokens) -> BTreeMap<String, String> {
        let mut header = Header::new();
        special.set(&mut header).unwrap();
        let bytes = header.write_to(Vec::new()).unwrap().finish().unwrap();
        let file = Gguf::read(&bytes).unwrap();
        let text = |value: GgufValue| match value {
            GgufValue::U32(id) => id.to_string(),
            GgufValue::Bool(flag) => flag.to_string(),
            GgufValue::String(text) => text.into(),
            GgufValue::Array(list) => format!("{} texts", list.len()),
            other => format!("{other:?}"),
        };
        let short = |key: &str| key.trim_start_matches("tokenizer.").trim_start_matches("ggml.").to_owned();
        file.metadata().map(|(key, value)| (short(key), text(value))).collect()
    }

    fn template(before: &[&str], after: &[&str]) -> Value {
        let token = |text: &&str| json!({ "SpecialToken": { "id": text, "type_id": 0 } });
        let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
        let single: Vec<Value> =
            before.iter().map(token).chain([text]).chain(after.iter().map(token)).collect();
        json!({ "type": "Sequence", "processors": [
            { "type": "ByteLevel" }, { "type": "TemplateProcessing", "single": single },
        ] })
    }

    #[test]
    fn roles_come_from_the_most_specific_file() {
        let special = read(
            &Value::Null,
            &[
                (
                    "tokenizer_config.json",
                    json!({
                        "eos_token": { "content": "<x>" }, "pad_token": "</s>", "unk_token": "absent",
                        "add_bos_token": true, "chat_template": "plain",
                    }),
                ),
                ("config.json", json!({ "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": null })),
                ("generation_config.json", json!({ "eos_token_id": [2, 3, 4, 99] })),
            ],
        );
        let special = special.unwrap();
        let expected = [
            ("add_bos_token", "true"),
            ("add_eos_token", "false"),
            ("bos_token_id", "0"),
            ("chat_template", "plain"),
            ("eom_token_id", "4"),
            ("eos_token_id", "2"),
            ("eot_token_id", "3"), // `</s>` is known to llama.cpp, and there is no token 99
            ("padding_token_id", "1"),
        ];
        assert_eq!(metadata(&special), expected.map(|(k, v)| (k.into(), v.into())).into());
        assert_eq!(special.notes, Vec::<String>::new());
    }

    #[test]
    fn the_post_processor_says_what_is_added() {
        let around = |before: &[&str], after: &[&str], config: Value| {
            read(&template(before, after), &[("tokenizer_config.json", config)]).map(|s| metadata(&s))
        };
        let config = json!({ "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true });
        let found = around(&[], &[], config.clone()).unwrap();
        assert_eq!((&*found["add_bos_token"], &*found["bos_token_id"]), ("false", "0"));
        let found = around(&["<s>"], &["</s>"], config.clone()).unwrap();
        assert_eq!((&*found["add_bos_token"], &*found["add_eos_token"]), ("true", "true"));
        let found = around(&["<x>"], &[], config.clone()).unwrap();
        assert_eq!((&*found["add_bos_token"], &*found["bos_token_id"]), ("true", "2"));
        for (before, after) in [(&["<s>", "<x>"][..], &[][..]), (&["none"], &[]), (&[], &["<x>"])] {
            let error = around(before, after, config.clone()).unwrap_err();
            assert!(matches!(error, ConvertError::Tokenizer { field: "post_processor", .. }), "{error}");
        }
    }

    #[test]
    fn an_end_is_found_or_asked_for() {
        let special = read(&Value::Null, &[]).unwrap();
        let found = metadata(&special);
        assert_eq!((&*found["eos_token_id"], &*found["bos_token_id"]), ("1", "1"));
        assert_eq!(found["chat_template"], "from a file");
        assert_eq!(special.notes.len(), 1);
        let many = json!({ "eos_token_id": [1, 0, 2, 3] });
        let special = read(&Value::Null, &[("generation_config.json", many)]).unwrap();
        assert!(special.notes[0].contains("token 3"), "{:?}", special.notes);
    }

    #[test]
    fn templates_may_have_names() {
        let templates = json!({ "eos_token": "</s>", "chat_template": [
            { "name": "default", "template": "d" }, { "name": "tool_use", "template": "t" },
        ] });
        let found = metadata(&read(&Value::Null, &[("tokenizer_config.json", templates)]).unwrap());
        let keys = ["chat_template", "chat_template.tool_use", "chat_templates"];
        assert_eq!(keys.map(|key| found[key].as_str()), ["d", "t", "1 texts"]);
    }
}
