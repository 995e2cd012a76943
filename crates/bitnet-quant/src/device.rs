//! Devices by name: `flex`, `ndarray`, `wgpu`, `vulkan`, `cuda`, each with an optional index as in `cuda:1`.

use std::fmt;
use std::str::FromStr;

#[cfg(any(feature = "flex", feature = "ndarray"))]
use burn::backend::DispatchDevice;
use burn::tensor::Device;
use thiserror::Error;

/// Why a device cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No backend has this name, or the index is no number.
    #[error(
        "unknown device `{name}`: expected flex, ndarray, wgpu, vulkan or cuda, with an index as in cuda:1"
    )]
    Unknown {
        /// The name given.
        name: String,
    },
    /// The backend is known, but this program was built without its feature.
    #[error("device `{name}` is not compiled in: build with the cargo feature `{feature}`")]
    NotCompiled {
        /// The name given.
        name: String,
        /// The feature that adds it.
        feature: &'static str,
    },
    /// The backend is compiled in, and this machine has no such device.
    #[error("device `{name}` is not present: this machine has {found} {feature} device(s)")]
    NotPresent {
        /// The name given.
        name: String,
        /// The backend.
        feature: &'static str,
        /// How many devices of the backend there are.
        found: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Flex,
    NdArray,
    Wgpu,
    Vulkan,
    Cuda,
}

impl Backend {
    const ALL: [Self; 5] = [Self::Flex, Self::NdArray, Self::Wgpu, Self::Vulkan, Self::Cuda];

    /// The name, which is the cargo feature too.
    fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::NdArray => "ndarray",
            Self::Wgpu => "wgpu",
            Self::Vulkan => "vulkan",
            Self::Cuda => "cuda",
        }
    }

    /// The devices of this backend on this machine; `None` where it is not compiled in.
    fn devices(self) -> Option<Vec<Device>> {
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => Some(vec![Device::flex()]),
            #[cfg(feature = "ndarray")]
            #[allow(deprecated, reason = "deprecated upstream, and a backend that this project still tests")]
            Self::NdArray => Some(vec![Device::ndarray()]),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Some(enumerate(burn::tensor::DeviceType::Wgpu)),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => Some(enumerate(burn::tensor::DeviceType::Vulkan)),
            #[cfg(feature = "cuda")]
            Self::Cuda => Some(enumerate(burn::tensor::DeviceType::Cuda)),
            #[allow(unreachable_patterns, reason = "reached by the backends that are not compiled in")]
            _ => None,
        }
    }
}

#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "cuda"))]
fn enumerate(kind: burn::tensor::DeviceType) -> Vec<Device> {
    Device::enumerate(kind).into_iter().collect()
}

/// The name of a device: a backend and an index, 0 where none is written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DeviceName {
    backend: Backend,
    index: usize,
}

impl FromStr for DeviceName {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown { name: name.into() };
        let (backend, index) = match name.split_once(':') {
            Some((backend, index)) => (backend, index.parse().map_err(|_| unknown())?),
            None => (name, 0),
        };
        let backend = Backend::ALL.into_iter().find(|known| known.name() == backend).ok_or_else(unknown)?;
        Ok(Self { backend, index })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            0 => f.write_str(self.backend.name()),
            index => write!(f, "{}:{index}", self.backend.name()),
        }
    }
}

impl DeviceName {
    /// Finds the device on this machine, by enumeration: no device is opened and nothing panics.
    ///
    /// # Errors
    /// - [`DeviceError::NotCompiled`] without the backend's feature
    /// - [`DeviceError::NotPresent`] where the machine has fewer devices than the index asks for
    fn find(&self) -> Result<Device, DeviceError> {
        let feature = self.backend.name();
        let devices = self
            .backend
            .devices()
            .ok_or_else(|| DeviceError::NotCompiled { name: self.to_string(), feature })?;
        let found = devices.len();
        devices.into_iter().nth(self.index).ok_or_else(|| DeviceError::NotPresent {
            name: self.to_string(),
            feature,
            found,
        })
    }
}

/// The device of this name, without autodiff: `device("cuda:1")?.autodiff()` is one to train on.
///
/// # Errors
/// The three of [`DeviceError`].
pub fn device(name: &str) -> Result<Device, DeviceError> {
    name.parse::<DeviceName>()?.find()
}

/// Every backend's name with its device at index 0, or why there is none.
pub fn device_report() -> Vec<(&'static str, Result<Device, DeviceError>)> {
    Backend::ALL.into_iter().map(|b| (b.name(), DeviceName { backend: b, index: 0 }.find())).collect()
}

/// Whether the device's memory is this process's, so that tensors are slices.
pub(crate) fn is_cpu(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => true,
        #[allow(unreachable_patterns, reason = "reached where another backend is compiled in")]
        _ => false,
    }
}

/// Runs `work`, a token's many small operations, on `device`: on a CPU with threads that stay awake between them. See
/// [`bitnet_cpu::with_awake_threads`].
pub fn with_awake_threads<R>(device: &Device, work: impl FnOnce() -> R) -> R {
    if is_cpu(device) { bitnet_cpu::with_awake_threads(work) } else { work() }
}
