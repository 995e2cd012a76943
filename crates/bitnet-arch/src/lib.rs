//! BitNet b1.58 on Burn: the crate that downstream training crates depend on.
//!
//! Take a language model from a Hugging Face checkpoint to a trained ternary one, or put BitNet layers into a module
//! of your own. Each part is a crate of its own, re-exported here:
//!
//! | module | what |
//! |---|---|
//! | [`compress`] | any safetensors checkpoint made ternary, without a model |
//! | [`convert`] | checkpoints in and out, conversion, [`convert::stage1`] on folders |
//! | [`mod@format`] | codes and scales as bytes: Hugging Face packing, GGUF |
//! | [`layers`] | `BitLinear`, `SubLn`, the `Projection` slot, [`layers::slots!`] for your own modules |
//! | [`lrc`] | low-rank corrections and adapters on slots |
//! | [`model`] | the decoder-only family, KV cache, generation |
//! | [`pipeline`] | any checkpoint in, calibrated, trained and packed artifacts out |
//! | [`quant`] | the maths, and [`quant::device`]: devices by name |
//! | [`text`] | tokenizers, token windows |
//! | [`train`] | the trainer, whole runs that resume, distillation, perplexity, metrics |
//! | [`warmup`] | λ schedules and the process-wide default |
//!
//! Backends are cargo features: `flex` (default), `ndarray`, `wgpu`, `vulkan`, `cuda`, and for the last three
//! `fusion` and `autotune`. Which one runs is chosen at run time, by name.

pub use bitnet_compress as compress;
pub use bitnet_convert as convert;
pub use bitnet_format as format;
pub use bitnet_layers as layers;
pub use bitnet_lrc as lrc;
pub use bitnet_model as model;
pub use bitnet_pipeline as pipeline;
pub use bitnet_quant as quant;
pub use bitnet_text as text;
pub use bitnet_train as train;
pub use bitnet_warmup as warmup;
