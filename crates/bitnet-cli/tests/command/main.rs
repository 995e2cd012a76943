//! The `bitnet` command as a user runs it, on the repository's models.

#![expect(clippy::unwrap_used, reason = "the functions beside the tests are tests too")]

#[macro_use]
mod support;

mod command_line;
mod compress;
mod generation;
mod hub;
mod lrc;
mod models;
mod train;
