use std::fmt;

use serde::Serialize;

/// One tensor of a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GgufTensor {
    /// Its name in the source, in Hugging Face's words; for a scale, that of the weight.
    pub source: String,
    /// Its name in the file.
    pub name: String,
    /// Its type in the file.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its shape, `[d_output, d_input]` for a weight.
    pub shape: Vec<usize>,
    /// Its bytes in the file, without padding.
    pub bytes: usize,
    /// Why it is not what was asked for, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

/// What was written to a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GgufReport {
    /// The architecture that runs it.
    pub architecture: String,
    /// The type of the BitNet slots' weights, or of all weights of a dense model.
    pub weights: String,
    /// Every tensor, in the file's order.
    pub tensors: Vec<GgufTensor>,
    /// What llama.cpp does otherwise, and what was assumed.
    pub notes: Vec<String>,
}

impl fmt::Display for GgufReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "architecture {}, weights {}", self.architecture, self.weights)?;
        for GgufTensor { source, name, kind, shape, bytes, because } in &self.tensors {
            write!(f, "{name} {shape:?}: {kind}, {bytes} bytes, from {source}")?;
            match because {
                Some(because) => writeln!(f, " ({because})")?,
                None => writeln!(f)?,
            }
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))
    }
}
