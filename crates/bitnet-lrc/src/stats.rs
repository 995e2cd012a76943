//! What corrections and adapters cost.

use bitnet_layers::{Form, LowRank, LowRankKind, Projection, Slots, for_each_slot};
use bitnet_quant::Granularity;
use serde::Serialize;

/// The corrections and adapters of a model.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct LrcStats {
    /// In the model's order; slots without one are left out.
    pub slots: Vec<SlotStats>,
}

/// The correction or adapter of one slot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SlotStats {
    /// The slot's path in the module.
    pub path: String,
    /// What it is for.
    pub kind: LowRankKind,
    /// Its rank.
    pub rank: usize,
    /// Values in both factors.
    pub parameters: usize,
    /// Bytes of the factors: 4 a value, or the codes and scales of QLRC.
    pub bytes: usize,
    /// Bytes of the slot's ternary weight at two bits a code and four bytes a scale; `None` for a dense slot.
    pub packed_weight_bytes: Option<usize>,
}

impl LrcStats {
    /// Values in all factors.
    pub fn parameters(&self) -> usize {
        self.slots.iter().map(|slot| slot.parameters).sum()
    }

    /// Bytes of all factors.
    pub fn bytes(&self) -> usize {
        self.slots.iter().map(|slot| slot.bytes).sum()
    }

    /// Bytes of the ternary weights beside them.
    pub fn packed_weight_bytes(&self) -> usize {
        self.slots.iter().filter_map(|slot| slot.packed_weight_bytes).sum()
    }

    /// Bytes of the factors for each byte of the ternary weights beside them; `None` where there is no such weight.
    pub fn overhead(&self) -> Option<f64> {
        let weights = self.packed_weight_bytes();
        (weights > 0).then(|| self.bytes() as f64 / weights as f64)
    }
}

/// Ranks, parameters and bytes of every correction and adapter.
pub fn stats(model: &impl Slots) -> LrcStats {
    let mut stats = LrcStats::default();
    for_each_slot(model, |path, slot| {
        if let Some(low_rank) = &slot.low_rank {
            stats.slots.push(SlotStats {
                path: path.into(),
                kind: low_rank.kind(),
                rank: low_rank.rank(),
                parameters: n_values(low_rank).iter().sum(),
                bytes: bytes(low_rank),
                packed_weight_bytes: packed_weight_bytes(slot),
            });
        }
    });
    stats
}

/// Of `U` and of `V`.
fn n_values(low_rank: &LowRank) -> [usize; 2] {
    [low_rank.d_output() * low_rank.rank(), low_rank.d_input() * low_rank.rank()]
}

fn bytes(low_rank: &LowRank) -> usize {
    let per_factor = |n: usize| match low_rank.kind() {
        LowRankKind::Correction | LowRankKind::Lora { .. } => 4 * n,
        LowRankKind::QuantizedCorrection(quant) => quant.bytes(n),
    };
    n_values(low_rank).into_iter().map(per_factor).sum()
}

fn packed_weight_bytes(slot: &Projection) -> Option<usize> {
    let granularity = match &slot.form {
        Form::Dense(_) => return None,
        Form::Bit(linear) => linear.quantization().weight,
        Form::Packed(linear) => linear.granularity(),
    };
    let (d_output, d_input) = (slot.d_output(), slot.d_input());
    let scales = match granularity {
        Granularity::Tensor => 1,
        Granularity::Row => d_output,
        Granularity::Group(group) => d_output * d_input / group,
    };
    Some((d_output * d_input).div_ceil(4) + 4 * scales)
}
