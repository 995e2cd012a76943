//! Text from tokens as they come.

use crate::{TextError, Tokenizer};

/// Tokens of a prompt that are decoded with the first new ones: enough for a character that they share.
const CONTEXT: usize = 8;

/// Turns tokens into text one by one.
///
/// A character may take several tokens; until it is whole, its bytes are held back. What comes out is the text of all
/// tokens together, as if they were decoded at once after the prompt. A token without an entry in the vocabulary, as
/// an embedding with spare rows can give one, has no text.
///
/// ```no_run
/// use bitnet_text::{TextStream, Tokenizer};
///
/// let tokenizer = Tokenizer::from_file("tokenizer.json")?;
/// let tokens = tokenizer.encode("Grüße")?;
/// let mut stream = TextStream::new(&tokenizer, &[], true)?;
/// for token in tokens {
///     print!("{}", stream.push(token)?);
/// }
/// print!("{}", stream.finish()?);
/// # Ok::<(), bitnet_text::TextError>(())
/// ```
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Those whose text was handed out last, as context, and those whose text is held back.
    tokens: Vec<u32>,
    /// Number of the former: some decoders treat the first token of a text in another way.
    n_context: usize,
    /// Bytes of the text of `tokens` that have been handed out.
    given: usize,
}

impl<'a> TextStream<'a> {
    /// A stream of the tokens after `prompt`. Special tokens, as the end of a text, have no text if `skip_special`.
    ///
    /// # Errors
    /// [`TextError::Decode`] if the tokenizer library fails.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32], skip_special: bool) -> Result<Self, TextError> {
        let tokens = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        let given = tokenizer.decode_known(&tokens, skip_special)?.trim_end_matches('\u{FFFD}').len();
        Ok(Self { tokenizer, skip_special, n_context: tokens.len(), tokens, given })
    }

    /// Takes the next token and gives the text that is complete with it: often none.
    ///
    /// # Errors
    /// [`TextError::Decode`] if the tokenizer library fails.
    pub fn push(&mut self, token: u32) -> Result<String, TextError> {
        self.tokens.push(token);
        let text = self.text()?;
        if text.ends_with('\u{FFFD}') || text.len() <= self.given {
            return Ok(String::new());
        }
        let new = text.get(self.given..).unwrap_or_default().to_owned();
        self.tokens.drain(..self.n_context);
        self.n_context = self.tokens.len();
        self.given = self.text()?.len();
        Ok(new)
    }

    /// The text that is still held back, half characters as U+FFFD.
    ///
    /// # Errors
    /// [`TextError::Decode`] if the tokenizer library fails.
    pub fn finish(self) -> Result<String, TextError> {
        Ok(self.text()?.get(self.given..).unwrap_or_default().to_owned())
    }

    fn text(&self) -> Result<String, TextError> {
        self.tokenizer.decode_known(&self.tokens, self.skip_special)
    }
}
