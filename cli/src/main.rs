//! Inspects and verifies recordings. `activation-store help` lists the commands.

use std::io::{self, Write};
use std::path::PathBuf;

use activation_store::Recording;
use clap::{Parser, Subcommand};
use indicatif::{HumanBytes, ProgressBar};
use serde_json::json;

#[derive(Parser)]
#[command(version, about = "Inspects and verifies recordings of activations.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows the components, lanes, rows and sizes. Reads no rows.
    Inspect {
        /// The folder of the recording.
        dir: PathBuf,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Reads every file and compares its checksum. Exits with 1 and names the first file that is damaged.
    Verify {
        /// The folder of the recording.
        dir: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Inspect { dir, json } => inspect(&Recording::open(dir)?, json),
        Command::Verify { dir } => verify(&Recording::open(dir)?),
    }
}

fn inspect(recording: &Recording, as_json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let (rows, lanes) = (recording.rows(), recording.lanes());
    let bytes = |features: usize, size: usize| rows * (features * size) as u64;
    if as_json {
        let components = recording.components().iter().map(|found| {
            json!({
                "name": found.name.as_ref(), "features": found.features, "dtype": found.dtype.to_string(),
                "bytes": bytes(found.features, found.dtype.size()),
            })
        });
        let all = json!({
            "rows": rows, "shards": recording.shards(), "lanes": lanes, "metadata": recording.metadata(),
            "components": components.collect::<Vec<_>>(),
        });
        writeln!(out, "{all:#}")?;
        return Ok(());
    }
    writeln!(out, "{rows} rows in {} shards\n", recording.shards())?;
    writeln!(out, "{:<32} {:>8} {:>5} {:>12}", "component", "features", "dtype", "size")?;
    for found in recording.components() {
        let (dtype, size) =
            (found.dtype.to_string(), HumanBytes(bytes(found.features, found.dtype.size())).to_string());
        writeln!(out, "{:<32} {:>8} {dtype:>5} {size:>12}", found.name, found.features)?;
    }
    writeln!(out, "\n{:<32} {:>14}", "lane", "rows")?;
    for (lane, rows) in lanes {
        writeln!(out, "{lane:<32} {rows:>14}")?;
    }
    for (key, value) in recording.metadata() {
        writeln!(out, "{key}: {value}")?;
    }
    Ok(())
}

fn verify(recording: &Recording) -> anyhow::Result<()> {
    let bar = ProgressBar::new(recording.shards() as u64);
    recording.verify(|done, _| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    writeln!(io::stdout(), "{} shards are whole", recording.shards())?;
    Ok(())
}
