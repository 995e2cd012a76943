//! AVX-512 with VNNI: `vpdpbusd` multiplies four digits with four activations and adds them to an i32.

use std::arch::x86_64::*;

use half::f16;

use crate::kernel::{Accumulators, LANES, Level, MAX_TOKENS, Primitives};
use crate::packed::{BLOCK_INPUTS, Block, TILE_ROWS};
use crate::scalar;
use crate::x86::{compile_scalar, quads};

/// Proves that the processor has AVX-512 F, BW and VNNI, and BMI2: only [`Avx512::get`] gives one away.
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn get() -> Option<&'static Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("bmi2"))
        .then_some(&Self(()))
    }
}

impl Primitives for Avx512 {
    fn name(&self) -> &'static str {
        "avx512"
    }

    fn level(&self) -> Level {
        Level::Avx512
    }

    fn ternary(&self, weights: &[Block], tokens: &[&[[i8; BLOCK_INPUTS]]], out: &mut Accumulators) {
        // SAFETY: `self` proves AVX-512 F, BW and VNNI.
        unsafe {
            match *tokens {
                [a] => out[0] = one_token(weights, a),
                [a, b] => several_tokens(weights, [a, b], out),
                [a, b, c] => several_tokens(weights, [a, b, c], out),
                [a, b, c, d] => several_tokens(weights, [a, b, c, d], out),
                [a, b, c, d, e] => several_tokens(weights, [a, b, c, d, e], out),
                [a, b, c, d, e, f] => several_tokens(weights, [a, b, c, d, e, f], out),
                [a, b, c, d, e, f, g] => several_tokens(weights, [a, b, c, d, e, f, g], out),
                [a, b, c, d, e, f, g, h] => several_tokens(weights, [a, b, c, d, e, f, g, h], out),
                _ => {}
            }
        }
    }

    compile_scalar!("avx512f,avx512bw");

    fn pack(&self, rows: &[&[f32]], factors: &[f32], words: &mut [i32]) {
        // SAFETY: `self` proves AVX-512 F and BMI2.
        unsafe {
            match *rows {
                [a, b, c, d, e, f, g, h] => pack([a, b, c, d, e, f, g, h], factors, words),
                _ => rows
                    .iter()
                    .zip(factors.chunks(1))
                    .enumerate()
                    .for_each(|(row, (w, factor))| pack([w], factor, &mut words[row..])),
            }
        }
    }

    fn quantize_and_absmax(
        &self,
        x: &[f32],
        factor: f32,
        range: [f32; 2],
        codes: &mut [i8],
        next: &[f32],
        streamed: bool,
    ) -> f32 {
        if next.len() != x.len() || codes.len() != x.len() {
            self.quantize(x, factor, range, codes);
            return self.absmax(next);
        }
        let streamed = streamed && codes.as_ptr().addr().is_multiple_of(16);
        // SAFETY: `self` proves AVX-512 F and BW; the three are equally long.
        unsafe { quantize_and_absmax(x, factor, range, codes, next, streamed) }
    }

    fn dot_f16(&self, w: &[f16], x: &[f32]) -> f32 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { dot_f16(w, x) }
    }
}

/// No shifts: the digits of plane p stay multiplied by 4^p and have sums of their own, of at most
/// `MAX_D_INPUT` / 4 · 192 · 128 < 2³¹.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn one_token(weights: &[Block], x: &[[i8; BLOCK_INPUTS]]) -> [i32; TILE_ROWS] {
    let masks =
        [_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c), _mm512_set1_epi8(0x30), _mm512_set1_epi8(-0x40)];
    let mut sums = [[_mm512_setzero_si512(); 4]; 2];
    for (block, x) in weights.iter().zip(x) {
        prefetch(block);
        let x = broadcast(x);
        for (bytes, sums) in load(block).into_iter().zip(&mut sums) {
            for plane in 0..4 {
                let digits = _mm512_and_si512(bytes, masks[plane]);
                sums[plane] = _mm512_dpbusd_epi32(sums[plane], digits, x[plane]);
            }
        }
    }
    for [a, b, c, d] in &mut sums {
        let (low, high) = (_mm512_srai_epi32::<2>(*b), _mm512_srai_epi32::<2>(*d));
        let high = _mm512_srai_epi32::<4>(_mm512_add_epi32(*c, high));
        *a = _mm512_add_epi32(_mm512_add_epi32(*a, low), high);
    }
    store([sums[0][0], sums[1][0]])
}

/// Decodes each block once for all tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn several_tokens<const N: usize>(
    weights: &[Block],
    tokens: [&[[i8; BLOCK_INPUTS]]; N],
    out: &mut [[i32; TILE_ROWS]; MAX_TOKENS],
) {
    let digit = _mm512_set1_epi8(3);
    let tokens = tokens.map(|x| &x[..weights.len()]);
    let mut sums = [[_mm512_setzero_si512(); 2]; N];
    for (at, block) in weights.iter().enumerate() {
        let mut planes = [[_mm512_setzero_si512(); 4]; 2];
        for (planes, bytes) in planes.iter_mut().zip(load(block)) {
            planes[0] = _mm512_and_si512(bytes, digit);
            planes[1] = _mm512_and_si512(_mm512_srli_epi16::<2>(bytes), digit);
            planes[2] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), digit);
            planes[3] = _mm512_and_si512(_mm512_srli_epi16::<6>(bytes), digit);
        }
        for token in 0..N {
            let x = broadcast(&tokens[token][at]);
            for plane in 0..4 {
                sums[token][0] = _mm512_dpbusd_epi32(sums[token][0], planes[0][plane], x[plane]);
                sums[token][1] = _mm512_dpbusd_epi32(sums[token][1], planes[1][plane], x[plane]);
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        *out = store(sums);
    }
}

/// Asks for what is read a page later: the hardware's own prefetching ends with the page, and a single token reads
/// every weight once, from memory.
#[target_feature(enable = "avx512f")]
fn prefetch<T>(at: &[T]) {
    let ahead = at.as_ptr().cast::<i8>().wrapping_add(4096);
    // A prefetch reads nothing: an address beyond the weight is as good as none.
    _mm_prefetch::<_MM_HINT_T0>(ahead);
    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64));
}

/// Sixteen rows per register.
#[target_feature(enable = "avx512f")]
fn load(block: &Block) -> [__m512i; 2] {
    let (parts, _) = block.as_chunks::<64>();
    // SAFETY: each part has 64 bytes.
    unsafe { [_mm512_loadu_si512(parts[0].as_ptr().cast()), _mm512_loadu_si512(parts[1].as_ptr().cast())] }
}

/// The four activations of each plane, in every lane.
#[target_feature(enable = "avx512f")]
fn broadcast(x: &[i8; BLOCK_INPUTS]) -> [__m512i; 4] {
    let [a, b, c, d] = quads(x);
    [_mm512_set1_epi32(a), _mm512_set1_epi32(b), _mm512_set1_epi32(c), _mm512_set1_epi32(d)]
}

#[target_feature(enable = "avx512f")]
fn store([low, high]: [__m512i; 2]) -> [i32; TILE_ROWS] {
    let mut out = [0; TILE_ROWS];
    let (parts, _) = out.as_chunks_mut::<16>();
    // SAFETY: each part has 16 × 4 bytes.
    unsafe {
        _mm512_storeu_si512(parts[0].as_mut_ptr().cast(), low);
        _mm512_storeu_si512(parts[1].as_mut_ptr().cast(), high);
    }
    out
}

/// Comparisons instead of rounding: a code is 1 above ½, −1 below −½ or where the weight is NaN, and 0 at both ties. Their
/// bits are those of the digits 2 and 1, once the inputs stand in the order of a word's digits.
#[target_feature(enable = "avx512f,bmi2")]
fn pack<const ROWS: usize>(rows: [&[f32]; ROWS], factors: &[f32], words: &mut [i32]) {
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let (half, minus_half) = (_mm512_set1_ps(0.5), _mm512_set1_ps(-0.5));
    let factors: [_; ROWS] = std::array::from_fn(|row| factors[row]);
    let inputs = rows.iter().map(|row| row.len()).min().unwrap_or(0);
    for (words, first) in words.chunks_mut(TILE_ROWS).zip((0..inputs).step_by(BLOCK_INPUTS)) {
        let present = u16::MAX >> (BLOCK_INPUTS - (inputs - first).min(BLOCK_INPUTS));
        for ((word, row), factor) in words.iter_mut().zip(rows).zip(factors) {
            // What is read eight blocks later: nothing needs to be there.
            _mm_prefetch::<_MM_HINT_T0>(row.as_ptr().wrapping_add(first).cast::<i8>().wrapping_add(512));
            // SAFETY: the mask lets the row's numbers be read.
            let w = unsafe { _mm512_maskz_loadu_ps(present, row.as_ptr().add(first)) };
            // The others are zeros, as the codes of the padding are, also where the factor is NaN.
            let w = _mm512_maskz_mul_ps(present, w, _mm512_set1_ps(factor));
            let w = _mm512_permutexvar_ps(order, w);
            let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(w, half);
            let zero = _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(!above, w, minus_half);
            *word = (_pdep_u32(above.into(), 0xaaaa_aaaa) | _pdep_u32(zero.into(), 0x5555_5555)) as i32;
        }
    }
}

/// The two in one loop, so that memory is read all the time, and `next` at four places, which memory serves faster than one.
///
/// # Safety
/// The slices are equally long. Codes that are streamed are aligned to 16 bytes.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn quantize_and_absmax(
    x: &[f32],
    factor: f32,
    range: [f32; 2],
    codes: &mut [i8],
    next: &[f32],
    streamed: bool,
) -> f32 {
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let magnitude = _mm512_set1_epi32(i32::MAX);
    let [low, high] = [_mm512_set1_ps(range[0]), _mm512_set1_ps(range[1])];
    let steps = x.len() / 64;
    let mut most = [_mm512_setzero_si512(); 4];
    for step in 0..steps {
        let mut rounded = [_mm512_setzero_si512(); 4];
        for i in 0..4 {
            let next = next.as_ptr().wrapping_add(16 * (i * steps + step));
            // What is read four steps later: nothing needs to be there.
            _mm_prefetch::<_MM_HINT_T0>(next.cast::<i8>().wrapping_add(256));
            // SAFETY: sixteen numbers of each are within the 64 · steps that `next` and `x` have.
            let (next, x) = unsafe {
                (_mm512_loadu_si512(next.cast()), _mm512_loadu_ps(x.as_ptr().add(64 * step + 16 * i)))
            };
            most[i] = _mm512_max_epi32(most[i], _mm512_and_si512(next, magnitude));
            // The second operand, if the first is NaN.
            let x = _mm512_max_ps(_mm512_mul_ps(x, _mm512_set1_ps(factor)), low);
            rounded[i] = _mm512_cvtps_epi32(_mm512_min_ps(x, high));
        }
        let [a, b, c, d] = rounded;
        let bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
        let bytes = _mm512_permutexvar_epi32(order, bytes);
        // SAFETY: 64 codes are within the 64 · steps that `codes` has; the caller vouches for the alignment.
        unsafe {
            let codes = codes.as_mut_ptr().add(64 * step);
            if streamed {
                let codes = codes.cast::<__m128i>();
                _mm_stream_si128(codes, _mm512_extracti32x4_epi32::<0>(bytes));
                _mm_stream_si128(codes.add(1), _mm512_extracti32x4_epi32::<1>(bytes));
                _mm_stream_si128(codes.add(2), _mm512_extracti32x4_epi32::<2>(bytes));
                _mm_stream_si128(codes.add(3), _mm512_extracti32x4_epi32::<3>(bytes));
            } else {
                _mm512_storeu_si512(codes.cast(), bytes);
            }
        }
    }
    if streamed {
        _mm_sfence(); // before other threads read them
    }
    scalar::quantize(&x[64 * steps..], factor, range, &mut codes[64 * steps..]);
    let [a, b, c, d] = most;
    let most = _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_max_epi32(a, b), _mm512_max_epi32(c, d)));
    let rest = scalar::absmax(&next[64 * steps..]).to_bits();
    f32::from_bits(rest.max(most as u32)) // a NaN has the larger bits
}

#[target_feature(enable = "avx512f")]
fn dot_f16(w: &[f16], x: &[f32]) -> f32 {
    let (w, w_rest) = w.as_chunks::<LANES>();
    let (x, x_rest) = x.as_chunks::<LANES>();
    let mut sums = [_mm512_setzero_ps(); LANES / 16];
    for (at, (w, x)) in w.iter().zip(x).enumerate() {
        if at % 2 == 0 {
            prefetch(w); // two lines hold two steps
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: 16 numbers from 16·i on are within the 32 of `w` and `x`.
            let (w, x) = unsafe {
                (_mm256_loadu_si256(w.as_ptr().add(16 * i).cast()), _mm512_loadu_ps(x.as_ptr().add(16 * i)))
            };
            *sum = _mm512_add_ps(*sum, _mm512_mul_ps(_mm512_cvtph_ps(w), x));
        }
    }
    let mut lanes = [0.0; LANES];
    for (lanes, sum) in lanes.as_chunks_mut::<16>().0.iter_mut().zip(sums) {
        // SAFETY: `lanes` has 16 × 4 bytes.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
    }
    scalar::add_products(&mut lanes, w_rest, x_rest);
    scalar::fold(&mut lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every remainder of 64 codes, aligned or not; ties, NaN and infinities; the last maximum that is read.
    #[test]
    fn quantizing_beside_a_maximum_is_the_two() {
        let Some(avx512) = Avx512::get() else { return };
        let special =
            [0.5, -0.5, 1.5, 126.5, -127.5, 300.0, -300.0, f32::NAN, f32::INFINITY, -0.0, 1e-30, 7.25];
        for len in 0..200 {
            let x: Vec<f32> = special.iter().copied().cycle().take(len).collect();
            let mut next: Vec<f32> = (0..len).map(|i| (i as f32 - 90.0) / 3.0).collect();
            for (at, largest) in [(len / 3, f32::NAN), (len.saturating_sub(1), -99.0)] {
                next.get_mut(at).into_iter().for_each(|next| *next = largest);
                for (range, factor) in
                    [([-128.0, 127.0], 1.0), ([-8.0, 7.0], 0.5), ([-128.0, 127.0], f32::NAN)]
                {
                    let mut expected = vec![0; len];
                    scalar::quantize(&x, factor, range, &mut expected);
                    for (streamed, next) in [(false, &next[..]), (true, &next), (true, &[])] {
                        let mut codes = vec![0; len + 1];
                        let codes = &mut codes[len % 2..][..len];
                        let found = avx512.quantize_and_absmax(&x, factor, range, codes, next, streamed);
                        assert_eq!(codes, expected, "{len}");
                        assert_eq!(found.to_bits(), scalar::absmax(next).to_bits(), "{len}");
                    }
                }
            }
        }
    }
}
