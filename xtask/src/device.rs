//! Device names and the cargo features that they need.

use crate::error::Error;

/// A device name as the command line takes it, and the features of a package that build it.
struct Device {
    name: &'static str,
    features: &'static [&'static str],
}

/// All devices. GPU devices are trained on with fused and tuned kernels.
const DEVICES: [Device; 5] = [
    Device { name: "flex", features: &["flex"] },
    Device { name: "ndarray", features: &["ndarray"] },
    Device { name: "wgpu", features: &["wgpu", "fusion", "autotune"] },
    Device { name: "vulkan", features: &["vulkan", "fusion", "autotune"] },
    Device { name: "cuda", features: &["cuda", "fusion", "autotune"] },
];

/// The features for `device`, a name with or without an index: `flex`, `cuda:1`.
///
/// # Errors
/// [`Error::UnknownDevice`] if the name is unknown or the index is not a number.
pub(crate) fn features(device: &str) -> Result<String, Error> {
    let (name, index) = device.split_once(':').unwrap_or((device, "0"));
    let known = DEVICES.iter().find(|known| known.name == name && index.parse::<u32>().is_ok());
    known.map(|known| known.features.join(",")).ok_or_else(|| Error::UnknownDevice {
        name: device.to_owned(),
        known: DEVICES.map(|known| known.name).join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_names_its_features() {
        assert_eq!(features("flex").unwrap(), "flex");
        assert_eq!(features("ndarray").unwrap(), "ndarray");
        assert_eq!(features("cuda:1").unwrap(), "cuda,fusion,autotune");
    }

    #[test]
    fn an_unknown_device_lists_the_known_ones() {
        for name in ["tpu", "cuda:", "cuda:x", "cuda:-1", "", "Flex"] {
            let message = features(name).unwrap_err().to_string();
            assert!(message.contains(&format!("`{name}`")), "{message}");
            assert!(message.contains("flex, ndarray, wgpu, vulkan, cuda"), "{message}");
        }
    }
}
