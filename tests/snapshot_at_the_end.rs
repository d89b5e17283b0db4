//! Snapshots of a store that has ended, while a consumer takes its last minibatches.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use activation_store::{Form, Minibatches, RingStore};
use common::{rows, watchdog};

/// A store with 16,384 rows, all of which can be ready at once.
fn filled() -> RingStore {
    let store = RingStore::builder().component("a", 128).batch_size(2048).window(8192).ready_frames(8);
    let store = store.build().unwrap();
    store.extend(rows(0..16_384, 128), "a").unwrap().wait().unwrap();
    store
}

/// Runs `meanwhile` while snapshots are taken, one after the other.
fn while_snapshots_are_taken<T>(saving: &Minibatches, meanwhile: impl FnOnce() -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|threads| {
        threads.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                begun.store(true, Ordering::SeqCst);
                // One while another is written is refused.
                let _ = saving.snapshot(dir.path(), Form::Full);
            }
        });
        while !begun.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let result = meanwhile();
        done.store(true, Ordering::SeqCst);
        result
    })
}

#[test]
fn a_snapshot_ends_no_loop_before_its_last_minibatch() {
    watchdog(|| {
        for _ in 0..5 {
            let store = filled();
            let (mut draining, saving) = (store.minibatches(), store.minibatches());
            close(&store);
            let taken: usize = while_snapshots_are_taken(&saving, || {
                draining.blocking().map(|minibatch| minibatch.unwrap().rows()).sum()
            });
            assert_eq!(taken, 16_384);
        }
    });
}

#[test]
fn a_snapshot_brings_no_row_back_that_was_discarded() {
    watchdog(|| {
        for _ in 0..5 {
            let store = filled();
            let mut minibatches = store.minibatches();
            close(&store);
            while_snapshots_are_taken(&minibatches, || store.empty());
            assert!(minibatches.blocking().next().is_none());
            let stats = store.stats();
            let counts = &stats.components[0];
            assert_eq!((counts.accepted, counts.dropped.emptied, counts.resident), (16_384, 16_384, 0), "{stats:?}");
        }
    });
}

/// Closes a store, and waits until its writer has made everything ready and ended.
fn close(store: &RingStore) {
    store.close();
    while store.stats().frames_open > 0 {
        thread::yield_now();
    }
}
