//! Threads that wait for short tasks.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::Yield;

/// Runs `work` while the pool's other threads look for its tasks without falling asleep in between.
///
/// For work of many short parallel parts with gaps of some microseconds between them, as a token's: rayon lets idle
/// threads sleep, and to wake one takes as long as such a part. They spin instead, so what runs beside `work` gets
/// less of the processor.
pub fn with_awake_threads<R>(work: impl FnOnce() -> R) -> R {
    if rayon::current_num_threads() == 1 {
        return work();
    }
    let done = AtomicBool::new(false);
    rayon::in_place_scope(|scope| {
        scope.spawn_broadcast(|_, _| {
            // A thread that has such work itself, the caller's own or another's, would wait for what waits for it.
            let mut idle_since = Instant::now();
            while !WORKS.get() && !done.load(Ordering::Relaxed) && idle_since.elapsed() < PATIENCE {
                if rayon::yield_now() == Some(Yield::Executed) {
                    idle_since = Instant::now();
                } else {
                    std::hint::spin_loop();
                }
            }
        });
        let _end = End { done: &done, outer: WORKS.replace(true) };
        work()
    })
}

/// How long a thread looks for tasks in vain. It may have come here in the middle of a task, which it took from another
/// caller and has yet to finish: whoever waits for that task would wait for ever.
const PATIENCE: Duration = Duration::from_millis(2);

thread_local! {
    /// Whether this thread is within the work of a call.
    static WORKS: Cell<bool> = const { Cell::new(false) };
}

/// Lets the spinning threads go, also when `work` panics.
struct End<'a> {
    done: &'a AtomicBool,
    /// What [`WORKS`] was before.
    outer: bool,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        WORKS.set(self.outer);
        self.done.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    fn sum_twice() -> u64 {
        with_awake_threads(|| (0..2).map(|_| (0..1000u64).into_par_iter().sum::<u64>()).sum())
    }

    #[test]
    fn work_runs_inside_and_outside_of_a_pool() {
        assert_eq!(sum_twice(), 999_000);
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(sum_twice), 999_000);
        }
    }

    #[test]
    fn calls_nest() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(pool.install(|| with_awake_threads(sum_twice)), 999_000);
    }

    /// Each of two callers waits for parts that the other's thread would have to do.
    #[test]
    fn callers_in_one_pool_do_not_wait_for_each_other() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let many = || (0..200).for_each(|_| assert_eq!(sum_twice(), 999_000));
        pool.install(|| rayon::join(many, many));
    }

    #[test]
    fn a_panic_passes_through() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let work = move || pool.install(|| with_awake_threads(|| panic!("of the work")));
        assert!(std::thread::spawn(work).join().is_err());
    }
}
