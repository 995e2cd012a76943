use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{StepReport, TrainError};

/// A file of one JSON object per line, each on disk as soon as it is written.
pub struct MetricsLog {
    path: PathBuf,
    file: BufWriter<File>,
}

impl MetricsLog {
    /// # Errors
    /// [`TrainError::Write`] where the file cannot be created.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, TrainError> {
        let path = path.into();
        let file = File::create(&path).map_err(|error| write_error(&path, error))?;
        Ok(Self { file: BufWriter::new(file), path })
    }

    /// # Errors
    /// [`TrainError::Write`]
    pub fn write(&mut self, line: &impl Serialize) -> Result<(), TrainError> {
        let json = serde_json::to_string(line).map_err(|error| write_error(&self.path, error.into()))?;
        writeln!(self.file, "{json}")
            .and_then(|()| self.file.flush())
            .map_err(|error| write_error(&self.path, error))
    }
}

fn write_error(path: &Path, error: std::io::Error) -> TrainError {
    TrainError::Write { path: path.into(), reason: error.to_string() }
}

/// A progress bar on standard error: step, loss, λ, tokens per second, time left. Silent where that is no terminal.
pub struct Progress {
    bar: ProgressBar,
    start: Instant,
    tokens_per_step: usize,
}

impl Progress {
    /// A bar for a run of `steps` steps of `tokens_per_step` tokens.
    pub fn new(name: &str, steps: u64, tokens_per_step: usize) -> Self {
        let template = "{prefix:>12} {bar:24} {pos}/{len}  {msg}  {eta} left";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(steps).with_style(style).with_prefix(name.to_owned());
        Self { bar, start: Instant::now(), tokens_per_step }
    }

    /// Shows a step that is done.
    pub fn show(&self, report: &StepReport) {
        let StepReport { loss, lambda, .. } = report;
        self.bar.inc(1);
        self.bar
            .set_message(format!("loss {loss:.3}  λ {lambda:.2}  {:.0} tokens/s", self.tokens_per_second()));
    }

    /// Tokens per second since the start.
    pub fn tokens_per_second(&self) -> f64 {
        (self.bar.position() as usize * self.tokens_per_step) as f64 / self.start.elapsed().as_secs_f64()
    }

    /// Takes the bar off the screen.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
