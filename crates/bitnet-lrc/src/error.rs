use bitnet_layers::LayerError;
use thiserror::Error;

/// What a correction or adapter, or a wish about one, can have wrong.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum LrcError {
    /// A rank and a percentage of its own are given for the same slots.
    #[error("slots `{slots}`: rank {rank} and percentage {percentage} together, expected one of them")]
    RankAndPercentage {
        /// The rule's glob.
        slots: String,
        /// The rank given.
        rank: usize,
        /// The percentage given.
        percentage: f64,
    },
    /// A percentage is out of range.
    #[error("slots `{slots}`: percentage {found}, expected a share above 0 and up to 1")]
    Percentage {
        /// The rule's glob.
        slots: String,
        /// The share given.
        found: f64,
    },
    /// A share of columns is out of range.
    #[error("ratio of salient columns {found}: expected a share above 0 and below 1")]
    Ratio {
        /// The share given.
        found: f64,
    },
    /// A name pattern cannot be read, or matches no slot.
    #[error("slots `{pattern}`: {reason}")]
    Pattern {
        /// The pattern given.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A rank, shape or setting does not fit a slot.
    #[error("slot `{slot}`: {source}")]
    Layer {
        /// The slot.
        slot: String,
        /// What does not fit.
        source: LayerError,
    },
    /// The initialization needs calibration data, or the procedure is for one that does.
    #[error("init {found}: expected {expected}")]
    Init {
        /// The config's.
        found: &'static str,
        /// What the procedure takes.
        expected: &'static str,
    },
    /// A slot holds codes only, and what was asked for needs the weight that they were made from.
    #[error("slot `{slot}` holds codes only: expected its latent weight, for {purpose}")]
    NoLatentWeight {
        /// The slot.
        slot: String,
        /// What for.
        purpose: &'static str,
    },
    /// Both factors are zero, so that no training changes them.
    #[error(
        "slot `{slot}`: both factors are zero, and so are their gradients; expected another init for training"
    )]
    DeadFactors {
        /// The slot.
        slot: String,
    },
    /// There is nothing to train.
    #[error("the model has no correction and no adapter")]
    NoAdapter,
    /// An adapter cannot become part of the weight without changing what the model computes.
    #[error("slot `{slot}` cannot be merged: {reason}")]
    Merge {
        /// The slot.
        slot: String,
        /// Why not, and what would do.
        reason: &'static str,
    },
    /// A value that should be finite is not.
    #[error("slot `{slot}`: {what} is not finite")]
    NotFinite {
        /// The slot.
        slot: String,
        /// Which value.
        what: &'static str,
    },
    /// A decomposition did not converge.
    #[error("slot `{slot}`: the {decomposition} did not converge")]
    Decomposition {
        /// The slot.
        slot: String,
        /// Which one.
        decomposition: &'static str,
    },
    /// A slot is not at λ = 1, where a calibrated correction belongs.
    #[error("slot `{slot}` is at λ = {found}: expected λ = 1 for calibration")]
    Lambda {
        /// The slot.
        slot: String,
        /// Its λ.
        found: f32,
    },
    /// No calibration data reaches a slot whose inputs decide.
    #[error("slot `{slot}`: its inputs on the calibration data are all zero, or none reach it")]
    Unseen {
        /// The slot.
        slot: String,
    },
    /// There is no calibration data.
    #[error("calibration data is empty: expected at least one batch")]
    NoData,
    /// The device failed.
    #[error("slot `{slot}`: device: {reason}")]
    Device {
        /// The slot that was being read.
        slot: String,
        /// The device's reason.
        reason: String,
    },
}

impl LrcError {
    pub(crate) fn layer(slot: &str) -> impl Fn(LayerError) -> Self {
        move |source| Self::Layer { slot: slot.into(), source }
    }
}
