//! Promise 3: memory is bounded. A caller that would exceed the bound waits.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use activation_store::{Batch, Merge, RingStore, RingStoreBuilder};
use common::{LIMIT, Lent, assert_adds_up, assert_exactly, drain, finish, ids, rows, watchdog};
use futures::executor::block_on;

/// Without a consumer, the ring takes about 45 rows: half a window until the first minibatch, and three minibatches that are ready or
/// stuck.
fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", 2).batch_size(10).window(40).ready_frames(2).queue_rows(20)
}

/// Hands over 100 rows, which do not all fit, and lets the ring fill up. Returns the ids of the rows.
fn fill(store: &RingStore) -> usize {
    drop(store.extend(rows(0..100, 2), 0).unwrap());
    // 43 to 47 fit, depending on the order of the last run.
    while store.stats().components[0].resident < 43 {
        thread::yield_now();
    }
    100
}

#[test]
fn memory_in_the_ring_never_exceeds_window_and_ready_frames() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let used = fill(&store);
        let stats = store.stats();
        // Only the open frames and the ready frames hold rows.
        assert!(stats.components[0].resident <= 40 + 20, "{stats:?}");
        assert_eq!(stats.frames_open, 4);
        assert_eq!(stats.frames_ready, 2);
        assert_adds_up(&stats);
        assert_exactly(0..used, &finish(&store));
    });
}

#[test]
fn awaiting_callers_wait_until_a_consumer_makes_room() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let used = fill(&store);
        let mut handle = store.extend(rows(used..used + 5, 2), 0).unwrap();
        assert_eq!(handle.wait_timeout(Duration::from_millis(20)), None);
        let mut served = Vec::new();
        while !handle.is_done() {
            // At the end the rows are in the ring, and no other minibatch is ready.
            if let Ok(minibatch) = minibatches.next_timeout(Duration::from_millis(1)) {
                served.push(ids(&minibatch.unwrap(), 0));
            }
        }
        assert_eq!(handle.wait().unwrap().first_row, used as u64);
        store.close();
        served.extend(drain(&mut minibatches));
        assert_exactly(0..used + 5, &served);
    });
}

#[test]
fn try_extend_refuses_and_gives_the_batch_back() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let used = fill(&store);
        let refused = store.try_extend(rows(used..used + 20, 2), 0).unwrap_err();
        assert!(refused.error.is_full(), "{refused}");
        assert!(refused.to_string().contains("20 rows do not fit"), "{refused}");
        let batch = refused.into_batch();
        assert_eq!(batch.to_f32(), rows(used..used + 20, 2));
        // There is room again when a consumer takes rows.
        let mut batch = Some(batch);
        while let Some(left) = batch.take() {
            batch = store.try_extend(left, 0).err().map(|refused| refused.into_batch());
            // Nothing is ready while the writer still works on queued rows.
            let _ = minibatches.next_timeout(Duration::from_millis(1));
        }
    });
}

#[test]
fn the_queue_holds_its_bound_and_not_a_row_more() {
    watchdog(|| {
        let store = builder().merge(Merge::RoundRobin).build().unwrap();
        // The lane whose turn it is has no rows, so the rows of the other lane stay in the queue.
        let (_first, second) = (store.producer().unwrap(), store.producer().unwrap());
        let fits = |n| second.try_extend(rows(0..n, 2), 0).map_err(|refused| assert!(refused.error.is_full())).is_ok();
        assert_eq!([fits(15), fits(6), fits(5), fits(1)], [true, false, true, false]);
    });
}

#[test]
fn extend_blocking_blocks_until_the_queue_is_within_its_bound() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let used = fill(&store);
        let (sender, receiver) = std::sync::mpsc::channel();
        let producer = thread::spawn({
            let store = store.clone();
            move || {
                for at in (used..used + 400).step_by(20) {
                    store.extend_blocking(rows(at..at + 20, 2), 0).unwrap();
                    sender.send(at).unwrap();
                }
            }
        });
        let mut passed = 0;
        let mut served = Vec::new();
        while passed < 20 {
            passed += receiver.try_iter().count();
            let queued = store.stats().components[0].queued;
            // The queue has the rows from before, or at most its bound.
            assert!(queued <= used as u64, "{queued}");
            if let Ok(minibatch) = minibatches.next_timeout(Duration::from_millis(1)) {
                served.push(ids(&minibatch.unwrap(), 0));
            }
        }
        producer.join().unwrap();
        store.close();
        served.extend(drain(&mut minibatches));
        assert_exactly(0..used + 400, &served);
    });
}

/// The ring takes most of the batch. Then the next batch fits, although the first one is not done.
#[test]
fn part_of_a_batch_makes_room_too() {
    for _ in 0..20 {
        watchdog(|| {
            let store = builder().build().unwrap();
            store.extend_blocking(rows(0..60, 2), 0).unwrap();
            store.extend_blocking(rows(60..62, 2), 0).unwrap();
            assert!(store.stats().components[0].queued <= 20);
            assert_exactly(0..62, &finish(&store));
        });
    }
}

#[test]
fn a_batch_larger_than_the_queue_and_the_window_passes_through() {
    watchdog(|| {
        let store = builder().when_full(activation_store::WhenFull::Reject).build().unwrap();
        let mut minibatches = store.minibatches();
        let handle = store.try_extend(rows(0..5000, 2), "a").unwrap();
        store.close();
        assert_exactly(0..5000, &drain(&mut minibatches));
        assert_eq!(handle.wait().unwrap().rows, 5000);
    });
}

#[test]
fn a_handle_dropped_while_the_queue_is_full_keeps_its_place() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let used = fill(&store);
        let before = store.extend(rows(used..used + 10, 2), 0).unwrap();
        drop(store.extend(rows(used + 10..used + 20, 2), 0).unwrap());
        let after = store.extend(rows(used + 20..used + 30, 2), 0).unwrap();
        assert_exactly(0..used + 30, &finish(&store));
        assert_eq!(before.wait().unwrap().first_row, used as u64);
        assert_eq!(after.wait().unwrap().first_row, used as u64 + 20);
    });
}

#[test]
fn a_consumer_that_keeps_every_minibatch_never_starves_the_ring() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let producer = thread::spawn(move || {
            for at in (0..4000).step_by(25) {
                store.extend_blocking(rows(at..at + 25, 2), 0).unwrap();
            }
            store.stats()
        });
        let kept: Vec<_> = minibatches.blocking().map(|minibatch| minibatch.unwrap()).collect();
        producer.join().unwrap();
        assert_eq!(kept.len(), 400);
        // Each minibatch still has its own rows, so no frame was used twice.
        let served: Vec<_> = kept.iter().map(|minibatch| ids(minibatch, 0)).collect();
        assert_exactly(0..4000, &served);
    });
}

#[test]
fn returned_frames_are_used_again_and_lent_ones_are_counted() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let mut addresses = std::collections::HashSet::new();
        let mut sent = 0;
        for _ in 0..300 {
            store.extend_blocking(rows(sent..sent + 10, 2), 0).unwrap();
            sent += 10;
            if sent <= 40 {
                continue;
            }
            let minibatch = minibatches.next_timeout(LIMIT).unwrap().unwrap();
            assert_eq!(store.stats().frames_lent, 1);
            addresses.insert(minibatch.bytes(0).unwrap().as_ptr() as usize);
        }
        assert_eq!(store.stats().frames_lent, 0);
        // Four frames are open, two are ready, and the consumer has one.
        assert!(addresses.len() <= 7, "{} frames", addresses.len());
    });
}

#[test]
fn lent_memory_is_back_when_the_handle_resolves() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let returned = Arc::new(AtomicUsize::new(0));
        for batch in 0..3 {
            let owner = Lent { values: vec![1.0; 20], returned: returned.clone() };
            let handle = store.extend(Batch::from_owner(owner, 2).unwrap(), 0).unwrap();
            let _ = handle.wait().unwrap();
            assert_eq!(returned.load(Ordering::SeqCst), batch + 1);
        }
        // Rows that were set aside are released when their last component comes.
        let store = builder().component("b", 2).build().unwrap();
        let returned = Arc::new(AtomicUsize::new(0));
        for (component, released) in [(0, 0), (1, 2)] {
            let owner = Lent { values: vec![1.0; 20], returned: returned.clone() };
            let _ = store.extend(Batch::from_owner(owner, 2).unwrap(), component).unwrap().wait().unwrap();
            assert_eq!(returned.load(Ordering::SeqCst), released);
        }
    });
}

#[test]
fn a_reservation_says_whether_there_was_room_in_time() {
    watchdog(|| {
        let store = builder().build().unwrap();
        assert_eq!(store.reserve(0, 7).unwrap().wait().unwrap().rows(), 7);
        let unknown = store.reserve("no such component", 1).unwrap_err();
        assert!(unknown.to_string().contains("no component \"no such component\""), "{unknown}");
        let used = fill(&store);
        drop(store.extend(rows(used..used + 21, 2), 0).unwrap());
        let mut reservation = store.reserve(0, 5).unwrap();
        assert!(reservation.wait_timeout(Duration::ZERO).is_none());
        assert!(reservation.wait_timeout(Duration::from_millis(5)).is_none());
        let mut minibatches = store.minibatches();
        let waiter = thread::spawn(move || reservation.wait().unwrap().rows());
        for _ in 0..8 {
            let _ = minibatches.next_timeout(LIMIT).unwrap().unwrap();
        }
        assert_eq!(waiter.join().unwrap(), 5);
    });
}

/// Several callers wait for room, and some give up. The others must not lose their wake-up.
#[test]
fn giving_up_a_wait_leaves_the_others_waiting() {
    watchdog(|| {
        for _ in 0..50 {
            let store = builder().build().unwrap();
            let mut minibatches = store.minibatches();
            let used = fill(&store);
            drop(store.extend(rows(used..used + 30, 2), 0).unwrap());
            thread::scope(|scope| {
                for patience in [0, 100, 1000, 1_000_000_000] {
                    let mut reservation = store.reserve(0, 1).unwrap();
                    scope.spawn(move || reservation.wait_timeout(Duration::from_micros(patience)).is_some());
                }
                scope.spawn(|| drop(store.reserve(0, 1).unwrap().wait().unwrap()));
                for _ in 0..8 {
                    let _ = minibatches.next_timeout(LIMIT).unwrap().unwrap();
                }
            });
        }
    });
}

#[test]
fn a_slow_async_trainer_slows_its_awaiting_producer_down() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        block_on(async {
            let producer = async {
                for at in (0..2000).step_by(10) {
                    let _ = store.extend(rows(at..at + 10, 2), 0).unwrap().await.unwrap();
                    // At most this batch was queued. The other rows are in the bounded ring.
                    assert!(store.stats().components[0].resident <= 60);
                }
                store.close();
            };
            let consumer = async {
                let mut served = Vec::new();
                while let Some(minibatch) = minibatches.next().await {
                    served.push(ids(&minibatch.unwrap(), 0));
                }
                served
            };
            let ((), served) = futures::join!(producer, consumer);
            assert_exactly(0..2000, &served);
        });
    });
}
