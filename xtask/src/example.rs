//! Examples of bitnet-arch that are run in release builds, with the features of the device that they are asked for.

use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use crate::cargo::Cargo;
use crate::device;
use crate::error::Error;
use crate::interop::environment;

/// Flags of `smoke-train`.
#[derive(Args)]
#[command(after_help = "\
Flags of the example:
  --device NAME        flex (default), ndarray, wgpu, vulkan, cuda; with an index: cuda:1
  --steps N            training steps
  --checkpoint DIR     a dense checkpoint in Hugging Face format instead of the repository's own
  --data PATH...       text files to train on
  --model smollm2-135m random weights at that model's shape instead of a checkpoint
  --seed N             seed of the run
  --subln PLACEMENT    where SubLN is inserted
  --schedule NAME      how λ rises
  --lrc                a stage more: low-rank corrections, trained beside frozen ternary weights
  --out DIR            the run folder
`cargo xtask smoke-train -- --help` builds the example and prints all of them.")]
pub(crate) struct Smoke {
    /// Flags of the example, passed on unchanged
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    pub(crate) flags: Vec<String>,
}

/// Flags of `make-small-model`.
#[derive(Args)]
pub(crate) struct SmallModel {
    /// Flags of the example, passed on unchanged; `--device NAME` also chooses what is built (default: flex)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    pub(crate) flags: Vec<String>,
}

/// Flags of `lrc-results` and `train-results`.
#[derive(Args)]
pub(crate) struct Results {
    /// Flags of the example, passed on unchanged: `--steps N`, `--seeds N`, `--device NAME`, `--out FILE`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    pub(crate) flags: Vec<String>,
}

/// Flags of `bench`.
#[derive(Args)]
#[command(after_help = "\
Flags of the example:
  --repeat N        steps of a turn that are timed
  --turns N         how often each kind of model has its turn
  --layers N        blocks of the model, fewer for a short run
  --threads N       threads of each process
  --ops             single operations instead of training steps
  --torch           PyTorch's steps beside ours
  --python PROGRAM  a Python with torch and transformers for them; without it, the environment of `interop`
  --json FILE       the results as JSON, too
Nothing else should run on the machine.")]
pub(crate) struct Bench {
    /// Flags of the example, passed on unchanged
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    pub(crate) flags: Vec<String>,
}

/// Makes the Python environment where the flags ask for PyTorch and name no Python, and runs the example.
///
/// # Errors
/// Those of [`run`] and [`environment::ready`].
pub(crate) fn bench(cargo: &Cargo, flags: Vec<String>) -> Result<(), Error> {
    let python = || environment::ready(cargo).map(|environment| environment.python);
    run(cargo, "bench", &with_python(flags, python)?)
}

/// The flags of `bench`, with the Python of an environment if they need one.
fn with_python(
    mut flags: Vec<String>,
    environment: impl FnOnce() -> Result<PathBuf, Error>,
) -> Result<Vec<String>, Error> {
    let has_python = flags.iter().any(|flag| flag == "--python" || flag.starts_with("--python="));
    if flags.iter().any(|flag| flag == "--torch") && !has_python {
        flags.extend(["--python".to_owned(), environment()?.to_string_lossy().into_owned()]);
    }
    Ok(flags)
}

/// Builds and runs the example `name` of bitnet-arch with `flags`, in the caller's folder.
///
/// # Errors
/// [`Error::UnknownDevice`], [`Error::NoValue`]; [`Error::Failed`] with the example's exit status.
pub(crate) fn run(cargo: &Cargo, name: &str, flags: &[String]) -> Result<(), Error> {
    cargo.run(name, &mut command(cargo, name, flags)?)
}

fn command(cargo: &Cargo, name: &str, flags: &[String]) -> Result<Command, Error> {
    let features = device::features(device(flags)?)?;
    let mut command =
        cargo.command(["run", "--release", "--package", "bitnet-arch", "--no-default-features"]);
    command.args(["--features", &features, "--example", name, "--"]).args(flags);
    // Relative paths among the flags are the caller's.
    if let Ok(folder) = std::env::current_dir() {
        command.current_dir(folder);
    }
    Ok(command)
}

/// The device that `flags` ask for.
fn device(flags: &[String]) -> Result<&str, Error> {
    for (i, flag) in flags.iter().enumerate() {
        if flag == "--device" {
            return flags.get(i + 1).map(String::as_str).ok_or(Error::NoValue { flag: "--device" });
        }
        if let Some(value) = flag.strip_prefix("--device=") {
            return Ok(value);
        }
    }
    Ok("flex")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device_of(line: &str) -> Result<String, Error> {
        let flags: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        device(&flags).map(str::to_owned)
    }

    #[test]
    fn the_device_is_found_among_the_flags() {
        assert_eq!(device_of("").unwrap(), "flex");
        assert_eq!(device_of("--steps 3 --device wgpu --seed 1").unwrap(), "wgpu");
        assert_eq!(device_of("--device=cuda:1").unwrap(), "cuda:1");
        assert!(matches!(device_of("--steps 3 --device"), Err(Error::NoValue { flag: "--device" })));
    }

    /// The command line of `bench` with these flags, where the environment is `/env`.
    fn bench_line(line: &str) -> String {
        let flags = line.split_whitespace().map(str::to_owned).collect();
        let flags = with_python(flags, || Ok("/env/venv/bin/python".into())).unwrap();
        let command = command(&Cargo::new(true), "bench", &flags).unwrap();
        command.get_args().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn measuring_makes_a_python_environment_only_where_it_needs_one() {
        let cargo =
            "run --release --package bitnet-arch --no-default-features --features flex --example bench --";
        assert_eq!(bench_line("--ops --json a.json"), format!("{cargo} --ops --json a.json"));
        assert_eq!(
            bench_line("--torch --layers 2"),
            format!("{cargo} --torch --layers 2 --python /env/venv/bin/python")
        );
        for given in ["--python python3 --torch", "--torch --python=python3"] {
            assert_eq!(bench_line(given), format!("{cargo} {given}"));
        }
        let failing = with_python(vec!["--torch".to_owned()], || Err(Error::NoCacheFolder));
        assert!(matches!(failing, Err(Error::NoCacheFolder)));
    }

    #[test]
    fn an_unknown_device_fails_before_anything_is_built() {
        let flags = ["--device".to_owned(), "abacus".to_owned()];
        let error = run(&Cargo::new(false), "smoke_train", &flags).unwrap_err();
        assert!(matches!(&error, Error::UnknownDevice { name, .. } if name == "abacus"));
        assert_eq!(error.exit_status(), 1);
    }
}
