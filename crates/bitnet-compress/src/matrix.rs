//! Rows of a weight: read from wherever they stand, ternarized, encoded.

use std::fs::File;
use std::io;
use std::ops::Range;

use bitnet_cpu::{CpuError, Kernel, TernaryWeight, absmean_of_rows};
use bitnet_format::{Granularity, pack4};

use crate::at;
use crate::decide::Matrices;
use crate::floats::Float;
use crate::options::Rule;

/// Weights of one task: what a core's cache holds as f32.
const TASK_WEIGHTS: usize = 1 << 18;
/// The same where rows must be gathered: longer runs are worth more than the cache.
const TASK_GATHERED: usize = 1 << 20;

/// The matrices of a tensor in a file.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub(crate) file: &'a File,
    /// Where the tensor begins.
    pub(crate) offset: u64,
    pub(crate) float: Float,
    pub(crate) matrices: Matrices,
}

/// The rows of each task.
pub(crate) fn tasks(matrices: &Matrices) -> Vec<Range<usize>> {
    let weights = if matrices.transposed { TASK_GATHERED } else { TASK_WEIGHTS };
    let rows = (weights / matrices.d_input).max(1);
    (0..matrices.d_output).step_by(rows).map(|start| start..matrices.d_output.min(start + rows)).collect()
}

impl Stored<'_> {
    /// Replaces `bytes` by those of rows `[rows, d_input]`.
    pub(crate) fn read(&self, matrix: usize, rows: Range<usize>, bytes: &mut Vec<u8>) -> io::Result<()> {
        let (size, d_input) = (self.float.bytes(), self.matrices.d_input);
        bytes.resize(rows.len() * d_input * size, 0);
        if !self.matrices.transposed {
            return at::read(
                self.file,
                bytes,
                self.at(matrix * self.matrices.d_output + rows.start, d_input, 0),
            );
        }
        let mut gathered = vec![0; bytes.len()];
        for (input, run) in gathered.chunks_mut(rows.len() * size).enumerate() {
            at::read(self.file, run, self.at(matrix * d_input + input, self.matrices.d_output, rows.start))?;
        }
        transpose(&gathered, rows.len(), size, bytes);
        Ok(())
    }

    /// Writes rows `[rows, d_input]`.
    pub(crate) fn write(&self, matrix: usize, rows: Range<usize>, bytes: &[u8]) -> io::Result<()> {
        let (size, d_input) = (self.float.bytes(), self.matrices.d_input);
        if !self.matrices.transposed {
            return at::write(
                self.file,
                bytes,
                self.at(matrix * self.matrices.d_output + rows.start, d_input, 0),
            );
        }
        let mut scattered = vec![0; bytes.len()];
        transpose(bytes, d_input, size, &mut scattered);
        for (input, run) in scattered.chunks(rows.len() * size).enumerate() {
            at::write(self.file, run, self.at(matrix * d_input + input, self.matrices.d_output, rows.start))?;
        }
        Ok(())
    }

    /// The position of a stored row's element.
    fn at(&self, row: usize, width: usize, column: usize) -> u64 {
        self.offset + ((row * width + column) * self.float.bytes()) as u64
    }
}

/// From `[n, columns]` to `[columns, n]`, elements of `size` bytes.
fn transpose(from: &[u8], columns: usize, size: usize, to: &mut [u8]) {
    let n = from.len() / (columns * size);
    for (column, to) in to.chunks_mut(n * size).enumerate() {
        for (row, to) in to.chunks_mut(size).enumerate() {
            to.copy_from_slice(&from[(row * columns + column) * size..][..size]);
        }
    }
}

/// What the first pass learns of a part of a matrix.
pub(crate) struct Survey {
    /// `Σ|w|` of each row.
    pub(crate) sums: Vec<f32>,
    pub(crate) magnitudes: Magnitudes,
}

/// The magnitudes of the weights that are not zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Magnitudes {
    /// There are none.
    None,
    /// All are this one: the weights are ternary already.
    One(f32),
    /// They differ.
    Many,
}

impl Magnitudes {
    fn of(w: &[f32]) -> Self {
        let Some(one) = w.iter().map(|w| w.abs()).find(|&w| w != 0.0) else {
            return Self::None;
        };
        if w.iter().all(|&w| w == 0.0 || w.abs() == one) { Self::One(one) } else { Self::Many }
    }

    pub(crate) fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, other) | (other, Self::None) => other,
            (Self::One(a), Self::One(b)) if a == b => self,
            _ => Self::Many,
        }
    }
}

pub(crate) fn survey(kernel: Kernel, w: &[f32], d_input: usize) -> Result<Survey, CpuError> {
    let sums = kernel.row_abs_sums(w, w.len() / d_input, d_input)?;
    Ok(Survey { sums, magnitudes: Magnitudes::of(w) })
}

/// The scale that a whole matrix has, where it has one.
///
/// Weights that are ternary already keep their magnitude under every rule: quantized again by a mean, which zeros
/// lower, they would shrink.
pub(crate) fn fixed_scale(
    rule: Rule,
    mut sums: Vec<f32>,
    magnitudes: Magnitudes,
    d_input: usize,
) -> Option<f32> {
    match (magnitudes, rule) {
        (Magnitudes::One(magnitude), _) if magnitude.recip().is_finite() => Some(magnitude),
        (_, Rule::Absmean(Granularity::Tensor)) => Some(absmean_of_rows(&mut sums, d_input)),
        _ => None,
    }
}

/// Codes and scales of rows `[rows, d_input]`. Where there is a fixed scale they all have it, as often as the rule's
/// granularity says; per tensor it is given once.
pub(crate) fn ternarize(
    kernel: Kernel,
    w: &[f32],
    d_input: usize,
    rule: Rule,
    fixed: Option<f32>,
) -> Result<TernaryWeight, CpuError> {
    let rows = w.len() / d_input;
    match (fixed, rule) {
        (Some(scale), _) => {
            let codes = kernel.ternarize(w, rows, d_input, Granularity::Tensor, &[scale])?;
            let n = match rule.granularity() {
                Granularity::Tensor => 1,
                Granularity::Row => rows,
                Granularity::Group(group) => w.len() / group,
            };
            Ok(TernaryWeight { codes, scales: vec![scale; n] })
        }
        (None, Rule::Absmean(granularity)) => kernel.absmean_ternarize(w, rows, d_input, granularity),
        (None, Rule::Threshold(threshold)) => kernel.threshold_ternarize(w, rows, d_input, threshold),
    }
}

/// Consecutive codes that share a scale.
pub(crate) fn segment(granularity: Granularity, n: usize, d_input: usize) -> usize {
    match granularity {
        Granularity::Tensor => n,
        Granularity::Row => d_input,
        Granularity::Group(group) => group,
    }
}

/// Two bits a code, each row from a byte of its own.
pub(crate) fn pack(codes: &[i8], d_input: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(codes.len() / d_input * d_input.div_ceil(4));
    for row in codes.chunks(d_input) {
        let (fours, rest) = row.as_chunks::<4>();
        bytes.extend(fours.iter().map(|four| pack4(*four)));
        if !rest.is_empty() {
            let mut four = [0; 4];
            four[..rest.len()].copy_from_slice(rest);
            bytes.push(pack4(four));
        }
    }
    bytes
}

/// `Σ(w − code · scale)²` and `Σw²`, summed in 16 lanes of f32 per segment and those in f64.
pub(crate) fn squares(w: &[f32], codes: &[i8], scale: f32) -> (f64, f64) {
    let (mut errors, mut squares) = ([0f32; 16], [0f32; 16]);
    let ((w, w_rest), (codes, codes_rest)) = (w.as_chunks::<16>(), codes.as_chunks::<16>());
    let mut add = |lane: usize, w: f32, code: i8| {
        let difference = w - f32::from(code) * scale;
        errors[lane] += difference * difference;
        squares[lane] += w * w;
    };
    for (w, codes) in w.iter().zip(codes) {
        for lane in 0..16 {
            add(lane, w[lane], codes[lane]);
        }
    }
    for (lane, (w, code)) in w_rest.iter().zip(codes_rest).enumerate() {
        add(lane, *w, *code);
    }
    let sum = |lanes: [f32; 16]| lanes.iter().map(|&lane| f64::from(lane)).sum();
    (sum(errors), sum(squares))
}
