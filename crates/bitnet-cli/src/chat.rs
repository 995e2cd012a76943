//! Chat templates, as transformers renders them.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::{Map, Value};

use crate::error::CliError;
use crate::json::to_python;
use crate::strftime;

/// What one side said.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    role: &'static str,
    content: String,
}

impl Message {
    pub(crate) fn new(role: &'static str, content: &str) -> Self {
        Self { role, content: content.into() }
    }
}

/// The template of a model: that of its own file, else the one in `tokenizer_config.json`, which may be one of several
/// with names.
pub(crate) fn template(file: Option<String>, tokenizer_config: &Map<String, Value>) -> Option<String> {
    let from_config = || match tokenizer_config.get("chat_template")? {
        Value::String(template) => Some(template.clone()),
        Value::Array(templates) => {
            let default = templates.iter().find(|template| template["name"] == "default")?;
            Some(default["template"].as_str()?.to_owned())
        }
        _ => None,
    };
    file.or_else(from_config)
}

/// The text of a conversation that the model is to answer.
///
/// # Errors
/// [`CliError::ChatTemplate`] where the template cannot be read, fails, or refuses the conversation.
pub(crate) fn render(
    template: &str,
    messages: &[Message],
    tokenizer_config: &Map<String, Value>,
) -> Result<String, CliError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| CliError::ChatTemplate { reason: error.to_string() })?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |reason: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, reason))
    });
    environment.add_function("strftime_now", |format: String| {
        strftime::now(&format).map_err(|letter| {
            Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know `{letter}`"))
        })
    });
    environment.add_filter("tojson", |value: minijinja::Value, options: Kwargs| {
        let indent = options.get("indent")?;
        let _: Option<bool> = options.get("ensure_ascii")?; // text is never escaped, as transformers' filter has it
        options.assert_all_used()?;
        to_python(&value, indent).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
    let token = |name: &str| match tokenizer_config.get(name) {
        Some(Value::Object(token)) => token.get("content").and_then(Value::as_str).unwrap_or_default(),
        Some(token) => token.as_str().unwrap_or_default(),
        None => "",
    };
    let messages = messages.iter().map(|Message { role, content }| {
        minijinja::Value::from_pairs([("role", *role), ("content", content)])
    });
    let variables = context! {
        messages => messages.collect::<minijinja::Value>(),
        add_generation_prompt => true,
        bos_token => token("bos_token"),
        eos_token => token("eos_token"),
        pad_token => token("pad_token"),
        unk_token => token("unk_token"),
    };
    let rendered = environment.render_str(&without_generation_marks(template), variables);
    rendered.map_err(|error| CliError::ChatTemplate {
        reason: error.detail().map_or_else(|| error.to_string(), str::to_owned),
    })
}

/// The template without `{% generation %}` and `{% endgeneration %}`: they mark what a model said, for training, and
/// write nothing. A condition that holds in their place treats the white space around it in the same way.
fn without_generation_marks(template: &str) -> String {
    let mut text = template.to_owned();
    for (word, same) in [("generation", "if true"), ("endgeneration", "endif")] {
        for open in ["{%", "{%-"] {
            text = text.replace(&format!("{open} {word} "), &format!("{open} {same} "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    /// Templates of well-known models, and what transformers makes of conversations with them.
    #[test]
    fn templates_render_as_transformers_renders_them() {
        let cases: Vec<Value> = serde_json::from_str(include_str!("../tests/data/chat.json")).unwrap();
        assert!(cases.len() >= 10);
        for case in cases {
            let template = case["template"].as_str().unwrap();
            let messages: Vec<Message> = case["messages"]
                .as_array()
                .unwrap()
                .iter()
                .map(|message| {
                    let role = match message["role"].as_str().unwrap() {
                        "system" => "system",
                        "user" => "user",
                        _ => "assistant",
                    };
                    Message::new(role, message["content"].as_str().unwrap())
                })
                .collect();
            let found = render(template, &messages, &object(case["tokens"].clone()));
            match case["rendered"].as_str() {
                Some(expected) => assert_eq!(found.unwrap(), expected, "{}", case["name"]),
                None => {
                    let error = found.unwrap_err().to_string();
                    assert!(error.contains(case["error"].as_str().unwrap()), "{}: {error}", case["name"]);
                }
            }
        }
    }

    #[test]
    fn a_template_is_found_where_transformers_looks() {
        let own = || Some("file".to_owned());
        let one = object(json!({ "chat_template": "config" }));
        let named = json!([{ "name": "tool_use", "template": "t" }, { "name": "default", "template": "d" }]);
        let several = object(json!({ "chat_template": named }));
        assert_eq!(template(own(), &one).as_deref(), Some("file"));
        assert_eq!(template(None, &one).as_deref(), Some("config"));
        assert_eq!(template(None, &several).as_deref(), Some("d"));
        for without in [json!({}), json!({ "chat_template": null }), json!({ "chat_template": [] })] {
            assert_eq!(template(None, &object(without)), None);
        }
    }

    #[test]
    fn what_a_template_may_call() {
        let render = |template: &str| render(template, &[Message::new("user", "<b>'é'")], &Map::new());
        assert_eq!(render("{{ messages[0] | tojson }}").unwrap(), r#"{"content": "<b>'é'", "role": "user"}"#);
        assert_eq!(render("{{ [1] | tojson(indent=2) }}").unwrap(), "[\n  1\n]");
        assert_eq!(render("{{ strftime_now('%Y') | length }}").unwrap(), "4");
        assert!(render("{{ strftime_now('%Q') }}").unwrap_err().to_string().contains("`%Q`"));
        assert_eq!(render("{%- generation %} a {%- endgeneration -%} b").unwrap(), " ab");
        for broken in ["{% if", "{{ nothing() }}", "{{ raise_exception('no') }}"] {
            assert!(matches!(render(broken), Err(CliError::ChatTemplate { .. })), "{broken}");
        }
    }
}
