//! Writers end with their stores and leave no thread behind. This test is alone in its file, because it counts the threads of the
//! process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use activation_store::{Batch, RingStore, TensorStore};
use common::{rows, watchdog};

/// Counts the threads of writers. Finds them by their name, of which Linux keeps 15 bytes.
fn writers() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.ok()?.path().join("comm")).ok();
    tasks.filter_map(name).filter(|name| name.starts_with("activation-stor")).count()
}

/// Waits until there are `count` writers. A new thread sets its own name, and an ended thread may stay for a moment.
fn until_writers_are(count: usize, what: &str) {
    common::watchdog_for(what, move || {
        while writers() != count {
            std::thread::yield_now();
        }
    });
}

fn until_no_writer_is_left(what: &str) {
    until_writers_are(0, what);
}

#[test]
fn no_thread_outlives_its_store() {
    let build = || RingStore::builder().component("a", 2).batch_size(4).window(16).queue_rows(8).build().unwrap();

    let store = build();
    until_writers_are(1, "the name is as expected");
    drop(store);
    until_no_writer_is_left("a store never used");

    let store = build();
    let minibatches = store.minibatches();
    drop(store.extend(rows(0..100, 2), 0).unwrap());
    drop(store);
    drop(minibatches);
    until_no_writer_is_left("a full store, consumer dropped last");

    let store = build();
    drop(store.extend(rows(0..100, 2), 0).unwrap());
    drop(store.producer().unwrap());
    drop(store);
    until_no_writer_is_left("a full store without consumers");

    let store = build();
    let handle = store.extend(rows(0..100, 2), 0).unwrap();
    store.close();
    watchdog(move || {
        let mut minibatches = store.minibatches();
        let kept = minibatches.blocking().map(|minibatch| minibatch.unwrap()).collect::<Vec<_>>();
        drop(minibatches);
        until_no_writer_is_left("a drained store of which all is kept");
        assert_eq!(kept.len(), 25);
        assert!(handle.is_done());
        drop(store);
    });

    let store = build();
    store.abort();
    until_no_writer_is_left("an aborted store that is kept");
    drop(store);

    let store = build();
    drop(store.minibatches());
    until_no_writer_is_left("a store left by its consumers");
    drop(store);

    struct Bomb(Vec<f32>, std::thread::ThreadId);
    impl AsRef<[f32]> for Bomb {
        fn as_ref(&self) -> &[f32] {
            assert_eq!(std::thread::current().id(), self.1, "the bomb was read");
            &self.0
        }
    }
    let bomb = || Batch::from_owner(Bomb(vec![0.0; 20], std::thread::current().id()), 2).unwrap();
    let store = build();
    let tensor = TensorStore::builder().component("a", 2).max_items(100).build().unwrap();
    assert!(store.extend(bomb(), 0).unwrap().wait().is_err());
    assert!(tensor.extend(bomb(), 0).unwrap().wait().is_err());
    until_no_writer_is_left("poisoned stores that are kept");
    drop((store, tensor));

    let tensor = TensorStore::builder().component("a", 2).max_items(100).build().unwrap();
    let handle = tensor.extend(rows(0..100, 2), 0).unwrap();
    let epoch = tensor.epoch(10).unwrap();
    drop(tensor);
    until_no_writer_is_left("a tensor store whose epoch goes on");
    assert_eq!((epoch.count(), handle.wait().unwrap().rows), (10, 100));

    // These writers have threads of their own, although the stores are built in a runtime.
    for multi_thread in [false, true] {
        let runtime = match multi_thread {
            false => tokio::runtime::Builder::new_current_thread().build().unwrap(),
            true => tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap(),
        };
        let store = {
            let _inside = runtime.enter();
            build()
        };
        until_writers_are(1, "a store that is built in a runtime");
        drop(runtime);
        let _ = store.extend(rows(0..10, 2), 0).unwrap().wait().unwrap();
        drop(store);
        until_no_writer_is_left("a store that outlived its runtime");
    }

    // A store that is built in a runtime is dropped in a task that panics.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let store = {
        let _inside = runtime.enter();
        build()
    };
    let panicked = runtime.block_on(async {
        let task = tokio::spawn(async move {
            let _store = store;
            panic!("this task panics");
        });
        task.await.unwrap_err().is_panic()
    });
    assert!(panicked);
    until_no_writer_is_left("a store that was dropped by a panic");
    // A store that is built in this runtime is dropped in another one.
    let store = {
        let _inside = runtime.enter();
        build()
    };
    drop(store.extend(rows(0..100, 2), 0).unwrap());
    drop(runtime);
    let other = tokio::runtime::Builder::new_current_thread().build().unwrap();
    other.block_on(async move { drop(store) });
    until_no_writer_is_left("a store that was dropped in another runtime");

    // Thousands of stores come and go.
    for number in 0..if cfg!(debug_assertions) { 2_000 } else { 10_000 } {
        let store = build();
        if number % 2 == 0 {
            drop(store.extend(rows(0..3, 2), 0).unwrap());
        }
    }
    until_no_writer_is_left("thousands of stores");

    // Many writers run at once.
    let stores: Vec<_> = (0..50).map(|_| build()).collect();
    until_writers_are(50, "fifty writers");
    stores.iter().for_each(|store| drop(store.extend(rows(0..100, 2), 0).unwrap()));
    drop(stores);
    until_no_writer_is_left("fifty stores");
}
