//! `bitnet eval`

use std::path::PathBuf;

use bitnet_text::{FileWindows, TokenFile, TokenSource};
use bitnet_train::evaluate;
use clap::Args;
use serde_json::json;

use crate::bar::Bar;
use crate::error::CliError;
use crate::flags::Global;
use crate::model::{load, talk_folder, tokenizer};
use crate::output::{grouped, print_json, print_line};

const EXAMPLES: &str = "\
Examples:
  bitnet eval smollm2-trained --data wikitext.txt
  bitnet eval smollm2-trained --data a.jsonl b.jsonl --jsonl text --separator '<|endoftext|>'
  bitnet eval smollm2-trained --data tokens.safetensors --tokens tokens --windows 100";

/// Measure a model's perplexity on text, and how fast it reads
///
/// Perplexity is e to the mean cross-entropy, in nats, of each token given those before it in its
/// sequence. Documents are packed into sequences of one length; what remains at the end is left
/// out. BitNet layers compute with their ternary weights and quantized inputs.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = EXAMPLES)]
pub(crate) struct Flags {
    /// The model: a folder, a GGUF file, or a hub id
    src: String,

    /// Text files and folders of them; with --tokens one safetensors file
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    data: Vec<PathBuf>,

    /// The data are JSON objects, one per line, with the text in this field
    #[arg(long, value_name = "FIELD", conflicts_with = "tokens")]
    jsonl: Option<String>,

    /// The data are tokens, in this tensor of a safetensors file
    #[arg(long, value_name = "TENSOR")]
    tokens: Option<String>,

    /// The token that follows each document, as the vocabulary spells it; none if it is not given
    #[arg(long, value_name = "TOKEN", conflicts_with = "tokens", verbatim_doc_comment)]
    separator: Option<String>,

    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 256)]
    window: usize,

    /// Sequences that are computed at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,

    /// So many sequences at most, from the beginning; all if it is not given
    #[arg(long, value_name = "N")]
    windows: Option<u64>,

    /// Where the tokens of text are kept
    #[arg(long, value_name = "DIR", default_value = "token-cache")]
    cache: PathBuf,

    /// Another tokenizer: a folder or a tokenizer.json
    ///
    /// A GGUF file needs it unless one lies beside: the tokenizer in the file is not read.
    #[arg(long, value_name = "PATH", conflicts_with = "tokens", verbatim_doc_comment)]
    tokenizer: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(flags: &Flags, global: &Global) -> Result<(), CliError> {
    let (path, checkpoint) = load(&flags.src, global)?;
    let model = checkpoint.model;
    let tokens = match (&flags.tokens, &flags.data[..]) {
        (Some(tensor), [path]) => {
            let tokens = TokenFile::open(path, tensor)?;
            tokens.check_vocab(model.config().vocab_size)?;
            tokens
        }
        (Some(_), _) => return Err(CliError::Usage { reason: "--tokens takes one --data file".into() }),
        (None, paths) => {
            let other = flags.tokenizer.as_deref();
            let tokenizer = tokenizer(&talk_folder(&path, other), other, &model)?;
            let source = match &flags.jsonl {
                Some(field) => TokenSource::Jsonl { paths: paths.into(), field: field.clone() },
                None => TokenSource::Text(paths.into()),
            };
            let mut bar = Bar::new("tokenizing", global.quiet);
            source.open(&tokenizer, flags.separator.as_deref(), &flags.cache, &mut |done, total| {
                bar.set(done, total);
            })?
        }
    };
    let windows = FileWindows::new(tokens, flags.window)?;
    let found = evaluate(&model, &windows, flags.windows.unwrap_or(u64::MAX), flags.batch)?;
    if flags.json {
        return Ok(print_json(&json!({
            "perplexity": found.perplexity,
            "tokens": found.tokens,
            "window": flags.window,
            "tokens_per_second": found.tokens_per_second,
        }))?);
    }
    print_line(&format!("perplexity {:.4}", found.perplexity))?;
    let (n, tokens) = (grouped(found.tokens / flags.window as u64), grouped(found.tokens));
    let rate = found.tokens_per_second;
    Ok(print_line(&format!("{tokens} tokens, {n} sequences of {}, {rate:.0} tokens/s", flags.window))?)
}
