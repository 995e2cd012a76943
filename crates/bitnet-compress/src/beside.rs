//! What is written beside the tensors: copies of other files, and indexes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use crate::source::{read_error, write_error};
use crate::{CompressError, Plan, layout};

impl Plan {
    /// Copies the other files, and writes the indexes.
    pub(crate) fn write_companions(&self, folder: &Path) -> Result<(), CompressError> {
        for (path, _) in &self.source.companions {
            let (from, to) = (self.source.folder.join(path), folder.join(path));
            fs::create_dir_all(to.parent().unwrap_or(folder)).map_err(write_error(&to))?;
            let mut reader = File::open(&from).map_err(read_error(&from))?;
            let mut copy = || {
                let mut file = File::create(&to)?;
                io::copy(&mut reader, &mut file)?;
                file.sync_all()
            };
            copy().map_err(write_error(&to))?;
        }
        let Some((name, index)) = &self.source.index else { return Ok(()) };
        let to = folder.join(name);
        if self.options.dtype.is_none() {
            let from = self.source.folder.join(name);
            let bytes = fs::read(&from).map_err(read_error(&from))?;
            write_whole(&to, &bytes)?;
        } else {
            let mut index = index.clone();
            index["metadata"]["total_size"] =
                json!(self.dense.places.iter().map(|place| place.bytes).sum::<u64>());
            write_json(&to, &index)?;
        }
        if let Some(packed) = &self.packed {
            let index = layout::packed_index(&self.source, packed, index);
            write_json(&folder.join(crate::packed::FOLDER).join(name), &index)?;
        }
        Ok(())
    }
}

pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), CompressError> {
    let write = write_error(path);
    let mut text = serde_json::to_string_pretty(value).map_err(|error| write(error.into()))?;
    text.push('\n');
    write_whole(path, text.as_bytes())
}

/// Writes a file so that it outlasts a crash of the system.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), CompressError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(write_error(path))
}
