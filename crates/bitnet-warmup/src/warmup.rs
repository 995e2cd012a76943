//! One model's warm-up: its settings and its state.

use serde::{Deserialize, Serialize};

use crate::{Schedule, WarmupError, check_lambda};

/// The settings of a [`LambdaWarmup`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LambdaWarmupConfig {
    /// The curve from `min` to `max`.
    pub schedule: Schedule,
    /// Number of optimizer steps from `min` to `max`; with 0, λ is `max` at once.
    pub warmup_steps: u64,
    /// λ before the first step, in 0..=max. 0 if a file leaves it out.
    #[serde(default)]
    pub min: f32,
    /// λ from step `warmup_steps` on, in min..=1. 1 if a file leaves it out.
    #[serde(default = "full")]
    pub max: f32,
}

fn full() -> f32 {
    1.0
}

impl LambdaWarmupConfig {
    /// A warm-up from 0 to 1.
    pub fn new(schedule: Schedule, warmup_steps: u64) -> Self {
        Self { schedule, warmup_steps, min: 0.0, max: full() }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// - [`WarmupError::Steepness`] if the schedule's `k` is not a finite number above 0.
    /// - [`WarmupError::Bounds`] unless 0 <= min <= max <= 1.
    pub fn validate(&self) -> Result<(), WarmupError> {
        self.schedule.validate()?;
        let Self { min, max, .. } = *self;
        if check_lambda(min).is_ok() && check_lambda(max).is_ok() && min <= max {
            Ok(())
        } else {
            Err(WarmupError::Bounds { min, max })
        }
    }

    /// The warm-up before its first step.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate).
    pub fn init(self) -> Result<LambdaWarmup, WarmupError> {
        self.validate()?;
        Ok(LambdaWarmup { config: self, step: 0 })
    }
}

/// λ of one model, rising with its optimizer steps.
///
/// Call [`step`](Self::step) once per *optimizer* step, never per micro-batch. Serde saves the complete state
/// (`step`, `schedule`, `warmup_steps`, `min`, `max`, every one required) and checks it when it is read back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "State", into = "State")]
pub struct LambdaWarmup {
    config: LambdaWarmupConfig,
    step: u64,
}

impl LambdaWarmup {
    /// The current λ = min + progress · (max − min), computed in f64; exactly `max` once complete.
    pub fn lambda(&self) -> f32 {
        if self.is_complete() {
            return self.config.max;
        }
        let LambdaWarmupConfig { schedule, warmup_steps, min, max } = self.config;
        let (min, max) = (f64::from(min), f64::from(max));
        (min + schedule.progress(self.step, warmup_steps) * (max - min)) as f32
    }

    /// Counts one optimizer step and returns the new λ.
    pub fn step(&mut self) -> f32 {
        self.step = self.step.saturating_add(1);
        self.lambda()
    }

    /// Number of optimizer steps counted so far, those after the warm-up included.
    pub fn steps_taken(&self) -> u64 {
        self.step
    }

    /// True once λ has reached `max` for good.
    pub fn is_complete(&self) -> bool {
        self.step >= self.config.warmup_steps
    }
}

/// [`LambdaWarmup`] as saved. Flat and without defaults: a missing field is an error.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    step: u64,
    schedule: Schedule,
    warmup_steps: u64,
    min: f32,
    max: f32,
}

impl From<LambdaWarmup> for State {
    fn from(warmup: LambdaWarmup) -> Self {
        let LambdaWarmup { config: LambdaWarmupConfig { schedule, warmup_steps, min, max }, step } = warmup;
        Self { step, schedule, warmup_steps, min, max }
    }
}

impl TryFrom<State> for LambdaWarmup {
    type Error = WarmupError;

    fn try_from(State { step, schedule, warmup_steps, min, max }: State) -> Result<Self, WarmupError> {
        let config = LambdaWarmupConfig { schedule, warmup_steps, min, max };
        config.validate()?;
        Ok(Self { config, step })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The acceptance vectors have six decimals.
    const TOLERANCE: f32 = 1e-6;

    fn config(schedule: Schedule, min: f32, max: f32) -> LambdaWarmupConfig {
        LambdaWarmupConfig { min, max, ..LambdaWarmupConfig::new(schedule, 4) }
    }

    fn lambdas(warmup: &mut LambdaWarmup, steps: usize) -> Vec<f32> {
        (0..steps).map(|_| warmup.step()).collect()
    }

    #[test]
    fn acceptance_vectors() {
        let cases = [
            (config(Schedule::Linear, 0.0, 1.0), [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]),
            (config(Schedule::Cosine, 0.0, 1.0), [0.0, 0.146447, 0.5, 0.853553, 1.0, 1.0]),
            (config(Schedule::exponential(), 0.0, 1.0), [0.0, 0.718335, 0.924142, 0.983106, 1.0, 1.0]),
            (config(Schedule::sigmoid(), 0.0, 1.0), [0.0, 0.070104, 0.5, 0.929896, 1.0, 1.0]),
            (config(Schedule::Linear, 0.2, 0.8), [0.2, 0.35, 0.5, 0.65, 0.8, 0.8]),
            (config(Schedule::Cosine, 0.2, 0.8), [0.2, 0.287868, 0.5, 0.712132, 0.8, 0.8]),
        ];
        for (config, expected) in cases {
            let mut warmup = config.init().unwrap();
            assert_eq!(warmup.lambda(), config.min, "before the first step");
            for (step, &expected) in expected.iter().enumerate().skip(1) {
                let found = warmup.step();
                assert_eq!(found, warmup.lambda());
                assert_eq!(warmup.steps_taken(), step as u64);
                assert_eq!(warmup.is_complete(), step >= 4);
                assert!(
                    (found - expected).abs() < TOLERANCE,
                    "{config:?} step {step}: {found} != {expected}"
                );
            }
            assert_eq!(warmup.lambda(), config.max, "exactly");
        }
    }

    #[test]
    fn no_warmup_steps_give_max_at_once() {
        let config = LambdaWarmupConfig { warmup_steps: 0, ..config(Schedule::Cosine, 0.1, 0.7) };
        let mut warmup = config.init().unwrap();
        assert!(warmup.is_complete());
        assert_eq!((warmup.lambda(), warmup.step()), (0.7, 0.7));
    }

    #[test]
    fn lambda_never_leaves_its_bounds() {
        for (min, max) in [(0.0, 0.1), (0.1, 0.1), (0.3, 0.7), (1e-30, 1.0), (0.9, 1.0)] {
            for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::exponential(), Schedule::sigmoid()]
            {
                let config = LambdaWarmupConfig { warmup_steps: 1000, ..config(schedule, min, max) };
                for lambda in lambdas(&mut config.init().unwrap(), 1001) {
                    assert!((min..=max).contains(&lambda), "{lambda} for {config:?}");
                }
            }
        }
    }

    #[test]
    fn a_saved_warmup_continues_where_it_stopped() {
        for schedule in [
            Schedule::Linear,
            Schedule::Cosine,
            Schedule::Exponential { k: 0.3 },
            Schedule::Sigmoid { k: 7.1 },
        ] {
            for steps_before in 0..6 {
                let mut warmup = config(schedule, 0.2, 0.8).init().unwrap();
                lambdas(&mut warmup, steps_before);
                let json = serde_json::to_string(&warmup).unwrap();
                let mut restored: LambdaWarmup = serde_json::from_str(&json).unwrap();
                assert_eq!(restored, warmup);
                assert_eq!(lambdas(&mut restored, 5), lambdas(&mut warmup, 5));
            }
        }
    }

    #[test]
    fn the_saved_form_is_flat_and_complete() {
        let mut warmup = config(Schedule::sigmoid(), 0.25, 0.75).init().unwrap();
        warmup.step();
        let expected = serde_json::json!({"step": 1, "schedule": "sigmoid:10", "warmup_steps": 4, "min": 0.25, "max": 0.75});
        assert_eq!(serde_json::to_value(&warmup).unwrap(), expected);
    }

    #[test]
    fn a_corrupt_state_is_refused() {
        let good = serde_json::to_value(config(Schedule::Linear, 0.2, 0.8).init().unwrap()).unwrap();
        for (field, bad) in [
            ("min", "0.9"),
            ("max", "1.5"),
            ("max", "null"),
            ("step", "-1"),
            ("warmup_steps", "1.5"),
            ("schedule", "\"exponential:0\""),
            ("extra", "1"),
        ] {
            let mut state = good.clone();
            state[field] = serde_json::from_str(bad).unwrap();
            assert!(serde_json::from_value::<LambdaWarmup>(state).is_err(), "{field} = {bad}");
        }
        for field in ["step", "schedule", "warmup_steps", "min", "max"] {
            let mut state = good.clone();
            state.as_object_mut().unwrap().remove(field);
            assert!(serde_json::from_value::<LambdaWarmup>(state).is_err(), "without {field}");
        }
    }

    #[test]
    fn clones_are_independent() {
        let mut first = config(Schedule::Linear, 0.0, 1.0).init().unwrap();
        first.step();
        let mut second = first.clone();
        second.step();
        assert_eq!((first.lambda(), second.lambda()), (0.25, 0.5));
    }

    #[test]
    fn warmups_on_many_threads_do_not_disturb_each_other() {
        let config = LambdaWarmupConfig { warmup_steps: 100, ..config(Schedule::Cosine, 0.0, 1.0) };
        let alone = lambdas(&mut config.init().unwrap(), 100);
        let threads: Vec<_> =
            (0..4).map(|_| std::thread::spawn(move || lambdas(&mut config.init().unwrap(), 100))).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), alone);
        }
    }

    #[test]
    fn the_step_count_does_not_overflow() {
        let state =
            r#"{"step": 18446744073709551615, "schedule": "linear", "warmup_steps": 4, "min": 0, "max": 1}"#;
        let mut warmup: LambdaWarmup = serde_json::from_str(state).unwrap();
        assert_eq!(warmup.step(), 1.0);
        assert_eq!(warmup.steps_taken(), u64::MAX);
    }

    #[test]
    fn bad_settings_are_refused() {
        let bounds =
            [(0.6, 0.5), (-0.1, 1.0), (0.0, 1.1), (f32::NAN, 1.0), (0.0, f32::NAN), (0.0, f32::INFINITY)];
        for (min, max) in bounds {
            let result = config(Schedule::Linear, min, max).init();
            assert!(matches!(result, Err(WarmupError::Bounds { .. })), "{min}..={max}");
        }
        for k in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            for schedule in [Schedule::Exponential { k }, Schedule::Sigmoid { k }] {
                let result = config(schedule, 0.0, 1.0).init();
                assert!(matches!(result, Err(WarmupError::Steepness { .. })), "{schedule}");
            }
        }
    }

    #[test]
    fn a_config_file_may_leave_out_the_bounds_and_nothing_else() {
        let config: LambdaWarmupConfig =
            serde_json::from_str(r#"{"schedule": "cosine", "warmup_steps": 10}"#).unwrap();
        assert_eq!(config, LambdaWarmupConfig::new(Schedule::Cosine, 10));
        for bad in [r#"{"schedule": "cosine"}"#, r#"{"schedule": "cosine", "warmup_steps": 10, "mim": 0.5}"#]
        {
            assert!(serde_json::from_str::<LambdaWarmupConfig>(bad).is_err(), "{bad}");
        }
    }
}
