//! Float types of checkpoints, as bytes.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

/// A type that weights are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Float {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Float {
    /// The float type of a tensor, where it is one that linear weights have.
    pub(crate) fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    pub(crate) fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// The name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// The nearest value of this type.
    pub fn round(self, value: f32) -> f32 {
        self.value(self.bits(value))
    }

    /// Bytes of one value.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Replaces `values` by those of little-endian bytes, widened to f32.
    pub(crate) fn decode(self, bytes: &[u8], values: &mut Vec<f32>) {
        values.clear();
        let halves = || bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
        match self {
            Self::F32 => values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
            Self::Bf16 => values.extend(halves().map(|bits| f32::from_bits(u32::from(bits) << 16))),
            Self::F16 => {
                let bits: Vec<u16> = halves().collect();
                values.resize(bits.len(), 0.0);
                bits.reinterpret_cast::<f16>().convert_to_f32_slice(values);
            }
        }
    }

    /// The bits of a value, rounded to nearest even, in the low bytes.
    pub(crate) fn bits(self, value: f32) -> u32 {
        match self {
            Self::F32 => value.to_bits(),
            Self::F16 => f16::from_f32(value).to_bits().into(),
            Self::Bf16 => bf16::from_f32(value).to_bits().into(),
        }
    }

    /// The value of bits.
    pub(crate) fn value(self, bits: u32) -> f32 {
        match self {
            Self::F32 => f32::from_bits(bits),
            Self::F16 => f16::from_bits(bits as u16).to_f32(),
            Self::Bf16 => bf16::from_bits(bits as u16).to_f32(),
        }
    }

    /// Appends `codes · scale` as bytes: plus or minus the scale's bits, or zero.
    pub(crate) fn encode_codes(self, codes: &[i8], scale: f32, bytes: &mut Vec<u8>) {
        let (bits, start) = (self.bits(scale), bytes.len());
        bytes.resize(start + codes.len() * self.bytes(), 0);
        let bytes = &mut bytes[start..];
        match self {
            Self::F32 => {
                for (bytes, &code) in bytes.as_chunks_mut().0.iter_mut().zip(codes) {
                    let value = bits | (i32::from(code) as u32 & 1 << 31);
                    *bytes = (if code == 0 { 0 } else { value }).to_le_bytes();
                }
            }
            Self::F16 | Self::Bf16 => {
                for (bytes, &code) in bytes.as_chunks_mut().0.iter_mut().zip(codes) {
                    let value = bits as u16 | (i16::from(code) as u16 & 1 << 15);
                    *bytes = (if code == 0 { 0 } else { value }).to_le_bytes();
                }
            }
        }
    }

    /// Replaces `codes` by the signs of values.
    pub(crate) fn signs(self, bytes: &[u8], values: &mut Vec<f32>, codes: &mut Vec<i8>) {
        self.decode(bytes, values);
        codes.clear();
        codes.extend(values.iter().map(|value| i8::from(*value > 0.0) - i8::from(*value < 0.0)));
    }

    /// The bytes of the same values in another type; the first one that is finite and does not stay so.
    pub(crate) fn convert(self, bytes: &[u8], to: Self) -> Result<Vec<u8>, f32> {
        let mut values = Vec::new();
        self.decode(bytes, &mut values);
        let mut out = Vec::with_capacity(values.len() * to.bytes());
        for value in values {
            let bits = to.bits(value);
            if value.is_finite() && !to.value(bits).is_finite() {
                return Err(value);
            }
            out.extend_from_slice(&bits.to_le_bytes()[..to.bytes()]);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_values_survive_every_type() {
        for float in [Float::F32, Float::F16, Float::Bf16] {
            let mut bytes = Vec::new();
            float.encode_codes(&[1, -1, 0, 0, -1], 0.37, &mut bytes);
            assert_eq!(bytes.len(), 5 * float.bytes());
            let (mut values, mut codes) = (Vec::new(), Vec::new());
            float.signs(&bytes, &mut values, &mut codes);
            assert_eq!(codes, [1, -1, 0, 0, -1]);
            let scale = float.value(float.bits(0.37));
            assert!((scale - 0.37).abs() < 1e-3);
            assert_eq!(values, [scale, -scale, 0.0, 0.0, -scale]);
            assert_eq!(float.convert(&bytes, float), Ok(bytes));
            assert_eq!(Float::of(float.dtype()), Some(float));
        }
    }

    #[test]
    fn what_f16_cannot_hold_is_found() {
        let bytes: Vec<u8> = [1.0, 7e4f32].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(Float::F32.convert(&bytes, Float::F16), Err(7e4));
        assert!(Float::F32.convert(&bytes, Float::Bf16).is_ok());
        let infinite: Vec<u8> = f32::NEG_INFINITY.to_le_bytes().to_vec();
        assert_eq!(Float::F32.convert(&infinite, Float::F16), Ok(vec![0, 0xfc]), "masks may be infinite");
    }
}
