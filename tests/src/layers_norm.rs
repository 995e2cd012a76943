//! Norms, and sub-norms that follow λ or not.

use bitnet_arch::layers::{LayerError, RmsNormConfig, SubLn};
use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};

use crate::check::{SUMMATION, VECTOR, assert_close, assert_close_relative, values};
use crate::vectors::random;

/// The vector of docs/numerics.md, for both kinds of sub-norm at λ = 1.
pub fn acceptance(device: &Device) {
    let h = Tensor::<2>::from_data([[3.0, 4.0]], device);
    let config = RmsNormConfig::new(2);
    for norm in [SubLn::inserted(&config, device), SubLn::native(&config, device)] {
        assert_close("SubLN", &values(norm.forward(h.clone(), 1.0)), &[0.848528, 1.131371], VECTOR);
    }
}

/// An inserted sub-norm is absent at λ = 0, bit for bit, and a straight blend between; a native one acts in full.
pub fn strength(device: &Device) {
    let h = random([2, 3, 16], 20, device);
    let config = RmsNormConfig::new(16);
    let (mut inserted, mut native) = (SubLn::inserted(&config, device), SubLn::native(&config, device));
    inserted.norm.gain = Param::from_tensor(random([16], 21, device));
    native.norm = inserted.norm.clone();
    let normed = values(native.norm.forward(h.clone()));
    assert_eq!(values(inserted.forward(h.clone(), 0.0)), values(h.clone()));
    assert_eq!(values(inserted.forward(h.clone(), 1.0)), normed);
    let blend: Vec<f32> = values(h.clone()).iter().zip(&normed).map(|(h, n)| h + 0.25 * (n - h)).collect();
    assert_close_relative("λ 0.25", &values(inserted.forward(h.clone(), 0.25)), &blend, SUMMATION);
    for lambda in [0.0, 0.25, 1.0] {
        assert_eq!(values(native.forward(h.clone(), lambda)), normed, "native at λ {lambda}");
    }
}

/// The blend has its true derivative: that of `h` and of the norm, by their shares.
pub fn gradient(device: &Device) {
    let device = device.clone().autodiff();
    let norm = SubLn::inserted(&RmsNormConfig::new(16), &device);
    let slope = random([4, 16], 22, &device);
    let gradients = |lambda| {
        let h = random([4, 16], 23, &device).require_grad();
        let grads = (norm.forward(h.clone(), lambda) * slope.clone()).sum().backward();
        (values(h.grad(&grads).unwrap()), norm.norm.gain.val().grad(&grads).map(values))
    };
    let ((dense, no_gain), (full, full_gain)) = (gradients(0.0), gradients(1.0));
    assert_eq!(no_gain, None, "at λ = 0 the gain has no part in the output");
    let (half, half_gain) = gradients(0.5);
    let mean: Vec<f32> = dense.iter().zip(&full).map(|(a, b)| (a + b) / 2.0).collect();
    assert_close_relative("dh at λ 0.5", &half, &mean, SUMMATION);
    let half_full: Vec<f32> = full_gain.unwrap().iter().map(|gain| gain / 2.0).collect();
    assert_close_relative("dgain at λ 0.5", &half_gain.unwrap(), &half_full, SUMMATION);
}

/// In half precision the norm computes in f32, where the square of 300 does not overflow.
pub fn half_precision(device: &Device) {
    for dtype in [DType::F16, DType::BF16] {
        if !device.supports_dtype(dtype) {
            eprintln!("skipped: the device has no {dtype:?}");
            continue;
        }
        let h = (random([4, 32], 24, device) * 300.0).cast(dtype);
        let norm = RmsNormConfig::new(32).init(device);
        let y = norm.forward(h.clone());
        assert_eq!(y.dtype(), dtype);
        assert_eq!(values(y), values(norm.forward(h.cast(DType::F32)).cast(dtype)), "{dtype:?}");
    }
}

/// An epsilon that is no positive number is an error; the stored gain may be an offset of the true one.
pub fn configuration(device: &Device) {
    for eps in [0.0, -1e-6, f64::INFINITY] {
        assert_eq!(RmsNormConfig::new(2).with_eps(eps).validate(), Err(LayerError::Epsilon { found: eps }));
    }
    assert!(matches!(RmsNormConfig::new(2).with_eps(f64::NAN).validate(), Err(LayerError::Epsilon { .. })));
    let h = random([3, 8], 25, device);
    let offset = RmsNormConfig::new(8).with_gain_offset(1.0).init(device);
    assert_eq!(values(offset.gain.val()), [0.0; 8]);
    assert_eq!(values(offset.forward(h.clone())), values(RmsNormConfig::new(8).init(device).forward(h)));
}
