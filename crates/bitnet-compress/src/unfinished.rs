//! The folder in which a target is built: by one process at a time, in one mode.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::CompressError;
use crate::plan::is_inside;
use crate::source::{read_error, write_error};

/// The lock's name in the folder. No file of a source has it: hidden ones are not copied.
pub const LOCK: &str = ".lock";

/// Where a target is built: hidden beside it, under a name that does not change, so that it is found again.
pub fn unfinished(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.partial"))
}

/// Refuses a source that lies where the target is built: it would be cleared away.
///
/// # Errors
/// [`CompressError::SourceInUnfinished`]
pub fn check_outside(source: &Path, folder: &Path) -> Result<(), CompressError> {
    if is_inside(source, folder) {
        return Err(CompressError::SourceInUnfinished { path: source.into(), folder: folder.into() });
    }
    Ok(())
}

/// Makes the folder and locks it for a mode, as long as the file is open. What is in it is left as it is.
///
/// # Errors
/// [`CompressError::Busy`] while another process is at it, [`CompressError::OtherMode`] where the other mode began it,
/// [`CompressError::Write`]
pub fn lock(folder: &Path, mode: &'static str) -> Result<File, CompressError> {
    fs::create_dir_all(folder).map_err(write_error(folder))?;
    let path = folder.join(LOCK);
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = opened.map_err(write_error(&path))?;
    let mut locked = file.try_lock();
    for _ in 0..20 {
        // A child that another thread starts holds the lock too, until it has begun its own program.
        if !matches!(locked, Err(TryLockError::WouldBlock)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        locked = file.try_lock();
    }
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(CompressError::Busy { path: folder.into() }),
        Err(TryLockError::Error(source)) => return Err(write_error(&path)(source)),
    }
    let mut found = String::new();
    file.read_to_string(&mut found).map_err(read_error(&path))?;
    // Of a process that was killed before it wrote a word there is nothing else in the folder.
    if found.is_empty() {
        file.write_all(mode.as_bytes()).map_err(write_error(&path))?;
    } else if found != mode {
        return Err(CompressError::OtherMode { path: folder.into(), found, expected: mode });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_and_one_mode_are_in_a_folder() {
        let work = tempfile::tempdir().unwrap();
        let folder = unfinished(&work.path().join("out"));
        assert!(folder.ends_with(".out.partial"));
        let first = lock(&folder, "tensors").unwrap();
        assert!(matches!(lock(&folder, "tensors"), Err(CompressError::Busy { .. })));
        assert!(matches!(lock(&folder, "model"), Err(CompressError::Busy { .. })));
        drop(first);
        let error = lock(&folder, "model").unwrap_err();
        assert!(matches!(&error, CompressError::OtherMode { found, .. } if found == "tensors"), "{error}");
        assert!(lock(&folder, "tensors").is_ok());
        fs::write(folder.join(LOCK), "").unwrap();
        assert!(lock(&folder, "model").is_ok(), "killed before it wrote a word");
    }

    #[test]
    fn a_source_is_not_built_over() {
        let work = tempfile::tempdir().unwrap();
        let folder = unfinished(&work.path().join("out"));
        assert!(check_outside(&folder.join("source"), &folder).is_ok(), "neither is there");
        fs::create_dir_all(folder.join("source")).unwrap();
        fs::write(folder.join("model.safetensors"), "").unwrap();
        for source in ["source", "model.safetensors", "source/.."] {
            let error = check_outside(&folder.join(source), &folder).unwrap_err();
            assert!(matches!(error, CompressError::SourceInUnfinished { .. }), "{error}");
        }
        assert!(check_outside(work.path(), &folder).is_ok());
    }
}
