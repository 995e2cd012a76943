//! Whole checkpoints through the library.

#![expect(clippy::unwrap_used, reason = "the functions beside the tests are tests too")]

mod artifacts;
mod bad_input;
mod decisions;
mod kill;
mod properties;
mod schema;
#[path = "../shared/mod.rs"]
mod shared;
mod support;
