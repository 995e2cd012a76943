//! The direction of dependencies between the workspace's crates, as ARCHITECTURE.md draws it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::cargo::Cargo;
use crate::error::Error;

/// Each crate and its neighbours on the left, in the order of the drawing. A crate may depend on them and on
/// whatever stands left of them.
const ORDER: [(&str, &[&str]); 16] = [
    ("bitnet-format", &[]),
    ("bitnet-cpu", &["bitnet-format"]),
    ("bitnet-compress", &["bitnet-cpu"]),
    ("bitnet-quant", &["bitnet-cpu"]),
    ("bitnet-warmup", &[]),
    ("bitnet-layers", &["bitnet-quant", "bitnet-warmup"]),
    ("bitnet-lrc", &["bitnet-layers"]),
    ("bitnet-model", &["bitnet-layers"]),
    ("bitnet-text", &[]),
    ("bitnet-convert", &["bitnet-lrc", "bitnet-model", "bitnet-text"]),
    ("bitnet-train", &["bitnet-convert"]),
    ("bitnet-pipeline", &["bitnet-train", "bitnet-compress"]),
    ("bitnet-arch", &["bitnet-pipeline"]),
    ("bitnet-cli", &["bitnet-pipeline"]),
    ("bitnet-tests", &["bitnet-arch"]),
    ("xtask", &[]),
];

/// Crates that know no tensor library.
const WITHOUT_BURN: [&str; 6] =
    ["bitnet-format", "bitnet-cpu", "bitnet-compress", "bitnet-warmup", "bitnet-text", "xtask"];

/// The crates that implement backends: only bitnet-quant may name their types.
const BACKENDS: [&str; 5] = ["burn-flex", "burn-ndarray", "burn-wgpu", "burn-cuda", "burn-cubecl"];

/// Checks every declared dependency, of the libraries as of their tests and build scripts.
///
/// # Errors
/// [`Error::Edges`] names each dependency that the drawing does not allow, and why.
pub(crate) fn run(cargo: &Cargo) -> Result<(), Error> {
    let metadata = cargo.metadata()?;
    let edges = edges(&metadata)?;
    let refused: Vec<String> = edges
        .iter()
        .filter_map(|(from, to)| reason(from, to).map(|why| format!("{from} -> {to}: {why}")))
        .collect();
    if !refused.is_empty() {
        return Err(Error::Edges { edges: refused });
    }
    eprintln!("{} dependencies between crates, all in the direction of ARCHITECTURE.md", edges.len());
    Ok(())
}

/// The dependencies of members on other members and on Burn, as `(from, to)`.
fn edges(metadata: &Value) -> Result<BTreeSet<(&str, &str)>, Error> {
    let missing = |what: &str| Error::Metadata { reason: format!("no `{what}`") };
    let packages = metadata["packages"].as_array().ok_or_else(|| missing("packages"))?;
    let name = |value: &Value| Some(value["name"].as_str()?.to_owned());
    let members: BTreeSet<String> = packages.iter().filter_map(name).collect();
    let mut edges = BTreeSet::new();
    for package in packages {
        let from = package["name"].as_str().ok_or_else(|| missing("name"))?;
        for dependency in package["dependencies"].as_array().ok_or_else(|| missing("dependencies"))? {
            let to = dependency["name"].as_str().ok_or_else(|| missing("name"))?;
            if to != from && (members.contains(to) || is_burn(to)) {
                edges.insert((from, to));
            }
        }
    }
    Ok(edges)
}

/// Why `from` may not depend on `to`; `None` if it may.
fn reason(from: &str, to: &str) -> Option<String> {
    if is_burn(to) {
        if WITHOUT_BURN.contains(&from) {
            return Some(format!("{from} does without Burn"));
        }
        let backend = BACKENDS.contains(&to) || to.starts_with("cube");
        return (backend && from != "bitnet-quant").then(|| "only bitnet-quant names a backend".to_owned());
    }
    let unplaced = [from, to].into_iter().find(|name| place(name).is_none());
    if let Some(name) = unplaced {
        return Some(format!(
            "{name} has no place in the order; give it one in ARCHITECTURE.md and in {}",
            file!()
        ));
    }
    (!is_left_of(to, from)).then(|| format!("{to} does not stand left of {from}"))
}

fn is_burn(name: &str) -> bool {
    name == "burn" || name.starts_with("burn-") || name.starts_with("cubecl") || name.starts_with("cubek")
}

fn place(name: &str) -> Option<&'static [&'static str]> {
    ORDER.iter().find(|(known, _)| *known == name).map(|(_, neighbours)| *neighbours)
}

/// Whether a way leads from `from` to `to` through neighbours on the left.
fn is_left_of(to: &str, from: &str) -> bool {
    place(from).unwrap_or_default().iter().any(|left| *left == to || is_left_of(to, left))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_drawing_allows_what_stands_left() {
        for (from, to) in [
            ("bitnet-cpu", "bitnet-format"),
            ("bitnet-layers", "bitnet-warmup"),
            ("bitnet-convert", "bitnet-text"),
            ("bitnet-convert", "bitnet-format"),
            ("bitnet-train", "bitnet-warmup"),
            ("bitnet-tests", "bitnet-cpu"),
            ("bitnet-model", "burn"),
            ("bitnet-quant", "burn-cubecl"),
            ("bitnet-quant", "cubecl"),
        ] {
            assert_eq!(reason(from, to), None, "{from} -> {to}");
        }
    }

    #[test]
    fn it_allows_nothing_else() {
        for (from, to, why) in [
            ("bitnet-format", "bitnet-cpu", "does not stand left"),
            ("bitnet-quant", "bitnet-warmup", "does not stand left"),
            ("bitnet-warmup", "bitnet-quant", "does not stand left"),
            ("bitnet-model", "bitnet-lrc", "does not stand left"),
            ("bitnet-lrc", "bitnet-model", "does not stand left"),
            ("bitnet-cli", "bitnet-arch", "does not stand left"),
            ("bitnet-model", "bitnet-text", "does not stand left"),
            ("bitnet-train", "bitnet-tests", "does not stand left"),
            ("xtask", "bitnet-format", "does not stand left"),
            ("bitnet-new", "bitnet-format", "bitnet-new has no place"),
            ("bitnet-train", "bitnet-new", "bitnet-new has no place"),
            ("bitnet-cpu", "burn", "does without Burn"),
            ("xtask", "burn-store", "does without Burn"),
            ("bitnet-layers", "burn-flex", "only bitnet-quant"),
            ("bitnet-train", "cubecl", "only bitnet-quant"),
        ] {
            assert!(reason(from, to).is_some_and(|text| text.contains(why)), "{from} -> {to}");
        }
    }

    #[test]
    fn edges_are_those_between_members_and_to_burn() {
        let metadata = json!({ "packages": [
            { "name": "bitnet-quant", "dependencies": [{ "name": "burn" }, { "name": "serde" }] },
            { "name": "bitnet-cpu", "dependencies": [{ "name": "bitnet-quant", "kind": "dev" }, { "name": "bitnet-cpu" }] },
        ] });
        let expected = BTreeSet::from([("bitnet-cpu", "bitnet-quant"), ("bitnet-quant", "burn")]);
        assert_eq!(edges(&metadata).unwrap(), expected);
        assert!(edges(&json!({})).is_err());
    }

    #[test]
    fn every_neighbour_has_a_place_before_its_crate() {
        for (i, (name, neighbours)) in ORDER.iter().enumerate() {
            for left in *neighbours {
                assert!(ORDER[..i].iter().any(|(known, _)| known == left), "{name} -> {left}");
            }
        }
    }

    #[test]
    fn this_workspace_keeps_the_order() {
        run(&Cargo::new(false)).unwrap();
    }
}
