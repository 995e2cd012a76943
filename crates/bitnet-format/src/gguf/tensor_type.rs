//! The tensor types of ggml and their sizes.

use std::fmt;

/// Declares the types with id, weights per block and bytes per block.
macro_rules! tensor_types {
    ($($(#[$doc:meta])* $variant:ident $name:literal $id:literal $block:literal $bytes:literal,)*) => {
        /// The type of a tensor's data. Ids and sizes are ggml's; I2_S is bitnet.cpp's.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum TensorType {
            $($(#[$doc])* $variant,)*
        }

        impl TensorType {
            /// Every type, in order of id.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The number that names the type in a file.
            pub fn id(self) -> u32 {
                match self { $(Self::$variant => $id,)* }
            }

            /// The type's usual name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Weights per block and bytes per block. A row consists of whole blocks.
            pub fn block(self) -> (usize, usize) {
                match self { $(Self::$variant => ($block, $bytes),)* }
            }
        }
    };
}

tensor_types! {
    /// 32-bit float.
    F32 "F32" 0 1 4,
    /// 16-bit float.
    F16 "F16" 1 1 2,
    /// 4 bits and an f16 scale per 32.
    Q4_0 "Q4_0" 2 32 18,
    /// 4 bits, an f16 scale and minimum per 32.
    Q4_1 "Q4_1" 3 32 20,
    /// 5 bits and an f16 scale per 32.
    Q5_0 "Q5_0" 6 32 22,
    /// 5 bits, an f16 scale and minimum per 32.
    Q5_1 "Q5_1" 7 32 24,
    /// 8 bits and an f16 scale per 32.
    Q8_0 "Q8_0" 8 32 34,
    /// 8 bits, two scales per 32.
    Q8_1 "Q8_1" 9 32 36,
    /// 2-bit k-quant.
    Q2K "Q2_K" 10 256 84,
    /// 3-bit k-quant.
    Q3K "Q3_K" 11 256 110,
    /// 4-bit k-quant.
    Q4K "Q4_K" 12 256 144,
    /// 5-bit k-quant.
    Q5K "Q5_K" 13 256 176,
    /// 6-bit k-quant.
    Q6K "Q6_K" 14 256 210,
    /// 8-bit k-quant.
    Q8K "Q8_K" 15 256 292,
    /// 2.06-bit i-quant.
    Iq2Xxs "IQ2_XXS" 16 256 66,
    /// 2.31-bit i-quant.
    Iq2Xs "IQ2_XS" 17 256 74,
    /// 3.06-bit i-quant.
    Iq3Xxs "IQ3_XXS" 18 256 98,
    /// 1.56-bit i-quant.
    Iq1S "IQ1_S" 19 256 50,
    /// 4-bit non-linear i-quant.
    Iq4Nl "IQ4_NL" 20 32 18,
    /// 3.44-bit i-quant.
    Iq3S "IQ3_S" 21 256 110,
    /// 2.56-bit i-quant.
    Iq2S "IQ2_S" 22 256 82,
    /// 4.25-bit i-quant.
    Iq4Xs "IQ4_XS" 23 256 136,
    /// 8-bit integer.
    I8 "I8" 24 1 1,
    /// 16-bit integer.
    I16 "I16" 25 1 2,
    /// 32-bit integer.
    I32 "I32" 26 1 4,
    /// 64-bit integer.
    I64 "I64" 27 1 8,
    /// 64-bit float.
    F64 "F64" 28 1 8,
    /// 1.75-bit i-quant.
    Iq1M "IQ1_M" 29 256 56,
    /// Brain float.
    Bf16 "BF16" 30 1 2,
    /// Ternary, see [`tq1_0`](crate::tq1_0).
    Tq1_0 "TQ1_0" 34 256 54,
    /// Ternary, see [`tq2_0`](crate::tq2_0).
    Tq2_0 "TQ2_0" 35 256 66,
    /// Ternary, see [`i2_s`](crate::i2_s): bitnet.cpp only, and 32 bytes more than its blocks.
    I2S "I2_S" 36 128 32,
    /// 4-bit float, shared exponent per 32.
    Mxfp4 "MXFP4" 39 32 17,
    /// 4-bit float, scale per 16.
    Nvfp4 "NVFP4" 40 64 36,
    /// 1 bit and an f16 scale per 128.
    Q1_0 "Q1_0" 41 128 18,
    /// 2 bits and an f16 scale per 64, see [`q2_0`](crate::q2_0).
    Q2_0 "Q2_0" 42 64 18,
}

impl TensorType {
    /// The type with this id, if there is one.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.id() == id)
    }

    /// The number of bytes of a tensor of this shape, row-major: `None` if the last axis does not consist of
    /// whole blocks, or a number overflows. A shape without axes is one number.
    pub fn data_len(self, shape: &[usize]) -> Option<usize> {
        let (block, bytes) = self.block();
        let elements = shape.iter().try_fold(1usize, |product, &axis| product.checked_mul(axis))?;
        let tail = if self == Self::I2S { size_of::<crate::i2_s::I2sTail>() } else { 0 };
        if !shape.last().unwrap_or(&1).is_multiple_of(block) {
            return None;
        }
        (elements / block).checked_mul(bytes)?.checked_add(tail)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{i2_s, q2_0, tq1_0, tq2_0};

    #[test]
    fn ids_name_types() {
        for &kind in TensorType::ALL {
            assert_eq!(TensorType::from_id(kind.id()), Some(kind), "{kind}");
        }
        assert!(TensorType::ALL.is_sorted_by(|a, b| a.id() < b.id()));
        for unknown in [4, 5, 31, 37, 43, u32::MAX] {
            assert_eq!(TensorType::from_id(unknown), None);
        }
    }

    #[test]
    fn sizes_are_the_packers_sizes() {
        for shape in [[1, 256], [6, 512]] {
            let len = |kind: TensorType| kind.data_len(&shape).unwrap();
            assert_eq!(len(TensorType::Tq1_0), tq1_0::packed_len(shape).unwrap());
            assert_eq!(len(TensorType::Tq2_0), tq2_0::packed_len(shape).unwrap());
            assert_eq!(len(TensorType::Q2_0), q2_0::packed_len(shape).unwrap());
            assert_eq!(len(TensorType::I2S), i2_s::packed_len(shape).unwrap());
        }
        assert_eq!(TensorType::F16.data_len(&[3, 5]), Some(30));
        assert_eq!(TensorType::F32.data_len(&[]), Some(4));
        assert_eq!(TensorType::Q8_0.data_len(&[2, 48]), None);
        assert_eq!(TensorType::Q8_0.data_len(&[]), None);
        assert_eq!(TensorType::F64.data_len(&[usize::MAX / 4]), None);
        assert_eq!(TensorType::I8.data_len(&[usize::MAX, 2]), None);
    }
}
