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

/// Fills a folder beside its final name and renames it once it is whole; a failure leaves nothing behind. A folder that
/// holds something already is refused, or replaced if `overwrite`.
pub(crate) fn write_folder<T>(
    folder: &Path,
    overwrite: bool,
    fill: impl FnOnce(&Path) -> Result<T, ConvertError>,
) -> Result<T, ConvertError> {
    let write = |path: &Path| {
        let path: PathBuf = path.into();
        move |source| ConvertError::Write { path, source }
    };
    if folder.exists() && !overwrite {
        let mut entries = fs::read_dir(folder).map_err(write(folder))?;
        if entries.next().is_some() {
            return Err(ConvertError::Exists { path: folder.into() });
        }
    }
    let partial = beside(folder)?;
    fs::create_dir(&partial).map_err(write(&partial))?;
    let result = fill(&partial).and_then(|value| {
        if folder.exists() {
            fs::remove_dir_all(folder).map_err(write(folder))?;
        }
        fs::rename(&partial, folder).map_err(write(folder)).map(|()| value)
    });
    if result.is_err() {
        // The failure itself is what the user needs to hear; a leftover folder has a name that says what it is.
        let _ = fs::remove_dir_all(&partial);
    }
    result
}

/// Fills a file beside its final name and renames it once it is whole; a failure leaves nothing behind. A file that
/// exists is refused, or replaced if `overwrite`.
pub(crate) fn write_file<T>(
    path: &Path,
    overwrite: bool,
    fill: impl FnOnce(&fs::File) -> Result<T, ConvertError>,
) -> Result<T, ConvertError> {
    if path.is_dir() || (path.exists() && !overwrite) {
        return Err(ConvertError::Exists { path: path.into() });
    }
    let partial = beside(path)?;
    let write = |source| ConvertError::Write { path: path.into(), source };
    let result = fs::File::create(&partial).map_err(write).and_then(|file| {
        let value = fill(&file)?;
        file.sync_all().and_then(|()| fs::rename(&partial, path)).map_err(write)?;
        Ok(value)
    });
    if result.is_err() {
        let _ = fs::remove_file(&partial);
    }
    result
}

/// A name for something unfinished, in the folder of its final name, which is made if it is not there.
fn beside(path: &Path) -> Result<PathBuf, ConvertError> {
    let name = path.file_name().ok_or_else(|| ConvertError::Exists { path: path.into() })?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(|source| ConvertError::Write { path: parent.into(), source })?;
    Ok(parent.join(format!(".{}.partial-{}", name.to_string_lossy(), std::process::id())))
}
