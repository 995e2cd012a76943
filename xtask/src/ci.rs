//! What continuous integration runs, in the order in which a mistake is cheapest to find.

mod deps;

use clap::{Args, Subcommand};

use crate::cargo::Cargo;
use crate::error::Error;
use crate::{downstream, test};

/// Flags of `ci`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    check: Option<Check>,
}

#[derive(Subcommand)]
enum Check {
    /// Check only that no crate depends on one that stands further right in ARCHITECTURE.md
    Deps,
}

/// Every feature that adds code, `vulkan` apart: it takes the place of `wgpu`.
const FEATURES: &str =
    "bitnet-tests/ndarray,bitnet-tests/wgpu,bitnet-tests/cuda,bitnet-tests/fusion,bitnet-tests/autotune";

/// Runs all checks, or the one that is asked for; stops at the first that fails.
///
/// # Errors
/// That of the check that failed.
pub(crate) fn run(cargo: &Cargo, options: &Options) -> Result<(), Error> {
    if let Some(Check::Deps) = options.check {
        return deps::run(cargo);
    }

    heading("format");
    cargo.run("cargo fmt", &mut cargo.command(["fmt", "--all", "--", "--check"]))?;
    let downstream = ["fmt", "--manifest-path", "examples/downstream/Cargo.toml", "--", "--check"];
    cargo.run("cargo fmt", &mut cargo.command(downstream))?;

    heading("dependency direction");
    deps::run(cargo)?;

    heading("clippy, which type-checks CUDA too");
    let clippy = ["clippy", "--workspace", "--all-targets", "--features", FEATURES, "--", "-D", "warnings"];
    cargo.run("cargo clippy", without_llvm(&mut cargo.command(clippy)))?;

    heading("the libraries without a backend");
    let check = ["check", "--no-default-features", "--package", "bitnet-arch"];
    cargo.run("cargo check", &mut cargo.command(check))?;

    heading("documentation");
    let mut doc = cargo.command(["doc", "--workspace", "--no-deps", "--features", FEATURES]);
    cargo.run("cargo doc", without_llvm(doc.env("RUSTDOCFLAGS", "-D warnings")))?;

    heading("tests");
    test::run(cargo, &test::Options::requiring(&[test::Backend::Wgpu]))?;

    heading("a crate outside of the workspace");
    downstream::run(cargo)
}

/// CUDA's build script downloads LLVM, which only linking needs: a documentation build leaves it out.
fn without_llvm(command: &mut std::process::Command) -> &mut std::process::Command {
    command.env("DOCS_RS", "1")
}

fn heading(what: &str) {
    eprintln!("\n== {what}");
}
