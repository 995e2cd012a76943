//! The layers of a BitNet model, and the slot that lets one model type serve every stage of its life.
//!
//! A [`Projection`] is a slot for one linear map. It is born [`Form::Dense`], becomes [`Form::Bit`] in place when
//! the model is converted, and its `forward` has one signature throughout. [`Slots`] visits the slots of a module;
//! the [`slots!`] macro implements it for a module of your own in one line:
//!
//! ```
//! use bitnet_layers::{Projection, set_lambda, slots};
//! use burn::{module::Module, nn::LinearConfig, tensor::{Device, Tensor}};
//!
//! #[derive(Module, Debug)]
//! struct Mlp {
//!     up: Projection,
//!     down: Projection,
//! }
//! slots!(Mlp { up, down });
//!
//! let device = Device::flex();
//! let mut mlp = Mlp {
//!     up: LinearConfig::new(8, 16).init(&device).into(),
//!     down: LinearConfig::new(16, 8).init(&device).into(),
//! };
//! assert_eq!(set_lambda(&mut mlp, Some(0.5)), 2);
//! let y = mlp.down.forward(mlp.up.forward(Tensor::<2>::ones([3, 8], &device)));
//! assert_eq!(y.dims(), [3, 8]);
//! ```
//!
//! λ is a value in the slot. `None` follows the process-wide default of `bitnet-warmup`, whose unset value is 1.
//! Copies of a model are independent.
//!
//! A module that holds Burn's own layers and cannot be changed trains with ternary weights through
//! [`ternarize_weights`]; activations and SubLN need slots.

mod bit_linear;
mod blocks;
mod error;
mod input_hook;
mod low_rank;
mod norm;
mod operands;
mod outliers;
mod packed_linear;
mod param;
mod projection;
mod slots;
mod weight_only;

pub use bit_linear::{BitLinear, BitLinearConfig};
pub use blocks::Blocks;
pub use error::LayerError;
pub use input_hook::InputHook;
pub use low_rank::{LowRank, LowRankKind, check_rank};
pub use norm::{RmsNorm, RmsNormConfig, SubLn, SubLnOrigin};
pub use outliers::{Hadamard, Outliers, Salient};
pub use packed_linear::PackedLinear;
pub use projection::{Form, Projection};
pub use slots::{Slots, for_each_slot, for_each_slot_mut, set_lambda, slot_path};
pub use weight_only::{TernaryReparameterization, ternarize_weights};
