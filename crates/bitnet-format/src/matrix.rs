//! Ternary weights as plain codes and scales.

use serde::{Deserialize, Serialize};

use crate::{FormatError, WeightScale};

/// How many weights share one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// The whole matrix: b1.58, and all that most formats can hold.
    #[default]
    Tensor,
    /// One output row.
    Row,
    /// This many consecutive inputs of one row: a power of two that divides `d_input`.
    Group(usize),
}

impl Granularity {
    /// How many consecutive inputs of one row share a scale.
    fn width(self, d_input: usize) -> usize {
        match self {
            Self::Tensor | Self::Row => d_input,
            Self::Group(group) => group,
        }
    }

    /// The index of the scale that covers one weight.
    fn index(self, d_input: usize, row: usize, column: usize) -> usize {
        match self {
            Self::Tensor => 0,
            Self::Row => row,
            Self::Group(group) => (row * d_input + column) / group,
        }
    }

    /// The number of scales that a matrix `[d_output, d_input]` has.
    ///
    /// # Errors
    /// - [`FormatError::Shape`] if an axis is 0 or the product overflows.
    /// - [`FormatError::Group`] if the group size is no power of two or does not divide `d_input`.
    pub fn scale_count(self, shape: [usize; 2]) -> Result<usize, FormatError> {
        let elements = element_count(shape)?;
        let [d_output, d_input] = shape;
        match self {
            Self::Tensor => Ok(1),
            Self::Row => Ok(d_output),
            Self::Group(group) if group.is_power_of_two() && d_input % group == 0 => Ok(elements / group),
            Self::Group(group) => Err(FormatError::Group { found: group, d_input }),
        }
    }

    /// Fails unless there is one scale, for a format that holds only one.
    pub(crate) fn expect_tensor(self, format: &'static str) -> Result<(), FormatError> {
        match self {
            Self::Tensor => Ok(()),
            found => Err(FormatError::Granularity { format, found, expected: "one scale per tensor" }),
        }
    }
}

/// The number of elements of a matrix.
pub(crate) fn element_count(shape: [usize; 2]) -> Result<usize, FormatError> {
    let [d_output, d_input] = shape;
    match d_output.checked_mul(d_input) {
        None | Some(0) => Err(FormatError::Shape { found: shape }),
        Some(elements) => Ok(elements),
    }
}

/// Ternary weights: codes in −1..=1 and the scales that turn them into weights, `w ≈ codes · scale`.
///
/// Every packing starts from one of these and every unpacking gives one, so weights are never requantized.
#[derive(Debug, Clone, PartialEq)]
pub struct TernaryMatrix {
    codes: Vec<i8>,
    shape: [usize; 2],
    granularity: Granularity,
    scales: Vec<WeightScale>,
}

impl TernaryMatrix {
    /// Checks and takes codes and scales.
    ///
    /// # Shapes
    /// - `codes`: `[d_output, d_input]`, row-major
    /// - `shape`: `[d_output, d_input]`
    /// - `scales`: `[1]`, `[d_output]` or `[d_output, d_input / group]`, as `granularity` says
    ///
    /// # Errors
    /// - [`FormatError::Shape`] if an axis is 0 or the product overflows.
    /// - [`FormatError::Group`] if the group size is no power of two or does not divide `d_input`.
    /// - [`FormatError::CodeCount`], [`FormatError::ScaleCount`] if a length does not fit.
    /// - [`FormatError::Code`] if a code is outside −1..=1.
    pub fn new(
        codes: Vec<i8>,
        shape: [usize; 2],
        granularity: Granularity,
        scales: Vec<WeightScale>,
    ) -> Result<Self, FormatError> {
        let expected = element_count(shape)?;
        if codes.len() != expected {
            return Err(FormatError::CodeCount { found: codes.len(), expected, shape });
        }
        let expected = granularity.scale_count(shape)?;
        if scales.len() != expected {
            return Err(FormatError::ScaleCount { found: scales.len(), expected, granularity });
        }
        if let Some(at) = codes.iter().position(|code| !(-1..=1).contains(code)) {
            let [_, d_input] = shape;
            return Err(FormatError::Code { row: at / d_input, column: at % d_input, found: codes[at] });
        }
        Ok(Self { codes, shape, granularity, scales })
    }

    /// A matrix with one scale. See [`TernaryMatrix::new`] for shapes and errors.
    ///
    /// # Errors
    /// As [`TernaryMatrix::new`].
    pub fn per_tensor(codes: Vec<i8>, shape: [usize; 2], scale: WeightScale) -> Result<Self, FormatError> {
        Self::new(codes, shape, Granularity::Tensor, vec![scale])
    }

    /// The codes `[d_output, d_input]`, row-major.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// The codes without their scales.
    pub fn into_codes(self) -> Vec<i8> {
        self.codes
    }

    /// `[d_output, d_input]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// What one scale covers.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// The scales: `[1]`, `[d_output]` or `[d_output, d_input / group]`.
    pub fn scales(&self) -> &[WeightScale] {
        &self.scales
    }

    /// The scale that covers one weight.
    pub(crate) fn scale_at(&self, row: usize, column: usize) -> WeightScale {
        self.scales[self.granularity.index(self.shape[1], row, column)]
    }

    /// The weights `[d_output, d_input]`: `codes · scale`.
    pub fn dequantize(&self) -> Vec<f32> {
        let [_, d_input] = self.shape;
        let width = self.granularity.width(d_input);
        let groups = self.codes.chunks_exact(width).enumerate();
        groups
            .flat_map(|(i, codes)| {
                let scale = self.scale_at(i * width / d_input, i * width % d_input).get();
                codes.iter().map(move |&code| f32::from(code) * scale)
            })
            .collect()
    }

    /// The share of codes that are zero, in 0..=1.
    pub fn sparsity(&self) -> f64 {
        self.codes.iter().filter(|&&code| code == 0).count() as f64 / self.codes.len() as f64
    }

    /// The same weights with scales of another granularity.
    ///
    /// Finer scales are copies. Coarser ones must be equal where codes are not zero; all-zero groups fit any
    /// scale.
    ///
    /// # Errors
    /// - [`FormatError::Group`] if the group size is no power of two or does not divide `d_input`.
    /// - [`FormatError::ScalesDiffer`] if weights that would share a scale have different ones.
    pub fn regroup(self, to: Granularity) -> Result<Self, FormatError> {
        let [_, d_input] = self.shape;
        let from = self.granularity;
        let mut targets: Vec<Option<(WeightScale, bool)>> = vec![None; to.scale_count(self.shape)?];
        // Widths are d_input or powers of two that divide it, so the smaller divides the larger.
        let width = from.width(d_input).min(to.width(d_input));
        for (i, codes) in self.codes.chunks_exact(width).enumerate() {
            let (row, column) = (i * width / d_input, i * width % d_input);
            let scale = self.scale_at(row, column);
            let used = codes.iter().any(|&code| code != 0);
            let target = &mut targets[to.index(d_input, row, column)];
            match *target {
                Some((expected, true)) if used && scale != expected => {
                    return Err(FormatError::ScalesDiffer {
                        granularity: to,
                        row,
                        column,
                        found: scale.get(),
                        expected: expected.get(),
                    });
                }
                Some((_, fixed)) if fixed || !used => {}
                _ => *target = Some((scale, used)),
            }
        }
        let scales = targets.into_iter().flatten().map(|(scale, _)| scale).collect();
        Self::new(self.codes, self.shape, to, scales)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scales(values: &[f32]) -> Vec<WeightScale> {
        values.iter().map(|&value| WeightScale::new(value).unwrap()).collect()
    }

    #[test]
    fn weights_are_codes_times_scale() {
        let codes = vec![1, -1, 0, 1, -1, 0, 0, 1];
        let weights = |granularity, values: &[f32]| {
            TernaryMatrix::new(codes.clone(), [2, 4], granularity, scales(values)).unwrap().dequantize()
        };
        assert_eq!(weights(Granularity::Tensor, &[0.5]), [0.5, -0.5, 0.0, 0.5, -0.5, 0.0, 0.0, 0.5]);
        assert_eq!(weights(Granularity::Row, &[1.0, 2.0]), [1.0, -1.0, 0.0, 1.0, -2.0, 0.0, 0.0, 2.0]);
        assert_eq!(
            weights(Granularity::Group(2), &[1.0, 2.0, 3.0, 4.0]),
            [1.0, -1.0, 0.0, 2.0, -3.0, 0.0, 0.0, 4.0]
        );
        let matrix = TernaryMatrix::per_tensor(codes.clone(), [2, 4], WeightScale::ONE).unwrap();
        assert_eq!(matrix.sparsity(), 3.0 / 8.0);
        assert_eq!(matrix.into_codes(), codes);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let new = |codes: &[i8], shape, granularity, count| {
            TernaryMatrix::new(codes.to_vec(), shape, granularity, vec![WeightScale::ONE; count])
        };
        let tensor = Granularity::Tensor;
        assert!(matches!(new(&[], [0, 4], tensor, 1), Err(FormatError::Shape { found: [0, 4] })));
        assert!(matches!(new(&[], [usize::MAX, 2], tensor, 1), Err(FormatError::Shape { .. })));
        assert!(matches!(
            new(&[0; 5], [2, 3], tensor, 1),
            Err(FormatError::CodeCount { found: 5, expected: 6, shape: [2, 3] })
        ));
        assert!(matches!(
            new(&[0; 6], [2, 3], Granularity::Row, 3),
            Err(FormatError::ScaleCount { found: 3, expected: 2, granularity: Granularity::Row })
        ));
        for group in [0, 3, 8] {
            assert!(matches!(
                new(&[0; 12], [2, 6], Granularity::Group(group), 4),
                Err(FormatError::Group { found, d_input: 6 }) if found == group
            ));
        }
        for bad in [2, -2, i8::MIN, i8::MAX] {
            assert!(matches!(
                new(&[0, 0, 0, 0, bad, 3], [2, 3], tensor, 1),
                Err(FormatError::Code { row: 1, column: 1, found }) if found == bad
            ));
        }
    }

    #[test]
    fn scales_split_and_merge() {
        let codes = vec![1, -1, 0, 0, 0, 0, 1, 1];
        let groups = |values: &[f32]| {
            TernaryMatrix::new(codes.clone(), [2, 4], Granularity::Group(2), scales(values)).unwrap()
        };
        // The second and third group are all zero: any scale fits there.
        let tensor = groups(&[0.5, 9.0, 8.0, 0.5]).regroup(Granularity::Tensor).unwrap();
        assert_eq!(tensor.scales(), scales(&[0.5]));
        let rows = groups(&[0.5, 9.0, 8.0, 0.25]).regroup(Granularity::Row).unwrap();
        assert_eq!(rows.scales(), scales(&[0.5, 0.25]));
        let split = tensor.regroup(Granularity::Group(1)).unwrap();
        assert_eq!(split.scales(), scales(&[0.5; 8]));

        assert!(matches!(
            groups(&[0.5, 9.0, 8.0, 0.25]).regroup(Granularity::Tensor),
            Err(FormatError::ScalesDiffer { row: 1, column: 2, found: 0.25, expected: 0.5, .. })
        ));
        assert!(matches!(
            groups(&[1.0; 4]).regroup(Granularity::Group(3)),
            Err(FormatError::Group { found: 3, d_input: 4 })
        ));
    }
}
