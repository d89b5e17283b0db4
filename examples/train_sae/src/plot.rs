//! Draws line charts as SVG, one above the other, with the same time axis.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

const WIDTH: u32 = 860;
const HEIGHT: u32 = 280;
/// Space for the names of the lines, right of the plot.
const NAMES: u32 = 190;
/// Colours that people with any kind of colour vision can tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
    RGBColor(184, 165, 0),
];

/// A chart.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) lines: Vec<Line>,
}

/// A line of a chart.
pub(crate) struct Line {
    pub(crate) name: String,
    /// Seconds and value.
    pub(crate) points: Vec<(f64, f64)>,
    /// The number of the colour.
    pub(crate) colour: usize,
    pub(crate) dashed: bool,
}

/// Draws the charts as one SVG file.
pub(crate) fn svg(charts: &[Chart]) -> Result<String> {
    let end = largest(charts.iter().flat_map(|chart| &chart.lines), |point| point.0);
    let mut out = String::new();
    {
        let canvas = SVGBackend::with_string(&mut out, (WIDTH, HEIGHT * charts.len() as u32)).into_drawing_area();
        canvas.fill(&WHITE)?;
        for (chart, area) in charts.iter().zip(canvas.split_evenly((charts.len(), 1))) {
            // The error borrows the canvas, so it becomes text.
            chart.draw(&area, end).map_err(|error| anyhow!("cannot draw {:?}: {error}", chart.title))?;
        }
        canvas.present()?;
    }
    Ok(out)
}

impl Chart {
    /// Draws the chart with a time axis up to `end` seconds.
    fn draw(&self, area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>, end: f64) -> Result<()> {
        let highest = largest(&self.lines, |point| point.1);
        let (area, names) = area.split_horizontally(WIDTH - NAMES);
        let mut plot = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..end, 0.0..highest * 1.05)?;
        plot.configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .x_desc("seconds")
            .draw()?;
        for (index, line) in self.lines.iter().enumerate() {
            let style = COLOURS[line.colour % COLOURS.len()].stroke_width(2);
            let points = line.points.iter().copied();
            let y = 44 + 17 * index as i32;
            let sample = |from, to| names.draw(&PathElement::new([(from, y), (to, y)], style));
            if line.dashed {
                plot.draw_series(DashedLineSeries::new(points, 6, 6, style))?;
                sample(0, 6).and_then(|()| sample(12, 18))?;
            } else {
                plot.draw_series(LineSeries::new(points, style))?;
                sample(0, 24)?;
            }
            names.draw(&Text::new(line.name.clone(), (32, y - 6), ("sans-serif", 12)))?;
        }
        Ok(())
    }
}

/// Returns the largest value, or 1 if no value is above 0.
fn largest<'a>(lines: impl IntoIterator<Item = &'a Line>, value: impl Fn(&(f64, f64)) -> f64) -> f64 {
    let values = lines.into_iter().flat_map(|line| &line.points).map(value);
    let largest = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
    if largest > 0.0 { largest } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_names_its_lines() {
        let line = Line { name: "a < b".to_owned(), points: vec![(0.0, 1.0), (2.0, 3.0)], colour: 0, dashed: true };
        let svg = svg(&[Chart { title: "Loss".to_owned(), lines: vec![line] }]).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("a &lt; b") && svg.contains("Loss"));
    }

    #[test]
    fn a_chart_without_points_is_drawn() {
        let chart = || Chart { title: "Nothing".to_owned(), lines: Vec::new() };
        assert!(svg(&[chart(), chart()]).unwrap().contains("Nothing"));
    }
}
