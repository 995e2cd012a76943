//! Reading text files.

use std::fs;
use std::path::{Path, PathBuf};

use crate::TextError;

/// One file's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// Where it was read.
    pub path: PathBuf,
    /// All of it, unchanged.
    pub text: String,
}

/// Reads text files: the paths in the order given, a folder's entries recursively and sorted by name.
///
/// Every file in a folder counts, whatever its name; links are followed.
///
/// # Errors
/// - [`TextError::Read`] if a file or folder cannot be read.
/// - [`TextError::NotUtf8`] if a file is not UTF-8.
/// - [`TextError::FolderLoop`] if a link leads to a folder around it.
/// - [`TextError::NoText`] if there is no file, or only empty ones.
pub fn read_text(paths: &[PathBuf]) -> Result<Vec<TextFile>, TextError> {
    let mut files = Vec::new();
    for path in list_files(paths)? {
        let text = fs::read(&path).map_err(|source| TextError::Read { path: path.clone(), source })?;
        let text = String::from_utf8(text)
            .map_err(|error| TextError::NotUtf8 { path: path.clone(), source: error.utf8_error() })?;
        files.push(TextFile { path, text });
    }
    if files.iter().all(|file| file.text.is_empty()) {
        return Err(TextError::NoText { paths: paths.to_vec() });
    }
    Ok(files)
}

/// The files that [`read_text`] reads, in its order.
pub(crate) fn list_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, TextError> {
    let mut files = Vec::new();
    for path in paths {
        list_into(&mut files, path, &mut Vec::new())?;
    }
    Ok(files)
}

/// Appends the file, or the folder's files. `parents` are the folders around it, without links.
fn list_into(files: &mut Vec<PathBuf>, path: &Path, parents: &mut Vec<PathBuf>) -> Result<(), TextError> {
    let cannot_read = |source| TextError::Read { path: path.to_owned(), source };
    if !fs::metadata(path).map_err(cannot_read)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }

    let folder = fs::canonicalize(path).map_err(cannot_read)?;
    if parents.contains(&folder) {
        return Err(TextError::FolderLoop { path: path.to_owned() });
    }
    let mut entries = fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>())
        .map_err(cannot_read)?;
    entries.sort();
    parents.push(folder);
    for entry in entries {
        list_into(files, &entry, parents)?;
    }
    parents.pop();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        folder
    }

    #[test]
    fn folders_are_read_recursively_in_order_of_name() {
        let folder =
            folder_with(&[("b.txt", b"B\r\n"), ("a/z", b"AZ"), ("a/y/x", b""), ("c.md", "ü".as_bytes())]);
        let at = |name: &str| folder.path().join(name);

        let found = read_text(&[at("c.md"), folder.path().to_owned()]).unwrap();
        let expected = [("c.md", "ü"), ("a/y/x", ""), ("a/z", "AZ"), ("b.txt", "B\r\n"), ("c.md", "ü")];
        let expected = expected.map(|(name, text)| TextFile { path: at(name), text: text.to_owned() });
        assert_eq!(found, expected);
    }

    #[test]
    fn the_file_that_is_not_text_is_named() {
        let folder = folder_with(&[("good", b"text"), ("sub/bad", b"ab\xff")]);
        let Err(TextError::NotUtf8 { path, source }) = read_text(&[folder.path().to_owned()]) else {
            panic!("expected NotUtf8")
        };
        assert_eq!(path, folder.path().join("sub/bad"));
        assert_eq!(source.valid_up_to(), 2);
    }

    #[test]
    fn missing_and_empty_data_are_errors() {
        let folder = folder_with(&[("empty", b"")]);
        let missing = folder.path().join("missing");
        assert!(matches!(read_text(std::slice::from_ref(&missing)),
            Err(TextError::Read { path, source }) if path == missing && source.kind() == std::io::ErrorKind::NotFound));

        let only_empty = [folder.path().to_owned()];
        assert!(matches!(read_text(&only_empty), Err(TextError::NoText { paths }) if paths == only_empty));
        assert!(matches!(read_text(&[]), Err(TextError::NoText { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_but_not_round_and_round() {
        use std::os::unix::fs::symlink;

        let folder = folder_with(&[("data/a", b"A"), ("elsewhere/b", b"B")]);
        let data = folder.path().join("data");
        symlink(folder.path().join("elsewhere"), data.join("link")).unwrap();
        let texts: Vec<_> =
            read_text(std::slice::from_ref(&data)).unwrap().into_iter().map(|file| file.text).collect();
        assert_eq!(texts, ["A", "B"]);

        let around = data.join("around");
        symlink(folder.path(), &around).unwrap();
        assert!(matches!(read_text(&[folder.path().to_owned()]),
            Err(TextError::FolderLoop { path }) if path == around));
    }
}
