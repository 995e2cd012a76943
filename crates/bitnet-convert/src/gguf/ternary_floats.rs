//! Ternary weights that are stored as floats: codes times scale.

use bitnet_format::{FormatError, Granularity, TernaryMatrix, WeightScale};

/// Whether the weights of each scale are zero or of one size, up to the sign.
pub(super) fn is_ternary(values: &[f32], shape: [usize; 2], granularity: Granularity) -> bool {
    width(shape, granularity).is_some_and(|width| values.chunks(width).all(|group| size(group).is_some()))
}

/// The codes and scales of such weights. All-zero groups fit any scale and get 1.
///
/// # Errors
/// Those of [`TernaryMatrix::new`]; a code or a scale that cannot be where the weights are not ternary.
pub(super) fn matrix(
    values: &[f32],
    shape: [usize; 2],
    granularity: Granularity,
) -> Result<TernaryMatrix, FormatError> {
    let width = width(shape, granularity).unwrap_or(values.len()).max(1);
    let scale = |group: &[f32]| match size(group) {
        Some(0.0) => Ok(WeightScale::ONE),
        size => WeightScale::new(size.unwrap_or(f32::NAN)),
    };
    let scales = values.chunks(width).map(scale).collect::<Result<Vec<_>, _>>()?;
    let sign = |value: &f32| if *value == 0.0 { 0 } else { value.signum() as i8 };
    TernaryMatrix::new(values.iter().map(sign).collect(), shape, granularity, scales)
}

/// How many consecutive values share a scale; `None` for a group that does not fit.
fn width([d_output, d_input]: [usize; 2], granularity: Granularity) -> Option<usize> {
    match granularity {
        Granularity::Tensor => Some(d_output * d_input),
        Granularity::Row => Some(d_input),
        Granularity::Group(group) => (group > 0 && d_input % group == 0).then_some(group),
    }
}

/// The one size of all values that are not zero, 0 where all are; `None` where there are several.
fn size(group: &[f32]) -> Option<f32> {
    let mut sizes = group.iter().map(|value| value.abs()).filter(|size| *size != 0.0);
    let first = sizes.next().unwrap_or(0.0);
    sizes.all(|size| size == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_scales_come_back() {
        let codes: Vec<i8> = (0..32).map(|i| (i * 7 % 3) as i8 - 1).collect();
        for (granularity, scales) in [
            (Granularity::Tensor, vec![0.3]),
            (Granularity::Row, vec![0.3, 0.7]),
            (Granularity::Group(8), vec![0.3, 0.7, 1.5, 0.1]),
        ] {
            let scales = scales.into_iter().map(|scale| WeightScale::new(scale).unwrap()).collect();
            let expected = TernaryMatrix::new(codes.clone(), [2, 16], granularity, scales).unwrap();
            let values = expected.dequantize();
            assert!(is_ternary(&values, [2, 16], granularity));
            assert_eq!(matrix(&values, [2, 16], granularity).unwrap(), expected);
        }
    }

    #[test]
    fn other_weights_are_not_ternary() {
        let values = [0.5, -0.5, 0.0, 0.25, 0.25, -0.25, 0.0, 0.25];
        assert!(is_ternary(&values[..3], [1, 3], Granularity::Tensor));
        for granularity in [Granularity::Tensor, Granularity::Row, Granularity::Group(3)] {
            assert!(!is_ternary(&values, [2, 4], granularity), "{granularity:?}");
        }
        assert!(matches!(matrix(&values, [2, 4], Granularity::Tensor), Err(FormatError::Scale { .. })));
        let zeros = matrix(&[0.0; 8], [2, 4], Granularity::Row).unwrap();
        assert_eq!(zeros.scales(), [WeightScale::ONE; 2]);
    }
}
