//! Promise 9: a panic in the writer reaches every waiter and every later call, with its cause. Rows that lost their counterparts are
//! reported, and do not end the training loop.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use activation_store::{
    ActivationStore, Batch, ClosedBy, IndexError, ReadError, Recorder, RecordingError, RingStore, RingStoreBuilder,
    TensorStore, WriteError,
};
use common::{LIMIT, Lent, drain, rows, watchdog};
use futures::executor::block_on;

/// Memory that fails the writer, in one of three ways.
struct Bomb {
    values: Vec<f32>,
    kind: Kind,
    armed: Arc<AtomicBool>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Read,
    Shrink,
    Drop,
}

const KINDS: [Kind; 3] = [Kind::Read, Kind::Shrink, Kind::Drop];

impl AsRef<[f32]> for Bomb {
    fn as_ref(&self) -> &[f32] {
        let armed = self.armed.load(Ordering::SeqCst);
        assert!(!(armed && self.kind == Kind::Read), "the bomb was read");
        if armed && self.kind == Kind::Shrink { &self.values[..1] } else { &self.values }
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.kind == Kind::Drop && self.armed.load(Ordering::SeqCst) && !thread::panicking() {
            panic!("the bomb was dropped");
        }
    }
}

fn bomb(kind: Kind, rows: usize) -> Batch {
    let armed = Arc::new(AtomicBool::new(false));
    let values = vec![0.5; rows * 2];
    let owner = Bomb { values, kind, armed: armed.clone() };
    let batch = Batch::from_owner(owner, 2).unwrap();
    armed.store(true, Ordering::SeqCst);
    batch
}

fn cause(kind: Kind) -> &'static str {
    match kind {
        Kind::Read => "the bomb was read",
        Kind::Shrink => "the owner of a batch of 8 rows of 2 features shows only 1 values",
        Kind::Drop => "the bomb was dropped",
    }
}

fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", 2).batch_size(10).window(40).ready_frames(2).queue_rows(20)
}

#[track_caller]
fn assert_poisoned(error: &WriteError, kind: Kind) {
    assert!(error.is_poisoned(), "{error:?}");
    assert!(error.to_string().contains(cause(kind)), "{error}");
}

#[test]
fn the_panic_reaches_every_waiter_of_a_ring_store() {
    for kind in KINDS.repeat(20) {
        watchdog(move || {
            let store = builder().build().unwrap();
            // All callers wait before the bomb goes off.
            let mut consumer = store.minibatches();
            let reading = thread::spawn(move || consumer.blocking().next().unwrap().unwrap_err());
            let mut stream = store.minibatches();
            let streaming = thread::spawn(move || block_on(stream.next()).unwrap().unwrap_err());
            let before = store.extend(rows(0..5, 2), 0).unwrap();
            let its_own = store.extend(bomb(kind, 8), 0).unwrap();
            let outcome = store.extend(rows(5..10, 2), 0).map_err(|refused| refused.error);
            let outcomes: Vec<_> = [before.wait(), its_own.wait(), outcome.and_then(|handle| handle.wait())].into();
            // The handle was resolved before, or its rows are lost with the store.
            match &outcomes[0] {
                Ok(written) => assert_eq!(written.rows, 5),
                Err(error) => assert_poisoned(error, kind),
            }
            assert_poisoned(outcomes[1].as_ref().unwrap_err(), kind);
            assert_poisoned(outcomes[2].as_ref().unwrap_err(), kind);
            for reader in [reading, streaming] {
                let error = reader.join().unwrap();
                assert!(matches!(&error, ReadError::Poisoned { cause: text } if text.contains(cause(kind))), "{error}");
            }
            // Every later call gets the panic, too.
            let refused = store.extend(rows(5..10, 2), 0).unwrap_err();
            assert_poisoned(&refused.error, kind);
            assert_eq!(refused.into_batch().rows(), 5);
            assert_poisoned(&store.extend_blocking(rows(5..10, 2), 0).unwrap_err().error, kind);
            assert_poisoned(&store.append(vec![0.0_f32; 2], 0).unwrap_err().error, kind);
            assert_poisoned(&store.flush().wait().unwrap_err(), kind);
            assert_poisoned(&store.producer().unwrap_err(), kind);
            assert!(matches!(store.get(0), Err(IndexError::Poisoned { .. })));
            assert!(matches!(store.minibatches().next_timeout(LIMIT), Err(ReadError::Poisoned { .. })));
            assert_poisoned(&store.reserve(0, 1).unwrap().wait().unwrap_err(), kind);
            assert!(store.is_closed());
            let _ = store.stats();
            store.empty();
            store.close();
            store.abort();
        });
    }
}

#[test]
fn the_panic_reaches_those_blocked_by_a_full_queue() {
    for kind in KINDS {
        watchdog(move || {
            let store = builder().build().unwrap();
            let mut minibatches = store.minibatches();
            drop(store.extend(rows(0..100, 2), 0).unwrap());
            let its_own = store.extend(bomb(kind, 8), 0).unwrap();
            let flush = store.flush();
            let blocked: Vec<_> = (0..2)
                .map(|_| {
                    let producer = store.producer().unwrap();
                    thread::spawn(move || {
                        loop {
                            if let Err(refused) = producer.extend_blocking(rows(0..100, 2), 0) {
                                return refused.error;
                            }
                        }
                    })
                })
                .collect();
            let error = loop {
                if let Err(error) = minibatches.next_timeout(LIMIT) {
                    break error;
                }
            };
            assert!(matches!(error, ReadError::Poisoned { .. }), "{error}");
            assert_poisoned(&its_own.wait().unwrap_err(), kind);
            assert_poisoned(&flush.wait().unwrap_err(), kind);
            for blocked in blocked {
                assert_poisoned(&blocked.join().unwrap(), kind);
            }
        });
    }
}

#[test]
fn a_get_under_way_gets_the_panic() {
    watchdog(|| {
        for _ in 0..30 {
            let store = builder().build().unwrap();
            let asking: Vec<_> = (0..2)
                .map(|_| {
                    let store = store.clone();
                    thread::spawn(move || while store.get(..).is_ok() {})
                })
                .collect();
            let _ = store.extend(bomb(Kind::Read, 8), 0).unwrap().wait().unwrap_err();
            for asking in asking {
                asking.join().unwrap();
            }
        }
    });
}

#[test]
fn the_panic_reaches_every_waiter_of_a_tensor_store() {
    for kind in KINDS.repeat(20) {
        watchdog(move || {
            let store = TensorStore::builder().component("a", 2).max_items(100).build().unwrap();
            let before = store.extend(rows(0..5, 2), 0).unwrap();
            let its_own = store.extend(bomb(kind, 8), 0).unwrap();
            let after = store.extend(rows(5..10, 2), 0).map_err(|refused| refused.error);
            assert_eq!(before.wait().unwrap().rows, 5);
            assert_poisoned(&its_own.wait().unwrap_err(), kind);
            assert_poisoned(&after.and_then(|handle| handle.wait()).unwrap_err(), kind);
            assert_poisoned(&store.extend(rows(5..10, 2), 0).unwrap_err().error, kind);
            let error = store.get(0).unwrap_err();
            assert!(matches!(&error, IndexError::Poisoned { cause: text } if text.contains(cause(kind))), "{error}");
            let error = store.epoch(4).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(cause(kind)), "{error}");
            // These calls return no error, but do not hang.
            store.shuffle();
            store.empty();
            let _ = store.len();
            let _ = store.current_activations_stored_per_component();
        });
    }
}

#[test]
fn what_the_writer_held_is_given_back_after_a_panic() {
    watchdog(|| {
        let returned = Arc::new(AtomicUsize::new(0));
        let lend = || {
            let owner = Lent { values: vec![0.0; 60], returned: returned.clone() };
            Batch::from_owner(owner, 2).unwrap()
        };
        let store = builder().build().unwrap();
        let tensor = TensorStore::builder().component("a", 2).max_items(100).build().unwrap();
        let mut handles = Vec::new();
        let mut refused = 0;
        for batch in [bomb(Kind::Read, 8), lend(), lend(), lend()] {
            handles.extend(store.extend(batch, 0).map_err(|_| refused += 1).ok());
        }
        for batch in [bomb(Kind::Read, 8), lend(), lend(), lend()] {
            handles.extend(tensor.extend(batch, 0).map_err(|_| refused += 1).ok());
        }
        for handle in handles {
            assert!(handle.wait().unwrap_err().is_poisoned());
        }
        while returned.load(Ordering::SeqCst) < 6 {
            thread::yield_now();
        }
    });
}

#[test]
fn minibatches_taken_before_the_panic_stay_good() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        drop(store.extend(rows(0..40, 2), 0).unwrap());
        let kept = minibatches.next_timeout(LIMIT).unwrap().unwrap();
        let before = common::ids(&kept, 0);
        let _ = store.extend(bomb(Kind::Read, 8), 0).unwrap().wait().unwrap_err();
        drop((store, minibatches));
        assert_eq!(common::ids(&kept, 0), before);
    });
}

#[test]
fn a_batch_of_a_lane_that_panics_on_drop_after_abort_hurts_no_caller() {
    watchdog(|| {
        let store = builder().build().unwrap();
        drop(store.extend(rows(0..100, 2), 0).unwrap());
        let its_own = store.extend(bomb(Kind::Drop, 8), 0).unwrap();
        let other = store.extend(rows(0..10, 2), 0).unwrap();
        store.abort();
        let _ = its_own.wait().unwrap_err();
        let _ = other.wait().unwrap_err();
        let mut minibatches = store.minibatches();
        // The store is aborted or poisoned, so it has ended.
        assert!(!matches!(minibatches.next_timeout(LIMIT), Ok(Some(_))));
    });
}

/// Several batches panic when they are dropped, not only one.
#[test]
fn several_panics_on_drop_leave_no_caller_waiting() {
    for abort in [false, true] {
        watchdog(move || {
            let store = builder().build().unwrap();
            let mut minibatches = store.minibatches();
            let mut handles = vec![store.extend(rows(0..200, 2), 0).unwrap()];
            handles.extend((0..3).map(|_| store.extend(bomb(Kind::Drop, 8), 0).unwrap()));
            handles.push(store.extend(rows(0..8, 2), 0).unwrap());
            let flush = store.flush();
            if abort {
                store.abort();
            }
            while let Ok(Some(_)) = minibatches.next_timeout(LIMIT) {}
            // The writer has ended in one way or the other. Some of these writes may have been done before.
            let outcomes: Vec<_> = handles.into_iter().map(|handle| handle.wait()).collect();
            assert!(outcomes.last().unwrap().is_err());
            let _ = flush.wait();

            let tensor = TensorStore::builder().component("a", 2).max_items(10_000).build().unwrap();
            let mut handles = vec![tensor.extend(rows(0..2000, 2), 0).unwrap()];
            // A refused batch comes back to this thread, which must not drop it.
            let bombs = (0..20).map(|_| tensor.extend(bomb(Kind::Drop, 8), 0));
            handles.extend(bombs.filter_map(|outcome| outcome.map_err(std::mem::forget).ok()));
            for handle in handles {
                let _ = handle.wait();
            }
            assert_poisoned(&tensor.extend(rows(0..8, 2), 0).unwrap_err().error, Kind::Drop);
        });
    }
}

/// Panics on drop even while another panic unwinds, unlike [`Bomb`]. That ends the process unless each batch is dropped on its own.
struct AlwaysPanics(Vec<f32>);

impl AsRef<[f32]> for AlwaysPanics {
    fn as_ref(&self) -> &[f32] {
        &self.0
    }
}

impl Drop for AlwaysPanics {
    fn drop(&mut self) {
        panic!("{}", cause(Kind::Drop));
    }
}

fn two_bombs() -> [(&'static str, Batch); 2] {
    ["a", "b"].map(|component| (component, Batch::from_owner(AlwaysPanics(vec![0.5; 16]), 2).unwrap()))
}

/// The writer drops both batches of a row in the same step. A second panic while the first one unwinds would end the process.
#[test]
fn two_components_that_panic_on_drop_at_once_poison_once() {
    type Write = fn(&RingStore);
    let writes: [Write; 3] = [
        |store| two_bombs().into_iter().for_each(|(component, batch)| drop(store.extend(batch, component).unwrap())),
        |store| drop(store.extend_pass(two_bombs()).unwrap()),
        // Later rows of the same pass are lost with the store.
        |store| (0..3).for_each(|_| drop(store.extend_pass(two_bombs()).map_err(std::mem::forget))),
    ];
    for write in writes {
        watchdog(move || {
            let store = pair().build().unwrap();
            write(&store);
            while !store.is_closed() {
                thread::yield_now();
            }
            assert_poisoned(&store.extend(rows(0..8, 2), "a").unwrap_err().error, Kind::Drop);
        });
    }
}

/// The rows wait in the queue, or for another component, when the store gives them up.
#[test]
fn passes_that_panic_on_drop_when_they_are_given_up_hurt_no_caller() {
    for end in [RingStore::abort, RingStore::empty, |store: &RingStore| drop(store.minibatches())] {
        for full in [false, true] {
            watchdog(move || {
                let store = pair().max_skew(1000).build().unwrap();
                if full {
                    drop(store.extend_pass([("a", rows(0..200, 2)), ("b", rows(0..200, 2))]).unwrap());
                    drop(store.extend_pass(two_bombs()).unwrap());
                }
                let lane = store.producer().unwrap();
                let [(a, first), (_, second)] = two_bombs();
                drop(lane.extend(first, a).unwrap());
                drop(lane.extend(second, a).unwrap());
                let handle = store.extend_pass([("a", rows(0..200, 2)), ("b", rows(0..200, 2))]).unwrap();
                let flush = store.flush();
                end(&store);
                // The handle gets one outcome or the other, and so does every later call.
                let _ = (handle.wait(), flush.wait());
                while !store.is_closed() {
                    thread::yield_now();
                }
                assert!(store.extend(rows(0..8, 2), "a").is_err());
                common::assert_adds_up(&store.stats());
            });
        }
    }
}

#[test]
fn the_panic_is_the_last_item_of_a_stream() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let _ = store.extend(bomb(Kind::Read, 8), 0).unwrap().wait().unwrap_err();
        assert!(minibatches.blocking().next().unwrap().unwrap_err().is_poisoned());
        assert!(minibatches.blocking().next().is_none());
        assert!(block_on(minibatches.next()).is_none());
        // With a time limit, the consumer gets the panic each time.
        assert!(minibatches.next_timeout(LIMIT).unwrap_err().is_poisoned());
    });
}

fn pair() -> RingStoreBuilder {
    builder().component("b", 2)
}

#[test]
fn rows_that_lost_their_counterparts_refuse_no_other_batch() {
    watchdog(|| {
        let store = pair().build().unwrap();
        let mut minibatches = store.minibatches();
        let producer = store.producer().unwrap();
        let _ = producer.extend(rows(0..5, 2), "a").unwrap().wait().unwrap();
        drop(producer);
        let other = store.producer().unwrap();
        for at in (0..100).step_by(10) {
            other.extend_pass_blocking([("a", rows(at..at + 10, 2)), ("b", rows(at..at + 10, 2))]).unwrap();
            drop(minibatches.next_timeout(Duration::ZERO));
        }
        let stats = store.stats();
        assert_eq!((stats.components[0].dropped.unmatched, stats.components[1].dropped.unmatched), (5, 0));
    });
}

#[test]
fn a_flush_reports_rows_that_lost_their_counterparts() {
    watchdog(|| {
        let store = pair().build().unwrap();
        let producer = store.producer().unwrap();
        drop(producer.extend(rows(0..5, 2), "b").unwrap());
        drop(producer);
        // A flush waits for lanes that are about to end.
        let error = store.flush().wait().unwrap_err();
        assert!(matches!(error, WriteError::Unmatched { rows: 5, .. }));
        store.flush().wait().unwrap();
    });
}

#[test]
fn close_serves_whole_rows_and_ends_without_an_error() {
    watchdog(|| {
        let store = pair().max_skew(100).build().unwrap();
        let mut minibatches = store.minibatches();
        drop(store.extend(rows(0..30, 2), "a").unwrap());
        drop(store.extend(rows(0..25, 2), "b").unwrap());
        store.close();
        let served: usize = minibatches.blocking().map(|minibatch| minibatch.unwrap().rows()).sum();
        assert_eq!(served, 25);
        let error = store.flush().wait().unwrap_err();
        assert!(matches!(&error, WriteError::Unmatched { rows: 5, missing, .. } if missing.index == 1), "{error}");
        store.flush().wait().unwrap();
        let stats = store.stats();
        common::assert_adds_up(&stats);
        assert_eq!((stats.components[0].dropped.total(), stats.components[1].dropped.total()), (5, 0));
        assert!(drain(&mut minibatches).is_empty());
        assert_eq!(store.extend(rows(0..1, 2), 0).unwrap_err().error.closed_by(), Some(ClosedBy::Close));
    });
}

#[test]
fn the_panic_of_an_owner_is_every_later_error_of_a_recorder() {
    for kind in KINDS {
        watchdog(move || {
            let dir = tempfile::tempdir().unwrap();
            let recorder = Recorder::builder().component("a", 2).shard_rows(8).create(&dir).unwrap();
            recorder.extend_pass([("a", rows(0..8, 2))]).unwrap().wait().unwrap();
            let waits = recorder.extend_pass([("a", bomb(kind, 8))]).unwrap();
            let (returned, values) = (Arc::new(AtomicUsize::new(0)), vec![0.0; 16]);
            let lent = Batch::from_owner(Lent { values, returned: returned.clone() }, 2).unwrap();
            let behind = recorder.extend_pass([("a", lent)]);
            assert_poisoned(&waits.wait().unwrap_err(), kind);
            match behind {
                Ok(handle) => assert_poisoned(&handle.wait().unwrap_err(), kind),
                Err(refused) => assert_poisoned(&refused.error, kind),
            }
            assert_eq!(returned.load(Ordering::SeqCst), 1);
            assert_poisoned(&recorder.extend_pass([("a", rows(0..8, 2))]).unwrap_err().error, kind);
            assert_poisoned(&recorder.extend(rows(0..8, 2), "a").unwrap_err().error, kind);
            assert_poisoned(&recorder.failure().unwrap(), kind);
            recorder.empty();
            let error = |outcome| match outcome {
                Err(RecordingError::Write(error)) => error,
                other => panic!("{other:?}"),
            };
            assert_poisoned(&error(recorder.flush()), kind);
            assert_poisoned(&error(recorder.finish()), kind);
            // The shard that was whole before stays.
            let resumed = Recorder::builder().component("a", 2).shard_rows(8).resume(&dir).unwrap();
            assert!(resumed.resumed().rows >= 8);
        });
    }
}
