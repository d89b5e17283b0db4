//! What happens to a recording on disk, and what its users are told.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use activation_store::{ActivationStore, Recorder, RecorderBuilder, Recording};
use ndarray::Array2;
use tempfile::tempdir;

fn builder(lane: &str) -> RecorderBuilder {
    Recorder::builder().component("a", 2).component("b", 1).lane(lane).shard_rows(20)
}

/// Passes of ten rows, whose values are the row's number.
fn write(recorder: &Recorder, passes: std::ops::Range<usize>) {
    for pass in passes {
        let rows = |features| Array2::from_shape_fn((10, features), |(row, _)| (pass * 10 + row) as f32);
        drop(recorder.extend_pass([("a", rows(2)), ("b", rows(1))]).unwrap());
    }
}

fn record(dir: &Path, lane: &str) {
    let recorder = builder(lane).create(dir).unwrap();
    write(&recorder, 0..6);
    recorder.finish().unwrap();
}

#[test]
fn a_lane_is_not_resumed_behind_a_shard_that_lost_a_file() {
    for damage in [|file: &Path| fs::remove_file(file).unwrap(), |file: &Path| fs::write(file, "").unwrap()] {
        let dir = tempdir().unwrap();
        record(dir.path(), "x");
        damage(&dir.path().join("x.000002/1.safetensors"));
        let refused = builder("x").resume(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("x.000002/1.safetensors"), "{refused}");
        // Another lane shares nothing with it.
        record(dir.path(), "y");
        assert_eq!(builder("y").resume(dir.path()).unwrap().resumed().rows, 60);
    }
}

#[test]
fn a_folder_that_was_renamed_or_copied_is_named() {
    let (dir, other) = (tempdir().unwrap(), tempdir().unwrap());
    record(dir.path(), "x");
    record(other.path(), "x");
    fs::rename(other.path().join("x.000001"), dir.path().join("y.000000")).unwrap();
    let refused = Recording::open(dir.path()).unwrap_err().to_string();
    assert!(refused.contains("y.000000") && refused.contains("it describes x.000001"), "{refused}");
    let (whole, lost) = Recording::salvage(dir.path(), |_, _| ()).unwrap();
    assert_eq!((whole.rows(), lost.len()), (60, 1));
    assert!(lost[0].to_string().contains("y.000000"), "{}", lost[0]);
}

#[test]
fn salvage_says_what_each_lane_lacks() {
    let dir = tempdir().unwrap();
    for lane in ["x", "y"] {
        record(dir.path(), lane);
    }
    fs::write(dir.path().join("x.end.json"), "nothing").unwrap();
    fs::remove_dir_all(dir.path().join("y.000002")).unwrap();
    let (whole, lost) = Recording::salvage(dir.path(), |_, _| ()).unwrap();
    let lost: Vec<String> = lost.iter().map(ToString::to_string).collect();
    assert_eq!((whole.rows(), lost.len()), (100, 2), "{lost:?}");
    assert!(lost[0].contains("x.end.json") && lost[1].contains("shard 2 of lane \"y\" is missing"), "{lost:?}");
}

/// Seals a shard's description again after a change, as a program that writes the format would.
fn edit(dir: &Path, from: &str, to: &str) -> String {
    let path = dir.join("x.000001/shard.json");
    let text = fs::read_to_string(&path).unwrap();
    let start = text.find("\"shard\":").unwrap() + "\"shard\":".len();
    let end = text.rfind("},\"checksum\"").unwrap() + 1;
    let shard = &text[start..end];
    assert!(shard.contains(from), "{shard}");
    let edited = shard.replace(from, to);
    let sum = format!("{:016x}", twox_hash::XxHash3_64::oneshot(edited.as_bytes()));
    fs::write(&path, format!("{{\"shard\":{edited},\"checksum\":\"{sum}\"}}")).unwrap();
    Recording::open(dir).unwrap_err().to_string()
}

#[test]
fn an_edited_description_is_refused_and_panics_nowhere() {
    for (from, to, says) in [
        ("\"rows\":20", "\"rows\":18446744073709551615", "its rows is 18446744073709551615"),
        ("\"first_row\":20", "\"first_row\":0", "it begins at row 0 of pass 2"),
        ("\"number\":1", "\"number\":7", "it describes x.000007"),
        ("0.safetensors", "../x.000000/0.safetensors", "is not in the shard's own folder"),
    ] {
        let dir = tempdir().unwrap();
        record(dir.path(), "x");
        let refused = edit(dir.path(), from, to);
        assert!(refused.contains(says), "{refused}");
        assert!(builder("x").resume(dir.path()).is_err());
        drop(Recording::salvage(dir.path(), |_, _| ()).unwrap());
    }
}

#[test]
fn all_lanes_of_a_folder_have_the_same_components() {
    let dir = tempdir().unwrap();
    record(dir.path(), "x");
    let refused = Recorder::builder().component("a", 5).lane("y").create(dir.path()).unwrap_err().to_string();
    assert!(refused.contains("x.00000") && refused.contains("\"a\" (5 f32)"), "{refused}");
}

#[test]
fn a_folder_that_goes_away_is_not_made_again() {
    let dir = tempdir().unwrap();
    let recording = dir.path().join("recording");
    let recorder = builder("x").create(&recording).unwrap();
    write(&recorder, 0..2);
    recorder.flush().unwrap();
    fs::rename(&recording, dir.path().join("moved")).unwrap();
    let write_on = || -> Result<_, Box<dyn std::error::Error>> {
        recorder.extend_pass([("a", Array2::<f32>::ones((20, 2))), ("b", Array2::<f32>::ones((20, 1)))])?.wait()?;
        Ok(recorder.flush()?)
    };
    let refused = write_on().unwrap_err().to_string();
    assert!(refused.contains("recording"), "{refused}");
    assert!(!recording.exists());
    assert_eq!(Recording::open(dir.path().join("moved")).unwrap().rows(), 20);
}

#[test]
fn rows_of_a_live_recorder_whose_shard_is_gone_are_an_error() {
    for gone in [0, 1] {
        let dir = tempdir().unwrap();
        let recorder = builder("x").create(dir.path()).unwrap();
        write(&recorder, 0..4);
        recorder.flush().unwrap();
        fs::remove_dir_all(dir.path().join(format!("x.00000{gone}"))).unwrap();
        let refused = ActivationStore::get(&recorder, activation_store::Index::from(35)).unwrap_err().to_string();
        assert!(refused.contains(&format!("shard {gone} of lane \"x\" is missing")), "{refused}");
    }
}

#[test]
fn other_files_in_the_folder_are_left_alone() {
    let dir = tempdir().unwrap();
    record(dir.path(), "x");
    fs::write(dir.path().join("train.log.20261127"), "a log").unwrap();
    fs::create_dir(dir.path().join("my backup.20261127")).unwrap();
    assert_eq!(Recording::open(dir.path()).unwrap().rows(), 60);
}

#[test]
fn a_newer_format_is_named_with_what_this_release_reads() {
    let dir = tempdir().unwrap();
    record(dir.path(), "x");
    let refused = edit(dir.path(), "\"version\":1", "\"version\":2");
    assert!(refused.contains("has version 2 of the format, and this release reads version 1: update"), "{refused}");
    // A later version may have other fields.
    let newer = "{\"shard\":{\"version\":3,\"written_by\":\"activation-store 9.0.0\"},\"seal\":\"?\"}";
    fs::write(dir.path().join("x.000001/shard.json"), newer).unwrap();
    for refused in [
        Recording::open(dir.path()).unwrap_err(),
        Recording::salvage(dir.path(), |_, _| ()).unwrap_err(),
        builder("x").resume(dir.path()).unwrap_err(),
        builder("y")
            .create(dir.path())
            .map(drop)
            .map_or_else(|error| error, |()| Recording::open(dir.path()).unwrap_err()),
    ] {
        assert!(!refused.is_damage(), "{refused}");
        assert!(refused.to_string().contains("version 3") && refused.to_string().contains("9.0.0"), "{refused}");
    }
    let dir = tempdir().unwrap();
    record(dir.path(), "x");
    fs::write(dir.path().join("x.end.json"), newer.replace("shard", "end")).unwrap();
    let refused = Recording::open(dir.path()).unwrap_err();
    assert!(!refused.is_damage() && refused.to_string().contains("x.end.json has version 3"), "{refused}");
}

#[cfg(unix)]
#[test]
fn a_pipe_in_place_of_a_file_is_named_and_hangs_nothing() {
    for file in ["x.000001/0.safetensors", "x.000001/shard.json", "x.end.json"] {
        let dir = tempdir().unwrap();
        record(dir.path(), "x");
        let path = dir.path().join(file);
        fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let verified = Recording::open(dir.path()).and_then(|recording| {
            recording.check_files().unwrap_err();
            recording.get("a", &[25]).unwrap_err();
            recording.verify(|_, _| ())
        });
        for refused in [verified.unwrap_err(), builder("x").resume(dir.path()).unwrap_err()] {
            assert!(refused.is_damage() && refused.to_string().contains("it is a pipe, not a file"), "{refused}");
            assert!(refused.to_string().contains(file), "{refused}");
        }
        let (_, lost) = Recording::salvage(dir.path(), |_, _| ()).unwrap();
        assert_eq!(lost.len(), 1, "{lost:?}");
    }
}

#[test]
fn a_lane_has_a_name_that_files_can_have() {
    let dir = tempdir().unwrap();
    let long = "l".repeat(129);
    for name in [&long, "", ".", "a/b", "a\0b", "a.b", "\u{e9}"] {
        let refused = builder(name).create(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("it must be 1 to 128 letters, digits, - and _"), "{refused}");
    }
    record(dir.path(), &long[1..]);
    assert_eq!(Recording::open(dir.path()).unwrap().rows(), 60);
}

/// The messages of an error and of its sources.
fn chain(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect()
}

#[test]
fn no_error_says_its_cause_twice() {
    let dir = tempdir().unwrap();
    let missing = dir.path().join("missing");
    let builder = || activation_store::RingStore::builder().component("a", 2).batch_size(8).window(32);
    let closed = builder().build().unwrap();
    closed.close();
    let write = move || closed.extend(Array2::<f32>::zeros((1, 2)), "a").map(drop);
    let refused = write().unwrap_err();
    // A producer fails with the end of another store.
    let store = builder().build().unwrap();
    let mut minibatches = store.minibatches();
    let failed = store.spawn_producer("replica", move |_| write()).unwrap().join().unwrap_err();
    let read = minibatches.next_timeout(std::time::Duration::from_secs(60)).unwrap_err();
    assert_eq!(failed.to_string(), "producer \"replica\" failed: the store is closed");
    assert_eq!(chain(&read), chain(&*failed));
    assert!(chain(&refused).len() == 2 && chain(&*failed).len() == 2, "the end of a store is a source");
    let errors: [Box<dyn std::error::Error>; 8] = [
        Box::new(refused.error.clone()),
        Box::new(refused),
        Box::new(failed),
        Box::new(read),
        Box::new(activation_store::SpawnError::Thread(std::io::Error::other("no thread is left"))),
        Box::new(Recording::open(&missing).unwrap_err()),
        Box::new(activation_store::RingStore::builder().resume(&missing).unwrap_err()),
        Box::new(activation_store::RecordingError::from(
            activation_store::RingStore::builder().resume(&missing).unwrap_err(),
        )),
    ];
    for error in &errors {
        let messages = chain(&**error);
        for (number, message) in messages.iter().enumerate() {
            assert!(!messages[..number].iter().any(|before| before.contains(message.as_str())), "{messages:?}");
        }
    }
}
