//! What a student is compared with a teacher by.

use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::config::check;

/// The loss of a distillation: a weighted sum of cross-entropy and what is compared with a teacher.
///
/// # Source
/// BitDistill, arXiv 2510.13998, stage 3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistillConfig {
    /// The teacher's checkpoint folder; the run's own dense source if it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// Weight of [`next_token_loss`](crate::next_token_loss). 1 if it is left out.
    pub cross_entropy: f64,
    /// Compares the distributions of the next token, by [`logit_kl`](crate::logit_kl); not if it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_kl: Option<LogitKl>,
    /// Compares how tokens relate in one layer, by [`relation_kl`](crate::relation_kl); not if it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relation_kl: Option<RelationKl>,
    /// Compares the residual stream after every layer, by [`hidden_mse`](crate::hidden_mse); not if it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_mse: Option<HiddenMse>,
}

impl Default for DistillConfig {
    /// Cross-entropy alone, which is not yet a distillation.
    fn default() -> Self {
        Self { teacher: None, cross_entropy: 1.0, logit_kl: None, relation_kl: None, hidden_mse: None }
    }
}

/// The settings of [`logit_kl`](crate::logit_kl).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogitKl {
    /// Its weight, λ_ld in the paper.
    pub weight: f64,
    /// What logits are divided by.
    pub temperature: f64,
    /// Compares the teacher's so many likeliest tokens, and all others together as one. The teacher then runs once over
    /// the run's data, before training; what it says is kept on disk, `8 · top_k` bytes a token, and it takes no memory
    /// afterwards. Every token is compared if it is left out, by a teacher in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
}

impl Default for LogitKl {
    /// As in the paper.
    fn default() -> Self {
        Self { weight: 10.0, temperature: 5.0, top_k: None }
    }
}

/// The settings of [`relation_kl`](crate::relation_kl).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelationKl {
    /// Its weight, γ in the paper.
    pub weight: f64,
    /// The student's layer, from 0; the last if it is left out. The teacher's is as far from its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// Number of heads that query, key and value are split into for it.
    pub heads: usize,
}

impl Default for RelationKl {
    fn default() -> Self {
        Self { weight: 1e-5, layer: None, heads: 8 }
    }
}

/// The settings of [`hidden_mse`](crate::hidden_mse).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HiddenMse {
    /// Its weight.
    pub weight: f64,
}

impl Default for HiddenMse {
    fn default() -> Self {
        Self { weight: 1.0 }
    }
}

impl DistillConfig {
    /// How many of a teacher's tokens are kept on disk, if it is not in memory.
    pub(crate) fn top_k(&self) -> Option<usize> {
        self.logit_kl.and_then(|settings| settings.top_k)
    }

    pub(crate) fn validate(&self) -> Result<(), TrainError> {
        let weight = |field, weight: f64| check(field, weight, weight >= 0.0 && weight.is_finite(), "from 0");
        weight("distill.cross_entropy", self.cross_entropy)?;
        let any = self.logit_kl.is_some() || self.relation_kl.is_some() || self.hidden_mse.is_some();
        check("distill", "no term", any, "logit_kl, relation_kl or hidden_mse")?;
        weight("distill.hidden_mse.weight", self.hidden_mse.map_or(0.0, |settings| settings.weight))?;
        if let Some(LogitKl { weight: w, temperature, top_k }) = self.logit_kl {
            weight("distill.logit_kl.weight", w)?;
            let positive = temperature > 0.0 && temperature.is_finite();
            check("distill.logit_kl.temperature", temperature, positive, "a positive number")?;
            let top_k = top_k.unwrap_or(1);
            check("distill.logit_kl.top_k", top_k, top_k > 0, "at least 1")?;
        }
        if let (Some(top_k), true) = (self.top_k(), self.relation_kl.is_some() || self.hidden_mse.is_some()) {
            let expected = "no top_k: relation_kl and hidden_mse need the teacher in memory";
            check("distill.logit_kl.top_k", top_k, false, expected)?;
        }
        if let Some(RelationKl { weight: w, heads, .. }) = self.relation_kl {
            weight("distill.relation_kl.weight", w)?;
            check("distill.relation_kl.heads", heads, heads > 0, "at least 1")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let good = "logit_kl = {}\nrelation_kl = { heads = 2 }";
        let read = |text: &str| toml::from_str::<DistillConfig>(text).unwrap();
        read(good).validate().unwrap();
        assert_eq!(read(good).logit_kl, Some(LogitKl::default()));
        for (text, expected) in [
            ("", "distill"),
            ("cross_entropy = -1.0\nlogit_kl = {}", "distill.cross_entropy"),
            ("logit_kl = { temperature = 0.0 }", "distill.logit_kl.temperature"),
            ("hidden_mse = { weight = -1.0 }", "distill.hidden_mse.weight"),
            ("logit_kl = { weight = inf }", "distill.logit_kl.weight"),
            ("relation_kl = { heads = 0 }", "distill.relation_kl.heads"),
            ("logit_kl = { top_k = 0 }", "distill.logit_kl.top_k"),
            ("logit_kl = { top_k = 8 }\nhidden_mse = {}", "distill.logit_kl.top_k"),
        ] {
            let error = read(text).validate().unwrap_err();
            assert!(matches!(error, TrainError::Config { field, .. } if field == expected), "{error}");
        }
    }
}
