//! `bitnet generate`: the tokens of transformers, seeds, stops, chats.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, json};
use tempfile::TempDir;

use crate::support::{Run, copy, edit_json, repository, rows};

/// Tokens of the golden prompt; the reference continues it.
const PROMPT: usize = 8;

/// A golden model with a tokenizer whose words are its tokens: `t17` is token 17. No token ends its texts.
fn golden(work: &TempDir) -> PathBuf {
    let folder = work.path().join("golden");
    copy(&repository("tests/data/hf/llama_tied"), &folder);
    let vocab: Map<_, _> = (0..512).map(|id| (format!("t{id}"), json!(id))).collect();
    let end = json!({
        "id": 0, "content": "t0", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true,
    });
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [end], "normalizer": null, "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": null, "decoder": null, "model": { "type": "WordLevel", "unk_token": "t1", "vocab": vocab },
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::remove_file(folder.join("generation_config.json")).unwrap();
    fs::remove_file(folder.join("tokenizer_config.json")).unwrap();
    edit_json(&folder.join("config.json"), |config| config["eos_token_id"] = json!(null));
    folder
}

/// The golden prompt, and the words that follow it.
fn words() -> (String, Vec<String>) {
    let greedy = rows(&repository("tests/data/hf/llama_tied/ref.safetensors"), "greedy").remove(0);
    let words: Vec<String> = greedy.iter().map(|token| format!("t{token}")).collect();
    (words[..PROMPT].join(" "), words[PROMPT..].to_vec())
}

fn generate(model: &Path, flags: &[&str]) -> Run {
    crate::support::run(crate::support::command().arg("generate").arg(model).args(flags))
}

/// The words that were printed.
fn printed(run: Run) -> Vec<String> {
    run.ok().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let work = tempfile::tempdir().unwrap();
    let (model, (prompt, expected)) = (golden(&work), words());
    let n = expected.len().to_string();
    for flags in [&["--head", "f32"][..], &["--head", "auto", "--threads", "1"]] {
        let flags = [&["--prompt", &prompt, "--max-tokens", &n], flags].concat();
        assert_eq!(printed(generate(&model, &flags)), expected, "{flags:?}");
    }
    let run = generate(&model, &["--prompt", &prompt, "--max-tokens", "3"]);
    assert!(run.err.starts_with("8 tokens of prompt, 3 new ones in "), "{}", run.err);
    assert_eq!(printed(run), expected[..3]);
    let run = generate(&model, &["--prompt", &prompt, "--max-tokens", "3", "--quiet"]);
    assert_eq!(run.err, "");
    assert_eq!(printed(run), expected[..3]);
}

#[test]
fn a_seed_draws_the_same_text_again() {
    let work = tempfile::tempdir().unwrap();
    let (model, (prompt, expected)) = (golden(&work), words());
    let draw = |flags: &[&str]| {
        let flags = [&["--prompt", &prompt, "--max-tokens", "12", "--temperature", "1.5"], flags].concat();
        printed(generate(&model, &flags))
    };
    let first = draw(&["--seed", "1"]);
    assert_eq!(draw(&["--seed", "1"]), first);
    assert_ne!(draw(&["--seed", "2"]), first);
    assert_eq!(draw(&["--top-k", "1"]), expected[..12]);
    assert_eq!(draw(&["--top-p", "1e-9"]), expected[..12]);
}

#[test]
fn texts_end_at_stop_tokens_and_before_stop_strings() {
    let work = tempfile::tempdir().unwrap();
    let (model, (prompt, expected)) = (golden(&work), words());
    let flags =
        |more: &'static [&'static str]| [&["--prompt", prompt.as_str(), "--max-tokens", "12"], more].concat();
    let until = |word: &str| expected[..expected.iter().position(|other| other == word).unwrap()].to_vec();
    let stop = expected[4].clone();

    let text = generate(&model, &["--prompt", &prompt, "--stop", &stop]).ok();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), until(&stop));

    let id: u32 = stop[1..].parse().unwrap();
    for file in ["config.json", "generation_config.json"] {
        fs::write(model.join("generation_config.json"), "{}").unwrap();
        edit_json(&model.join("config.json"), |config| config["eos_token_id"] = json!(null));
        edit_json(&model.join(file), |config| config["eos_token_id"] = json!([511, id]));
        assert_eq!(printed(generate(&model, &flags(&[]))), until(&stop), "{file}");
        let with_stop = [until(&stop), vec![stop.clone()]].concat();
        assert_eq!(printed(generate(&model, &flags(&["--raw"]))), with_stop, "{file}");
    }
    fs::write(model.join("generation_config.json"), "{}").unwrap();
    edit_json(&model.join("config.json"), |config| config["eos_token_id"] = json!(null));
    fs::write(model.join("tokenizer_config.json"), json!({ "eos_token": { "content": stop } }).to_string())
        .unwrap();
    assert_eq!(printed(generate(&model, &flags(&[]))), until(&stop));
}

#[test]
fn a_chat_goes_through_the_models_template() {
    let work = tempfile::tempdir().unwrap();
    let (model, (prompt, expected)) = (golden(&work), words());
    let (system, rest) = prompt.split_once(' ').unwrap();
    let (message, last) = rest.rsplit_once(' ').unwrap();

    let error = generate(&model, &["--chat", message]).failed();
    assert!(error.contains("no chat template"), "{error}");

    // The golden prompt, as a conversation.
    let template = format!(
        "{{% for message in messages %}}{{{{ message.content }}}} {{% endfor %}}\
         {{% if add_generation_prompt %}}{last}{{% endif %}}"
    );
    let config = json!({ "chat_template": template });
    fs::write(model.join("tokenizer_config.json"), config.to_string()).unwrap();
    let flags = ["--chat", message, "--system", system, "--max-tokens", "5"];
    assert_eq!(printed(generate(&model, &flags)), expected[..5]);

    // The file of its own goes first.
    fs::write(model.join("chat_template.jinja"), "{{ raise_exception('no ' + messages[0].role) }}").unwrap();
    let error = generate(&model, &flags).failed();
    assert_eq!(error, "the chat template cannot be used: no system");
}

#[test]
fn packed_models_and_gguf_files_generate_the_same_text() {
    let work = tempfile::tempdir().unwrap();
    let bit = work.path().join("bit");
    bitnet!("convert", &crate::support::small(), &bit, "--sub-norm", "none").ok();
    let tokenizer = crate::support::small();
    let text = |model: &Path| {
        let mut command = crate::support::command();
        command.arg("generate").arg(model).args([
            "--prompt",
            "Once upon a time",
            "--max-tokens",
            "16",
            "--quiet",
        ]);
        crate::support::run(command.arg("--tokenizer").arg(&tokenizer)).ok()
    };
    let expected = text(&bit);
    assert!(expected.trim().len() > 8, "{expected}");
    for format in ["hf-autobitlinear", "gguf-tq2_0"] {
        let target = work.path().join(format);
        bitnet!("export", &bit, &target, "--format", format).ok();
        assert_eq!(text(&target), expected, "{format}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let (model, (prompt, _)) = (golden(&work), words());
    let error = generate(&model, &["--prompt", &prompt, "--max-tokens", "249"]).failed();
    assert!(error.contains("257 tokens: the model has 256 positions"), "{error}");
    let error = generate(&model, &["--prompt", ""]).failed();
    assert!(error.contains("[0] tokens"), "{error}");
    fs::remove_file(model.join("tokenizer.json")).unwrap();
    let error = generate(&model, &["--prompt", "a"]).failed();
    assert!(error.contains("tokenizer.json` does not exist"), "{error}");
}
