//! Starting cargo: where, how it is shown, and what its exit status means.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::error::Error;

/// Runs cargo commands for the workspace, or only prints them.
pub(crate) struct Cargo {
    root: PathBuf,
    dry_run: bool,
}

impl Cargo {
    pub(crate) fn new(dry_run: bool) -> Self {
        // Cargo sets the variable when it runs xtask; a copied binary falls back to where it was built.
        let package =
            std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let package = PathBuf::from(package);
        Self { root: package.parent().unwrap_or(&package).to_owned(), dry_run }
    }

    /// The workspace's folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether commands are printed instead of run.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// `cargo <args>` in the workspace's folder.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(args).current_dir(&self.root);
        // What cargo told xtask about xtask is not for the crates that this command builds.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&name);
            }
        }
        command
    }

    /// Prints `command` as a shell would take it.
    pub(crate) fn show(&self, command: &Command) {
        eprintln!("$ {}", shown(command));
    }

    /// Shows and runs `command`, its output untouched.
    ///
    /// # Errors
    /// [`Error::Failed`] with `what` and the exit status if it fails, [`Error::Start`] if it cannot be started.
    pub(crate) fn run(&self, what: &str, command: &mut Command) -> Result<(), Error> {
        self.show(command);
        if self.dry_run {
            return Ok(());
        }
        let status = command.status().map_err(|source| start_error(command, source))?;
        if status.success() {
            return Ok(());
        }
        // A command ended by a signal has no code.
        let status = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
        Err(Error::Failed { what: what.to_owned(), status })
    }

    /// Runs `command` and returns what it printed on its standard output; its messages go to the terminal.
    ///
    /// # Errors
    /// As [`Cargo::run`].
    pub(crate) fn output(&self, what: &str, command: &mut Command) -> Result<String, Error> {
        let output = command.stderr(Stdio::inherit()).output();
        let output = output.map_err(|source| start_error(command, source))?;
        if !output.status.success() {
            return Err(Error::Failed { what: what.to_owned(), status: 1 });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `cargo metadata --no-deps`: the members, their targets and their declared dependencies.
    ///
    /// # Errors
    /// [`Error::Failed`] if cargo refuses the workspace, [`Error::Metadata`] if it does not print JSON.
    pub(crate) fn metadata(&self) -> Result<Value, Error> {
        let mut command = self.command(["metadata", "--no-deps", "--format-version=1"]);
        let text = self.output("cargo metadata", &mut command)?;
        serde_json::from_str(&text).map_err(|error| Error::Metadata { reason: error.to_string() })
    }
}

/// The folder that cargo builds into.
///
/// # Errors
/// [`Error::Metadata`] if `metadata` does not name it.
pub(crate) fn target_directory(metadata: &Value) -> Result<PathBuf, Error> {
    let folder = metadata["target_directory"].as_str();
    folder.map(PathBuf::from).ok_or_else(|| Error::Metadata { reason: "no `target_directory`".to_owned() })
}

fn start_error(command: &Command, source: std::io::Error) -> Error {
    Error::Start { program: command.get_program().to_string_lossy().into_owned(), source }
}

/// The command as a shell would take it: variables set by us, `cargo`, arguments.
fn shown(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        Some(format!("{}={}", name.to_string_lossy(), quoted(&value?.to_string_lossy())))
    });
    let program = Path::new(command.get_program()).file_stem().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    variables.chain(words.map(|word| quoted(&word.to_string_lossy()))).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=/.:,+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_a_shell_takes_them() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["doc", "a b", "it's", ""]).env("RUSTDOCFLAGS", "-D warnings").env_remove("GONE");
        assert_eq!(shown(&command), r"RUSTDOCFLAGS='-D warnings' cargo doc 'a b' 'it'\''s' ''");
    }

    #[test]
    fn a_failure_keeps_the_exit_status() {
        let cargo = Cargo::new(false);
        let error = cargo.run("the thing", Command::new("sh").args(["-c", "exit 7"])).unwrap_err();
        assert_eq!((error.exit_status(), error.to_string()), (7, "the thing failed".to_owned()));
    }

    #[test]
    fn a_dry_run_starts_nothing() {
        Cargo::new(true).run("nothing", &mut Command::new("no such program")).unwrap();
    }
}
