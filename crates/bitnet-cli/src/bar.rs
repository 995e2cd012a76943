//! Progress bars on the standard error, for whatever takes more than a second.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work that takes less is not worth a bar.
const DELAY: Duration = Duration::from_secs(1);

/// A bar that appears once its work has taken a while, if the standard error is a terminal. It disappears with the
/// value.
pub(crate) struct Bar {
    bar: ProgressBar,
    /// When it may appear; `None` once it has, and where it never shall.
    appears: Option<Instant>,
}

impl Bar {
    pub(crate) fn new(label: &str, quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("{msg} {wide_bar} {percent:>3} %  {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(label.to_owned());
        Self { bar, appears: (!quiet).then(|| Instant::now() + DELAY) }
    }

    pub(crate) fn relabel(&mut self, label: &str) {
        self.bar.set_message(label.to_owned());
    }

    /// Shows how much of the work is done.
    pub(crate) fn set(&mut self, done: u64, total: u64) {
        if self.appears.is_some_and(|appears| Instant::now() >= appears) {
            self.appears = None;
            self.bar.set_draw_target(ProgressDrawTarget::stderr()); // hidden again where this is no terminal
        }
        self.bar.set_length(total.max(1));
        self.bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
