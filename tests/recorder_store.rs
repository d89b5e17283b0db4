//! A recorder is a store. Components come one by one, stay aligned, and are read from the disk.
#![allow(clippy::unwrap_used)]

use activation_store::{ActivationStore, Batch, Index, IndexError, Recorder, Recording, WriteError};
use ndarray::{Array2, array, s};
use tempfile::TempDir;

fn recorder(dir: &TempDir) -> Recorder {
    Recorder::builder().component("a", 2).component("b", 1).shard_rows(5).resume(dir.path()).unwrap()
}

fn rows(rows: usize, features: usize, value: f32) -> Batch {
    Array2::from_elem((rows, features), value).into()
}

#[test]
fn components_that_come_one_by_one_are_a_pass_when_all_have_come() {
    let dir = TempDir::new().unwrap();
    let recorder = recorder(&dir);
    let store: &dyn ActivationStore = &recorder;
    let first = store.extend(rows(3, 1, -1.0), 1).unwrap();
    assert!(!first.is_done());
    let refused = store.extend(rows(3, 1, -2.0), 1).unwrap_err();
    assert!(matches!(refused.error, WriteError::PassDoubles { .. }), "{refused}");
    let refused = store.extend(rows(2, 2, 1.0), 0).unwrap_err();
    assert!(matches!(refused.error, WriteError::PassRows { first_rows: 3, rows: 2, .. }), "{refused}");
    let refused = store.extend_pass(vec![(0, rows(3, 2, 9.0)), (1, rows(3, 1, 9.0))]).unwrap_err();
    assert!(matches!(refused.error, WriteError::PassLacks { .. }), "{refused}");
    assert_eq!(refused.batches.len(), 2);
    let second = store.extend(rows(3, 2, 1.0), 0).unwrap();
    assert_eq!(first.wait().unwrap().rows, 3);
    assert_eq!(second.wait().unwrap().first_row, 0);
    // Only one component comes, so the pass is discarded.
    let lost = store.extend(rows(1, 2, 5.0), 0).unwrap();
    assert_eq!(recorder.finish().unwrap().rows, 3);
    assert!(matches!(lost.wait(), Err(WriteError::Closed(_))));
    let recording = Recording::open(dir.path()).unwrap();
    assert_eq!(recording.get("a", &[2]).unwrap().to_f32(), array![[1.0, 1.0]]);
    assert_eq!(recording.get("b", &[2]).unwrap().to_f32(), array![[-1.0]]);
}

#[test]
fn rows_in_whole_shards_can_be_read_and_empty_discards_the_other_rows() {
    let dir = TempDir::new().unwrap();
    let recorder = recorder(&dir);
    let pass = |value: f32| drop(recorder.extend_pass([("a", rows(3, 2, value)), ("b", rows(3, 1, -value))]).unwrap());
    (0..5).for_each(|value| pass(value as f32));
    recorder.flush().unwrap();
    assert_eq!(recorder.len(), 15);
    assert_eq!(recorder.get((7, 0).into()).unwrap(), array![2.0, 2.0].into_dyn());
    let read = recorder.get(Index::from(s![4..;9, 1, 0])).unwrap();
    assert_eq!(read, array![-1.0, -4.0].into_dyn());
    assert!(matches!(recorder.get((15, 0).into()), Err(IndexError::OutOfRange { len: 15, .. })));

    pass(100.0);
    recorder.empty();
    assert_eq!(recorder.len(), 15);
    pass(5.0);
    assert_eq!(recorder.flush().unwrap().passes, 6);
    assert_eq!(recorder.get((15, 0).into()).unwrap(), array![5.0, 5.0].into_dyn());

    let damaged = dir.path().join("lane.000000/0.safetensors");
    std::fs::write(&damaged, "nothing").unwrap();
    let error = recorder.get((0, 0).into()).unwrap_err();
    assert!(error.to_string().contains(damaged.to_str().unwrap()), "{error}");
}
