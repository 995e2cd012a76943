//! What was written is read again: codes against those of the source, copies against the source's bytes.

use bitnet_cpu::Kernel;
use bitnet_format::unpack4;
use rayon::prelude::*;

use crate::decide::Matrices;
use crate::floats::Float;
use crate::layout::{PackedPlace, Place};
use crate::matrix::{self, Stored};
use crate::source::{Source, Tensor, read_error};
use crate::write::{Out, Weight, code_bytes, copied, copied_to, copy_tasks};
use crate::{CompressError, at};

/// How many values differ, in the dense file and in the packed one.
pub(crate) type Differences = [u64; 2];

/// Compares a ternarized tensor. `fixed` are the scales of its matrices, where they have one.
pub(crate) fn weight(
    weight: &Weight,
    fixed: &[Option<u32>],
    (dense, place, float): (Out, Place, Float),
    packed: Option<(Out, PackedPlace)>,
) -> Result<Differences, CompressError> {
    let mut differences = [0; 2];
    let packed = match packed {
        Some((written, PackedPlace::Ternary { codes, scales })) => Some((written, codes, scales)),
        _ => None,
    };
    let Matrices { count, d_output, d_input, .. } = weight.stored.matrices;
    for matrix in 0..count {
        let fixed = fixed.get(matrix).copied().flatten().map(f32::from_bits);
        let target = Stored { file: dense.file, offset: place.offset, float, ..weight.stored };
        let parts = matrix::tasks(&weight.stored.matrices)
            .into_par_iter()
            .map_init(
                || (Vec::new(), Vec::new(), Vec::new()),
                |(bytes, values, signs), rows| {
                    weight.rows(matrix, rows.clone(), bytes, values)?;
                    let expected = matrix::ternarize(Kernel::new(), values, d_input, weight.rule, fixed)
                        .map_err(|error| weight.ternarize_error(error))?;
                    target.read(matrix, rows.clone(), bytes).map_err(read_error(dense.path))?;
                    float.signs(bytes, values, signs);
                    let segment = matrix::segment(weight.rule.granularity(), signs.len(), d_input);
                    let mut differences = [0; 2];
                    let chunks = signs.chunks(segment).zip(values.chunks(segment));
                    for ((signs, values), (codes, scale)) in
                        chunks.zip(expected.codes.chunks(segment).zip(&expected.scales))
                    {
                        let stored = float.value(float.bits(*scale));
                        differences[0] += signs
                            .iter()
                            .zip(codes)
                            .zip(values)
                            .filter(|((sign, code), value)| {
                                sign != code || (**code != 0 && value.abs() != stored)
                            })
                            .count() as u64;
                    }
                    if let Some((written, place, _)) = packed {
                        let row_bytes = d_input.div_ceil(4);
                        let mut packed = vec![0; rows.len() * row_bytes];
                        let start =
                            (matrix * code_bytes(&weight.stored.matrices) + rows.start * row_bytes) as u64;
                        at::read(written.file, &mut packed, place.offset + start)
                            .map_err(read_error(written.path))?;
                        for (bytes, codes) in packed.chunks(row_bytes).zip(expected.codes.chunks(d_input)) {
                            let found = bytes.iter().flat_map(|&byte| unpack4(byte));
                            differences[1] +=
                                found.zip(codes).filter(|(found, code)| found != *code).count() as u64;
                        }
                    }
                    Ok((differences, expected.scales))
                },
            )
            .collect::<Result<Vec<_>, CompressError>>()?;
        let mut scales = Vec::new();
        for (part, part_scales) in parts {
            differences[0] += part[0];
            differences[1] += part[1];
            scales.extend(part_scales);
        }
        if let Some((written, _, place)) = packed {
            let n = weight.rule.granularity().scale_count([d_output, d_input]);
            scales.truncate(n.unwrap_or_default());
            let mut found = vec![0; scales.len() * 4];
            let offset = place.offset + (matrix * found.len()) as u64;
            at::read(written.file, &mut found, offset).map_err(read_error(written.path))?;
            let found = found.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            differences[1] +=
                found.zip(&scales).filter(|(found, scale)| found.to_bits() != scale.to_bits()).count() as u64;
        }
    }
    Ok(differences)
}

/// Compares a tensor that was left as it is: the number of parts that differ.
pub(crate) fn copy(
    source: &Source,
    tensor: &Tensor,
    float: Option<Float>,
    written: Out,
    place: Place,
) -> Result<u64, CompressError> {
    let differ = copy_tasks(tensor).into_par_iter().map(|part| {
        let expected = copied(source, tensor, part, float)?;
        let mut found = vec![0; expected.len()];
        at::read(written.file, &mut found, copied_to(tensor, part.0, place))
            .map_err(read_error(written.path))?;
        Ok(u64::from(found != expected))
    });
    differ.sum::<Result<u64, CompressError>>()
}
