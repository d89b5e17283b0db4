//! Ctrl-C in an example stops the capture. The loop trains on the captured rows, and the program prints its summary.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::env;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Builds an example in the same way as this test, and returns the path of the program.
fn example(name: &str) -> PathBuf {
    let here = env::current_exe().unwrap();
    let profile = here.ancestors().nth(2).unwrap();
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--example", name, "--target-dir"]).arg(profile.parent().unwrap());
    if profile.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    profile.join("examples").join(name)
}

#[test]
fn ctrl_c_ends_the_capture_and_what_is_there_is_trained_on() {
    let mut run = Command::new(example("slow_trainer")).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines().map(Result::unwrap);
    // The example prints its first line after it has begun to listen for Ctrl-C.
    assert!(lines.next().unwrap().contains(" rows taken"));
    assert!(Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap().success());
    let rest: Vec<String> = lines.collect();
    assert!(run.wait().unwrap().success(), "{rest:?}");
    assert!(rest.iter().any(|line| line.starts_with("stopping")), "{rest:?}");
    assert!(rest.last().unwrap().contains(" 0 in the ring, 0 queued"), "{rest:?}");
}
