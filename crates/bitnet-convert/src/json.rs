//! JSON files, and folders that appear whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::ConvertError;

pub(crate) fn read_json(path: &Path) -> Result<Value, ConvertError> {
    let text = fs::read_to_string(path).map_err(|source| ConvertError::Read { path: path.into(), source })?;
    serde_json::from_str(&text)
        .map_err(|error| ConvertError::Json { path: path.into(), reason: error.to_string() })
}

pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), ConvertError> {
    let write = |source| ConvertError::Write { path: path.into(), source };
    let mut text = serde_json::to_string_pretty(value).map_err(|error| write(error.into()))?;
    text.push('\n');
    fs::write(path, text).map_err(write)
}

/// Fills a folder beside its final name and renames it once it is whole; a failure leaves nothing behind.
pub(crate) fn write_folder(
    folder: &Path,
    fill: impl FnOnce(&Path) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    let write = |path: &Path| {
        let path: PathBuf = path.into();
        move |source| ConvertError::Write { path, source }
    };
    if folder.exists() {
        let mut entries = fs::read_dir(folder).map_err(write(folder))?;
        if entries.next().is_some() {
            return Err(ConvertError::Exists { path: folder.into() });
        }
    }
    let name = folder.file_name().ok_or_else(|| ConvertError::Exists { path: folder.into() })?;
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(write(parent))?;
    let partial = parent.join(format!(".{}.partial-{}", name.to_string_lossy(), std::process::id()));
    fs::create_dir(&partial).map_err(write(&partial))?;
    let result = fill(&partial).and_then(|()| {
        if folder.exists() {
            fs::remove_dir(folder).map_err(write(folder))?;
        }
        fs::rename(&partial, folder).map_err(write(folder))
    });
    if result.is_err() {
        // The failure itself is what the user needs to hear; a leftover folder has a name that says what it is.
        let _ = fs::remove_dir_all(&partial);
    }
    result
}
