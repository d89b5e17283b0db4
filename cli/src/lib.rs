//! Inspects and verifies recordings: the program `activation-store`, also of the Python package.

mod inspect;
mod verify;

use std::ffi::OsString;
use std::path::PathBuf;

use activation_store::Recording;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "activation-store", version, about = "Inspects and verifies recordings of activations.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows components, lanes, rows and sizes, and whether all files are there. Reads no rows.
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

/// Runs the program with its arguments, of which the first is its name. Returns the exit code: 0 if the recording is whole, 1 if
/// it is not or cannot be read, 2 if the arguments make no sense.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be said if the terminal is gone.
            let _ = error.print();
            return error.exit_code() as u8;
        }
    };
    let done = match arguments.command {
        Command::Inspect { dir, json } => {
            Recording::open(dir).map_err(Into::into).and_then(|found| inspect::inspect(&found, json))
        }
        Command::Verify { dir } => Recording::open(dir).map_err(Into::into).and_then(|found| verify::verify(&found)),
    };
    match done {
        Ok(whole) => u8::from(!whole),
        Err(error) => {
            eprintln!("error: {error:#}");
            1
        }
    }
}
