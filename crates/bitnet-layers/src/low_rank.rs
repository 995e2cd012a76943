use bitnet_quant::{GroupQuant, fake_quantize_groups};
use burn::module::{Initializer, Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Device, Tensor, module::linear};
use serde::{Deserialize, Serialize};

use crate::LayerError;
use crate::param::successor;

/// What a low-rank map is for, which decides how strongly it acts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LowRankKind {
    /// LRC: makes up for what quantization loses, so its strength is the slot's λ.
    Correction,
    /// QLRC: the same, with factors quantized straight through.
    QuantizedCorrection(GroupQuant),
    /// LoRA: scaled by `alpha / rank`, at every λ.
    Lora {
        /// The numerator of the scale.
        alpha: f64,
    },
}

/// A map of low rank beside a slot's own: `strength · U(Vᵀx)`, where `x` is the map's input before quantization.
///
/// # Source
/// arXiv 2412.07902 (LRC), arXiv 2106.09685 (LoRA); docs/numerics.md#low-rank-correction.
#[derive(Module, Debug)]
pub struct LowRank {
    /// `U`, `[d_output, rank]`; LoRA's `B`.
    pub u: Param<Tensor<2>>,
    /// `V`, `[d_input, rank]`; the transpose of LoRA's `A`.
    pub v: Param<Tensor<2>>,
    #[module(skip)]
    kind: LowRankKind,
    dropout: Dropout,
}

impl LowRank {
    /// A map of these factors.
    ///
    /// # Shapes
    /// - `u`: `[d_output, rank]`, `v`: `[d_input, rank]`
    ///
    /// # Errors
    /// - [`LayerError::Rank`] where the rank is 0 or above the smaller size, [`LayerError::Factors`] where the factors have
    ///   two ranks
    /// - [`LayerError::Alpha`] where a LoRA's α is not a positive number
    pub fn new(u: Tensor<2>, v: Tensor<2>, kind: LowRankKind) -> Result<Self, LayerError> {
        Self::from_params(Param::from_tensor(u), Param::from_tensor(v), kind)
    }

    /// [`new`](Self::new) from parameters, which may be allocated later.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn from_params(
        u: Param<Tensor<2>>,
        v: Param<Tensor<2>>,
        kind: LowRankKind,
    ) -> Result<Self, LayerError> {
        let ([d_output, rank], [d_input, v_rank]) = (u.lazy_shape().dims(), v.lazy_shape().dims());
        if rank != v_rank {
            return Err(LayerError::Factors { u: [d_output, rank], v: [d_input, v_rank] });
        }
        check_rank(rank, [d_output, d_input])?;
        check_kind(kind)?;
        Ok(Self { u, v, kind, dropout: DropoutConfig::new(0.0).init() })
    }

    /// A map that gives zero until it is trained: `V` uniform in ±1/√d_input, `U` zero.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn kaiming(
        [d_output, d_input]: [usize; 2],
        rank: usize,
        kind: LowRankKind,
        device: &Device,
    ) -> Result<Self, LayerError> {
        check_rank(rank, [d_output, d_input])?;
        let bound = (d_input as f64).sqrt().recip();
        let v = Initializer::Uniform { min: -bound, max: bound }.init([d_input, rank], device);
        Self::new(Tensor::zeros([d_output, rank], device), v.val(), kind)
    }

    /// Drops a share of the input at random in training, as LoRA does.
    ///
    /// # Errors
    /// [`LayerError::Dropout`] unless the share is in 0..1, and 0 for a correction: what it corrects sees all of the input.
    pub fn with_dropout(mut self, share: f64) -> Result<Self, LayerError> {
        let limit = if matches!(self.kind, LowRankKind::Lora { .. }) { 1.0 } else { f64::MIN_POSITIVE };
        if !(0.0..limit).contains(&share) {
            return Err(LayerError::Dropout { found: share, kind: self.kind });
        }
        self.dropout = DropoutConfig::new(share).init();
        Ok(self)
    }

    /// `y + strength · U(Vᵀx)`.
    ///
    /// # Shapes
    /// - `y`: `[.., d_output]`, `x`: `[.., d_input]`
    /// - returns `[.., d_output]`
    pub fn add_to<const D: usize>(&self, y: Tensor<D>, x: Tensor<D>, lambda: f32) -> Tensor<D> {
        let strength = self.strength(lambda);
        if strength == 0.0 {
            return y;
        }
        let (u, v) = self.factors();
        let correction = linear(linear(self.dropout.forward(x), v, None), u.transpose(), None);
        y + if strength == 1.0 { correction } else { correction * strength }
    }

    /// The factors as `U(Vᵀx)` uses them: quantized, straight through, where the kind says so.
    pub fn factors(&self) -> (Tensor<2>, Tensor<2>) {
        let (u, v) = (self.u.val(), self.v.val());
        match self.kind {
            LowRankKind::QuantizedCorrection(quant) => {
                (fake_quantize_groups(u, quant), fake_quantize_groups(v, quant))
            }
            LowRankKind::Correction | LowRankKind::Lora { .. } => (u, v),
        }
    }

    /// `strength · U Vᵀ`, `[d_output, d_input]`, without gradient.
    pub fn product(&self, lambda: f32) -> Tensor<2> {
        let (u, v) = self.factors();
        u.inner().matmul(v.inner().transpose()) * self.strength(lambda)
    }

    /// The factor of `U(Vᵀx)`: λ, or LoRA's `alpha / rank`.
    pub fn strength(&self, lambda: f32) -> f32 {
        match self.kind {
            LowRankKind::Correction | LowRankKind::QuantizedCorrection(_) => lambda,
            LowRankKind::Lora { alpha } => (alpha / self.rank() as f64) as f32,
        }
    }

    /// What the map is for.
    pub fn kind(&self) -> LowRankKind {
        self.kind
    }

    /// The share of the input that training drops.
    pub fn dropout(&self) -> f64 {
        self.dropout.prob
    }

    /// Columns of `U` and of `V`.
    pub fn rank(&self) -> usize {
        self.u.lazy_shape()[1]
    }

    /// Size of the input features.
    pub fn d_input(&self) -> usize {
        self.v.lazy_shape()[0]
    }

    /// Size of the output features.
    pub fn d_output(&self) -> usize {
        self.u.lazy_shape()[0]
    }

    /// Whether both factors are zero: then both their gradients are zero too, and no training changes that.
    ///
    /// # Errors
    /// [`LayerError::Device`] where the device fails.
    pub fn is_dead(&self) -> Result<bool, LayerError> {
        let largest = |factor: &Param<Tensor<2>>| {
            let largest = factor.val().inner().max_abs().try_into_scalar::<f32>();
            largest.map_err(|error| LayerError::Device(error.to_string()))
        };
        Ok(largest(&self.u)? == 0.0 && largest(&self.v)? == 0.0)
    }

    /// LRC or a LoRA as QLRC: the factors, with a LoRA's scale in `U`, are quantized from now on.
    ///
    /// The output changes by the rounding of the factors; a LoRA follows λ from now on and loses its dropout.
    pub fn into_quantized_correction(self, quant: GroupQuant) -> Self {
        Self { kind: LowRankKind::QuantizedCorrection(quant), ..self.into_correction() }
    }

    /// QLRC or a LoRA as LRC: the factors' quantized values, or those with a LoRA's scale in `U`.
    ///
    /// At λ = 1 the output stays as it is; a LoRA follows λ from now on and loses its dropout.
    pub fn into_correction(self) -> Self {
        let dropout = DropoutConfig::new(0.0).init();
        match self.kind {
            LowRankKind::Correction => self,
            LowRankKind::QuantizedCorrection(quant) => Self {
                u: successor(&self.u, |u| fake_quantize_groups(u, quant)),
                v: successor(&self.v, |v| fake_quantize_groups(v, quant)),
                kind: LowRankKind::Correction,
                dropout,
            },
            LowRankKind::Lora { .. } => {
                let scale = self.strength(1.0);
                let u = successor(&self.u, |u| u * scale);
                Self { u, v: self.v, kind: LowRankKind::Correction, dropout }
            }
        }
    }

    /// LRC or QLRC as a LoRA of α = rank, so of scale 1: the output at λ = 1 stays as it is, and no longer follows λ.
    pub fn into_lora(self) -> Self {
        match self.kind {
            LowRankKind::Lora { .. } => self,
            _ => {
                let alpha = self.rank() as f64;
                Self { kind: LowRankKind::Lora { alpha }, ..self.into_correction() }
            }
        }
    }
}

/// # Errors
/// [`LayerError::Rank`] unless the rank is in 1..=min(d_output, d_input).
pub fn check_rank(rank: usize, [d_output, d_input]: [usize; 2]) -> Result<(), LayerError> {
    let limit = d_output.min(d_input);
    if (1..=limit).contains(&rank) {
        Ok(())
    } else {
        Err(LayerError::Rank { found: rank, limit, shape: [d_output, d_input] })
    }
}

fn check_kind(kind: LowRankKind) -> Result<(), LayerError> {
    match kind {
        LowRankKind::Lora { alpha } if !(alpha > 0.0 && alpha.is_finite()) => {
            Err(LayerError::Alpha { found: alpha })
        }
        _ => Ok(()),
    }
}
