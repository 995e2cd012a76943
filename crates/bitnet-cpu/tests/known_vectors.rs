//! The known vectors of the formulas: every kernel gives exactly these numbers.

use bitnet_cpu::{CpuError, Granularity, Kernel, MAX_D_INPUT, PackedTernary, absmean_of_rows};
use half::f16;

const W: [f32; 9] = [0.8, -0.5, 1.2, -1.5, 0.4, -0.9, 1.3, -0.7, 0.2];
const X: [f32; 9] = [1.0, -0.6, 0.7, -0.9, 0.4, -1.2, 0.8, -0.5, 0.3];

/// Products and quotients of the decimal inputs above carry a few roundings.
fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-5, "{found} is not {expected}");
    }
}

#[test]
fn a_weight_quantizes_by_absmean_per_tensor() {
    for kernel in Kernel::available() {
        let weight = kernel.absmean_ternarize(&W, 3, 3, Granularity::Tensor).unwrap();
        close(&weight.scales, &[0.8333333]);
        assert_eq!(weight.codes, [1, -1, 1, -1, 0, -1, 1, -1, 0]);
    }
}

#[test]
fn a_weight_quantizes_by_absmean_per_row() {
    for kernel in Kernel::available() {
        let weight = kernel.absmean_ternarize(&W, 3, 3, Granularity::Row).unwrap();
        close(&weight.scales, &[0.8333333, 0.9333333, 0.7333333]);
        assert_eq!(weight.codes, [1, -1, 1, -1, 0, -1, 1, -1, 0]);
    }
}

#[test]
fn a_weight_quantizes_by_threshold_per_row() {
    for kernel in Kernel::available() {
        let weight = kernel.threshold_ternarize(&W, 3, 3, 0.1).unwrap();
        close(&weight.scales, &[0.8333333, 0.9333333, 0.7333333]);
        assert_eq!(weight.codes, [1, -1, 1, -1, 1, -1, 1, -1, 1]);
        // 0.5 is not below 0.5 · 1; a row of zeros stays zero.
        let edges = kernel.threshold_ternarize(&[0.5, -1.5, 0.0, -0.0], 2, 2, 0.5).unwrap();
        assert_eq!((edges.codes, edges.scales), (vec![1, -1, 0, 0], vec![1.0, 1e-8]));
        assert!(matches!(kernel.threshold_ternarize(&W, 3, 2, 0.1), Err(CpuError::Length { .. })));
    }
}

#[test]
fn a_weight_in_pieces_has_the_scale_of_the_whole() {
    let w: Vec<f32> = (0..7 * 33).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013).collect();
    for kernel in Kernel::available() {
        let mut sums = Vec::new();
        for rows in w.chunks(2 * 33) {
            sums.extend(kernel.row_abs_sums(rows, rows.len() / 33, 33).unwrap());
        }
        let whole = kernel.absmean(&w, 7, 33, Granularity::Tensor).unwrap();
        assert_eq!(absmean_of_rows(&mut sums, 33).to_bits(), whole[0].to_bits());
    }
}

#[test]
fn a_weight_quantizes_by_absmean_per_group() {
    let w = [1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 0.1, -0.1];
    for kernel in Kernel::available() {
        let weight = kernel.absmean_ternarize(&w, 1, 8, Granularity::Group(4)).unwrap();
        close(&weight.scales, &[0.75, 1.05]);
        assert_eq!(weight.codes, [1, -1, 1, -1, 1, -1, 0, 0]);
    }
}

#[test]
fn weight_ties_go_to_even_and_tiny_weights_to_zero() {
    for kernel in Kernel::available() {
        let ties = kernel.absmean_ternarize(&[0.5, -0.5, 1.5, -1.5, 1.0, -1.0], 2, 3, Granularity::Tensor);
        let ties = ties.unwrap();
        assert_eq!((ties.scales, ties.codes), (vec![1.0], vec![0, 0, 1, -1, 1, -1]));
        let tiny = kernel.absmean_ternarize(&[1e-6, -1e-6, 2e-6, -2e-6], 1, 4, Granularity::Tensor).unwrap();
        assert_eq!((tiny.scales, tiny.codes), (vec![1e-5], vec![0; 4]));
        let zeros = kernel.absmean_ternarize(&[0.0, -0.0], 1, 2, Granularity::Row).unwrap();
        assert_eq!((zeros.scales, zeros.codes), (vec![1e-5], vec![0; 2]));
    }
}

#[test]
fn activations_quantize_by_absmax() {
    for kernel in Kernel::available() {
        let x = kernel.quantize_activations(&X, 3, 8).unwrap();
        assert_eq!(x.codes, [127, -76, 89, -95, 42, -127, 127, -79, 48]);
        close(
            &x.codes[..3].iter().map(|&c| f32::from(c) * x.scales[0]).collect::<Vec<_>>(),
            &[1.0, -0.598425, 0.700787],
        );
        let ties = kernel.quantize_activations(&[127.0, 0.5, 1.5, 2.5, -0.5, -2.5], 6, 8).unwrap();
        assert_eq!((ties.codes, ties.scales), (vec![127, 0, 2, 2, 0, -2], vec![1.0]));
        assert_eq!(kernel.quantize_activations(&[0.0, -0.0], 2, 8).unwrap().codes, [0, 0]);
        // 4 bits: t = 7 / 1
        assert_eq!(kernel.quantize_activations(&[1.0, -1.0, 0.5, -0.1], 4, 4).unwrap().codes, [7, -7, 4, -1]);
    }
}

#[test]
fn the_product_has_the_known_accumulators_and_outputs() {
    for kernel in Kernel::available() {
        let weight = kernel.absmean_ternarize(&W, 3, 3, Granularity::Tensor).unwrap();
        let packed = PackedTernary::pack(&weight.codes, &weight.scales, 3, 3, Granularity::Tensor).unwrap();
        let x = kernel.quantize_activations(&X, 3, 8).unwrap();
        let mut accumulators = [0; 9];
        kernel.accumulate(&packed, &x.codes, &mut accumulators).unwrap();
        assert_eq!(accumulators, [292, -216, 203, -264, 222, -137, 254, -175, 206]);
        let mut out = [0.0; 9];
        kernel.matmul(&packed, &x.codes, &x.scales, &mut out).unwrap();
        close(&out[..3], &[1.91601, -1.417323, 1.332021]);
        close(&out[3..6], &[-2.07874, 1.748031, -1.07874]);
        close(&out[6..], &[1.333333, -0.918635, 1.081365]);
    }
}

/// Packing on the way compares where ternarizing rounds. Eight rows at a time and the ninth alone, a whole block and a part.
#[test]
fn weights_packed_on_the_way_have_the_same_ties() {
    let w = [0.5, -0.5, 1.5, -1.5, 1.0, -1.0].repeat(9 * 3);
    for kernel in Kernel::available() {
        let found = kernel.absmean_pack(&w, 9, 18, Granularity::Tensor).unwrap().unpack();
        assert_eq!(
            (found.scales, found.codes),
            (vec![1.0], [0, 0, 1, -1, 1, -1].repeat(9 * 3)),
            "{kernel:?}"
        );
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut w = w.clone();
            w[20] = x;
            let plain = kernel.absmean_ternarize(&w, 9, 18, Granularity::Row).unwrap();
            let plain = PackedTernary::pack(&plain.codes, &plain.scales, 9, 18, Granularity::Row).unwrap();
            let packed = kernel.absmean_pack(&w, 9, 18, Granularity::Row).unwrap();
            assert_eq!(packed.words(), plain.words(), "{kernel:?}, {x}"); // the padding too
            assert!(!packed.scales()[1].is_finite() && packed.scales()[2].is_finite());
            let mut other = kernel.absmean_pack(&[2.0; 9 * 18], 9, 18, Granularity::Row).unwrap();
            kernel.absmean_pack_to(&w, &mut other).unwrap();
            assert_eq!(other.words(), packed.words(), "{kernel:?}, {x}");
            assert!(kernel.absmean_pack_to(&w[1..], &mut other).is_err());
            assert!(kernel.absmean_pack(&[], usize::MAX, 1, Granularity::Tensor).is_err());
        }
    }
}

#[test]
fn what_is_not_finite_shows_in_the_scale() {
    for kernel in Kernel::available() {
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!kernel.quantize_activations(&[1.0, x], 2, 8).unwrap().scales[0].is_finite());
            for granularity in [Granularity::Tensor, Granularity::Row, Granularity::Group(2)] {
                assert!(
                    !kernel.absmean_ternarize(&[1.0, x], 1, 2, granularity).unwrap().scales[0].is_finite()
                );
            }
        }
    }
}

#[test]
fn the_head_multiplies_and_adds_in_f32() {
    let w = [1.0, -2.0, 0.5, 6e-8, 65504.0, 0.0].map(f16::from_f32);
    for kernel in Kernel::available() {
        let mut out = [0.0; 4];
        kernel.head(&w, &[1.0, 2.0, 4.0, 0.0, 1.0, 0.0], 3, &mut out).unwrap();
        // The smallest f16 above zero is 2⁻²⁴.
        assert_eq!(out, [-1.0, 2.0 * 65504.0 + 2f32.powi(-24), -2.0, 65504.0]);
    }
}

#[test]
fn a_weight_that_cannot_be_packed_is_refused() {
    let pack = |codes: &[i8], d_output, d_input, granularity| {
        PackedTernary::pack(codes, &[1.0], d_output, d_input, granularity).unwrap_err()
    };
    for (d_output, d_input) in [(0, 4), (4, 0), (1, MAX_D_INPUT + 1)] {
        assert_eq!(pack(&[], d_output, d_input, Granularity::Tensor), CpuError::Shape { d_output, d_input });
    }
    for group in [0, 3, 8] {
        let found = pack(&[0; 12], 1, 12, Granularity::Group(group));
        assert_eq!(found, CpuError::Group { group, d_input: 12 });
    }
    let code = |row, input, found| CpuError::Code { row, input, found };
    assert_eq!(pack(&[0, 1, -1, 0, 0, 2], 2, 3, Granularity::Tensor), code(1, 2, 2));
    assert_eq!(pack(&[0, -128, 0], 1, 3, Granularity::Tensor), code(0, 1, -128));
    assert_eq!(code(0, 1, 7).to_string(), "code 7 at row 0, input 1, expected -1, 0 or 1");
    let length = |name, found, expected| CpuError::Length { name, found, expected };
    assert_eq!(pack(&[0; 5], 2, 3, Granularity::Tensor), length("codes", 5, 6));
    assert_eq!(pack(&[0; 6], 2, 3, Granularity::Row), length("scales", 1, 2));
    assert_eq!(pack(&[0; 6], 1, 6, Granularity::Group(2)), length("scales", 1, 3));
}

#[test]
fn slices_of_the_wrong_length_are_refused() {
    let kernel = Kernel::new();
    let length = |name, found, expected| CpuError::Length { name, found, expected };
    let packed = PackedTernary::pack(&[0; 6], &[1.0; 2], 2, 3, Granularity::Row).unwrap();
    let mut out = [0.0; 2];
    assert_eq!(kernel.accumulate(&packed, &[0; 4], &mut [0; 2]), Err(length("x", 4, 3)));
    assert_eq!(kernel.accumulate(&packed, &[0; 3], &mut [0; 3]), Err(length("out", 3, 2)));
    assert_eq!(kernel.matmul(&packed, &[0; 3], &[], &mut out), Err(length("x_scales", 0, 1)));
    assert_eq!(kernel.quantize_activations(&[0.0; 4], 3, 8), Err(length("x", 4, 3)));
    for bits in [0, 1, 9] {
        assert_eq!(kernel.quantize_activations(&[0.0], 1, bits), Err(CpuError::Bits { found: bits }));
    }
    assert_eq!(kernel.absmean(&[0.0; 5], 2, 3, Granularity::Row), Err(length("w", 5, 6)));
    let codes = kernel.ternarize(&[0.0; 6], 2, 3, Granularity::Row, &[1.0]);
    assert_eq!(codes, Err(length("scales", 1, 2)));
    assert_eq!(kernel.head(&[f16::ZERO; 4], &[0.0; 3], 3, &mut out), Err(length("w", 4, 3)));
    assert_eq!(kernel.head(&[f16::ZERO; 6], &[0.0; 4], 3, &mut out), Err(length("x", 4, 3)));
    assert_eq!(kernel.head(&[f16::ZERO; 6], &[0.0; 3], 3, &mut out[..1]), Err(length("out", 1, 2)));
    assert_eq!(kernel.head(&[f16::ZERO; 6], &[0.0; 3], 0, &mut out), Err(length("w", 6, 0)));
}

#[test]
fn no_tokens_give_no_output() {
    let kernel = Kernel::new();
    let packed = PackedTernary::pack(&[0; 6], &[1.0], 2, 3, Granularity::Tensor).unwrap();
    assert_eq!(kernel.accumulate(&packed, &[], &mut []), Ok(()));
    assert_eq!(kernel.matmul(&packed, &[], &[], &mut []), Ok(()));
    assert_eq!(kernel.quantize_activations(&[], 3, 8).unwrap().codes, []);
    assert_eq!(kernel.quantize_activations(&[], 0, 8).unwrap().scales, []);
    assert_eq!(kernel.head(&[f16::ZERO; 6], &[], 3, &mut []), Ok(()));
}
