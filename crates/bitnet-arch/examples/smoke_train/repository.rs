//! What the repository carries: its small checkpoint and its own text.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap_or(root)
}

/// The folder of the small dense checkpoint.
pub(crate) fn small_model() -> PathBuf {
    root().join("assets/small-model")
}

/// The documents and sources that the small checkpoint is trained on.
pub(crate) fn text_files() -> Vec<PathBuf> {
    let mut files =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs"].map(|name| root().join(name)).to_vec();
    let mut crates: Vec<PathBuf> = std::fs::read_dir(root().join("crates"))
        .map(|entries| entries.flatten().map(|entry| entry.path().join("src")).collect())
        .unwrap_or_default();
    crates.sort();
    files.extend(crates);
    files
}

/// The document with the results of experiments.
#[allow(dead_code, reason = "several examples share this file")]
pub(crate) fn results() -> PathBuf {
    root().join("docs/results.md")
}
