//! All tests: those of each crate, and the cross-crate suites, once per backend and each in a process of its own.
//!
//! One set of features serves the whole run, so Burn is built once. `cuda` and `vulkan` change that set (`vulkan`
//! takes the place of `wgpu`): they run when they are named, from a target folder of their own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::cargo::{Cargo, target_directory};
use crate::error::Error;

/// The features of the ordinary build, beside the default `flex`.
pub(crate) const FEATURES: [&str; 2] = ["ndarray", "wgpu"];

/// The variable that names backends which must be present, separated by commas. Each suite is told its own name
/// by it, so that it cannot skip what this run counts as tested.
const REQUIRE: &str = "BITNET_REQUIRE";

/// Flags of `test`.
#[derive(Args)]
pub(crate) struct Options {
    /// Run only the suite of this backend, and no unit tests; may be repeated
    #[arg(long, value_enum, value_name = "NAME")]
    backend: Vec<Backend>,

    /// Run this backend's suite too, and fail if the backend is absent; may be repeated (the variable
    /// BITNET_REQUIRE=wgpu,cuda adds to it)
    #[arg(long, value_enum, value_name = "NAME")]
    require: Vec<Backend>,

    /// Arguments for the test programs, as a filter on test names
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
}

impl Options {
    /// All tests, with these backends required.
    pub(crate) fn requiring(backends: &[Backend]) -> Self {
        Self { backend: Vec::new(), require: backends.to_vec(), args: Vec::new() }
    }
}

/// A backend that has a suite: a test target of that name in the package bitnet-tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Backend {
    Flex,
    Ndarray,
    Wgpu,
    Vulkan,
    Cuda,
}

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Ndarray => "ndarray",
            Self::Wgpu => "wgpu",
            Self::Vulkan => "vulkan",
            Self::Cuda => "cuda",
        }
    }

    /// Whether a machine may lack it.
    fn is_gpu(self) -> bool {
        !matches!(self, Self::Flex | Self::Ndarray)
    }
}

/// A set of features, and the backends that it serves.
struct Build {
    features: &'static [&'static str],
    backends: &'static [Backend],
    /// A folder inside the target folder, if not that folder itself.
    folder: Option<&'static str>,
}

/// The ordinary build, which has the unit tests too, comes first.
const BUILDS: [Build; 3] = [
    Build { features: &FEATURES, backends: &[Backend::Flex, Backend::Ndarray, Backend::Wgpu], folder: None },
    Build { features: &["vulkan"], backends: &[Backend::Vulkan], folder: Some("vulkan") },
    Build { features: &["cuda"], backends: &[Backend::Cuda], folder: Some("cuda") },
];

impl Build {
    /// `cargo test` on the whole workspace: the same packages each time, or cargo would choose other features.
    fn test(&self, cargo: &Cargo, target: &Path) -> Command {
        let features: Vec<_> =
            self.features.iter().map(|feature| format!("bitnet-tests/{feature}")).collect();
        let mut command = cargo.command(["test", "--workspace", "--features", &features.join(",")]);
        if let Some(folder) = self.folder {
            command.arg("--target-dir").arg(target.join(folder));
        }
        command
    }

    /// Builds every test and example, and returns what `bitnet devices` prints: the devices that answer. `None` in a dry
    /// run.
    fn all(&self, cargo: &Cargo, target: &Path) -> Result<Option<String>, Error> {
        let mut command = self.test(cargo, target);
        command.args(["--no-run", "--message-format=json-render-diagnostics"]);
        cargo.show(&command);
        if cargo.is_dry_run() {
            return Ok(None);
        }
        let messages = cargo.output("building the tests", &mut command)?;
        let bitnet = executable(&messages, "bin", "bitnet").ok_or(Error::NoProgram { name: "bitnet" })?;
        match cargo.output("`bitnet devices`", Command::new(bitnet).arg("devices")) {
            Ok(lines) => Ok(Some(lines)),
            // A driver may take the process down with it; then no GPU counts as present.
            Err(Error::Failed { .. }) => Ok(Some(String::new())),
            Err(error) => Err(error),
        }
    }
}

/// How one part of the run ended.
#[derive(Debug, PartialEq)]
enum Outcome {
    Passed,
    Failed,
    /// The backend is not there, and nobody asked for it.
    Skipped(String),
    /// The backend is not there, but required.
    Absent(String),
}

/// Builds and runs the tests, prints a summary.
///
/// # Errors
/// [`Error::Tests`] names what failed; [`Error::Failed`] if something does not build.
pub(crate) fn run(cargo: &Cargo, options: &Options) -> Result<(), Error> {
    let required = required(options, std::env::var(REQUIRE).ok().as_deref())?;
    let suites = suites(options, &required);
    let metadata = cargo.metadata()?;
    let target = target_directory(&metadata)?;
    let mut summary = Vec::new();
    let run = |name: &str, command: &mut Command| {
        let start = Instant::now();
        let outcome = match cargo.run(name, command.args(dashed(&options.args))) {
            Ok(()) => Outcome::Passed,
            Err(Error::Failed { .. }) => Outcome::Failed,
            Err(error) => return Err(error),
        };
        Ok((name.to_owned(), outcome, start.elapsed().as_secs()))
    };
    for build in &BUILDS {
        let units = build.folder.is_none() && options.backend.is_empty();
        let suites: Vec<_> = suites.iter().filter(|suite| build.backends.contains(suite)).collect();
        if suites.is_empty() && !units {
            continue;
        }
        let devices = build.all(cargo, &target)?;
        if units {
            let mut tests = build.test(cargo, &target);
            tests.args(["--no-fail-fast", "--lib", "--bins"]).args(integration_tests(&metadata));
            summary.push(run("unit and integration tests", &mut tests)?);
            let mut documentation = build.test(cargo, &target);
            summary.push(run("documentation tests", documentation.args(["--no-fail-fast", "--doc"]))?);
        }
        for &backend in suites {
            let name = format!("suite {}", backend.name());
            if let Some(reason) = devices.as_deref().and_then(|lines| absence(lines, backend)) {
                let absent = if required.contains(&backend) { Outcome::Absent } else { Outcome::Skipped };
                summary.push((name, absent(reason), 0));
                continue;
            }
            let mut suite = build.test(cargo, &target);
            suite.args(["--test", backend.name()]).env(REQUIRE, backend.name());
            summary.push(run(&name, &mut suite)?);
        }
    }
    if cargo.is_dry_run() {
        return Ok(());
    }
    report(&summary)
}

/// The backends that must be present: those of the flags and of the variable.
fn required(options: &Options, variable: Option<&str>) -> Result<BTreeSet<Backend>, Error> {
    let mut required: BTreeSet<Backend> = options.require.iter().copied().collect();
    for name in variable.unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let all = Backend::value_variants();
        let backend =
            all.iter().find(|backend| backend.name() == name).ok_or_else(|| Error::UnknownDevice {
                name: name.to_owned(),
                known: all.iter().map(|backend| backend.name()).collect::<Vec<_>>().join(", "),
            })?;
        required.insert(*backend);
    }
    Ok(required)
}

/// The suites to run, in order.
fn suites(options: &Options, required: &BTreeSet<Backend>) -> BTreeSet<Backend> {
    let ordinary = [Backend::Flex, Backend::Ndarray, Backend::Wgpu];
    let chosen: &[Backend] = if options.backend.is_empty() { &ordinary } else { &options.backend };
    chosen.iter().chain(required).copied().collect()
}

/// The path of the program `name` of a kind, `bin` or `bench`, among cargo's JSON messages, not of its unit tests.
pub(crate) fn executable(messages: &str, kind: &str, name: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut artifacts = messages.filter(|message| {
        message["reason"] == "compiler-artifact"
            && message["target"]["name"] == name
            && message["target"]["kind"] == serde_json::json!([kind])
            && message["profile"]["test"] == (kind == "bench")
    });
    artifacts.find_map(|artifact| artifact["executable"].as_str().map(PathBuf::from))
}

/// Why a backend cannot run, from the lines of `bitnet devices` (`wgpu present`, `wgpu absent: no adapter`); `None` if it
/// can.
fn absence(devices: &str, backend: Backend) -> Option<String> {
    if !backend.is_gpu() {
        return None;
    }
    let mut lines = devices.lines().filter_map(|line| line.split_once(' '));
    match lines.find(|(name, _)| *name == backend.name()) {
        Some((_, state)) if state.starts_with("present") => None,
        Some((_, state)) => Some(state.to_owned()),
        None => Some("`bitnet devices` does not list it".to_owned()),
    }
}

/// `--test NAME` for every integration test that is no suite.
fn integration_tests(metadata: &Value) -> Vec<String> {
    let is_suite = |name: &str| Backend::value_variants().iter().any(|backend| backend.name() == name);
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages.filter_map(|package| package["targets"].as_array()).flatten();
    let tests = targets.filter(|target| target["kind"] == serde_json::json!(["test"]));
    let names: BTreeSet<&str> = tests.filter_map(|target| target["name"].as_str()).collect();
    names
        .into_iter()
        .filter(|name| !is_suite(name))
        .flat_map(|name| ["--test".to_owned(), name.to_owned()])
        .collect()
}

fn dashed(args: &[String]) -> Vec<&str> {
    let dashes = (!args.is_empty()).then_some("--");
    dashes.into_iter().chain(args.iter().map(String::as_str)).collect()
}

fn report(summary: &[(String, Outcome, u64)]) -> Result<(), Error> {
    println!("\nsummary");
    let width = summary.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    for (name, outcome, seconds) in summary {
        let text = match outcome {
            Outcome::Passed => format!("passed in {seconds} s"),
            Outcome::Failed => "FAILED".to_owned(),
            Outcome::Skipped(reason) => format!("skipped: {reason}"),
            Outcome::Absent(reason) => format!("FAILED: required, but {reason}"),
        };
        println!("  {name:width$}  {text}");
    }
    let bad = |outcome: &Outcome| matches!(outcome, Outcome::Failed | Outcome::Absent(_));
    let names: Vec<String> =
        summary.iter().filter(|(_, outcome, _)| bad(outcome)).map(|(name, ..)| name.clone()).collect();
    if names.is_empty() { Ok(()) } else { Err(Error::Tests { names }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(backend: &[Backend], require: &[Backend]) -> Options {
        Options { backend: backend.to_vec(), require: require.to_vec(), args: Vec::new() }
    }

    #[test]
    fn a_required_backend_is_run_whatever_is_chosen() {
        let run = |backend, require, variable| {
            let options = options(backend, require);
            let required = required(&options, variable).unwrap();
            suites(&options, &required).into_iter().map(Backend::name).collect::<Vec<_>>()
        };
        assert_eq!(run(&[], &[], None), ["flex", "ndarray", "wgpu"]);
        assert_eq!(run(&[], &[Backend::Wgpu], Some("")), ["flex", "ndarray", "wgpu"]);
        assert_eq!(run(&[Backend::Ndarray], &[], Some("wgpu, cuda")), ["ndarray", "wgpu", "cuda"]);
        assert_eq!(run(&[Backend::Vulkan], &[], None), ["vulkan"]);
    }

    #[test]
    fn an_unknown_name_in_the_variable_is_an_error() {
        let error = required(&options(&[], &[]), Some("wgpu,tpu")).unwrap_err();
        assert!(matches!(error, Error::UnknownDevice { name, .. } if name == "tpu"));
    }

    #[test]
    fn a_gpu_is_present_only_if_it_says_so() {
        let devices =
            "flex present\nwgpu absent: no adapter\nvulkan present: 1 adapter\ncuda not compiled in\n";
        assert_eq!(absence(devices, Backend::Wgpu).as_deref(), Some("absent: no adapter"));
        assert_eq!(absence(devices, Backend::Vulkan), None);
        assert_eq!(absence(devices, Backend::Cuda).as_deref(), Some("not compiled in"));
        assert!(absence("", Backend::Wgpu).is_some());
        assert_eq!(absence("", Backend::Ndarray), None);
    }

    #[test]
    fn a_program_is_found_among_cargo_s_messages() {
        let messages = r#"
            {"reason":"compiler-artifact","target":{"name":"bitnet","kind":["test"]},"profile":{"test":true},"executable":"/t/deps/bitnet-1"}
            {"reason":"compiler-artifact","target":{"name":"bitnet","kind":["bin"]},"profile":{"test":true},"executable":"/t/deps/bitnet-2"}
            {"reason":"compiler-artifact","target":{"name":"bitnet","kind":["bin"]},"profile":{"test":false},"executable":"/t/bitnet"}
            {"reason":"compiler-artifact","target":{"name":"kernels","kind":["bench"]},"profile":{"test":true},"executable":"/t/kernels"}
            {"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "bin", "bitnet"), Some(PathBuf::from("/t/bitnet")));
        assert_eq!(executable(messages, "bench", "kernels"), Some(PathBuf::from("/t/kernels")));
        assert_eq!(executable(messages, "bin", "smoke_train"), None);
    }

    #[test]
    fn suites_are_no_integration_tests() {
        let metadata = serde_json::json!({ "packages": [
            { "targets": [{ "name": "wgpu", "kind": ["test"] }, { "name": "files", "kind": ["test"] }] },
            { "targets": [{ "name": "lib", "kind": ["lib"] }, { "name": "files", "kind": ["test"] }] },
        ] });
        assert_eq!(integration_tests(&metadata), ["--test", "files"]);
    }

    #[test]
    fn a_failed_or_missing_backend_fails_the_run_and_a_skipped_one_does_not() {
        let row = |name: &str, outcome| (name.to_owned(), outcome, 0);
        let skipped = row("suite wgpu", Outcome::Skipped("absent".to_owned()));
        assert!(report(&[row("unit", Outcome::Passed), skipped]).is_ok());
        let absent = row("suite wgpu", Outcome::Absent("absent".to_owned()));
        let error =
            report(&[row("unit", Outcome::Failed), row("suite flex", Outcome::Passed), absent]).unwrap_err();
        assert!(matches!(error, Error::Tests { names } if names == ["unit", "suite wgpu"]));
    }
}
