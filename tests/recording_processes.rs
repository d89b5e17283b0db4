//! Two processes record into one folder at once without a lock. Each process has its own lane.
#![allow(clippy::unwrap_used)]
#![cfg(unix)]

use std::env;
use std::process::{Child, Command};

use activation_store::{Recorder, Recording};
use ndarray::Array2;

/// These variables are set in the processes that record. They name the folder and the lane.
const CHILD: &str = "RECORDING_PROCESSES_DIR";
const LANE: &str = "RECORDING_PROCESSES_LANE";
const PASSES: usize = 200;

/// Records passes of 10 rows, which hold the number of the pass.
#[test]
fn child() {
    let (Ok(dir), Ok(lane)) = (env::var(CHILD), env::var(LANE)) else { return };
    let recorder = Recorder::builder().component("a", 16).lane(lane).shard_rows(40).create(dir).unwrap();
    for pass in 0..PASSES {
        drop(recorder.extend_pass([("a", Array2::from_elem((10, 16), pass as f32))]).unwrap());
    }
    recorder.finish().unwrap();
}

fn spawn(dir: &std::path::Path, lane: &str) -> Child {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", "child"]).env(CHILD, dir).env(LANE, lane).stdout(std::process::Stdio::null());
    child.spawn().unwrap()
}

#[test]
fn two_processes_record_at_once_while_a_third_reads() {
    let dir = tempfile::tempdir().unwrap();
    let mut children = ["rank-0", "rank-1"].map(|lane| spawn(dir.path(), lane));
    // All shards that exist at any time are whole.
    while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        if let Ok(recording) = Recording::open(dir.path()) {
            recording.check_files().unwrap();
        }
    }
    assert!(children.iter_mut().all(|child| child.wait().unwrap().success()));
    let recording = Recording::open(dir.path()).unwrap();
    recording.verify(|_, _| ()).unwrap();
    let lanes = recording.lanes();
    assert_eq!(lanes.keys().collect::<Vec<_>>(), ["rank-0", "rank-1"]);
    assert!(lanes.values().all(|lane| lane.finished && lane.passes == PASSES as u64 && lane.rows == 10 * lane.passes));
    let rows: Vec<u64> = (0..recording.rows()).collect();
    let found = recording.get("a", &rows).unwrap().to_f32();
    for (row, values) in found.rows().into_iter().enumerate() {
        assert!(values.iter().all(|&value| value == (row / 10 % PASSES) as f32), "row {row}");
    }
}

#[test]
fn a_lane_that_another_process_has_recorded_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(spawn(dir.path(), "rank-0").wait().unwrap().success());
    let error = Recorder::builder().component("a", 16).lane("rank-0").create(dir.path()).unwrap_err().to_string();
    assert!(error.contains("rank-0") && error.contains("resume it, or use another lane"), "{error}");
}
