//! How far a long run over tensors is.

use crate::source::{Entry, Source};

/// Tells a caller how many weights are done.
pub(crate) struct Progress<'a> {
    done: u64,
    total: u64,
    tell: &'a mut dyn FnMut(u64, u64),
}

impl<'a> Progress<'a> {
    /// `tell` is called with the weights done and their total number, now and after each tensor.
    pub(crate) fn new(source: &dyn Source, tell: &'a mut dyn FnMut(u64, u64)) -> Self {
        let total = source.entries().iter().map(weights).sum();
        tell(0, total);
        Self { done: 0, total, tell }
    }

    pub(crate) fn advance(&mut self, entry: &Entry) {
        self.done += weights(entry);
        (self.tell)(self.done, self.total);
    }
}

fn weights(entry: &Entry) -> u64 {
    entry.shape.iter().product::<usize>() as u64
}
