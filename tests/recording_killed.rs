//! A recording process that is killed loses no shard that it has reported as safe.
#![allow(clippy::unwrap_used)]
#![cfg(unix)]

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use activation_store::{Recorder, RecorderBuilder, Recording};
use ndarray::Array2;

/// Set in the process that records.
const CHILD: &str = "RECORDING_KILLED_DIR";

fn builder() -> RecorderBuilder {
    Recorder::builder().component("a", 64).shard_rows(40)
}

/// Records until it is killed, and prints the passes that are safe.
#[test]
fn child() {
    let Ok(dir) = env::var(CHILD) else { return };
    let recorder = builder().resume(dir).unwrap();
    for pass in recorder.resumed().passes.. {
        drop(recorder.extend_pass([("a", Array2::from_elem((10, 64), pass as f32))]).unwrap());
        if pass % 7 == 6 {
            let mut out = std::io::stderr();
            writeln!(out, "safe {}", recorder.flush().unwrap().passes).unwrap();
        }
    }
}

fn check(dir: &Path, safe: u64) -> u64 {
    let recording = Recording::open(dir).unwrap();
    recording.verify(|_, _| ()).unwrap();
    assert!(recording.rows() >= 10 * safe, "{} rows, and {safe} passes were said to be safe", recording.rows());
    let mut row = 0;
    for rows in recording.replay().start().unwrap() {
        for value in rows.unwrap().pass()[0].1.view::<f32>().unwrap().rows() {
            assert_eq!(value[0], value[63]);
            row += 1;
        }
    }
    assert_eq!(row, recording.rows());
    assert_eq!(recording.get("a", &[row - 1]).unwrap().to_f32()[[0, 0]], ((row - 1) / 10) as f32);
    recording.rows()
}

#[test]
fn passes_that_were_reported_safe_are_there_after_a_kill() {
    let kills: usize = env::var("RECORDING_KILLS").map_or(3, |kills| kills.parse().unwrap());
    let dir = env::temp_dir().join(format!("recording-killed-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let mut before = 0;
    for kill in 0..kills {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, &dir)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The child goes on while this test reads the lines, so the kill can come at any point.
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut safe = lines.filter_map(|line| line.strip_prefix("safe ").map(|passes| passes.parse::<u64>().unwrap()));
        let last = safe.nth(kill % 5).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let rows = check(&dir, last);
        assert!(rows > before);
        before = rows;
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
