//! Compares the peak resident memory of a process that only runs the store with the configured bytes.

use std::process::Command;
use std::thread;

use ndarray::Array2;

use crate::Effort;
use crate::pipeline::{BATCH, Case, consume};
use crate::report::{Must, Number};

/// The argument that makes the program that process.
pub(crate) const CHILD: &str = "--memory-child";

const FEATURES: usize = 768;

fn case() -> Case {
    Case::new("memory", FEATURES)
}

pub(crate) fn measure(_: Effort) -> Vec<Number> {
    let Some(peak) = peak_of_child() else {
        println!("\nmemory: not measured, for /proc/self/status has no VmHWM here");
        return Vec::new();
    };
    let row_bytes = FEATURES * size_of::<f32>();
    // The window, two ready minibatches, and a queue of two.
    let configured = case().window_bytes / (BATCH * row_bytes) * (BATCH * row_bytes) + 4 * BATCH * row_bytes;
    let megabytes = |bytes: usize| bytes as f64 / 1e6;
    let allowed = (1.05 * megabytes(configured) + 20.0).floor();
    vec![
        Number {
            name: "window, ready frames and queue".to_owned(),
            value: megabytes(configured),
            unit: "MB",
            must: None,
        },
        Number {
            name: "peak resident memory".to_owned(),
            value: megabytes(peak),
            unit: "MB",
            must: Some(Must::BeAtMost(allowed)),
        },
    ]
}

fn peak_of_child() -> Option<usize> {
    let child = Command::new(std::env::current_exe().ok()?).arg(CHILD).output().ok()?;
    String::from_utf8(child.stdout).ok()?.trim().parse().ok()
}

/// Runs a pipeline that allocates each batch as a model does, and prints the peak of this process.
pub(crate) fn child() {
    let store = case().store();
    thread::scope(|scope| {
        let mut minibatches = store.minibatches();
        let store = &store;
        scope.spawn(move || while store.extend_blocking(Array2::<f32>::ones((BATCH, FEATURES)), 0).is_ok() {});
        consume(&mut minibatches, 4 * store.window() / BATCH, true);
    });
    if let Some(peak) = peak() {
        println!("{peak}");
    }
}

fn peak() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes << 10)
}
