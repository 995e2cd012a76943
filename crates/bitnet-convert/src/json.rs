//! JSON files, and folders that appear whole or not at all.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::unfinished::restore;
use crate::{ConvertError, Unfinished};

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
    let write = |source| ConvertError::Write { path: folder.into(), source };
    refuse_full(folder, overwrite)?;
    let unfinished = beside(folder)?;
    fs::create_dir(unfinished.path()).map_err(write)?;
    let value = fill(unfinished.path())?;
    if overwrite { unfinished.replace() } else { unfinished.finish() }.map_err(write)?;
    Ok(value)
}

/// Refuses a folder that holds something already, unless it is to be replaced. First, what a process that was killed put
/// aside comes back or goes.
pub(crate) fn refuse_full(folder: &Path, overwrite: bool) -> Result<(), ConvertError> {
    let write = |source| ConvertError::Write { path: folder.into(), source };
    restore(folder).map_err(write)?;
    if folder.exists() && !overwrite && fs::read_dir(folder).map_err(write)?.next().is_some() {
        return Err(ConvertError::Exists { path: folder.into() });
    }
    Ok(())
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
    let unfinished = beside(path)?;
    let write = |source| ConvertError::Write { path: path.into(), source };
    let file = fs::File::create(unfinished.path()).map_err(write)?;
    let value = fill(&file)?;
    file.sync_all().and_then(|()| unfinished.finish()).map_err(write)?;
    Ok(value)
}

/// A name for something unfinished, in the folder of its final name.
fn beside(path: &Path) -> Result<Unfinished, ConvertError> {
    if path.file_name().is_none() {
        return Err(ConvertError::Exists { path: path.into() });
    }
    Unfinished::beside(path).map_err(|source| ConvertError::Write { path: path.into(), source })
}
