//! Describes a recording.

use std::io::{self, Write};

use activation_store::{Component, Recording};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use indicatif::{HumanBytes, HumanCount};
use serde_json::json;

/// Prints the description. Returns whether every file is there and has the length that its rows need.
pub(crate) fn inspect(recording: &Recording, as_json: bool) -> anyhow::Result<bool> {
    let damage = match recording.check_files() {
        Ok(()) => None,
        Err(error) if error.is_damage() => Some(error.to_string()),
        // The recording may be whole.
        Err(error) => return Err(error.into()),
    };
    let shown = if as_json { json(recording, damage.as_deref()) } else { text(recording, damage.as_deref()) };
    writeln!(io::stdout(), "{shown}")?;
    Ok(damage.is_none())
}

fn bytes(recording: &Recording, component: &Component) -> u64 {
    recording.rows() * (component.features * component.dtype.size()) as u64
}

fn json(recording: &Recording, damage: Option<&str>) -> String {
    let components = recording.components().iter().map(|component| {
        json!({
            "name": component.name.as_ref(), "features": component.features, "dtype": component.dtype.to_string(),
            "bytes": bytes(recording, component),
        })
    });
    let lanes = recording.lanes().into_iter().map(|(name, lane)| {
        let about = json!({
            "rows": lane.rows, "passes": lane.passes, "shards": lane.shards, "finished": lane.finished,
        });
        (name, about)
    });
    let all = json!({
        "rows": recording.rows(), "shards": recording.shards(), "lanes": lanes.collect::<serde_json::Map<_, _>>(),
        "metadata": recording.metadata(), "components": components.collect::<Vec<_>>(), "damage": damage,
    });
    format!("{all:#}")
}

fn text(recording: &Recording, damage: Option<&str>) -> String {
    let all: u64 = recording.components().iter().map(|component| bytes(recording, component)).sum();
    let head = format!(
        "{} rows in {} shards, {}",
        HumanCount(recording.rows()),
        HumanCount(recording.shards() as u64),
        HumanBytes(all)
    );
    let mut components = table(["component", "features", "dtype", "size"], 1..4);
    for component in recording.components() {
        let size = HumanBytes(bytes(recording, component));
        let (features, dtype) = (component.features.to_string(), component.dtype.to_string());
        components.add_row([component.name.to_string(), features, dtype, size.to_string()]);
    }
    let mut lanes = table(["lane", "rows", "passes", "shards", "finished"], 1..4);
    for (name, lane) in recording.lanes() {
        let count = |number| HumanCount(number).to_string();
        let finished = if lane.finished { "yes" } else { "no" };
        lanes.add_row([name, count(lane.rows), count(lane.passes), count(lane.shards), finished.to_owned()]);
    }
    let mut shown = format!("{head}\n\n{components}\n\n{lanes}\n\n");
    for (key, value) in recording.metadata() {
        shown += &format!("{key}: {value}\n");
    }
    shown
        + &damage.map_or_else(
            || "all files are there; `verify` compares their checksums".to_owned(),
            |damage| format!("NOT WHOLE: {damage}"),
        )
}

fn table<const N: usize>(head: [&str; N], numbers: std::ops::Range<usize>) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(head);
    for column in numbers {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
