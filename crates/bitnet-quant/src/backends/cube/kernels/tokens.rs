//! Activations by absmax: codes, values and the blend of the two.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

use super::{EPS_BITS, MAGNITUDE, UNITS, code};

/// The largest of the units' values, for all of them. Every unit of the cube must call it.
#[cube]
fn cube_max(value: u32) -> u32 {
    let mut shared = Shared::new_slice(UNITS);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    let mut half = (UNITS / 2).runtime();
    while half > 0 {
        if unit < half {
            shared[unit] = max(shared[unit], shared[unit + half]);
        }
        sync_cube();
        half /= 2;
    }
    shared[0]
}

/// `t = high / max(max|x|, eps)` of one token. Every unit of the cube must call it.
#[cube]
fn token_factor<X: Float>(x: &[X], high: f32) -> f32 {
    let mut absmax = EPS_BITS.runtime();
    let mut at = UNIT_POS as usize;
    while at < x.len() {
        absmax = max(absmax, u32::reinterpret(f32::cast_from(x[at])) & MAGNITUDE);
        at += UNITS;
    }
    high / f32::reinterpret(cube_max(absmax))
}

/// Quantizes one token per cube: absmax, codes and scale; the second pass over the token finds it in the cache.
///
/// Four codes are a word, the first in its lowest byte. Each segment is padded with zeros to `segment_words`, so that
/// its words and those of a packed weight have the same inputs.
///
/// # Shapes
/// - `x`: `[tokens, d_input]`
/// - `codes`: `[tokens, segments · segment_words]`, `scales`: `[tokens]`
#[cube(launch, address_type = "dynamic")]
pub(in super::super) fn quantize<X: Float>(
    x: &[X],
    codes: &mut [u32],
    scales: &mut [f32],
    tokens: usize,
    d_input: usize,
    segment: usize,
    segment_words: usize,
    high: f32,
    #[define(X)] _type: ElemType,
) {
    let token = CUBE_POS;
    if token >= tokens {
        terminate!();
    }
    let x = &x[token * d_input..(token + 1) * d_input];
    let t = token_factor(x, high);
    if UNIT_POS == 0 {
        scales[token] = f32::recip(t);
    }
    let words = d_input / segment * segment_words;
    let mut at = UNIT_POS as usize;
    while at < words {
        let start = at % segment_words * 4;
        let input = at / segment_words * segment + start;
        let mut word = 0u32;
        #[unroll]
        for byte in 0..4usize {
            if start + byte < segment {
                let code = i32::cast_from(code(f32::cast_from(x[input + byte]), t, -high - 1.0, high));
                word |= (u32::reinterpret(code) & 0xff) << (8 * byte as u32);
            }
        }
        codes[token * words + at] = word;
        at += UNITS;
    }
}

/// `x + λ·(Qa(x) − x)`, one token per cube; at λ = 1, which `quantized` says, exactly `Qa(x)`.
///
/// # Shapes
/// - `x`, `y`: `[tokens, d_input]`
#[cube(launch, address_type = "dynamic")]
pub(in super::super) fn blend<X: Float>(
    x: &[X],
    y: &mut [X],
    tokens: usize,
    d_input: usize,
    high: f32,
    lambda: f32,
    #[comptime] quantized: bool,
    #[define(X)] _type: ElemType,
) {
    let token = CUBE_POS;
    if token >= tokens {
        terminate!();
    }
    let x = &x[token * d_input..(token + 1) * d_input];
    let t = token_factor(x, high);
    let scale = f32::recip(t);
    let mut at = UNIT_POS as usize;
    while at < d_input {
        let x = f32::cast_from(x[at]);
        let value = code(x, t, -high - 1.0, high) * scale;
        y[token * d_input + at] = X::cast_from(if quantized { value } else { x + (value - x) * lambda });
        at += UNITS;
    }
}

/// The values of [`quantize`]'s codes, one unit each: `codes · scale`, or without `scaled` the codes alone.
///
/// # Shapes
/// - `codes`: `[tokens, segments · segment_words]`, `scales`: `[tokens]`
/// - `y`: `[tokens, d_input]`
#[cube(launch, address_type = "dynamic")]
pub(in super::super) fn dequantize<Y: Float>(
    codes: &[u32],
    scales: &[f32],
    y: &mut [Y],
    tokens: usize,
    d_input: usize,
    segment: usize,
    segment_words: usize,
    #[comptime] scaled: bool,
    #[define(Y)] _type: ElemType,
) {
    let (token, input) = (ABSOLUTE_POS / d_input, ABSOLUTE_POS % d_input);
    if token >= tokens {
        terminate!();
    }
    let at = input / segment * segment_words + input % segment / 4;
    let word = codes[token * (d_input / segment * segment_words) + at];
    let byte = word >> (8 * (input % segment % 4) as u32) & 0xff;
    // Eight bits with a sign: flipping it and subtracting its weight extends it.
    let code = f32::cast_from(i32::cast_from(byte ^ 0x80) - 0x80);
    y[ABSOLUTE_POS] = Y::cast_from(if scaled { code * scales[token] } else { code });
}
