//! Every case on `vulkan`.

bitnet_tests::suite!("vulkan");
