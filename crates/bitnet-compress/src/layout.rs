//! Where every tensor stands in the files to be written: known before the first byte is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bitnet_format::two_bit;
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::decide::{Decision, Matrices};
use crate::floats::Float;
use crate::packed;
use crate::source::{Source, Tensor};
use crate::{CompressError, Options};

/// Where a tensor's bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// What a packed file has of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PackedPlace {
    /// Codes and scales.
    Ternary { codes: Place, scales: Place },
    /// The source's own bytes.
    Copy(Place),
}

/// One file to be written.
pub(crate) struct OutFile {
    /// From the target's folder.
    pub(crate) path: PathBuf,
    pub(crate) header: Vec<u8>,
    pub(crate) bytes: u64,
}

/// All of one kind: one file for each of the source.
pub(crate) struct Artifact<P> {
    pub(crate) files: Vec<OutFile>,
    /// For each tensor of the source.
    pub(crate) places: Vec<P>,
}

/// A tensor to be placed.
struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: u64,
}

/// The type that a tensor has in the dense files.
pub(crate) fn dense_float(tensor: &Tensor, options: &Options) -> Option<Float> {
    Float::of(tensor.dtype).map(|float| options.dtype.unwrap_or(float))
}

/// The dense files: the source's tensors with the source's names.
pub(crate) fn dense(source: &Source, options: &Options) -> Artifact<Place> {
    let mut artifact = Artifact { files: Vec::new(), places: Vec::new() };
    for (i, file) in source.files.iter().enumerate() {
        let entries = source.tensors.iter().filter(|tensor| tensor.file == i).map(|tensor| {
            let to = dense_float(tensor, options);
            let bytes =
                to.map_or(tensor.bytes, |to| (tensor.shape.iter().product::<usize>() * to.bytes()) as u64);
            let dtype = to.map_or(tensor.dtype, Float::dtype);
            vec![Entry { name: tensor.name.clone(), dtype, shape: tensor.shape.clone(), bytes }]
        });
        let (file, places) =
            place(PathBuf::from(&file.name), &file.metadata, entries.collect(), options.dtype.is_none());
        artifact.files.push(file);
        artifact.places.extend(places.into_iter().map(|places| places[0]));
    }
    artifact
}

/// The packed files: `X.codes` and `X.scales` for each ternary X.
///
/// # Errors
/// [`CompressError::Format`] for shapes that cannot be packed.
pub(crate) fn packed(
    source: &Source,
    decisions: &[(Decision, Matrices)],
    options: &Options,
) -> Result<Artifact<PackedPlace>, CompressError> {
    let granularity = options.rule.granularity();
    let mut artifact = Artifact { files: Vec::new(), places: Vec::new() };
    for (i, file) in source.files.iter().enumerate() {
        let (mut entries, mut layouts) = (Vec::new(), BTreeMap::new());
        for (tensor, (decision, matrices)) in source.tensors.iter().zip(decisions) {
            if tensor.file != i {
                continue;
            }
            if let Decision::Left(_) = decision {
                let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
                entries.push(vec![Entry { name, dtype: tensor.dtype, shape, bytes: tensor.bytes }]);
                continue;
            }
            let shape = [matrices.d_output, matrices.d_input];
            let format = |source| CompressError::Format { name: tensor.name.clone(), source };
            let code_bytes = matrices.count * two_bit::packed_len(shape).map_err(format)?;
            let n_scales = granularity.scale_count(shape).map_err(format)?;
            let stacked = |shape: Vec<usize>| match tensor.shape.len() {
                3 => [vec![matrices.count], shape].concat(),
                _ => shape,
            };
            let scale_shape = match granularity {
                bitnet_format::Granularity::Group(group) => vec![matrices.d_output, matrices.d_input / group],
                _ => vec![n_scales],
            };
            entries.push(vec![
                Entry {
                    name: packed::codes_name(&tensor.name),
                    dtype: Dtype::U8,
                    shape: stacked(vec![matrices.d_output, matrices.d_input.div_ceil(4)]),
                    bytes: code_bytes as u64,
                },
                Entry {
                    name: packed::scales_name(&tensor.name),
                    dtype: Dtype::F32,
                    shape: stacked(scale_shape),
                    bytes: (matrices.count * n_scales * 4) as u64,
                },
            ]);
            layouts.insert(&tensor.name, packed::Layout { matrices: *matrices, granularity });
        }
        let mut metadata = file.metadata.clone();
        metadata.insert(packed::KEY.into(), json!(layouts).to_string());
        let (file, places) = place(PathBuf::from(packed::FOLDER).join(&file.name), &metadata, entries, false);
        artifact.files.push(file);
        artifact.places.extend(places.into_iter().map(|places| match places[..] {
            [codes, scales] => PackedPlace::Ternary { codes, scales },
            _ => PackedPlace::Copy(places[0]),
        }));
    }
    Ok(artifact)
}

/// Places the entries in their order, or else the largest types first, so that they are aligned. The places are returned
/// in the entries' order.
fn place(
    path: PathBuf,
    metadata: &BTreeMap<String, String>,
    groups: Vec<Vec<Entry>>,
    keep_order: bool,
) -> (OutFile, Vec<Vec<Place>>) {
    let mut order: Vec<(usize, usize)> =
        groups.iter().enumerate().flat_map(|(i, group)| (0..group.len()).map(move |j| (i, j))).collect();
    if !keep_order {
        order.sort_by_key(|&(i, j)| std::cmp::Reverse(groups[i][j].dtype.bitsize()));
    }
    let mut places: Vec<Vec<Place>> =
        groups.iter().map(|group| vec![Place { offset: 0, bytes: 0 }; group.len()]).collect();
    let mut header = BTreeMap::new();
    let mut end = 0;
    for (i, j) in order {
        let Entry { name, dtype, shape, bytes } = &groups[i][j];
        places[i][j] = Place { offset: end, bytes: *bytes };
        header.insert(
            name.as_str(),
            json!({ "dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes] }),
        );
        end += bytes;
    }
    if !metadata.is_empty() {
        header.insert("__metadata__", json!(metadata));
    }
    let mut text = json!(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    let start = header.len() as u64;
    places.iter_mut().flatten().for_each(|place| place.offset += start);
    (OutFile { path, bytes: start + end, header }, places)
}

/// The index of packed files, made from that of the source.
pub(crate) fn packed_index(source: &Source, artifact: &Artifact<PackedPlace>, index: &Value) -> Value {
    let mut map = BTreeMap::new();
    for (tensor, place) in source.tensors.iter().zip(&artifact.places) {
        let file = &source.files[tensor.file].name;
        match place {
            PackedPlace::Copy(_) => {
                map.insert(tensor.name.clone(), file);
            }
            PackedPlace::Ternary { .. } => {
                map.insert(packed::codes_name(&tensor.name), file);
                map.insert(packed::scales_name(&tensor.name), file);
            }
        }
    }
    let bytes: u64 = artifact
        .places
        .iter()
        .map(|place| match place {
            PackedPlace::Copy(place) => place.bytes,
            PackedPlace::Ternary { codes, scales } => codes.bytes + scales.bytes,
        })
        .sum();
    let mut index = index.clone();
    index["weight_map"] = json!(map);
    index["metadata"]["total_size"] = json!(bytes);
    index
}
