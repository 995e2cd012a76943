use burn::tensor::{DType, Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::{EPS, QuantError};

/// Width of an activation's code: 2 to 8 bits, two's complement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Bits(u8);

impl Bits {
    /// Eight bits, as b1.58 has it.
    pub const EIGHT: Self = Self(8);

    /// The code that the largest magnitude maps to: 127 for eight bits.
    pub fn max_code(self) -> i32 {
        (1 << (self.0 - 1)) - 1
    }

    /// The most negative code: −128 for eight bits.
    pub fn min_code(self) -> i32 {
        -(1 << (self.0 - 1))
    }
}

impl TryFrom<u8> for Bits {
    type Error = QuantError;

    fn try_from(bits: u8) -> Result<Self, QuantError> {
        if (2..=8).contains(&bits) { Ok(Self(bits)) } else { Err(QuantError::Bits { found: bits }) }
    }
}

impl From<Bits> for u8 {
    fn from(bits: Bits) -> Self {
        bits.0
    }
}

/// How a layer quantizes its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationQuant {
    /// Not at all: weights only.
    Off,
    /// One scale per token: the last axis shares it.
    PerToken(Bits),
    /// One scale for the whole tensor.
    PerTensor(Bits),
}

impl Default for ActivationQuant {
    fn default() -> Self {
        Self::PerToken(Bits::EIGHT)
    }
}

/// Integer activations and the scale that undoes them, `x ≈ codes · scale`.
#[derive(Debug, Clone)]
pub struct QuantizedActivations<const D: usize> {
    codes: Tensor<D>,
    scale: Tensor<D>,
}

impl<const D: usize> QuantizedActivations<D> {
    /// The integers, `[.., d_input]`.
    pub fn codes(&self) -> Tensor<D, Int> {
        self.codes.clone().int()
    }

    /// The dequantization step, f32: `[.., 1]` per token, all ones `[1, ..]` per tensor.
    pub fn scale(&self) -> Tensor<D> {
        self.scale.clone()
    }

    /// `codes · scale`, f32 `[.., d_input]`.
    pub fn dequantize(self) -> Tensor<D> {
        self.codes * self.scale
    }
}

/// Quantizes activations by absmax: `codes = round(x · t)`, `t = 127 / max(max|x|, 1e-5)`, `scale = 1/t`.
///
/// Multiplying by `t` and then rounding is part of the definition: dividing by the scale instead flips about two
/// codes in a million.
///
/// # Shapes
/// - `x`: `[.., d_input]`, any float dtype
/// - returns codes `[.., d_input]` within the bits' range and the f32 scale; `None` where quantization is off
///
/// # Source
/// arXiv 2402.17764, §2; docs/numerics.md#activations for eps, rounding and other widths.
pub fn quantize_activations<const D: usize>(
    x: Tensor<D>,
    quant: ActivationQuant,
) -> Option<QuantizedActivations<D>> {
    let x = x.cast(DType::F32);
    let (bits, absmax) = match quant {
        ActivationQuant::Off => return None,
        ActivationQuant::PerToken(bits) => (bits, x.clone().max_abs_dim(D - 1)),
        ActivationQuant::PerTensor(bits) => (bits, x.clone().max_abs().reshape([1; D])),
    };
    let t = absmax.full_like(bits.max_code()) / absmax.clamp_min(EPS);
    let codes = (x * t.clone()).round().clamp(bits.min_code(), bits.max_code());
    Some(QuantizedActivations { codes, scale: t.recip() })
}
