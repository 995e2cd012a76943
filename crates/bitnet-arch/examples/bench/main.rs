//! Training steps and single operations on the CPU, measured: `cargo xtask bench`.
//!
//! Everything that is measured runs in a process of its own, so that its peak memory is its own: the example starts
//! itself again with `--child`. The processes take turns, so that a slow minute of the machine is one for all.

mod machine;
mod model;
mod ops;
mod table;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::{Parser, ValueEnum};
use serde::de::DeserializeOwned;
use serde_json::json;

use model::Steps;
use table::Row;

#[derive(Parser)]
#[command(name = "bench", about = "Training steps and single operations, measured on flex")]
struct Flags {
    /// Steps of a turn that are timed, after one that is not
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,
    /// How often each kind of model has its turn
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    turns: u64,
    /// Blocks of the model; SmolLM2-135M has 30
    #[arg(long, default_value_t = 30)]
    layers: usize,
    /// Threads of each process
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    threads: u64,
    /// Single operations instead of training steps
    #[arg(long, conflicts_with = "torch")]
    ops: bool,
    /// PyTorch's steps beside ours
    #[arg(long, requires = "python")]
    torch: bool,
    /// A Python with torch and transformers
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Writes the results as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What this process measures; it prints JSON
    #[arg(long, hide = true)]
    child: Option<Child>,
}

/// What one process measures.
#[derive(Clone, Copy, ValueEnum)]
enum Child {
    Dense,
    Naive,
    Fused,
    Ops,
}

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<(), Box<dyn Error>> {
    let results = match flags.child {
        Some(Child::Ops) => {
            println!("{}", serde_json::to_string(&ops::measure()?)?);
            return Ok(());
        }
        Some(child) => {
            println!("{}", serde_json::to_string(&model::measure(child, flags.layers, flags.repeat)?)?);
            return Ok(());
        }
        None if flags.ops => {
            let ops: ops::Ops = output(&mut child(flags, "ops")?)?;
            table::print_ops(&ops);
            json!(ops)
        }
        None => {
            let rows = steps(flags)?;
            table::print_steps(&rows);
            json!({ "layers": flags.layers, "tokens": model::TOKENS, "rows": rows })
        }
    };
    if let Some(path) = &flags.json {
        let results =
            json!({ "processor": machine::processor(), "threads": flags.threads, "results": results });
        std::fs::write(path, format!("{results:#}\n"))?;
    }
    Ok(())
}

/// The training steps of each kind, in turns.
fn steps(flags: &Flags) -> Result<Vec<Row>, Box<dyn Error>> {
    let mut rows: Vec<Row> = ["dense", "naive", "fused"].into_iter().map(Row::new).collect();
    if flags.torch {
        rows.extend(["torch-dense", "torch-naive"].map(Row::new));
    }
    for turn in 1..=flags.turns {
        for row in &mut rows {
            eprintln!("turn {turn} of {}: {}", flags.turns, row.name);
            let mut command = match row.name.strip_prefix("torch-") {
                Some(kind) => torch(flags, kind)?,
                None => child(flags, &row.name)?,
            };
            row.add(output::<Steps>(&mut command)?);
        }
    }
    Ok(rows)
}

/// This program again, to measure one thing.
fn child(flags: &Flags, what: &str) -> Result<Command, Box<dyn Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--child", what]);
    command.args(["--repeat", &flags.repeat.to_string(), "--layers", &flags.layers.to_string()]);
    command.env("RAYON_NUM_THREADS", flags.threads.to_string());
    Ok(command)
}

/// The script that measures PyTorch.
fn torch(flags: &Flags, kind: &str) -> Result<Command, Box<dyn Error>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/interop/bench_torch.py");
    let mut command = Command::new(flags.python.as_ref().ok_or("no Python")?);
    command.arg(script).args(["--kind", kind, "--tokens", &model::TOKENS.to_string()]);
    command.args(["--repeat", &flags.repeat.to_string(), "--layers", &flags.layers.to_string()]);
    command.args(["--threads", &flags.threads.to_string()]);
    Ok(command)
}

/// What a process prints, as JSON; its messages go to the terminal.
fn output<T: DeserializeOwned>(command: &mut Command) -> Result<T, Box<dyn Error>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run `{program}`: {error}"))?;
    if !output.status.success() {
        return Err(format!("`{program}` failed: {}", output.status).into());
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("`{program}` printed no results: {error}").into())
}
