//! Prints the measurements, and writes them to `target/roofline.json`.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::pipeline::Measured;

/// A figure beside the table: its name, its value, its unit, and the bound that it must keep, if there is one.
pub(crate) struct Number {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) must: Option<Must>,
}

#[derive(Clone, Copy)]
pub(crate) enum Must {
    BeAtLeast(f64),
    BeAtMost(f64),
}

impl Must {
    fn met(self, value: f64) -> bool {
        match self {
            Must::BeAtLeast(bound) => value >= bound,
            Must::BeAtMost(bound) => value <= bound,
        }
    }

    fn text(self) -> String {
        match self {
            Must::BeAtLeast(bound) => format!(">= {bound}"),
            Must::BeAtMost(bound) => format!("<= {bound}"),
        }
    }
}

pub(crate) struct Report {
    rows: Vec<Value>,
    numbers: Map<String, Value>,
    quick: bool,
}

impl Report {
    pub(crate) fn new(quick: bool) -> Self {
        Report { rows: Vec::new(), numbers: Map::new(), quick }
    }

    pub(crate) fn heading(&self) {
        println!(
            "{:<16} {:>5} {:<5} {:>5} {:>5}  {:<7} {:>12} {:>7}  {:<18} must be",
            "", "d", "dtype", "comps", "lanes", "rows", "rows/s", "GB/s", "x floor (spread)"
        );
    }

    pub(crate) fn rows(&mut self, measured: &[Measured]) {
        for row in measured {
            let rows_per_s = median(&row.rows_per_s);
            let gb_per_s = rows_per_s * row.row_bytes as f64 / 1e9;
            let (ratio, [least, most]) = (median(&row.ratios), spread(&row.ratios));
            let verdict = row.target.map(|target| verdict(Must::BeAtLeast(target), ratio));
            println!(
                "{:<16} {:>5} {:<5} {:>5} {:>5}  {:<7} {:>12.0} {:>7.2}  {:<18} {}",
                row.name,
                row.features,
                row.dtype.to_string(),
                row.components,
                row.producers,
                if row.read { "read" } else { "dropped" },
                rows_per_s,
                gb_per_s,
                format!("{ratio:.2} ({least:.2}-{most:.2})"),
                verdict.unwrap_or_default(),
            );
            self.rows.push(json!({
                "name": row.name,
                "d": row.features,
                "dtype": row.dtype.to_string(),
                "components": row.components,
                "producers": row.producers,
                "read": row.read,
                "rows_per_s": rows_per_s,
                "gb_per_s": gb_per_s,
                "ratio_to_floor": ratio,
                "ratio_spread": [least, most],
                "target": row.target,
            }));
        }
    }

    pub(crate) fn numbers(&mut self, title: &str, numbers: impl IntoIterator<Item = Number>) {
        println!("\n{title}");
        for Number { name, value, unit, must } in numbers {
            let verdict = must.map(|must| verdict(must, value)).unwrap_or_default();
            println!("  {name:<58} {value:>14.2} {unit:<8} {verdict}");
            self.numbers.insert(format!("{title}: {name} [{unit}]"), json!(value));
        }
    }

    /// Writes the report, and returns the path of the file.
    pub(crate) fn write(self) -> std::io::Result<String> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
        std::fs::create_dir_all(&target)?;
        let path = target.join("roofline.json");
        let report = json!({ "quick": self.quick, "rows": self.rows, "numbers": self.numbers });
        std::fs::write(&path, format!("{report:#}\n"))?;
        Ok(path.display().to_string())
    }
}

fn verdict(must: Must, value: f64) -> String {
    format!("{} {}", must.text(), if must.met(value) { "ok" } else { "SHORT" })
}

pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len().max(1) - 1) * percent / 100).copied().unwrap_or(f64::NAN)
}

fn spread(values: &[f64]) -> [f64; 2] {
    [percentile(values, 0), percentile(values, 100)]
}
