//! Activations to int8 by absmax per token.

use rayon::prelude::*;

use crate::error::check_length;
use crate::weight::EPS;
use crate::{CpuError, Kernel};

/// So many codes, and the four times as many bytes that they are made of, are more than most caches hold until they are read.
const STREAMED: usize = 1 << 26;

/// Tokens quantized by absmax: `x ≈ codes · scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedActivations {
    /// `[tokens, d_input]`
    pub codes: Vec<i8>,
    /// `[tokens]`
    pub scales: Vec<f32>,
}

impl Kernel {
    /// Quantizes each token: with `m = 2^(bits − 1) − 1`, `t = m / max(max|x|, 1e-5)`, `codes = clamp(round(x
    /// · t), −m − 1, m)` with ties to even, `scale = 1 / t`.
    ///
    /// A NaN or an infinity in a token makes its scale NaN or infinite, so that it shows in whatever uses the
    /// scale; the token's codes then mean nothing.
    ///
    /// # Shapes
    /// - `x`: `[tokens, d_input]`
    ///
    /// # Errors
    /// - [`CpuError::Bits`] if `bits` is not in 2..=8
    /// - [`CpuError::Length`] if `x` is not whole tokens
    ///
    /// # Source
    /// arXiv 2402.17764, section 2.
    pub fn quantize_activations(
        self,
        x: &[f32],
        d_input: usize,
        bits: u32,
    ) -> Result<QuantizedActivations, CpuError> {
        let mut quantized = QuantizedActivations {
            codes: vec![0; x.len()],
            scales: vec![0.0; x.len().checked_div(d_input).unwrap_or(0)],
        };
        self.quantize_activations_to(x, d_input, bits, &mut quantized)?;
        Ok(quantized)
    }

    /// The same into memory that is there, of as many tokens.
    ///
    /// # Errors
    /// Those of [`quantize_activations`](Self::quantize_activations), and [`CpuError::Length`] for the codes and scales.
    pub fn quantize_activations_to(
        self,
        x: &[f32],
        d_input: usize,
        bits: u32,
        QuantizedActivations { codes, scales }: &mut QuantizedActivations,
    ) -> Result<(), CpuError> {
        if !(2..=8).contains(&bits) {
            return Err(CpuError::Bits { found: bits });
        }
        let tokens = x.len().checked_div(d_input).unwrap_or(0);
        check_length("x", x.len(), tokens * d_input)?;
        check_length("codes", codes.len(), x.len())?;
        check_length("scales", scales.len(), tokens)?;
        let high = ((1 << (bits - 1)) - 1) as f32;
        let primitives = self.primitives();
        let chunk = d_input.max(1);
        let run = tokens.div_ceil(16 * rayon::current_num_threads()).max((1 << 14) / chunk + 1);
        let streamed = codes.len() >= STREAMED;
        codes
            .par_chunks_mut(run * chunk)
            .zip(x.par_chunks(run * chunk))
            .zip(scales.par_chunks_mut(run))
            .for_each(|((codes, x), scales)| {
                let mut absmax = primitives.absmax(&x[..chunk]);
                let next = x.chunks(chunk).skip(1).chain([&[][..]]);
                for (((codes, x), next), scale) in
                    codes.chunks_mut(chunk).zip(x.chunks(chunk)).zip(next).zip(scales)
                {
                    // Not `f32::max`, which would hide a NaN.
                    let factor = high / if absmax < EPS { EPS } else { absmax };
                    let range = [-high - 1.0, high];
                    absmax = primitives.quantize_and_absmax(x, factor, range, codes, next, streamed);
                    *scale = factor.recip();
                }
            });
        Ok(())
    }
}
