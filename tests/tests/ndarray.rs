//! Every case on `ndarray`.

bitnet_tests::suite!("ndarray");
