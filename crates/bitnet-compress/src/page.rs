//! A page for people: sizes and errors as plots, decisions as a table.

use std::collections::BTreeMap;
use std::fmt::Write;

use plotters::prelude::*;

use crate::{CompressError, Decision, Stats};

/// The page's name in the target.
pub const PAGE: &str = "report.html";

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:980px;margin:2em auto;padding:0 1em;color:#222}\
    svg{max-width:100%;height:auto}table{border-collapse:collapse}td,th{padding:.1em .8em;text-align:right}\
    td:first-child,th:first-child{text-align:left}pre{background:#f5f5f5;padding:1em;overflow:auto}";

/// One line of a plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Its name in the legend.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// A self-contained HTML page: `first`, sections in HTML; a summary; whole files in each form and the error of every
/// layer as SVG; every tensor with what was done to it and why.
///
/// # Errors
/// [`CompressError::Plot`]
pub fn page(stats: &Stats, title: &str, first: &str) -> Result<String, CompressError> {
    let title = escape(title);
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style>\
         <h1>{title}</h1>\n{first}<h2>Weights</h2><pre>{}</pre>\n",
        escape(&stats.to_string())
    );
    let total = &stats.total;
    let mut sizes = vec![("source", total.file_bytes_before), ("dense", total.file_bytes_after)];
    sizes.extend(total.file_bytes_packed.map(|bytes| ("packed", bytes)));
    sizes.extend([
        ("as int8", total.int8.file_bytes),
        ("as 2 bits", total.two_bit.file_bytes),
        ("as TQ1_0", total.tq1_0.file_bytes),
    ]);
    let megabytes = sizes.into_iter().map(|(name, bytes)| (name.to_owned(), bytes as f64 / 1e6));
    page += &bars("Size of all weights", "MB", &megabytes.collect::<Vec<_>>())?;
    let errors = errors(stats);
    if !errors.is_empty() {
        page += &curves("Error of the ternary weights", ("layer", "share of the weights' norm"), &errors)?;
    }
    page += &table(stats);
    page += "</html>\n";
    Ok(page)
}

/// The errors of each kind of tensor by the number of its block; of several in a block the mean.
fn errors(stats: &Stats) -> Vec<Curve> {
    let mut kinds: BTreeMap<String, BTreeMap<u64, Vec<f64>>> = BTreeMap::new();
    for tensor in &stats.tensors {
        let Some(error) = tensor.ternary.as_ref().and_then(|ternary| ternary.relative_error) else {
            continue;
        };
        let is_number = |part: &&str| part.parse::<u64>().is_ok();
        let block = tensor.name.split('.').find_map(|part| part.parse().ok()).unwrap_or(0);
        let after = tensor.name.split('.').skip_while(|part| !is_number(part)).skip(1);
        let kind: Vec<&str> = after.map(|part| if is_number(&part) { "*" } else { part }).collect();
        let kind = if kind.is_empty() { tensor.name.clone() } else { kind.join(".") };
        kinds.entry(kind).or_default().entry(block).or_default().push(error);
    }
    let mean = |errors: Vec<f64>| errors.iter().sum::<f64>() / errors.len() as f64;
    let points = |blocks: BTreeMap<u64, Vec<f64>>| {
        blocks.into_iter().map(|(block, errors)| (block as f64, mean(errors))).collect()
    };
    kinds.into_iter().map(|(name, blocks)| Curve { name, points: points(blocks) }).collect()
}

fn table(stats: &Stats) -> String {
    let mut table =
        "<h2>Tensors</h2><table><tr><th>tensor<th>shape<th>bytes<th>error<th>zeros<th>decision\n".to_owned();
    for tensor in &stats.tensors {
        let (error, zeros) = match &tensor.ternary {
            Some(ternary) => (
                ternary.relative_error.map(|error| format!("{error:.3}")).unwrap_or_default(),
                format!("{:.3}", ternary.shares[1]),
            ),
            None => Default::default(),
        };
        let decision = match &tensor.decision {
            Decision::Ternarized(because) => format!("ternary: {because:?}"),
            Decision::Left(because) => format!("left: {because:?}"),
        };
        let (name, decision) = (escape(&tensor.name), escape(&decision));
        let _ = writeln!(
            table,
            "<tr><td>{name}<td>{:?}<td>{}<td>{error}<td>{zeros}<td>{decision}",
            tensor.shape, tensor.bytes_before
        );
    }
    table + "</table>\n"
}

/// Named numbers as horizontal bars, in SVG.
///
/// # Errors
/// [`CompressError::Plot`]
pub fn bars(title: &str, unit: &str, values: &[(String, f64)]) -> Result<String, CompressError> {
    let highest = values.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let (row, left, width) = (30, 170, 560.0);
    let mut svg = String::new();
    let mut plot = || -> Result<(), DrawingAreaErrorKind<_>> {
        let height = 50 + row * values.len() as i32;
        let area = SVGBackend::with_string(&mut svg, (900, height as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        area.draw(&Text::new(title.to_owned(), (left, 12), ("sans-serif", 20)))?;
        for (i, (name, value)) in values.iter().enumerate() {
            let top = 44 + row * i as i32;
            let right = left + (width * value / highest) as i32;
            let color = Palette99::pick(i).filled();
            area.draw(&Text::new(name.clone(), (10, top + 4), ("sans-serif", 15)))?;
            area.draw(&Rectangle::new([(left, top), (right.max(left + 1), top + row - 8)], color))?;
            let label = format!("{} {unit}", short(*value));
            area.draw(&Text::new(label, (right + 8, top + 4), ("sans-serif", 15)))?;
        }
        area.present()
    };
    plot().map_err(|error| CompressError::Plot { reason: error.to_string() })?;
    Ok(svg + "\n")
}

/// Curves over one axis, in SVG; `axes` are their descriptions.
///
/// # Errors
/// [`CompressError::Plot`]
pub fn curves(title: &str, axes: (&str, &str), curves: &[Curve]) -> Result<String, CompressError> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let last = points().map(|point| point.0).fold(1.0, f64::max);
    let high = points().map(|point| point.1).fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = String::new();
    let mut plot = || -> Result<(), DrawingAreaErrorKind<_>> {
        let area = SVGBackend::with_string(&mut svg, (900, 480)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 22))
            .margin(16)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..last, 0.0..1.05 * high)?;
        chart.configure_mesh().x_desc(axes.0).y_desc(axes.1).light_line_style(WHITE).draw()?;
        for (i, curve) in curves.iter().enumerate() {
            let color = Palette99::pick(i).to_rgba();
            let line = LineSeries::new(curve.points.iter().copied(), color.stroke_width(2));
            chart
                .draw_series(line.point_size(3))?
                .label(&curve.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        }
        chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
        area.present()
    };
    plot().map_err(|error| CompressError::Plot { reason: error.to_string() })?;
    Ok(svg + "\n")
}

/// Three digits that count, all of large numbers.
fn short(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        3
    };
    format!("{value:.digits$}")
}

/// A text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_hold_what_they_are_given() {
        let svg = bars("A <title>", "MB", &[("first".into(), 20.0), ("second".into(), 0.5)]).unwrap();
        for word in ["A &lt;title&gt;", "first", "second", "20.0 MB", "0.500 MB"] {
            assert!(svg.contains(word), "{word}: {svg}");
        }
        let curve = Curve { name: "mlp.up".into(), points: vec![(0.0, 0.25), (1.0, 0.5)] };
        let svg = curves("Errors", ("layer", "share"), &[curve]).unwrap();
        assert!(svg.contains("mlp.up") && svg.contains("<polyline"), "{svg}");
        assert!(bars("", "", &[]).is_ok() && curves("", ("", ""), &[]).is_ok());
    }
}
