//! The codes that a layer keeps of its weight are those of the weight that it has.

use bitnet_arch::layers::{BitLinear, BitLinearConfig};
use burn::module::{Module, Param, ParamId};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::store::ModuleRecord;
use burn::tensor::{Device, Tensor};

use crate::check::values;
use crate::vectors::random;

/// At λ = 1 codes are kept, between 0 and 1 scales.
const LAMBDAS: [f32; 2] = [0.5, 1.0];

/// Outputs and gradients of a layer that has seen other weights are those of a layer that has seen none.
fn keeps_up(what: &str, layer: &BitLinear, x: &Tensor<2>) -> Vec<f32> {
    let passes = |layer: &BitLinear| -> Vec<f32> {
        let pass = |lambda| {
            let x = x.clone().require_grad();
            let y = layer.forward(x.clone(), lambda);
            let grads = y.clone().square().sum().backward();
            [values(y), values(x.grad(&grads).unwrap()), values(layer.weight.val().grad(&grads).unwrap())]
        };
        // Twice, as for two micro-batches: the second time of what was kept.
        LAMBDAS.into_iter().flat_map(|lambda| [pass(lambda), pass(lambda)]).flatten().flatten().collect()
    };
    let (found, expected) = (passes(layer), passes(&layer.clone()));
    assert_eq!(found, expected, "{what}");
    found
}

/// Whatever gives a layer another weight: an optimizer, a record, a mapper, an assignment, another device.
pub fn the_codes_follow_the_weight(device: &Device) {
    let device = device.clone().autodiff();
    let x = random([5, 24], 1, &device);
    let mut layer = BitLinearConfig::new(24, 40).init(&device).unwrap();
    layer.weight = Param::initialized(ParamId::new(), random([40, 24], 2, &device).require_grad());
    // As bytes, as in a file: with Burn's fusion the tensors of a record share memory with those that a step updates.
    let first = layer.clone().into_record().into_bytes().unwrap();
    let mut seen = vec![keeps_up("new", &layer, &x)];

    let mut optimizer = AdamWConfig::new().init();
    for lambda in LAMBDAS {
        let grads = layer.forward(x.clone(), lambda).square().sum().backward();
        let grads = GradientsParams::from_grads(grads, &layer);
        layer = optimizer.step(0.1, layer, grads);
        seen.push(keeps_up("stepped", &layer, &x));
    }

    layer = layer.load_record(ModuleRecord::from_bytes(first).unwrap());
    assert_eq!(keeps_up("loaded", &layer, &x), seen[0]);

    layer = layer.fork(&device);
    assert_eq!(keeps_up("forked", &layer, &x), seen[0]);

    layer.weight = layer.weight.map(|weight| weight.inner().neg().mul_scalar(3.0).autodiff().require_grad());
    seen.push(keeps_up("assigned", &layer, &x));
    for (i, outputs) in seen.iter().enumerate() {
        assert!(!seen[..i].contains(outputs), "the weights are all different");
    }
}
