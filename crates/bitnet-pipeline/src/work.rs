//! The folder that a run works in: results and manifests of stages, locked while a process is at it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bitnet_compress::{LOCK, lock, unfinished};
use bitnet_convert::Unfinished;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{PipelineError, Stage};

const RUN: &str = "run.sha256";

/// An open folder.
pub(crate) struct Work {
    folder: PathBuf,
    _lock: File,
}

impl Work {
    /// Opens or makes the folder. What another source or other settings left in it is removed, and so is what a killed
    /// process was writing; what the other mode left is not.
    pub(crate) fn open(target: &Path, fingerprint: &str) -> Result<Self, PipelineError> {
        let folder = unfinished(target);
        let lock = lock(&folder, "model")?;
        let work = Self { folder, _lock: lock };
        let same = fs::read_to_string(work.path(RUN)).is_ok_and(|found| found == fingerprint);
        work.remove(|name| name != LOCK && (!same || name.contains(".partial-")))?;
        if !same {
            write_text(&work.path(RUN), fingerprint)?;
        }
        Ok(work)
    }

    /// Whether a folder is all that a run left that was killed after it gave the target its name.
    pub(crate) fn is_left_over(target: &Path) -> bool {
        let folder = unfinished(target);
        let verified = folder.join(format!("{}.json", Stage::Verify.name())).exists();
        let empty = folder.read_dir().is_ok_and(|mut entries| entries.next().is_none());
        empty || (verified && !folder.join(crate::write::DENSE).exists())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn manifest(&self, stage: Stage) -> PathBuf {
        self.path(&format!("{}.json", stage.name()))
    }

    pub(crate) fn is_done(&self, stage: Stage) -> bool {
        self.manifest(stage).exists()
    }

    /// The result of a stage that `by` starts from.
    pub(crate) fn result<T: DeserializeOwned>(&self, stage: Stage, by: Stage) -> Result<T, PipelineError> {
        let path = self.manifest(stage);
        if !path.exists() {
            return Err(PipelineError::NotReady { stage: by.name(), missing: stage.name() });
        }
        let text = fs::read(&path).map_err(|source| PipelineError::Read { path: path.clone(), source })?;
        serde_json::from_slice(&text)
            .map_err(|error| PipelineError::Damaged { path, reason: error.to_string() })
    }

    /// A stage is done. What later ones made of an earlier result of it is not theirs any more.
    pub(crate) fn finish(&self, stage: Stage, result: &impl Serialize) -> Result<(), PipelineError> {
        for later in Stage::ALL.into_iter().filter(|later| *later > stage) {
            remove(&self.manifest(later))?;
        }
        write_json(&self.manifest(stage), result)
    }

    /// Removes what stands under a name.
    pub(crate) fn clear(&self, name: &str) -> Result<(), PipelineError> {
        remove(&self.path(name))
    }

    fn remove(&self, of: impl Fn(&str) -> bool) -> Result<(), PipelineError> {
        let entries = fs::read_dir(&self.folder).map_err(write_error(&self.folder))?;
        for entry in entries.flatten() {
            if of(&entry.file_name().to_string_lossy()) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes the folder, and last of it what tells that a run came to its end.
    pub(crate) fn end(self) -> Result<(), PipelineError> {
        let last = format!("{}.json", Stage::Verify.name());
        self.remove(|name| name != last && name != RUN)?;
        fs::remove_dir_all(&self.folder).map_err(write_error(&self.folder))
    }
}

fn remove(path: &Path) -> Result<(), PipelineError> {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(write_error(path)(error)),
        _ => Ok(()),
    }
}

pub(crate) fn write_error(path: &Path) -> impl Fn(io::Error) -> PipelineError {
    move |source| PipelineError::Write { path: path.into(), source }
}

/// Writes a text beside its name and renames it.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), PipelineError> {
    Unfinished::write(path, text.as_bytes()).map_err(write_error(path))
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), PipelineError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| write_error(path)(error.into()))?;
    write_text(path, &(text + "\n"))
}
