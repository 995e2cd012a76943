//! A folder with a Python environment and a build of llama.cpp, made once.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cargo::Cargo;
use crate::error::Error;

/// Where torch is without GPU libraries.
const TORCH_FOR_CPU: &str = "https://download.pytorch.org/whl/cpu";

/// llama.cpp from the source inside the binding's own, so that both are one version.
const CMAKE_FLAGS: [&str; 8] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_BUILD_APP=OFF",
];

/// What the scripts are started with.
pub(crate) struct Environment {
    /// The Python program.
    pub(crate) python: PathBuf,
    /// The folder of llama.cpp's libraries and programs, if not those inside the Python binding.
    pub(crate) libraries: Option<PathBuf>,
}

/// The environment in the cache folder, made unless it is there with the packages that are asked for today.
///
/// # Errors
/// [`Error::Failed`] names the step that failed; [`Error::File`] and [`Error::NoCacheFolder`] for its folder.
pub(crate) fn ready(cargo: &Cargo) -> Result<Environment, Error> {
    let folder = folder(|name| std::env::var_os(name).map(PathBuf::from)).ok_or(Error::NoCacheFolder)?;
    let requirements = cargo.root().join("tests/interop/requirements.txt");
    let wanted = read(&requirements)?;
    let environment = Environment {
        python: folder.join("venv/bin/python"),
        libraries: Some(folder.join("llama/build/bin")),
    };
    let marker = folder.join("made-with.txt");
    if std::fs::read_to_string(&marker).is_ok_and(|made| made == wanted) {
        return Ok(environment);
    }
    install(cargo, &folder, &environment.python, &requirements, &wanted)?;
    build_llama(cargo, &folder, &wanted)?;
    if !cargo.is_dry_run() {
        std::fs::write(&marker, wanted).map_err(|source| Error::File { path: marker, source })?;
    }
    Ok(environment)
}

/// The Python packages. The binding is built without llama.cpp, which follows.
fn install(
    cargo: &Cargo,
    folder: &Path,
    python: &Path,
    requirements: &Path,
    wanted: &str,
) -> Result<(), Error> {
    let mut venv = Command::new("python3");
    cargo.run("making a Python environment", venv.args(["-m", "venv"]).arg(folder.join("venv")))?;
    let torch = format!("torch=={}", version(wanted, "torch")?);
    let mut for_cpu =
        pip(python, &["install", "--retries", "1", "--timeout", "20", "--index-url", TORCH_FOR_CPU]);
    match cargo.run("installing torch for CPUs", for_cpu.arg(torch)) {
        // Then it comes from PyPI with all others.
        Ok(()) | Err(Error::Failed { .. }) => {}
        Err(error) => return Err(error),
    }
    let mut all = pip(python, &["install", "--no-binary", "llama-cpp-python", "--requirement"]);
    all.arg(requirements).env("CMAKE_ARGS", "-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF");
    cargo.run("installing the Python packages", &mut all)
}

/// llama.cpp's libraries and its bench program.
fn build_llama(cargo: &Cargo, folder: &Path, wanted: &str) -> Result<(), Error> {
    let (work, programs) = (folder.join("llama"), folder.join("venv/bin"));
    let version = version(wanted, "llama-cpp-python")?;
    let mut download =
        pip(&programs.join("python"), &["download", "--no-deps", "--no-binary", "llama-cpp-python"]);
    download.arg("--dest").arg(&work).arg(format!("llama-cpp-python=={version}"));
    cargo.run("downloading llama.cpp", &mut download)?;
    let name = format!("llama_cpp_python-{version}");
    let mut unpack = Command::new("tar");
    unpack.arg("xzf").arg(work.join(format!("{name}.tar.gz"))).arg("-C").arg(&work);
    cargo.run("unpacking llama.cpp", &mut unpack)?;
    let (source, build) = (work.join(name).join("vendor/llama.cpp"), work.join("build"));
    let mut configure = Command::new(programs.join("cmake"));
    configure.args(["-G", "Ninja"]).arg(format!("-DCMAKE_MAKE_PROGRAM={}", programs.join("ninja").display()));
    configure.args(CMAKE_FLAGS).arg("-S").arg(source).arg("-B").arg(&build);
    cargo.run("configuring llama.cpp", &mut configure)?;
    let mut make = Command::new(programs.join("cmake"));
    cargo.run("building llama.cpp", make.arg("--build").arg(build).args(["--target", "llama-bench"]))
}

fn pip(python: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(python);
    command.args(["-m", "pip", "--disable-pip-version-check"]).args(words);
    command
}

/// The version that a requirements file pins a package to.
fn version<'a>(requirements: &'a str, package: &str) -> Result<&'a str, Error> {
    let pinned = requirements.lines().find_map(|line| line.strip_prefix(package)?.strip_prefix("=="));
    pinned.map(str::trim).ok_or_else(|| Error::NotPinned { package: package.to_owned() })
}

/// The environment's folder, from the variables that may name it.
fn folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable("BITNET_INTEROP_ENV").or_else(|| {
        let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
        Some(cache.join("bitnet-interop"))
    })
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_the_one_named_or_in_the_cache() {
        let found = |pairs: &[(&str, &str)]| {
            folder(|name| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.into()))
        };
        assert_eq!(found(&[("HOME", "/home/a"), ("BITNET_INTEROP_ENV", "/e")]), Some("/e".into()));
        assert_eq!(found(&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/c")]), Some("/c/bitnet-interop".into()));
        assert_eq!(found(&[("HOME", "/home/a")]), Some("/home/a/.cache/bitnet-interop".into()));
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn the_committed_requirements_pin_what_is_built_from_source() {
        let requirements = read(&Cargo::new(true).root().join("tests/interop/requirements.txt")).unwrap();
        for package in ["torch", "llama-cpp-python"] {
            assert!(version(&requirements, package).unwrap().starts_with(|c: char| c.is_ascii_digit()));
        }
        assert!(matches!(version("torchvision==1.0", "torch"), Err(Error::NotPinned { .. })));
    }
}
