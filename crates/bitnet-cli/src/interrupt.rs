//! Ctrl-C in the middle of writing.

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the first interruption is a request.
static POLITE: AtomicBool = AtomicBool::new(false);

/// Whether it was made.
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From now on the first interruption is a request to stop, which [`stop_requested`] tells; the second ends the process.
pub(crate) fn be_polite() {
    POLITE.store(true, Ordering::SeqCst);
}

/// Whether somebody wants the process to stop when it can.
pub(crate) fn stop_requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// From now on an interrupted process removes what it has not finished before it ends, with the status that a shell
/// expects: 128 and the signal.
#[cfg(unix)]
pub(crate) fn clean_up() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    // Without it an interruption leaves a hidden file behind whose name says that it is partial.
    let Ok(mut signals) = Signals::new([SIGHUP, SIGINT, SIGTERM]) else { return };
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if POLITE.load(Ordering::SeqCst) && !REQUESTED.swap(true, Ordering::SeqCst) {
                continue;
            }
            INTERRUPTED.store(true, Ordering::SeqCst);
            bitnet_convert::remove_unfinished();
            std::process::exit(128 + signal);
        }
    });
}

#[cfg(not(unix))]
pub(crate) fn clean_up() {}

/// Waits for the end if the process is being interrupted: an error is then only that its files are gone.
pub(crate) fn wait_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        std::thread::park();
    }
}
