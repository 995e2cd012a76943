//! Reading a GGUF file that lies in memory, mapped or loaded.

use super::cursor::Cursor;
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_AXES, TensorType, VERSION, Value, alignment};
use crate::FormatError;

/// A GGUF file, checked in full except for what the tensors' bytes mean.
///
/// A tensor's padding belongs to the file, so a file that is cut anywhere is noticed.
///
/// It borrows everything from the file's bytes and keeps only where each entry starts: reading allocates less
/// than the file has bytes, whatever the file claims.
#[derive(Debug, Clone)]
pub struct Gguf<'a> {
    bytes: &'a [u8],
    version: u32,
    alignment: usize,
    /// Where each metadata entry starts, in the file's order.
    metadata: Vec<usize>,
    /// Where each tensor's entry starts, in the file's order.
    tensors: Vec<usize>,
    /// The same, in the order of the names.
    by_name: Vec<usize>,
    data: &'a [u8],
}

/// A tensor in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor<'a> {
    /// The name.
    pub name: &'a str,
    /// What the data mean.
    pub kind: TensorType,
    /// The shape, row-major: a weight is `[d_output, d_input]`.
    pub shape: Vec<usize>,
    /// The bytes, without padding: as many as [`TensorType::data_len`] says.
    pub data: &'a [u8],
}

/// A tensor's entry in the header, without allocation.
struct Entry<'a> {
    name: &'a str,
    /// In the file's order, `d_input` first.
    axes: [u64; MAX_AXES],
    axis_count: usize,
    kind: TensorType,
    /// Relative to the data section.
    offset: u64,
}

/// The bytes of the shortest metadata entry: an empty key, a type and one byte.
const MIN_METADATA: usize = 8 + 4 + 1;
/// The bytes of the shortest tensor entry: an empty name, no axes, a type and an offset.
const MIN_TENSOR: usize = 8 + 4 + 4 + 8;

impl<'a> Gguf<'a> {
    /// Reads a file of version 2 or 3 in little-endian order.
    ///
    /// # Errors
    /// - [`FormatError::Magic`], [`FormatError::Version`] if it is another kind of file.
    /// - [`FormatError::Truncated`] if it ends too early, or a count or length is too large for it.
    /// - [`FormatError::Utf8`], [`FormatError::Bool`], [`FormatError::UnknownValueType`],
    ///   [`FormatError::Depth`], [`FormatError::DuplicateKey`], [`FormatError::Alignment`] if metadata are
    ///   malformed.
    /// - [`FormatError::UnknownTensorType`], [`FormatError::Axes`], [`FormatError::TensorShape`],
    ///   [`FormatError::DuplicateTensor`] if a tensor's entry is malformed.
    /// - [`FormatError::Unaligned`], [`FormatError::OutOfRange`], [`FormatError::Overlap`] if its data are
    ///   elsewhere than they may be.
    pub fn read(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let mut cursor = Cursor { bytes, at: 0 };
        let magic = cursor.magic()?;
        if magic != MAGIC {
            return Err(FormatError::Magic { found: magic });
        }
        let version = cursor.u32("version")?;
        if !(2..=VERSION).contains(&version) {
            return Err(FormatError::Version { found: version });
        }
        let tensor_count = cursor.u64("tensor count")?;
        let metadata_count = cursor.u64("metadata count")?;

        let count = cursor.expect(metadata_count, MIN_METADATA, "metadata")?;
        let mut file_alignment = DEFAULT_ALIGNMENT;
        let metadata = entries(&mut cursor, count, |cursor| {
            let (key, value) = cursor.metadata()?;
            if key == ALIGNMENT_KEY {
                file_alignment = alignment(&value)?;
            }
            Ok(())
        })?;
        let count = cursor.expect(tensor_count, MIN_TENSOR, "tensor entries")?;
        let tensors = entries(&mut cursor, count, |cursor| cursor.tensor().map(|_| ()))?;

        let data_start = cursor.at.checked_next_multiple_of(file_alignment).unwrap_or(usize::MAX);
        let data = match bytes.get(data_start..) {
            Some(data) => data,
            None if tensors.is_empty() => &[],
            None => {
                let needed = (data_start - cursor.at) as u64;
                return Err(FormatError::Truncated {
                    what: "padding",
                    at: cursor.at,
                    needed,
                    found: cursor.left(),
                });
            }
        };
        let mut file = Self {
            bytes,
            version,
            alignment: file_alignment,
            metadata,
            by_name: tensors.clone(),
            tensors,
            data,
        };
        file.check_keys()?;
        file.check_data()?;
        file.check_names()?;
        Ok(file)
    }

    /// 2 or 3, which have the same layout.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Every tensor's data start on a multiple of this many bytes.
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// Every key and its value, in the file's order.
    pub fn metadata(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        // Every entry was read once in `read`, so none is lost here and below.
        self.metadata.iter().filter_map(|&at| Cursor { bytes: self.bytes, at }.metadata().ok())
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        let at = self.metadata.iter().copied().find(|&at| self.text(at) == key)?;
        Cursor { bytes: self.bytes, at }.metadata().ok().map(|(_, value)| value)
    }

    /// Every tensor, in the file's order.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'a>> {
        self.tensors.iter().filter_map(|&at| self.tensor_at(at).ok())
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'a>> {
        let found = self.by_name.binary_search_by_key(&name, |&at| self.text(at)).ok()?;
        self.tensor_at(self.by_name[found]).ok()
    }

    /// The key or name of the entry at `at`.
    fn text(&self, at: usize) -> &'a str {
        Cursor { bytes: self.bytes, at }.string("name").unwrap_or_default()
    }

    fn entry(&self, at: usize) -> Result<Entry<'a>, FormatError> {
        Cursor { bytes: self.bytes, at }.tensor()
    }

    fn tensor_at(&self, at: usize) -> Result<Tensor<'a>, FormatError> {
        let Entry { name, axes, axis_count, kind, offset } = self.entry(at)?;
        let axes = &axes[..axis_count];
        let shape: Option<Vec<usize>> = axes.iter().rev().map(|&axis| axis.try_into().ok()).collect();
        let Some((shape, len)) = shape.and_then(|shape| kind.data_len(&shape).map(|len| (shape, len))) else {
            let shape = axes.iter().rev().copied().collect();
            return Err(FormatError::TensorShape { name: name.into(), shape, kind, block: kind.block().0 });
        };
        if offset % self.alignment as u64 != 0 {
            return Err(FormatError::Unaligned {
                name: name.into(),
                found: offset,
                alignment: self.alignment,
            });
        }
        let data = len
            .checked_next_multiple_of(self.alignment)
            .and_then(|padded| {
                let start = usize::try_from(offset).ok()?;
                self.data.get(start..start.checked_add(padded)?)
            })
            .map(|padded| &padded[..len]);
        match data {
            Some(data) => Ok(Tensor { name, kind, shape, data }),
            None => Err(FormatError::OutOfRange { name: name.into(), offset, len, found: self.data.len() }),
        }
    }

    /// Refuses a key that occurs twice.
    fn check_keys(&mut self) -> Result<(), FormatError> {
        let mut order = std::mem::take(&mut self.metadata);
        order.sort_unstable_by_key(|&at| self.text(at));
        if let Some(key) = self.first_double(&order) {
            return Err(FormatError::DuplicateKey { key: key.into() });
        }
        order.sort_unstable(); // back to the file's order
        self.metadata = order;
        Ok(())
    }

    /// Refuses tensors whose data are outside the file, unaligned, or shared.
    fn check_data(&mut self) -> Result<(), FormatError> {
        let mut order = std::mem::take(&mut self.by_name);
        order.sort_unstable_by_key(|&at| self.entry(at).map_or((0, at), |entry| (entry.offset, at)));
        let mut before: Option<(&str, u64)> = None;
        for &at in &order {
            let (offset, tensor) = (self.entry(at)?.offset, self.tensor_at(at)?);
            if let Some((first, end)) = before
                && offset < end
                && !tensor.data.is_empty()
            {
                return Err(FormatError::Overlap { first: first.into(), second: tensor.name.into(), offset });
            }
            if !tensor.data.is_empty() {
                before = Some((tensor.name, offset + tensor.data.len() as u64));
            }
        }
        self.by_name = order;
        Ok(())
    }

    /// Sorts the names and refuses one that occurs twice.
    fn check_names(&mut self) -> Result<(), FormatError> {
        let mut order = std::mem::take(&mut self.by_name);
        order.sort_unstable_by_key(|&at| self.text(at));
        if let Some(name) = self.first_double(&order) {
            return Err(FormatError::DuplicateTensor { name: name.into() });
        }
        self.by_name = order;
        Ok(())
    }

    /// The first text that two neighbours share.
    fn first_double(&self, sorted: &[usize]) -> Option<&'a str> {
        sorted
            .windows(2)
            .map(|pair| (self.text(pair[0]), self.text(pair[1])))
            .find(|(a, b)| a == b)
            .map(|(a, _)| a)
    }
}

/// Where each of `count` entries starts; `read` moves the cursor past one.
fn entries<'a>(
    cursor: &mut Cursor<'a>,
    count: usize,
    mut read: impl FnMut(&mut Cursor<'a>) -> Result<(), FormatError>,
) -> Result<Vec<usize>, FormatError> {
    let mut starts = Vec::with_capacity(count);
    for _ in 0..count {
        starts.push(cursor.at);
        read(cursor)?;
    }
    Ok(starts)
}

impl<'a> Cursor<'a> {
    /// Reads a key and its value.
    fn metadata(&mut self) -> Result<(&'a str, Value<'a>), FormatError> {
        let key = self.string("metadata key")?;
        let kind = self.value_type()?;
        Ok((key, self.value(kind, 0)?))
    }

    /// Reads a tensor's entry.
    fn tensor(&mut self) -> Result<Entry<'a>, FormatError> {
        let what = "tensor entry";
        let name = self.string("tensor name")?;
        let axis_count = self.u32(what)? as usize;
        if axis_count > MAX_AXES {
            return Err(FormatError::Axes { name: name.into(), found: axis_count });
        }
        let mut axes = [0; MAX_AXES];
        for axis in &mut axes[..axis_count] {
            *axis = self.u64(what)?;
        }
        let id = self.u32(what)?;
        let kind = TensorType::from_id(id)
            .ok_or_else(|| FormatError::UnknownTensorType { name: name.into(), found: id })?;
        Ok(Entry { name, axes, axis_count, kind, offset: self.u64(what)? })
    }
}
