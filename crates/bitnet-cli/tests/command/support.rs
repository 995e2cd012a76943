//! Running `bitnet` on the repository's models.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// A path in the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// The small dense model.
pub(crate) fn small() -> PathBuf {
    repository("assets/small-model")
}

/// The command, without what the environment says of the hub.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    for name in ["HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"] {
        command.env_remove(name);
    }
    command
}

/// A word of a command line.
pub(crate) trait Word {
    fn word(&self) -> String;
}

impl Word for &str {
    fn word(&self) -> String {
        (*self).to_owned()
    }
}

impl Word for &Path {
    fn word(&self) -> String {
        self.to_str().unwrap().to_owned()
    }
}

impl Word for &PathBuf {
    fn word(&self) -> String {
        self.as_path().word()
    }
}

/// Runs the command with these words, strings and paths alike.
macro_rules! bitnet {
    ($($word:expr),* $(,)?) => {{
        let words: Vec<String> = vec![$($crate::support::Word::word(&$word)),*];
        $crate::support::run($crate::support::command().args(words))
    }};
}

/// What a run printed, and its exit status.
pub(crate) struct Run {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn run(command: &mut Command) -> Run {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { status: status.code().unwrap(), out: text(stdout), err: text(stderr) }
}

impl Run {
    /// What was printed, where all went well.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.status, 0, "{}", self.err);
        self.out
    }

    /// The error, which has one line, where it failed with status 1.
    #[track_caller]
    pub(crate) fn failed(self) -> String {
        assert_eq!(self.status, 1, "{}{}", self.out, self.err);
        let lines: Vec<&str> = self.err.lines().filter(|line| !line.starts_with("note: ")).collect();
        assert_eq!(lines.len(), 1, "{}", self.err);
        lines[0].strip_prefix("error: ").unwrap().to_owned()
    }

    /// The error of a command line that cannot be read.
    #[track_caller]
    pub(crate) fn misused(self) -> String {
        assert_eq!(self.status, 2, "{}{}", self.out, self.err);
        self.err
    }
}

/// Names in a folder, in order.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub(crate) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

pub(crate) fn read_json(path: &Path) -> Value {
    json(&fs::read_to_string(path).unwrap())
}

/// Changes a JSON file.
pub(crate) fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = read_json(path);
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// A copy of a folder's files.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names(from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

/// Shape and values of an f32 tensor in a file.
pub(crate) fn floats(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
    let values = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    (tensor.shape().to_vec(), values)
}

/// Rows of an i64 tensor in a file.
pub(crate) fn rows(path: &Path, name: &str) -> Vec<Vec<i64>> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    let values: Vec<i64> =
        tensor.data().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
    values.chunks(*tensor.shape().last().unwrap()).map(<[i64]>::to_vec).collect()
}

/// A file of one tensor.
pub(crate) fn write_tensor(path: &Path, name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) {
    let view = TensorView::new(dtype, shape.to_vec(), data).unwrap();
    fs::write(path, safetensors::serialize([(name, view)], None).unwrap()).unwrap();
}

/// The largest difference of two lists.
pub(crate) fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
