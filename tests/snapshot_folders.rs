//! A folder of snapshots: what counts as a snapshot, and which run may save into it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use activation_store::{Form, Minibatches, RingStore, RingStoreBuilder, Snapshots};
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
