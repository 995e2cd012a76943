//! The example crate outside of the workspace: `examples/downstream`.
//!
//! It is built as a user's crate is, from its own manifest. To build Burn no second time, it takes the workspace's
//! locked versions, profile, features and target folder.

use std::path::Path;

use crate::cargo::{Cargo, target_directory};
use crate::error::Error;
use crate::test::FEATURES;

/// Builds and runs the example crate.
///
/// # Errors
/// [`Error::Failed`] with the example's exit status, [`Error::File`] and [`Error::Manifest`] for the workspace's files.
pub(crate) fn run(cargo: &Cargo) -> Result<(), Error> {
    let package = cargo.root().join("examples/downstream");
    let target = target_directory(&cargo.metadata()?)?;
    let profile = target.join("workspace-profile.toml");
    if !cargo.is_dry_run() {
        std::fs::create_dir_all(&target).map_err(|source| Error::File { path: target.clone(), source })?;
        write(&profile, &profiles(&cargo.root().join("Cargo.toml"))?)?;
        write(&package.join("Cargo.lock"), &read(&cargo.root().join("Cargo.lock"))?)?;
    }
    let mut command = cargo.command(["run", "--manifest-path"]);
    command.arg(package.join("Cargo.toml")).arg("--config").arg(&profile).arg("--target-dir").arg(&target);
    command.args(["--features", &FEATURES.map(|feature| format!("bitnet-arch/{feature}")).join(",")]);
    cargo.run("the downstream crate", &mut command)
}

/// The `[profile]` tables of a manifest, as a configuration file of cargo.
fn profiles(manifest: &Path) -> Result<String, Error> {
    let mut table: toml::Table = read(manifest)?
        .parse()
        .map_err(|source| Error::Manifest { path: manifest.to_owned(), source: Box::new(source) })?;
    table.retain(|key, _| key == "profile");
    Ok(table.to_string())
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).map_err(|source| Error::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_the_workspace_s_own() {
        let manifest = Cargo::new(false).root().join("Cargo.toml");
        let whole: toml::Table = read(&manifest).unwrap().parse().unwrap();
        let config: toml::Table = profiles(&manifest).unwrap().parse().unwrap();
        assert_eq!(config.keys().collect::<Vec<_>>(), ["profile"]);
        assert_eq!(config["profile"], whole["profile"]);
        assert!(config["profile"].get("dev").is_some());
    }
}
