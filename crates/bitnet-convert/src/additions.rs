//! What `config.json` says of slots beyond their form: low-rank maps, turned weights, salient columns.

use std::collections::{BTreeMap, BTreeSet};

use bitnet_layers::{
    Form, Hadamard, LowRank, LowRankKind, Outliers, Projection, Salient, for_each_slot, for_each_slot_mut,
};
use bitnet_model::CausalLm;
use burn::module::Initializer;
use burn::nn::LinearConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::fields::Fields;
use crate::names::Names;
use crate::{ConvertError, HfConfig};

/// The key of this object in `config.json`.
pub(crate) const KEY: &str = "bitnet_arch_slots";

/// What the slots of a model have, by their names.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Additions {
    /// Corrections and adapters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) low_rank: BTreeMap<String, LowRankState>,
    /// Slots whose weight and input are turned by a Hadamard matrix.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) hadamard: BTreeSet<String>,
    /// Columns in full precision.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) salient: BTreeMap<String, Vec<usize>>,
}

/// A correction or adapter, without its factors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LowRankState {
    rank: usize,
    kind: LowRankKind,
    #[serde(default, skip_serializing_if = "is_zero")]
    dropout: f64,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// The object as it is written: with the `model_type` that transformers would not know what to make of.
#[derive(Deserialize)]
struct Written {
    base_model_type: String,
    #[serde(flatten)]
    additions: serde_json::Map<String, Value>,
}

impl Additions {
    /// What the slots of a model have.
    pub(crate) fn of(model: &CausalLm, names: &Names) -> Self {
        let mut additions = Self::default();
        for_each_slot(model, |path, slot| {
            let name = names.slot(path).unwrap_or_else(|| path.into());
            if let Some(low_rank) = &slot.low_rank {
                let (rank, kind, dropout) = (low_rank.rank(), low_rank.kind(), low_rank.dropout());
                additions.low_rank.insert(name.clone(), LowRankState { rank, kind, dropout });
            }
            match &slot.outliers {
                None => {}
                Some(Outliers::Hadamard(_)) => {
                    additions.hadamard.insert(name);
                }
                Some(Outliers::Salient(salient)) => {
                    additions.salient.insert(name, salient.columns().to_vec());
                }
            }
        });
        additions
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The additions, and the `model_type` to read the other fields by where there are any.
    pub(crate) fn parse(fields: &Fields) -> Result<(Self, Option<String>), ConvertError> {
        let Some(Written { base_model_type, additions }) = fields.get(KEY)? else {
            return Ok((Self::default(), None));
        };
        let additions = serde_json::from_value(Value::Object(additions));
        let additions = additions.map_err(|error| fields.wrong(KEY, &error.to_string()))?;
        Ok((additions, Some(base_model_type)))
    }

    /// The object to write.
    pub(crate) fn to_json(&self, base_model_type: &str) -> Value {
        let mut written = json!(self);
        written["base_model_type"] = json!(base_model_type);
        written
    }

    /// Every slot that is named.
    fn slots(&self) -> impl Iterator<Item = &String> {
        self.low_rank.keys().chain(&self.hadamard).chain(self.salient.keys())
    }

    /// What a format that has no words for them would lose; `None` if nothing.
    pub(crate) fn loss(&self) -> Option<String> {
        let kinds = [
            (self.low_rank.len(), "low-rank maps beside the weights"),
            (self.hadamard.len(), "weights turned by a Hadamard matrix"),
            (self.salient.len(), "weights with columns in full precision"),
        ];
        let found: Vec<String> =
            kinds.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        (!found.is_empty()).then(|| found.join(", "))
    }
}

/// Gives a fresh dense model the parameters that its checkpoint's slots have in addition, allocated when they are first
/// used.
///
/// # Errors
/// [`ConvertError::Unsupported`] for a name that is no slot's, or a slot with two treatments of outliers;
/// [`ConvertError::Layer`] for ranks, columns and settings that do not fit a slot.
pub(crate) fn insert_additions(model: &mut CausalLm, config: &HfConfig) -> Result<(), ConvertError> {
    let additions = &config.additions;
    if additions.is_empty() {
        return Ok(());
    }
    let unsupported = |found: &str, reason: &str| ConvertError::Unsupported {
        field: KEY,
        found: found.into(),
        reason: reason.into(),
    };
    if let Some(name) = additions.hadamard.iter().find(|name| additions.salient.contains_key(*name)) {
        return Err(unsupported(name, "expected a Hadamard matrix or salient columns, not both"));
    }
    let names = Names::new(&config.model, config.sub_norm_names());
    let (mut known, mut result) = (BTreeSet::new(), Ok(()));
    for_each_slot_mut(model, |path, slot| {
        if let (Some(name), Ok(())) = (names.slot(path), &result) {
            result = insert(slot, &name, additions);
            known.insert(name);
        }
    });
    result?;
    match additions.slots().find(|name| !known.contains(*name)) {
        Some(name) => Err(unsupported(name, "the model has no such slot")),
        None => Ok(()),
    }
}

fn insert(slot: &mut Projection, name: &str, additions: &Additions) -> Result<(), ConvertError> {
    let (d_output, d_input, device) = (slot.d_output(), slot.d_input(), slot.device());
    let has_bias = slot.bias().is_some();
    let dense = |d_input| {
        let linear = LinearConfig::new(d_input, d_output).with_bias(has_bias);
        Form::Dense(linear.init(&device))
    };
    let zeros = |shape: [usize; 2]| Initializer::Zeros.init(shape, &device);
    if additions.hadamard.contains(name) {
        slot.form = dense(d_input.next_power_of_two());
        slot.outliers = Some(Outliers::Hadamard(Hadamard { d_input }));
    }
    if let Some(columns) = additions.salient.get(name) {
        let salient = Salient::new(zeros([d_output, columns.len()]), columns.clone(), d_input)?;
        slot.form = dense(d_input - columns.len());
        slot.outliers = Some(Outliers::Salient(salient));
    }
    if let Some(&LowRankState { rank, kind, dropout }) = additions.low_rank.get(name) {
        let low_rank = LowRank::from_params(zeros([d_output, rank]), zeros([d_input, rank]), kind)?;
        slot.set_low_rank(low_rank.with_dropout(dropout)?)?;
    }
    Ok(())
}
