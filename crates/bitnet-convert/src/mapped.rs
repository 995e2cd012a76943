//! A file in memory as a map: read as it is needed, and given back once it was read.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::source::Sink;
use crate::{ConvertError, WeightType};

/// Values of one piece of a tensor.
const PIECE: usize = 1 << 20;

/// A memory-mapped file of tensors.
pub(crate) struct Mapped {
    path: PathBuf,
    map: Mmap,
}

impl Mapped {
    #[allow(unsafe_code, reason = "a memory map is how a checkpoint is read without holding it twice")]
    pub(crate) fn open(path: PathBuf) -> Result<Self, ConvertError> {
        let read = |source| ConvertError::Read { path: path.clone(), source };
        let file = File::open(&path).map_err(read)?;
        // SAFETY: the map is read only. Another process that truncates the file meanwhile would end this one with a
        // signal, as for every mapped file; nothing else can go wrong, since all bytes are valid numbers.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        Ok(Self { path, map })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Calls `read` with a range of the file.
    pub(crate) fn with<R>(&self, range: Range<usize>, read: impl FnOnce(&[u8]) -> R) -> R {
        let result = read(&self.map[range.clone()]);
        self.forget(range);
        result
    }

    /// Gives the values in a range, widened to f32, in consecutive pieces.
    ///
    /// # Errors
    /// [`ConvertError::NotFinite`] at the first NaN or infinity, for the tensor `name`, and those of `sink`.
    pub(crate) fn floats(
        &self,
        name: &str,
        range: Range<usize>,
        weight_type: WeightType,
        sink: &mut Sink,
    ) -> Result<(), ConvertError> {
        let step = PIECE * weight_type.bytes();
        let mut values = Vec::new();
        for (piece, from) in range.clone().step_by(step).enumerate() {
            self.with(from..range.end.min(from + step), |bytes| weight_type.decode(bytes, &mut values));
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                let (index, value) = (piece * PIECE + at, values[at]);
                return Err(ConvertError::NotFinite { name: name.into(), index, value });
            }
            sink(&values)?;
        }
        Ok(())
    }

    /// Lets the system take back the pages of a range that has been read, so that a file is never in memory as a whole.
    #[allow(unsafe_code, reason = "the advice has no safe form")]
    fn forget(&self, range: Range<usize>) {
        // SAFETY: the map is read only and backed by the file: a page that is dropped is read from there again.
        // A system that does not take the advice only keeps more memory in use.
        #[cfg(unix)]
        let _ = unsafe {
            self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
        };
        #[cfg(not(unix))]
        let _ = range;
    }
}
