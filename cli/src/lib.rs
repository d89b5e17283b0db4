//! Inspects and verifies recordings. This is the program `activation-store`, which the Python package has, too.

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
    /// Shows components, lanes, rows and sizes, and whether all files are there. Reads no rows. Exits with 1 if a file is missing or
    /// has a wrong length.
    Inspect {
        /// The folder of the recording.
        dir: PathBuf,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Reads every file and compares its checksum. Exits with 1 if a shard is damaged, and names the first damaged file of each such
    /// shard.
    Verify {
        /// The folder of the recording.
        dir: PathBuf,
    },
}

/// Runs the program and returns its exit code: 0 if the recording is whole, 1 if it is damaged or cannot be read, 2 if the
/// arguments are wrong. The first argument is the name of the program. Prints to standard output and standard error.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // If the terminal is gone, the error cannot be printed.
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
