//! The snapshots of a run: whole or not there, checked when they are read, the last few and the best kept.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bitnet_convert::Unfinished;
use sha2::{Digest, Sha256};

use crate::TrainError;
use crate::files::write_text;

/// Hashes of all other files of a snapshot, in the form that `sha256sum --check` reads.
const SUMS: &str = "SHA256SUMS";

/// A folder of snapshots, one folder each, named after the steps that were done.
#[derive(Debug, Clone)]
pub struct Snapshots {
    folder: PathBuf,
    keep: usize,
}

impl Snapshots {
    /// Makes the folder, and removes what a killed process left unfinished in it. `keep` snapshots are kept, at
    /// least one. Only one process may work on the folder.
    ///
    /// # Errors
    /// [`TrainError::Write`]
    pub fn open(folder: impl Into<PathBuf>, keep: usize) -> Result<Self, TrainError> {
        let snapshots = Self { folder: folder.into(), keep: keep.max(1) };
        let write = |error: io::Error| snapshots.failed(error);
        fs::create_dir_all(&snapshots.folder).map_err(write)?;
        for entry in fs::read_dir(&snapshots.folder).map_err(write)? {
            let path = entry.map_err(write)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(".step-") && name.contains(".partial-") {
                fs::remove_dir_all(&path).map_err(write)?;
            }
        }
        Ok(snapshots)
    }

    fn path(&self, steps: u64) -> PathBuf {
        self.folder.join(format!("step-{steps:08}"))
    }

    /// The folder of the snapshot after so many steps, every file of which has its hash.
    ///
    /// # Errors
    /// [`TrainError::Snapshot`] where it is damaged, or there is none.
    pub fn whole(&self, steps: u64) -> Result<PathBuf, TrainError> {
        let folder = self.path(steps);
        check(&folder).map(|()| folder)
    }

    /// The snapshots that there are, by their steps, the oldest first. They may be damaged.
    ///
    /// # Errors
    /// [`TrainError::Snapshot`] where the folder cannot be read.
    pub fn list(&self) -> Result<Vec<u64>, TrainError> {
        let wrong = |error| TrainError::snapshot(&self.folder, error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(wrong)? {
            let name = entry.map_err(wrong)?.file_name();
            let steps = name.to_str().and_then(|name| name.strip_prefix("step-")?.parse::<u64>().ok());
            found.extend(steps);
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Writes a snapshot: `fill` puts its files into a folder, which appears under its name once they are on the disk
    /// with their hashes. Then older ones are removed, but not the `best`.
    ///
    /// # Errors
    /// Those of `fill`, and [`TrainError::Write`]; the snapshots before are as they were.
    pub fn save(
        &self,
        steps: u64,
        best: Option<u64>,
        fill: impl FnOnce(&Path) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let write = |error: io::Error| self.failed(error);
        let target = self.path(steps);
        let unfinished = Unfinished::beside(&target).map_err(write)?;
        let folder = unfinished.path();
        fs::create_dir(folder).map_err(write)?;
        fill(folder)?;
        let mut sums = String::new();
        for name in file_names(folder).map_err(write)? {
            sums += &format!("{}  {name}\n", hash(&folder.join(&name)).map_err(write)?);
        }
        write_text(&folder.join(SUMS), &sums)?;
        sync(folder).map_err(write)?;
        if target.exists() {
            fs::remove_dir_all(&target).map_err(write)?; // a damaged one: a good one would have been gone on from
        }
        unfinished.finish().map_err(write)?;
        sync(&self.folder).map_err(write)?;
        let mut all = self.list()?;
        // Newer ones are damaged, or they would have been gone on from.
        for &newer in all.iter().filter(|newer| **newer > steps) {
            fs::remove_dir_all(self.path(newer)).map_err(write)?;
        }
        all.retain(|found| *found <= steps);
        let old = &all[..all.len().saturating_sub(self.keep)];
        for &steps in old.iter().filter(|steps| Some(**steps) != best) {
            fs::remove_dir_all(self.path(steps)).map_err(write)?;
        }
        Ok(())
    }

    /// The folder of the newest snapshot that is [`whole`](Self::whole); `None` where there is no snapshot at all. `warn`
    /// hears of each damaged one that is passed over.
    ///
    /// # Errors
    /// [`TrainError::NoGoodSnapshot`] where all are damaged.
    pub fn newest(&self, mut warn: impl FnMut(&str)) -> Result<Option<PathBuf>, TrainError> {
        let all = self.list()?;
        for &steps in all.iter().rev() {
            match self.whole(steps) {
                Ok(folder) => return Ok(Some(folder)),
                Err(error) => warn(&format!("{error}: the one before is used")),
            }
        }
        if all.is_empty() { Ok(None) } else { Err(TrainError::NoGoodSnapshot { path: self.folder.clone() }) }
    }

    fn failed(&self, error: io::Error) -> TrainError {
        TrainError::Write { path: self.folder.clone(), reason: error.to_string() }
    }
}

/// Compares every file of a snapshot with its hash.
fn check(folder: &Path) -> Result<(), TrainError> {
    let wrong = |reason: String| TrainError::snapshot(folder, reason);
    let sums = fs::read_to_string(folder.join(SUMS)).map_err(|error| wrong(format!("{SUMS}: {error}")))?;
    let mut names = file_names(folder).map_err(|error| wrong(error.to_string()))?;
    names.retain(|name| name != SUMS);
    let listed: Vec<(&str, &str)> = sums.lines().filter_map(|line| line.split_once("  ")).collect();
    if names.is_empty() || !listed.iter().map(|(_, name)| *name).eq(names.iter().map(String::as_str)) {
        return Err(wrong(format!("it holds {names:?}, which is not what {SUMS} lists")));
    }
    for (expected, name) in listed {
        let found = hash(&folder.join(name)).map_err(|error| wrong(format!("{name}: {error}")))?;
        if found != expected {
            return Err(wrong(format!("{name} is damaged")));
        }
    }
    Ok(())
}

/// Names in a folder, in order.
fn file_names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = entries.collect::<io::Result<Vec<String>>>()?;
    names.sort();
    Ok(names)
}

/// SHA-256 of a file, in hexadecimal.
fn hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Waits until a folder's names are on the disk. Windows neither has nor needs it.
fn sync(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(snapshots: &Snapshots, steps: u64, best: Option<u64>) {
        let fill = |folder: &Path| {
            write_text(&folder.join("a"), &format!("a{steps}"))?;
            write_text(&folder.join("b"), &"b".repeat(1000))
        };
        snapshots.save(steps, best, fill).unwrap();
    }

    fn newest(snapshots: &Snapshots) -> (Result<Option<String>, TrainError>, Vec<String>) {
        let mut warnings = Vec::new();
        let found = snapshots.newest(|warning| warnings.push(warning.to_owned()));
        let read = |folder: PathBuf| fs::read_to_string(folder.join("a")).unwrap();
        (found.map(|found| found.map(read)), warnings)
    }

    #[test]
    fn the_last_and_the_best_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(folder.path(), 2).unwrap();
        assert!(matches!(newest(&snapshots), (Ok(None), warnings) if warnings.is_empty()));
        for (steps, best, kept) in [
            (1, None, vec![1]),
            (2, Some(2), vec![1, 2]),
            (3, Some(2), vec![2, 3]),
            (4, Some(2), vec![2, 3, 4]),
        ] {
            save(&snapshots, steps, best);
            assert_eq!(snapshots.list().unwrap(), kept);
        }
        save(&snapshots, 5, Some(5));
        assert_eq!(snapshots.list().unwrap(), [4, 5]);
        assert_eq!(newest(&snapshots).0.unwrap().unwrap(), "a5");
    }

    #[test]
    fn any_damage_is_found_and_the_one_before_is_used() {
        let damages: [fn(&Path); 6] = [
            |folder| fs::write(folder.join("b"), "b".repeat(999)).unwrap(),
            |folder| fs::write(folder.join("b"), format!("c{}", "b".repeat(999))).unwrap(),
            |folder| fs::remove_file(folder.join("a")).unwrap(),
            |folder| fs::remove_file(folder.join(SUMS)).unwrap(),
            |folder| fs::write(folder.join(SUMS), "").unwrap(),
            |folder| fs::write(folder.join("c"), "").unwrap(),
        ];
        for damage in damages {
            let folder = tempfile::tempdir().unwrap();
            let snapshots = Snapshots::open(folder.path(), 3).unwrap();
            save(&snapshots, 1, None);
            save(&snapshots, 2, None);
            damage(&snapshots.path(2));
            let (found, warnings) = newest(&snapshots);
            assert_eq!(found.unwrap().unwrap(), "a1");
            assert!(matches!(&warnings[..], [warning] if warning.contains("step-00000002")), "{warnings:?}");
            damage(&snapshots.path(1));
            assert!(matches!(newest(&snapshots).0, Err(TrainError::NoGoodSnapshot { .. })));
            save(&snapshots, 2, None);
            assert_eq!(newest(&snapshots).0.unwrap().unwrap(), "a2", "a damaged one is replaced");
        }
    }

    #[test]
    fn what_fails_or_is_killed_leaves_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(folder.path(), 1).unwrap();
        save(&snapshots, 1, None);
        let full = |_: &Path| Err(TrainError::Write { path: "x".into(), reason: "disk full".into() });
        assert!(matches!(snapshots.save(2, None, full), Err(TrainError::Write { .. })));
        assert_eq!(file_names(folder.path()).unwrap(), ["step-00000001"]);
        fs::create_dir(folder.path().join(".step-00000002.partial-77")).unwrap();
        let snapshots = Snapshots::open(folder.path(), 1).unwrap();
        assert_eq!(file_names(folder.path()).unwrap(), ["step-00000001"]);
        assert_eq!(newest(&snapshots).0.unwrap().unwrap(), "a1");
    }
}
