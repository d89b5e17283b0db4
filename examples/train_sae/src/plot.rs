//! Line charts as SVG, one above the other, with the same time axis.

use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 260.0;
/// Space around the plotted area for labels: left, right, top, bottom.
const MARGINS: [f64; 4] = [62.0, 150.0, 40.0, 44.0];
/// Told apart by people with any kind of colour vision.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

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
    /// Lines of the same number have the same colour.
    pub(crate) colour: usize,
    pub(crate) dashed: bool,
}

/// The charts as one SVG file.
pub(crate) fn svg(charts: &[Chart]) -> String {
    let height = HEIGHT * charts.len() as f64;
    let end = largest(charts.iter().flat_map(|chart| &chart.lines), |point| point.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#333\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for (index, chart) in charts.iter().enumerate() {
        chart.draw(&mut out, HEIGHT * index as f64, end);
    }
    out.push_str("</svg>\n");
    out
}

impl Chart {
    /// Draws the chart from `top` on, with a time axis up to `end` seconds.
    fn draw(&self, out: &mut String, top: f64, end: f64) {
        let [left, right, above, below] = MARGINS;
        let (right, upper, lower) = (WIDTH - right, top + above, top + HEIGHT - below);
        let (times, values) = (ticks(end), ticks(largest(&self.lines, |point| point.1)));
        let (end, highest) = (last(&times), last(&values));
        let x = |time: f64| left + (right - left) * time / end;
        let y = |value: f64| lower + (upper - lower) * value / highest;

        text(out, left, upper - 16.0, "start", &format!("<tspan font-weight=\"bold\">{}</tspan>", escape(&self.title)));
        for &value in &values {
            let y = y(value);
            path(out, &[(left, y), (right, y)], "stroke=\"#ddd\"");
            text(out, left - 8.0, y + 4.0, "end", &format!("{value}"));
        }
        for &time in &times {
            text(out, x(time), lower + 18.0, "middle", &format!("{time}"));
        }
        text(out, (left + right) / 2.0, lower + 36.0, "middle", "seconds");
        for (index, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[line.colour % COLOURS.len()];
            let style = format!(
                "stroke=\"{colour}\" stroke-width=\"1.6\"{}",
                if line.dashed {
                    format!(" stroke-dasharray=\"6 6\" stroke-dashoffset=\"{}\"", 6 * line.colour)
                } else {
                    String::new()
                }
            );
            let points: Vec<_> = line.points.iter().map(|&(time, value)| (x(time), y(value))).collect();
            path(out, &points, &style);
            let at = upper + 4.0 + 20.0 * index as f64;
            path(out, &[(right + 14.0, at), (right + 38.0, at)], &style);
            text(out, right + 44.0, at + 4.0, "start", &escape(&line.name));
        }
    }
}

fn path(out: &mut String, points: &[(f64, f64)], style: &str) {
    let points: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    push(out, format_args!("<polyline fill=\"none\" {style} points=\"{}\"/>\n", points.join(" ")));
}

/// Adds some text, which must be escaped.
fn text(out: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    push(out, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>\n"));
}

fn push(out: &mut String, element: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(element);
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn largest<'a>(lines: impl IntoIterator<Item = &'a Line>, value: impl Fn(&(f64, f64)) -> f64) -> f64 {
    lines.into_iter().flat_map(|line| &line.points).map(value).fold(0.0, f64::max)
}

fn last(ticks: &[f64]) -> f64 {
    ticks.last().copied().unwrap_or(1.0)
}

/// Round numbers from 0 to `highest` or a bit above it, eight of them at most.
fn ticks(highest: f64) -> Vec<f64> {
    let highest = if highest.is_finite() && highest > 0.0 { highest } else { 1.0 };
    let unit = 10f64.powf(highest.log10().floor());
    let step = [0.2, 0.5, 1.0].map(|factor| factor * unit).into_iter().find(|step| highest <= 7.0 * step);
    let step = step.unwrap_or(2.0 * unit);
    (0..=(highest / step).ceil() as usize).map(|n| round(n as f64 * step)).collect()
}

/// Without what binary fractions add in the tenth digit.
fn round(value: f64) -> f64 {
    format!("{value:.6}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_highest_value() {
        assert_eq!(ticks(1.0), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(ticks(0.72), [0.0, 0.2, 0.4, 0.6, 0.8]);
        assert_eq!(ticks(34.0), [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0]);
        assert_eq!(ticks(f64::NAN), ticks(1.0));
    }

    #[test]
    fn a_chart_names_its_lines() {
        let line = Line { name: "a < b".to_owned(), points: vec![(0.0, 1.0), (2.0, 3.0)], colour: 0, dashed: true };
        let svg = svg(&[Chart { title: "Loss".to_owned(), lines: vec![line] }]);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("a &lt; b") && svg.contains("Loss") && svg.contains("stroke-dasharray"));
    }
}
