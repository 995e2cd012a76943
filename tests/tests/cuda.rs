//! Every case on `cuda`.

bitnet_tests::suite!("cuda");
