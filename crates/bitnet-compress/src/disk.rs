//! What a disk has left, and what an unfinished target has taken of it.

use std::fs;
use std::path::Path;

/// Bytes that may still be written where `path` is to be; `None` where the system does not say.
#[cfg(unix)]
pub fn free(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists()).filter(|path| !path.as_os_str().is_empty());
    let stat = rustix::fs::statvfs(existing.unwrap_or(Path::new("."))).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
pub fn free(_: &Path) -> Option<u64> {
    None
}

/// Bytes that files in a folder and below take on the disk.
pub fn taken(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some(if metadata.is_dir() { taken(&entry.path()) } else { allocated(&metadata) })
        })
        .sum()
}

#[cfg(unix)]
fn allocated(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(metadata) * 512
}

#[cfg(not(unix))]
fn allocated(metadata: &fs::Metadata) -> u64 {
    metadata.len()
}
