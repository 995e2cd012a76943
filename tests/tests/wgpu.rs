//! Every case on `wgpu`.

bitnet_tests::suite!("wgpu");
