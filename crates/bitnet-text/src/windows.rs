//! Cutting tokens into windows of one length, splitting them and ordering them.

use rand::rngs::ChaCha12Rng;
use rand::{Rng, SeedableRng};

use crate::{Batches, TextError};

/// Tokens cut into windows of one length that do not overlap. There is always at least one window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenWindows {
    /// Whole windows only.
    tokens: Vec<u32>,
    window: usize,
}

#[expect(clippy::len_without_is_empty, reason = "never empty")]
impl TokenWindows {
    /// Cuts `tokens` into windows of `window` tokens; what remains at the end is dropped.
    ///
    /// # Errors
    /// - [`TextError::WindowTooShort`] if `window` is 0 or 1: no token could be predicted from another.
    /// - [`TextError::TextTooShort`] if the tokens do not fill one window.
    pub fn new(mut tokens: Vec<u32>, window: usize) -> Result<Self, TextError> {
        if window < 2 {
            return Err(TextError::WindowTooShort { window });
        }
        if tokens.len() < window {
            return Err(TextError::TextTooShort { tokens: tokens.len(), window });
        }
        tokens.truncate(tokens.len() / window * window);
        Ok(Self { tokens, window })
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.tokens.len() / self.window
    }

    /// Number of tokens in each window.
    pub fn window(&self) -> usize {
        self.window
    }

    /// The tokens of window `index`, in the order of the text; `None` if there is no such window.
    pub fn get(&self, index: usize) -> Option<&[u32]> {
        self.tokens.chunks_exact(self.window).nth(index)
    }

    /// Checks that a model with this vocabulary knows every token.
    ///
    /// # Errors
    /// [`TextError::TokenOutOfRange`] names the first token that is too high, and its position in these windows.
    pub fn check_vocab(&self, vocab_size: usize) -> Result<(), TextError> {
        match self.tokens.iter().position(|&token| token as usize >= vocab_size) {
            Some(position) => {
                Err(TextError::TokenOutOfRange { token: self.tokens[position], position, vocab_size })
            }
            None => Ok(()),
        }
    }

    /// Splits into windows for training and held-out windows, which are the last ones of the text.
    ///
    /// The held-out side gets `held_out_share` of the windows, rounded half to even.
    ///
    /// # Errors
    /// [`TextError::Split`] if either side would be empty, or the share is not a number in 0..1.
    pub fn split(mut self, held_out_share: f64) -> Result<(Self, Self), TextError> {
        let windows = self.len();
        // The cast saturates, and takes NaN to 0.
        let held_out = (windows as f64 * held_out_share).round_ties_even() as usize;
        if held_out == 0 || held_out >= windows {
            return Err(TextError::Split { share: held_out_share, windows });
        }
        let tokens = self.tokens.split_off((windows - held_out) * self.window);
        let held_out = Self { tokens, window: self.window };
        Ok((self, held_out))
    }

    /// The window indices in an order that depends on `seed`, `epoch` and the number of windows alone.
    ///
    /// A Fisher–Yates shuffle driven by ChaCha12, both fixed here, so that a saved run keeps its order for good.
    pub fn shuffled_order(&self, seed: u64, epoch: u64) -> Vec<usize> {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&epoch.to_le_bytes());
        let mut rng = ChaCha12Rng::from_seed(key);

        let mut order: Vec<usize> = (0..self.len()).collect();
        for last in (1..order.len()).rev() {
            // Scales 64 random bits to 0..=last; the bias is below 2⁻⁶⁴ · (last + 1).
            let other = (u128::from(rng.next_u64()) * (last as u128 + 1)) >> 64;
            order.swap(last, other as usize);
        }
        order
    }

    /// An endless stream of batches of `batch_size` windows, in a new shuffled order each epoch.
    ///
    /// # Errors
    /// [`TextError::EmptyBatch`] if `batch_size` is 0.
    pub fn batches(&self, batch_size: usize, seed: u64) -> Result<Batches<'_>, TextError> {
        Batches::new(self, batch_size, seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distinct tokens, each its own position.
    fn counting(tokens: u32, window: usize) -> TokenWindows {
        TokenWindows::new((0..tokens).collect(), window).unwrap()
    }

    fn all(windows: &TokenWindows) -> Vec<u32> {
        (0..windows.len()).flat_map(|i| windows.get(i).unwrap()).copied().collect()
    }

    #[test]
    fn every_kept_token_is_in_exactly_one_window() {
        for tokens in 2..40 {
            for window in 2..=tokens as usize {
                let windows = counting(tokens, window);
                assert_eq!(windows.window(), window);
                assert_eq!(windows.len(), tokens as usize / window);
                assert!((0..windows.len()).all(|i| windows.get(i).unwrap().len() == window));
                assert_eq!(windows.get(windows.len()), None);
                let kept = windows.len() * window;
                assert_eq!(all(&windows), (0..kept as u32).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn bad_lengths_are_refused() {
        for window in [0, 1] {
            assert!(matches!(TokenWindows::new(vec![1, 2, 3], window),
                Err(TextError::WindowTooShort { window: found }) if found == window));
        }
        assert!(matches!(
            TokenWindows::new(vec![1, 2, 3], 4),
            Err(TextError::TextTooShort { tokens: 3, window: 4 })
        ));
        assert!(matches!(
            TokenWindows::new(vec![], 2),
            Err(TextError::TextTooShort { tokens: 0, window: 2 })
        ));
    }

    #[test]
    fn check_vocab_names_the_first_token_out_of_range() {
        let windows = TokenWindows::new(vec![3, 0, 7, 9, 5, 9, 1_000_000], 2).unwrap();
        windows.check_vocab(10).unwrap(); // the dropped tail does not count
        assert!(matches!(
            windows.check_vocab(9),
            Err(TextError::TokenOutOfRange { token: 9, position: 3, vocab_size: 9 })
        ));
    }

    #[test]
    fn a_split_keeps_every_window_once_and_holds_out_the_last() {
        for (tokens, share, held_out) in
            [(100, 0.1, 1), (100, 0.25, 2), (100, 0.35, 4), (100, 0.9, 9), (20, 0.5, 1), (200, 0.3, 6)]
        {
            let whole = counting(tokens, 10);
            let (train, test) = whole.clone().split(share).unwrap();
            assert_eq!(
                (train.len(), test.len()),
                (whole.len() - held_out, held_out),
                "{share} of {}",
                whole.len()
            );
            assert_eq!([all(&train), all(&test)].concat(), all(&whole));
        }
    }

    #[test]
    fn a_split_with_an_empty_side_is_refused() {
        for (tokens, share) in
            [(10, 0.5), (100, 0.0), (100, 0.05), (100, 0.95), (100, 1.0), (100, -0.1), (100, 9.0)]
        {
            assert!(matches!(counting(tokens, 10).split(share),
                Err(TextError::Split { share: found, windows }) if found == share && windows == tokens as usize / 10));
        }
        for share in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(matches!(counting(100, 10).split(share), Err(TextError::Split { .. })));
        }
    }

    #[test]
    fn an_order_is_a_permutation() {
        for windows in (1..50).chain([1000]) {
            for (seed, epoch) in [(0, 0), (1, 0), (0, 1), (u64::MAX, u64::MAX)] {
                let mut order = counting(2 * windows, 2).shuffled_order(seed, epoch);
                order.sort_unstable();
                assert_eq!(order, (0..windows as usize).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn orders_repeat_for_the_same_key_and_differ_for_others() {
        let windows = counting(200, 2);
        let keys = [(0, 0), (0, 1), (1, 0), (1, 1), (1 << 32, 0), (0, 1 << 32)];
        let orders = keys.map(|(seed, epoch)| windows.shuffled_order(seed, epoch));
        assert_eq!(orders, keys.map(|(seed, epoch)| windows.shuffled_order(seed, epoch)));
        for (i, order) in orders.iter().enumerate() {
            assert!(!orders[..i].contains(order), "{:?}", keys[i]);
        }
    }

    /// Saved runs depend on this order: it must never change.
    #[test]
    fn the_order_is_pinned() {
        assert_eq!(counting(20, 2).shuffled_order(42, 3), [8, 7, 3, 2, 6, 1, 0, 4, 9, 5]);
    }

    #[test]
    fn every_window_comes_first_about_equally_often() {
        let windows = counting(20, 2);
        let mut counts = [0; 10];
        for epoch in 0..10_000 {
            counts[windows.shuffled_order(7, epoch)[0]] += 1;
        }
        // 1000 ± 30 each (one standard deviation); six of them leave no room for chance.
        assert!(counts.iter().all(|count| (820..1180).contains(count)), "{counts:?}");
    }
}
