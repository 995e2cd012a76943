//! `bitnet generate`

use std::path::PathBuf;
use std::time::Instant;

use bitnet_model::{GenerateOptions, Sampling};
use bitnet_text::TextStream;
use clap::Args;

use crate::chat::Message;
use crate::error::CliError;
use crate::flags::Global;
use crate::model::{Companions, Head, load, make_ready, talk_folder, tokenizer};
use crate::output::{print, print_line};
use crate::stop_text::StopText;

/// Tokens where --max-tokens does not say how many.
const MAX_TOKENS: usize = 256;

const EXAMPLES: &str = "\
Examples:
  bitnet generate smollm2-trained --prompt 'Once upon a time'
  bitnet generate smollm2-trained --prompt 'Once upon' --temperature 0.8 --top-p 0.95 --seed 7
  bitnet generate smollm2-instruct --chat 'What is a ternary weight?' --system 'Be brief.'
  bitnet generate smollm2-trained --prompt 'Q: 2 + 2?' --stop 'Q:' --max-tokens 20 > answer.txt";

/// Continue a text, or answer in a chat; the text appears as it is made
///
/// --prompt continues a text as it stands. --chat puts one message into the model's own chat
/// template, which only models that were tuned for chat have. Only the new text is printed.
///
/// It ends with a stop token of the model (from generation_config.json or config.json, and
/// tokenizer_config.json), before a string of --stop, or after --max-tokens.
///
/// Without --temperature each token is the most likely one. With it, tokens are drawn at random,
/// and the same --seed draws the same ones on the same device.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = EXAMPLES)]
pub(crate) struct Flags {
    /// The model: a folder, a GGUF file, or a hub id
    src: String,

    /// The text to continue
    #[arg(long, required_unless_present = "chat", conflicts_with = "chat")]
    prompt: Option<String>,

    /// The message to answer
    #[arg(long, value_name = "TEXT")]
    chat: Option<String>,

    /// What the model is told before the chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,

    /// How many tokens at most [default: 256, or what the model's positions leave]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,

    /// Draw tokens at random: below 1 the likely ones more often, above 1 less often
    #[arg(long, value_name = "T", value_parser = above_zero)]
    temperature: Option<f64>,

    /// Draw from the K most likely tokens only
    #[arg(long, value_name = "K", requires = "temperature", value_parser = clap::value_parser!(u32).range(1..))]
    top_k: Option<u32>,

    /// Draw from the most likely tokens only whose probabilities sum to P
    #[arg(long, value_name = "P", requires = "temperature", value_parser = share)]
    top_p: Option<f64>,

    /// Which of the possible texts is drawn
    #[arg(long, value_name = "N", default_value_t = 0, requires = "temperature")]
    seed: u64,

    /// End before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,

    /// Print special tokens too, as the one that ends the text
    #[arg(long)]
    raw: bool,

    /// What the output head computes in, which is read whole for every token
    #[arg(long, value_enum, value_name = "TYPE", default_value = "auto")]
    head: Head,

    /// Another tokenizer: a folder or a tokenizer.json
    ///
    /// A GGUF file needs it unless one lies beside: the tokenizer in the file is not read.
    #[arg(long, value_name = "PATH", verbatim_doc_comment)]
    tokenizer: Option<PathBuf>,
}

pub(crate) fn run(flags: &Flags, global: &Global) -> Result<(), CliError> {
    let (path, checkpoint) = load(&flags.src, global)?;
    let (model, _) = make_ready(checkpoint, flags.head)?;
    let folder = talk_folder(&path, flags.tokenizer.as_deref());
    let tokenizer = tokenizer(&folder, flags.tokenizer.as_deref(), &model)?;
    let companions = Companions::read(&folder)?;
    let prompt = match &flags.chat {
        Some(message) => {
            let system = flags.system.iter().map(|text| Message::new("system", text));
            let messages: Vec<Message> = system.chain([Message::new("user", message)]).collect();
            tokenizer.encode(&companions.render(&messages)?)? // the template has the special tokens
        }
        None => tokenizer.encode_with_special_tokens(flags.prompt.as_deref().unwrap_or_default())?,
    };
    let left = model.config().position_limit().saturating_sub(prompt.len());
    let options = GenerateOptions {
        max_new_tokens: flags.max_tokens.unwrap_or(MAX_TOKENS.min(left)),
        sampling: match flags.temperature {
            None => Sampling::Greedy,
            Some(temperature) => Sampling::Random {
                temperature,
                top_p: flags.top_p.unwrap_or(1.0),
                top_k: flags.top_k.map(|k| k as usize),
                seed: flags.seed,
            },
        },
        stop: companions.stop_tokens(&tokenizer),
    };

    let mut stream = TextStream::new(&tokenizer, &prompt, !flags.raw)?;
    let mut text = StopText::new(&flags.stop);
    let mut n_tokens = 0;
    let mut stopped = false;
    let start = Instant::now();
    for token in model.continuation(&prompt, &options)? {
        let token = token?;
        n_tokens += 1;
        let piece =
            if options.stop.contains(&token) && !flags.raw { String::new() } else { stream.push(token)? };
        let certain;
        (certain, stopped) = text.push(&piece);
        print(&certain)?;
        if stopped {
            break;
        }
    }
    if !stopped {
        let (certain, stopped) = text.push(&stream.finish()?);
        print(&certain)?;
        if !stopped {
            print(&text.finish())?;
        }
    }
    print_line("")?;
    if !global.quiet {
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{} tokens of prompt, {n_tokens} new ones in {seconds:.2} s", prompt.len());
    }
    Ok(())
}

fn above_zero(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| *value > 0.0 && value.is_finite());
    value.ok_or_else(|| {
        "expected a number above 0; without --temperature each token is the most likely one".into()
    })
}

fn share(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| *value > 0.0 && *value <= 1.0);
    value.ok_or_else(|| "expected a number above 0, up to 1".into())
}
