//! The command line describes a recording and names the file that is damaged.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use activation_store::Recorder;
use ndarray::Array2;

fn record(dir: &Path) {
    let recorder = Recorder::builder().component("mlp", 3).shard_rows(10).lane("rank-0").create(dir).unwrap();
    drop(recorder.extend_pass([("mlp", Array2::<f32>::ones((10, 3)))]).unwrap());
    recorder.finish().unwrap();
}

fn run(arguments: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_activation-store")).args(arguments).arg(dir).output().unwrap()
}

#[test]
fn inspect_describes_the_recording() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path());
    let shown = run(&["inspect", "--json"], dir.path());
    assert!(shown.status.success());
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["rows"], 10);
    assert_eq!(shown["lanes"]["rank-0"], 10);
    assert_eq!(shown["components"][0]["bytes"], 10 * 3 * 4);
    let table = String::from_utf8(run(&["inspect"], dir.path()).stdout).unwrap();
    assert!(table.contains("mlp") && table.contains("rank-0"), "{table}");
}

#[test]
fn verify_names_the_damaged_file() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path());
    assert!(run(&["verify"], dir.path()).status.success());
    let file = dir.path().join("rank-0.000000").join("0.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let damaged = run(&["verify"], dir.path());
    assert_eq!(damaged.status.code(), Some(1));
    let said = String::from_utf8(damaged.stderr).unwrap();
    assert!(said.contains("0.safetensors"), "{said}");
}
