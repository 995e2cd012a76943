//! The ternary types of GGUF files, and what this project notes beside them.

use bitnet_format::gguf::TensorType;
use bitnet_format::{
    FormatError, Granularity, I2sLayout, ScaleHome, TernaryMatrix, i2_s, q2_0, tq1_0, tq2_0,
};

/// The key of this project's own note on how many weights share a scale: blocks and floats do not show it.
pub(super) const GRANULARITY_KEY: &str = "bitnet_arch.granularity";
/// The key of this project's own note on the order of I2_S digits, which the file does not show.
pub(super) const I2S_KEY: &str = "bitnet_arch.i2_s";

/// A ternary type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Tq1_0,
    Tq2_0,
    Q2_0,
    I2S(I2sLayout),
}

impl Packing {
    /// The packing of a type; `layout` is that of I2_S.
    pub(super) fn of(kind: TensorType, layout: I2sLayout) -> Option<Self> {
        match kind {
            TensorType::Tq1_0 => Some(Self::Tq1_0),
            TensorType::Tq2_0 => Some(Self::Tq2_0),
            TensorType::Q2_0 => Some(Self::Q2_0),
            TensorType::I2S => Some(Self::I2S(layout)),
            _ => None,
        }
    }

    pub(super) fn kind(self) -> TensorType {
        match self {
            Self::Tq1_0 => TensorType::Tq1_0,
            Self::Tq2_0 => TensorType::Tq2_0,
            Self::Q2_0 => TensorType::Q2_0,
            Self::I2S(_) => TensorType::I2S,
        }
    }

    /// Weights per block.
    pub(super) fn block(self) -> usize {
        self.kind().block().0
    }

    /// `general.file_type` of a file of mostly this type.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::Tq1_0 => tq1_0::FILE_TYPE,
            Self::Tq2_0 => tq2_0::FILE_TYPE,
            Self::Q2_0 => q2_0::FILE_TYPE,
            Self::I2S(_) => i2_s::FILE_TYPE,
        }
    }

    pub(super) fn pack(self, matrix: &TernaryMatrix, home: ScaleHome) -> Result<Vec<u8>, FormatError> {
        match self {
            Self::Tq1_0 => tq1_0::pack(matrix, home),
            Self::Tq2_0 => tq2_0::pack(matrix, home),
            Self::Q2_0 => q2_0::pack(matrix, home),
            Self::I2S(layout) => i2_s::pack(matrix, layout),
        }
    }

    pub(super) fn unpack(self, bytes: &[u8], shape: [usize; 2]) -> Result<TernaryMatrix, FormatError> {
        match self {
            Self::Tq1_0 => tq1_0::unpack(bytes, shape),
            Self::Tq2_0 => tq2_0::unpack(bytes, shape),
            Self::Q2_0 => q2_0::unpack(bytes, shape),
            Self::I2S(layout) => i2_s::unpack(bytes, shape, layout),
        }
    }
}

/// The value of [`GRANULARITY_KEY`].
pub(super) fn granularity_name(granularity: Granularity) -> String {
    match granularity {
        Granularity::Tensor => "tensor".into(),
        Granularity::Row => "row".into(),
        Granularity::Group(group) => format!("group {group}"),
    }
}

/// The granularity of a value of [`GRANULARITY_KEY`].
pub(super) fn granularity_named(name: &str) -> Option<Granularity> {
    match name {
        "tensor" => Some(Granularity::Tensor),
        "row" => Some(Granularity::Row),
        _ => name.strip_prefix("group ")?.parse().ok().map(Granularity::Group),
    }
}

/// The value of [`I2S_KEY`].
pub(super) fn i2_s_name(layout: I2sLayout) -> &'static str {
    match layout {
        I2sLayout::X86 => "x86",
        I2sLayout::Arm => "arm",
    }
}

/// The order of digits of a value of [`I2S_KEY`].
pub(super) fn i2_s_named(name: &str) -> Option<I2sLayout> {
    [I2sLayout::X86, I2sLayout::Arm].into_iter().find(|layout| i2_s_name(*layout) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_read_back() {
        for granularity in [Granularity::Tensor, Granularity::Row, Granularity::Group(128)] {
            assert_eq!(granularity_named(&granularity_name(granularity)), Some(granularity));
        }
        for layout in [I2sLayout::X86, I2sLayout::Arm] {
            assert_eq!(i2_s_named(i2_s_name(layout)), Some(layout));
            for packing in [Packing::Tq1_0, Packing::Tq2_0, Packing::Q2_0, Packing::I2S(layout)] {
                assert_eq!(Packing::of(packing.kind(), layout), Some(packing));
            }
        }
        assert_eq!((granularity_named("group"), i2_s_named("mips")), (None, None));
        assert_eq!(Packing::of(TensorType::F16, I2sLayout::X86), None);
    }
}
