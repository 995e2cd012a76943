//! The report is what its schema says.

use std::fs;
use std::path::Path;

use bitnet_compress::{PAGE, STATS};
use serde_json::Value;

use crate::support::*;

/// Where a value differs from a schema of those keywords that ours has.
fn problems(value: &Value, schema: &Value, at: &str, found: &mut Vec<String>) {
    let is = |name: &Value| match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("type {other}"),
    };
    let types = &schema["type"];
    if !types.as_array().map_or_else(|| is(types), |types| types.iter().any(is)) {
        found.push(format!("{at}: {value} is no {types}"));
    }
    if schema["enum"].as_array().is_some_and(|values| !values.contains(value)) {
        found.push(format!("{at}: {value} is none of {}", schema["enum"]));
    }
    if !schema["items"].is_null() {
        for (i, item) in value.as_array().into_iter().flatten().enumerate() {
            problems(item, &schema["items"], &format!("{at}[{i}]"), found);
        }
    }
    let (Some(known), Some(object)) = (schema["properties"].as_object(), value.as_object()) else { return };
    for name in schema["required"].as_array().unwrap() {
        if !object.contains_key(name.as_str().unwrap()) {
            found.push(format!("{at}: {name} is missing"));
        }
    }
    for (name, value) in object {
        match known.get(name) {
            Some(schema) => problems(value, schema, &format!("{at}.{name}"), found),
            None => found.push(format!("{at}: {name} is unknown")),
        }
    }
}

#[test]
fn reports_follow_the_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compression-stats.schema.json");
    let schema: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let short = "calibration = { windows = 4 }\neval = { every = 1, windows = 2 }";
    for settings in [
        "",
        "train = { steps = 1 }\nexclude = ['*.o_proj']\ndtype = 'bf16'\nlrc = { init = { calibrated = { rounds = 0 } } }",
        "train = { steps = 1 }\nexport = { gguf = 'f16' }",
    ] {
        let work = Work::new("llama_tied");
        let report = work.run(&format!("{short}\n{settings}")).unwrap();
        let json: Value = serde_json::from_slice(&fs::read(work.target().join(STATS)).unwrap()).unwrap();
        let mut found = Vec::new();
        problems(&json, &schema, "", &mut found);
        assert_eq!(found, Vec::<String>::new());
        assert_eq!(json["model"]["lrc"].is_array(), settings.contains("lrc"));
        assert_eq!(json["model"]["gguf"].is_object(), settings.contains("gguf"));

        // And the check can fail.
        let mut wrong = json;
        wrong["model"]["verdict"]["ratio"] = "low".into();
        wrong["model"]["calibration"][0]["extra"] = 1.into();
        wrong["model"].as_object_mut().unwrap().remove("perplexity");
        problems(&wrong, &schema, "", &mut found);
        assert_eq!(found.len(), 3, "{found:?}");

        let page = fs::read_to_string(work.target().join(PAGE)).unwrap();
        for word in ["model.layers.2.mlp.down_proj.weight", "weights alone", "mlp.down_proj", "TQ1_0"] {
            assert!(page.contains(word), "{word}");
        }
        assert_eq!(page.matches("<svg").count(), 5);
        assert!(page.contains(&format!("{:.4}", report.model.perplexity.result)));
        assert!(
            !page.contains("<script") && !page.contains("src=") && !page.contains("href="),
            "self-contained"
        );
    }
}
