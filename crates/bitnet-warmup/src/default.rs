//! The process-wide default λ, for layers that have none of their own.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::{WarmupError, check_lambda};

const UNSET: u32 = 1.0_f32.to_bits();

/// The bits of an f32, so that a reader sees one whole value. It guards no other data, so `Relaxed` suffices.
static DEFAULT: AtomicU32 = AtomicU32::new(UNSET);

/// The process-wide default λ: 1 unless [`set_default_lambda`] changed it.
pub fn default_lambda() -> f32 {
    f32::from_bits(DEFAULT.load(Ordering::Relaxed))
}

/// Sets the process-wide default λ, for all threads.
///
/// # Errors
/// [`WarmupError::Lambda`] if it is outside 0..=1 or not a number; the default stays as it was.
pub fn set_default_lambda(lambda: f32) -> Result<(), WarmupError> {
    DEFAULT.store(check_lambda(lambda)?.to_bits(), Ordering::Relaxed);
    Ok(())
}

/// Sets the process-wide default λ back to its unset value, 1.
pub fn reset_default_lambda() {
    DEFAULT.store(UNSET, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// One test, because the default belongs to the whole process and tests run side by side.
    #[test]
    fn one_default_for_all_threads() {
        assert_eq!(default_lambda(), 1.0, "unset");

        thread::spawn(|| set_default_lambda(0.25)).join().unwrap().unwrap();
        assert_eq!(default_lambda(), 0.25, "set by another thread");

        for bad in [-0.1, 1.1, f32::NAN] {
            assert!(matches!(set_default_lambda(bad), Err(WarmupError::Lambda { .. })));
            assert_eq!(default_lambda(), 0.25, "unchanged after {bad}");
        }

        let values: [f32; 4] = [0.1, 0.3, 0.7, 0.9]; // all four bytes differ, so a torn read would show
        set_default_lambda(values[0]).unwrap();
        thread::scope(|scope| {
            for value in values {
                scope.spawn(move || (0..1000).for_each(|_| set_default_lambda(value).unwrap()));
                scope.spawn(move || (0..1000).for_each(|_| assert!(values.contains(&default_lambda()))));
            }
        });

        reset_default_lambda();
        assert_eq!(default_lambda(), 1.0, "reset");
    }
}
