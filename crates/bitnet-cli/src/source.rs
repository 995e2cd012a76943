//! Where a model comes from: a path, or the hub.

use std::path::{Path, PathBuf};

use bitnet_convert::{HubId, fetch};

use crate::bar::Bar;
use crate::error::CliError;

/// The path of a model, fetched from the hub if its name is no path.
pub(crate) fn resolve(name: &str, quiet: bool) -> Result<PathBuf, CliError> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(path.into());
    }
    let Ok(id) = name.parse::<HubId>() else {
        return Err(CliError::Source { found: name.into() });
    };
    let mut bar = Bar::new("fetching", quiet);
    let folder = fetch(&id, |file, done, total| {
        bar.relabel(&format!("fetching {file}"));
        bar.set(done, total);
    })?;
    Ok(folder)
}
