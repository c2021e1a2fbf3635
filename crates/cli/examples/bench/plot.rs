//! The plots of the page, as SVG.

use crate::Failure;
use plotters::prelude::*;
use std::path::Path;

/// A line of a plot: its name, and its points.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Draws lines over logarithmic axes.
pub(crate) fn lines(path: &Path, x: &str, y: &str, lines: &[Line]) -> Result<(), Failure> {
    let all = || lines.iter().flat_map(|line| &line.points);
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        let values = || all().map(of);
        values().fold(f64::MAX, f64::min) * 0.8..values().fold(0.0, f64::max) * 1.3
    };
    let root = SVGBackend::new(path, (720, 400)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(bounds(|p| p.0).log_scale(), bounds(|p| p.1).log_scale())?;
    let label = |v: &f64| if *v < 10.0 { format!("{v:.1}") } else { format!("{v:.0}") };
    chart.configure_mesh().x_desc(x).y_desc(y).x_label_formatter(&label).y_label_formatter(&label).draw()?;
    for (i, line) in lines.iter().enumerate() {
        let color = Palette99::pick(i).to_rgba();
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(2)).point_size(3))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    Ok(root.present()?)
}

/// Draws one bar for each name.
pub(crate) fn bars(path: &Path, x: &str, bars: &[(&str, f64)]) -> Result<(), Failure> {
    let most = bars.iter().map(|bar| bar.1).fold(0.0, f64::max);
    let height = u32::try_from(bars.len())? * 34 + 60;
    let root = SVGBackend::new(path, (720, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let count = i32::try_from(bars.len())?;
    let names: Vec<&str> = bars.iter().map(|bar| bar.0).collect();
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(260)
        .build_cartesian_2d(0.0..most * 1.15, (0..count - 1).into_segmented())?;
    let name = |v: &SegmentValue<i32>| match v {
        SegmentValue::CenterOf(i) => usize::try_from(count - 1 - i)
            .ok()
            .and_then(|i| names.get(i))
            .copied()
            .unwrap_or_default()
            .to_owned(),
        _ => String::new(),
    };
    chart.configure_mesh().disable_y_mesh().x_desc(x).y_labels(bars.len()).y_label_formatter(&name).draw()?;
    chart.draw_series((0..count).rev().zip(bars).map(|(i, (_, value))| {
        let corners = [(0.0, SegmentValue::Exact(i)), (*value, SegmentValue::Exact(i + 1))];
        let mut bar = Rectangle::new(corners, BLUE.mix(0.6).filled());
        bar.set_margin(4, 4, 0, 0);
        bar
    }))?;
    Ok(root.present()?)
}
