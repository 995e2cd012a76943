use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use crate::files::write_text;
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

    /// Goes on with the file of a run that was interrupted: lines of steps from `step` on, which will come again, and
    /// what is no line are dropped. A file that is not there is created.
    ///
    /// # Errors
    /// [`TrainError::Write`]
    pub fn resume(path: impl Into<PathBuf>, step: u64) -> Result<Self, TrainError> {
        let path = path.into();
        let old = match fs::read(&path) {
            Ok(old) => old,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Self::create(path),
            Err(error) => return Err(write_error(&path, error)),
        };
        let done = |line: &&str| {
            let value = serde_json::from_str::<Value>(line).ok();
            value.and_then(|value| value.get("step")?.as_u64()).is_some_and(|found| found < step)
        };
        let old = String::from_utf8_lossy(&old);
        let kept: String = old.lines().filter(done).flat_map(|line| [line, "\n"]).collect();
        write_text(&path, &kept)?;
        let file = File::options().append(true).open(&path).map_err(|error| write_error(&path, error))?;
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
    /// Steps that were done before.
    first: u64,
    tokens_per_step: usize,
}

impl Progress {
    /// A bar for a run of `steps` steps of `tokens_per_step` tokens.
    pub fn new(name: &str, steps: u64, tokens_per_step: usize) -> Self {
        let template = "{prefix:>12} {bar:24} {pos}/{len}  {msg}  {eta} left";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(steps).with_style(style).with_prefix(name.to_owned());
        Self { bar, start: Instant::now(), first: 0, tokens_per_step }
    }

    /// The same bar where `step` steps have been done already.
    pub fn resumed_at(mut self, step: u64) -> Self {
        self.bar.set_position(step);
        self.bar.reset_eta();
        self.first = step;
        self
    }

    /// Prints a line above the bar.
    pub fn note(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    /// Shows a step that is done.
    pub fn show(&self, report: &StepReport) {
        let StepReport { loss, lambda, .. } = report;
        self.bar.inc(1);
        self.bar
            .set_message(format!("loss {loss:.3}  λ {lambda:.2}  {:.0} tokens/s", self.tokens_per_second()));
    }

    /// Tokens per second since this process began.
    pub fn tokens_per_second(&self) -> f64 {
        let steps = self.bar.position().saturating_sub(self.first);
        (steps as usize * self.tokens_per_step) as f64 / self.start.elapsed().as_secs_f64()
    }

    /// Takes the bar off the screen.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_resumed_log_holds_each_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::resume(&path, 0).unwrap();
        for step in 0..5 {
            log.write(&json!({ "step": step, "loss": 0.5 })).unwrap();
        }
        log.write(&json!({ "step": 2, "perplexity": 3.0 })).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{{\"step\": 1, \"lo")).unwrap();
        let mut log = MetricsLog::resume(&path, 3).unwrap();
        log.write(&json!({ "step": 3, "loss": 0.25 })).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let steps: Vec<u64> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap())
            .collect();
        assert_eq!(steps, [0, 1, 2, 2, 3]);
        assert_eq!(text.matches("0.25").count(), 1);
    }
}
