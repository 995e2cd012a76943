use std::fmt;
use std::str::FromStr;

use bitnet_format::{I2sLayout, ScaleHome};
use serde::{Deserialize, Serialize};

use super::packing::Packing;
use crate::WeightType;

/// How the weights of BitNet slots stand in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GgufType {
    /// TQ2_0 where all widths are multiples of 256, else Q2_0 where 64 divides some; F16 for a dense model.
    #[default]
    Auto,
    /// 1.69 bits a weight; runs on CPUs and Vulkan.
    Tq1_0,
    /// 2.06 bits a weight; runs on CPUs, Vulkan and Metal.
    Tq2_0,
    /// 2.25 bits a weight; runs on most GPUs, and slowly on x86.
    Q2_0,
    /// Codes times scale, 16 bits a weight.
    F16,
    /// Codes times scale, 32 bits a weight.
    F32,
    /// 2 bits a weight, for bitnet.cpp on x86.
    I2sX86,
    /// 2 bits a weight, for bitnet.cpp on ARM.
    I2sArm,
}

/// The names of [`GgufType`] in commands.
const NAMES: [(&str, GgufType); 8] = [
    ("auto", GgufType::Auto),
    ("tq1_0", GgufType::Tq1_0),
    ("tq2_0", GgufType::Tq2_0),
    ("q2_0", GgufType::Q2_0),
    ("f16", GgufType::F16),
    ("f32", GgufType::F32),
    ("i2_s-x86", GgufType::I2sX86),
    ("i2_s-arm", GgufType::I2sArm),
];

impl GgufType {
    /// The ternary type that is named, if one is.
    pub(super) fn packing(self) -> Option<Packing> {
        match self {
            Self::Tq1_0 => Some(Packing::Tq1_0),
            Self::Tq2_0 => Some(Packing::Tq2_0),
            Self::Q2_0 => Some(Packing::Q2_0),
            Self::I2sX86 => Some(Packing::I2S(I2sLayout::X86)),
            Self::I2sArm => Some(Packing::I2S(I2sLayout::Arm)),
            Self::Auto | Self::F16 | Self::F32 => None,
        }
    }
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, kind)| kind == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for GgufType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
        known.ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            format!("GGUF type `{name}`: expected one of {}", names.join(", "))
        })
    }
}

/// How a GGUF file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GgufOptions {
    /// The type of the BitNet slots' weights.
    pub weights: GgufType,
    /// Where their scales go. `None`: exactly, beside the tensor, where it has one scale and llama.cpp reads such a
    /// tensor, else into the blocks.
    pub scale: Option<ScaleHome>,
    /// The type of embedding and head; `None` is F32 in an F32 file and F16 in all others.
    pub embedding: Option<WeightType>,
    /// Whether to replace a file that stands under the name.
    pub overwrite: bool,
    /// Whether a model that is not at λ = 1 is exported all the same, as if it were.
    pub any_lambda: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for (name, kind) in NAMES {
            assert_eq!((name.parse(), kind.to_string()), (Ok(kind), name.to_owned()));
        }
        assert!("q4_0".parse::<GgufType>().unwrap_err().contains("tq2_0"));
    }
}
