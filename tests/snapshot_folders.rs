//! A folder of snapshots: what counts as a snapshot, and which run may save into it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use activation_store::{Form, Minibatches, RingStore, RingStoreBuilder, SnapshotError, Snapshots};
use ndarray::Array2;
use tempfile::tempdir;

fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", 1).batch_size(8).window(64)
}

fn filled(store: &RingStore) -> Minibatches {
    let minibatches = store.minibatches();
    for _ in 0..4 {
        drop(store.extend_pass([("a", Array2::<f32>::ones((20, 1)))]).unwrap());
    }
    minibatches
}

fn take(minibatches: &mut Minibatches) {
    let _ = minibatches.blocking().next().unwrap().unwrap();
}

fn ks(dir: &Path) -> Vec<u64> {
    Snapshots::new(dir).list().unwrap().into_iter().map(|(k, _)| k).collect()
}

#[test]
fn what_is_not_whole_is_not_counted_and_stays() {
    for form in [Form::Light, Form::Full] {
        let dir = tempdir().unwrap();
        let snapshots = Snapshots::new(dir.path());
        let store = builder().build().unwrap();
        let mut minibatches = filled(&store);
        take(&mut minibatches);
        let whole = minibatches.snapshot(dir.path(), form).unwrap().wait().unwrap();
        fs::create_dir(dir.path().join("snapshot-9")).unwrap();
        fs::create_dir(dir.path().join("snapshot-10")).unwrap();
        fs::copy(whole.join("snapshot.jsonl"), dir.path().join("snapshot-10/snapshot.jsonl")).unwrap();
        fs::write(dir.path().join("snapshot-11"), "a file").unwrap();
        fs::create_dir(dir.path().join("snapshot-007")).unwrap();
        if form == Form::Full {
            take(&mut minibatches);
            let cut = minibatches.snapshot(dir.path(), form).unwrap().wait().unwrap();
            let rows = fs::OpenOptions::new().write(true).open(cut.join("component-0.safetensors")).unwrap();
            rows.set_len(rows.metadata().unwrap().len() - 1).unwrap();
        }
        assert_eq!(snapshots.list().unwrap(), [(1, whole.clone())]);
        let others = snapshots.not_whole().unwrap();
        let says = |name: &str| {
            let found = others.iter().find(|(path, _)| path.ends_with(name)).unwrap();
            found.1.to_string()
        };
        assert!(says("snapshot-9").contains("snapshot.jsonl: it is missing"), "{others:?}");
        assert!(says("snapshot-10").contains("it is snapshot-1:"), "{others:?}");
        assert!(says("snapshot-11").contains("not a folder"), "{others:?}");
        if form == Form::Full {
            assert!(says("snapshot-2").contains("component-0.safetensors: it has"), "{others:?}");
        }
        assert!(snapshots.prune(1).unwrap().is_empty());
        assert_eq!(snapshots.list().unwrap().len(), 1);
        assert_eq!(snapshots.not_whole().unwrap().len(), others.len());
        // The newest is refused, and the error names the whole one.
        let refused = RingStore::builder().resume(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("snapshot-11") && refused.contains("snapshot-1: resume from that"), "{refused}");
        assert!(RingStore::builder().resume(&whole).is_ok());
    }
}

#[test]
fn a_folder_that_does_not_exist_has_no_snapshots() {
    let dir = tempdir().unwrap();
    let snapshots = Snapshots::new(dir.path().join("not yet"));
    assert!(snapshots.list().unwrap().is_empty());
    assert!(snapshots.not_whole().unwrap().is_empty());
    assert!(snapshots.prune(1).unwrap().is_empty());
}

#[test]
fn a_run_does_not_save_among_the_snapshots_of_another() {
    let dir = tempdir().unwrap();
    let first = builder().build().unwrap();
    let mut minibatches = filled(&first);
    take(&mut minibatches);
    take(&mut minibatches);
    let saved = minibatches.snapshot(dir.path(), Form::Light).unwrap().wait().unwrap();

    let other = builder().build().unwrap();
    let mut others = filled(&other);
    take(&mut others);
    for form in [Form::Light, Form::Full] {
        let refused = others.snapshot(dir.path(), form).unwrap().wait().unwrap_err();
        assert!(matches!(refused, SnapshotError::OtherRun { minibatches: 2, .. }), "{refused}");
        assert!(refused.to_string().contains(&dir.path().display().to_string()), "{refused}");
    }
    assert_eq!(ks(dir.path()), [2]);

    // The same run, resumed, saves there.
    let resumed = builder().resume(dir.path()).unwrap();
    let mut minibatches = filled(&resumed);
    take(&mut minibatches);
    let _ = minibatches.snapshot(dir.path(), Form::Light).unwrap().wait().unwrap();
    assert_eq!(ks(dir.path()), [2, 3]);

    // Resumed from an earlier one, it does not: what came later is of a run that was given up.
    let again = builder().resume(saved).unwrap();
    let minibatches = filled(&again);
    let refused = minibatches.snapshot(dir.path(), Form::Light).unwrap().wait().unwrap_err();
    assert!(matches!(refused, SnapshotError::Later { minibatches: 3, taken: 2, .. }), "{refused}");
    fs::rename(dir.path().join("snapshot-3"), dir.path().join("given up")).unwrap();
    let _ = minibatches.snapshot(dir.path(), Form::Light).unwrap().wait().unwrap();
}

#[test]
fn a_snapshot_of_a_release_that_named_no_run_can_be_resumed_and_followed() {
    let dir = tempdir().unwrap();
    let store = builder().build().unwrap();
    let mut minibatches = filled(&store);
    take(&mut minibatches);
    let saved = minibatches.snapshot(dir.path(), Form::Light).unwrap().wait().unwrap().join("snapshot.jsonl");
    let text = fs::read_to_string(&saved).unwrap();
    let body = text.lines().next().unwrap();
    let (start, end) = (body.find("\"run\":").unwrap(), body.find("\"minibatches\":").unwrap());
    let body = format!("{}{}", &body[..start], &body[end..]);
    let sum = twox_hash::XxHash3_64::oneshot(body.as_bytes());
    fs::write(&saved, format!("{body}\n{{\"xxh3\":\"{sum:016x}\"}}\n")).unwrap();
    let resumed = builder().resume(dir.path()).unwrap();
    let mut minibatches = filled(&resumed);
    take(&mut minibatches);
    let _ = minibatches.snapshot(dir.path(), Form::Light).unwrap().wait().unwrap();
    assert_eq!(ks(dir.path()), [1, 2]);
}
