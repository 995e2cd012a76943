//! Trains a module of its own with BitNet layers and a λ warm-up: the parity of four bits.

use std::error::Error;

use bitnet_arch::layers::{BitLinearConfig, Projection, RmsNormConfig, SubLn, slots};
use bitnet_arch::quant::device;
use bitnet_arch::train::{TrainConfig, TrainError, Trainer};
use burn::module::Module;
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};

/// Two BitNet layers, the second behind a SubLN.
#[derive(Module, Debug)]
struct Parity {
    up: Projection,
    down: Projection,
}
slots!(Parity { up, down });

impl Parity {
    fn new(hidden: usize, device: &Device) -> Result<Self, Box<dyn Error>> {
        let up = BitLinearConfig::new(4, hidden).with_bias(true).init(device)?;
        let down = BitLinearConfig::new(hidden, 1).with_bias(true).init(device)?;
        let mut model = Self { up: up.into(), down: down.into() };
        model.down.sub_norm = Some(SubLn::inserted(&RmsNormConfig::new(hidden), device));
        Ok(model)
    }

    /// `[batch, 4]` bits as ±1 to `[batch, 1]`
    fn forward(&self, bits: Tensor<2>) -> Tensor<2> {
        self.down.forward(relu(self.up.forward(bits)))
    }
}

/// Mean squared error over all sixteen inputs.
fn loss(model: &Parity, (bits, parity): &(Tensor<2>, Tensor<2>)) -> Result<Tensor<1>, TrainError> {
    Ok((model.forward(bits.clone()) - parity.clone()).square().mean())
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = device("flex")?;
    device.seed(7);
    let signs: Vec<[f32; 4]> =
        (0..16).map(|n| [0, 1, 2, 3].map(|i| if n >> i & 1 == 1 { 1.0 } else { -1.0 })).collect();
    let parity: Vec<[f32; 1]> = signs.iter().map(|bits| [bits.iter().product()]).collect();
    let flat = |rows: &[f32], width| Tensor::<1>::from_floats(rows, &device).reshape([16, width]);
    let data = (flat(signs.as_flattened(), 4), flat(parity.as_flattened(), 1));

    let config = TrainConfig { learning_rate: 1e-2, ..TrainConfig::new(400) };
    let mut trainer = Trainer::new(Parity::new(64, &device)?, &config)?;
    let mut last = f64::INFINITY;
    for step in 0..config.steps {
        let report = trainer.step(std::slice::from_ref(&data), loss)?;
        last = report.loss;
        if step % 50 == 0 {
            println!("step {step:3}  λ {:.2}  loss {last:.4}", report.lambda);
        }
    }
    println!("last loss {last:.4}, all weights ternary");
    if last < 0.1 { Ok(()) } else { Err(format!("the loss is {last:.4}: expected below 0.1").into()) }
}
