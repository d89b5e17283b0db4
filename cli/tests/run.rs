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
    assert_eq!(shown["lanes"]["rank-0"], serde_json::json!({"rows": 10, "passes": 1, "shards": 1, "finished": true}));
    assert_eq!(shown["damage"], serde_json::Value::Null);
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

#[test]
fn inspect_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path());
    let file = dir.path().join("rank-0.000000").join("0.safetensors");
    let length = std::fs::metadata(&file).unwrap().len();
    std::fs::File::options().write(true).open(&file).unwrap().set_len(length - 1).unwrap();
    let shown = run(&["inspect"], dir.path());
    assert_eq!(shown.status.code(), Some(1));
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("NOT WHOLE") && shown.contains("0.safetensors"), "{shown}");
    std::fs::remove_file(&file).unwrap();
    let shown = String::from_utf8(run(&["inspect"], dir.path()).stdout).unwrap();
    assert!(shown.contains("NOT WHOLE") && shown.contains("0.safetensors"), "{shown}");
}

#[test]
fn wrong_arguments_and_damage_have_different_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(&["mend"], dir.path()).status.code(), Some(2));
    let empty = run(&["inspect"], dir.path());
    assert_eq!(empty.status.code(), Some(1));
    assert!(String::from_utf8(empty.stderr).unwrap().contains("no whole shard"));
    assert_eq!(
        Command::new(env!("CARGO_BIN_EXE_activation-store")).arg("--version").output().unwrap().status.code(),
        Some(0)
    );
}
