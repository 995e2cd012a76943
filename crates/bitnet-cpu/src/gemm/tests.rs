use super::*;
use crate::Granularity;

/// Small integers, whose sums are exact.
fn integers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7 + seed * 5 + i / 11) % 9) as f32 - 4.0).collect()
}

fn expected(
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
    [m, k, n]: [usize; 3],
) -> Vec<f32> {
    (0..m * n).map(|at| (0..k).map(|i| a(at / n, i) * b(i, at % n)).sum()).collect()
}

/// With AMX and without, where the processor has them.
fn variants() -> Vec<Gemm> {
    let Some(gemm) = Gemm::new() else {
        eprintln!("skipped: no AVX-512");
        return Vec::new();
    };
    if gemm.amx.is_none() {
        eprintln!("skipped in part: no AMX");
        return vec![gemm];
    }
    vec![gemm, Gemm { amx: None, ..gemm }]
}

#[test]
fn every_layout_gives_the_product() {
    for (gemm, shape) in
        [[1, 1, 1], [8, 16, 48], [9, 193, 50], [300, 400, 70], [7, 33, 600], [3, 0, 5], [260, 20, 1200]]
            .into_iter()
            .flat_map(|shape| variants().into_iter().map(move |gemm| (gemm, shape)))
    {
        let [m, k, n] = shape;
        let (a, b) = (integers(m * k, 1), integers(k * n, 2));
        let transposed = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
            (0..x.len()).map(|at| x[at % rows * columns + at / rows]).collect()
        };
        let (a_t, b_t) = (transposed(&a, m, k), transposed(&b, k, n));
        let right = expected(|i, j| a[i * k + j], |i, j| b[i * n + j], shape);
        for a in [Matrix::rows(&a, k), Matrix::columns(&a_t, m)] {
            for b in [Matrix::rows(&b, n), Matrix::columns(&b_t, k)] {
                assert_eq!(gemm.product(a, Right::Floats(b), shape).unwrap(), right, "{shape:?}");
            }
        }
        let codes: Vec<i8> = b.iter().map(|&b| b as i8).collect();
        let scales: Vec<f32> = (0..k).map(|i| 0.5 * (1 + i % 3) as f32).collect();
        let right = expected(|i, j| a[i * k + j], |i, j| b[i * n + j] * scales[i], shape);
        for a in [Matrix::rows(&a, k), Matrix::columns(&a_t, m)] {
            let b = Right::Codes { codes: &codes, scales: &scales };
            assert_eq!(gemm.product(a, b, shape).unwrap(), right, "codes, {shape:?}");
        }
    }
}

#[test]
fn packed_weights_are_unpacked_on_the_way() {
    for (m, k, n, granularity) in [
        (11, 40, 80, Granularity::Tensor),
        (11, 65, 50, Granularity::Row),
        (40, 70, 192, Granularity::Group(32)),
        (11, 10, 24, Granularity::Group(8)),
        (32, 32, 16, Granularity::Tensor),
        (70, 200, 640, Granularity::Tensor),
        (45, 165, 96, Granularity::Row),
    ] {
        let a = integers(m * k, 3);
        let codes: Vec<i8> = integers(k * n, 4).iter().map(|&x| (x as i8).signum()).collect();
        let scales = match granularity {
            Granularity::Tensor => 1,
            Granularity::Row => k,
            Granularity::Group(group) => k * n / group,
        };
        let scales: Vec<f32> = (0..scales).map(|i| 0.25 * (1 + i % 5) as f32).collect();
        let weight = PackedTernary::pack(&codes, &scales, k, n, granularity).unwrap();
        let values = weight.dequantize();
        let expected = expected(|i, j| a[i * k + j], |i, j| values[i * n + j], [m, k, n]);
        for gemm in variants() {
            let found = gemm.product(Matrix::rows(&a, k), Right::Ternary(&weight), [m, k, n]).unwrap();
            assert_eq!(found, expected, "{granularity:?}");
        }
    }
}

/// Of numbers with all 24 bits and every size, and scales that are no powers of two: as exact as sums of f32 are.
#[test]
fn codes_are_multiplied_in_full_precision() {
    let [m, k, n] = [50, 300, 70];
    let a: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.7).sin() * 2f32.powi(i as i32 % 60 - 30)).collect();
    let codes: Vec<i8> = (0..k * n).map(|i| (i * 37 % 255) as u8 as i8).collect();
    let scales: Vec<f32> = (0..k).map(|i| 0.01 + i as f32 * 0.003).collect();
    for gemm in variants() {
        let b = Right::Codes { codes: &codes, scales: &scales };
        let out = gemm.product(Matrix::rows(&a, k), b, [m, k, n]).unwrap();
        for (at, out) in out.into_iter().enumerate() {
            let terms = (0..k).map(|i| {
                f64::from(a[at / n * k + i]) * f64::from(codes[i * n + at % n]) * f64::from(scales[i])
            });
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
            assert!((f64::from(out) - sum).abs() < 3e-7 * size, "{at}: {out}, expected {sum} of {size}");
        }
    }
}

#[test]
fn what_is_not_finite_shows() {
    for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut a = integers(40 * 50, 5);
        a[7 * 50 + 20] = x;
        for gemm in variants() {
            let b = Right::Codes { codes: &[1; 50 * 16], scales: &[1.0; 50] };
            let out = gemm.product(Matrix::rows(&a, 50), b, [40, 50, 16]).unwrap();
            let finite: Vec<bool> = out.chunks(16).map(|row| row.iter().all(|y| y.is_finite())).collect();
            assert!(!finite[7] && finite.iter().filter(|&&finite| finite).count() == 39, "{x}: {finite:?}");
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let Some(gemm) = Gemm::new() else {
        return;
    };
    let shape @ [m, k, n] = [300, 500, 700];
    let float = |n: usize| -> Vec<f32> {
        integers(n, 7).iter().enumerate().map(|(i, x)| x * (i as f32).sin()).collect()
    };
    let (a, b) = (float(m * k), float(k * n));
    let (codes, scales): (Vec<i8>, _) = (b.iter().map(|x| (x * 30.0) as i8).collect(), vec![0.3; k]);
    for b in [Right::Floats(Matrix::rows(&b, n)), Right::Codes { codes: &codes, scales: &scales }] {
        let product = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| gemm.product(Matrix::rows(&a, k), b, shape)).unwrap()
        };
        assert_eq!(product(1), product(5));
    }
}

#[test]
fn wrong_lengths_are_named() {
    let Some(gemm) = Gemm::new() else {
        return;
    };
    let (a, b) = (Matrix::rows(&[1.0; 5], 3), Right::Floats(Matrix::rows(&[1.0; 6], 2)));
    let error = gemm.product(a, b, [2, 3, 2]).unwrap_err();
    assert_eq!(error, CpuError::Length { name: "a", found: 5, expected: 6 });
    let huge = [usize::MAX, 0, 2];
    let nothing = (Matrix::rows(&[], 0), Right::Floats(Matrix::rows(&[], 2)));
    let error = gemm.product(nothing.0, nothing.1, huge).unwrap_err();
    assert_eq!(error, CpuError::Length { name: "out", found: 0, expected: usize::MAX });
    let weight = PackedTernary::pack(&[1; 12], &[1.0], 4, 3, Granularity::Tensor).unwrap();
    let a = Matrix::rows(&[1.0; 6], 6);
    let error = gemm.product(a, Right::Ternary(&weight), [1, 6, 2]).unwrap_err();
    assert_eq!(error, CpuError::Factor { found: [4, 3], expected: [6, 2] });
}
