//! How many bytes ternary weights take, in each form.

use crate::blocks::expect_blocks;
use crate::matrix::element_count;
use crate::{FormatError, Granularity, hf, i2_s, q2_0, tq1_0, tq2_0, two_bit};

/// A form in which ternary weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// One byte per code, and f16 or f32 scales.
    Int8(ScaleWidth),
    /// [`PackedTernary`](crate::PackedTernary): two bits per code, and f16 or f32 scales.
    TwoBit(ScaleWidth),
    /// Hugging Face `bitnet`, with its f32 `weight_scale`.
    Hf,
    /// GGUF TQ1_0.
    Tq1_0,
    /// GGUF TQ2_0.
    Tq2_0,
    /// GGUF Q2_0.
    Q2_0,
    /// bitnet.cpp's I2_S.
    I2S,
}

/// The type in which scales are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleWidth {
    /// Two bytes.
    F16,
    /// Four bytes.
    F32,
}

impl ScaleWidth {
    fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

impl Storage {
    /// The bytes of a matrix `[d_output, d_input]`, codes and scales.
    ///
    /// # Errors
    /// - [`FormatError::Shape`] if an axis is 0 or the product overflows.
    /// - [`FormatError::Group`] if the group size is no power of two or does not divide `d_input`.
    /// - [`FormatError::Divisible`], [`FormatError::Granularity`] if the format cannot hold the shape or the
    ///   scales.
    pub fn bytes(self, shape: [usize; 2], granularity: Granularity) -> Result<usize, FormatError> {
        let scales = granularity.scale_count(shape)?;
        match self {
            Self::Int8(_) | Self::TwoBit(_) => {}
            Self::Hf => granularity.expect_tensor(hf::FORMAT)?,
            Self::Tq1_0 => expect_blocks(tq1_0::FORMAT, granularity, tq1_0::BLOCK)?,
            Self::Tq2_0 => expect_blocks(tq2_0::FORMAT, granularity, tq2_0::BLOCK)?,
            Self::Q2_0 => expect_blocks(q2_0::FORMAT, granularity, q2_0::BLOCK)?,
            Self::I2S => granularity.expect_tensor(i2_s::FORMAT)?,
        }
        Ok(match self {
            Self::Int8(width) => element_count(shape)? + scales * width.bytes(),
            Self::TwoBit(width) => two_bit::packed_len(shape)? + scales * width.bytes(),
            Self::Hf => hf::packed_len(shape)? + ScaleWidth::F32.bytes(),
            Self::Tq1_0 => tq1_0::packed_len(shape)?,
            Self::Tq2_0 => tq2_0::packed_len(shape)?,
            Self::Q2_0 => q2_0::packed_len(shape)?,
            Self::I2S => i2_s::packed_len(shape)?,
        })
    }

    /// How many times smaller than the same weights in f32.
    ///
    /// # Errors
    /// As [`Storage::bytes`].
    pub fn ratio_to_f32(self, shape: [usize; 2], granularity: Granularity) -> Result<f64, FormatError> {
        let bytes = self.bytes(shape, granularity)?;
        Ok(element_count(shape)? as f64 * 4.0 / bytes as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::golden_trits;
    use crate::{I2sLayout, PackedTernary, ScaleHome};

    #[test]
    fn ratios_count_every_byte() {
        let ratio = |storage: Storage, granularity| storage.ratio_to_f32([1024, 512], granularity).unwrap();
        let tensor = Granularity::Tensor;
        assert!((ratio(Storage::Int8(ScaleWidth::F16), Granularity::Row) - 3.9844).abs() < 1e-4);
        assert!((ratio(Storage::TwoBit(ScaleWidth::F32), tensor) - 15.9995).abs() < 1e-4);
        assert!((ratio(Storage::TwoBit(ScaleWidth::F16), Granularity::Group(64)) - 14.2222).abs() < 1e-4);
        assert!((ratio(Storage::Hf, tensor) - 15.9995).abs() < 1e-4);
        assert!((ratio(Storage::Tq1_0, tensor) - 18.9630).abs() < 1e-4);
        assert!((ratio(Storage::Tq2_0, tensor) - 15.5152).abs() < 1e-4);
        assert!((ratio(Storage::Q2_0, tensor) - 14.2222).abs() < 1e-4);
        assert!((ratio(Storage::I2S, tensor) - 15.9961).abs() < 1e-4);
    }

    #[test]
    fn counts_are_the_packed_lengths() {
        let shape = [4, 256];
        let codes = golden_trits([1, 256]).into_codes().repeat(4);
        let matrix = crate::TernaryMatrix::per_tensor(codes, shape, crate::WeightScale::ONE).unwrap();
        let bytes = |storage: Storage| storage.bytes(shape, Granularity::Tensor).unwrap();
        assert_eq!(bytes(Storage::Int8(ScaleWidth::F32)), matrix.codes().len() + 4);
        assert_eq!(bytes(Storage::TwoBit(ScaleWidth::F32)), PackedTernary::pack(&matrix).bytes().len() + 4);
        assert_eq!(bytes(Storage::Hf), hf::pack(&matrix).unwrap().len() + 4);
        assert_eq!(bytes(Storage::Tq1_0), tq1_0::pack(&matrix, ScaleHome::Block).unwrap().len());
        assert_eq!(bytes(Storage::Tq2_0), tq2_0::pack(&matrix, ScaleHome::Block).unwrap().len());
        assert_eq!(bytes(Storage::Q2_0), q2_0::pack(&matrix, ScaleHome::Block).unwrap().len());
        assert_eq!(bytes(Storage::I2S), i2_s::pack(&matrix, I2sLayout::Arm).unwrap().len());
        assert!(matches!(
            Storage::Tq1_0.bytes([4, 64], Granularity::Tensor),
            Err(FormatError::Divisible { .. })
        ));
        for storage in [Storage::Hf, Storage::I2S, Storage::Tq1_0, Storage::Tq2_0] {
            let found = storage.bytes(shape, Granularity::Group(64));
            assert!(matches!(found, Err(FormatError::Granularity { .. })), "{storage:?}");
        }
        assert!(Storage::Q2_0.bytes(shape, Granularity::Group(64)).is_ok());
    }
}
