//! Promise 1: `extend` never waits, and copies no row on the caller's thread.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use activation_store::{ActivationStore, Batch, Merge, RingStore, TensorStore};
use common::{finish, rows, watchdog};

/// Memory that notes which thread reads it and which thread drops it. It can hold up its reader.
struct Watched {
    values: Vec<f32>,
    readers: Arc<Mutex<Vec<ThreadId>>>,
    droppers: Arc<Mutex<Vec<ThreadId>>>,
    /// If set, every thread except `maker` waits for a message before it sees the values.
    gate: Option<Mutex<Receiver<()>>>,
    maker: ThreadId,
}

impl AsRef<[f32]> for Watched {
    fn as_ref(&self) -> &[f32] {
        self.readers.lock().unwrap().push(thread::current().id());
        if let Some(gate) = self.gate.as_ref().filter(|_| thread::current().id() != self.maker) {
            let _ = gate.lock().unwrap().recv();
        }
        &self.values
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.droppers.lock().unwrap().push(thread::current().id());
    }
}

type Threads = Arc<Mutex<Vec<ThreadId>>>;

fn watched(n: usize, gate: Option<Receiver<()>>) -> (Batch, Threads, Threads) {
    let (readers, droppers) = (Threads::default(), Threads::default());
    let owner = Watched {
        values: vec![0.25; n * 2],
        readers: readers.clone(),
        droppers: droppers.clone(),
        gate: gate.map(Mutex::new),
        maker: thread::current().id(),
    };
    let batch = Batch::from_owner(owner, 2).unwrap();
    // The constructor asked for the length.
    readers.lock().unwrap().clear();
    (batch, readers, droppers)
}

fn ring() -> RingStore {
    RingStore::builder().component("a", 2).batch_size(8).window(1024).queue_rows(16).build().unwrap()
}

fn tensor() -> TensorStore {
    TensorStore::builder().component("a", 2).max_items(100_000).build().unwrap()
}

#[test]
fn no_row_is_read_or_freed_on_the_callers_thread() {
    watchdog(|| {
        let (ring, tensor) = (ring(), tensor());
        let me = thread::current().id();
        for store in [&ring as &dyn ActivationStore, &tensor] {
            for n in [1, 7, 100] {
                let (batch, readers, droppers) = watched(n, None);
                let _ = store.extend(batch, 0).unwrap().wait().unwrap();
                let (readers, droppers) = (readers.lock().unwrap(), droppers.lock().unwrap());
                assert!(!readers.is_empty() && readers.iter().all(|&thread| thread != me));
                assert_eq!(droppers.len(), 1);
                assert_ne!(droppers[0], me);
            }
        }
    });
}

/// The writer is stuck in the middle of a batch, and still no caller waits.
#[test]
fn extend_returns_while_the_writer_is_held_up() {
    watchdog(|| {
        let hold_up = |store: &dyn ActivationStore| -> (Sender<()>, activation_store::WriteHandle) {
            let (go, gate) = channel();
            let (batch, readers, _) = watched(10, Some(gate));
            let held_up = store.extend(batch, 0).unwrap();
            while readers.lock().unwrap().is_empty() {
                thread::yield_now();
            }
            (go, held_up)
        };
        let ring = ring();
        let (go, held_up) = hold_up(&ring);
        let mut handles = Vec::new();
        for at in 0..50 {
            handles.push(ring.extend(rows(at * 5..at * 5 + 5, 2), 0).unwrap());
            handles.push(ring.append(vec![0.0_f32; 2], 0).unwrap());
        }
        // These calls do not wait either.
        drop(ring.producer().unwrap());
        drop(ring.flush());
        let _ = ring.stats();
        let _ = ring.len();
        assert!(ring.try_extend(rows(0..5, 2), 0).unwrap_err().error.is_full());
        let minibatches = ring.minibatches();
        assert!(!held_up.is_done() && handles.iter().all(|handle| !handle.is_done()));
        drop(go);
        for handle in handles {
            let _ = handle.wait().unwrap();
        }
        assert!(held_up.is_done());
        drop(minibatches);

        let tensor = tensor();
        let (go, held_up) = hold_up(&tensor);
        let handles: Vec<_> = (0..100).map(|at| tensor.extend(rows(at * 5..at * 5 + 5, 2), 0).unwrap()).collect();
        assert!(!held_up.is_done() && handles.iter().all(|handle| !handle.is_done()));
        drop(go);
        assert_eq!(tensor.len(), 510);
    });
}

#[test]
fn extend_returns_while_the_ring_and_the_queue_are_full() {
    for merge in [Merge::Arrival, Merge::RoundRobin] {
        watchdog(move || {
            let store = RingStore::builder()
                .component("a", 2)
                .batch_size(8)
                .window(64)
                .queue_rows(16)
                .merge(merge)
                .build()
                .unwrap();
            let handles: Vec<_> = (0..500).map(|at| store.extend(rows(at * 4..at * 4 + 4, 2), 0).unwrap()).collect();
            assert!(!handles[499].is_done());
            common::assert_exactly(0..2000, &finish(&store));
        });
    }
}

/// Another thread waits until the writer empties the store, and still no other caller waits.
#[test]
fn extend_returns_while_another_thread_empties_the_store() {
    watchdog(|| {
        let store = TensorStore::builder().component("a", 2).max_items(10).build().unwrap();
        let (go, gate) = channel();
        let (batch, readers, _) = watched(10, Some(gate));
        let held_up = store.extend(batch, 0).unwrap();
        while readers.lock().unwrap().is_empty() {
            thread::yield_now();
        }
        let emptying = thread::spawn({
            let store = store.clone();
            move || store.empty()
        });
        // There is no room until the other thread has begun to empty the store.
        let handle = loop {
            match store.extend(rows(0..10, 2), 0) {
                Ok(handle) => break handle,
                Err(refused) => assert!(refused.error.is_full()),
            }
        };
        assert!(!held_up.is_done() && !handle.is_done());
        drop(go);
        emptying.join().unwrap();
        assert_eq!((held_up.wait().unwrap().rows, handle.wait().unwrap().first_row), (10, 0));
        assert_eq!(store.len(), 10);
        assert_eq!(store.get((9, 0, 0)).unwrap().first(), Some(&9.0));
    });
}
