//! BitNet b1.58 quantization on Burn tensors.
//!
//! One definition per formula, in plain tensor operations that run on every backend:
//!
//! | what | where | formula |
//! |---|---|---|
//! | weights → {−1, 0, 1} | [`ternarize`], [`TernaryWeight`] | absmean per tensor, row or group |
//! | activations → int8 | [`quantize_activations`], [`QuantizedActivations`] | absmax per token or tensor, 2 to 8 bits |
//! | factors of a correction → 4 or 8 bits | [`fake_quantize_groups`], [`GroupQuant`] | absmax per group |
//! | outliers spread over all inputs | [`hadamard`] | Sylvester's matrix / √n |
//! | gradients | [`straight_through`] | the identity, at every λ |
//! | the layer | [`bit_linear`], [`bit_linear_reference`] | `y = x_eff · w_effᵀ + bias` |
//! | the packed layer | [`packed_linear`], [`packed_linear_reference`] | `y = acc · (w_scale · x_scale) + bias` |
//!
//! Whatever the tensors' dtype, scales and codes are computed in f32. A faster path (a fused operation, a packed
//! kernel) lives beside these definitions and is tested against them.
//!
//! This is also the only crate that names a backend: [`device`] turns `"cuda:1"` into a Burn device.
//!
//! The formulas and their acceptance vectors are in `docs/numerics.md`.

mod activation;
#[cfg(any(feature = "flex", feature = "ndarray", feature = "cube"))]
mod backends;
mod device;
mod error;
mod groups;
mod hadamard;
mod half;
#[cfg_attr(
    not(any(feature = "flex", feature = "ndarray", feature = "cube")),
    allow(dead_code, reason = "codes are kept by the backends' operations")
)]
mod kept;
mod linear;
mod packed;
mod ste;
mod sum;
mod training;
mod weight;

pub use activation::{ActivationQuant, Bits, QuantizedActivations, quantize_activations};
pub use bitnet_cpu::keep_freed_memory;
pub use bitnet_format::Granularity;
pub use device::{DeviceError, device, device_report, with_awake_threads};
pub use error::QuantError;
pub use groups::{GroupQuant, fake_quantize_groups};
pub use hadamard::hadamard;
pub use half::{half_linear, half_weight};
pub use kept::KeptCodes;
pub use linear::{Quantization, bit_linear, bit_linear_keeping, bit_linear_reference, with_plain_operations};
pub use packed::{PackedLayout, PackedWeight, packed_linear, packed_linear_reference};
pub use ste::straight_through;
pub use sum::fold_sum;
pub use training::{
    AdamW, AdamWTensors, AttentionShape, adamw, causal_attention, dense_linear, next_token_cross_entropy,
    rms_norm, silu_gated, square_sum,
};
pub use weight::{TernaryWeight, check_granularity, ternarize};

/// Smallest magnitude that a scale is computed from: a clamp, not an addition.
pub const EPS: f32 = 1e-5;
