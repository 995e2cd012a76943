//! The curves along which λ rises.

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::WarmupError;

/// The curve along which λ rises, from progress 0 to progress 1.
///
/// As text, for people and in files: `linear`, `cosine`, `exponential`, `exponential:7`, `sigmoid`, `sigmoid:7`,
/// where the number is the steepness `k` (5 and 10 if absent). Display and serde always write `k`.
///
/// With x = step / warmup_steps:
///
/// | schedule      | progress                                                       |
/// |---------------|----------------------------------------------------------------|
/// | `Linear`      | x                                                              |
/// | `Cosine`      | (1 − cos(πx)) / 2                                              |
/// | `Exponential` | (1 − e^(−kx)) / (1 − e^(−k))                                   |
/// | `Sigmoid`     | (σ(k(x − ½)) − σ(−k/2)) / (σ(k/2) − σ(−k/2)), σ the logistic    |
///
/// # Source
/// docs/numerics.md#schedules.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Schedule {
    /// A straight line.
    Linear,
    /// Half a cosine wave: slow at both ends.
    Cosine,
    /// Fast at first, slow at the end.
    Exponential {
        /// Steepness, above 0.
        k: f64,
    },
    /// Slow at both ends, the steeper `k` the more abrupt in the middle.
    Sigmoid {
        /// Steepness, above 0.
        k: f64,
    },
}

impl Schedule {
    /// The exponential schedule with its default steepness, 5.
    pub const fn exponential() -> Self {
        Self::Exponential { k: 5.0 }
    }

    /// The sigmoid schedule with its default steepness, 10.
    pub const fn sigmoid() -> Self {
        Self::Sigmoid { k: 10.0 }
    }

    /// Checks the steepness.
    ///
    /// # Errors
    /// [`WarmupError::Steepness`] if `k` is not a finite number above 0 (a subnormal number counts as 0).
    pub fn validate(self) -> Result<(), WarmupError> {
        match self {
            Self::Exponential { k } | Self::Sigmoid { k } if !(k > 0.0 && k.is_normal()) => {
                Err(WarmupError::Steepness { schedule: self.name(), found: k })
            }
            _ => Ok(()),
        }
    }

    /// The share in 0..=1 of the way from min to max after `step` of `warmup_steps` optimizer steps.
    ///
    /// Exactly 1 from the last step on, and at once if `warmup_steps` is 0. The schedule must be
    /// [valid](Self::validate).
    pub fn progress(self, step: u64, warmup_steps: u64) -> f64 {
        if step >= warmup_steps {
            return 1.0;
        }
        let x = step as f64 / warmup_steps as f64;
        match self {
            Self::Linear => x,
            Self::Cosine => (1.0 - (PI * x).cos()) / 2.0,
            // e^y − 1 in one call keeps its digits where k is small.
            Self::Exponential { k } => (-k * x).exp_m1() / (-k).exp_m1(),
            // With σ(y) = (1 + tanh(y/2)) / 2 the definition becomes this, which keeps its digits too.
            Self::Sigmoid { k } => (1.0 + (k / 2.0 * (x - 0.5)).tanh() / (k / 4.0).tanh()) / 2.0,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::Exponential { .. } => "exponential",
            Self::Sigmoid { .. } => "sigmoid",
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Linear | Self::Cosine => Ok(()),
            Self::Exponential { k } | Self::Sigmoid { k } => write!(f, ":{k}"),
        }
    }
}

impl FromStr for Schedule {
    type Err = WarmupError;

    fn from_str(text: &str) -> Result<Self, WarmupError> {
        let unknown = || WarmupError::UnknownSchedule { found: text.to_owned() };
        let (name, k) = match text.split_once(':') {
            Some((name, k)) => (name, Some(k.parse().map_err(|_| unknown())?)),
            None => (text, None),
        };
        let schedule = match (name, k) {
            ("linear", None) => Self::Linear,
            ("cosine", None) => Self::Cosine,
            ("exponential", None) => Self::exponential(),
            ("exponential", Some(k)) => Self::Exponential { k },
            ("sigmoid", None) => Self::sigmoid(),
            ("sigmoid", Some(k)) => Self::Sigmoid { k },
            _ => return Err(unknown()),
        };
        schedule.validate()?;
        Ok(schedule)
    }
}

impl TryFrom<String> for Schedule {
    type Error = WarmupError;

    fn try_from(text: String) -> Result<Self, WarmupError> {
        text.parse()
    }
}

impl From<Schedule> for String {
    fn from(schedule: Schedule) -> Self {
        schedule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The acceptance vectors have six decimals.
    const TOLERANCE: f64 = 1e-6;

    const ALL: [Schedule; 4] =
        [Schedule::Linear, Schedule::Cosine, Schedule::exponential(), Schedule::sigmoid()];

    #[test]
    fn acceptance_vectors() {
        let cases = [
            (Schedule::Linear, [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]),
            (Schedule::Cosine, [0.0, 0.146447, 0.5, 0.853553, 1.0, 1.0]),
            (Schedule::exponential(), [0.0, 0.718335, 0.924142, 0.983106, 1.0, 1.0]),
            (Schedule::sigmoid(), [0.0, 0.070104, 0.5, 0.929896, 1.0, 1.0]),
        ];
        for (schedule, expected) in cases {
            for (step, expected) in expected.into_iter().enumerate() {
                let found = schedule.progress(step as u64, 4);
                assert!(
                    (found - expected).abs() < TOLERANCE,
                    "{schedule} step {step}: {found} != {expected}"
                );
            }
        }
    }

    #[test]
    fn sigmoid_equals_its_definition() {
        let sigma = |y: f64| 1.0 / (1.0 + (-y).exp());
        for k in [0.5, 3.0, 10.0, 20.0] {
            for step in 0..=7 {
                let (low, high) = (sigma(-k / 2.0), sigma(k / 2.0));
                let expected = (sigma(k * (step as f64 / 7.0 - 0.5)) - low) / (high - low);
                let found = Schedule::Sigmoid { k }.progress(step, 7);
                assert!((found - expected).abs() < 1e-12, "k {k} step {step}: {found} != {expected}"); // rounding
            }
        }
    }

    #[test]
    fn no_warmup_is_complete_at_once() {
        for schedule in ALL {
            assert_eq!(schedule.progress(0, 0), 1.0);
            assert_eq!(schedule.progress(u64::MAX, u64::MAX), 1.0);
        }
    }

    #[test]
    fn progress_rises_within_0_to_1_at_any_steepness() {
        let steep = [f64::MIN_POSITIVE, 1e-300, 1e-9, 1.0, 700.0, 1e6, f64::MAX];
        let schedules = ALL
            .into_iter()
            .chain(steep.into_iter().flat_map(|k| [Schedule::Exponential { k }, Schedule::Sigmoid { k }]));
        for schedule in schedules {
            schedule.validate().unwrap();
            let mut last = 0.0;
            for step in 0..=100 {
                let p = schedule.progress(step, 100);
                assert!((last..=1.0).contains(&p), "{schedule:?} step {step}: {p} after {last}");
                last = p;
            }
            assert_eq!(schedule.progress(0, 100), 0.0, "{schedule:?}");
        }
    }

    #[test]
    fn text_round_trips() {
        for (text, schedule, written) in [
            ("linear", Schedule::Linear, "linear"),
            ("cosine", Schedule::Cosine, "cosine"),
            ("exponential", Schedule::Exponential { k: 5.0 }, "exponential:5"),
            ("exponential:7", Schedule::Exponential { k: 7.0 }, "exponential:7"),
            ("sigmoid", Schedule::Sigmoid { k: 10.0 }, "sigmoid:10"),
            ("sigmoid:0.1", Schedule::Sigmoid { k: 0.1 }, "sigmoid:0.1"),
        ] {
            assert_eq!(text.parse(), Ok(schedule));
            assert_eq!(schedule.to_string(), written);
            assert_eq!(written.parse(), Ok(schedule));
            let json = serde_json::to_string(&schedule).unwrap();
            assert_eq!(json, format!("\"{written}\""));
            assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), schedule);
        }
    }

    #[test]
    fn bad_text_is_refused() {
        for bad in
            ["", "Linear", "linear:3", "cosine:", "exponential:", "exponential:x", "sigmoid:1:2", "step"]
        {
            let expected = WarmupError::UnknownSchedule { found: bad.to_owned() };
            assert_eq!(bad.parse::<Schedule>(), Err(expected.clone()));
            let error = serde_json::from_str::<Schedule>(&format!("\"{bad}\"")).unwrap_err().to_string();
            assert!(error.contains(&expected.to_string()), "{error}");
        }
        for bad in ["exponential:0", "exponential:-1", "sigmoid:inf", "sigmoid:NaN", "sigmoid:1e-320"] {
            assert!(matches!(bad.parse::<Schedule>(), Err(WarmupError::Steepness { .. })), "{bad}");
        }
    }
}
