//! Every kernel on one thread: `cargo bench -p bitnet-cpu`. Run it while nothing else runs.

#![allow(unsafe_code, reason = "the dense product beside it is called so")]

use bitnet_cpu::{Granularity, Kernel, PackedTernary};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use half::f16;

fn main() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    pool.build_global().expect("the first thread pool");
    divan::main();
}

/// Numbers in −1..1 that look random.
fn floats(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn packed(d_output: usize, d_input: usize, granularity: Granularity) -> PackedTernary<'static> {
    let w = floats(d_output * d_input);
    let weight = Kernel::new().absmean_ternarize(&w, d_output, d_input, granularity).expect("a valid shape");
    PackedTernary::pack(&weight.codes, &weight.scales, d_output, d_input, granularity).expect("ternary codes")
}

fn product(
    bencher: Bencher,
    kernel: Kernel,
    [tokens, d_input, d_output]: [usize; 3],
    granularity: Granularity,
) {
    let weight = packed(d_output, d_input, granularity);
    let x = kernel.quantize_activations(&floats(tokens * d_input), d_input, 8).expect("a valid shape");
    let mut out = vec![0.0; tokens * d_output];
    bencher.counter(ItemsCount::new(tokens * d_input * d_output)).bench_local(|| {
        kernel.matmul(&weight, &x.codes, &x.scales, divan::black_box(&mut out)).expect("matching shapes");
    });
}

#[divan::bench(args = Kernel::available())]
fn matvec_4096x4096(bencher: Bencher, kernel: Kernel) {
    product(bencher, kernel, [1, 4096, 4096], Granularity::Tensor);
}

#[divan::bench(args = Kernel::available())]
fn matvec_4096x4096_groups_of_128(bencher: Bencher, kernel: Kernel) {
    product(bencher, kernel, [1, 4096, 4096], Granularity::Group(128));
}

#[divan::bench(args = Kernel::available())]
fn matvec_576x1536(bencher: Bencher, kernel: Kernel) {
    product(bencher, kernel, [1, 576, 1536], Granularity::Tensor);
}

#[divan::bench(args = Kernel::available())]
fn matmul_512_tokens_576x1536(bencher: Bencher, kernel: Kernel) {
    product(bencher, kernel, [512, 576, 1536], Granularity::Tensor);
}

/// The dense product that [`matmul_512_tokens_576x1536`] replaces.
#[divan::bench]
fn dense_f32_512_tokens_576x1536(bencher: Bencher) {
    let [tokens, d_input, d_output] = [512, 576, 1536];
    let (x, w) = (floats(tokens * d_input), floats(d_output * d_input));
    let mut out = vec![0.0f32; tokens * d_output];
    bencher.counter(ItemsCount::new(tokens * d_input * d_output)).bench_local(|| {
        // SAFETY: out [tokens, d_output] = x [tokens, d_input] · wᵀ, each slice has its shape.
        unsafe {
            gemm::gemm(
                tokens,
                d_output,
                d_input,
                divan::black_box(&mut out).as_mut_ptr(),
                1,
                d_output as isize,
                false,
                x.as_ptr(),
                1,
                d_input as isize,
                w.as_ptr(),
                d_input as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    });
}

#[divan::bench(args = Kernel::available())]
fn quantize_activations_512x4096(bencher: Bencher, kernel: Kernel) {
    let x = floats(512 * 4096);
    bencher
        .counter(BytesCount::of_slice(&x))
        .bench_local(|| kernel.quantize_activations(divan::black_box(&x), 4096, 8));
}

#[divan::bench(args = Kernel::available())]
fn quantize_activations_1x4096(bencher: Bencher, kernel: Kernel) {
    let x = floats(4096);
    bencher
        .counter(BytesCount::of_slice(&x))
        .bench_local(|| kernel.quantize_activations(divan::black_box(&x), 4096, 8));
}

#[divan::bench(args = Kernel::available())]
fn absmean_4096x4096(bencher: Bencher, kernel: Kernel) {
    let w = floats(4096 * 4096);
    bencher
        .counter(BytesCount::of_slice(&w))
        .bench_local(|| kernel.absmean(divan::black_box(&w), 4096, 4096, Granularity::Tensor));
}

#[divan::bench(args = Kernel::available())]
fn absmean_576x1536(bencher: Bencher, kernel: Kernel) {
    let w = floats(576 * 1536);
    bencher
        .counter(BytesCount::of_slice(&w))
        .bench_local(|| kernel.absmean(divan::black_box(&w), 1536, 576, Granularity::Tensor));
}

#[divan::bench(args = Kernel::available())]
fn ternarize_4096x4096(bencher: Bencher, kernel: Kernel) {
    let w = floats(4096 * 4096);
    bencher
        .counter(BytesCount::of_slice(&w))
        .bench_local(|| kernel.ternarize(divan::black_box(&w), 4096, 4096, Granularity::Tensor, &[0.5]));
}

#[divan::bench(args = Kernel::available())]
fn absmean_pack_4096x4096(bencher: Bencher, kernel: Kernel) {
    let w = floats(4096 * 4096);
    bencher
        .counter(BytesCount::of_slice(&w))
        .bench_local(|| kernel.absmean_pack(divan::black_box(&w), 4096, 4096, Granularity::Tensor));
}

#[divan::bench]
fn pack_4096x4096(bencher: Bencher) {
    let codes: Vec<i8> = floats(4096 * 4096).iter().map(|w| (w * 1.5) as i8).collect();
    bencher.counter(BytesCount::of_slice(&codes)).bench_local(|| {
        PackedTernary::pack(divan::black_box(&codes), &[1.0], 4096, 4096, Granularity::Tensor)
    });
}

#[divan::bench(args = Kernel::available())]
fn head_49152x576(bencher: Bencher, kernel: Kernel) {
    let w: Vec<f16> = floats(49152 * 576).into_iter().map(f16::from_f32).collect();
    let x = floats(576);
    let mut out = vec![0.0; 49152];
    bencher.counter(BytesCount::of_slice(&w)).bench_local(|| {
        kernel.head(&w, &x, 576, divan::black_box(&mut out)).expect("matching shapes");
    });
}
