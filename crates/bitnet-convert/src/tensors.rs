use std::path::Path;

use burn::tensor::Device;

use crate::checkpoint::load_model;
use crate::folder::Folder;
use crate::gguf::GgufFile;
use crate::progress::Progress;
use crate::source::{InMemory, Source};
use crate::{Checkpoint, ConvertError, LoadOptions};

/// The tensors of a checkpoint, checked and not yet read: a folder, or a model in memory.
///
/// [`load`](Self::load) reads them all into a model; [`export_hf`](crate::export_hf) and [`export_gguf`](crate::export_gguf) writes them elsewhere one at a time.
pub struct Tensors<'a>(Inner<'a>);

enum Inner<'a> {
    Folder(Folder),
    Gguf(GgufFile),
    InMemory(InMemory<'a>),
}

impl<'a> Tensors<'a> {
    /// Opens a Hugging Face folder with one safetensors file or shards, or a GGUF file, memory-mapped.
    ///
    /// Of a GGUF file every slot whose weight is ternary comes out packed, whatever type it is stored in; where all are
    /// stored as floats, activations are not quantized, as in llama.cpp. Its tokenizer is not read.
    ///
    /// # Errors
    /// Those of [`load`](crate::load) except [`ConvertError::NotFinite`]: nothing is read yet.
    pub fn open(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Self, ConvertError> {
        let path = path.as_ref();
        if path.is_file() {
            return Ok(Self(Inner::Gguf(GgufFile::open(path, options)?)));
        }
        Ok(Self(Inner::Folder(Folder::open(path, options)?)))
    }

    /// The tensors of a model in memory.
    pub fn of(checkpoint: &'a Checkpoint) -> Self {
        Self(Inner::InMemory(InMemory::new(checkpoint)))
    }

    /// Reads all tensors into a model. A packed checkpoint gives a model with packed slots.
    ///
    /// # Errors
    /// [`ConvertError::NotFinite`] for a NaN or infinite weight, [`ConvertError::Format`] for damaged codes or scales,
    /// and those of the device.
    pub fn load(&self, device: &Device) -> Result<Checkpoint, ConvertError> {
        self.load_watched(device, |_, _| ())
    }

    /// [`load`](Self::load), which calls `progress` with the weights read and their total number.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn load_watched(
        &self,
        device: &Device,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Checkpoint, ConvertError> {
        let source = self.source();
        let (unexpected, suspicious_scales) = match &self.0 {
            Inner::Folder(folder) => (folder.unexpected.clone(), folder.suspicious_scales()?),
            Inner::Gguf(file) => (file.unexpected.clone(), Vec::new()),
            Inner::InMemory(_) => (Vec::new(), Vec::new()),
        };
        Ok(Checkpoint {
            model: load_model(source, device, &mut Progress::new(source, &mut progress))?,
            config: source.config().clone(),
            layout: source.layout(),
            suspicious_scales,
            source: source.tokenizer_folder().unwrap_or(Path::new("")).into(),
            unexpected,
        })
    }

    /// The first BitNet slot of a model in memory that is not at λ = 1, and its λ. Folders hold no λ.
    pub(crate) fn unfinished_slot(&self) -> Option<(String, f32)> {
        match &self.0 {
            Inner::Folder(_) | Inner::Gguf(_) => None,
            Inner::InMemory(model) => model.unfinished_slot(),
        }
    }

    pub(crate) fn source(&self) -> &dyn Source {
        match &self.0 {
            Inner::Folder(folder) => folder,
            Inner::Gguf(file) => file,
            Inner::InMemory(model) => model,
        }
    }
}
