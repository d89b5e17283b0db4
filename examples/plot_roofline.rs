//! Draws the figures of `cargo bench --bench roofline` as a chart.
//!
//! Run with `cargo run --example plot_roofline [target/roofline.json [docs/performance.svg]]`. If `CARGO_TARGET_DIR` is set, it takes
//! the place of `target`.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;

/// The height of a bar and of a pair of bars, in points.
const BAR: i32 = 15;
const PAIR: i32 = 2 * BAR + 16;
const DROPPED: RGBColor = RGBColor(59, 111, 182);
const READ: RGBColor = RGBColor(224, 138, 60);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let from = arguments.next().unwrap_or_else(|| {
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from).join("roofline.json")
    });
    let to = arguments.next().unwrap_or_else(|| "docs/performance.svg".into());
    let json = fs::read_to_string(&from).map_err(|error| format!("cannot read {}: {error}", from.display()))?;
    let report: Value = serde_json::from_str(&json)?;
    let rows = report["rows"].as_array().ok_or("there are no rows")?;
    fs::write(&to, chart(rows)?)?;
    println!("{} -> {}", from.display(), to.display());
    Ok(())
}

/// The bar of a configuration, whose minibatches were either dropped or read.
struct Bar {
    name: String,
    read: bool,
    ratio: f64,
    gb_per_s: f64,
    spread: Option<[f64; 2]>,
    target: Option<f64>,
}

impl Bar {
    fn new(row: &Value) -> Result<Bar, String> {
        let number = |field: &str| row[field].as_f64().ok_or(format!("a row has no {field}"));
        let spread = [0, 1].map(|side| row["ratio_spread"][side].as_f64());
        Ok(Bar {
            name: row["name"].as_str().ok_or("a row has no name")?.to_owned(),
            read: row["read"] == true,
            ratio: number("ratio_to_floor")?,
            gb_per_s: number("gb_per_s")?,
            spread: if let [Some(least), Some(most)] = spread { Some([least, most]) } else { None },
            target: row["target"].as_f64(),
        })
    }

    /// Returns where the line of the bar ends.
    fn most(&self) -> f64 {
        self.spread.map_or(self.ratio, |[_, most]| most.max(self.ratio))
    }
}

/// Draws two bars for each configuration: one for minibatches that are dropped, one for minibatches that are read.
fn chart(rows: &[Value]) -> Result<String, Box<dyn Error>> {
    let bars = rows.iter().map(Bar::new).collect::<Result<Vec<_>, _>>()?;
    let most = bars.iter().map(Bar::most).fold(1.5, f64::max).ceil();
    let height = bars.len().div_ceil(2) as i32 * PAIR;
    let mut svg = String::new();
    {
        let canvas = SVGBackend::with_string(&mut svg, (760, height as u32 + 100)).into_drawing_area();
        // The error borrows the canvas, so it becomes text.
        draw(&canvas, &bars, most, height).map_err(|error| error.to_string())?;
        canvas.present().map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

fn draw(
    canvas: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    bars: &[Bar],
    most: f64,
    height: i32,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    canvas.fill(&WHITE)?;
    let text = |size: u32| ("sans-serif", size).into_font().color(&BLACK);
    canvas.draw(&Text::new(
        "Rows per second, as multiples of two plain memcpys on two threads",
        (150, 10),
        text(15),
    ))?;
    for (x, colour, name) in [(150, DROPPED, "minibatches dropped"), (310, READ, "every element read")] {
        canvas.draw(&Rectangle::new([(x, 34), (x + 12, 46)], colour.filled()))?;
        canvas.draw(&Text::new(name, (x + 18, 34), text(12)))?;
    }
    canvas.draw(&PathElement::new([(460, 34), (460, 46)], BLACK.stroke_width(2)))?;
    canvas.draw(&Text::new("must reach", (468, 34), text(12)))?;
    canvas.draw(&PathElement::new([(560, 40), (584, 40)], BLACK.mix(0.55)))?;
    canvas.draw(&Text::new("least to most", (590, 34), text(12)))?;

    let mut plot = ChartBuilder::on(canvas)
        .margin_top(58)
        .margin_left(150)
        .margin_right(130)
        .x_label_area_size(30)
        .build_cartesian_2d(0.0..most, height..0)?;
    plot.configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(TRANSPARENT)
        .x_labels(2 * most as usize + 1)
        .x_label_formatter(&|ratio| format!("{ratio}"))
        .draw()?;
    plot.draw_series([PathElement::new([(1.0, 0), (1.0, height)], RED.mix(0.7))])?;
    let left = |y| plot.backend_coord(&(0.0, y));
    for (index, bar) in bars.iter().enumerate() {
        let top = index as i32 / 2 * PAIR + 8 + if bar.read { BAR } else { 0 };
        let middle = top + BAR / 2;
        if !bar.read {
            let (x, y) = left(top + BAR);
            let style = text(12).pos(Pos::new(HPos::Right, VPos::Center));
            canvas.draw(&Text::new(bar.name.clone(), (x - 10, y), style))?;
        }
        let colour = if bar.read { READ } else { DROPPED };
        let body = Rectangle::new([(0.0, top), (bar.ratio, top + BAR - 2)], colour.filled());
        plot.plotting_area().draw(&body)?;
        if let Some([least, most]) = bar.spread {
            plot.plotting_area().draw(&PathElement::new([(least, middle), (most, middle)], BLACK.mix(0.55)))?;
        }
        if let Some(target) = bar.target {
            let line = PathElement::new([(target, top), (target, top + BAR - 2)], BLACK.stroke_width(2));
            plot.plotting_area().draw(&line)?;
        }
        let (x, y) = plot.backend_coord(&(bar.most(), middle));
        let label = format!("{:.2}x · {:.1} GB/s", bar.ratio, bar.gb_per_s);
        canvas.draw(&Text::new(label, (x + 6, y), text(12).pos(Pos::new(HPos::Left, VPos::Center))))?;
    }
    Ok(())
}
