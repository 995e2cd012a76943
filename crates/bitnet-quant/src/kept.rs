use std::any::Any;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bitnet_format::Granularity;
use burn::backend::autodiff::NodeId;

/// What quantizing a layer's weight gave, kept while the weight stays as it is: for every micro-batch of an optimizer step.
///
/// A weight is known by its node in the autodiff graph. Whatever changes a weight gives it another: an optimizer's step, a
/// loaded record, a move to another device. A weight without a node, as that of a model for inference, is not kept, nor one in
/// half precision, which each forward pass casts anew. Nor is a clone's: its weight most often goes another way.
#[derive(Debug, Default)]
pub struct KeptCodes(Mutex<Option<Kept>>);

#[derive(Debug)]
struct Kept {
    node: NodeId,
    granularity: Granularity,
    value: Box<dyn Any + Send>,
}

impl Clone for KeptCodes {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl KeptCodes {
    /// The value that was kept for this weight, if it is of this type, and otherwise a new one, which takes its place and may
    /// take its memory.
    pub(crate) fn get<T: Clone + Send + 'static>(
        &self,
        node: NodeId,
        granularity: Granularity,
        quantize: impl FnOnce(Option<T>) -> T,
    ) -> T {
        let before = {
            let mut slot = self.slot();
            if let Some(kept) = &*slot
                && (kept.node, kept.granularity) == (node, granularity)
                && let Some(value) = kept.value.downcast_ref::<T>()
            {
                return value.clone();
            }
            // Taken, so that there are never two.
            slot.take().and_then(|kept| kept.value.downcast().ok()).map(|value| *value)
        };
        // Outside of the lock: kernels run tasks, and one may be another batch of this layer.
        let value = quantize(before);
        *self.slot() = Some(Kept { node, granularity, value: Box::new(value.clone()) });
        value
    }

    fn slot(&self) -> MutexGuard<'_, Option<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_serves_its_weight_granularity_and_type_alone() {
        let (kept, [first, second]) = (KeptCodes::default(), [NodeId::new(), NodeId::new()]);
        let get = |node, granularity, value: u32| kept.get(node, granularity, |_| value);
        assert_eq!(get(first, Granularity::Tensor, 1), 1);
        assert_eq!(get(first, Granularity::Tensor, 2), 1, "the same weight");
        assert_eq!(get(second, Granularity::Tensor, 3), 3, "another weight");
        assert_eq!(get(first, Granularity::Tensor, 4), 4, "a weight of before");
        assert_eq!(get(first, Granularity::Row, 5), 5, "another granularity");
        assert_eq!(kept.get(first, Granularity::Row, |_| "six"), "six", "another type");
        assert_eq!(kept.clone().get(first, Granularity::Row, |_| "seven"), "seven", "a clone");
        assert_eq!(kept.get(first, Granularity::Row, |_| "eight"), "six");
        assert_eq!(
            kept.get(second, Granularity::Row, |before| before.unwrap_or("nothing")),
            "six",
            "its memory"
        );
    }
}
