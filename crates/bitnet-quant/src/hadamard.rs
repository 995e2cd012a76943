use burn::tensor::{DType, Device, Tensor, TensorData};

/// `x·H/√n`: the last axis, filled up with zeros to a power of two `n`, turned by Sylvester's Hadamard matrix.
///
/// The matrix is symmetric and `H/√n` its own inverse, so a second call undoes the first. It spreads a large value over all
/// `n`, so that no single one sets the scale of the others.
///
/// # Shapes
/// - `x`: `[.., d]`, any float dtype
/// - returns `[.., n]`, `n = d.next_power_of_two()`
///
/// # Source
/// docs/numerics.md#hadamard.
pub fn hadamard<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let (dtype, device) = (x.dtype(), x.device());
    let mut shape = x.dims();
    let d = shape[D - 1];
    let n = d.next_power_of_two();
    let tokens: usize = shape[..D - 1].iter().product();
    shape[D - 1] = n;
    let x = x.cast(DType::F32).reshape([tokens, d]);
    let x = match n - d {
        0 => x,
        missing => Tensor::cat(vec![x, Tensor::zeros([tokens, missing], (&device, DType::F32))], 1),
    };
    // H of n = a·b is the Kronecker product of those of a and b: two small products in place of a large one.
    let a = 1 << (n.ilog2() / 2);
    let b = n / a;
    let x = x.reshape([tokens * a, b]).matmul(sylvester(b, &device)).reshape([tokens, a, b]);
    let x = x.swap_dims(1, 2).reshape([tokens * b, a]).matmul(sylvester(a, &device));
    let x = x.reshape([tokens, b, a]).swap_dims(1, 2).reshape(shape);
    (x * (n as f32).sqrt().recip()).cast(dtype)
}

/// Sylvester's matrix of ±1, `[n, n]`: the sign of row i and column j is that of the number of ones in `i & j`.
fn sylvester(n: usize, device: &Device) -> Tensor<2> {
    let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0_f32 } else { -1.0 };
    let values: Vec<f32> = (0..n).flat_map(|i| (0..n).map(move |j| sign(i, j))).collect();
    Tensor::from_data(TensorData::new(values, [n, n]), (device, DType::F32))
}
