//! Twenty training steps of the tiny Llama, each loss beside the reference's.

use std::collections::BTreeMap;

use bitnet_arch::train::{Decay, LrDecay, TrainConfig, Trainer, next_token_loss};
use bitnet_arch::warmup::{LambdaWarmupConfig, Schedule};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use crate::check::exponentiates_exactly;
use crate::golden::Golden;
use crate::training_tiny_llama::{batches, initial_weights, load_tiny_llama};

/// Losses, and shares of gradient norms, before training can have amplified a flipped code; for the dense run, always.
const TIGHT: f64 = 1e-4;

/// The same for the second loss at λ = 1 on a device whose `exp` is approximate: AdamW turns the smallest gradient
/// into a step of the whole learning rate, whatever the noise in it.
const TIGHT_APPROXIMATE: f64 = 2e-4;

/// Two equally valid runs part as PyTorch's do from each other: this many times their largest difference so far.
const SPREAD: f64 = 3.0;

/// Starts, in ulps by which all weights are scaled. The reference calls a run from weights scaled by 1e-7 equally
/// valid. From the weights as they are, an activation of the first forward is 63.5 exactly, where the reference was
/// an ulp away (see `training_tiny_llama`), and a code that falls the other way parts two runs for good. A correct
/// implementation follows the reference from one of these starts; a wrong one from none.
const STARTS: [f32; 4] = [0.0, -1.0, 1.0, 2.0];

/// Learning rates are computed in f64 and stored in f32.
const LEARNING_RATE: f64 = 1e-7;

/// A run's settings, as the reference's report has them.
#[derive(Deserialize)]
struct Settings {
    steps: u64,
    lr: f64,
    betas: [f32; 2],
    eps: f32,
    weight_decay: f32,
    clip: f64,
    lambda_ramp: u64,
    lr_warmup: u64,
    lambda: f32,
}

impl Settings {
    fn config(&self) -> TrainConfig {
        let mut lambda = LambdaWarmupConfig::new(Schedule::Linear, self.lambda_ramp);
        lambda.max = self.lambda;
        TrainConfig {
            steps: self.steps,
            learning_rate: self.lr,
            lr_warmup_steps: self.lr_warmup,
            lr_decay: LrDecay::Constant,
            betas: self.betas,
            adam_eps: self.eps,
            weight_decay: self.weight_decay,
            decay: Decay::All,
            clip_norm: (self.clip > 0.0).then_some(self.clip),
            lambda,
            ..TrainConfig::new(self.steps)
        }
    }
}

/// The settings of a run: `dense`, `const` or `ramp`.
pub fn config(name: &str) -> TrainConfig {
    serde_json::from_value::<Settings>(report()["cfg"][name].clone()).unwrap().config()
}

fn report() -> Value {
    json("report.json")
}

fn json(file: &str) -> Value {
    let path = crate::data("bitlinear/tiny_llama").join(file);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// λ = 0: tight at every step.
pub fn dense(device: &Device) {
    check("dense", 20, &STARTS[..1], device);
}

/// λ = 1 from the first step.
pub fn constant(device: &Device) {
    check("const", 2, &STARTS, device);
}

/// λ rising over ten steps, with clipping, weight decay and a learning-rate warm-up.
pub fn ramp(device: &Device) {
    check("ramp", 3, &STARTS, device);
}

/// Follows the reference from one of the starts: `n_first` losses and gradient norms by [`TIGHT`], later losses by
/// [`SPREAD`].
fn check(name: &str, n_first: usize, starts: &[f32], device: &Device) {
    let spread = spread(name);
    let mut tolerances: Vec<f64> = spread.iter().map(|spread| SPREAD * spread).collect();
    tolerances[..n_first].fill(TIGHT);
    if name == "const" && !exponentiates_exactly(device) {
        tolerances[1] = TIGHT_APPROXIMATE;
    }
    let mut partings = Vec::new();
    for ulps in starts {
        match follow(name, 1.0 + ulps * f32::EPSILON, n_first, &tolerances, device) {
            Ok(worst) => {
                eprintln!(
                    "{name}, start {ulps} ulp: at most {worst:.3} of the tolerance; before: {partings:?}"
                );
                return;
            }
            Err(parting) => partings.push(parting),
        }
    }
    panic!("{name}: no start follows the reference: {partings:#?}");
}

/// Trains beside the reference. Returns the largest share of a tolerance, or where the runs parted.
fn follow(
    name: &str,
    scale: f32,
    n_first: usize,
    tolerances: &[f64],
    device: &Device,
) -> Result<f64, String> {
    let golden = Golden::open(&format!("bitlinear/tiny_llama/traj_{name}.safetensors"));
    let [losses, norms, lambdas, rates] =
        ["loss", "grad_norm", "lambda", "lr"].map(|name| golden.numbers(name));
    let checkpoint = load_tiny_llama(&initial_weights(), "", &device.clone().autodiff());
    let mut trainer = Trainer::new(checkpoint.model.map(&mut Scaled(scale)), &config(name)).unwrap();
    let batches = batches(&Golden::open("bitlinear/tiny_llama/data.safetensors"), "ids");
    assert_eq!(batches.len(), tolerances.len());
    let mut worst = 0.0_f64;
    for (step, (batch, tolerance)) in batches.into_iter().zip(tolerances).enumerate() {
        let found = trainer.step(&[batch], next_token_loss).unwrap();
        let what = format!("{name}, step {step}");
        assert!((f64::from(found.lambda) - lambdas[step]).abs() < 1e-6, "{what}: λ {}", found.lambda);
        assert!(
            (found.learning_rate - rates[step]).abs() < LEARNING_RATE,
            "{what}: lr {}",
            found.learning_rate
        );
        let mut differences = vec![("loss", (found.loss - losses[step]).abs())];
        if step < n_first {
            differences.push(("gradient norm", (found.grad_norm - norms[step]).abs() / norms[step]));
        }
        for (of, difference) in differences {
            if difference > *tolerance {
                return Err(format!("step {step}, {of}: off by {difference:.1e} > {tolerance:.1e}"));
            }
            worst = worst.max(difference / tolerance);
        }
    }
    Ok(worst)
}

/// Multiplies every parameter.
struct Scaled(f32);

impl ModuleMapper for Scaled {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let id = param.id;
        let scaled = param.val().inner() * self.0;
        param.transform_for_load(scaled, id)
    }
}

/// The largest difference between equally valid runs up to each step: the reference's rows, and those of PyTorch in
/// the form of docs/numerics.md (`scripts/make_trajectories.py`).
fn spread(name: &str) -> Vec<f64> {
    let reference = report()[format!("traj {name}")].take();
    let ours = json("trajectories.json")[name].take();
    let is_difference = |key: &str| key != "loss";
    let rows: Vec<Vec<f64>> = [reference, ours]
        .into_iter()
        .flat_map(|rows| serde_json::from_value::<BTreeMap<String, Vec<f64>>>(rows).unwrap())
        .filter_map(|(key, row)| is_difference(&key).then_some(row))
        .collect();
    assert_eq!(rows.len(), 7);
    let mut largest = 0.0_f64;
    (0..rows[0].len())
        .map(|step| {
            largest = rows.iter().fold(largest, |max, row| max.max(row[step]));
            largest
        })
        .collect()
}
