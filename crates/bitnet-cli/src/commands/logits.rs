//! `bitnet logits`

use std::path::{Path, PathBuf};

use bitnet_convert::Unfinished;
use bitnet_model::{CausalLm, KvCache};
use burn::tensor::{DType, Int, Tensor};
use clap::Args;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::bar::Bar;
use crate::error::CliError;
use crate::flags::Global;
use crate::model::{load, talk_folder, tokenizer};

const EXAMPLES: &str = "\
Examples:
  bitnet logits smollm2-trained --text 'Once upon a time' --out logits.safetensors
  bitnet logits smollm2-trained --ids ids.safetensors --out logits.safetensors

Compare with transformers, in Python:
  save_file({'input_ids': ids}, 'ids.safetensors')        # int64 [batch, seq]
  ours = load_file('logits.safetensors')['logits']        # float32 [batch, seq, vocab]
  theirs = AutoModelForCausalLM.from_pretrained('smollm2-trained', dtype=torch.float32)(ids).logits";

/// Write a model's logits of given tokens, to compare them with another implementation's
///
/// The file holds one tensor, `logits`, f32 [batch, seq, vocab]: for each token the scores of the
/// next one. BitNet layers compute with their ternary weights and quantized inputs.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = EXAMPLES)]
pub(crate) struct Flags {
    /// The model: a folder, a GGUF file, or a hub id
    src: String,

    /// A safetensors file with the tokens: `input_ids`, int64 [batch, seq]
    #[arg(long, value_name = "FILE", required_unless_present = "text", conflicts_with = "text")]
    ids: Option<PathBuf>,

    /// A text to take the tokens of, as one row, with the special tokens that the tokenizer adds
    #[arg(long)]
    text: Option<String>,

    /// The safetensors file to write; one that is there is replaced
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Take the tokens one by one through the key-value cache, as generation does
    #[arg(long)]
    cached: bool,

    /// Another tokenizer for --text: a folder or a tokenizer.json
    ///
    /// A GGUF file needs it unless one lies beside: the tokenizer in the file is not read.
    #[arg(long, value_name = "PATH", requires = "text", verbatim_doc_comment)]
    tokenizer: Option<PathBuf>,
}

pub(crate) fn run(flags: &Flags, global: &Global) -> Result<(), CliError> {
    let read = flags.ids.as_deref().map(read_ids).transpose()?; // before the model, which may take a while
    let (path, checkpoint) = load(&flags.src, global)?;
    let model = checkpoint.model;
    let sequences = match (read, &flags.text) {
        (Some(sequences), _) => sequences,
        (None, text) => {
            let other = flags.tokenizer.as_deref();
            let tokenizer = tokenizer(&talk_folder(&path, other), other, &model)?;
            vec![tokenizer.encode_with_special_tokens(text.as_deref().unwrap_or_default())?]
        }
    };
    let tokens = model.batch(&sequences)?;
    let logits = if flags.cached {
        let mut bar = Bar::new("computing", global.quiet);
        one_by_one(&model, tokens, |done, total| bar.set(done, total))
    } else {
        model.forward(tokens)
    };
    let shape = logits.dims();
    let logits = logits.cast(DType::F32).try_into_vec_as::<f32>();
    let logits = logits.map_err(|error| CliError::Run { reason: error.to_string() })?;
    write_logits(&flags.out, shape, &logits)
}

/// The rows of `input_ids`.
fn read_ids(path: &Path) -> Result<Vec<Vec<u32>>, CliError> {
    let wrong = |reason: String| CliError::Ids { path: path.into(), reason };
    let bytes = std::fs::read(path).map_err(|source| CliError::Read { path: path.into(), source })?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|error| wrong(format!("no safetensors file: {error}")))?;
    let tensor = file.tensor("input_ids").map_err(|_| wrong("there is no tensor `input_ids`".into()))?;
    let (dtype, shape) = (tensor.dtype(), tensor.shape());
    let (&[_, n_tokens], 1..) = (shape, shape.iter().product::<usize>()) else {
        return Err(wrong(format!(
            "`input_ids` has shape {shape:?}: expected [batch, seq], neither of them 0"
        )));
    };
    if dtype != Dtype::I64 {
        return Err(wrong(format!("`input_ids` has dtype {dtype:?}: expected I64")));
    }
    let ids = tensor.data().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
    let ids: Result<Vec<u32>, _> = ids
        .map(|id| u32::try_from(id).map_err(|_| wrong(format!("`input_ids` holds {id}: expected a token"))))
        .collect();
    Ok(ids?.chunks(n_tokens).map(<[u32]>::to_vec).collect())
}

/// The logits of all tokens, `[B, T, vocab_size]`, each after those before it in the cache.
fn one_by_one(model: &CausalLm, tokens: Tensor<2, Int>, mut progress: impl FnMut(u64, u64)) -> Tensor<3> {
    let [_, n_tokens] = tokens.dims();
    let mut cache = KvCache::new();
    let logits = (0..n_tokens).map(|position| {
        let logits = model.forward_cached(tokens.clone().narrow(1, position, 1), &mut cache);
        progress(position as u64 + 1, n_tokens as u64);
        logits
    });
    Tensor::cat(logits.collect(), 1)
}

fn write_logits(path: &Path, shape: [usize; 3], logits: &[f32]) -> Result<(), CliError> {
    let write = |source| CliError::Write { path: path.into(), source };
    let bytes: Vec<u8> = logits.iter().flat_map(|value| value.to_le_bytes()).collect();
    let file = TensorView::new(Dtype::F32, shape.to_vec(), &bytes)
        .and_then(|view| safetensors::serialize([("logits", view)], None))
        .map_err(|error| write(std::io::Error::other(error)))?;
    Unfinished::write(path, &file).map_err(write)
}
