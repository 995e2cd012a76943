//! What a teacher says about sequences, kept on disk.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bitnet_convert::Unfinished;
use bitnet_model::CausalLm;
use bitnet_text::TextError;
use burn::module::Module;
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::TrainError;
use crate::config::check;

/// The likeliest next tokens after each token of some sequences, and their logarithmic probabilities, by a teacher.
///
/// The file is safetensors, with a row per sequence, in the order of the keys:
///
/// | tensor | type | shape | what |
/// |---|---|---|---|
/// | `keys` | U64 | `[rows]` | the first 8 bytes of SHA-256 of the tokens as little-endian u32, little-endian |
/// | `tokens` | U32 | `[rows, T, top_k]` | the likeliest tokens, those first |
/// | `log_p` | F32 | `[rows, T, top_k]` | the logarithms of their probabilities at the temperature |
///
/// Its metadata are the fields of `about`, as JSON. Rows are read when they are asked for; only the keys are in memory.
#[derive(Debug)]
pub struct TeacherLogits {
    path: PathBuf,
    /// Threads of several devices read from it: its position belongs to one at a time.
    file: Mutex<File>,
    about: About,
    /// Ascending.
    keys: Vec<u64>,
    /// Where the values begin in the file.
    start: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    /// Which teacher, and which data.
    of: String,
    rows: u64,
    window: usize,
    top_k: usize,
    vocab_size: usize,
    temperature: f64,
}

impl About {
    /// Values of one row of `tokens` or `log_p`.
    fn row(&self) -> usize {
        self.window * self.top_k
    }

    /// Bytes of one of the two tensors.
    fn bytes(&self) -> u64 {
        4 * self.rows * self.row() as u64
    }
}

/// The header with its length; what it says may be shorter.
const HEADER: u64 = 1024;

impl TeacherLogits {
    /// Runs a teacher over `n` sequences of `window` tokens, `batch` at a time, and writes what it says. Sequences that
    /// are equal are kept once. The file appears under its name when it is whole; `of`, at most 100 characters, is kept in it to tell
    /// teachers and data apart.
    ///
    /// # Errors
    /// - [`TrainError::Config`] for more tokens than the vocabulary has
    /// - those of `sequence` and of [`CausalLm::batch`]
    /// - [`TrainError::Teacher`] where a logit is NaN, or a token to be kept has no probability
    /// - [`TrainError::Write`], [`TrainError::Device`]
    pub fn create(
        path: &Path,
        of: &str,
        teacher: &CausalLm,
        (top_k, temperature): (usize, f64),
        (n, window, batch): (u64, usize, usize),
        sequence: impl Fn(u64) -> Result<Vec<u32>, TextError>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<(), TrainError> {
        let vocab_size = teacher.config().vocab_size;
        let expected = format!("at most the vocabulary, {vocab_size}");
        check("distill.logit_kl.top_k", top_k, (1..=vocab_size).contains(&top_k), &expected)?;
        let mut rows = (0..n).map(|i| Ok((key(&sequence(i)?), i))).collect::<Result<Vec<_>, TextError>>()?;
        rows.sort_unstable();
        rows.dedup_by_key(|(key, _)| *key);
        let about = About { of: of.into(), rows: rows.len() as u64, window, top_k, vocab_size, temperature };

        let write = |error: io::Error| TrainError::Write { path: path.into(), reason: error.to_string() };
        let unfinished = Unfinished::beside(path).map_err(write)?;
        let open = || File::options().write(true).open(unfinished.path());
        let start = HEADER + 8 * about.rows;
        let mut front = BufWriter::new(File::create(unfinished.path()).map_err(write)?);
        let keys = rows.iter().flat_map(|(key, _)| key.to_le_bytes()).collect::<Vec<u8>>();
        front.write_all(&header(&about)).and_then(|()| front.write_all(&keys)).map_err(write)?;
        let mut log_p_file = BufWriter::new(open().map_err(write)?);
        log_p_file.seek(SeekFrom::Start(start + about.bytes())).map_err(write)?;

        let teacher = teacher.valid();
        let mut done = 0;
        for rows in rows.chunks(batch.max(1)) {
            let sequences = rows.iter().map(|(_, i)| sequence(*i)).collect::<Result<Vec<_>, _>>()?;
            let logits = teacher.forward(teacher.batch(&sequences)?);
            let log_p = log_softmax(logits.cast(DType::F32) / temperature, 2).try_into_vec_as::<f32>();
            for row in log_p.map_err(device_error)?.chunks(vocab_size) {
                for (token, log_p) in likeliest(row, top_k)? {
                    front.write_all(&token.to_le_bytes()).map_err(write)?;
                    log_p_file.write_all(&log_p.to_le_bytes()).map_err(write)?;
                }
            }
            done += rows.len() as u64;
            progress(done, about.rows);
        }
        for file in [front, log_p_file] {
            file.into_inner().map_err(|error| write(error.into_error()))?.sync_all().map_err(write)?;
        }
        unfinished.finish().map_err(write)
    }

    /// Opens what [`create`](Self::create) wrote.
    ///
    /// # Errors
    /// [`TrainError::Read`] where it cannot be read, is something else, or was cut off.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let wrong = |reason: String| TrainError::Read { path: path.into(), reason };
        let read = |error: io::Error| wrong(error.to_string());
        let mut file = File::open(path).map_err(read)?;
        let mut bytes = vec![0; HEADER as usize];
        file.read_exact(&mut bytes).map_err(read)?;
        let about = serde_json::from_slice::<serde_json::Value>(&bytes[8..]).ok();
        let about =
            about.and_then(|header| header.get("__metadata__")?.get("about")?.as_str().map(str::to_owned));
        let about: About = about
            .and_then(|about| serde_json::from_str(&about).ok())
            .ok_or_else(|| wrong("expected a teacher's logits, with `about` in its metadata".into()))?;
        let found = file.metadata().map_err(read)?.len();
        if bytes_of(&about) != Some(found) || bytes != header(&about) {
            return Err(wrong(format!("it has {found} bytes, not those that its header describes")));
        }
        let mut keys = vec![0; 8 * about.rows as usize];
        file.read_exact(&mut keys).map_err(read)?;
        let keys = keys.as_chunks().0.iter().map(|key| u64::from_le_bytes(*key)).collect();
        let start = HEADER + 8 * about.rows;
        Ok(Self { path: path.into(), file: Mutex::new(file), about, keys, start })
    }

    /// What [`create`](Self::create) was told that it is of.
    pub fn of(&self) -> &str {
        &self.about.of
    }

    /// How many tokens are kept after each token.
    pub fn top_k(&self) -> usize {
        self.about.top_k
    }

    /// What the teacher's logits were divided by.
    pub fn temperature(&self) -> f64 {
        self.about.temperature
    }

    /// The teacher's vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.about.vocab_size
    }

    /// The likeliest tokens and the logarithms of their probabilities, `[B, T, top_k]` each.
    ///
    /// # Errors
    /// [`TrainError::Read`] for sequences that are not in the file, or where it cannot be read.
    pub fn read(
        &self,
        sequences: &[Vec<u32>],
        device: &Device,
    ) -> Result<(Tensor<3, Int>, Tensor<3>), TrainError> {
        let &About { top_k, window, vocab_size, .. } = &self.about;
        let wrong = |reason: String| TrainError::Read { path: self.path.clone(), reason };
        let (mut tokens, mut log_p) = (Vec::new(), Vec::new());
        for sequence in sequences {
            let row = self.keys.binary_search(&key(sequence)).ok().filter(|_| sequence.len() == window);
            let row = row.ok_or_else(|| wrong("it does not have a sequence that is asked for".into()))?;
            let bytes = |tensor: u64| {
                let mut bytes = vec![0; 4 * self.about.row()];
                let at = self.start + tensor * self.about.bytes() + row as u64 * bytes.len() as u64;
                let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes)).map(|()| bytes)
            };
            let of = |tensor| bytes(tensor).map_err(|error| wrong(error.to_string()));
            tokens.extend(of(0)?.as_chunks().0.iter().map(|token| i32::from_le_bytes(*token)));
            log_p.extend(of(1)?.as_chunks().0.iter().map(|log_p| f32::from_le_bytes(*log_p)));
        }
        if let Some(token) = tokens.iter().find(|token| !(0..vocab_size as i64).contains(&i64::from(**token)))
        {
            return Err(wrong(format!("token {token}: expected one of {vocab_size}")));
        }
        let shape = [sequences.len(), window, top_k];
        let log_p = Tensor::from_data(TensorData::new(log_p, shape), (device, DType::F32));
        Ok((Tensor::from_data(TensorData::new(tokens, shape), device), log_p))
    }
}

/// The size of a whole file; `None` for what no file can have.
fn bytes_of(about: &About) -> Option<u64> {
    let row = 8_u64.checked_mul(about.window as u64)?.checked_mul(about.top_k as u64)?.checked_add(8)?;
    about.rows.checked_mul(row)?.checked_add(HEADER)
}

fn header(about: &About) -> Vec<u8> {
    let &About { rows, window, top_k, .. } = about;
    let keys = 8 * rows;
    let values = |dtype, from| json!({ "dtype": dtype, "shape": [rows, window, top_k], "data_offsets": [from, from + about.bytes()] });
    let json = json!({
        "__metadata__": { "about": json!(about).to_string() },
        "keys": { "dtype": "U64", "shape": [rows], "data_offsets": [0, keys] },
        "tokens": values("U32", keys),
        "log_p": values("F32", keys + about.bytes()),
    });
    let mut header = (HEADER - 8).to_le_bytes().to_vec();
    header.extend(json.to_string().into_bytes());
    header.resize(HEADER as usize, b' ');
    header
}

/// What a sequence is found again by.
fn key(sequence: &[u32]) -> u64 {
    let hash =
        sequence.iter().fold(Sha256::new(), |hash, token| hash.chain_update(token.to_le_bytes())).finalize();
    hash.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The largest of the logarithms, those first, and their places; of equal ones the first.
fn likeliest(log_p: &[f32], top_k: usize) -> Result<Vec<(u32, f32)>, TrainError> {
    let mut places: Vec<u32> = (0..log_p.len() as u32).collect();
    let larger_first = |a: &u32, b: &u32| log_p[*b as usize].total_cmp(&log_p[*a as usize]).then(a.cmp(b));
    places.select_nth_unstable_by(top_k - 1, larger_first);
    places.truncate(top_k);
    places.sort_unstable_by(larger_first);
    let kept: Vec<(u32, f32)> = places.into_iter().map(|place| (place, log_p[place as usize])).collect();
    let nan = log_p.iter().find(|log_p| log_p.is_nan());
    match nan.or(kept.iter().map(|(_, log_p)| log_p).find(|log_p| !log_p.is_finite())) {
        Some(found) => Err(TrainError::Teacher { found: f64::from(*found) }),
        None => Ok(kept),
    }
}

fn device_error(error: impl ToString) -> TrainError {
    TrainError::Device(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first() {
        let log_p = [-3.0, -1.0, -2.0, -1.0, -9.0];
        assert_eq!(likeliest(&log_p, 3).unwrap(), [(1, -1.0), (3, -1.0), (2, -2.0)]);
        assert_eq!(likeliest(&log_p, 5).unwrap().len(), 5);
        assert!(matches!(likeliest(&[0.0, f32::NAN], 1), Err(TrainError::Teacher { .. })));
        let masked = [f32::NEG_INFINITY, 0.0];
        assert_eq!(likeliest(&masked, 1).unwrap(), [(1, 0.0)], "what is not kept may be impossible");
        let error = likeliest(&masked, 2).unwrap_err();
        assert!(matches!(error, TrainError::Teacher { found: f64::NEG_INFINITY }), "{error}");
    }

    #[test]
    fn what_is_no_such_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("teacher.safetensors");
        let error = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let error = TeacherLogits::open(&path).unwrap_err().to_string();
            assert!(error.contains("teacher.safetensors"), "{error}");
            error
        };
        let about =
            About { of: "a teacher".into(), rows: 2, window: 3, top_k: 4, vocab_size: 5, temperature: 1.5 };
        let mut whole = header(&about);
        whole.resize(HEADER as usize + 2 * 8 + 2 * (2 * 3 * 4 * 4), 0);
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(TeacherLogits::open(&path).unwrap().about, about);
        error(b"");
        error(&[b' '; 2000]);
        assert!(error(&whole[..whole.len() - 1]).contains("1231 bytes"));
        let text = String::from_utf8_lossy(&whole[8..]);
        let huge = text.replace(r#"\"rows\":2"#, &format!(r#"\"rows\":{}"#, u64::MAX / 4));
        assert_ne!(huge, text);
        error(&[&whole[..8], huge.as_bytes()].concat());
    }
}
