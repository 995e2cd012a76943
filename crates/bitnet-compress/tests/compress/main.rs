//! Whole checkpoints through the library.

mod artifacts;
mod bad_input;
mod decisions;
mod kill;
mod properties;
mod schema;
mod support;
