//! The checks against other engines: `cargo xtask interop` makes what they need and starts `tests/interop/run.py`.

pub(crate) mod environment;

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::cargo::{Cargo, target_directory};
use crate::error::Error;
use crate::interop::environment::Environment;
use crate::test::executable;

/// Where the checks find llama.cpp's shared libraries, and beside them its programs.
const LIBRARIES: &str = "LLAMA_CPP_LIB_PATH";

/// Flags of `interop`.
#[derive(Args)]
#[command(after_help = "\
Checks: gguf, transformers, llama-float, llama-ternary, emulation, tokenizer, tokenizers,
imports, sizes, refusals.

Without --python the first run makes a Python environment (torch, transformers, gguf, llama-cpp-python) and builds
llama.cpp in $BITNET_INTEROP_ENV, or in bitnet-interop in the user's cache folder: half an hour on two cores. It needs
python3 with venv, a C++ compiler and PyPI; torch comes from its index of CPU builds where that answers, else from PyPI
with 4 GB of GPU libraries.")]
pub(crate) struct Options {
    /// Use this Python, which has what tests/interop/requirements.txt names; LLAMA_CPP_LIB_PATH may name a llama.cpp build
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,

    /// Use this `bitnet` instead of building it
    #[arg(long, value_name = "PROGRAM")]
    bitnet: Option<PathBuf>,

    /// Run only this check, and leave docs/interop.md as it is; may be repeated
    #[arg(long, value_name = "CHECK")]
    only: Vec<String>,

    /// Measure the speed of `bitnet` and llama.cpp instead, in turns; nothing else should run on the machine
    #[arg(long, conflicts_with = "only")]
    bench: bool,

    /// Further flags of the script: tests/interop/run.py, or bench_llama.py with --bench
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

/// Makes the environment and the command where they are not given, and runs the checks or the measurements.
///
/// # Errors
/// [`Error::Failed`] if something cannot be installed or built, and with status 1 if a check does not hold.
pub(crate) fn run(cargo: &Cargo, options: &Options) -> Result<(), Error> {
    let environment = match &options.python {
        Some(python) => Environment { python: absolute(python), libraries: None },
        None => environment::ready(cargo)?,
    };
    let bitnet = match &options.bitnet {
        Some(program) => absolute(program),
        None => build(cargo)?,
    };
    let mut script = script(cargo.root(), &environment, &bitnet, options);
    if options.bench
        && let Some(kernels) = kernels(cargo)?
    {
        script.arg("--kernels").arg(kernels);
    }
    cargo.run("interop", &mut script)
}

/// The command that runs the script.
fn script(root: &Path, environment: &Environment, bitnet: &Path, options: &Options) -> Command {
    let folder = root.join("tests/interop");
    let mut command = Command::new(&environment.python);
    if let (Some(libraries), None) = (&environment.libraries, std::env::var_os(LIBRARIES)) {
        command.env(LIBRARIES, libraries);
    }
    command
        .arg(folder.join(if options.bench { "bench_llama.py" } else { "run.py" }))
        .arg("--bitnet")
        .arg(bitnet);
    if !options.bench {
        command.arg("--transcript").arg(root.join("docs/interop.md"));
    }
    command.args(options.only.iter().flat_map(|check| ["--only", check])).args(&options.flags);
    command
}

/// Builds the command in release and returns its program.
fn build(cargo: &Cargo) -> Result<PathBuf, Error> {
    let target = target_directory(&cargo.metadata()?)?;
    cargo.run("building `bitnet`", &mut cargo.command(["build", "--release", "--package", "bitnet-cli"]))?;
    Ok(target.join("release").join(format!("bitnet{}", std::env::consts::EXE_SUFFIX)))
}

/// Builds the benchmark of the kernels and returns its program; `None` in a dry run.
fn kernels(cargo: &Cargo) -> Result<Option<PathBuf>, Error> {
    let mut command = cargo.command(["bench", "--package", "bitnet-cpu", "--bench", "kernels", "--no-run"]);
    command.arg("--message-format=json-render-diagnostics");
    cargo.show(&command);
    if cargo.is_dry_run() {
        return Ok(None);
    }
    let messages = cargo.output("building the benchmark of the kernels", &mut command)?;
    executable(&messages, "bench", "kernels").map(Some).ok_or(Error::NoProgram { name: "kernels" })
}

/// A program's path as the caller means it: a bare name is searched for, anything else is relative to the caller's folder.
fn absolute(program: &Path) -> PathBuf {
    if program.components().count() == 1 {
        return program.to_owned();
    }
    std::path::absolute(program).unwrap_or_else(|_| program.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(only: &[&str], bench: bool) -> Options {
        let only = only.iter().map(|&check| check.to_owned()).collect();
        Options { python: None, bitnet: None, only, bench, flags: vec!["--steps".to_owned(), "9".to_owned()] }
    }

    fn line(options: &Options) -> String {
        let environment = Environment { python: "/env/bin/python".into(), libraries: None };
        let command = script(Path::new("/repository"), &environment, Path::new("/bitnet"), options);
        command.get_args().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_checks_write_the_transcript_and_the_measurements_do_not() {
        assert_eq!(
            line(&options(&["gguf", "sizes"], false)),
            "/repository/tests/interop/run.py --bitnet /bitnet --transcript /repository/docs/interop.md \
             --only gguf --only sizes --steps 9"
        );
        assert_eq!(
            line(&options(&[], true)),
            "/repository/tests/interop/bench_llama.py --bitnet /bitnet --steps 9"
        );
    }

    #[test]
    fn a_bare_name_is_left_to_the_search_path() {
        assert_eq!(absolute(Path::new("python3")), Path::new("python3"));
        assert!(absolute(Path::new("target/release/bitnet")).is_absolute());
    }
}
