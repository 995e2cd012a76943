use bitnet_quant::rms_norm;
use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Device, Tensor};

use crate::LayerError;
use crate::param::replace;

/// Configuration of an [`RmsNorm`].
#[derive(Config, Debug)]
pub struct RmsNormConfig {
    /// Length of the last axis.
    pub d_model: usize,
    /// Added to the mean square.
    #[config(default = 1e-5)]
    pub eps: f64,
    /// Added to the stored gain: 1 where checkpoints store `gain − 1`, as Gemma's do.
    #[config(default = 0.0)]
    pub gain_offset: f64,
}

impl RmsNormConfig {
    /// # Errors
    /// [`LayerError::Epsilon`] where eps is not a positive number.
    pub fn validate(&self) -> Result<(), LayerError> {
        if self.eps > 0.0 && self.eps.is_finite() {
            Ok(())
        } else {
            Err(LayerError::Epsilon { found: self.eps })
        }
    }

    /// A norm whose gain is 1, allocated when it is first used.
    pub fn init(&self, device: &Device) -> RmsNorm {
        RmsNorm {
            gain: Initializer::Constant { value: 1.0 - self.gain_offset }.init([self.d_model], device),
            eps: self.eps,
            gain_offset: self.gain_offset,
        }
    }
}

/// Root-mean-square norm of the last axis: `y = x · rsqrt(mean(x²) + eps) · gain`, computed in f32.
///
/// # Source
/// arXiv 1910.07467; docs/numerics.md#rmsnorm.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// What is stored of the gain, `[d_model]`; `gain_offset` is added to it.
    pub gain: Param<Tensor<1>>,
    /// Added to the mean square.
    pub eps: f64,
    /// Added to the stored gain.
    pub gain_offset: f64,
}

impl RmsNorm {
    /// # Shapes
    /// - `x`: `[.., d_model]`, any float dtype; the same out
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        let mut gain = self.gain.val().cast(DType::F32);
        if self.gain_offset != 0.0 {
            gain = gain.add_scalar(self.gain_offset);
        }
        rms_norm(x.cast(DType::F32), gain, self.eps).cast(dtype)
    }

    /// Makes the gain the same number everywhere, what is stored and its offset together.
    pub fn set_gain(&mut self, gain: f64) {
        let stored = self.gain.val().inner().full_like(gain - self.gain_offset);
        replace(&mut self.gain, stored);
    }
}

/// Where a sub-norm comes from, which decides whether it follows λ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubLnOrigin {
    /// Conversion inserted it: alone it would destroy the pretrained function, so its strength is λ.
    Inserted,
    /// The checkpoint's own architecture has it (`bitnet`): it always acts in full.
    Native,
}

/// An RMSNorm right before a projection, in addition to the model's own norms.
///
/// An inserted one computes `h + λ·(norm(h) − h)` with its true derivative, so that λ = 0 is the dense model.
///
/// # Source
/// arXiv 2210.06423 (SubLN), arXiv 2402.17764; docs/numerics.md#rmsnorm for λ.
#[derive(Module, Debug)]
pub struct SubLn {
    /// The norm itself.
    pub norm: RmsNorm,
    /// Whether its strength follows λ.
    #[module(skip)]
    pub origin: SubLnOrigin,
}

impl SubLn {
    /// A sub-norm with gain 1 that follows λ.
    pub fn inserted(config: &RmsNormConfig, device: &Device) -> Self {
        Self { norm: config.init(device), origin: SubLnOrigin::Inserted }
    }

    /// A sub-norm with gain 1 that always acts in full.
    pub fn native(config: &RmsNormConfig, device: &Device) -> Self {
        Self { norm: config.init(device), origin: SubLnOrigin::Native }
    }

    /// # Shapes
    /// - `h`: `[.., d_input]`; the same out
    pub fn forward<const D: usize>(&self, h: Tensor<D>, lambda: f32) -> Tensor<D> {
        match (self.origin, lambda) {
            (SubLnOrigin::Native, _) | (SubLnOrigin::Inserted, 1.0) => self.norm.forward(h),
            (SubLnOrigin::Inserted, 0.0) => h,
            (SubLnOrigin::Inserted, lambda) => h.clone() + (self.norm.forward(h.clone()) - h) * lambda,
        }
    }
}
