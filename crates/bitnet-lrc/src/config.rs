use bitnet_quant::GroupQuant;
use globset::{Glob, GlobMatcher};
use serde::{Deserialize, Serialize};

use crate::LrcError;

/// The share of `min(d_output, d_input)` that the rank is, unless something else is asked for.
pub const PERCENTAGE: f64 = 0.1;

/// Which slots get a correction or adapter, and of which rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlotRule {
    /// Glob on the slots' paths, as in `layers.0.*` or `*.down`; `*` crosses dots.
    pub slots: String,
    /// The rank; `None` for a percentage.
    pub rank: Option<usize>,
    /// The rank as a share of `min(d_output, d_input)`, 0.1 for 10 %.
    pub percentage: f64,
}

impl Default for SlotRule {
    fn default() -> Self {
        Self { slots: "*".into(), rank: None, percentage: PERCENTAGE }
    }
}

impl SlotRule {
    /// This rank for every slot.
    pub fn rank(rank: usize) -> Self {
        Self { rank: Some(rank), ..Self::default() }
    }

    /// This share of the smaller size for every slot.
    pub fn percentage(percentage: f64) -> Self {
        Self { percentage, ..Self::default() }
    }

    /// The same for the slots that a glob matches.
    pub fn on(mut self, slots: &str) -> Self {
        self.slots = slots.into();
        self
    }

    /// # Errors
    /// [`LrcError::RankAndPercentage`] for a rank and a percentage other than 10 %, [`LrcError::Percentage`] unless it is
    /// above 0 and at most 1.
    pub fn validate(&self) -> Result<(), LrcError> {
        let Self { slots, rank, percentage } = self.clone();
        match rank {
            Some(rank) if percentage != PERCENTAGE => {
                Err(LrcError::RankAndPercentage { slots, rank, percentage })
            }
            None if !(percentage > 0.0 && percentage <= 1.0) => {
                Err(LrcError::Percentage { slots, found: percentage })
            }
            _ => Ok(()),
        }
    }

    /// The rank for a map of this shape: the one given, or `max(1, trunc(min(d_output, d_input) · percentage))`.
    pub fn rank_for(&self, [d_output, d_input]: [usize; 2]) -> usize {
        let share = d_output.min(d_input) as f64 * self.percentage;
        self.rank.unwrap_or((share as usize).max(1))
    }
}

/// How the factors of a correction begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// `V` at random, `U` zero: no correction until it is trained.
    #[default]
    Kaiming,
    /// The best approximation of `W − Ŵ` of this rank: it corrects the weight, whatever the input.
    SvdResidual,
    /// The best correction of the output on calibration data, by [`calibrate`](crate::calibrate); `rounds` times the
    /// ternary weight is fitted again to what the correction leaves.
    Calibrated {
        /// 0 to keep the ternary weight.
        rounds: usize,
    },
    /// Both factors zero and frozen: a place to load factors into. They cannot be trained.
    Zeros,
}

impl Init {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kaiming => "kaiming",
            Self::SvdResidual => "svd_residual",
            Self::Calibrated { .. } => "calibrated",
            Self::Zeros => "zeros",
        }
    }
}

/// How singular vectors are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Svd {
    /// Exact, except where the matrix is large and the rank is a small share of it.
    #[default]
    Auto,
    /// Of the whole matrix.
    Exact,
    /// From a random projection of the matrix, always the same one: the error is within 1.1 times the exact one.
    Randomized,
}

/// What [`add_lrc`](crate::add_lrc) and [`calibrate`](crate::calibrate) do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LrcConfig {
    /// The first rule whose glob matches a slot decides; a slot that none matches is left.
    pub slots: Vec<SlotRule>,
    /// Globs on paths of slots that are left, whatever the rules say.
    pub exclude: Vec<String>,
    /// How the factors begin.
    pub init: Init,
    /// How singular vectors are computed.
    pub svd: Svd,
    /// 4 or 8 bits for the factors (QLRC); `None` for full precision.
    pub factors: Option<GroupQuant>,
    /// Whether a corrected slot keeps the weight that its codes were made from. Without it the slot is packed.
    pub keep_latent: bool,
}

impl Default for LrcConfig {
    fn default() -> Self {
        Self {
            slots: vec![SlotRule::default()],
            exclude: Vec::new(),
            init: Init::default(),
            svd: Svd::default(),
            factors: None,
            keep_latent: true,
        }
    }
}

/// What [`add_lora`](crate::add_lora) does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// The first rule whose glob matches a slot decides; a slot that none matches is left.
    pub slots: Vec<SlotRule>,
    /// Globs on paths of slots that are left, whatever the rules say.
    pub exclude: Vec<String>,
    /// The numerator of the scale `alpha / rank`.
    pub alpha: f64,
    /// The share of the input that training drops at random.
    pub dropout: f64,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { slots: vec![SlotRule::rank(8)], exclude: Vec::new(), alpha: 16.0, dropout: 0.0 }
    }
}

/// The slots that a config means, its globs compiled.
pub(crate) struct Selection<'a> {
    rules: Vec<(GlobMatcher, &'a SlotRule)>,
    exclude: Vec<GlobMatcher>,
}

/// What a selection says of a slot.
pub(crate) enum Selected<'a> {
    By(&'a SlotRule),
    Excluded(String),
    No,
}

impl<'a> Selection<'a> {
    /// Checks the rules, and that every glob matches one of the paths.
    pub(crate) fn new(rules: &'a [SlotRule], exclude: &[String], paths: &[String]) -> Result<Self, LrcError> {
        let compile = |pattern: &String| {
            let wrong = |reason: String| LrcError::Pattern { pattern: pattern.clone(), reason };
            let glob = Glob::new(pattern).map_err(|error| wrong(error.kind().to_string()))?.compile_matcher();
            if paths.iter().any(|path| glob.is_match(path)) {
                Ok(glob)
            } else {
                Err(wrong("matches no slot".into()))
            }
        };
        let rules = rules
            .iter()
            .map(|rule| rule.validate().and_then(|()| Ok((compile(&rule.slots)?, rule))))
            .collect::<Result<_, _>>()?;
        Ok(Self { rules, exclude: exclude.iter().map(compile).collect::<Result<_, _>>()? })
    }

    pub(crate) fn of(&self, path: &str) -> Selected<'a> {
        if let Some(glob) = self.exclude.iter().find(|glob| glob.is_match(path)) {
            return Selected::Excluded(glob.glob().to_string());
        }
        match self.rules.iter().find(|(glob, _)| glob.is_match(path)) {
            Some((_, rule)) => Selected::By(rule),
            None => Selected::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks() {
        for (shape, percentage, expected) in [
            ([576, 576], 0.1, 57),
            ([576, 192], 0.1, 19),
            ([576, 1536], 0.1, 57),
            ([5, 3], 0.1, 1),
            ([100, 100], 0.29, 28), // 0.29 · 100 is 28.999999999999996 in f64
        ] {
            assert_eq!(SlotRule::percentage(percentage).rank_for(shape), expected, "{shape:?}");
        }
        assert_eq!(SlotRule::rank(7).rank_for([576, 576]), 7, "an explicit rank wins");
    }

    #[test]
    fn bad_rules() {
        let both = SlotRule { rank: Some(4), ..SlotRule::percentage(0.2) };
        let error = both.validate().unwrap_err();
        assert!(matches!(error, LrcError::RankAndPercentage { rank: 4, percentage: 0.2, .. }));
        SlotRule { rank: Some(4), ..SlotRule::percentage(0.1) }.validate().unwrap();
        for bad in [0.0, -0.1, 1.01, f64::NAN] {
            let error = SlotRule::percentage(bad).validate().unwrap_err();
            assert!(matches!(error, LrcError::Percentage { .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = [SlotRule::rank(2).on("*.down"), SlotRule::rank(3).on("layers.0.*")];
        let paths = ["layers.0.mlp.down", "layers.0.mlp.up", "layers.1.mlp.up"].map(str::to_owned);
        let selection = Selection::new(&rules, &["layers.1.*".to_owned()], &paths).unwrap();
        let rank = |path: &str| match selection.of(path) {
            Selected::By(rule) => rule.rank,
            Selected::Excluded(_) | Selected::No => None,
        };
        assert_eq!(paths.each_ref().map(|path| rank(path)), [Some(2), Some(3), None]);
        assert!(matches!(selection.of("layers.1.mlp.up"), Selected::Excluded(glob) if glob == "layers.1.*"));
        assert!(matches!(selection.of("layers.2.mlp.up"), Selected::No));
    }

    #[test]
    fn bad_globs() {
        let paths = ["layers.0.mlp.up".to_owned()];
        for bad in ["layers.[", "*.gate"] {
            for (rules, exclude) in [
                (vec![SlotRule::default().on(bad)], vec![]),
                (vec![SlotRule::default()], vec![bad.to_owned()]),
            ] {
                let error = Selection::new(&rules, &exclude, &paths).err().unwrap();
                assert!(matches!(&error, LrcError::Pattern { pattern, .. } if pattern == bad), "{error}");
            }
        }
    }

    #[test]
    fn files_refuse_unknown_keys() {
        let config: LrcConfig = serde_json::from_str(
            r#"{ "slots": [{ "rank": 4 }], "init": { "calibrated": { "rounds": 1 } }, "factors": { "bits": 4 } }"#,
        )
        .unwrap();
        assert_eq!(config.slots, [SlotRule::rank(4)]);
        assert_eq!(config.init, Init::Calibrated { rounds: 1 });
        assert_eq!(config.factors, Some(GroupQuant::new(4, 32).unwrap()));
        assert!(serde_json::from_str::<LrcConfig>(r#"{ "ranks": 4 }"#).is_err());
        assert!(serde_json::from_str::<LrcConfig>(r#"{ "factors": { "bits": 5 } }"#).is_err());
        assert!(serde_json::from_str::<LoraConfig>(r#"{ "r": 4 }"#).is_err());
    }
}
