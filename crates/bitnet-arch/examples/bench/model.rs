//! Training steps at the shape of SmolLM2-135M: forward, backward, AdamW.

use std::cell::Cell;
use std::error::Error;
use std::time::Instant;

use bitnet_arch::layers::for_each_slot_mut;
use bitnet_arch::model::{CausalLm, CausalLmConfig};
use bitnet_arch::quant::{Quantization, device, keep_freed_memory, with_plain_operations};
use bitnet_arch::train::{TrainConfig, Trainer, next_token_loss};
use bitnet_arch::warmup::{LambdaWarmupConfig, Schedule};
use serde::{Deserialize, Serialize};

use crate::{Child, machine};

/// Tokens of a step, one sequence.
pub(crate) const TOKENS: u32 = 256;

/// What one process found.
#[derive(Serialize, Deserialize)]
pub(crate) struct Steps {
    /// Of each step.
    pub(crate) seconds: Vec<f64>,
    /// Of its forward pass, with the loss.
    pub(crate) forward_seconds: Vec<f64>,
    /// The most memory that was resident, where the system says so.
    pub(crate) peak_bytes: Option<u64>,
}

/// Times `repeat` steps of one kind of model after one that is not timed.
pub(crate) fn measure(kind: Child, layers: usize, repeat: u64) -> Result<Steps, Box<dyn Error>> {
    keep_freed_memory();
    let naive = matches!(kind, Child::Naive);
    let lambda = LambdaWarmupConfig {
        // At 1 the reference multiplies twice, once more for the exact value: a naive layer does not.
        max: if naive { 1.0_f32.next_down() } else { 1.0 },
        ..LambdaWarmupConfig::new(Schedule::Linear, 0)
    };
    let config = TrainConfig { lambda, clip_norm: None, lr_warmup_steps: 0, ..TrainConfig::new(repeat + 1) };
    let mut trainer = Trainer::new(model(layers, !matches!(kind, Child::Dense))?, &config)?;
    let tokens: Vec<u32> = (0..TOKENS).map(|i| i * i * 31 % 49152).collect();
    let forward = Cell::new(0.0);
    let loss = |model: &CausalLm, batch: &[&[u32]; 1]| {
        let start = Instant::now();
        let loss = match naive {
            true => with_plain_operations(|| next_token_loss(model, batch)),
            false => next_token_loss(model, batch),
        };
        forward.set(start.elapsed().as_secs_f64());
        loss
    };
    trainer.step(&[[tokens.as_slice()]], loss)?;
    let (mut seconds, mut forward_seconds) = (Vec::new(), Vec::new());
    for _ in 0..repeat {
        let start = Instant::now();
        trainer.step(&[[tokens.as_slice()]], loss)?;
        seconds.push(start.elapsed().as_secs_f64());
        forward_seconds.push(forward.get());
    }
    Ok(Steps { seconds, forward_seconds, peak_bytes: machine::peak_bytes() })
}

/// Random weights; the converted model has no sub-norm, so that the linear layers are all that differs.
fn model(layers: usize, convert: bool) -> Result<CausalLm, Box<dyn Error>> {
    let device = device("flex")?;
    device.seed(0);
    let config = CausalLmConfig::new(49152, 576, 1536, layers, 9)
        .with_n_kv_heads(Some(3))
        .with_head_dim(Some(64))
        .with_tied_head(true)
        .with_init_std(1.0 / 24.0);
    let mut model = config.init(&device)?;
    let mut result = Ok(());
    if convert {
        for_each_slot_mut(&mut model, |_, slot| {
            if let Err(error) = slot.convert(Quantization::default()) {
                result = Err(error);
            }
        });
    }
    result?;
    Ok(model)
}
