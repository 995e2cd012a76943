//! `bitnet inspect`

use bitnet_convert::{Architecture, Container, Inspection, ScaleReport, inspect};
use bitnet_format::HfScale;
use clap::Args;

use crate::error::CliError;
use crate::flags::Global;
use crate::output::{bytes, grouped, print, print_json};
use crate::source::resolve;

const EXAMPLES: &str = "\
Examples:
  bitnet inspect HuggingFaceTB/SmolLM2-135M
  bitnet inspect smollm2.gguf
  bitnet inspect smollm2-packed --tensors
  bitnet inspect smollm2-packed --json | jq '.totals'";

/// Problems that are printed one by one.
const MAX_PROBLEMS: usize = 20;

/// Say what is in a model: architecture, sizes, what is quantized how, and what is wrong
///
/// Reads headers only, so it is quick at any size. Weights are
///
///   float      used as they are
///   latent     floats that a BitNet layer ternarizes whenever it runs
///   ternary    packed codes in {-1, 0, 1}: Hugging Face's U8 with a weight_scale, or TQ1_0,
///              TQ2_0, Q2_0 and I2_S in GGUF files
///   quantized  in another way, as Q4_K in a GGUF file
///
/// The scale beside packed codes multiplies or divides them, as config.json's linear_class says.
/// Where the size of the scales speaks against it, that is one of the problems found: the codes
/// would be read with a scale that is wrong by orders of magnitude.
///
/// Problems do not change the exit status, only a path that cannot be read does.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = EXAMPLES)]
pub(crate) struct Flags {
    /// A folder, a safetensors file, a GGUF file, or a hub id
    src: String,

    /// List every tensor too
    #[arg(long)]
    tensors: bool,

    /// Print everything as JSON
    #[arg(long, conflicts_with = "tensors")]
    json: bool,
}

pub(crate) fn run(flags: &Flags, global: &Global) -> Result<(), CliError> {
    let found = inspect(resolve(&flags.src, global.quiet)?)?;
    if flags.json {
        return Ok(print_json(&found)?);
    }
    let mut text = head(&found);
    text += &totals(&found);
    if flags.tensors {
        text += "\ntensors\n";
        for tensor in &found.tensors {
            let size = bytes(tensor.bytes);
            text += &format!("  {} {:?} {} {size}\n", tensor.name, tensor.shape, tensor.dtype);
        }
    }
    Ok(print(&(text + &problems(&found)))?)
}

fn head(found: &Inspection) -> String {
    let kind = match found.container {
        Container::Folder => "folder",
        Container::Safetensors => "safetensors file",
        Container::Gguf => "GGUF file",
    };
    let mut text = format!("{} ({kind})\n", found.path.display());
    let mut line = |label: &str, value: &str| text += &format!("  {label:<14}{value}\n");
    match &found.architecture {
        Some(architecture) => {
            line("architecture", &architecture.name);
            line("sizes", &sizes(architecture));
        }
        None => line("architecture", "not known from a file of tensors alone"),
    }
    line("quantization", found.quantization.as_deref().unwrap_or("none"));
    if let Some(scales) = &found.scales {
        line("scales", &scale_words(scales));
    }
    match &found.tokenizer {
        Some(tokens) => line("tokenizer", &format!("{}, {} tokens", tokens.kind, tokens.n_tokens)),
        None => line("tokenizer", "none"),
    }
    text
}

/// The sizes that are known.
fn sizes(architecture: &Architecture) -> String {
    let Architecture {
        vocab_size,
        d_model,
        d_ff,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim,
        max_positions,
        ..
    } = architecture;
    let sizes = [
        ("layers", n_layers),
        ("d_model", d_model),
        ("d_ff", d_ff),
        ("heads", n_heads),
        ("kv heads", n_kv_heads),
        ("head_dim", head_dim),
        ("vocab", vocab_size),
        ("positions", max_positions),
    ];
    let known = sizes.into_iter().filter_map(|(name, size)| Some(format!("{name} {}", (*size)?)));
    let head = architecture.tied_head.map(|tied| if tied { "tied head" } else { "own head" }.to_owned());
    known.chain(head).collect::<Vec<_>>().join(", ")
}

fn scale_words(scales: &ScaleReport) -> String {
    let verb = |scale: Option<HfScale>| match scale {
        Some(HfScale::Multiply) => "multiply",
        Some(HfScale::Divide) => "divide",
        None => "say nothing sure",
    };
    let ScaleReport { claimed, likely, n_scales, smallest, largest } = scales;
    let by_config = claimed
        .map_or("no config says what they do".to_owned(), |_| format!("by config they {}", verb(*claimed)));
    let agree = match (claimed, likely) {
        (Some(claimed), Some(likely)) if claimed == likely => "which agrees".to_owned(),
        _ => format!("by their size they {}", verb(*likely)),
    };
    format!("{n_scales} from {smallest} to {largest}: {by_config}, {agree}")
}

fn totals(found: &Inspection) -> String {
    let mut text = format!(
        "\n  {:<11} {:<10} {:<6} {:>8} {:>16} {:>10} {:>7}\n",
        "tensors", "form", "type", "number", "weights", "size", "bits"
    );
    let mut row = |role: &str, form: &str, dtype: &str, tensors: u64, weights: u64, size: u64| {
        let bits = match weights {
            0 => String::new(),
            _ => format!("{:.2}", size as f64 * 8.0 / weights as f64),
        };
        text += &format!(
            "  {role:<11} {form:<10} {dtype:<6} {tensors:>8} {:>16} {:>10} {bits:>7}\n",
            grouped(weights),
            bytes(size)
        );
    };
    for total in &found.totals {
        let (role, form) =
            (format!("{:?}", total.role).to_lowercase(), format!("{:?}", total.form).to_lowercase());
        row(&role, &form, &total.dtype, total.tensors, total.weights, total.bytes);
    }
    let sum = |value: fn(&bitnet_convert::Total) -> u64| found.totals.iter().map(value).sum();
    row("all", "", "", sum(|total| total.tensors), sum(|total| total.weights), sum(|total| total.bytes));
    text
}

fn problems(found: &Inspection) -> String {
    if found.problems.is_empty() {
        return "\nno problems found\n".into();
    }
    let mut text = format!("\n{} found\n", count(found.problems.len(), "problem"));
    for problem in found.problems.iter().take(MAX_PROBLEMS) {
        text += &format!("  {}\n", problem.message);
    }
    if let Some(more @ 1..) = found.problems.len().checked_sub(MAX_PROBLEMS) {
        text += &format!("  and {more} more (--json has all)\n");
    }
    text
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
