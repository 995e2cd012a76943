//! GGUF files for llama.cpp and bitnet.cpp.

mod architecture;
mod hyperparameters;
mod names;
mod pre_tokenizer;
mod rotation;
mod sentence_piece;
mod special_tokens;
mod tokenizer_file;
mod vocabulary;
