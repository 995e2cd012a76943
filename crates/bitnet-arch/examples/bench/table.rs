//! The results as tables.

use serde::Serialize;

use crate::machine::median;
use crate::model::{Steps, TOKENS};
use crate::ops::Ops;

/// The training steps of one kind of model, over all turns.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    seconds: Vec<f64>,
    forward_seconds: Vec<f64>,
    median_seconds: f64,
    median_forward_seconds: f64,
    peak_bytes: Option<u64>,
}

impl Row {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            seconds: Vec::new(),
            forward_seconds: Vec::new(),
            median_seconds: 0.0,
            median_forward_seconds: 0.0,
            peak_bytes: None,
        }
    }

    /// One more turn.
    pub(crate) fn add(&mut self, steps: Steps) {
        self.seconds.extend(steps.seconds);
        self.forward_seconds.extend(steps.forward_seconds);
        self.median_seconds = median(&mut self.seconds);
        self.median_forward_seconds = median(&mut self.forward_seconds);
        self.peak_bytes = self.peak_bytes.max(steps.peak_bytes);
    }
}

/// Each kind beside the first, our dense model.
pub(crate) fn print_steps(rows: &[Row]) {
    println!(
        "| one step | median | fastest | slowest | tokens/s | × dense | forward | × dense | at most resident |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let Some(dense) = rows.first() else { return };
    for row in rows {
        let Row { name, seconds, median_seconds, median_forward_seconds: forward, peak_bytes, .. } = row;
        // The median has sorted them.
        let [fastest, slowest] = [seconds.first(), seconds.last()].map(|end| end.copied().unwrap_or(0.0));
        let peak =
            peak_bytes.map_or("?".into(), |bytes| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)));
        println!(
            "| {name} | {median_seconds:.3} s | {fastest:.3} s | {slowest:.3} s | {:.1} | {:.2} | {forward:.3} s | {:.2} | {peak} |",
            f64::from(TOKENS) / median_seconds,
            median_seconds / dense.median_seconds,
            forward / dense.median_forward_seconds,
        );
    }
}

pub(crate) fn print_ops(ops: &Ops) {
    println!(
        "copy {:.1} GB/s, read {:.1} GB/s, dense product {:.0} GFLOP/s",
        ops.peaks.copy_bytes / 1e9,
        ops.peaks.read_bytes / 1e9,
        ops.peaks.dense_operations / 1e9
    );
    println!("| operation | shape | time | floor | floor / time | dense | × dense |");
    println!("|---|---|---|---|---|---|---|");
    for op in &ops.rows {
        let (dense, ratio) = match op.dense_seconds {
            Some(dense) => (milliseconds(dense), format!("{:.2}", op.seconds / dense)),
            None => Default::default(),
        };
        println!(
            "| {} | {} | {} | {} | {:.0} % | {dense} | {ratio} |",
            op.name,
            op.shape,
            milliseconds(op.seconds),
            milliseconds(op.floor_seconds),
            100.0 * op.floor_seconds / op.seconds,
        );
    }
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.3} ms", 1e3 * seconds)
}
