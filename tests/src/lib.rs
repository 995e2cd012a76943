//! Cross-crate suites: one list of cases, run on every backend.
//!
//! A case is a plain function `fn case(device: &Device)` in a module of this crate, and stands once in the list of
//! [`suite!`]. `tests/{flex,ndarray,wgpu,vulkan,cuda}.rs` each expand that list to one `#[test]` per case, so each
//! backend has a process of its own. A backend that is absent is skipped, unless `BITNET_REQUIRE` names it: then it
//! fails.
//!
//! Golden data lies in `data/`, with the scripts that made it; nothing else is read.

#![allow(clippy::unwrap_used, reason = "every function here is part of a test")]

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use bitnet_arch::quant::{DeviceError, device};
use burn::tensor::Device;

pub mod check;
pub mod golden;

/// Expands to one `#[test]` per case, on the named device. Every case of this crate stands here, once.
#[macro_export]
macro_rules! suite {
    ($device:literal) => {
        $crate::cases! { $device
        }
    };
}

/// The tests of [`suite!`]: a module of tests for each module of cases.
#[doc(hidden)]
#[macro_export]
macro_rules! cases {
    ($device:literal $($module:ident: $($case:ident),+;)*) => {
        $(mod $module {
            $(#[test]
            fn $case() {
                $crate::run($device, $crate::$module::$case);
            })+
        })*
    };
}

/// The variable that names the backends which must be present, separated by commas.
const REQUIRE: &str = "BITNET_REQUIRE";

/// Runs a case on the named device. Cases run one after the other: the process-wide default λ belongs to all of
/// them, and so does a GPU.
///
/// # Panics
/// Where the case fails, and where the device is absent though required.
pub fn run(name: &str, case: fn(&Device)) {
    static DEVICE: OnceLock<Result<Device, DeviceError>> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match DEVICE.get_or_init(|| device(name)) {
        Ok(device) => case(device),
        Err(error) if is_required(name) => panic!("{REQUIRE} names {name}: {error}"),
        Err(error) => eprintln!("skipped: {error}"),
    }
}

fn is_required(name: &str) -> bool {
    std::env::var(REQUIRE).is_ok_and(|names| names.split(',').any(|required| required.trim() == name))
}

/// The path of a file or folder in `data/`.
pub fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data").join(path)
}
