//! Where training tokens come from, and the cache of those that were made from text.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::documents::{TextPieces, json_lines};
use crate::files::list_files;
use crate::token_file::{TENSOR, TokenWriter};
use crate::{TextError, TokenFile, Tokenizer};

/// Changes with whatever decides which tokens a text gives, so that caches of other versions are not used.
const VERSION: &str = "bitnet tokens 1";

/// The data of a training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenSource {
    /// Text files and folders of them, read in the order of [`read_text`](crate::read_text); each file is a document.
    Text(Vec<PathBuf>),
    /// Files and folders of one JSON object per line; a field of each is a document.
    Jsonl {
        /// The files and folders.
        paths: Vec<PathBuf>,
        /// The field with the text.
        field: String,
    },
    /// A safetensors file with the tokens themselves, as [`TokenFile`] reads them.
    Tokens {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
}

impl TokenSource {
    /// Opens the tokens. Those of text are made once and kept in the folder `cache`, in a file named after a hash of
    /// tokenizer, separator and text; neither text nor tokens are ever in memory as a whole. After each document
    /// comes the separator, a token as the vocabulary spells it. `progress` hears how many bytes of text of how many
    /// are done, once per megabyte.
    ///
    /// # Errors
    /// - [`TextError::Read`], [`TextError::FolderLoop`] for files and folders; [`TextError::Line`] for a line that is
    ///   no UTF-8, or no JSON object with the field; [`TextError::NoText`] where there is nothing
    /// - [`TextError::Separator`], [`TextError::Encode`], and those of [`TokenFile::open`]
    /// - [`TextError::Write`] where the cache cannot be written
    pub fn open(
        &self,
        tokenizer: &Tokenizer,
        separator: Option<&str>,
        cache: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<TokenFile, TextError> {
        let (paths, field) = match self {
            Self::Tokens { path, tensor } => return TokenFile::open(path, tensor),
            Self::Text(paths) => (paths, None),
            Self::Jsonl { paths, field } => (paths, Some(field.as_str())),
        };
        let separator = match separator {
            Some(token) => Some(
                tokenizer
                    .token_to_id(token)
                    .ok_or_else(|| TextError::Separator { token: token.to_owned() })?,
            ),
            None => None,
        };
        let files = list_files(paths)?;
        let key = key(&files, field, &tokenizer.to_json()?, separator)?;
        let path = cache.join(format!("{key}.safetensors"));
        if !path.exists() {
            let made = Making { tokenizer, field, separator, files: &files, progress }.write(&path)?;
            if made == 0 {
                return Err(TextError::NoText { paths: paths.clone() });
            }
        }
        TokenFile::open(&path, TENSOR)
    }
}

/// A hash of everything that decides the tokens.
fn key(
    files: &[PathBuf],
    field: Option<&str>,
    tokenizer: &str,
    separator: Option<u32>,
) -> Result<String, TextError> {
    let mut hash = Sha256::new();
    hash.update(format!("{VERSION}\n{field:?}\n{separator:?}\n{}\n{tokenizer}", tokenizer.len()));
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let read = |source| TextError::Read { path: path.clone(), source };
        let mut file = File::open(path).map_err(read)?;
        let mut contents = Sha256::new();
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => contents.update(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read(error)),
            }
        }
        hash.update(contents.finalize());
    }
    Ok(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

/// A cache file in the making.
struct Making<'a> {
    tokenizer: &'a Tokenizer,
    field: Option<&'a str>,
    separator: Option<u32>,
    files: &'a [PathBuf],
    progress: &'a mut dyn FnMut(u64, u64),
}

/// Whether an open file is the one of that name.
#[cfg(unix)]
fn stands_under(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |data: fs::Metadata| (data.dev(), data.ino());
    file.metadata().map(identity).ok() == fs::metadata(path).map(identity).ok()
}

/// Elsewhere an open file cannot be removed or renamed.
#[cfg(not(unix))]
fn stands_under(_: &File, _: &Path) -> bool {
    true
}

impl Making<'_> {
    /// Writes beside `path` and renames. A second process waits for the first and finds its file; what a killed one
    /// left is overwritten. Returns the number of tokens; a file without any is removed again.
    fn write(mut self, path: &Path) -> Result<u64, TextError> {
        let partial = path.with_extension("partial");
        let write = |source| TextError::Write { path: partial.clone(), source };
        fs::create_dir_all(path.parent().unwrap_or(Path::new(""))).map_err(write)?;
        let file = loop {
            let file =
                File::options().write(true).create(true).truncate(false).open(&partial).map_err(write)?;
            file.lock().map_err(write)?;
            // Whoever had the lock before may have removed the file, or given it its name.
            if stands_under(&file, &partial) {
                break file;
            }
        };
        if path.exists() {
            return TokenFile::open(path, TENSOR).map(|tokens| tokens.len());
        }
        let mut writer = TokenWriter::new(file.try_clone().map_err(write)?).map_err(write)?;
        let made = self.tokenize(&mut writer, &partial).and_then(|()| writer.finish().map_err(write));
        match made {
            Ok(1..) => fs::rename(&partial, path).map_err(write)?,
            _ => fs::remove_file(&partial).map_err(write)?,
        }
        made
    }

    fn tokenize(&mut self, writer: &mut TokenWriter, partial: &Path) -> Result<(), TextError> {
        let write = |source| TextError::Write { path: partial.to_owned(), source };
        let sizes = self.files.iter().map(|path| fs::metadata(path).map_or(0, |data| data.len()));
        let (mut done, total) = (0, sizes.sum());
        for path in self.files {
            let read = |source| TextError::Read { path: path.clone(), source };
            let reader = BufReader::new(File::open(path).map_err(read)?);
            let mut separate = false; // whether the document so far is more than nothing
            let mut encode = |text: &str, bytes: u64, ends_document: bool| {
                writer.write(&self.tokenizer.encode(text)?).map_err(write)?;
                separate |= !text.is_empty();
                if ends_document
                    && std::mem::take(&mut separate)
                    && let Some(separator) = self.separator
                {
                    writer.write(&[separator]).map_err(write)?;
                }
                if (done + bytes) >> 20 > done >> 20 {
                    (self.progress)(done + bytes, total);
                }
                done += bytes;
                Ok(())
            };
            match self.field {
                Some(field) => json_lines(path, reader, field, &mut |text, bytes| encode(text, bytes, true))?,
                None => {
                    let mut pieces = TextPieces::new(path, reader);
                    while let Some(piece) = pieces.next()? {
                        encode(&piece, piece.len() as u64, false)?;
                    }
                    encode("", 0, true)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(folder: &Path) -> Tokenizer {
        let path = folder.join("corpus");
        fs::write(&path, "one two three two one").unwrap();
        Tokenizer::train_byte_level_bpe(&[path], 270, &["<end>"]).unwrap()
    }

    fn all(tokens: &TokenFile) -> Vec<u32> {
        tokens.read(0, tokens.len() as usize).unwrap()
    }

    fn cached(folder: &Path) -> usize {
        fs::read_dir(folder.join("cache")).unwrap().count()
    }

    #[test]
    fn text_and_jsonl_give_the_documents_tokens_with_separators() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let tokenizer = tokenizer(folder.path());
        fs::create_dir(at("texts")).unwrap();
        fs::write(at("texts/a"), "one\ntwo").unwrap();
        fs::write(at("texts/b"), "").unwrap();
        fs::write(at("texts/c"), "three").unwrap();
        fs::write(at("lines"), "{\"t\": \"one\\ntwo\", \"u\": 1}\n\n{\"t\": \"\"}\n{\"t\": \"three\"}")
            .unwrap();
        let end = tokenizer.token_to_id("<end>").unwrap();
        let [first, second] = ["one\ntwo", "three"].map(|text| tokenizer.encode(text).unwrap());
        let expected = [first, vec![end], second, vec![end]].concat();
        let without: Vec<u32> = expected.iter().copied().filter(|&token| token != end).collect();
        let text = TokenSource::Text(vec![at("texts")]);
        let jsonl = TokenSource::Jsonl { paths: vec![at("lines")], field: "t".into() };
        for (source, n_files) in [(text, 2), (jsonl, 4)] {
            let open = |separator| source.open(&tokenizer, separator, &at("cache"), &mut |_, _| ()).unwrap();
            assert_eq!(all(&open(Some("<end>"))), expected, "{source:?}");
            assert_eq!(all(&open(None)), without);
            assert_eq!(all(&open(Some("<end>"))), expected, "from the cache");
            assert_eq!(cached(folder.path()), n_files);
        }
    }

    #[test]
    fn the_cache_follows_the_content() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let tokenizer = tokenizer(folder.path());
        let open = |name: &str| {
            let source = TokenSource::Text(vec![at(name)]);
            all(&source.open(&tokenizer, None, &at("cache"), &mut |_, _| ()).unwrap())
        };
        fs::write(at("a"), "one").unwrap();
        let one = open("a");
        fs::rename(at("a"), at("b")).unwrap();
        assert_eq!(open("b"), one);
        assert_eq!(cached(folder.path()), 1, "another name, the same content");
        fs::write(at("b"), "two").unwrap();
        assert_eq!(open("b"), tokenizer.encode("two").unwrap());
        assert_eq!(cached(folder.path()), 2);
        // What a killed process leaves is no obstacle.
        for entry in fs::read_dir(at("cache")).unwrap() {
            let path = entry.unwrap().path();
            fs::write(path.with_extension("partial"), [7; 10_000]).unwrap();
            fs::remove_file(path).unwrap();
        }
        assert_eq!(open("b"), tokenizer.encode("two").unwrap());
        assert_eq!(cached(folder.path()), 2, "one file, and the other's remains");
    }

    #[test]
    fn bad_data_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let tokenizer = tokenizer(folder.path());
        let fail = |source: TokenSource, separator| {
            source.open(&tokenizer, separator, &at("cache"), &mut |_, _| ()).unwrap_err()
        };
        fs::write(at("empty"), "").unwrap();
        fs::write(at("bad"), b"good\nb\xffd\n").unwrap();
        fs::write(at("jsonl"), "{\"t\": \"a\"}\n{\"t\": 3}\n").unwrap();
        let text = |name: &str| TokenSource::Text(vec![at(name)]);
        assert!(matches!(fail(text("empty"), None), TextError::NoText { .. }));
        assert!(matches!(fail(text("bad"), None), TextError::Line { line: 2, .. }));
        assert!(matches!(fail(text("absent"), None), TextError::Read { .. }));
        assert!(matches!(fail(text("bad"), Some("<nope>")), TextError::Separator { .. }));
        let jsonl = |field: &str| TokenSource::Jsonl { paths: vec![at("jsonl")], field: field.into() };
        assert!(matches!(fail(jsonl("t"), None), TextError::Line { line: 2, .. }));
        assert!(matches!(fail(jsonl("u"), None), TextError::Line { line: 1, .. }));
        assert_eq!(cached(folder.path()), 0, "nothing is left of what failed");
    }
}
