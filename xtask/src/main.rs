//! Developer tasks of the workspace: `cargo xtask <command>`.
//!
//! | command | what it does |
//! |---|---|
//! | `smoke-train` | the main job: a dense checkpoint is converted to BitNet and trained, and the result is checked |
//! | `make-small-model` | trains the small dense checkpoint that the repository carries |
//! | `lrc-results` | measures corrections after ternarizing without training, and rewrites the table of docs/results.md |
//! | `train-results` | trains ternary models in several ways, and rewrites another table of docs/results.md |
//! | `bench` | one training step: dense, by plain operations, fused, and PyTorch's; or single operations beside their floors |
//! | `test` | unit tests, doc tests, and the cross-crate suites, one process per backend |
//! | `interop` | the exports in transformers, the gguf package and llama.cpp; writes docs/interop.md |
//! | `downstream` | builds and runs the example crate outside of the workspace |
//! | `ci` | all of the above checks and the lints; `ci deps` alone checks which crate depends on which |
//!
//! Every command starts cargo with the features that a device needs and leaves what cargo prints as it is. This
//! crate depends on neither Burn nor any crate of the workspace, so it builds in seconds.

mod cargo;
mod ci;
mod device;
mod downstream;
mod error;
mod example;
mod interop;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cargo::Cargo;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Developer tasks of the BitNet workspace",
    arg_required_else_help = true
)]
struct Cli {
    /// Print the cargo commands instead of running them
    #[arg(long, global = true)]
    dry_run: bool,

    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Convert a dense checkpoint to BitNet, train it, check the result (release build)
    SmokeTrain(example::Smoke),
    /// Train the small dense checkpoint that the repository carries (release build)
    MakeSmallModel(example::SmallModel),
    /// Measure what recovers quality after ternarizing, and rewrite the table of docs/results.md (release build)
    LrcResults(example::Results),
    /// Train ternary models in several ways, and rewrite their table of docs/results.md (release build)
    TrainResults(example::Results),
    /// Measure training steps, or single operations, also beside PyTorch (release build)
    Bench(example::Bench),
    /// Run all tests: units, documentation, and the suites of every backend that is present
    Test(test::Options),
    /// Prove the exports against transformers, the gguf package and llama.cpp (release build, Python)
    Interop(interop::Options),
    /// Build and run the example crate outside of the workspace
    Downstream,
    /// Run everything that continuous integration runs
    Ci(ci::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let cargo = Cargo::new(cli.dry_run);
    let result = match cli.task {
        Task::SmokeTrain(smoke) => example::run(&cargo, "smoke_train", &smoke.flags),
        Task::MakeSmallModel(small) => example::run(&cargo, "make_small_model", &small.flags),
        Task::LrcResults(results) => example::run(&cargo, "lrc_results", &results.flags),
        Task::TrainResults(results) => example::run(&cargo, "train_results", &results.flags),
        Task::Bench(bench) => example::bench(&cargo, bench.flags),
        Task::Test(options) => test::run(&cargo, &options),
        Task::Interop(options) => interop::run(&cargo, &options),
        Task::Downstream => downstream::run(&cargo),
        Task::Ci(options) => ci::run(&cargo, &options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let first: &dyn std::error::Error = &error;
            let chain = std::iter::successors(Some(first), |error| error.source());
            eprintln!("error: {}", chain.map(ToString::to_string).collect::<Vec<_>>().join(": "));
            ExitCode::from(error.exit_status())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn unknown_flags_go_to_the_example_in_order() {
        let line =
            ["xtask", "smoke-train", "--steps", "10", "--device", "wgpu:1", "--data", "a.txt", "b.txt"];
        let Task::SmokeTrain(smoke) = Cli::parse_from(line).task else { panic!("not smoke-train") };
        assert_eq!(smoke.flags, &line[2..]);
    }
}
