//! The endless stream of training batches.

use crate::{TextError, TokenWindows};

/// An endless stream of batches, from [`TokenWindows::batches`].
///
/// Each batch is `batch_size` windows. An epoch deals every window once; a batch at its end goes on with the next
/// epoch's first windows, so that nothing is left out and every batch is full.
#[derive(Debug, Clone)]
pub struct Batches<'a> {
    windows: &'a TokenWindows,
    batch_size: usize,
    seed: u64,
    position: u64,
    epoch: u64,
    /// The order of `epoch`.
    order: Vec<usize>,
}

impl<'a> Batches<'a> {
    pub(crate) fn new(windows: &'a TokenWindows, batch_size: usize, seed: u64) -> Result<Self, TextError> {
        if batch_size == 0 {
            return Err(TextError::EmptyBatch);
        }
        let order = windows.shuffled_order(seed, 0);
        Ok(Self { windows, batch_size, seed, position: 0, epoch: 0, order })
    }

    /// Number of windows dealt so far; save it to [resume](Self::resume_at).
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on after the first `position` windows. With the same windows and seed, the windows that follow are the
    /// same as without the interruption; the batch size may be another.
    pub fn resume_at(mut self, position: u64) -> Self {
        self.position = position;
        self
    }

    fn next_window(&mut self) -> Option<&'a [u32]> {
        let windows = self.order.len() as u64;
        let (epoch, index) = (self.position / windows, self.position % windows);
        if epoch != self.epoch {
            self.order = self.windows.shuffled_order(self.seed, epoch);
            self.epoch = epoch;
        }
        self.position = self.position.wrapping_add(1);
        self.windows.get(self.order[index as usize])
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Vec<&'a [u32]>;

    /// The next batch: `batch_size` windows. Never `None`.
    fn next(&mut self) -> Option<Self::Item> {
        (0..self.batch_size).map(|_| self.next_window()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten windows: [0, 1], [2, 3] and so on.
    fn ten() -> TokenWindows {
        TokenWindows::new((0..20).collect(), 2).unwrap()
    }

    #[test]
    fn every_epoch_deals_every_window_once_in_its_own_order() {
        let windows = ten();
        for batch_size in [1, 3, 7, 10, 25] {
            let batches: Vec<_> = windows.batches(batch_size, 5).unwrap().take(60).collect();
            assert!(batches.iter().all(|batch| batch.len() == batch_size));
            for (epoch, dealt) in batches.concat().chunks_exact(10).enumerate() {
                let order = windows.shuffled_order(5, epoch as u64);
                let expected: Vec<_> = order.iter().map(|&i| windows.get(i).unwrap()).collect();
                assert_eq!(dealt, expected, "epoch {epoch}, batches of {batch_size}");
            }
        }
    }

    #[test]
    fn a_resumed_stream_continues_identically() {
        let windows = ten();
        for batch_size in [1, 3, 10, 25] {
            let mut batches = windows.batches(batch_size, 9).unwrap();
            for taken in 0..15 {
                assert_eq!(batches.position(), (taken * batch_size) as u64);
                let resumed = windows.batches(batch_size, 9).unwrap().resume_at(batches.position());
                assert!(resumed.take(8).eq(batches.clone().take(8)), "after {taken} batches of {batch_size}");
                batches.next();
            }
        }
    }

    #[test]
    fn a_stream_can_go_back_and_change_its_batch_size() {
        let windows = ten();
        let mut batches = windows.batches(4, 9).unwrap();
        let first = batches.next();
        batches.nth(5);
        assert_eq!(batches.resume_at(0).next(), first);

        let ones: Vec<_> = windows.batches(1, 9).unwrap().skip(14).take(6).flatten().collect();
        assert_eq!(windows.batches(6, 9).unwrap().resume_at(14).next(), Some(ones));
    }

    #[test]
    fn any_position_is_valid() {
        let windows = ten();
        let mut batches = windows.batches(4, 1).unwrap().resume_at(u64::MAX);
        assert_eq!(batches.next().unwrap().len(), 4);
    }

    #[test]
    fn a_batch_of_nothing_is_refused() {
        assert!(matches!(ten().batches(0, 1), Err(TextError::EmptyBatch)));
    }
}
