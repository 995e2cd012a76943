//! One page about runs, from their metrics.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use bitnet_lrc::Activations;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::curves::curves_svg;
use crate::{Curve, TrainError};

/// A curve has at most so many points; of a longer run each is the mean of several steps.
const POINTS: usize = 1000;

/// Plots: the metric, the title and the unit.
const PLOTS: [(&str, &str, &str); 5] = [
    ("loss", "Loss that is trained on", "loss"),
    ("perplexity", "Perplexity on held-out data, ternary", "perplexity"),
    ("lambda", "Quantization strength", "λ"),
    ("learning_rate", "Learning rate", "learning rate"),
    ("grad_norm", "Gradient norm before clipping", "norm"),
];

/// Plots with a curve per name: the metric that holds them, the title and the unit.
const NAMED_PLOTS: [(&str, &str, &str); 2] = [
    ("terms", "Terms of the loss, before weighting", "nats"),
    ("grad_norms", "Gradient norm of each weighted term", "norm"),
];

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:980px;margin:2em auto;padding:0 1em;color:#222}\
    svg{max-width:100%;height:auto}table{border-collapse:collapse}td,th{padding:.1em .8em;text-align:right}\
    td:first-child,th:first-child{text-align:left}pre{background:#f5f5f5;padding:1em;overflow:auto}";

/// A slot's codes, as a line has them.
#[derive(Deserialize)]
struct Codes {
    shares: [f64; 3],
    moved: f64,
    flipped: f64,
}

/// The metrics of a run.
struct Metrics {
    name: String,
    settings: String,
    lines: Vec<Value>,
}

/// A self-contained HTML page about runs: losses, perplexity, λ, learning rate, gradient norms, the terms of a
/// distillation, codes and activations of the slots, and the settings. Several runs are drawn into the same plots.
///
/// # Errors
/// [`TrainError::Read`] where a folder holds no metrics, [`TrainError::Config`] where there is nothing to draw.
pub fn report(runs: &[PathBuf]) -> Result<String, TrainError> {
    let runs = runs.iter().map(|run| Metrics::read(run)).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<String> = runs.iter().map(|run| escape(&run.name)).collect();
    let title = format!("Training: {}", names.join(", "));
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style>\
         <h1>{title}</h1>\n"
    );
    for (metric, title, unit) in PLOTS {
        let curves = runs.iter().map(|run| Curve { name: run.name.clone(), points: run.points(&[metric]) });
        plot(&mut page, title, unit, curves.collect())?;
    }
    for (metric, title, unit) in NAMED_PLOTS {
        let curves = runs.iter().flat_map(|run| {
            run.names(metric).into_iter().map(move |name| Curve {
                points: run.points(&[metric, &name]),
                name: format!("{name}, {}", run.name),
            })
        });
        plot(&mut page, title, unit, curves.collect())?;
    }
    type OfCodes = fn(&Codes) -> f64;
    let of_codes: [(&str, OfCodes); 3] = [
        ("Share of zeros among the codes of all slots", |codes| codes.shares[1]),
        ("Share of codes that are not what they were before training", |codes| codes.moved),
        ("Share of codes that a single step changed", |codes| codes.flipped),
    ];
    for (title, of) in of_codes {
        let curves = runs.iter().map(|run| {
            let points = run.over_slots("codes", |slots: &BTreeMap<String, Codes>| {
                slots.values().map(of).sum::<f64>() / slots.len() as f64
            });
            Curve { name: run.name.clone(), points }
        });
        plot(&mut page, title, "share", curves.collect())?;
    }
    type OfActivations = fn(&Activations) -> f64;
    let of_activations: [(&str, &str, OfActivations); 2] = [
        ("Largest activation of any slot, in units of the slot's root mean square", "absmax / RMS", |seen| {
            seen.absmax / seen.rms
        }),
        ("Largest share of outliers in any slot's activations", "share", |seen| seen.outliers),
    ];
    for (title, unit, of) in of_activations {
        let curves = runs.iter().map(|run| {
            let points = run.over_slots("activations", |slots: &BTreeMap<String, Activations>| {
                slots.values().map(of).fold(0.0, f64::max)
            });
            Curve { name: run.name.clone(), points }
        });
        plot(&mut page, title, unit, curves.collect())?;
    }
    for run in &runs {
        let _ = write!(page, "<h2>{}</h2>\n{}", escape(&run.name), run.slot_table());
        let _ = writeln!(page, "<h3>Settings</h3><pre>{}</pre>", escape(&run.settings));
    }
    page += "</html>\n";
    Ok(page)
}

/// Appends a plot of those curves that have points, if any has.
fn plot(page: &mut String, title: &str, unit: &str, mut curves: Vec<Curve>) -> Result<(), TrainError> {
    curves.retain(|curve| !curve.points.is_empty());
    if !curves.is_empty() {
        *page += &curves_svg(title, unit, &curves)?;
        *page += "\n";
    }
    Ok(())
}

impl Metrics {
    fn read(run: &Path) -> Result<Self, TrainError> {
        let path = run.join("metrics.jsonl");
        let read = |path: &Path| {
            fs::read_to_string(path)
                .map_err(|error| TrainError::Read { path: path.into(), reason: error.to_string() })
        };
        let text = read(&path)?;
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if lines.is_empty() {
            return Err(TrainError::Read { path, reason: "it holds no step yet".into() });
        }
        let name = run.file_name().unwrap_or(run.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, settings: read(&run.join("config.toml"))?, lines })
    }

    /// The values under a path of names, by their steps; means where there are too many.
    fn points(&self, path: &[&str]) -> Vec<(f64, f64)> {
        let value = |line: &Value| path.iter().try_fold(line, |value, name| value.get(name))?.as_f64();
        let points = self.lines.iter().filter_map(|line| Some((line.get("step")?.as_f64()?, value(line)?)));
        thin(points.collect())
    }

    /// The names below a metric.
    fn names(&self, metric: &str) -> Vec<String> {
        let objects = self.lines.iter().filter_map(|line| line.get(metric)?.as_object());
        let mut names: Vec<String> = objects.flat_map(|object| object.keys().cloned()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// What a line has of every slot under a name, if it has any.
    fn slots<T: DeserializeOwned>(line: &Value, name: &str) -> Option<BTreeMap<String, T>> {
        let slots = BTreeMap::<String, T>::deserialize(line.get(name)?).ok()?;
        (!slots.is_empty()).then_some(slots)
    }

    /// One number of all slots at each evaluation.
    fn over_slots<T: DeserializeOwned>(
        &self,
        name: &str,
        of: impl Fn(&BTreeMap<String, T>) -> f64,
    ) -> Vec<(f64, f64)> {
        let points = self
            .lines
            .iter()
            .filter_map(|line| Some((line.get("step")?.as_f64()?, of(&Self::slots(line, name)?))));
        thin(points.filter(|(_, value)| value.is_finite()).collect())
    }

    /// Codes and activations of each slot at the last evaluation.
    fn slot_table(&self) -> String {
        let last = self.lines.iter().rev().find_map(|line| {
            Some((Self::slots::<Codes>(line, "codes")?, Self::slots::<Activations>(line, "activations")?))
        });
        let Some((codes, activations)) = last else {
            return String::new();
        };
        let mut table =
            "<h3>Slots at the last evaluation</h3><table><tr><th>slot<th>−1<th>0<th>1<th>moved<th>flipped\
             <th>absmax / RMS<th>outliers\n"
                .to_owned();
        for (slot, Codes { shares: [minus, zero, plus], moved, flipped }) in codes {
            let seen = activations.get(&slot);
            let _ = write!(table, "<tr><td>{}<td>{minus:.3}<td>{zero:.3}<td>{plus:.3}", escape(&slot));
            let _ = write!(table, "<td>{moved:.3}<td>{flipped:.5}");
            let peak = seen.map_or(f64::NAN, |seen| seen.absmax / seen.rms);
            let outliers = seen.map_or(f64::NAN, |seen| seen.outliers);
            let _ = writeln!(table, "<td>{peak:.1}<td>{outliers:.5}");
        }
        table + "</table>\n"
    }
}

/// At most [`POINTS`] points, each the mean of as many neighbours.
fn thin(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(size).map(mean).collect()
}

/// A text as HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(folder: &Path, name: &str, lines: &str) -> PathBuf {
        let run = folder.join(name);
        fs::create_dir(&run).unwrap();
        fs::write(run.join("metrics.jsonl"), lines).unwrap();
        fs::write(run.join("config.toml"), "a = '<b>'\n").unwrap();
        run
    }

    #[test]
    fn runs_are_drawn_into_the_same_plots() {
        let folder = tempfile::tempdir().unwrap();
        let first = run(
            folder.path(),
            "a&b",
            "{\"step\": 0, \"loss\": 3.0, \"lambda\": 0.0, \"terms\": {\"logit_kl\": 0.5}}\n\
             {\"step\": 0, \"perplexity\": 9.0, \"codes\": {\"layers.0.x\": {\"shares\": [0.25, 0.5, 0.25], \"moved\": 0.125, \"flipped\": 0.0625}}, \
              \"activations\": {\"layers.0.x\": {\"absmax\": 8.0, \"rms\": 2.0, \"outliers\": 0.25}}}\n\
             {\"step\": 1, \"loss\": 2.0, \"lambda\": 1.0, \"terms\": {\"logit_kl\": 0.25}}\n{\"st",
        );
        let second = run(folder.path(), "second", "{\"step\": 0, \"loss\": 4.0}\n");
        let page = report(&[first.clone(), second]).unwrap();
        // loss, perplexity, λ, terms, zeros, moved, flipped, absmax, outliers; no learning rate, no norms
        assert_eq!(page.matches("<svg").count(), 9);
        for word in [
            "a&amp;b",
            "second",
            "layers.0.x<td>0.250<td>0.500<td>0.250<td>0.125<td>0.06250<td>4.0<td>0.25000",
            "logit_kl, a&amp;b",
            "&lt;b&gt;",
        ] {
            assert!(page.contains(word), "{word}");
        }
        assert!(!page.contains("<b>") && !page.contains("<script") && !page.contains("src="));
        let alone = report(&[first]).unwrap();
        assert!(!alone.contains("second"));
    }

    #[test]
    fn what_is_no_run_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = report(&[folder.path().into()]).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl"), "{error}");
        let error = report(&[run(folder.path(), "new", "")]).unwrap_err().to_string();
        assert!(error.contains("no step yet"), "{error}");
    }

    #[test]
    fn long_runs_are_thinned_to_means() {
        let points: Vec<(f64, f64)> = (0..2500).map(|i| (f64::from(i), f64::from(i % 3))).collect();
        let thinned = thin(points);
        assert_eq!(thinned.len(), 834);
        assert_eq!(thinned[0], (1.0, 1.0));
        assert_eq!(thin(vec![(1.0, 2.0)]), [(1.0, 2.0)]);
    }
}
