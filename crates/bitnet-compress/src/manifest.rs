//! How far an unfinished target is: one line a tensor, so that a killed run goes on behind the last whole line.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::CompressError;
use crate::source::{read_error, write_error};

/// Its name in the unfinished folder.
pub(crate) const NAME: &str = ".progress.jsonl";

/// What is known of a ternarized tensor once it is written. Floats are kept as their bits: they come back exactly.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Sums {
    /// How many codes are −1, 0, 1.
    pub(crate) codes: [u64; 3],
    /// `Σ(w − code · scale)²`, an f64.
    pub(crate) errors: u64,
    /// `Σw²`, an f64.
    pub(crate) squares: u64,
    /// The smallest and the largest scale, f32.
    pub(crate) scales: [u32; 2],
    /// For each matrix the one scale that it has, an f32.
    pub(crate) fixed: Vec<Option<u32>>,
    /// How many matrices were ternary already.
    pub(crate) already_ternary: u64,
}

/// A finished tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Done {
    /// Its index in the source.
    pub(crate) tensor: usize,
    /// Where it was ternarized.
    pub(crate) sums: Option<Sums>,
}

/// The manifest of a run that holds the folder's lock.
pub(crate) struct Manifest {
    path: PathBuf,
    file: File,
}

impl Manifest {
    /// Opens or begins the manifest of an unfinished target, and gives what is done already if it belongs to the same
    /// source and options.
    pub(crate) fn open(folder: &Path, fingerprint: &str) -> Result<(Self, Option<Vec<Done>>), CompressError> {
        let path = folder.join(NAME);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(write_error(&path))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(read_error(&path))?;
        let mut manifest = Self { path, file };
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.split_inclusive('\n');
        if lines.next().and_then(|line| line.strip_suffix('\n')) != Some(fingerprint) {
            return Ok((manifest, None));
        }
        let (mut done, mut whole) = (Vec::new(), fingerprint.len() as u64 + 1);
        for line in lines {
            let parsed = line.ends_with('\n').then(|| serde_json::from_str::<Done>(line).ok()).flatten();
            let Some(entry) = parsed else { break };
            done.push(entry);
            whole += line.len() as u64;
        }
        manifest.cut(whole)?;
        Ok((manifest, Some(done)))
    }

    /// Begins anew.
    pub(crate) fn begin(&mut self, fingerprint: &str) -> Result<(), CompressError> {
        self.cut(0)?;
        self.line(fingerprint)
    }

    fn cut(&mut self, bytes: u64) -> Result<(), CompressError> {
        let write = write_error(&self.path);
        self.file
            .set_len(bytes)
            .and_then(|()| self.file.seek(std::io::SeekFrom::Start(bytes)))
            .map_err(write)?;
        Ok(())
    }

    /// Notes that a tensor is written.
    pub(crate) fn push(&mut self, done: &Done) -> Result<(), CompressError> {
        let line = serde_json::to_string(done).map_err(|error| write_error(&self.path)(error.into()))?;
        self.line(&line)
    }

    fn line(&mut self, line: &str) -> Result<(), CompressError> {
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(write_error(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let done = |tensor| Done {
            tensor,
            sums: Some(Sums { codes: [1, 2, 3], errors: 0.1f64.to_bits(), ..Sums::default() }),
        };
        let (mut manifest, known) = Manifest::open(folder.path(), "a").unwrap();
        assert_eq!(known, None);
        manifest.begin("a").unwrap();
        manifest.push(&done(0)).unwrap();
        manifest.push(&done(1)).unwrap();
        drop(manifest);
        let path = folder.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut manifest, known) = Manifest::open(folder.path(), "a").unwrap();
            let Some(known) = known else {
                assert!(cut < 2);
                continue;
            };
            assert!(known.len() <= 2 && (known.len() == 2) == (cut == whole.len()));
            for tensor in known.len()..2 {
                manifest.push(&done(tensor)).unwrap();
            }
            assert_eq!(std::fs::read(&path).unwrap(), whole, "{cut}");
        }
        assert_eq!(Manifest::open(folder.path(), "b").unwrap().1, None, "another run's");
    }
}
