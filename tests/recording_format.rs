//! The bytes of the files that describe a recording. Other releases and programs read them.
#![allow(clippy::unwrap_used)]

use std::fs;

use activation_store::{Recorder, Recording};
use ndarray::Array2;
use tempfile::TempDir;
use twox_hash::XxHash3_64;

/// What release 0.1.0 has written for [`record`].
const SHARD: &str = r#"{"shard":{"version":1,"lane":"lane","number":0,"first_row":0,"rows":3,"first_pass":0,"passes":1,"components":[{"name":"mlp","features":2,"dtype":"f32","file":"0.safetensors","checksum":"2d1a3c579a15eedd"}],"metadata":{"model":"of your own"},"written_by":"activation-store 0.1.0"},"checksum":"6cb9699babdbc49a"}"#;
const END: &str = r#"{"end":{"version":1,"lane":"lane","shards":1,"rows":3,"passes":1,"written_by":"activation-store 0.1.0"},"checksum":"40ab7fef7a1dac0d"}"#;

fn record() -> TempDir {
    let dir = TempDir::new().unwrap();
    let recorder = Recorder::builder().component("mlp", 2).metadata("model", "of your own").create(dir.path()).unwrap();
    drop(recorder.extend_pass([("mlp", Array2::<f32>::ones((3, 2)))]).unwrap());
    recorder.finish().unwrap();
    dir
}

#[test]
fn the_files_have_the_bytes_that_they_have_always_had() {
    let dir = record();
    for (file, name, golden) in [("lane.000000/shard.json", "shard", SHARD), ("lane.end.json", "end", END)] {
        let start = format!("{{\"{name}\":");
        let value = golden.strip_prefix(&start).unwrap().split(",\"checksum\":\"").collect::<Vec<_>>();
        // The last checksum is of the value, which names the release.
        let value = value[..value.len() - 1].join(",\"checksum\":\"").replace("0.1.0", env!("CARGO_PKG_VERSION"));
        let checksum = XxHash3_64::oneshot(value.as_bytes());
        let expected = format!("{start}{value},\"checksum\":\"{checksum:016x}\"}}");
        assert_eq!(fs::read_to_string(dir.path().join(file)).unwrap(), expected);
    }
}

#[test]
fn the_files_of_an_earlier_release_are_read_with_and_without_spaces() {
    let dir = record();
    let spaced = |golden: &str| {
        let value: serde_json::Value = serde_json::from_str(golden).unwrap();
        serde_json::to_string_pretty(&value).unwrap()
    };
    for (shard, end) in [(SHARD.to_owned(), END.to_owned()), (spaced(SHARD), spaced(END))] {
        fs::write(dir.path().join("lane.000000/shard.json"), shard).unwrap();
        fs::write(dir.path().join("lane.end.json"), end).unwrap();
        let recording = Recording::open(dir.path()).unwrap();
        recording.verify(|_, _| ()).unwrap();
        assert_eq!((recording.rows(), recording.lanes()["lane"].finished), (3, true));
        assert_eq!(recording.metadata()["model"], "of your own");
    }
}

#[test]
fn what_is_wrong_with_such_a_file_is_said() {
    let dir = record();
    let changes: [(&str, &str, &str); 5] = [
        ("", "", "EOF"),
        (SHARD, "{\"lane\":{}}", "missing field `shard`"),
        ("\"passes\":1", "\"passes\":2", "its checksum does not match"),
        (",\"passes\":1", "", "missing field `passes`"),
        ("\"version\":1", "\"version\":\"one\"", "invalid type"),
    ];
    let path = dir.path().join("lane.000000/shard.json");
    for (from, to, reason) in changes {
        let text = if from.is_empty() { String::new() } else { SHARD.replacen(from, to, 1) };
        fs::write(&path, text).unwrap();
        let error = Recording::open(dir.path()).unwrap_err();
        assert!(error.is_damage(), "{error}");
        let text = error.to_string();
        assert!(text.contains(reason) && text.contains(path.to_str().unwrap()), "{text}");
    }
    // A later version may have other fields, so its checksum cannot be computed.
    for (change, is_damage) in [(SHARD.to_owned(), true), (SHARD.replace(",\"passes\":1", ""), false)] {
        fs::write(&path, change.replacen("\"version\":1", "\"version\":7", 1)).unwrap();
        let error = Recording::open(dir.path()).unwrap_err();
        assert_eq!(error.is_damage(), is_damage, "{error}");
        assert!(is_damage || error.to_string().contains("version 7 of the format"), "{error}");
    }
}
