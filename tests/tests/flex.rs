//! Every case on `flex`.

bitnet_tests::suite!("flex");
