//! Checkpoints, data and settings for the tests, and reading what became of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bitnet_pipeline::{Config, Pipeline, PipelineError, Report};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// A golden checkpoint.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/hf").join(name)
}

/// A copy of a golden checkpoint, tokens for it, and a target, in a folder that is removed in the end.
pub(crate) struct Work {
    pub(crate) folder: tempfile::TempDir,
}

impl Work {
    pub(crate) fn new(name: &str) -> Self {
        let work = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(work.source()).unwrap();
        for entry in fs::read_dir(golden(name)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap();
            if !name.to_str().unwrap().starts_with("ref.") {
                fs::copy(&path, work.source().join(name)).unwrap();
            }
        }
        // Skewed, so that there is something to learn; all golden vocabularies are larger.
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / f64::from(1u32 << 24)
        };
        let tokens: Vec<u8> =
            (0..1600).flat_map(|_| ((next().powi(3) * 90.0) as i32).to_le_bytes()).collect();
        let view = TensorView::new(Dtype::I32, vec![1600], &tokens).unwrap();
        fs::write(work.path("tokens"), safetensors::serialize([("tokens", view)], None).unwrap()).unwrap();
        work
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.path("source")
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.path("target")
    }

    /// Settings: these, and the data of this folder.
    pub(crate) fn config(&self, settings: &str) -> Config {
        let data = format!(
            "[data]\nsource = {{ tokens = {{ path = '{}', tensor = 'tokens' }} }}\nwindow = 16\n",
            self.path("tokens").display()
        );
        let config: Config = toml::from_str(&format!("{settings}\n{data}")).unwrap();
        config.validate().unwrap();
        config
    }

    pub(crate) fn run(&self, settings: &str) -> Result<Report, PipelineError> {
        Pipeline::new(self.source(), self.target(), &self.config(settings))?.run(&mut |_| ())
    }
}

/// Names in a folder, hidden ones too.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Type, shape and bytes of every tensor in a folder's files.
pub(crate) fn tensors(folder: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for name in names(folder).iter().filter(|name| name.ends_with(".safetensors")) {
        let bytes = fs::read(folder.join(name)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        found.extend(
            file.tensors()
                .into_iter()
                .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))),
        );
    }
    found
}

/// A file with these tensors.
pub(crate) fn write(path: &Path, tensors: &BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Values of f32, f16 or bf16.
pub(crate) fn floats(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let wide = |bits: u16| f32::from_bits(u32::from(bits) << 16);
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|bytes| wide(u16::from_le_bytes(*bytes))).collect(),
        other => panic!("{other:?}"),
    }
}
