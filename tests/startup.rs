//! A store with a window of 2 GiB is built before its memory is there, is ended in the middle of its start, and gives its memory
//! back. There is only one test, because it watches the memory of the whole process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::thread;

use activation_store::{RingStore, RingStoreBuilder};
use common::{assert_exactly, bytes, drain, resident, rows, watchdog};
use tokio::runtime::Builder;

const FEATURES: usize = 256;
const WINDOW: usize = 2 << 30;

fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", FEATURES).batch_size(4096).memory(WINDOW).seed(1)
}

fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        thread::yield_now();
    }
}

/// Starts a thread that writes until the store takes no more rows.
fn write_until_gone(store: &RingStore) -> thread::JoinHandle<()> {
    let producer = store.producer().unwrap();
    let batch = rows(0..256, FEATURES).into_shared();
    thread::spawn(move || while producer.extend_blocking(batch.clone(), 0).is_ok() {})
}

#[test]
fn a_large_window_costs_nothing_before_its_rows_come_nor_after_its_store_ends() {
    let available = bytes("/proc/meminfo", "MemAvailable:");
    if available < 6 << 30 {
        eprintln!("skipped: it needs 6 GiB of memory, and {available} bytes are available");
        return;
    }
    watchdog(|| {
        let before = resident();
        let little = before + WINDOW / 8;
        let gone = || wait_until(|| resident() < little);

        // No memory is there before the first row.
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        assert!(resident() < little, "{} bytes more", resident() - before);
        let write = store.extend(rows(0..5000, FEATURES), 0).unwrap();
        assert_eq!(write.wait().unwrap().rows, 5000);
        store.close();
        assert_exactly(0..5000, &drain(&mut minibatches));
        drop((store, minibatches));
        gone();

        // This store is aborted before its writer has dealt all rows.
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        drop(store.extend(rows(0..10, FEATURES), 0).unwrap());
        store.abort();
        assert_eq!(drain(&mut minibatches).len(), 0);
        drop((store, minibatches));
        gone();

        // These stores are aborted or dropped while the memory comes with the first rows.
        for abort in [true, false] {
            let store = builder().build().unwrap();
            let mut minibatches = store.minibatches();
            let writing = write_until_gone(&store);
            wait_until(|| resident() > little);
            if abort {
                store.abort();
                assert_eq!(drain(&mut minibatches).len(), 0);
            }
            drop((store, minibatches));
            writing.join().unwrap();
            gone();
        }

        // A runtime shuts down while the memory comes. The store goes on.
        let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let inside = runtime.enter();
        let store = builder().build().unwrap();
        drop(inside);
        let writing = write_until_gone(&store);
        wait_until(|| resident() > little);
        drop(runtime);
        let accepted = store.stats().components[0].accepted;
        wait_until(|| store.stats().components[0].accepted > accepted);
        store.abort();
        drop(store);
        writing.join().unwrap();
        gone();
    });
}
