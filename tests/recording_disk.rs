//! If a disk is full or a folder cannot be written, the error says so, and whole shards stay usable.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use activation_store::{Recorder, RecorderBuilder, Recording};
use ndarray::Array2;

/// The variable is set in two processes. In one, `/mnt` is a disk of 2 MiB. In the other, it names a folder that the process may not
/// write to.
const SMALL_DISK: &str = "RECORDING_ON_SMALL_DISK";
const FORBIDDEN: &str = "RECORDING_FORBIDDEN_DIR";

fn builder() -> RecorderBuilder {
    Recorder::builder().component("a", 256).shard_rows(200)
}

/// Records passes of 50 KiB until one is refused or its handle fails. Returns the error and the passes that were taken.
fn fill(recorder: &Recorder) -> (String, u64) {
    for pass in recorder.resumed().passes.. {
        let rows = Array2::from_elem((50, 256), pass as f32);
        match recorder.extend_pass([("a", rows)]).map_err(|refused| refused.error).and_then(|handle| handle.wait()) {
            Ok(_) => {}
            Err(error) => return (error.to_string(), pass),
        }
    }
    unreachable!("the disk has room without end")
}

#[test]
fn on_small_disk() {
    if env::var(SMALL_DISK).is_err() {
        return;
    }
    let dir = Path::new("/mnt/recording");
    let padding = Path::new("/mnt/padding");
    fs::write(padding, vec![0; 600 << 10]).unwrap();
    let recorder = builder().create(dir).unwrap();
    let (error, taken) = fill(&recorder);
    assert!(error.contains("No space left") && error.contains("/mnt/recording/"), "{error}");
    let again = recorder.extend_pass([("a", Array2::<f32>::ones((50, 256)))]).unwrap_err().to_string();
    assert!(again.contains("No space left"), "{again}");
    assert!(recorder.finish().is_err());

    // Whole shards stay usable, and the lane goes on when there is room again.
    let recording = Recording::open(dir).unwrap();
    recording.verify(|_, _| ()).unwrap();
    assert!(recording.rows() >= 200 && recording.rows() <= 50 * taken, "{} rows of {taken} passes", recording.rows());
    fs::remove_file(padding).unwrap();
    let recorder = builder().resume(dir).unwrap();
    let safe = recorder.resumed();
    assert_eq!(safe.rows, recording.rows());
    drop(recorder.extend_pass([("a", Array2::from_elem((50, 256), safe.passes as f32))]).unwrap());
    recorder.finish().unwrap();
    let recording = Recording::open(dir).unwrap();
    recording.verify(|_, _| ()).unwrap();
    assert_eq!(recording.rows(), safe.rows + 50);
    let rows: Vec<u64> = (0..recording.rows()).collect();
    let found = recording.get("a", &rows).unwrap().to_f32();
    assert!(found.rows().into_iter().enumerate().all(|(row, values)| values[0] == (row / 50) as f32));
}

/// Runs a test of this file as a user without the rights of root, if the system allows it.
fn run(program: &mut Command, test: &str) {
    let output = program.args(["--exact", test, "--nocapture"]).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn can(program: &mut Command) -> bool {
    program.output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_full_disk_leaves_whole_shards() {
    let mount = "mount -t tmpfs -o size=2m none /mnt";
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c"]);
        command
    };
    if !can(unshare().arg(mount)) {
        eprintln!("left out: this system lets nobody mount a small disk");
        return;
    }
    let exe = env::current_exe().unwrap();
    let line = format!("{mount} && exec '{}' \"$@\"", exe.display());
    run(unshare().args([&line, "sh"]).env(SMALL_DISK, "1"), "on_small_disk");
}

#[test]
fn in_forbidden_folder() {
    let Ok(dir) = env::var(FORBIDDEN) else { return };
    let inside = Path::new(&dir).join("recording");
    let error = builder().create(&inside).unwrap_err().to_string();
    assert!(error.contains("Permission denied") && error.contains(&dir), "{error}");
    let (error, passes) = fill(&builder().resume(&dir).unwrap());
    assert!(passes < 10, "{passes} passes were taken");
    assert!(error.contains("Permission denied") && error.contains(&dir), "{error}");
    let recording = Recording::open(&dir).unwrap();
    recording.verify(|_, _| ()).unwrap();
}

#[test]
fn a_folder_without_permission_is_named_and_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let recording = dir.path().join("recording");
    let recorder = builder().create(&recording).unwrap();
    drop(recorder.extend_pass([("a", Array2::<f32>::ones((50, 256)))]).unwrap());
    recorder.finish().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&recording, fs::Permissions::from_mode(0o555)).unwrap();
    let exe = dir.path().join("test");
    fs::copy(env::current_exe().unwrap(), &exe).unwrap();
    // Root may write everywhere, but not in a user namespace of its own.
    let mut program = match fs::write(recording.join("probe"), "") {
        Err(_) => Command::new(&exe),
        Ok(()) => {
            fs::remove_file(recording.join("probe")).unwrap();
            let mut command = Command::new("unshare");
            command.arg("--user").arg(&exe);
            if !can(Command::new("unshare").args(["--user", "true"])) {
                eprintln!("left out: root cannot give up its rights here");
                return;
            }
            command
        }
    };
    run(program.env(FORBIDDEN, &recording), "in_forbidden_folder");
    fs::set_permissions(&recording, fs::Permissions::from_mode(0o755)).unwrap();
}
