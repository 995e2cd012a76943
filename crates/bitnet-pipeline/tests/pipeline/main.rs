//! Mode `model` as a whole, on the golden checkpoints.

#![expect(clippy::unwrap_used, reason = "the functions beside the tests are tests too")]

mod artifacts;
mod bad_input;
mod kill;
mod schema;
#[path = "../../../bitnet-compress/tests/shared/mod.rs"]
mod shared;
mod stages;
mod support;
mod verdict;
