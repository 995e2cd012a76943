//! Every architecture against what transformers computes: logits, hidden states, loss, gradients, RoPE scaling.

use bitnet_arch::convert::{Checkpoint, ConvertError, LoadOptions, WeightType, load, save};
use bitnet_arch::layers::for_each_slot;
use bitnet_arch::train::next_token_loss;
use burn::module::{Module, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};

use crate::check::{assert_close, assert_close_relative, max_difference, values};
use crate::checkpoints::{
    DENSE, LOGITS, PACKED, QUANTIZED, assert_close_but_for_flips, compose, golden, last_positions, loaded,
    logits, mean_difference, reference, scratch, sequences,
};
use crate::golden::Golden;

/// A mean of 46 logarithms, each as exact as the logits.
const LOSS: f32 = 1e-5;

/// Of the largest gradient of the tensor: gradients are sums of products of values that hold to about 1e-5 of their
/// own largest one, and small entries are what is left of large terms that cancel.
const GRADIENT: f32 = 1e-4;

/// Logits of each dense architecture.
pub fn dense_logits(device: &Device) {
    for name in DENSE {
        let reference = reference(name);
        let model = golden(name, device).model;
        let found = logits(&model, &sequences(&reference, "input_ids"));
        let positions = reference.shape("logits")[1];
        let found = values(last_positions(found, positions));
        let expected = reference.floats("logits");
        println!("{name}: logits max {:e}", max_difference(&found, &expected));
        assert_close(name, &found, &expected, LOGITS);
    }
}

/// Logits where weights and activations are quantized on the fly.
pub fn quantized_logits(device: &Device) {
    for name in QUANTIZED {
        let reference = reference(name);
        let model = golden(name, device).model;
        let found = values(logits(&model, &sequences(&reference, "input_ids")));
        assert_close_to_a_run(name, &found, &[reference.floats("logits"), reference.floats("other.logits")]);
    }
}

/// The residual stream before each block, and the normed output of the last.
pub fn hidden_states(device: &Device) {
    for name in DENSE.into_iter().chain(QUANTIZED) {
        let reference = reference(name);
        let model = golden(name, device).model;
        let rows = reference.shape("hidden.0")[0];
        let states = model.hidden_states(model.batch(&sequences(&reference, "input_ids")[..rows]).unwrap());
        assert_eq!(states.len(), model.config().n_layers + 1, "{name}");
        for (i, state) in states.into_iter().enumerate() {
            let what = format!("{name} hidden.{i}");
            let (found, expected) = (values(state), reference.floats(&format!("hidden.{i}")));
            if QUANTIZED.contains(&name) {
                assert_close_to_a_run(
                    &what,
                    &found,
                    &[expected, reference.floats(&format!("other.hidden.{i}"))],
                );
            } else {
                println!("{what}: max {:e}", max_difference(&found, &expected));
                assert_close(&what, &found, &expected, LOGITS);
            }
        }
    }
}

/// Fails where quantized results differ from both runs of transformers by more than flipped codes explain. The second
/// run rounds the activation that lies nearest to a tie the other way, as an equally valid order of summation does.
fn assert_close_to_a_run(what: &str, found: &[f32], runs: &[Vec<f32>; 2]) {
    let means = runs.each_ref().map(|run| mean_difference(found, run));
    let nearest = if means[1] < means[0] { &runs[1] } else { &runs[0] };
    assert_close_but_for_flips(what, found, nearest);
}

/// The training loss and its gradients, by Hugging Face name and in the checkpoint's layout.
pub fn loss_and_gradients(device: &Device) {
    let mut n_compared = 0;
    for name in DENSE.into_iter().chain(QUANTIZED) {
        if name == "llama_sharded" {
            continue; // its reference is that of llama_tied
        }
        let reference = reference(name);
        let checkpoint = golden(name, device);
        let (loss, gradients) = backward(checkpoint, &sequences(&reference, "input_ids"));
        let off = |run: &str| max_difference(&[loss], &reference.floats(&format!("{run}loss")));
        // Where a near tie makes two runs, the one that rounded as we did.
        let names = reference.names();
        let runs = names.iter().filter_map(|tensor| tensor.strip_suffix("loss"));
        let run = runs.min_by(|a, b| off(a).total_cmp(&off(b))).unwrap();
        assert!(off(run) <= LOSS, "{name}: loss off by {:e}", off(run));
        let mut worst = 0.0f32;
        for tensor in reference.names() {
            let Some(parameter) = tensor.strip_prefix(&format!("{run}grad.")) else {
                continue;
            };
            assert_eq!(gradients.shape(parameter), reference.shape(&tensor), "{name}: {parameter}");
            let (found, expected) = (gradients.floats(parameter), reference.floats(&tensor));
            let share = assert_close_relative(&format!("{name}: {tensor}"), &found, &expected, GRADIENT);
            worst = worst.max(share);
            n_compared += 1;
        }
        println!("{name}: {run}loss {:e}, gradients {worst:e} of the largest", off(run));
    }
    assert!(n_compared > 100, "{n_compared} gradients compared");
}

/// Linear, dynamic, Llama 3 and YaRN scaling, and layers with and without a sliding window.
pub fn rope_scaling_and_sliding_layers(device: &Device) {
    for name in ROPE {
        let reference = Golden::open(&format!("rope/{name}/ref.safetensors"));
        let model = rope(name, device).model;
        let found = logits(&model, &sequences(&reference, "input_ids"));
        let positions = reference.shape("logits")[1];
        let found = values(last_positions(found, positions));
        let expected = reference.floats("logits");
        println!("{name}: logits max {:e}", max_difference(&found, &expected));
        assert_close(name, &found, &expected, LOGITS);
    }
}

/// Logits of packed checkpoints, whose scales divide (`bitlinear`) or multiply (`autobitlinear`).
pub fn packed_logits(device: &Device) {
    for name in PACKED {
        let reference = reference(name);
        let checkpoint = load(crate::data("hf").join(name), device, &LoadOptions { strict: true }).unwrap();
        for_each_slot(&checkpoint.model, |path, slot| assert_eq!(slot.form.name(), "packed", "{path}"));
        let found = logits(&checkpoint.model, &sequences(&reference, "input_ids"));
        let positions = reference.shape("logits")[1];
        let found = values(last_positions(found, positions));
        assert_close_to_a_run(name, &found, &[reference.floats("logits"), reference.floats("other.logits")]);
    }
}

/// An architecture that is not computed is refused by name.
pub fn gpt2_is_refused(device: &Device) {
    let error = load(crate::data("hf/gpt2"), device, &LoadOptions::default()).unwrap_err();
    assert!(matches!(&error, ConvertError::UnknownModelType { found, .. } if found == "gpt2"), "{error}");
    assert!(error.to_string().contains("llama"), "{error}");
}

/// A strict load finds nothing unexpected in any golden checkpoint.
pub fn golden_checkpoints_load_strictly(device: &Device) {
    for name in DENSE.into_iter().chain(QUANTIZED) {
        let checkpoint = load(scratch(name).path(), device, &LoadOptions { strict: true }).unwrap();
        assert_eq!(checkpoint.unexpected, Vec::<String>::new(), "{name}");
    }
}

/// The fixtures of `data/rope`.
pub const ROPE: [&str; 11] = [
    "linear",
    "dynamic_short",
    "dynamic_long",
    "llama3",
    "yarn",
    "yarn_betas",
    "yarn_no_truncate",
    "yarn_mscale",
    "yarn_mscale_alone",
    "yarn_attention_factor",
    "qwen2_sliding",
];

/// A checkpoint of `data/rope`, which has the weights of one of `data/hf`.
pub fn rope(name: &str, device: &Device) -> Checkpoint {
    let weights = if name.starts_with("qwen2") { "qwen2" } else { "llama_tied" };
    loaded(compose(&crate::data("rope").join(name).join("config.json"), weights).path(), device)
}

/// The loss, and its gradients by Hugging Face name: a model whose weights are its gradients, saved and read back.
fn backward(checkpoint: Checkpoint, sequences: &Vec<Vec<u32>>) -> (f32, Golden) {
    let model = checkpoint.model.clone().train();
    let loss = next_token_loss(&model, sequences).unwrap();
    let gradients = GradientsParams::from_grads(loss.backward(), &model);
    let model = model.valid().map(&mut TakeGradients(gradients));
    let folder = tempfile::tempdir().unwrap();
    save(&checkpoint.with_model(model).with_type(WeightType::F32), folder.path()).unwrap();
    (loss.into_scalar::<f32>(), Golden::read(&folder.path().join("model.safetensors")))
}

struct TakeGradients(GradientsParams);

impl ModuleMapper for TakeGradients {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let gradient = self.0.remove::<D>(param.id).expect("every parameter has a gradient");
        param.map(|_| gradient)
    }
}
