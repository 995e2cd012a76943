//! The machine: its processor, what it copies and multiplies, how much memory a process took.

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use serde::{Deserialize, Serialize};

/// What an operation cannot do faster, on the threads of this process.
#[derive(Serialize, Deserialize)]
pub(crate) struct Peaks {
    /// Bytes read and written each second by a copy of 1 GiB.
    pub(crate) copy_bytes: f64,
    /// Bytes read each second where nothing is written, the same 1 GiB.
    pub(crate) read_bytes: f64,
    /// Multiplications and additions each second of a dense f32 product, 2048 × 2048 × 2048.
    pub(crate) dense_operations: f64,
}

impl Peaks {
    /// Seconds for so many operations and bytes, whichever takes longer.
    pub(crate) fn floor(&self, operations: f64, bytes: f64) -> f64 {
        (operations / self.dense_operations).max(bytes / self.copy_bytes)
    }
}

pub(crate) fn peaks(device: &Device) -> Peaks {
    const LENGTH: usize = 1 << 28;
    let from = vec![1.0_f32; LENGTH];
    let mut to = vec![0.0_f32; LENGTH];
    let copy = median_seconds(|| copy_in_parallel(&from, &mut to));
    let normal = || Tensor::<2>::random([2048, 2048], Distribution::Normal(0.0, 1.0), device);
    let (a, b) = (normal(), normal());
    let product = median_seconds(|| {
        std::hint::black_box(a.clone().matmul(b.clone()));
    });
    let read = median_seconds(|| {
        std::hint::black_box(sum_in_parallel(&from));
    });
    Peaks {
        copy_bytes: (8 * LENGTH) as f64 / copy,
        read_bytes: (4 * LENGTH) as f64 / read,
        dense_operations: 2.0 * 2048.0_f64.powi(3) / product,
    }
}

/// A thread's part of so many numbers.
fn share(len: usize) -> usize {
    let threads = std::env::var("RAYON_NUM_THREADS").ok().and_then(|threads| threads.parse().ok());
    len.div_ceil(threads.unwrap_or(1))
}

/// The sum of the bits, which compilers vectorise.
fn sum_in_parallel(from: &[f32]) -> u32 {
    let sum = |from: &[f32]| from.iter().map(|value| value.to_bits()).fold(0, u32::wrapping_add);
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            from.chunks(share(from.len())).map(|from| scope.spawn(move || sum(from))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).fold(0, u32::wrapping_add)
    })
}

fn copy_in_parallel(from: &[f32], to: &mut [f32]) {
    let share = share(from.len());
    std::thread::scope(|scope| {
        for (from, to) in from.chunks(share).zip(to.chunks_mut(share)) {
            scope.spawn(|| to.copy_from_slice(std::hint::black_box(from)));
        }
    });
}

/// The median of up to nine runs within a quarter of a second, at least one, after one that is not timed.
pub(crate) fn median_seconds(mut run: impl FnMut()) -> f64 {
    run();
    let begin = Instant::now();
    let mut seconds = Vec::new();
    while seconds.is_empty() || (seconds.len() < 9 && begin.elapsed().as_secs_f64() < 0.25) {
        let start = Instant::now();
        run();
        seconds.push(start.elapsed().as_secs_f64());
    }
    median(&mut seconds)
}

/// The middle value, or the mean of the two in the middle; 0 of none.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

/// What Linux calls the processor.
pub(crate) fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The most memory of this process that was resident, as Linux counts it.
pub(crate) fn peak_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
