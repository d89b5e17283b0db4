//! Compares the speed of the store with two plain memcpys on two threads.
//!
//! `cargo bench --bench roofline` prints a table and writes `target/roofline.json`. A run takes under five minutes on two cores, and
//! under one minute with `-- --quick`. With another argument (`-- d=64`, `-- calls`), a run measures only the parts that have the
//! argument in their name, and writes nothing.
//!
//! Every ratio compares a floor and a pipeline that ran one right after the other, several times. Tables give medians and the spread.

mod calls;
mod compare;
mod floor;
mod memory;
mod mixing;
mod mixing_peers;
mod pipeline;
mod report;
mod tensor;

use std::process::ExitCode;

use activation_store::DType;

use crate::pipeline::Case;
use crate::report::{Number, Report};

/// How much is measured.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    /// How often the floor and the pipeline take turns.
    pub(crate) rounds: usize,
    /// How many bytes each of them moves in its turn.
    pub(crate) bytes: usize,
    /// How often a single call is timed.
    pub(crate) calls: usize,
}

/// The name of some figures beside the table, and the function that measures them.
type Section = (&'static str, fn(Effort) -> Vec<Number>);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == memory::CHILD) {
        memory::child();
        return ExitCode::SUCCESS;
    }
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let only = arguments.iter().find(|argument| !argument.starts_with('-'));
    let wanted = |name: &str| only.is_none_or(|only| name.contains(only.as_str()));
    let effort = if quick {
        Effort { rounds: 3, bytes: 1 << 30, calls: 2_000 }
    } else {
        Effort { rounds: 9, bytes: 2 << 30, calls: 20_000 }
    };
    let mut report = Report::new(quick);
    report.heading();
    for case in cases().iter().filter(|case| wanted(case.name)) {
        report.rows(&pipeline::measure(case, effort));
    }
    let sections: [Section; 6] = [
        ("one pipeline against another", compare::measure),
        ("calls", calls::measure),
        ("tensor store", tensor::measure),
        ("memory", memory::measure),
        ("mixing", mixing::measure),
        ("mixing with 65536 rows, simulated", mixing_peers::measure),
    ];
    for (title, measure) in sections.into_iter().filter(|(title, _)| wanted(title)) {
        report.numbers(title, measure(effort));
    }
    if only.is_some() {
        println!("\nnot written: this is not the whole table");
        return ExitCode::SUCCESS;
    }
    match report.write() {
        Ok(path) => {
            println!("\nwritten to {path}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("could not write the results: {error}");
            ExitCode::FAILURE
        }
    }
}

fn cases() -> Vec<Case> {
    let width = |name, features, dropped, read| Case { targets: Some((dropped, read)), ..Case::new(name, features) };
    vec![
        width("d=64", 64, 1.1, 1.0),
        width("d=384", 384, 1.5, 1.3),
        width("d=768", 768, 1.4, 1.2),
        width("d=4096", 4096, 1.4, 1.3),
        Case { components: 2, ..Case::new("two components", 768) },
        Case { producers: 4, ..Case::new("four lanes", 768) },
        Case { dtype: DType::BF16, ..Case::new("bf16 from f32", 768) },
    ]
}
