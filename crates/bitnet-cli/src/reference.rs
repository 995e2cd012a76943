//! The reference in docs/bitnet.md, written from the command line's own help.

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory};

use crate::flags::Cli;

/// All commands and flags as Markdown.
pub(crate) fn markdown() -> String {
    let mut command = Cli::command().term_width(0);
    command.build();
    let mut text = String::from(
        "<!-- Written by `cargo run -p bitnet-cli -- reference > docs/bitnet.md`; a test compares. -->\n\n",
    );
    write_command(&command, &mut text);
    for command in
        command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
    {
        write_command(command, &mut text);
    }
    text
}

fn write_command(command: &Command, text: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let level = if name.contains(' ') { "##" } else { "#" };
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage);
    let _ =
        write!(text, "{level} {name}\n\n{}\n\n    {}\n", paragraphs(&about), usage.replace('\n', "\n    "));
    let is_own = |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version");
    // Flags of all commands are explained once.
    let args =
        command.get_arguments().filter(is_own).filter(|arg| !(arg.is_global_set() && name.contains(' ')));
    let lines: Vec<String> = args.map(argument).collect();
    if !lines.is_empty() {
        let _ = write!(text, "\n{}\n", lines.join("\n"));
    }
    if let Some(after) = command.get_after_help() {
        let after = after.to_string();
        let _ = write!(text, "\n```text\n{after}\n```\n");
    }
    text.push('\n');
}

/// One flag or argument as an item of a list.
fn argument(arg: &Arg) -> String {
    let value = arg.get_value_names().and_then(|names| names.first()).map(|name| format!(" {name}"));
    let value = value.filter(|_| arg.get_action().takes_values()).unwrap_or_default();
    let name = match arg.get_long() {
        Some(long) => format!("--{long}{value}"),
        None => value.trim_start().to_owned(),
    };
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut item = format!("- `{name}`: {}", help.replace('\n', "\n  ").replace("\n  \n", "\n\n"));
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|_| arg.get_action().takes_values())
        .map(|value| match value.get_help() {
            Some(help) => format!("\n  - `{}`: {help}", value.get_name()),
            None => format!("\n  - `{}`", value.get_name()),
        })
        .collect();
    item += &values.concat();
    let default = arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
    if let Some(default) = default.filter(|_| arg.get_action().takes_values()) {
        let _ = write!(item, "\n\n  Default: `{default}`");
    }
    item
}

/// Indented lines of help are a table or an example: a code block.
fn paragraphs(about: &str) -> String {
    let is_code = |line: &str| line.starts_with("  ");
    let lines = about.lines().map(|line| if is_code(line) { format!("  {line}") } else { line.to_owned() });
    lines.collect::<Vec<_>>().join("\n")
}
