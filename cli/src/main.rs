//! The program `activation-store`.

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    activation_store_cli::run(env::args_os()).into()
}
