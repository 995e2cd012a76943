//! Small files of a run, each on the disk before it has its name.

use std::fs;
use std::path::Path;

use bitnet_convert::Unfinished;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::TrainError;

/// Writes a text beside `path` and renames it.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), TrainError> {
    Unfinished::write(path, text.as_bytes())
        .map_err(|error| TrainError::Write { path: path.into(), reason: error.to_string() })
}

/// Writes a value as JSON.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    let json = serde_json::to_string_pretty(value);
    let json = json.map_err(|error| TrainError::Write { path: path.into(), reason: error.to_string() })?;
    write_text(path, &(json + "\n"))
}

/// Reads a file of a snapshot.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, TrainError> {
    let text = fs::read(path).map_err(|error| TrainError::snapshot(path, error))?;
    serde_json::from_slice(&text).map_err(|error| TrainError::snapshot(path, error))
}
