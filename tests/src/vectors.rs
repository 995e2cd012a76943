//! Inputs that several cases share.

use burn::tensor::{Device, Tensor, TensorData};

/// The weight of the acceptance vectors, `[d_output, d_input]`.
pub const W: [[f32; 3]; 3] = [[0.8, -0.5, 1.2], [-1.5, 0.4, -0.9], [1.3, -0.7, 0.2]];

/// The activations of the acceptance vectors, one token a row.
pub const X: [[f32; 3]; 3] = [[1.0, -0.6, 0.7], [-0.9, 0.4, -1.2], [0.8, -0.5, 0.3]];

/// Numbers between −2 and 2, the same on every device.
pub fn random<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(random_values(shape.iter().product(), seed), shape), device)
}

/// The numbers of [`random`].
pub fn random_values(n: usize, seed: u64) -> Vec<f32> {
    // Knuth's MMIX generator; its upper 24 bits make an f32 exactly.
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 22) as f32 - 2.0
    };
    (0..n).map(|_| next()).collect()
}
