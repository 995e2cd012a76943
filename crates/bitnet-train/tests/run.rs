//! Runs driven step by step, on the repository's small model.

#![expect(clippy::unwrap_used, reason = "the functions beside the tests are tests too")]

use std::path::Path;

use bitnet_train::{LrDecay, Opening, Precision, Run, RunConfig, TrainError, Trainable, next_token_loss};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// A run on this repository's text: 64 tokens of it in a sequence, a snapshot every two steps.
fn config(folder: &Path, batch: &str) -> RunConfig {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let settings = format!(
        "out = '{0}/run'\nmodel = {{ source = '{1}/assets/small-model' }}\nbatch = {{ {batch} }}\n\
         eval = {{ every = 4, windows = 2 }}\nsnapshots = {{ every = 2, keep = 2 }}\n\
         [data]\nsource = {{ text = ['{1}/docs/numerics.md'] }}\nwindow = 64\ncache = '{0}/cache'\n\
         [train]\nsteps = 6\n",
        folder.display(),
        root.display(),
    );
    toml::from_str(&settings).unwrap()
}

fn open(config: &RunConfig) -> Run {
    Run::open(config, &config.model.source, |opening| {
        assert!(!matches!(opening, Opening::Warning(_)), "{opening:?}");
    })
    .unwrap()
}

#[test]
fn micro_batches_are_one_batch() {
    let report = |batch: &str| {
        let folder = tempfile::tempdir().unwrap();
        open(&config(folder.path(), batch)).step().unwrap()
    };
    let whole = report("micro_batch = 4");
    for batch in ["micro_batch = 2, accumulation = 2", "micro_batch = 1, accumulation = 4"] {
        let parts = report(batch);
        let off = |found: f64, expected: f64| (found - expected).abs() / expected;
        assert!(off(parts.loss, whole.loss) < 1e-5, "{batch}: loss {} {}", parts.loss, whole.loss);
        assert!(
            off(parts.grad_norm, whole.grad_norm) < 1e-5,
            "{batch}: {} {}",
            parts.grad_norm,
            whole.grad_norm
        );
    }
}

/// Realignment: only the sub-norms move, and the hidden states come nearer to the source's.
#[test]
fn sub_norms_alone_are_realigned() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), "micro_batch = 4");
    config.model.trainable = Trainable::SubNorms;
    config.train.steps = 20;
    config.train.learning_rate = 0.1;
    config.train.lr_decay = LrDecay::Constant;
    config.train.lambda.min = 1.0;
    config.distill = Some(toml::from_str("cross_entropy = 0.0\nhidden_mse = {}").unwrap());
    let mut run = open(&config);
    let parameters = |run: &Run| {
        let mut found = Parameters::default();
        run.model().valid().visit(&mut found);
        found
    };
    let before = parameters(&run);
    let losses: Vec<f64> = (0..20).map(|_| run.step().unwrap().loss).collect();
    let after = parameters(&run);
    let last = losses[17..].iter().sum::<f64>() / 3.0;
    assert!(last < 0.7 * losses[0], "{losses:?}");
    assert_eq!(before.others, after.others);
    assert_eq!(before.sub_norms.len(), 4, "two in each layer");
    assert!(before.sub_norms.iter().zip(&after.sub_norms).all(|(before, after)| before != after));
}

/// The values of all parameters.
#[derive(Default)]
struct Parameters {
    containers: Vec<String>,
    sub_norms: Vec<Vec<f32>>,
    others: Vec<Vec<f32>>,
}

impl ModuleVisitor for Parameters {
    fn enter_module(&mut self, _name: &str, container: &str) {
        self.containers.push(container.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let values = param.val().try_into_vec_as().unwrap();
        let is_sub_norm = self.containers.iter().any(|container| container == "Struct:SubLn");
        if is_sub_norm { &mut self.sub_norms } else { &mut self.others }.push(values);
    }
}

#[test]
fn a_run_can_be_driven_with_another_loss_and_goes_on_after_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "micro_batch = 2");
    let mut run = open(&config);
    for step in 0..3 {
        let report = run.step_with(|model, batch| Ok(next_token_loss(model, batch)? * 2.0)).unwrap();
        assert_eq!(report.step, step);
    }
    let error = run.step_with(|model, batch| Ok(next_token_loss(model, batch)? * f32::NAN)).unwrap_err();
    let TrainError::Stopped { snapshot: Some(2), source } = error else { panic!("{error}") };
    assert!(matches!(*source, TrainError::NotFinite { what: "loss", step: 3, .. }), "{source}");
    assert!(matches!(Run::open(&config, &config.model.source, |_| ()), Err(TrainError::InUse { .. })));
    drop(run);

    let mut run = open(&config);
    assert_eq!((run.steps_taken(), run.best()), (2, None));
    while !run.is_done() {
        run.step().unwrap();
    }
    let best = run.best().unwrap();
    assert!(best.steps == 4 || best.steps == 6, "{best:?}");
    let found = run.evaluate().unwrap();
    assert_eq!(found.tokens, 128);
    if best.steps == 6 {
        assert_eq!(found.perplexity, best.perplexity);
    }
    let model = run.finish().unwrap();
    let again = open(&config);
    assert!(again.is_done());
    let trained = bitnet_convert::load(&model, &burn::tensor::Device::flex(), &Default::default()).unwrap();
    let tokens = trained.model.batch(&[[1_u32, 2, 3]]).unwrap();
    let [mut found, mut expected] = [again.model().valid(), trained.model];
    for model in [&mut found, &mut expected] {
        bitnet_layers::set_lambda(model, Some(1.0));
    }
    let bits =
        |model: &bitnet_model::CausalLm| model.forward(tokens.clone()).try_into_vec_as::<f32>().unwrap();
    assert_eq!(bits(&found), bits(&expected), "saved as it was trained");
}

/// A teacher whose whole vocabulary is kept on disk teaches what the teacher in memory does, without being there, and is
/// asked once; the likeliest tokens alone give less, and another run's settings do not fit.
#[test]
fn a_teacher_on_disk_is_the_teacher() {
    let losses = |settings: &str, steps: u64| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path(), "micro_batch = 2");
        config.distill = Some(toml::from_str(settings).unwrap());
        let mut run = open(&config);
        let reports: Vec<_> = (0..steps).map(|_| run.step().unwrap().loss).collect();
        drop(run);
        let kept = folder.path().join("run/teacher.safetensors");
        let size = std::fs::metadata(&kept).map(|data| data.len()).ok();
        let mut asked = false;
        Run::open(&config, &config.model.source, |opening| {
            asked |= matches!(opening, Opening::Asking(..));
        })
        .unwrap();
        assert!(!asked, "a second time");
        (reports, size)
    };
    let (in_memory, no_file) = losses("logit_kl = { temperature = 2.0 }", 3);
    assert_eq!(no_file, None);
    let vocab_size = 512;
    let settings = format!("logit_kl = {{ temperature = 2.0, top_k = {vocab_size} }}");
    let (on_disk, size) = losses(&settings, 3);
    for (found, expected) in on_disk.iter().zip(&in_memory) {
        assert!((found - expected).abs() < 1e-4 * expected, "{found} {expected}");
    }
    // 6 steps of 2 windows of 64 tokens.
    assert_eq!(size, Some(1024 + 12 * (8 + 8 * 64 * vocab_size)));
    let (few, _) = losses("logit_kl = { temperature = 2.0, top_k = 4 }", 2);
    assert!(few[1] < in_memory[1] && few[1] > 0.5 * in_memory[1], "{few:?} {in_memory:?}");

    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), "micro_batch = 2");
    config.distill = Some(toml::from_str("logit_kl = { top_k = 1000000 }").unwrap());
    let error = Run::open(&config, &config.model.source, |_| ()).map(|_| ()).unwrap_err();
    assert!(matches!(error, TrainError::Config { field: "distill.logit_kl.top_k", .. }), "{error}");
}

/// Settings that look at data before the first step, or change how steps are computed, in a run that is interrupted.
#[test]
fn a_calibrated_run_in_bf16_goes_on() {
    let run = |interrupted: bool| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path(), "micro_batch = 2");
        config.model.policy.sub_norm_gain = bitnet_convert::SubNormGain::Calibrated;
        config.model.policy.salient = Some(0.02);
        config.model.calibration = 3;
        config.train.precision = Precision::Bf16;
        config.train.gradient_checkpointing = true;
        let mut run = open(&config);
        let mut reports = Vec::new();
        while !run.is_done() {
            reports.push(run.step().unwrap());
            if interrupted && reports.len() == 4 {
                run = {
                    drop(run);
                    open(&config)
                };
            }
        }
        let metrics = std::fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
        let line = metrics.lines().find(|line| line.contains("perplexity")).unwrap();
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let slots = |name: &str| line[name].as_object().unwrap().clone();
        assert_eq!(slots("codes").len(), 14);
        for (slot, seen) in slots("activations") {
            let of = |name: &str| seen[name].as_f64().unwrap();
            assert!(of("absmax") > of("rms") && of("rms") > 0.0 && of("outliers") < 0.5, "{slot}: {seen}");
        }
        let flipped = slots("codes").values().map(|codes| codes["flipped"].as_f64().unwrap()).sum::<f64>();
        assert!(flipped > 0.0 && flipped < 0.1 * 14.0, "{flipped}");
        reports
    };
    assert_eq!(run(true), run(false));
}

/// Two devices, each with its own copy of the model, take the steps of one; a run may change between them on the way.
#[test]
fn several_devices_are_one() {
    let reports = |more: &[usize], settings: &str| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path(), "micro_batch = 1, accumulation = 4");
        config.distill = (!settings.is_empty()).then(|| toml::from_str(settings).unwrap());
        let mut reports = Vec::new();
        for n in more {
            config.more_devices = vec!["flex".into(); *n];
            let mut run = open(&config);
            reports.extend((0..2).map(|_| run.step().unwrap()));
        }
        reports
    };
    for settings in ["", "logit_kl = {}\nhidden_mse = {}", "logit_kl = { top_k = 8 }"] {
        let expected = reports(&[0, 0], settings);
        assert_eq!(expected.last().unwrap().step, 3);
        assert_eq!(reports(&[1, 3], settings), expected, "two devices, then four");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), "micro_batch = 1, accumulation = 2");
    config.more_devices = vec!["flex".into()];
    let error = open(&config).step_with(|_, _| Err(TrainError::Device("gone".into()))).unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
    config.more_devices = vec!["cuda:77".into()];
    let error = Run::open(&config, &config.model.source, |_| ()).map(|_| ()).unwrap_err();
    assert!(matches!(error, TrainError::NoDevice(_)), "{error}");
}

/// Gradients are added device by device then: other last bits, from which AdamW and rounding make a little more. A run may
/// begin and stop sharding.
#[test]
fn a_sharded_optimizer_takes_the_same_steps() {
    let reports = |phases: &[(&str, bool)]| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path(), "micro_batch = 1, accumulation = 4");
        let mut reports = Vec::new();
        for (more, sharded) in phases {
            config.more_devices = vec![(*more).to_owned()];
            config.shard_optimizer = *sharded;
            let mut run = open(&config);
            reports.extend((0..2).map(|_| run.step().unwrap()));
        }
        reports
    };
    let expected = reports(&[("flex", false), ("flex", false)]);
    let mut others = vec!["flex"];
    others.extend(bitnet_quant::device("ndarray").is_ok().then_some("ndarray"));
    for other in others {
        let sharded = [(other, true), (other, true)];
        assert_eq!(reports(&sharded), reports(&sharded), "each time the same");
        for phases in [sharded, [(other, true), (other, false)]] {
            let found = reports(&phases);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found.loss - expected.loss).abs() < 1e-3 * expected.loss, "{found:?}, {expected:?}");
                let norms = [found.grad_norm, expected.grad_norm];
                assert!((norms[0] - norms[1]).abs() < 1e-2 * norms[1], "{found:?}, {expected:?}");
            }
        }
    }
}

/// What several devices cannot do is refused; one device of the same kind goes on.
#[test]
fn several_devices_neither_drop_nor_compute_in_what_one_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), "micro_batch = 1, accumulation = 2");
    let flex = burn::tensor::Device::flex();
    let source = bitnet_convert::load(&config.model.source, &flex, &Default::default()).unwrap();
    let lora = bitnet_lrc::LoraConfig { dropout: 0.25, ..Default::default() };
    let (model, _) = bitnet_lrc::add_lora(source.model.clone(), &lora).unwrap();
    config.model.source = folder.path().join("lora").to_string_lossy().into_owned();
    bitnet_convert::save(&source.with_model(model), &config.model.source).unwrap();
    drop(open(&config));
    config.more_devices = vec!["flex".into()];
    let error = Run::open(&config, &config.model.source, |_| ()).map(|_| ()).unwrap_err();
    assert!(matches!(error, TrainError::Config { field: "more_devices", .. }), "{error}");
    assert!(error.to_string().contains("dropout 0.25 in `"), "{error}");

    config.train.precision = Precision::Bf16;
    config.more_devices = vec!["ndarray".into()];
    if bitnet_quant::device("ndarray").is_ok() {
        let error = Run::open(&config, &config.model.source, |opening| panic!("{opening:?}"));
        let error = error.map(|_| ()).unwrap_err();
        assert!(matches!(error, TrainError::Config { field: "precision", .. }), "{error}");
        assert!(error.to_string().contains("NdArray"), "{error}");
    }
}

/// A best snapshot that is damaged after the run went on is no checkpoint, but the trained one is written.
#[test]
fn a_damaged_best_snapshot_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), "micro_batch = 2");
    config.train.learning_rate = 0.01;
    config.train.lr_decay = LrDecay::Constant;
    let mut run = open(&config);
    while !run.is_done() {
        let factor = if run.steps_taken() < 4 { 1.0 } else { -1.0 };
        run.step_with(move |model, batch| Ok(next_token_loss(model, batch)? * factor)).unwrap();
    }
    assert_eq!(run.best().unwrap().steps, 4, "the last two steps made it worse");
    let file = folder.path().join("run/snapshots/step-00000004/model.bpk");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let error = run.finish().unwrap_err();
    assert!(matches!(error, TrainError::Best { .. }), "{error}");
    assert!(error.to_string().contains("model.bpk is damaged"), "{error}");
    let written = |name: &str| folder.path().join("run").join(name).exists();
    assert!(written("model") && !written("best"));
    bytes[middle] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    open(&config).finish().unwrap();
    assert!(written("best"));
}

/// What the student is compared with begins at nothing and grows with λ: that is no explosion.
#[test]
fn a_loss_that_begins_at_nothing_may_grow() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), "micro_batch = 1");
    config.distill = Some(toml::from_str("cross_entropy = 0.0\nlogit_kl = {}").unwrap());
    config.train.steps = 200;
    config.train.lambda.warmup_steps = 200;
    config.train.learning_rate = 1e-5;
    config.eval.every = 1000;
    config.snapshots.every = 1000;
    let mut run = open(&config);
    let losses: Vec<f64> = (0..30).map(|_| run.step().unwrap().loss).collect();
    assert!(losses[1..].iter().any(|loss| *loss > 3.0 * losses[1]), "{losses:?}");
}

/// Other tokens under the same name, and nothing to train, are refused.
#[test]
fn what_a_run_cannot_go_on_with_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = |first: i32| {
        let bytes: Vec<u8> = (0..2000).flat_map(|i| ((i * first) % 500).to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I32, vec![2000], &bytes).unwrap();
        let bytes = safetensors::serialize([("tokens", view)], None).unwrap();
        std::fs::write(folder.path().join("tokens"), bytes).unwrap();
    };
    tokens(7);
    let mut config = config(folder.path(), "micro_batch = 1");
    config.data.source =
        bitnet_text::TokenSource::Tokens { path: folder.path().join("tokens"), tensor: "tokens".into() };
    config.distill = Some(toml::from_str("logit_kl = { top_k = 4 }").unwrap());
    let mut run = open(&config);
    run.step().unwrap();
    run.step().unwrap();
    drop(run);
    let files = || {
        let names = ["config.toml", "conversion.json", "teacher.safetensors", "metrics.jsonl"];
        names.map(|name| std::fs::read(folder.path().join("run").join(name)).unwrap())
    };
    let before = files();
    tokens(11);
    let error = Run::open(&config, &config.model.source, |_| ()).map(|_| ()).unwrap_err();
    assert!(matches!(&error, TrainError::OtherRun { field, .. } if field == "data"), "{error}");
    assert!(files() == before, "the run is as it was");
    tokens(7);
    assert_eq!(open(&config).steps_taken(), 2);

    config.distill = None;
    config.out = folder.path().join("other");
    config.model.trainable = Trainable::SubNorms;
    config.model.policy.sub_norm = bitnet_convert::Placement::None;
    let error = Run::open(&config, &config.model.source, |_| ()).map(|_| ()).unwrap_err();
    assert!(matches!(error, TrainError::Config { field: "model.trainable", .. }), "{error}");
}
