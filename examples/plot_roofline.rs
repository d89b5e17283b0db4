//! Draws the figures of `cargo bench --bench roofline` as a chart.
//!
//! `cargo run --example plot_roofline [target/roofline.json [docs/performance.svg]]`, where `target` is
//! `CARGO_TARGET_DIR` if that is set.

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

const LEFT: f64 = 150.0;
const WIDTH: f64 = 760.0;
const BAR: f64 = 15.0;
const GROUP: f64 = 2.0 * BAR + 16.0;
const TOP: f64 = 64.0;

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

/// Two bars for each configuration: minibatches dropped, and read.
fn chart(rows: &[Value]) -> Result<String, Box<dyn Error>> {
    let number = |row: &Value, field: &str| row[field].as_f64().ok_or(format!("a row has no {field}"));
    let ratios = rows.iter().map(|row| Ok(row["ratio_spread"][1].as_f64().unwrap_or(number(row, "ratio_to_floor")?)));
    let most = ratios.collect::<Result<Vec<f64>, String>>()?.into_iter().fold(1.5, f64::max).ceil();
    let x = |ratio: f64| LEFT + ratio / most * (WIDTH - LEFT - 130.0);
    let bottom = TOP + rows.len().div_ceil(2) as f64 * GROUP;
    let height = bottom + 40.0;

    let mut svg = String::new();
    writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" fill="#222">
<rect width="{WIDTH}" height="{height}" fill="#fff"/>
<text x="{LEFT}" y="22" font-size="15">Rows per second, as multiples of two plain memcpys on two threads</text>
<rect x="{LEFT}" y="34" width="12" height="12" fill="#3b6fb6"/><text x="{}" y="44">minibatches dropped</text>
<rect x="{}" y="34" width="12" height="12" fill="#e08a3c"/><text x="{}" y="44">every element read</text>
<path d="M{} 34v12" stroke="#222" stroke-width="2"/><text x="{}" y="44">must reach</text>
<path d="M{} 40h24" stroke="#222" stroke-opacity="0.55"/><text x="{}" y="44">least to most</text>"##,
        LEFT + 18.0,
        LEFT + 160.0,
        LEFT + 178.0,
        LEFT + 310.0,
        LEFT + 318.0,
        LEFT + 410.0,
        LEFT + 440.0,
    )?;
    for tick in 0..=(2.0 * most) as usize {
        let ratio = tick as f64 / 2.0;
        let colour = if tick == 2 { "#c33" } else { "#ddd" };
        writeln!(
            svg,
            r##"<path d="M{0} {TOP}V{bottom}" stroke="{colour}"/><text x="{0}" y="{1}" text-anchor="middle">{ratio}</text>"##,
            x(ratio),
            bottom + 16.0
        )?;
    }
    for (i, row) in rows.iter().enumerate() {
        let read = row["read"] == true;
        let y = TOP + (i / 2) as f64 * GROUP + 8.0 + if read { BAR } else { 0.0 };
        let (ratio, middle) = (number(row, "ratio_to_floor")?, y + BAR / 2.0);
        if !read {
            let name = row["name"].as_str().ok_or("a row has no name")?;
            writeln!(svg, r##"<text x="{}" y="{}" text-anchor="end">{name}</text>"##, LEFT - 10.0, y + BAR + 4.0)?;
        }
        let colour = if read { "#e08a3c" } else { "#3b6fb6" };
        let width = x(ratio) - LEFT;
        writeln!(svg, r##"<rect x="{LEFT}" y="{y}" width="{width:.1}" height="{}" fill="{colour}"/>"##, BAR - 2.0)?;
        let mut end = ratio;
        if let [Some(least), Some(most)] = [0, 1].map(|side| row["ratio_spread"][side].as_f64()) {
            let y = middle - 1.0;
            writeln!(svg, r##"<path d="M{:.1} {y}H{:.1}" stroke="#222" stroke-opacity="0.55"/>"##, x(least), x(most))?;
            end = most;
        }
        if let Some(target) = row["target"].as_f64() {
            writeln!(svg, r##"<path d="M{:.1} {y}v{}" stroke="#222" stroke-width="2"/>"##, x(target), BAR - 2.0)?;
        }
        let label = format!("{ratio:.2}x · {:.1} GB/s", number(row, "gb_per_s")?);
        writeln!(svg, r##"<text x="{:.1}" y="{}">{label}</text>"##, x(end) + 6.0, middle + 3.0)?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}
