//! Packed files: two bits a code, f32 scales (docs/formats.md), and reading them.

use std::fs::File;
use std::path::Path;

use bitnet_format::{Granularity, PackedTernary, TernaryMatrix, WeightScale};
use serde::{Deserialize, Serialize};

use crate::decide::Matrices;
use crate::source::{Source, read_error};
use crate::{CompressError, at};

/// The folder of packed files, in the target's.
pub const FOLDER: &str = "packed";
/// The key of the layouts in a file's metadata.
pub(crate) const KEY: &str = "bitnet_two_bit";

pub(crate) fn codes_name(weight: &str) -> String {
    format!("{weight}.codes")
}

pub(crate) fn scales_name(weight: &str) -> String {
    format!("{weight}.scales")
}

/// What a file's metadata says of a packed weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    #[serde(flatten)]
    pub(crate) matrices: Matrices,
    pub(crate) granularity: Granularity,
}

/// A weight read from a packed file.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedWeight {
    /// One for each expert of a stack, else one.
    pub matrices: Vec<TernaryMatrix>,
    /// Whether the checkpoint has them as `[d_input, d_output]`.
    pub transposed: bool,
}

impl PackedWeight {
    /// The weights as the dense checkpoint stores them.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut values = Vec::new();
        for matrix in &self.matrices {
            let ([d_output, d_input], dense) = (matrix.shape(), matrix.dequantize());
            if self.transposed {
                values.extend((0..d_output * d_input).map(|i| dense[i % d_output * d_input + i / d_output]));
            } else {
                values.extend(dense);
            }
        }
        values
    }
}

/// Reads one ternary weight of a packed file, by the name that it has in the dense checkpoint.
///
/// # Errors
/// Those of a damaged file; [`CompressError::Packed`] where the weight is not there or not what its layout says.
pub fn read_packed(path: &Path, name: &str) -> Result<PackedWeight, CompressError> {
    let source = Source::open(path)?;
    let file = &source.files[0];
    let wrong = |reason: String| CompressError::Packed { name: name.into(), path: path.into(), reason };
    let layouts = file.metadata.get(KEY).ok_or_else(|| wrong(format!("the file has no `{KEY}`")))?;
    let layouts: std::collections::BTreeMap<String, Layout> =
        serde_json::from_str(layouts).map_err(|error| wrong(error.to_string()))?;
    let Layout { matrices, granularity } =
        *layouts.get(name).ok_or_else(|| wrong("it is not among the packed weights".into()))?;
    let codes = read_tensor(&source, &file.file, path, &codes_name(name), &wrong)?;
    let scales = read_tensor(&source, &file.file, path, &scales_name(name), &wrong)?;
    let scales: Vec<f32> = scales.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let format = |source| CompressError::Format { name: name.into(), source };
    let shape = [matrices.d_output, matrices.d_input];
    let n_bytes = bitnet_format::two_bit::packed_len(shape).map_err(format)?;
    let n_scales = granularity.scale_count(shape).map_err(format)?;
    let found = (codes.len(), scales.len());
    if Some(found.0) != n_bytes.checked_mul(matrices.count)
        || Some(found.1) != n_scales.checked_mul(matrices.count)
    {
        return Err(wrong(format!("{} bytes and {} scales do not fit its layout", found.0, found.1)));
    }
    let read = codes.chunks(n_bytes).zip(scales.chunks(n_scales)).map(|(codes, scales)| {
        let scales = scales.iter().map(|&scale| WeightScale::new(scale)).collect::<Result<Vec<_>, _>>()?;
        PackedTernary::from_bytes(codes.to_vec(), shape, granularity, scales)?.unpack()
    });
    let read = read.collect::<Result<_, _>>().map_err(format)?;
    Ok(PackedWeight { matrices: read, transposed: matrices.transposed })
}

fn read_tensor(
    source: &Source,
    file: &File,
    path: &Path,
    name: &str,
    wrong: &dyn Fn(String) -> CompressError,
) -> Result<Vec<u8>, CompressError> {
    let tensor = source.tensors.iter().find(|tensor| tensor.name == name);
    let tensor = tensor.ok_or_else(|| wrong(format!("`{name}` is missing")))?;
    let mut bytes = vec![0; tensor.bytes as usize];
    at::read(file, &mut bytes, tensor.offset).map_err(read_error(path))?;
    Ok(bytes)
}
