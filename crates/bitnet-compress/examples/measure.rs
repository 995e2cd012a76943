//! Speed and memory: makes a checkpoint of so many GB in bf16 in a folder, compresses it, and removes both.
//!
//!     cargo run --release -p bitnet-compress --example measure -- /tmp 0.5 1 2 4

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use bitnet_compress::{Options, Stage, compress};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let mut words = std::env::args().skip(1);
    let folder = words.next().ok_or("usage: measure FOLDER GB..")?;
    let folder = Path::new(&folder).join(format!("bitnet-measure-{}", std::process::id()));
    for gb in words {
        let gb: f64 = gb.parse()?;
        for packed in [false, true] {
            fs::create_dir_all(&folder)?;
            let (source, target) = (folder.join("source"), folder.join("target"));
            let bytes = write_checkpoint(&source, (gb * 1e9) as u64)?;
            let options = Options { packed, ..Options::default() };
            let (start, cpu, mut written) = (Instant::now(), cpu_seconds(), 0.0);
            let stats = compress(&source, &target, &options, &mut |stage, _, _| {
                if stage == Stage::Write {
                    written = start.elapsed().as_secs_f64();
                }
            })?;
            let seconds = start.elapsed().as_secs_f64();
            let cpu = cpu.zip(cpu_seconds()).map_or(f64::NAN, |(before, after)| after - before);
            let speed = |seconds: f64| bytes as f64 / 1e6 / seconds;
            println!(
                "{gb} GB, packed {packed}: {seconds:.2} s, {:.0} MB/s of input in all, {:.0} MB/s until it was written; \
                 peak {}; {cpu:.1} s of processor time; {} tensors ternary",
                speed(seconds),
                speed(written),
                peak().unwrap_or_else(|| "unknown".into()),
                stats.total.ternarized,
            );
            fs::remove_dir_all(&folder)?;
        }
    }
    Ok(())
}

/// Blocks of a Llama with d_model 4096, as many as fit.
fn write_checkpoint(folder: &Path, bytes: u64) -> Result<u64, Error> {
    fs::create_dir_all(folder)?;
    let shapes = [
        ("self_attn.q_proj", [4096, 4096]),
        ("self_attn.k_proj", [1024, 4096]),
        ("self_attn.v_proj", [1024, 4096]),
        ("self_attn.o_proj", [4096, 4096]),
        ("mlp.up_proj", [11008, 4096]),
        ("mlp.down_proj", [4096, 11008]),
    ];
    let per_layer: u64 = shapes.iter().map(|(_, [rows, columns])| rows * columns * 2).sum();
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for layer in 0..(bytes / per_layer).max(1) {
        for (name, [rows, columns]) in shapes {
            let next = end + rows * columns * 2;
            header.insert(
                format!("model.layers.{layer}.{name}.weight"),
                serde_json::json!({ "dtype": "BF16", "shape": [rows, columns], "data_offsets": [end, next] }),
            );
            end = next;
        }
    }
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(folder.join("model.safetensors"))?);
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(&text)?;
    let mut state = 1u64;
    let mut chunk = vec![0; 1 << 20];
    let mut left = end as usize;
    while left > 0 {
        for pair in chunk.chunks_mut(2) {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Signs and mantissas at random, exponents of 2⁻⁸ to 2⁻⁵.
            let bits = (state >> 48) as u16;
            pair.copy_from_slice(&(bits & 0x81ff | 0x3b80).to_le_bytes());
        }
        let n = left.min(chunk.len());
        file.write_all(&chunk[..n])?;
        left -= n;
    }
    file.into_inner()?.sync_all()?;
    Ok(end)
}

/// Processor time of this process, user and system, on Linux, whose clock ticks 100 times a second.
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

/// The most memory that this process has held, on Linux.
fn peak() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    Some(line.split_once(':')?.1.trim().into())
}
