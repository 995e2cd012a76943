//! `bitnet bench`

use std::time::Instant;

use bitnet_convert::inspect;
use bitnet_model::{CausalLm, GenerateOptions, KvCache};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Bool, DType, Int, Tensor};
use clap::Args;
use serde::Serialize;

use crate::bar::Bar;
use crate::error::CliError;
use crate::flags::Global;
use crate::model::{Head, load, make_ready};
use crate::output::{bytes, print_json, print_line};

const EXAMPLES: &str = "\
Examples:
  bitnet bench smollm2-packed
  bitnet bench smollm2-packed --threads 1 --repeat 9 --json";

/// Measure how many tokens a second a model reads and generates
///
/// As llama.cpp's bench: the prompt is read at once, and tokens are generated one by one after a
/// single one. Tokens are arbitrary, sampling is left out. One run of each comes first and is not
/// counted; the medians of the others are printed. Measure while nothing else runs.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = EXAMPLES)]
pub(crate) struct Flags {
    /// The model: a folder, a GGUF file, or a hub id
    src: String,

    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,

    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    generate_tokens: u32,

    /// Runs that are counted
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,

    /// What the output head computes in, which is read whole for every token
    #[arg(long, value_enum, value_name = "TYPE", default_value = "auto")]
    head: Head,

    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    architecture: String,
    device: String,
    threads: usize,
    /// What the output head computes in.
    head: &'static str,
    /// In the files.
    file_bytes: u64,
    /// Of the loaded parameters.
    memory_bytes: u64,
    prompt: Rate,
    generate: Rate,
}

/// Runs of one kind.
#[derive(Debug, Serialize)]
struct Rate {
    tokens: u32,
    seconds: Vec<f64>,
    /// At the median of the seconds.
    tokens_per_second: f64,
}

pub(crate) fn run(flags: &Flags, global: &Global) -> Result<(), CliError> {
    let (path, checkpoint) = load(&flags.src, global)?;
    let (model, halved) = make_ready(checkpoint, flags.head)?;
    let vocab_size = model.config().vocab_size as u32;
    let prompt: Vec<u32> =
        (1..=flags.prompt_tokens).map(|i| i.wrapping_mul(2_654_435_761) % vocab_size).collect();

    let mut bar = Bar::new("measuring", global.quiet);
    let total = u64::from(2 * (flags.repeat + 1));
    let mut n_runs = 0;
    let mut rate = |tokens: u32, run: &dyn Fn() -> Result<(), CliError>| {
        let mut seconds = Vec::new();
        for _ in 0..=flags.repeat {
            let start = Instant::now();
            run()?;
            seconds.push(start.elapsed().as_secs_f64());
            n_runs += 1;
            bar.set(n_runs, total);
        }
        seconds.remove(0); // memory, caches and kernels are made ready in the first
        let tokens_per_second = f64::from(tokens) / median(&seconds);
        Ok::<_, CliError>(Rate { tokens, seconds, tokens_per_second })
    };
    let prompt = rate(flags.prompt_tokens, &|| read(&model, &prompt))?;
    let generate = rate(flags.generate_tokens, &|| generate(&model, flags.generate_tokens))?;
    drop(bar);

    let found = inspect(&path)?;
    let report = Report {
        model: path.display().to_string(),
        architecture: found.architecture.map(|architecture| architecture.name).unwrap_or_default(),
        device: global.device.clone(),
        threads: rayon::current_num_threads(),
        head: if halved { "f16" } else { "f32" },
        file_bytes: found.totals.iter().map(|total| total.bytes).sum(),
        memory_bytes: memory_bytes(&model),
        prompt,
        generate,
    };
    if flags.json { Ok(print_json(&report)?) } else { print_report(&report) }
}

/// The prompt at once, up to the logits of the next token.
fn read(model: &CausalLm, prompt: &[u32]) -> Result<(), CliError> {
    let logits = model.next_logits(model.batch(&[prompt])?, &mut KvCache::new());
    let read = logits.cast(DType::F32).try_into_vec_as::<f32>();
    read.map(|_| ()).map_err(|error| CliError::Run { reason: error.to_string() })
}

/// Tokens one by one after a single one.
fn generate(model: &CausalLm, n_tokens: u32) -> Result<(), CliError> {
    let mut tokens = model.continuation(&[0], &GenerateOptions::greedy(n_tokens as usize))?;
    Ok(tokens.try_for_each(|token| token.map(|_| ()))?)
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// The bytes of all parameters of a module.
fn memory_bytes(module: &impl Module) -> u64 {
    struct Sum(u64);
    impl Sum {
        fn add(&mut self, shape: &[usize], dtype: DType) {
            self.0 += (shape.iter().product::<usize>() * dtype.size()) as u64;
        }
    }
    impl ModuleVisitor for Sum {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.add(&param.lazy_shape(), param.val().dtype());
        }
        fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
            self.add(&param.lazy_shape(), param.val().dtype());
        }
        fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
            self.add(&param.lazy_shape(), param.val().dtype());
        }
    }
    let mut sum = Sum(0);
    module.visit(&mut sum);
    sum.0
}

fn print_report(report: &Report) -> Result<(), CliError> {
    let Report { model, architecture, device, threads, head, file_bytes, memory_bytes, prompt, generate } =
        report;
    print_line(&format!("{model}: {architecture} on {device}, {threads} threads, head {head}"))?;
    print_line(&format!(
        "  {:<16}{} in files, {} in memory",
        "weights",
        bytes(*file_bytes),
        bytes(*memory_bytes)
    ))?;
    for (what, rate) in [("prompt", prompt), ("generate", generate)] {
        let label = format!("{what} {}", rate.tokens);
        print_line(&format!("  {label:<16}{:.1} tokens/s", rate.tokens_per_second))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_of_all_runs() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
