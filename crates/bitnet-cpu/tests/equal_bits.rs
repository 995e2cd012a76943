//! Every kernel gives the bits of the formulas, written here a second time in their plainest form, for any
//! shape and any number of threads.

use bitnet_cpu::{Granularity, Kernel, PackedTernary, TernaryWeight};
use half::f16;
use proptest::prelude::*;

/// Numbers that look random; the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// Mostly within −4..4; every eighth a multiple of ½, for ties; some of them −0.
    fn floats(&mut self, n: usize) -> Vec<f32> {
        let float = |bits: u32| match bits % 8 {
            0 => ((bits >> 8) % 17) as f32 * 0.5 * if bits & 8 == 0 { -1.0 } else { 1.0 },
            _ => (bits >> 8) as f32 / (1 << 20) as f32 - 4.0,
        };
        (0..n).map(|_| float(self.next())).collect()
    }

    fn ternary(&mut self, n: usize) -> Vec<i8> {
        (0..n).map(|_| (self.next() % 3) as i8 - 1).collect()
    }

    fn bytes(&mut self, n: usize) -> Vec<i8> {
        (0..n).map(|_| self.next() as i8).collect()
    }

    /// Finite f16 of every size.
    fn halves(&mut self, n: usize) -> Vec<f16> {
        (0..n).map(|_| f16::from_bits(self.next() as u16 & 0xbfff)).collect()
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn cases() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 200 })
    }
}

/// Rows, inputs and a granularity: below, at and above whole tiles, blocks and i16 sums; ragged and not.
fn shapes() -> impl Strategy<Value = (usize, usize, Granularity)> {
    let group = (1..100usize, 0..6usize, 1..10usize)
        .prop_map(|(d_output, power, n)| (d_output, n << power, Granularity::Group(1 << power)));
    prop_oneof![
        (1..100usize, 1..400usize).prop_map(|(d_output, d_input)| (d_output, d_input, Granularity::Tensor)),
        (1..100usize, 1..400usize).prop_map(|(d_output, d_input)| (d_output, d_input, Granularity::Row)),
        (1..4usize, 1..20usize).prop_map(|(d_output, n)| (32 * d_output, 16 * n, Granularity::Tensor)),
        (1..100usize, 1..9usize).prop_map(|(d_output, n)| (d_output, 64 * n, Granularity::Group(64))),
        group,
    ]
}

fn segment(d_input: usize, granularity: Granularity) -> usize {
    if let Granularity::Group(group) = granularity { group } else { d_input }
}

fn scale_at(row: usize, segment: usize, segments: usize, granularity: Granularity) -> usize {
    match granularity {
        Granularity::Tensor => 0,
        Granularity::Row => row,
        Granularity::Group(_) => row * segments + segment,
    }
}

/// The accumulators and the outputs, from the formulas.
fn plain_product(
    weight: &TernaryWeight,
    [d_output, d_input]: [usize; 2],
    granularity: Granularity,
    x: &[i8],
    x_scales: &[f32],
) -> (Vec<i32>, Vec<f32>) {
    let run = segment(d_input, granularity);
    let (mut accumulators, mut outputs) = (vec![], vec![]);
    for (x, x_scale) in x.chunks(d_input).zip(x_scales) {
        for row in 0..d_output {
            let codes = &weight.codes[row * d_input..][..d_input];
            let (mut total, mut output) = (0, 0.0);
            for (i, (codes, x)) in codes.chunks(run).zip(x.chunks(run)).enumerate() {
                let acc: i32 = codes.iter().zip(x).map(|(&code, &x)| i32::from(code) * i32::from(x)).sum();
                let w_scale = weight.scales[scale_at(row, i, d_input / run, granularity)];
                total += acc;
                output += acc as f32 * (w_scale * x_scale);
            }
            accumulators.push(total);
            outputs.push(output);
        }
    }
    (accumulators, outputs)
}

fn plain_fold(mut a: Vec<f32>) -> f32 {
    let mut n = a.len();
    while n > 1 {
        let half = n.div_ceil(2);
        for i in 0..n - half {
            a[i] += a[i + half];
        }
        n = half;
    }
    a[0]
}

fn plain_abs_sum(w: &[f32]) -> f32 {
    plain_fold(w.iter().map(|w| w.abs()).collect())
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn packing_and_unpacking_is_the_identity((d_output, d_input, granularity) in shapes(), seed: u64) {
        let mut random = Random(seed);
        let segments = d_input / segment(d_input, granularity);
        let n_scales = 1 + scale_at(d_output - 1, segments - 1, segments, granularity);
        let weight = TernaryWeight { codes: random.ternary(d_output * d_input), scales: random.floats(n_scales) };
        let packed = PackedTernary::pack(&weight.codes, &weight.scales, d_output, d_input, granularity).unwrap();
        prop_assert_eq!(packed.unpack(), weight);
        let found = (packed.d_output(), packed.d_input(), packed.granularity());
        prop_assert_eq!(found, (d_output, d_input, granularity));
    }

    #[test]
    fn products_are_the_plain_ones((d_output, d_input, granularity) in shapes(), tokens in 0..20usize, seed: u64) {
        let mut random = Random(seed);
        let segments = d_input / segment(d_input, granularity);
        let n_scales = 1 + scale_at(d_output - 1, segments - 1, segments, granularity);
        let weight = TernaryWeight { codes: random.ternary(d_output * d_input), scales: random.floats(n_scales) };
        let packed = PackedTernary::pack(&weight.codes, &weight.scales, d_output, d_input, granularity).unwrap();
        let (x, x_scales) = (random.bytes(tokens * d_input), random.floats(tokens));
        let expected = plain_product(&weight, [d_output, d_input], granularity, &x, &x_scales);
        for kernel in Kernel::available() {
            // What was there before must not matter.
            let mut accumulators = vec![7; tokens * d_output];
            kernel.accumulate(&packed, &x, &mut accumulators).unwrap();
            prop_assert_eq!(&accumulators, &expected.0, "{:?}", kernel);
            let mut outputs = vec![f32::NAN; tokens * d_output];
            kernel.matmul(&packed, &x, &x_scales, &mut outputs).unwrap();
            prop_assert_eq!(bits(&outputs), bits(&expected.1), "{:?}", kernel);
        }
    }

    #[test]
    fn activations_are_the_plain_ones(tokens in 0..5usize, d_input in 1..200usize, width in 2..=8u32, seed: u64) {
        let x = Random(seed).floats(tokens * d_input);
        let high = (1 << (width - 1)) as f32 - 1.0;
        for kernel in Kernel::available() {
            let found = kernel.quantize_activations(&x, d_input, width).unwrap();
            let mut codes = vec![];
            for (x, scale) in x.chunks(d_input).zip(&found.scales) {
                let t = high / x.iter().fold(1e-5, |max: f32, x| max.max(x.abs()));
                codes.extend(x.iter().map(|x| (x * t).round_ties_even().clamp(-high - 1.0, high) as i8));
                prop_assert_eq!(scale.to_bits(), (1.0 / t).to_bits());
            }
            prop_assert_eq!(&found.codes, &codes, "{:?}", kernel);
        }
    }

    #[test]
    fn ternary_weights_are_the_plain_ones((d_output, d_input, granularity) in shapes(), seed: u64) {
        let w = Random(seed).floats(d_output * d_input);
        let run = segment(d_input, granularity);
        let sums: Vec<f32> = w.chunks(run).map(plain_abs_sum).collect();
        let scales: Vec<f32> = match granularity {
            Granularity::Tensor => vec![(plain_fold(sums) / w.len() as f32).max(1e-5)],
            _ => sums.into_iter().map(|sum| (sum / run as f32).max(1e-5)).collect(),
        };
        let mut codes = vec![];
        for (i, w) in w.chunks(run).enumerate() {
            let scale = scales[if scales.len() == 1 { 0 } else { i }];
            codes.extend(w.iter().map(|w| (w * (1.0 / scale)).round_ties_even().clamp(-1.0, 1.0) as i8));
        }
        for kernel in Kernel::available() {
            let found = kernel.absmean_ternarize(&w, d_output, d_input, granularity).unwrap();
            prop_assert_eq!(bits(&found.scales), bits(&scales), "{:?}", kernel);
            prop_assert_eq!(&found.codes, &codes, "{:?}", kernel);
            let packed = kernel.absmean_pack(&w, d_output, d_input, granularity).unwrap();
            prop_assert!(packed == PackedTernary::pack(&codes, &scales, d_output, d_input, granularity).unwrap());
            for lambda in [0.3, 1.0] {
                let values = w.iter().zip(&codes).enumerate().map(|(at, (&w, &code))| {
                    let value = f32::from(code) * scales[if scales.len() == 1 { 0 } else { at / run }];
                    if lambda == 1.0 { value } else { w + (value - w) * lambda }
                });
                let found = kernel.ternary_blend(&w, d_output, d_input, granularity, &scales, lambda).unwrap();
                prop_assert_eq!(bits(&found), bits(&values.collect::<Vec<_>>()), "{:?}", kernel);
            }
        }
    }

    #[test]
    fn logits_are_the_plain_ones(vocab in 1..40usize, d_input in 1..200usize, tokens in 0..4usize, seed: u64) {
        let mut random = Random(seed);
        let (w, x) = (random.halves(vocab * d_input), random.floats(tokens * d_input));
        let mut expected = vec![];
        for x in x.chunks(d_input) {
            for w in w.chunks(d_input) {
                let mut lanes = vec![0.0; 32];
                w.iter().zip(x).enumerate().for_each(|(i, (w, x))| lanes[i % 32] += w.to_f32() * x);
                expected.push(plain_fold(lanes));
            }
        }
        for kernel in Kernel::available() {
            let mut out = vec![f32::NAN; tokens * vocab];
            kernel.head(&w, &x, d_input, &mut out).unwrap();
            prop_assert_eq!(bits(&out), bits(&expected), "{:?}", kernel);
        }
    }
}

#[test]
fn rounding_is_half_to_even_at_every_tie_and_next_to_it() {
    // max|x| = 127 makes the factor 1, so each x is rounded as it is.
    let ties = (-254..=254).map(|twice| twice as f32 / 2.0);
    let x: Vec<f32> =
        ties.flat_map(|x| [x.next_down(), x, x.next_up()]).filter(|x| x.abs() <= 127.0).collect();
    let expected: Vec<i8> = x.iter().map(|x| x.round_ties_even() as i8).collect();
    for kernel in Kernel::available() {
        let found = kernel.quantize_activations(&x, x.len(), 8).unwrap();
        assert_eq!((found.codes, found.scales), (expected.clone(), vec![1.0]), "{kernel:?}");
    }
}

/// The integer sums cannot overflow at the largest `d_input`, nor the i16 sums inside the kernels.
#[test]
fn extreme_codes_do_not_overflow() {
    let lengths =
        if cfg!(miri) { vec![400] } else { vec![80, 160, 256, 4096, 65536, bitnet_cpu::MAX_D_INPUT] };
    for d_input in lengths {
        for (code, x) in [(1, -128), (1, 127), (-1, -128), (-1, 127), (0, -128)] {
            let weight =
                PackedTernary::pack(&vec![code; d_input], &[1.0], 1, d_input, Granularity::Tensor).unwrap();
            for tokens in [1, 2, 8] {
                for kernel in Kernel::available() {
                    let mut out = vec![0; tokens];
                    kernel.accumulate(&weight, &vec![x; tokens * d_input], &mut out).unwrap();
                    let expected = d_input as i32 * i32::from(code) * i32::from(x);
                    assert_eq!(out, vec![expected; tokens], "{kernel:?}, {d_input} inputs, {code} · {x}");
                }
            }
        }
    }
}

/// Shapes large enough to be split among threads.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn threads_do_not_change_bits() {
    let (d_output, d_input, tokens) = (1000, 1200, 100);
    let mut random = Random(1);
    let (w, x) = (random.floats(d_output * d_input), random.floats(tokens * d_input));
    let head: Vec<f16> = w.iter().copied().map(f16::from_f32).collect();
    for kernel in Kernel::available() {
        for granularity in [Granularity::Tensor, Granularity::Row, Granularity::Group(16)] {
            let run = || {
                let weight = kernel.absmean_ternarize(&w, d_output, d_input, granularity).unwrap();
                let packed =
                    PackedTernary::pack(&weight.codes, &weight.scales, d_output, d_input, granularity)
                        .unwrap();
                let x8 = kernel.quantize_activations(&x, d_input, 8).unwrap();
                let mut out = vec![0.0; tokens * d_output];
                kernel.matmul(&packed, &x8.codes, &x8.scales, &mut out).unwrap();
                let mut logits = vec![0.0; tokens * d_output];
                kernel.head(&head, &x, d_input, &mut logits).unwrap();
                let one_token = &mut logits[..d_output];
                kernel.matmul(&packed, &x8.codes[..d_input], &x8.scales[..1], one_token).unwrap();
                assert_eq!(bits(one_token), bits(&out[..d_output]), "one token is the first of many");
                (bits(&weight.scales), weight.codes, packed, x8.codes, bits(&out), bits(&logits))
            };
            let on =
                |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run);
            let one = on(1);
            for threads in [2, 3, 7] {
                assert!(on(threads) == one, "{kernel:?}, {granularity:?}, {threads} threads");
            }
        }
    }
}

#[test]
fn two_bits_a_weight() {
    let packed = PackedTernary::pack(&[1; 64 * 48], &[0.5; 64], 64, 48, Granularity::Row).unwrap();
    assert_eq!(packed.size_in_bytes(), 64 * 48 / 4 + 64 * 4);
    let ragged = PackedTernary::pack(&[1; 33 * 17], &[0.5], 33, 17, Granularity::Tensor).unwrap();
    assert_eq!(ragged.size_in_bytes(), 64 * 32 / 4 + 4);
}

#[test]
fn the_fastest_kernel_is_the_last_available() {
    let names: Vec<_> = Kernel::available().into_iter().map(Kernel::name).collect();
    assert_eq!(names[0], Kernel::scalar().name());
    assert_eq!(names.last(), Some(&Kernel::new().name()));
    assert_eq!(names.contains(&"avx2"), Kernel::avx2().is_some());
    assert_eq!(names.contains(&"avx512"), Kernel::avx512().is_some());
}
