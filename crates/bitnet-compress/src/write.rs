//! One tensor from the source into the files.

use std::fs::File;

use bitnet_cpu::{CpuError, Kernel, TernaryWeight};
use bitnet_format::two_bit;
use rayon::prelude::*;

use crate::decide::Matrices;
use crate::floats::Float;
use crate::layout::Place;
use crate::manifest::Sums;
use crate::matrix::{self, Magnitudes, Stored};
use crate::options::Rule;
use crate::source::{Source, Tensor, read_error, write_error};
use crate::{CompressError, at};

/// Bytes of one task of a copy; whole values of every type.
pub(crate) const COPY: u64 = 1 << 20;

/// A file that is being written, and its name for errors.
#[derive(Clone, Copy)]
pub(crate) struct Out<'a> {
    pub(crate) file: &'a File,
    pub(crate) path: &'a std::path::Path,
}

/// Where codes and scales go.
#[derive(Clone, Copy)]
pub(crate) struct PackedOut<'a> {
    pub(crate) out: Out<'a>,
    pub(crate) codes: Place,
    pub(crate) scales: Place,
}

/// What a tensor is read with.
pub(crate) struct Weight<'a> {
    pub(crate) source: &'a Source,
    pub(crate) tensor: &'a Tensor,
    pub(crate) stored: Stored<'a>,
    pub(crate) rule: Rule,
}

impl<'a> Weight<'a> {
    /// A tensor that is to become ternary.
    pub(crate) fn new(source: &'a Source, tensor: &'a Tensor, matrices: Matrices, rule: Rule) -> Self {
        let file = &source.files[tensor.file].file;
        // Decisions leave every other type alone.
        let float = Float::of(tensor.dtype).unwrap_or(Float::F32);
        Self { source, tensor, stored: Stored { file, offset: tensor.offset, float, matrices }, rule }
    }

    pub(crate) fn ternarize_error(&self, source: CpuError) -> CompressError {
        CompressError::Ternarize { name: self.tensor.name.clone(), source }
    }

    /// Reads rows as f32.
    pub(crate) fn rows(
        &self,
        matrix: usize,
        rows: std::ops::Range<usize>,
        bytes: &mut Vec<u8>,
        values: &mut Vec<f32>,
    ) -> Result<(), CompressError> {
        let path = &self.source.files[self.tensor.file].path;
        self.stored.read(matrix, rows, bytes).map_err(read_error(path))?;
        self.stored.float.decode(bytes, values);
        Ok(())
    }

    /// The first pass over a matrix: the scale of all of it, where it has one, and whether it is ternary already.
    fn survey(&self, matrix: usize) -> Result<(Option<f32>, bool), CompressError> {
        let Matrices { d_input, .. } = self.stored.matrices;
        let kernel = Kernel::new();
        let surveys = matrix::tasks(&self.stored.matrices)
            .into_par_iter()
            .map_init(
                || (Vec::new(), Vec::new()),
                |(bytes, values), rows| {
                    self.rows(matrix, rows.clone(), bytes, values)?;
                    let survey = matrix::survey(kernel, values, d_input)
                        .map_err(|error| self.ternarize_error(error))?;
                    if let Some(bad) = survey.sums.iter().position(|sum| !sum.is_finite()) {
                        return Err(self.not_finite(
                            matrix,
                            rows.start + bad,
                            &values[bad * d_input..][..d_input],
                        ));
                    }
                    Ok(survey)
                },
            )
            .collect::<Result<Vec<_>, _>>()?;
        let magnitudes =
            surveys.iter().fold(Magnitudes::None, |joined, survey| joined.join(survey.magnitudes));
        let sums = surveys.into_iter().flat_map(|survey| survey.sums).collect();
        let fixed = matrix::fixed_scale(self.rule, sums, magnitudes, d_input);
        if fixed.is_some_and(|scale| !scale.is_finite()) {
            return Err(CompressError::Overflow { name: self.tensor.name.clone() });
        }
        Ok((fixed, matches!(magnitudes, Magnitudes::One(_))))
    }

    /// Names the first weight of a row that is not finite.
    fn not_finite(&self, matrix: usize, row: usize, values: &[f32]) -> CompressError {
        let name = self.tensor.name.clone();
        let Some(input) = values.iter().position(|value| !value.is_finite()) else {
            return CompressError::Overflow { name };
        };
        let mut index = if self.stored.matrices.transposed { vec![input, row] } else { vec![row, input] };
        if self.tensor.shape.len() == 3 {
            index.insert(0, matrix);
        }
        CompressError::NotFinite { name, index, found: values[input] }
    }

    /// Ternarizes and writes every matrix.
    pub(crate) fn write(
        &self,
        dense: Out,
        place: Place,
        float: Float,
        packed: Option<PackedOut>,
    ) -> Result<Sums, CompressError> {
        let mut sums = Sums::default();
        let (mut errors, mut squares) = (0.0, 0.0);
        let mut range = [f32::INFINITY, 0.0];
        for matrix in 0..self.stored.matrices.count {
            let (fixed, already) = self.survey(matrix)?;
            sums.fixed.push(fixed.map(f32::to_bits));
            sums.already_ternary += u64::from(already);
            let target = Stored { file: dense.file, offset: place.offset, float, ..self.stored };
            let parts = matrix::tasks(&self.stored.matrices)
                .into_par_iter()
                .map_init(
                    || (Vec::new(), Vec::new()),
                    |(bytes, values), rows| {
                        self.rows(matrix, rows.clone(), bytes, values)?;
                        self.write_rows(matrix, rows, values, fixed, (dense, target), packed)
                    },
                )
                .collect::<Result<Vec<_>, _>>()?;
            let mut scales: Vec<f32> = Vec::new();
            for part in parts {
                sums.codes.iter_mut().zip(part.codes).for_each(|(sum, n)| *sum += n);
                (errors, squares) = (errors + part.errors, squares + part.squares);
                scales.extend(part.scales);
            }
            if self.rule.granularity() == bitnet_format::Granularity::Tensor {
                scales.truncate(1);
            }
            range = scales.iter().fold(range, |[low, high], &scale| [low.min(scale), high.max(scale)]);
            if let Some(PackedOut { out, scales: place, .. }) = packed {
                let bytes: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
                let offset = place.offset + (matrix * bytes.len()) as u64;
                at::write(out.file, &bytes, offset).map_err(write_error(out.path))?;
            }
        }
        (sums.errors, sums.squares) = (errors.to_bits(), f64::to_bits(squares));
        sums.scales = range.map(f32::to_bits);
        Ok(sums)
    }

    fn write_rows(
        &self,
        matrix: usize,
        rows: std::ops::Range<usize>,
        values: &[f32],
        fixed: Option<f32>,
        (dense, target): (Out, Stored),
        packed: Option<PackedOut>,
    ) -> Result<Part, CompressError> {
        let Matrices { d_output, d_input, .. } = self.stored.matrices;
        let TernaryWeight { codes, scales } =
            matrix::ternarize(Kernel::new(), values, d_input, self.rule, fixed)
                .map_err(|error| self.ternarize_error(error))?;
        let mut part = Part { codes: [0; 3], errors: 0.0, squares: 0.0, scales: Vec::new() };
        let segment = matrix::segment(self.rule.granularity(), codes.len(), d_input);
        let mut bytes = Vec::with_capacity(codes.len() * target.float.bytes());
        for ((codes, values), &scale) in codes.chunks(segment).zip(values.chunks(segment)).zip(&scales) {
            let minus = codes.iter().filter(|&&code| code == -1).count() as u64;
            let plus = codes.iter().filter(|&&code| code == 1).count() as u64;
            let stored = target.float.value(target.float.bits(scale));
            if minus + plus > 0 && (stored == 0.0 || !stored.is_finite()) {
                let (name, dtype) = (self.tensor.name.clone(), target.float.name());
                return Err(CompressError::Range { name, found: scale, dtype });
            }
            part.codes[0] += minus;
            part.codes[1] += codes.len() as u64 - minus - plus;
            part.codes[2] += plus;
            // A row at a time: sums in f32 stay short.
            for (values, codes) in values.chunks(d_input).zip(codes.chunks(d_input)) {
                let (errors, squares) = matrix::squares(values, codes, scale);
                part.errors += errors;
                part.squares += squares;
            }
            target.float.encode_codes(codes, scale, &mut bytes);
        }
        part.scales = scales;
        target.write(matrix, rows.clone(), &bytes).map_err(write_error(dense.path))?;
        if let Some(PackedOut { out, codes: place, .. }) = packed {
            let offset = (matrix * d_output + rows.start) * d_input.div_ceil(4);
            at::write(out.file, &matrix::pack(&codes, d_input), place.offset + offset as u64)
                .map_err(write_error(out.path))?;
        }
        Ok(part)
    }
}

/// What one task found.
struct Part {
    codes: [u64; 3],
    errors: f64,
    squares: f64,
    scales: Vec<f32>,
}

/// The bytes of a packed matrix's codes.
pub(crate) fn code_bytes(matrices: &Matrices) -> usize {
    two_bit::packed_len([matrices.d_output, matrices.d_input]).unwrap_or_default()
}

/// The parts of a tensor that is copied, `(start, bytes)`.
pub(crate) fn copy_tasks(tensor: &Tensor) -> Vec<(u64, u64)> {
    (0..tensor.bytes).step_by(COPY as usize).map(|start| (start, COPY.min(tensor.bytes - start))).collect()
}

/// A part of a tensor as it is to be written: its own bytes, or those of its values in another type.
pub(crate) fn copied(
    source: &Source,
    tensor: &Tensor,
    (start, len): (u64, u64),
    float: Option<Float>,
) -> Result<Vec<u8>, CompressError> {
    let file = &source.files[tensor.file];
    let mut bytes = vec![0; len as usize];
    at::read(&file.file, &mut bytes, tensor.offset + start).map_err(read_error(&file.path))?;
    match (Float::of(tensor.dtype), float) {
        (Some(from), Some(to)) if from != to => from
            .convert(&bytes, to)
            .map_err(|found| CompressError::Range { name: tensor.name.clone(), found, dtype: to.name() }),
        _ => Ok(bytes),
    }
}

/// Where a part of a tensor stands in its place.
pub(crate) fn copied_to(tensor: &Tensor, start: u64, place: Place) -> u64 {
    // Parts begin at whole values, so this divides without a rest.
    place.offset + (u128::from(start) * u128::from(place.bytes) / u128::from(tensor.bytes.max(1))) as u64
}

/// Copies a tensor that stays as it is.
pub(crate) fn copy(
    source: &Source,
    tensor: &Tensor,
    float: Option<Float>,
    out: Out,
    place: Place,
) -> Result<(), CompressError> {
    copy_tasks(tensor).into_par_iter().try_for_each(|part| {
        let bytes = copied(source, tensor, part, float)?;
        at::write(out.file, &bytes, copied_to(tensor, part.0, place)).map_err(write_error(out.path))
    })
}
