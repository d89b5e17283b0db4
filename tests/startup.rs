//! A store with a window of 2 GiB is built before its memory is there, is ended in the middle of its start, and gives its memory
//! back. There is only one test, because it watches the memory of the whole process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::mpsc;
use std::thread;

use activation_store::{RingStore, RingStoreBuilder};
use common::{assert_exactly, bytes, drain, resident, rows, watchdog};
use tokio::runtime::{Builder, Runtime};

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

/// Makes a runtime whose blocking pool is busy until a message is sent or the sender is dropped.
fn busy_runtime() -> (Runtime, mpsc::Sender<()>) {
    let runtime = Builder::new_multi_thread().worker_threads(1).max_blocking_threads(1).build().unwrap();
    let (release, released) = mpsc::channel();
    runtime.spawn_blocking(move || released.recv());
    (runtime, release)
}

#[test]
fn a_large_window_costs_nothing_before_its_writer_starts_nor_after_its_store_ends() {
    let available = bytes("/proc/meminfo", "MemAvailable:");
    if available < 6 << 30 {
        eprintln!("skipped: it needs 6 GiB of memory, and {available} bytes are available");
        return;
    }
    watchdog(|| {
        let before = resident();
        let little = before + WINDOW / 8;
        let gone = || wait_until(|| resident() < little);

        // The writer cannot start, but the store is built and takes rows.
        let (runtime, release) = busy_runtime();
        let store = builder().runtime(runtime.handle().clone()).build().unwrap();
        let mut minibatches = store.minibatches();
        let write = store.extend(rows(0..5000, FEATURES), 0).unwrap();
        assert!(resident() < little, "{} bytes more", resident() - before);
        drop(release);
        assert_eq!(write.wait().unwrap().rows, 5000);
        store.close();
        assert_exactly(0..5000, &drain(&mut minibatches));
        drop((store, minibatches, runtime));
        gone();

        // This store is aborted before its writer starts.
        let (runtime, release) = busy_runtime();
        let store = builder().runtime(runtime.handle().clone()).build().unwrap();
        let mut minibatches = store.minibatches();
        let write = store.extend(rows(0..10, FEATURES), 0).unwrap();
        store.abort();
        assert!(resident() < little, "{} bytes more", resident() - before);
        drop(release);
        assert!(write.wait().unwrap_err().is_closed());
        assert_eq!(drain(&mut minibatches).len(), 0);
        drop((store, minibatches, runtime));
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
        let store = builder().runtime(runtime.handle().clone()).build().unwrap();
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
