//! The page of mode `model`.

use std::fmt::Write;

use bitnet_compress::{Curve, bars, curves, escape};

use crate::{ModelReport, PipelineError, Report};

/// The verdict, perplexities and statistics of calibration, before what mode `tensors` shows too.
pub(crate) fn page(report: &Report) -> Result<String, PipelineError> {
    let ModelReport { perplexity, verdict, calibration, checks, training, .. } = &report.model;
    let mut first = format!("<p><b>{}</b></p>\n<h2>Perplexity</h2>\n", escape(&verdict.to_string()));
    let mut values = vec![("dense".to_owned(), perplexity.dense), ("converted".into(), perplexity.converted)];
    values.extend(perplexity.trained.map(|trained| ("trained".into(), trained)));
    values.push(("packed, read again".into(), perplexity.result));
    values.push(("weights alone".into(), perplexity.weights_alone));
    let _ = writeln!(first, "<table><tr><th>model<th>on {} held-out windows", report.model.windows[1]);
    for (name, value) in &values {
        let _ = writeln!(first, "<tr><td>{name}<td>{value:.4}");
    }
    first += "</table>\n";
    // Perplexities after conversion may be a thousand times those of a dense model.
    let logarithms: Vec<_> = values.into_iter().map(|(name, value)| (name, value.ln())).collect();
    first += &bars("Mean cross-entropy", "nats", &logarithms)?;
    first += "<p>“Weights alone” is the dense folder: ternary weights without sub-norms and quantized activations, \
              as transformers computes it.</p>\n";
    if let Some(training) = training {
        let kept = if training.kept { "went on" } else { "was no better than the converted one" };
        let _ = writeln!(
            first,
            "<p>{} steps of training; the best model, after {}, {kept}. It was chosen on the windows that all \
             perplexities are measured on.</p>",
            training.steps, training.best_steps
        );
    }
    let _ = writeln!(
        first,
        "<p>Logits of packed and dense weights on {} tokens differ by {:.1e}, of {:.1}.</p>",
        checks.tokens, checks.difference, checks.largest_logit
    );
    if !calibration.is_empty() {
        first += "<h2>Inputs of the slots</h2>\n";
        for (title, unit, of) in [
            ("Largest input by its slot's RMS", "times", 0),
            ("Share of outliers, 6 times their token's RMS and more", "share", 1),
        ] {
            first += &curves(title, ("layer", unit), &by_kind(&report.model, of))?;
        }
    }
    let _ = writeln!(
        first,
        "<h2>Settings</h2><pre>{}</pre>",
        escape(&serde_json::to_string_pretty(&report.model.settings).unwrap_or_default())
    );
    Ok(bitnet_compress::page(&report.stats, "Compressed model", &first)?)
}

/// Statistics of each kind of slot by layer.
fn by_kind(model: &ModelReport, of: usize) -> Vec<Curve> {
    let mut kinds: std::collections::BTreeMap<String, Vec<(f64, f64)>> = Default::default();
    for statistics in &model.calibration {
        let parts: Vec<&str> = statistics.slot.split('.').collect();
        let number = parts.iter().position(|part| part.parse::<u64>().is_ok());
        let layer = number.and_then(|at| parts[at].parse().ok()).unwrap_or(0.0);
        let kind = parts[number.map_or(0, |at| at + 1)..].join(".");
        let value = match of {
            0 => statistics.inputs.absmax / statistics.inputs.rms.max(f64::MIN_POSITIVE),
            _ => statistics.inputs.outliers,
        };
        kinds.entry(kind).or_default().push((layer, value));
    }
    kinds.into_iter().map(|(name, points)| Curve { name, points }).collect()
}
