//! Files and folders that appear under their names whole or not at all.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

/// Those that this process is writing.
static OPEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A name beside `target` to write a file or folder under. Dropped before it is [finished](Self::finish), it takes
/// what stands under that name with it.
#[derive(Debug)]
pub struct Unfinished {
    target: PathBuf,
    path: PathBuf,
}

impl Unfinished {
    /// Chooses the name and makes the folder that it is in. Nothing may stand under it yet: it holds the id of the
    /// process.
    ///
    /// # Errors
    /// Where `target` has no name of its own, as `..`, or its folder cannot be made.
    pub fn beside(target: &Path) -> io::Result<Self> {
        let name = target.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent)?;
        let path = parent.join(format!(".{}.partial-{}", name.to_string_lossy(), std::process::id()));
        open().insert(path.clone());
        Ok(Self { target: target.into(), path })
    }

    /// Writes a whole file beside its name, waits until it is on the disk, and renames it.
    ///
    /// # Errors
    /// Those of the system; what stood under the name is as it was then.
    pub fn write(target: &Path, bytes: &[u8]) -> io::Result<()> {
        let unfinished = Self::beside(target)?;
        let mut file = fs::File::create(unfinished.path())?;
        file.write_all(bytes)?;
        file.sync_all()?;
        unfinished.finish()
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives what was written its name. A file of that name is replaced, and so is an empty folder.
    ///
    /// # Errors
    /// Where it cannot be renamed; it is removed then.
    pub fn finish(self) -> io::Result<()> {
        if self.path.is_dir() && self.target.is_dir() {
            fs::remove_dir(&self.target)?;
        }
        fs::rename(&self.path, &self.target)
    }

    /// [`finish`](Self::finish), in place of a folder that holds something: that one is put aside, and removed only when
    /// the new one has its name. What a process that was killed meanwhile put aside, [`restore`] finds.
    ///
    /// # Errors
    /// Where it cannot be renamed; it is removed then, and the old folder has its name.
    pub(crate) fn replace(self) -> io::Result<()> {
        if !self.target.is_dir() {
            return self.finish();
        }
        let aside = aside(&self.target);
        {
            // Whoever removes what is not finished waits: between the two renames nothing has the name.
            let mut open = open();
            fs::rename(&self.target, &aside)?;
            if let Err(error) = fs::rename(&self.path, &self.target) {
                fs::rename(&aside, &self.target)?;
                return Err(error);
            }
            open.insert(aside.clone());
        }
        // What is left of it goes the next time.
        let _ = remove(&aside);
        open().remove(&aside);
        Ok(())
    }
}

/// Gives what [`Unfinished::replace`] put aside its name again, where the process was killed before the new one had it;
/// else removes what is left of it.
pub(crate) fn restore(target: &Path) -> io::Result<()> {
    let aside = aside(target);
    match (aside.is_dir(), target.exists()) {
        (true, false) => fs::rename(&aside, target),
        (true, true) => fs::remove_dir_all(&aside),
        (false, _) => Ok(()),
    }
}

/// Where an old folder is while the new one gets its name: always the same place, so that it is found again.
fn aside(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.replaced"))
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // The failure itself is what the user needs to hear; a leftover has a name that says what it is.
        let _ = remove(&self.path);
        open().remove(&self.path);
    }
}

/// Removes everything that this process has not finished: for a program that is about to end in the middle of it.
pub fn remove_unfinished() {
    for path in open().iter() {
        let _ = remove(path);
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn open() -> std::sync::MutexGuard<'static, BTreeSet<PathBuf>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("new").join("a.txt");
        let file = Unfinished::beside(&target).unwrap();
        fs::write(file.path(), "whole").unwrap();
        assert!(!target.exists());
        file.finish().unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "whole");

        let file = Unfinished::beside(&target).unwrap();
        fs::write(file.path(), "other").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&target).unwrap(), "whole");
        assert_eq!(names(&folder.path().join("new")), ["a.txt"]);
        assert!(Unfinished::beside(&folder.path().join("..")).is_err());
    }

    #[test]
    fn a_folder_replaces_an_empty_one_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        fs::create_dir(&target).unwrap();
        for (old, new) in [(None, "a"), (Some("a"), "b")] {
            let unfinished = Unfinished::beside(&target).unwrap();
            fs::create_dir(unfinished.path()).unwrap();
            fs::write(unfinished.path().join(new), "").unwrap();
            assert_eq!(unfinished.finish().is_ok(), old.is_none());
        }
        assert_eq!((names(&target), names(folder.path())), (vec!["a".to_owned()], vec!["out".to_owned()]));
    }

    fn filled(target: &Path, name: &str) -> Unfinished {
        let unfinished = Unfinished::beside(target).unwrap();
        fs::create_dir(unfinished.path()).unwrap();
        fs::write(unfinished.path().join(name), "").unwrap();
        unfinished
    }

    #[test]
    fn an_old_folder_goes_when_the_new_one_has_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        for name in ["a", "b"] {
            filled(&target, name).replace().unwrap();
            assert_eq!(
                (names(&target), names(folder.path())),
                (vec![name.to_owned()], vec!["out".to_owned()])
            );
        }
        // Nothing was written: the old one stays.
        assert!(Unfinished::beside(&target).unwrap().replace().is_err());
        assert_eq!(names(&target), ["b"]);
        // Nor is a file replaced by a folder.
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(filled(&file, "a").replace().is_err());
        assert_eq!(names(folder.path()), ["file", "out"]);
    }

    #[test]
    fn what_a_killed_process_put_aside_comes_back_or_goes() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        restore(&target).unwrap();
        assert!(!target.exists());
        // Killed between the two renames, and after the second.
        for found in ["old", "new"] {
            fs::create_dir(aside(&target)).unwrap();
            fs::write(aside(&target).join("old"), "").unwrap();
            restore(&target).unwrap();
            assert_eq!((names(&target), names(folder.path())), (vec![found.into()], vec!["out".into()]));
            filled(&target, "new").replace().unwrap();
        }
    }

    #[test]
    fn what_is_open_can_be_removed() {
        let folder = tempfile::tempdir().unwrap();
        let file = Unfinished::beside(&folder.path().join("a")).unwrap();
        let tree = Unfinished::beside(&folder.path().join("b")).unwrap();
        fs::write(file.path(), "half").unwrap();
        fs::create_dir(tree.path()).unwrap();
        fs::write(tree.path().join("c"), "half").unwrap();
        // As `remove_unfinished`, but for these two only: other tests run meanwhile.
        for path in [file.path(), tree.path()] {
            assert!(open().contains(path));
            remove(path).unwrap();
        }
        assert_eq!(names(folder.path()), Vec::<String>::new());
        assert!(file.finish().is_err());
    }
}
