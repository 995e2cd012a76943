//! Which mode a source and its settings ask for.

use std::path::Path;

use bitnet_convert::HfConfig;

use crate::{Config, Mode, PipelineError};

/// The mode, never [`Mode::Auto`], and why, in words for whoever asked.
///
/// Mode `model` needs data. So it is chosen where data or other settings of its own are given; without them any
/// checkpoint is compressed by names and shapes.
///
/// # Errors
/// [`PipelineError::NoModel`] where settings of mode `model` are given for a source that is none,
/// [`PipelineError::Setting`] where mode `model` lacks data.
pub fn choose(source: &Path, config: &Config) -> Result<(Mode, String), PipelineError> {
    let asked = config.model_setting();
    match (config.mode, asked) {
        (Mode::Tensors, _) => {
            Ok((Mode::Tensors, "as asked for: by names and shapes, without a model".into()))
        }
        (Mode::Auto, None) => {
            let why = match HfConfig::read(source) {
                Ok(_) => "because there is no data to calibrate and measure a model on",
                Err(_) => "by names and shapes, without a model",
            };
            Ok((Mode::Tensors, format!("chosen automatically: {why}")))
        }
        (Mode::Auto | Mode::Model, _) => {
            let setting = asked.unwrap_or("mode");
            HfConfig::read(source)
                .map_err(|source| PipelineError::NoModel { setting, source: Box::new(source) })?;
            config.validate_model()?;
            let why = if config.mode == Mode::Model { "as asked for" } else { "chosen automatically" };
            Ok((Mode::Model, format!("{why}: calibrated and measured on data")))
        }
    }
}
