//! What corrections cost to make: the randomized decomposition against the exact one, and calibration at the shape of
//! SmolLM2-135M. The figures of docs/benchmarks.md.
//!
//!     cargo run --release -p bitnet-arch --example lrc_costs -- svd
//!     /usr/bin/time -v cargo run --release -p bitnet-arch --example lrc_costs -- calibration

use std::error::Error;
use std::time::Instant;

use bitnet_arch::convert::{Checkpoint, HfConfig, Placement, Policy, convert};
use bitnet_arch::layers::{BitLinearConfig, Projection};
use bitnet_arch::lrc::{Init, LrcConfig, SlotAction, SlotRule, Svd, add_lrc, calibrate};
use bitnet_arch::model::CausalLmConfig;
use bitnet_arch::quant::device;
use burn::tensor::Device;

fn main() -> Result<(), Box<dyn Error>> {
    let device = device("flex")?;
    device.seed(0);
    match std::env::args().nth(1).as_deref() {
        Some("svd") => svd(&device),
        Some("calibration") => calibration(&device),
        _ => Err("expected svd or calibration".into()),
    }
}

/// One 2048 × 2048 slot at rank 204, both ways.
fn svd(device: &Device) -> Result<(), Box<dyn Error>> {
    let slot: Projection = BitLinearConfig::new(2048, 2048).init(device)?.into();
    for svd in [Svd::Randomized, Svd::Exact] {
        let config = LrcConfig {
            slots: vec![SlotRule::rank(204)],
            init: Init::SvdResidual,
            svd,
            ..LrcConfig::default()
        };
        let start = Instant::now();
        let (_, report) = add_lrc(slot.clone(), &config)?;
        let seconds = start.elapsed().as_secs_f64();
        if let SlotAction::Added { error: Some(error), .. } = &report.slots[0].action {
            println!("{svd:?}: {seconds:.2} s, error {:.5} → {:.5}", error.before, error.after[0]);
        }
    }
    Ok(())
}

/// 32 windows of 256 tokens through 30 blocks, with random weights.
fn calibration(device: &Device) -> Result<(), Box<dyn Error>> {
    let shape = CausalLmConfig::new(49152, 576, 1536, 30, 9).with_n_kv_heads(Some(3)).with_tied_head(true);
    let policy = Policy { sub_norm: Placement::None, ..Policy::default() };
    let model = Checkpoint::new(shape.init(device)?, HfConfig::llama(&shape)?, ".");
    let model = convert(model, &policy)?.0.model;
    let windows: Vec<Vec<u32>> =
        (0..32_u32).map(|row| (0..256).map(|i| (row * 7919 + i * i * 31) % 49152).collect()).collect();
    let batches = windows.chunks(4).map(|batch| model.batch(batch)).collect::<Result<Vec<_>, _>>()?;
    let config = LrcConfig { init: Init::Calibrated { rounds: 0 }, ..LrcConfig::default() };
    let start = Instant::now();
    let (_, calibration) = calibrate(model, &batches, &config)?;
    println!(
        "{} slots, {} tokens: {:.0} s, {:.0} MB of statistics and cached states",
        calibration.report.n_added(),
        calibration.tokens,
        start.elapsed().as_secs_f64(),
        calibration.peak_bytes as f64 / 1e6,
    );
    Ok(())
}
