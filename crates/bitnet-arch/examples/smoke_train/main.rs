//! The main job, written as a downstream crate would write it: a dense checkpoint becomes a trained BitNet model.
//!
//! Run it with `cargo xtask smoke-train`. It checks each step on the way; the exit status says whether all held.

mod checks;
mod flags;
mod lrc;
mod repository;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use bitnet_arch::convert::{
    Checkpoint, ConversionReport, HfConfig, LoadOptions, Policy, check_tokenizer, convert, load, save,
};
use bitnet_arch::layers::{for_each_slot, set_lambda};
use bitnet_arch::model::{CausalLm, CausalLmConfig, GenerateOptions};
use bitnet_arch::quant::device;
use bitnet_arch::text::{TokenWindows, Tokenizer, read_text};
use bitnet_arch::train::{
    Curve, MetricsLog, Progress, StepReport, TrainConfig, Trainer, next_token_loss, perplexity, write_curves,
};
use burn::tensor::Device;
use clap::Parser;
use serde_json::json;

use checks::Checks;
use flags::Flags;

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every check held.
fn run(flags: &Flags) -> Result<bool, Box<dyn Error>> {
    let start = Instant::now();
    let device = device(&flags.device)?;
    device.seed(flags.seed);
    let dense = source(flags, &device)?;
    let tokenizer = Tokenizer::from_file(flags.checkpoint_folder().join("tokenizer.json"))?;
    check_tokenizer(&tokenizer, &dense.model)?;
    let (train, held_out) = windows(flags, &tokenizer)?;
    // Everything that the flags can have wrong comes to light before anything is written.
    let configs = flags.configs();
    for (_, config) in &configs {
        config.validate()?;
    }
    train.batches(flags.batch, flags.seed)?;
    dense.model.batch(&[train.get(0).ok_or("no window")?])?;
    let run_folder = new_run_folder(flags)?;
    let mut checks = Checks::default();

    println!("device {}, {} windows of {} tokens", flags.device, train.len(), train.window());
    let evaluate = |model: &CausalLm| perplexity(model, &held_out, flags.batch);
    let dense_ppl = evaluate(&dense.model)?;
    println!("perplexity dense                  {dense_ppl:9.3}");

    let mut n_slots = 0;
    for_each_slot(&dense.model, |_, _| n_slots += 1);
    let policy = Policy { sub_norm: flags.subln, ..Policy::default() };
    let (mut converted, report) = convert(dense.clone(), &policy)?;
    checks.that(
        "every slot converted",
        report.n_converted() == n_slots,
        format!("{} of {n_slots}", report.n_converted()),
    );

    set_lambda(&mut converted.model, Some(0.0));
    let zero_ppl = evaluate(&converted.model)?;
    println!("perplexity converted, λ = 0       {zero_ppl:9.3}");
    let difference = largest_difference(&dense.model, &converted.model, &held_out)?;
    checks.that(
        "λ = 0 is the dense model",
        difference <= 1e-5,
        format!("logits differ by {difference:.1e} of their size"),
    );

    set_lambda(&mut converted.model, Some(1.0));
    let one_ppl = evaluate(&converted.model)?;
    println!("perplexity converted, λ = 1       {one_ppl:9.3}");
    let difference = largest_difference(&dense.model, &converted.model, &held_out)?;
    checks.that(
        "λ = 1 is another model",
        difference > 1e-3,
        format!("logits differ by {difference:.1e} of their size"),
    );

    let mut log = MetricsLog::create(run_folder.join("metrics.jsonl"))?;
    let mut curves = Vec::new();
    let mut runs = Vec::new();
    let mut trained = None;
    for (name, config) in &configs {
        let run = train_run(name, config, &converted.model, &train, flags, &mut log)?;
        let ppl = evaluate(&run.model)?;
        println!("perplexity trained, {name:<13} {ppl:9.3}   {:.0} tokens/s", run.tokens_per_second);
        checks.that(&format!("training helps, {name}"), ppl < one_ppl, format!("{one_ppl:.3} → {ppl:.3}"));
        runs.push(json!({ "name": name, "perplexity": ppl, "tokens_per_second": run.tokens_per_second }));
        curves.push(run.curve);
        trained.get_or_insert(run.model);
    }
    write_curves(run_folder.join("loss.svg"), "Training loss", "nats per token", &curves)?;

    let trained = converted.with_model(trained.ok_or("no run")?);
    let reloaded = save_and_reload(&trained, &run_folder.join("checkpoint"), &device)?;
    let difference = largest_difference(&trained.model, &reloaded.model, &held_out)?;
    checks.that("the checkpoint reloads", difference == 0.0, format!("logits differ by {difference:.1e}"));

    sample(&trained.model, &tokenizer, flags)?;

    let lrc = match flags.lrc {
        true => Some(lrc::stage(&trained, &train, &held_out, flags, &mut log, &mut checks, &run_folder)?),
        false => None,
    };

    let summary = json!({
        "flags": flags,
        "perplexity": { "dense": dense_ppl, "lambda_0": zero_ppl, "lambda_1_untrained": one_ppl },
        "runs": runs,
        "lrc": lrc,
        "checks": checks,
        "seconds": start.elapsed().as_secs_f64(),
    });
    std::fs::write(run_folder.join("summary.json"), format!("{summary:#}\n"))?;
    std::fs::write(run_folder.join("conversion.json"), conversion_json(&report)?)?;
    checks.print();
    println!("{:.0} s, results in {}", start.elapsed().as_secs_f64(), run_folder.display());
    Ok(checks.all_held())
}

/// Creates the folder of this run, which must be new or empty.
fn new_run_folder(flags: &Flags) -> Result<PathBuf, Box<dyn Error>> {
    let folder = flags.run_folder();
    std::fs::create_dir_all(&folder)?;
    if std::fs::read_dir(&folder)?.next().is_some() {
        return Err(format!("`{}` holds something: expected a new or empty folder", folder.display()).into());
    }
    Ok(folder)
}

/// The checkpoint to start from, or random weights at SmolLM2-135M's shape.
fn source(flags: &Flags, device: &Device) -> Result<Checkpoint, Box<dyn Error>> {
    let Some(flags::Shape::Smollm2_135m) = flags.model else {
        return Ok(load(flags.checkpoint_folder(), device, &LoadOptions::default())?);
    };
    let mut config = CausalLmConfig::new(49152, 576, 1536, 30, 9)
        .with_n_kv_heads(Some(3))
        .with_head_dim(Some(64))
        .with_max_positions(8192)
        .with_tied_head(true)
        .with_init_std(1.0 / 24.0);
    config.rope.theta = 100_000.0;
    Ok(Checkpoint::new(config.init(device)?, HfConfig::llama(&config)?, flags.checkpoint_folder()))
}

/// Windows to train on, and a few held out.
fn windows(flags: &Flags, tokenizer: &Tokenizer) -> Result<(TokenWindows, TokenWindows), Box<dyn Error>> {
    let paths = if flags.data.is_empty() { repository::text_files() } else { flags.data.clone() };
    let mut tokens = Vec::new();
    for file in read_text(&paths)? {
        tokens.extend(tokenizer.encode(&file.text)?);
    }
    let (train, held_out) = TokenWindows::new(tokens, flags.window)?.split(0.05)?;
    let few = (0..held_out.len().min(flags.eval_windows)).filter_map(|i| held_out.get(i)).flatten().copied();
    Ok((train, TokenWindows::new(few.collect(), flags.window)?))
}

struct Run {
    model: CausalLm,
    curve: Curve,
    tokens_per_second: f64,
}

fn train_run(
    name: &str,
    config: &TrainConfig,
    model: &CausalLm,
    windows: &TokenWindows,
    flags: &Flags,
    log: &mut MetricsLog,
) -> Result<Run, Box<dyn Error>> {
    let mut trainer = Trainer::new(model.clone(), config)?;
    let progress = Progress::new(name, flags.steps, windows.window() * flags.batch);
    let mut points = Vec::new();
    for batch in windows.batches(flags.batch, flags.seed)?.take(flags.steps as usize) {
        let report: StepReport = trainer.step(&[batch], next_token_loss)?;
        points.push((report.step as f64, report.loss));
        let StepReport { step, loss, grad_norm, lambda, learning_rate } = report;
        log.write(&json!({
            "run": name, "step": step, "loss": loss, "grad_norm": grad_norm, "lambda": lambda,
            "learning_rate": learning_rate,
        }))?;
        progress.show(&report);
    }
    let tokens_per_second = progress.tokens_per_second();
    progress.finish();
    let mut model = trainer.into_model();
    set_lambda(&mut model, Some(1.0));
    Ok(Run { model, curve: Curve { name: name.into(), points }, tokens_per_second })
}

/// The largest difference between two models' logits on the first window, as a share of the largest logit.
fn largest_difference(a: &CausalLm, b: &CausalLm, windows: &TokenWindows) -> Result<f64, Box<dyn Error>> {
    let first = windows.get(0).ok_or("no held-out window")?;
    let logits = |model: &CausalLm| -> Result<Vec<f32>, Box<dyn Error>> {
        Ok(model.forward(model.batch(&[first])?).try_into_vec_as::<f32>()?)
    };
    let (a, b) = (logits(a)?, logits(b)?);
    if a.iter().chain(&b).any(|logit| !logit.is_finite()) {
        return Ok(f64::INFINITY);
    }
    let size = a.iter().fold(0.0_f32, |max, logit| max.max(logit.abs()));
    let difference = a.iter().zip(&b).fold(0.0_f32, |max, (a, b)| max.max((a - b).abs()));
    Ok(f64::from(difference) / f64::from(size))
}

fn sample(model: &CausalLm, tokenizer: &Tokenizer, flags: &Flags) -> Result<(), Box<dyn Error>> {
    let prompt = "The weights ";
    let tokens = tokenizer.encode(prompt)?;
    let room = model.config().position_limit().saturating_sub(tokens.len());
    let tokens = model.generate(&tokens, &GenerateOptions::random(room.min(40), flags.seed))?;
    let known: Vec<u32> =
        tokens.into_iter().filter(|&token| (token as usize) < tokenizer.vocab_size()).collect();
    println!("sample: {prompt}{}", tokenizer.decode(&known)?);
    Ok(())
}

fn save_and_reload(
    checkpoint: &Checkpoint,
    folder: &Path,
    device: &Device,
) -> Result<Checkpoint, Box<dyn Error>> {
    let checkpoint = checkpoint.clone().with_type(bitnet_arch::convert::WeightType::F32);
    save(&checkpoint, folder)?;
    Ok(load(folder, device, &LoadOptions { strict: true })?)
}

fn conversion_json(report: &ConversionReport) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(report).map(|json| json + "\n")
}
