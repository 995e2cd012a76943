//! Windows of a token file, in an order that takes no memory.

use std::sync::Arc;

use crate::{TextError, TokenFile};

/// A [`TokenFile`] cut into windows of one length that do not overlap. There is always at least one window, and none
/// is in memory: each is read when it is asked for.
///
/// ```no_run
/// use bitnet_text::{FileWindows, TokenFile};
///
/// let windows = FileWindows::new(TokenFile::open("tokens.safetensors", "tokens")?, 256)?;
/// let (train, held_out) = windows.split(0.05)?;
/// let batch = train.batch(42, 0, 8)?; // the first 8 windows of the stream that seed 42 deals
/// # Ok::<(), bitnet_text::TextError>(())
/// ```
#[derive(Debug, Clone)]
pub struct FileWindows {
    tokens: Arc<TokenFile>,
    window: usize,
    /// The first window, counted from the file's beginning.
    first: u64,
    len: u64,
}

#[expect(clippy::len_without_is_empty, reason = "never empty")]
impl FileWindows {
    /// Cuts a file into windows of `window` tokens; what remains at the end is dropped.
    ///
    /// # Errors
    /// - [`TextError::WindowTooShort`] if `window` is 0 or 1.
    /// - [`TextError::TextTooShort`] if the tokens do not fill one window.
    pub fn new(tokens: TokenFile, window: usize) -> Result<Self, TextError> {
        if window < 2 {
            return Err(TextError::WindowTooShort { window });
        }
        let len = tokens.len() / window as u64;
        if len == 0 {
            return Err(TextError::TextTooShort { tokens: tokens.len() as usize, window });
        }
        Ok(Self { tokens: Arc::new(tokens), window, first: 0, len })
    }

    /// Number of windows.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Number of tokens in each window.
    pub fn window(&self) -> usize {
        self.window
    }

    /// The tokens of window `index`, in the order of the file; the last window for any higher index.
    ///
    /// # Errors
    /// Those of [`TokenFile::read`].
    pub fn get(&self, index: u64) -> Result<Vec<u32>, TextError> {
        let index = self.first + index.min(self.len - 1);
        self.tokens.read(index * self.window as u64, self.window)
    }

    /// Splits into windows for training and held-out windows, which are the last ones of the file, as
    /// [`TokenWindows::split`](crate::TokenWindows::split) does.
    ///
    /// # Errors
    /// [`TextError::Split`] if either side would be empty, or the share is not a number in 0..1.
    pub fn split(self, held_out_share: f64) -> Result<(Self, Self), TextError> {
        let windows = self.len;
        // The cast saturates, and takes NaN to 0.
        let held_out = (windows as f64 * held_out_share).round_ties_even() as u64;
        if held_out == 0 || held_out >= windows {
            return Err(TextError::Split { share: held_out_share, windows: windows as usize });
        }
        let train = Self { len: windows - held_out, ..self.clone() };
        let held_out = Self { first: self.first + train.len, len: held_out, ..self };
        Ok((train, held_out))
    }

    /// `count` windows of the endless stream that `seed` deals, from `position` on. Each epoch deals every window
    /// once, in an order of its own that depends on seed, epoch and the number of windows alone.
    ///
    /// # Errors
    /// [`TextError::EmptyBatch`] if `count` is 0, and those of [`TokenFile::read`].
    pub fn batch(&self, seed: u64, position: u64, count: usize) -> Result<Vec<Vec<u32>>, TextError> {
        if count == 0 {
            return Err(TextError::EmptyBatch);
        }
        let dealt = (0..count as u64).map(|i| {
            let position = position.wrapping_add(i);
            self.get(permute(position % self.len, self.len, seed, position / self.len))
        });
        dealt.collect()
    }
}

/// Where the shuffle of an epoch takes an index below `len`: a bijection, computed without a table.
///
/// A Feistel network over the next power of four, applied again until the result is below `len`. Saved runs depend
/// on it: it must never change.
fn permute(index: u64, len: u64, seed: u64, epoch: u64) -> u64 {
    let half = (u64::BITS - (len - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1 << half) - 1;
    let keys: [u64; 6] = std::array::from_fn(|round| mix(seed ^ mix(epoch ^ mix(round as u64))));
    let mut value = index;
    loop {
        let (mut left, mut right) = (value >> half, value & mask);
        for key in keys {
            (left, right) = (right, left ^ mix(right ^ key) & mask);
        }
        value = left << half | right;
        if value < len {
            return value;
        }
    }
}

/// SplitMix64's finalizer, with its increment so that 0 is no fixed point.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token_file::{TENSOR, TokenWriter};

    /// Distinct tokens, each its own position.
    fn counting(tokens: u32, window: usize) -> Result<FileWindows, TextError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = TokenWriter::new(file.reopen().unwrap()).unwrap();
        writer.write(&(0..tokens).collect::<Vec<_>>()).unwrap();
        writer.finish().unwrap();
        FileWindows::new(TokenFile::open(file.path(), TENSOR).unwrap(), window)
    }

    #[test]
    fn windows_and_splits_are_those_of_memory() {
        for (tokens, window, share) in [(103, 10, 0.2), (40, 2, 0.5), (9, 3, 0.4)] {
            let file = counting(tokens, window).unwrap();
            let memory = crate::TokenWindows::new((0..tokens).collect(), window).unwrap();
            let (file_sides, memory_sides) = (file.split(share).unwrap(), memory.split(share).unwrap());
            for (file, memory) in [(file_sides.0, memory_sides.0), (file_sides.1, memory_sides.1)] {
                assert_eq!((file.len(), file.window()), (memory.len() as u64, memory.window()));
                for i in 0..memory.len() {
                    assert_eq!(file.get(i as u64).unwrap(), memory.get(i).unwrap());
                }
            }
        }
        assert!(matches!(counting(9, 1), Err(TextError::WindowTooShort { window: 1 })));
        assert!(matches!(counting(9, 10), Err(TextError::TextTooShort { tokens: 9, window: 10 })));
        for share in [0.0, 0.01, 1.0, f64::NAN, -1.0] {
            assert!(matches!(counting(20, 2).unwrap().split(share), Err(TextError::Split { .. })), "{share}");
        }
    }

    #[test]
    fn every_epoch_deals_every_window_once_in_its_own_order() {
        let windows = counting(200, 2).unwrap();
        let dealt = |seed, epoch: u64| windows.batch(seed, epoch.wrapping_mul(100), 100).unwrap();
        let orders = [(0, 0), (0, 1), (1, 0), (1, 1), (1 << 40, 0), (0, 1 << 40)].map(|(s, e)| dealt(s, e));
        for (i, order) in orders.iter().enumerate() {
            let mut sorted = order.concat();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..200).collect::<Vec<_>>());
            assert!(!orders[..i].contains(order));
        }
        let whole = windows.batch(7, 0, 250).unwrap();
        for size in [1, 7, 100] {
            let batches = (0..250 / size).map(|i| windows.batch(7, (i * size) as u64, size).unwrap());
            assert_eq!(batches.flatten().collect::<Vec<_>>(), whole[..250 / size * size]);
        }
        assert!(matches!(windows.batch(7, 0, 0), Err(TextError::EmptyBatch)));
        assert_eq!(windows.batch(7, u64::MAX, 3).unwrap().len(), 3, "any position is valid");
    }

    #[test]
    fn a_shuffle_is_a_permutation_of_any_length() {
        for len in (1..70).chain([1000, 4096, 4097]) {
            let mut order: Vec<u64> = (0..len).map(|index| permute(index, len, 3, 5)).collect();
            order.sort_unstable();
            assert_eq!(order, (0..len).collect::<Vec<_>>());
        }
        assert!(permute(u64::MAX - 1, u64::MAX, 1, 1) < u64::MAX);
    }

    #[test]
    fn every_window_comes_first_about_equally_often() {
        let mut counts = [0; 10];
        for epoch in 0..10_000 {
            counts[permute(0, 10, 7, epoch) as usize] += 1;
        }
        // 1000 ± 30 each (one standard deviation); six of them leave no room for chance.
        assert!(counts.iter().all(|count| (820..1180).contains(count)), "{counts:?}");
    }

    /// Saved runs depend on this order: it must never change.
    #[test]
    fn the_order_is_pinned() {
        let order: Vec<u64> = (0..10).map(|index| permute(index, 10, 42, 3)).collect();
        assert_eq!(order, [6, 5, 8, 7, 1, 2, 3, 4, 0, 9]);
    }
}
