//! GGUF files for llama.cpp and bitnet.cpp.

mod adapter;
mod architecture;
mod config;
mod export;
mod file;
mod hyperparameters;
mod metadata;
mod names;
mod options;
mod packing;
mod plan;
mod pre_tokenizer;
mod report;
mod rotation;
mod sentence_piece;
mod special_tokens;
mod ternary_floats;
mod tokenizer_file;
mod vocabulary;

pub use adapter::export_gguf_adapter;
pub use export::export_gguf;
pub(crate) use file::GgufFile;
pub use options::{GgufOptions, GgufType};
pub use report::{GgufReport, GgufTensor};
