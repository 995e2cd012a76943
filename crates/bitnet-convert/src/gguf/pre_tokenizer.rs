//! Which of llama.cpp's pre-tokenizers splits text as a `tokenizer.json` does.
//!
//! A GGUF file does not hold the splitting rules, only a name for them in `tokenizer.ggml.pre`; a wrong name gives
//! wrong tokens without an error. So the name is found from the rules themselves, and unknown rules are refused.
//!
//! Source: `llm_tokenizer_bpe` and `llama_vocab::impl::load` in llama.cpp's `llama-vocab.cpp`, which quotes each
//! tokenizer's own regular expressions.

use serde_json::Value;

/// What `ByteLevel` splits by where it uses a regular expression: GPT-2's.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// One of llama.cpp's pre-tokenizers.
struct Known {
    /// Its name in `tokenizer.ggml.pre`.
    name: &'static str,
    /// Whether it takes a word that is a token as it is, without merging.
    ignore_merges: bool,
    /// The expressions that split a text, one after the other, line ends written as escapes.
    splits: &'static [&'static str],
    /// Where llama.cpp's own expression differs from the tokenizer's.
    differs: Option<&'static str>,
}

/// Of several names for the same rules, the one whose model is best known.
const KNOWN: [Known; 13] = {
    const fn exact(name: &'static str, ignore_merges: bool, splits: &'static [&'static str]) -> Known {
        Known { name, ignore_merges, splits, differs: None }
    }
    const CASE: Option<&str> = Some(
        "llama.cpp knows upper and lower case in ASCII only, and no combining marks: words of other scripts may get \
         other tokens",
    );
    [
        exact("gpt-2", false, &[GPT2]),
        exact("smollm", false, &[r"\p{N}", GPT2]),
        exact("llama-bpe", true, &[LLAMA3]),
        exact("smaug-bpe", false, &[LLAMA3]),
        exact("qwen2", false, &[QWEN2]),
        exact("qwen35", false, &[QWEN35]),
        exact("minicpm5", true, &[r"\p{N}{1,3}", MINICPM5]),
        exact("seed-coder", false, &[SEED_CODER]),
        exact("bailingmoe", false, &[BAILING]),
        exact(
            "deepseek-coder",
            false,
            &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
        ),
        exact("deepseek-v3", false, &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3]),
        Known { name: "tekken", ignore_merges: true, splits: &[TEKKEN], differs: CASE },
        Known { name: "gpt-4o", ignore_merges: false, splits: &[GPT4O], differs: CASE },
    ]
};

/// A pre-tokenizer that llama.cpp has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PreTokenizer {
    /// The value of `tokenizer.ggml.pre`.
    pub(super) name: &'static str,
    /// What the user should know about it.
    pub(super) note: Option<&'static str>,
}

/// Finds llama.cpp's pre-tokenizer for a `pre_tokenizer` object and a model's `ignore_merges`.
///
/// # Errors
/// What was found instead, in words.
pub(super) fn find(pre_tokenizer: Option<&Value>, ignore_merges: bool) -> Result<PreTokenizer, String> {
    let mut rules = Rules::default();
    rules.read(pre_tokenizer.ok_or("no pre_tokenizer")?)?;
    if !rules.byte_level {
        return Err(format!("splits by {:?} without ByteLevel", rules.splits));
    }
    let same_splits: Vec<&Known> = KNOWN.iter().filter(|known| known.splits == rules.splits).collect();
    match same_splits.iter().find(|known| known.ignore_merges == ignore_merges) {
        Some(known) => Ok(PreTokenizer { name: known.name, note: known.differs }),
        None if same_splits.is_empty() => Err(format!("splits by {:?}", rules.splits)),
        None => {
            let names: Vec<&str> = same_splits.iter().map(|known| known.name).collect();
            Err(format!("the splits of {}, but ignore_merges is {ignore_merges}", names.join(", ")))
        }
    }
}

/// The rules of a pre-tokenizer, as regular expressions that isolate what they match.
#[derive(Default)]
struct Rules {
    splits: Vec<String>,
    byte_level: bool,
}

impl Rules {
    fn read(&mut self, step: &Value) -> Result<(), String> {
        let flag = |name: &str| step.get(name).and_then(Value::as_bool);
        let unknown = || Err(format!("the pre_tokenizer step {step}"));
        if self.byte_level {
            return Err(format!("the pre_tokenizer step {step} after ByteLevel"));
        }
        match step.get("type").and_then(Value::as_str) {
            Some("Sequence") => {
                let steps = step.get("pretokenizers").and_then(Value::as_array);
                steps.into_iter().flatten().try_for_each(|step| self.read(step))
            }
            Some("ByteLevel") if flag("add_prefix_space") == Some(false) => {
                self.byte_level = true;
                if flag("use_regex").unwrap_or(true) {
                    self.splits.push(GPT2.into());
                }
                Ok(())
            }
            Some("Digits") => {
                let alone = flag("individual_digits").unwrap_or(false);
                self.splits.push(if alone { r"\p{N}" } else { r"\p{N}+" }.into());
                Ok(())
            }
            Some("Split") => {
                let regex = step.pointer("/pattern/Regex").and_then(Value::as_str);
                let behavior = step.get("behavior").and_then(Value::as_str);
                let Some(regex) = regex else {
                    return unknown();
                };
                match (behavior, flag("invert").unwrap_or(false)) {
                    (Some("Isolated"), false) => {}
                    // Everything but the matches is removed, and nothing escapes such an expression.
                    (Some("Removed"), true) if regex.ends_with(r"|\s+(?!\S)|\s+") => {}
                    _ => return unknown(),
                }
                self.splits.push(regex.replace('\r', r"\r").replace('\n', r"\n"));
                Ok(())
            }
            _ => unknown(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn byte_level(use_regex: bool) -> Value {
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
    }

    fn split(regex: &str) -> Value {
        json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false })
    }

    fn sequence(steps: &[Value]) -> Value {
        json!({ "type": "Sequence", "pretokenizers": steps })
    }

    fn name(rules: &Value, ignore_merges: bool) -> Result<&'static str, String> {
        find(Some(rules), ignore_merges).map(|found| found.name)
    }

    #[test]
    fn every_known_pre_tokenizer_is_found() {
        for known in &KNOWN {
            let mut steps: Vec<Value> = known.splits.iter().map(|regex| split(regex)).collect();
            steps.push(byte_level(false));
            let found = find(Some(&sequence(&steps)), known.ignore_merges).unwrap();
            assert_eq!(found, PreTokenizer { name: known.name, note: known.differs });
        }
    }

    #[test]
    fn the_models_own_files_are_understood() {
        assert_eq!(name(&byte_level(true), false), Ok("gpt-2"));
        assert_eq!(name(&sequence(&[byte_level(true)]), false), Ok("gpt-2"));
        let digits = json!({ "type": "Digits", "individual_digits": true });
        assert_eq!(name(&sequence(&[digits, byte_level(true)]), false), Ok("smollm"));
        assert_eq!(name(&sequence(&[split(LLAMA3), byte_level(false)]), true), Ok("llama-bpe"));
        let nested = sequence(&[sequence(&[split(QWEN2)]), byte_level(false)]);
        assert_eq!(name(&nested, false), Ok("qwen2"));
        let removed = json!({
            "type": "Split", "pattern": { "Regex": QWEN2 }, "behavior": "Removed", "invert": true,
        });
        assert_eq!(name(&sequence(&[removed, byte_level(false)]), false), Ok("qwen2"));
        let line_ends = split(&LLAMA3.replace(r"\r", "\r").replace(r"\n", "\n"));
        assert_eq!(name(&sequence(&[line_ends, byte_level(false)]), true), Ok("llama-bpe"));
    }

    #[test]
    fn others_are_described() {
        let with_space = json!({ "type": "ByteLevel", "add_prefix_space": true, "use_regex": true });
        let all_digits = json!({ "type": "Digits", "individual_digits": false });
        let text =
            json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "Isolated", "invert": false });
        let removed = json!({
            "type": "Split", "pattern": { "Regex": "[0-9]" }, "behavior": "Removed", "invert": true,
        });
        for (rules, ignore_merges, expected) in [
            (with_space, false, "add_prefix_space"),
            (json!({ "type": "Whitespace" }), false, "Whitespace"),
            (json!({}), false, "{}"),
            (text, false, "String"),
            (removed, false, "Removed"),
            (sequence(&[]), false, "without ByteLevel"),
            (split(LLAMA3), true, "without ByteLevel"),
            (sequence(&[byte_level(false), split(LLAMA3)]), true, "after ByteLevel"),
            (sequence(&[all_digits, byte_level(true)]), false, r"\\p{N}+"),
            (sequence(&[split(QWEN2), byte_level(false)]), true, "qwen2, but ignore_merges is true"),
        ] {
            let found = name(&rules, ignore_merges).unwrap_err();
            assert!(found.contains(expected), "{rules}: {found}");
        }
        assert_eq!(find(None, false), Err("no pre_tokenizer".into()));
    }
}
