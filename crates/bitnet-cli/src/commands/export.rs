//! `bitnet export`

use std::collections::BTreeMap;
use std::path::PathBuf;

use bitnet_convert::{
    Checkpoint, GgufOptions, GgufReport, GgufType, HfFormat, HfOptions, LoadOptions, Tensors, WeightType,
    export_gguf, export_gguf_adapter, export_hf, export_peft,
};
use bitnet_format::ScaleHome;
use clap::{Args, ValueEnum};

use crate::bar::Bar;
use crate::error::CliError;
use crate::flags::Global;
use crate::model::load;
use crate::output::{bytes, print_line};
use crate::source::resolve;
use crate::target::check_replaceable;

const EXAMPLES: &str = "\
Examples:
  bitnet export smollm2-trained smollm2-packed --format hf-bitlinear
  bitnet export smollm2-trained smollm2.gguf --format gguf
  bitnet export smollm2-trained smollm2.gguf --format gguf-tq1_0 --scale block --force
  bitnet export smollm2-lrc smollm2.gguf --format gguf --part base
  bitnet export smollm2-lrc smollm2-lora.gguf --format gguf --part adapter
  bitnet export smollm2-trained smollm2-i2_s.gguf --format i2_s-x86";

/// Write a trained BitNet model for another engine
///
/// The ternary codes of each BitNet layer are packed, tensor by tensor, so that a model of any
/// size needs little memory. A model that the format cannot hold, or that its engine would compute
/// as another one, is refused with the reason. DST appears whole or not at all.
///
/// The formats for llama.cpp are one GGUF file with the tokenizer in it. `gguf` chooses the type by
/// the widths: TQ2_0 where 256 divides all of them, else Q2_0 where 64 divides some. A tensor whose
/// width a type cannot hold becomes F16, and is named. F16 and F32 files also take dense models.
///
/// A model with low-rank corrections or adapters is two models elsewhere, written one by one:
/// --part base is the model without them, --part adapter is them alone, as a LoRA. That is a GGUF
/// adapter for llama.cpp, in F32, or, with a format of transformers, a folder for PEFT. Give both
/// the same flags.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = EXAMPLES)]
pub(crate) struct Flags {
    /// The BitNet model: a folder, a GGUF file, or a hub id
    src: String,

    /// The folder (hf-*) or file (all others) to write
    dst: PathBuf,

    /// What to write
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Format,

    /// Where llama.cpp finds the scales: beside the tensor, exactly, or in its blocks, as f16
    ///
    /// Beside the tensor unless it has many scales or the architecture reads none there.
    #[arg(long, value_enum, value_name = "WHERE", verbatim_doc_comment)]
    scale: Option<Scale>,

    /// The type of embedding and head in a GGUF file [default: f32 in an F32 file, else f16]
    #[arg(long, value_enum, value_name = "TYPE")]
    head: Option<Float>,

    /// The type of all tensors that stay float in a folder [default: that of the source]
    #[arg(long, value_enum, value_name = "TYPE")]
    floats: Option<Float>,

    /// What to write of a model with low-rank corrections or adapters
    #[arg(long, value_enum, value_name = "PART", default_value = "whole")]
    part: Part,

    /// Replace the model that stands under DST
    #[arg(long)]
    force: bool,
}

/// The formats by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// transformers: packed, linear_class bitlinear, the scale divides
    HfBitlinear,
    /// transformers: packed, linear_class autobitlinear, the scale multiplies
    HfAutobitlinear,
    /// transformers: latent weights, quantized as they are used, to train on
    HfOnline,
    /// llama.cpp: the type chosen by the widths
    Gguf,
    /// llama.cpp: 1.69 bits a weight, on CPUs and Vulkan
    #[value(name = "gguf-tq1_0")]
    GgufTq1_0,
    /// llama.cpp: 2.06 bits a weight, on CPUs, Vulkan and Metal
    #[value(name = "gguf-tq2_0")]
    GgufTq2_0,
    /// llama.cpp: 2.25 bits a weight, on most GPUs, slow on x86
    #[value(name = "gguf-q2_0")]
    GgufQ2_0,
    /// llama.cpp: codes times scale in 16 bits
    GgufF16,
    /// llama.cpp: codes times scale in 32 bits
    GgufF32,
    /// bitnet.cpp on x86: 2 bits a weight
    #[value(name = "i2_s-x86")]
    I2sX86,
    /// bitnet.cpp on ARM: 2 bits a weight
    #[value(name = "i2_s-arm")]
    I2sArm,
}

/// What is written of a model with low-rank maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Everything: refused for a model that has some
    Whole,
    /// The model without them
    Base,
    /// Them alone
    Adapter,
}

/// What a format is to the library.
enum Kind {
    Hf(HfFormat),
    Gguf(GgufType),
}

impl Format {
    fn kind(self) -> Kind {
        match self {
            Self::HfBitlinear => Kind::Hf(HfFormat::BitLinear),
            Self::HfAutobitlinear => Kind::Hf(HfFormat::AutoBitLinear),
            Self::HfOnline => Kind::Hf(HfFormat::Online),
            Self::Gguf => Kind::Gguf(GgufType::Auto),
            Self::GgufTq1_0 => Kind::Gguf(GgufType::Tq1_0),
            Self::GgufTq2_0 => Kind::Gguf(GgufType::Tq2_0),
            Self::GgufQ2_0 => Kind::Gguf(GgufType::Q2_0),
            Self::GgufF16 => Kind::Gguf(GgufType::F16),
            Self::GgufF32 => Kind::Gguf(GgufType::F32),
            Self::I2sX86 => Kind::Gguf(GgufType::I2sX86),
            Self::I2sArm => Kind::Gguf(GgufType::I2sArm),
        }
    }
}

/// Where scales go.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scale {
    /// One exact f32 beside the tensor
    Tensor,
    /// An f16 in each block
    Block,
}

/// Types of floats.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Float {
    F32,
    F16,
    Bf16,
}

impl From<Float> for WeightType {
    fn from(float: Float) -> Self {
        match float {
            Float::F32 => Self::F32,
            Float::F16 => Self::F16,
            Float::Bf16 => Self::BF16,
        }
    }
}

pub(crate) fn run(flags: &Flags, global: &Global) -> Result<(), CliError> {
    let kind = flags.format.kind();
    check_flags(flags, &kind)?;
    let src = resolve(&flags.src, global.quiet)?;
    if flags.force {
        check_replaceable(&src, &flags.dst)?;
    }
    let bare: Checkpoint;
    let tensors = match flags.part {
        Part::Whole => Tensors::open(&src, &LoadOptions::default())?,
        Part::Base => {
            bare = load(&flags.src, global)?.1.without_adapters();
            Tensors::of(&bare)
        }
        Part::Adapter => return export_adapter(flags, &kind, global),
    };
    let mut bar = Bar::new("exporting", global.quiet);
    let progress = |done, total| bar.set(done, total);
    let report = match kind {
        Kind::Hf(format) => {
            let options = HfOptions {
                weight_type: flags.floats.map(WeightType::from),
                overwrite: flags.force,
                ..HfOptions::new(format)
            };
            export_hf(&tensors, &flags.dst, &options, progress)?;
            None
        }
        Kind::Gguf(weights) => {
            Some(export_gguf(&tensors, &flags.dst, &gguf_options(flags, weights), progress)?)
        }
    };
    drop(bar);
    if global.quiet {
        return Ok(());
    }
    if let Some(report) = &report {
        print_summary(report)?;
    }
    Ok(print_line(&format!("{} is written", flags.dst.display()))?)
}

/// Writes the low-rank maps of a model alone.
fn export_adapter(flags: &Flags, kind: &Kind, global: &Global) -> Result<(), CliError> {
    let (_, checkpoint) = load(&flags.src, global)?;
    let n_slots = match *kind {
        Kind::Hf(_) => export_peft(&checkpoint, &flags.dst, flags.force)?.len(),
        Kind::Gguf(weights) => {
            export_gguf_adapter(&checkpoint, &flags.dst, &gguf_options(flags, weights))?.tensors.len() / 2
        }
    };
    if global.quiet {
        return Ok(());
    }
    Ok(print_line(&format!("{} is written, a LoRA of {n_slots} projections", flags.dst.display()))?)
}

fn gguf_options(flags: &Flags, weights: GgufType) -> GgufOptions {
    GgufOptions {
        weights,
        scale: flags.scale.map(|scale| match scale {
            Scale::Tensor => ScaleHome::Tensor,
            Scale::Block => ScaleHome::Block,
        }),
        embedding: flags.head.map(WeightType::from),
        overwrite: flags.force,
        ..GgufOptions::default()
    }
}

/// Refuses flags of the other kind of format: they would do nothing.
fn check_flags(flags: &Flags, kind: &Kind) -> Result<(), CliError> {
    let unused = match kind {
        Kind::Hf(_) => [("--scale", flags.scale.is_some()), ("--head", flags.head.is_some())],
        Kind::Gguf(_) => [("--floats", flags.floats.is_some()), ("--floats", false)],
    };
    match unused.into_iter().find(|(_, given)| *given) {
        Some((flag, _)) => {
            Err(CliError::Usage { reason: format!("{flag} says nothing about this --format") })
        }
        None => Ok(()),
    }
}

fn print_summary(report: &GgufReport) -> Result<(), CliError> {
    print_line(&format!("architecture {}, weights {}", report.architecture, report.weights))?;
    let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for tensor in &report.tensors {
        let (number, size) = kinds.entry(&tensor.kind).or_default();
        *number += 1;
        *size += tensor.bytes;
    }
    for (kind, (number, size)) in kinds {
        print_line(&format!("{number:>6} tensors {kind}, {}", bytes(size as u64)))?;
    }
    for tensor in &report.tensors {
        if let Some(because) = &tensor.because {
            print_line(&format!("{} is {}: {because}", tensor.name, tensor.kind))?;
        }
    }
    for note in &report.notes {
        eprintln!("note: {note}");
    }
    Ok(())
}
