use std::path::Path;

use plotters::prelude::*;

use crate::TrainError;

/// One line of a plot.
#[derive(Debug, Clone)]
pub struct Curve {
    /// Its name in the legend.
    pub name: String,
    /// Its points: step and value.
    pub points: Vec<(f64, f64)>,
}

/// Draws curves over the steps of a run as an SVG file.
///
/// # Errors
/// [`TrainError::Write`] where the file cannot be written; [`TrainError::Config`] where there is no point to draw.
pub fn write_curves(
    path: impl AsRef<Path>,
    title: &str,
    y_label: &str,
    curves: &[Curve],
) -> Result<(), TrainError> {
    let path = path.as_ref();
    std::fs::write(path, curves_svg(title, y_label, curves)?)
        .map_err(|error| TrainError::Write { path: path.into(), reason: error.to_string() })
}

/// Draws curves over the steps of a run as SVG.
pub(crate) fn curves_svg(title: &str, y_label: &str, curves: &[Curve]) -> Result<String, TrainError> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        points().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), v| (min.min(v), max.max(v)))
    };
    let ((first, last), (low, high)) = (range(|p| p.0), range(|p| p.1));
    let refused =
        |found: String| TrainError::Config { field: "curves", found, expected: "a finite range".into() };
    if !(last - first).is_finite() || !(high - low).is_finite() {
        return Err(refused(format!("[{first}, {last}] × [{low}, {high}]")));
    }
    let margin = (0.05 * (high - low)).max(1e-6 * high.abs()).max(f64::MIN_POSITIVE);
    let mut svg = String::new();
    draw(&mut svg, title, y_label, curves, (first, last.max(first + 1.0)), (low - margin, high + margin))
        .map_err(refused)?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    title: &str,
    y_label: &str,
    curves: &[Curve],
    (first, last): (f64, f64),
    (low, high): (f64, f64),
) -> Result<(), String> {
    let mut plot = || -> Result<(), DrawingAreaErrorKind<_>> {
        let area = SVGBackend::with_string(svg, (900, 480)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 22))
            .margin(16)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(first..last, low..high)?;
        chart.configure_mesh().x_desc("optimizer step").y_desc(y_label).light_line_style(WHITE).draw()?;
        for (i, curve) in curves.iter().enumerate() {
            let color = Palette99::pick(i).to_rgba();
            let line = LineSeries::new(curve.points.iter().copied(), color.stroke_width(2));
            chart
                .draw_series(line)?
                .label(&curve.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        }
        chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
        area.present()
    };
    plot().map_err(|error| error.to_string())
}
