//! Cross-crate suites: one list of cases, run on every backend.
//!
//! A case is a plain function `fn case(device: &Device)` in a module of this crate, and stands once in the list of
//! [`suite!`]. `tests/{flex,ndarray,wgpu,vulkan,cuda}.rs` each expand that list to one `#[test]` per case, so each
//! backend has a process of its own. A backend that is absent is skipped, unless `BITNET_REQUIRE` names it: then it
//! fails.
//!
//! Golden data lies in `data/`, with the scripts that made it. Beside it, only the repository's small model and licence are
//! read.

#![allow(clippy::unwrap_used, reason = "every function here is part of a test")]

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use bitnet_arch::quant::{DeviceError, device};
use burn::tensor::Device;

pub mod bad_input;
pub mod check;
pub mod checkpoints;
pub mod convert;
pub mod generate;
pub mod gguf;
pub mod golden;
pub mod hf;
pub mod layers_cases;
pub mod layers_kept;
pub mod layers_low_rank;
pub mod layers_norm;
pub mod layers_outliers;
pub mod layers_slots;
pub mod layers_weight_only;
pub mod lrc_add;
pub mod lrc_calibrate;
pub mod lrc_checkpoints;
pub mod lrc_gains;
pub mod lrc_outliers;
pub(crate) mod one_slot;
pub mod pack;
pub mod quant_activation;
pub mod quant_linear;
pub mod quant_operands;
pub mod quant_packed;
pub mod quant_weight;
pub mod training_passes;
pub mod training_settings;
pub mod training_state;
pub mod training_step;
pub mod training_tiny_llama;
pub mod training_trajectory;
pub mod training_warmup;
pub mod vectors;

/// Expands to one `#[test]` per case, on the named device. Every case of this crate stands here, once.
#[macro_export]
macro_rules! suite {
    ($device:literal) => {
        $crate::cases! { $device
            quant_weight: acceptance, ties_tiny_and_zero, groups, rows_and_groups_stand_alone, reference,
                half_precision, bad_granularity, footprint, sums, repeats;
            quant_activation: acceptance, ties, zero_and_tiny_tokens, reference, widths, bad_widths, half_precision;
            quant_linear: forward_quantized, forward_at_lambda, gradient_vectors, gradients_are_straight_through,
                frozen_operands, the_fused_layer_is_the_reference, gradient_checkpointing_changes_nothing,
                quantized_exactly, dense_exactly, half_precision, half_inputs;
            quant_operands: weights_of_every_length, inputs_of_every_length, what_is_not_finite_shows;
            quant_packed: acceptance, the_operation_is_the_reference, groups, packing_changes_nothing,
                codes_are_exact, the_widest_row_is_exact, gradient, what_is_not_finite_shows,
                unpacking_undoes_packing, half_inputs;
            layers_cases: reference;
            layers_kept: the_codes_follow_the_weight;
            layers_norm: acceptance, strength, gradient, half_precision, configuration;
            layers_slots: visits_a_users_module, converts_in_place, a_slot_computes_its_form, refuses_a_bad_group,
                copies_are_independent, default_lambda;
            layers_weight_only: forward, default_lambda, trains, errors;
            layers_low_rank: adds_to_every_form, sees_the_normed_input, gradients, gradients_beside_frozen_weights,
                quantized_factors, qlrc_trains_straight_through, kinds_convert, lora_drops_inputs_in_training,
                refuses_what_does_not_fit, operands_are_those_of_the_product;
            layers_outliers: hadamard_matrix, the_function_is_kept, quantized_apart, outliers_cost_less,
                other_forms_keep_it, weights_can_be_changed, gradients, refuses;
            lrc_add: acceptance, full_rank_leaves_the_activation_error, adds_where_the_config_says,
                quantized_and_packed_corrections, exactly_the_factors_train, freezing_leaves_the_factors_gradients,
                merges_where_nothing_is_lost, removal_undoes, statistics, refuses;
            lrc_calibrate: beats_the_residual_which_beats_nothing, goes_block_by_block, rounds_fit_the_weight_too,
                follows_the_config, refuses;
            lrc_outliers: scores, rotation, corrections_on_treated_slots, refuses;
            lrc_gains: sizes, gains, conversion;
            lrc_checkpoints: corrections_are_saved, checkpoints_are_corrected_by_name, adapters_are_saved, treated_slots_are_saved, other_formats_refuse,
                peft_adapters, gguf_adapters, damaged_configs;
            training_warmup: schedules_reach_the_slots, saved_and_restored, independent, bad_settings;
            training_step: reference_gradients, reference_update, trainer_is_adamw, accumulation, refused_steps;
            training_settings: gradient_checkpointing, half_precision;
            training_state: saved_and_loaded, what_decays;
            training_passes: a_model_is_its_definition, operations_are_their_definitions, updates_are_burns,
                squares_are_folded;
            training_tiny_llama: reference;
            training_trajectory: dense, constant, ramp;
            hf: dense_logits, quantized_logits, hidden_states, loss_and_gradients,
                rope_scaling_and_sliding_layers, packed_logits, gpt2_is_refused,
                golden_checkpoints_load_strictly;
            generate: greedy_tokens_are_the_references, the_cache_changes_nothing,
                dynamic_rope_generates_beyond_its_positions, sampling_follows_its_seed,
                a_stop_token_ends_the_text, a_continuation_comes_token_by_token, bad_sampling_settings_are_refused;
            gguf: codes_survive_every_type, floats_are_weights_alone, finer_scales_stand_in_the_blocks, dense_models_come_back,
                rope_scaling_comes_back, biases_come_back, the_type_follows_the_widths, what_cannot_run_is_refused,
                metadata_that_are_not_computed_here, damaged_gguf_files, files_of_others_are_read;
            convert: lambda_zero_is_the_dense_model, every_tensor_is_reported, excluded_slots_stay_dense,
                conversion_is_idempotent, a_conversion_in_two_steps_is_that_of_one,
                auto_conversion_knows_what_is_bitnet, quantization_settings_reach_every_slot,
                a_group_that_does_not_fit_is_refused, stage1_folders_load_again,
                stage1_config_speaks_transformers_language, stage1_refuses_what_it_must,
                a_models_own_sub_norms_stay_its_own, frozen_weights_stay_frozen;
            pack: a_packed_slot_computes_what_it_was_packed_from, lambda, packing_keeps_the_model,
                exports_load_with_the_same_codes, biases_of_packed_folders,
                packed_models_with_dense_slots_load_again, exported_config, refusals, damaged_packed_folders;
            bad_input: weight_files_that_are_damaged, indexes_that_are_damaged,
                tensors_that_the_config_does_not_imply, weights_that_are_not_finite,
                configs_that_describe_no_model, a_tokenizer_larger_than_the_embedding,
                tokens_that_do_not_suit_the_model, text_that_is_too_short, devices_that_cannot_be_had,
                unexpected_tensors_stand_in_the_report, sizes_that_no_memory_holds,
                checkpoints_that_would_not_load_again, exclude_patterns_that_match_nothing;
        }
    };
}

/// The tests of [`suite!`]: a module of tests for each module of cases.
#[doc(hidden)]
#[macro_export]
macro_rules! cases {
    ($device:literal $($module:ident: $($case:ident),+;)*) => {
        $(mod $module {
            $(#[test]
            fn $case() {
                $crate::run($device, $crate::$module::$case);
            })+
        })*
    };
}

/// The variable that names the backends which must be present, separated by commas.
const REQUIRE: &str = "BITNET_REQUIRE";

/// Runs a case on the named device. Cases run one after the other: the process-wide default λ belongs to all of
/// them, and so does a GPU.
///
/// # Panics
/// Where the case fails, and where the device is absent though required.
pub fn run(name: &str, case: fn(&Device)) {
    static DEVICE: OnceLock<Result<Device, DeviceError>> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match DEVICE.get_or_init(|| device(name)) {
        Ok(device) => case(device),
        Err(error) if is_required(name) => panic!("{REQUIRE} names {name}: {error}"),
        Err(error) => eprintln!("skipped: {error}"),
    }
}

fn is_required(name: &str) -> bool {
    std::env::var(REQUIRE).is_ok_and(|names| names.split(',').any(|required| required.trim() == name))
}

/// The path of a file or folder in `data/`.
pub fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data").join(path)
}
