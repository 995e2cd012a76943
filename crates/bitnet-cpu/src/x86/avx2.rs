//! AVX2: `vpmaddubsw` multiplies digits 0..=2 with activations and adds pairs in i16.

use std::arch::x86_64::*;

use half::f16;

use crate::kernel::{Accumulators, LANES, Level, Primitives};
use crate::packed::{BLOCK_INPUTS, Block, TILE_ROWS};
use crate::scalar;
use crate::x86::{compile_scalar, quads};

/// Proves that the processor has AVX2 and F16C: only [`Avx2::get`] gives one away.
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn get() -> Option<&'static Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(&Self(()))
    }
}

impl Primitives for Avx2 {
    fn name(&self) -> &'static str {
        "avx2"
    }

    fn level(&self) -> Level {
        Level::Avx2
    }

    fn ternary(&self, weights: &[Block], tokens: &[&[[i8; BLOCK_INPUTS]]], out: &mut Accumulators) {
        for (tokens, out) in tokens.chunks(4).zip(out.chunks_mut(4)) {
            // SAFETY: `self` proves AVX2.
            unsafe {
                match *tokens {
                    [a] => out[0] = one_token(weights, a),
                    [a, b] => several_tokens(weights, [a, b], out),
                    [a, b, c] => several_tokens(weights, [a, b, c], out),
                    [a, b, c, d] => several_tokens(weights, [a, b, c, d], out),
                    _ => {}
                }
            }
        }
    }

    compile_scalar!("avx2");

    fn pack(&self, rows: &[&[f32]], factors: &[f32], words: &mut [i32]) {
        #[target_feature(enable = "avx2")]
        fn compiled(rows: &[&[f32]], factors: &[f32], words: &mut [i32]) {
            scalar::pack(rows, factors, words);
        }
        // SAFETY: `self` proves AVX2.
        unsafe { compiled(rows, factors, words) }
    }

    fn dot_f16(&self, w: &[f16], x: &[f32]) -> f32 {
        // SAFETY: `self` proves AVX2 (which includes AVX) and F16C.
        unsafe { dot_f16(w, x) }
    }
}

/// Blocks whose products an i16 holds. A block adds, to the high sums, two pairs of products of at most
/// 4 · 3 · 128 (digit 3 does not occur, but costs nothing to allow): 5 · 2 · 2 · 1536 = 30720 < 2¹⁵.
const BLOCKS_PER_SUM: usize = 5;

/// One shift per 32 bytes: digits 1 and 3 of a byte stay multiplied by 4, and have sums of their own.
#[target_feature(enable = "avx2")]
fn one_token(weights: &[Block], x: &[[i8; BLOCK_INPUTS]]) -> [i32; TILE_ROWS] {
    let (low_digit, high_digit) = (_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c));
    let mut sums = [_mm256_setzero_si256(); 4];
    for (weights, x) in weights.chunks(BLOCKS_PER_SUM).zip(x.chunks(BLOCKS_PER_SUM)) {
        let mut low = [_mm256_setzero_si256(); 4];
        let mut high = [_mm256_setzero_si256(); 4];
        for (block, x) in weights.iter().zip(x) {
            let x = broadcast(x);
            for i in 0..4 {
                let bytes = load(block, i);
                let shifted = _mm256_srli_epi16::<4>(bytes);
                for (bytes, [x_low, x_high]) in [(bytes, [x[0], x[1]]), (shifted, [x[2], x[3]])] {
                    let products = _mm256_maddubs_epi16(_mm256_and_si256(bytes, low_digit), x_low);
                    low[i] = _mm256_add_epi16(low[i], products);
                    let products = _mm256_maddubs_epi16(_mm256_and_si256(bytes, high_digit), x_high);
                    high[i] = _mm256_add_epi16(high[i], products);
                }
            }
        }
        for (sum, (low, high)) in sums.iter_mut().zip(low.into_iter().zip(high)) {
            // 4 · low + high, in pairs: four times the sum.
            let low = _mm256_madd_epi16(low, _mm256_set1_epi16(4));
            let high = _mm256_madd_epi16(high, _mm256_set1_epi16(1));
            *sum = _mm256_add_epi32(*sum, _mm256_add_epi32(low, high));
        }
    }
    for sum in &mut sums {
        *sum = _mm256_srai_epi32::<2>(*sum);
    }
    store(sums)
}

/// Decodes each block once for all tokens, eight rows at a time.
#[target_feature(enable = "avx2")]
fn several_tokens<const N: usize>(
    weights: &[Block],
    tokens: [&[[i8; BLOCK_INPUTS]]; N],
    out: &mut [[i32; TILE_ROWS]],
) {
    let digit = _mm256_set1_epi8(0x03);
    let tokens = tokens.map(|x| &x[..weights.len()]);
    let mut sums = [[_mm256_setzero_si256(); 4]; N];
    for quarter in 0..4 {
        for start in (0..weights.len()).step_by(2 * BLOCKS_PER_SUM) {
            let end = weights.len().min(start + 2 * BLOCKS_PER_SUM);
            // 10 · 4 · 2 · 384 = 30720 < 2¹⁵.
            let mut products = [_mm256_setzero_si256(); N];
            for at in start..end {
                let bytes = load(&weights[at], quarter);
                let planes = [
                    _mm256_and_si256(bytes, digit),
                    _mm256_and_si256(_mm256_srli_epi16::<2>(bytes), digit),
                    _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), digit),
                    _mm256_and_si256(_mm256_srli_epi16::<6>(bytes), digit),
                ];
                for token in 0..N {
                    let x = broadcast(&tokens[token][at]);
                    for plane in 0..4 {
                        let product = _mm256_maddubs_epi16(planes[plane], x[plane]);
                        products[token] = _mm256_add_epi16(products[token], product);
                    }
                }
            }
            for (sums, products) in sums.iter_mut().zip(products) {
                let pairs = _mm256_madd_epi16(products, _mm256_set1_epi16(1));
                sums[quarter] = _mm256_add_epi32(sums[quarter], pairs);
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        *out = store(sums);
    }
}

/// Eight rows: a quarter of the block.
#[target_feature(enable = "avx2")]
fn load(block: &Block, quarter: usize) -> __m256i {
    let (parts, _) = block.as_chunks::<32>();
    // SAFETY: each part has 32 bytes.
    unsafe { _mm256_loadu_si256(parts[quarter].as_ptr().cast()) }
}

/// The four activations of each plane, in every lane.
#[target_feature(enable = "avx2")]
fn broadcast(x: &[i8; BLOCK_INPUTS]) -> [__m256i; 4] {
    let [a, b, c, d] = quads(x);
    [_mm256_set1_epi32(a), _mm256_set1_epi32(b), _mm256_set1_epi32(c), _mm256_set1_epi32(d)]
}

#[target_feature(enable = "avx2")]
fn store(sums: [__m256i; 4]) -> [i32; TILE_ROWS] {
    let mut out = [0; TILE_ROWS];
    for (out, sum) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
        // SAFETY: `out` has 8 × 4 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sum) };
    }
    out
}

#[target_feature(enable = "avx2,f16c")]
fn dot_f16(w: &[f16], x: &[f32]) -> f32 {
    let (w, w_rest) = w.as_chunks::<LANES>();
    let (x, x_rest) = x.as_chunks::<LANES>();
    let mut sums = [_mm256_setzero_ps(); LANES / 8];
    for (w, x) in w.iter().zip(x) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: 8 numbers from 8·i on are within the 32 of `w` and `x`.
            let (w, x) = unsafe {
                (_mm_loadu_si128(w.as_ptr().add(8 * i).cast()), _mm256_loadu_ps(x.as_ptr().add(8 * i)))
            };
            *sum = _mm256_add_ps(*sum, _mm256_mul_ps(_mm256_cvtph_ps(w), x));
        }
    }
    let mut lanes = [0.0; LANES];
    for (lanes, sum) in lanes.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
        // SAFETY: `lanes` has 8 × 4 bytes.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    }
    scalar::add_products(&mut lanes, w_rest, x_rest);
    scalar::fold(&mut lanes)
}
