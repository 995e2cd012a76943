//! What the tests of this crate and of bitnet-pipeline have in common.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Every file below a folder, by its path, with its bytes.
pub(crate) fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            found.extend(tree(&path).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)));
        } else {
            found.insert(name, fs::read(path).unwrap());
        }
    }
    found
}

/// Where a value differs from a schema of those keywords that ours has.
pub(crate) fn problems(value: &Value, schema: &Value, at: &str, found: &mut Vec<String>) {
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
