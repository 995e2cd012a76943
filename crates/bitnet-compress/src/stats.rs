//! `compression_stats.json`: every tensor with its decision, and true sizes. Its schema is
//! docs/compression-stats.schema.json.

use bitnet_format::{Granularity, ScaleWidth, Storage};
use serde::{Deserialize, Serialize};

use crate::Options;
use crate::decide::{Decision, Matrices};
use crate::manifest;

/// What was done and what it is worth. It depends on source and options alone: a run that was killed and resumed gives
/// the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Of this format: 1.
    pub version: u32,
    /// `tensors`: by names and shapes, without a model; or `model`: as one that bitnet-model knows, written by
    /// bitnet-pipeline.
    pub mode: String,
    /// As they were given.
    pub options: Options,
    /// In the order of the source's files.
    pub tensors: Vec<TensorStats>,
    /// Every safetensors file that was written.
    pub files: Vec<FileStats>,
    /// Files that were copied byte for byte.
    pub copied: Vec<String>,
    /// Files that were not copied: weights in other forms, hidden and very large files.
    pub skipped: Vec<String>,
    /// Sums.
    pub total: Totals,
    /// What reading everything again found.
    pub verification: Verification,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorStats {
    /// Its full name.
    pub name: String,
    /// The file that it is in.
    pub file: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    /// Its type in the source.
    pub dtype: String,
    /// What was done, and why.
    #[serde(flatten)]
    pub decision: Decision,
    /// Its bytes in the source.
    pub bytes_before: u64,
    /// Its bytes in the dense file.
    pub bytes_after: u64,
    /// Its bytes in the packed file, scales included.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes_packed: Option<u64>,
    /// Of ternarized tensors.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ternary: Option<TernaryStats>,
}

/// What a tensor became.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TernaryStats {
    /// Its matrices.
    #[serde(flatten)]
    pub matrices: Matrices,
    /// How many matrices were ternary already, and kept their magnitude.
    pub already_ternary: u64,
    /// How many codes are −1, 0 and 1.
    pub codes: [u64; 3],
    /// The same as shares of all.
    pub shares: [f64; 3],
    /// The smallest and the largest scale.
    pub scales: [f32; 2],
    /// `‖W − codes · scale‖ / ‖W‖`, before the dense file's type rounds the scale; null where W is zero.
    pub relative_error: Option<f64>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStats {
    /// From the target's folder.
    pub path: String,
    /// Bytes of the source's file, its header included.
    pub bytes_before: u64,
    /// Bytes of this one.
    pub bytes_after: u64,
}

/// Sums over tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Tensors that became ternary.
    pub ternarized: usize,
    /// Tensors that stayed.
    pub left: usize,
    /// Weights that became ternary.
    pub weights: u64,
    /// Codes −1, 0 and 1.
    pub codes: [u64; 3],
    /// The same as shares of all.
    pub shares: [f64; 3],
    /// Of all ternarized weights together; null where they are zero.
    pub relative_error: Option<f64>,
    /// Bytes of the ternarized weights in the source.
    pub linear_bytes_before: u64,
    /// Bytes that they take in f32.
    pub linear_bytes_f32: u64,
    /// Bytes of the source's safetensors files.
    pub file_bytes_before: u64,
    /// Bytes of the dense files.
    pub file_bytes_after: u64,
    /// Bytes of the packed files.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file_bytes_packed: Option<u64>,
    /// What the ternarized weights take, and a whole file with them, two bits a code with f32 scales.
    pub two_bit: Form,
    /// The same as TQ1_0; a tensor that it cannot hold counts as f16.
    pub tq1_0: Form,
    /// The same with a byte a code and f32 scales.
    pub int8: Form,
}

/// A form of ternary weights, and its true sizes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Form {
    /// Bytes of the ternarized weights, scales included.
    pub linear_bytes: u64,
    /// How many times smaller than f32 they are.
    pub linear_ratio_to_f32: f64,
    /// Bytes of files that hold them in this form and all else as the source does.
    pub file_bytes: u64,
    /// How many times smaller than the source's files these are.
    pub file_ratio: f64,
    /// How many tensors this form cannot hold.
    pub not_held: usize,
}

/// What reading everything again found. A difference is an error, so a report has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Verification {
    /// Codes of the dense files compared with the source's.
    pub dense_codes: u64,
    /// Codes of the packed files compared with the source's.
    pub packed_codes: u64,
    /// Bytes of tensors left as they are, compared with the source's.
    pub copied_bytes: u64,
    /// How many values differ: none.
    pub differences: u64,
}

/// What is summed over tensors and stands in no single one's report.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sums {
    /// `Σ(w − code · scale)²` over all ternarized weights.
    pub errors: f64,
    /// `Σw²` over the same.
    pub squares: f64,
    /// Bytes of the source's safetensors files.
    pub file_bytes_before: u64,
    /// Bytes of the dense files.
    pub file_bytes_after: u64,
    /// Bytes of the packed files, where there are any.
    pub file_bytes_packed: Option<u64>,
}

impl Totals {
    /// Adds up tensors whose scales cover as much.
    pub fn of(tensors: &[TensorStats], granularity: Granularity, sums: &Sums) -> Self {
        let (mut forms, mut codes) = ([Form::default(); 3], [0; 3]);
        let (mut ternarized, mut weights, mut linear_before) = (0, 0, 0);
        for tensor in tensors {
            let Some(ternary) = &tensor.ternary else { continue };
            forms
                .iter_mut()
                .zip(FORMS)
                .for_each(|(form, storage)| form.add(storage, &ternary.matrices, granularity));
            codes.iter_mut().zip(ternary.codes).for_each(|(all, n)| *all += n);
            weights += ternary.matrices.len() as u64;
            linear_before += tensor.bytes_before;
            ternarized += 1;
        }
        forms.iter_mut().for_each(|form| form.finish(4 * weights, linear_before, sums.file_bytes_before));
        let [two_bit, tq1_0, int8] = forms;
        Self {
            ternarized,
            left: tensors.len() - ternarized,
            weights,
            codes,
            shares: shares(codes),
            relative_error: relative_error(sums.errors, sums.squares),
            linear_bytes_before: linear_before,
            linear_bytes_f32: 4 * weights,
            file_bytes_before: sums.file_bytes_before,
            file_bytes_after: sums.file_bytes_after,
            file_bytes_packed: sums.file_bytes_packed,
            two_bit,
            tq1_0,
            int8,
        }
    }
}

impl TernaryStats {
    pub(crate) fn new(matrices: Matrices, sums: &manifest::Sums) -> Self {
        Self {
            matrices,
            already_ternary: sums.already_ternary,
            codes: sums.codes,
            shares: shares(sums.codes),
            scales: sums.scales.map(f32::from_bits),
            relative_error: relative_error(f64::from_bits(sums.errors), f64::from_bits(sums.squares)),
        }
    }
}

/// Codes −1, 0 and 1 as shares of all.
pub fn shares(codes: [u64; 3]) -> [f64; 3] {
    let all = codes.iter().sum::<u64>().max(1) as f64;
    codes.map(|n| n as f64 / all)
}

/// `√(errors / squares)`; `None` where that is no number.
pub fn relative_error(errors: f64, squares: f64) -> Option<f64> {
    Some((errors / squares).sqrt()).filter(|error| error.is_finite())
}

impl Form {
    /// Adds the weights of one tensor.
    fn add(&mut self, storage: Storage, matrices: &Matrices, granularity: Granularity) {
        let bytes = match storage.bytes([matrices.d_output, matrices.d_input], granularity) {
            Ok(bytes) => bytes * matrices.count,
            Err(_) => {
                self.not_held += 1;
                2 * matrices.len()
            }
        };
        self.linear_bytes += bytes as u64;
    }

    /// The ratios, once all tensors are added.
    fn finish(&mut self, linear_f32: u64, linear_before: u64, files_before: u64) {
        self.linear_ratio_to_f32 = linear_f32 as f64 / self.linear_bytes as f64;
        self.file_bytes = files_before - linear_before + self.linear_bytes;
        self.file_ratio = files_before as f64 / self.file_bytes as f64;
    }
}

/// The forms that are reported.
const FORMS: [Storage; 3] =
    [Storage::TwoBit(ScaleWidth::F32), Storage::Tq1_0, Storage::Int8(ScaleWidth::F32)];

impl std::fmt::Display for Stats {
    /// A summary of a few lines.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let total = &self.total;
        let [minus, zero, plus] = total.shares.map(|share| share * 100.0);
        writeln!(f, "ternarized  {} tensors, {} weights", total.ternarized, total.weights)?;
        writeln!(f, "left        {} tensors", total.left)?;
        writeln!(f, "codes       {minus:.1} % -1, {zero:.1} % 0, {plus:.1} % +1")?;
        if let Some(error) = total.relative_error {
            writeln!(f, "error       {:.1} % of the weights' norm", error * 100.0)?;
        }
        writeln!(f, "form        linear weights against f32, files against the source's")?;
        for (name, form) in [("2 bits", total.two_bit), ("TQ1_0", total.tq1_0), ("int8", total.int8)] {
            let Form { linear_ratio_to_f32, file_ratio, not_held, .. } = form;
            let note = if not_held > 0 { format!(" ({not_held} tensors as f16)") } else { String::new() };
            writeln!(f, "  {name:<8}  {linear_ratio_to_f32:>6.2}×  {file_ratio:>6.2}×{note}")?;
        }
        let Verification { dense_codes, packed_codes, copied_bytes, differences } = self.verification;
        write!(
            f,
            "verified    {} codes and {copied_bytes} copied bytes read again, {differences} differ",
            dense_codes + packed_codes
        )
    }
}
