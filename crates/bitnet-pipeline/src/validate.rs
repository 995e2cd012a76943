//! What settings may say, alone and beside one another.

use std::path::Path;

use bitnet_compress::{Granularity, Rule};
use bitnet_convert::HfFormat;

use crate::{Config, Mode, PipelineError};

impl Config {
    /// # Errors
    /// [`PipelineError::Setting`] names the first setting out of range or against another,
    /// [`PipelineError::Compress`], [`PipelineError::Train`] those of theirs.
    pub fn validate(&self) -> Result<(), PipelineError> {
        self.options().validate()?;
        if self.mode == Mode::Tensors
            && let Some(setting) = self.model_setting()
        {
            return Err(PipelineError::setting(
                "mode",
                "tensors",
                format!("model, because `{setting}` is given"),
            ));
        }
        if self.mode == Mode::Model {
            self.validate_model()?;
        }
        Ok(())
    }

    /// What mode `model` asks beyond that.
    pub(crate) fn validate_model(&self) -> Result<(), PipelineError> {
        let Some(data) = &self.data else {
            return Err(PipelineError::setting(
                "data",
                "nothing",
                "text or tokens, which mode `model` calibrates and measures on",
            ));
        };
        let Rule::Absmean(granularity) = self.rule else {
            return Err(PipelineError::setting(
                "rule",
                "threshold",
                "absmean in mode `model`: its layers know no other",
            ));
        };
        if let Some(glob) = self.include.first() {
            return Err(PipelineError::setting(
                "include",
                glob,
                "nothing in mode `model`: every projection is ternarized",
            ));
        }
        if granularity != Granularity::Tensor && self.packed {
            return Err(PipelineError::setting(
                "packed",
                "true",
                "one scale per tensor (`rule`), which packed models have",
            ));
        }
        if data.window < 2 {
            return Err(PipelineError::setting(
                "data.window",
                data.window,
                "at least 2 tokens, one to predict",
            ));
        }
        if !(data.held_out > 0.0 && data.held_out < 1.0) {
            return Err(PipelineError::setting("data.held_out", data.held_out, "above 0, below 1"));
        }
        if self.calibration.windows == 0 {
            return Err(PipelineError::setting("calibration.windows", 0, "at least 1"));
        }
        if let Some(share) = self.convert.salient
            && !(share > 0.0 && share < 1.0)
        {
            return Err(PipelineError::setting("convert.salient", share, "above 0, below 1"));
        }
        if self.lrc.as_ref().is_some_and(|lrc| !lrc.keep_latent) {
            return Err(PipelineError::setting("lrc.keep_latent", "false", "true: stage `pack` packs"));
        }
        if self.export.hf == Some(HfFormat::Online) && granularity != Granularity::Tensor {
            return Err(PipelineError::setting(
                "export.hf",
                "online",
                "one scale per tensor, as transformers has",
            ));
        }
        for (field, given) in [("distill", self.distill.is_some()), ("patience", self.patience.is_some())] {
            if given && self.train.is_none() {
                return Err(PipelineError::setting(
                    field,
                    "given",
                    "`train` beside it: it is about fine-tuning",
                ));
            }
        }
        if self.patience == Some(0) {
            return Err(PipelineError::setting("patience", 0, "at least 1"));
        }
        let ratio = self.verdict.max_ratio;
        if !(ratio.is_finite() && ratio > 0.0) {
            return Err(PipelineError::setting("verdict.max_ratio", ratio, "a positive number"));
        }
        Ok(self.run(data, Path::new("run"), Path::new("model"), "flex").validate()?)
    }

    /// The first setting that only mode `model` has a use for.
    pub(crate) fn model_setting(&self) -> Option<&'static str> {
        let default = Self::default();
        [
            ("data", self.data.is_some()),
            ("train", self.train.is_some()),
            ("lrc", self.lrc.is_some()),
            ("distill", self.distill.is_some()),
            ("patience", self.patience.is_some()),
            ("export", self.export != default.export),
            ("convert", self.convert != default.convert),
            ("calibration", self.calibration != default.calibration),
            ("batch", self.batch != default.batch),
            ("eval", self.eval != default.eval),
            ("snapshots", self.snapshots != default.snapshots),
            ("verdict", self.verdict != default.verdict),
            ("seed", self.seed != default.seed),
            ("device", self.device.is_some()),
        ]
        .into_iter()
        .find_map(|(name, given)| given.then_some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &str = "data = { source = { text = ['a'] } }";

    fn check(settings: &str) -> Result<(), PipelineError> {
        toml::from_str::<Config>(settings).unwrap().validate()
    }

    #[test]
    fn settings_out_of_range_or_against_one_another_are_named() {
        let model = format!("mode = 'model'\n{DATA}\n");
        for (more, field) in [
            ("rule = { threshold = 0.1 }", "rule"),
            ("include = ['*']", "include"),
            ("packed = true\nrule = { absmean = 'row' }", "packed"),
            ("calibration = { windows = 0 }", "calibration.windows"),
            ("convert = { salient = 1.0 }", "convert.salient"),
            ("lrc = { keep_latent = false }", "lrc.keep_latent"),
            ("patience = 3", "patience"),
            ("patience = 0\ntrain = { steps = 3 }", "patience"),
            ("distill = { logit_kl = {} }", "distill"),
            ("verdict = { max_ratio = 0.0 }", "verdict.max_ratio"),
        ] {
            let error = check(&format!("{model}{more}")).unwrap_err();
            assert!(
                matches!(error, PipelineError::Setting { field: found, .. } if found == field),
                "{error}"
            );
        }
        let error = check("mode = 'model'").unwrap_err().to_string();
        assert!(error.contains("`data` is nothing"), "{error}");
        let error = check(&format!("mode = 'tensors'\n{DATA}")).unwrap_err().to_string();
        assert!(error.contains("because `data` is given"), "{error}");
        let error = check("mode = 'tensors'\ndevice = 'cuda'").unwrap_err().to_string();
        assert!(error.contains("because `device` is given"), "{error}");
        let error = check(&format!("{model}train = {{ steps = 0 }}")).unwrap_err().to_string();
        assert!(error.contains("`steps` is 0"), "{error}");
        let error = check("rule = { threshold = -1.0 }").unwrap_err().to_string();
        assert!(error.contains("threshold is -1"), "{error}");
        assert!(check(&format!("{model}train = {{ steps = 4 }}\npatience = 2")).is_ok());
    }
}
