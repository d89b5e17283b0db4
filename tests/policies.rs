//! A full store that may not wait refuses the newest rows or discards the oldest.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::thread;

use activation_store::{RingStore, RingStoreBuilder, WhenFull};
use common::{LIMIT, assert_adds_up, drain, ids, rows, watchdog};

fn builder(when_full: WhenFull) -> RingStoreBuilder {
    RingStore::builder().component("a", 2).batch_size(10).window(40).ready_frames(2).queue_rows(20).when_full(when_full)
}

fn assert_distinct(served: &[Vec<usize>]) -> HashSet<usize> {
    let distinct: HashSet<usize> = served.iter().flatten().copied().collect();
    assert_eq!(distinct.len(), served.iter().map(Vec::len).sum::<usize>(), "a row was served twice");
    distinct
}

#[test]
fn reject_refuses_what_does_not_fit_and_serves_the_rest_once() {
    watchdog(|| {
        let store = builder(WhenFull::Reject).build().unwrap();
        let mut minibatches = store.minibatches();
        let (mut accepted, mut refused) = (HashSet::new(), 0);
        for at in (0..1000).step_by(7) {
            match store.extend(rows(at..at + 7, 2), "a") {
                Ok(handle) => {
                    accepted.extend(at..at + 7);
                    drop(handle);
                }
                Err(no_room) => {
                    assert!(no_room.error.is_full(), "{no_room}");
                    assert_eq!(ids_of(&no_room.into_batch()), (at..at + 7).collect::<Vec<_>>());
                    refused += 1;
                }
            }
        }
        // About 45 rows fit the ring, and 20 fit the queue. No consumer takes rows.
        assert!(refused > 100, "{refused}");
        let blocking = store.extend_blocking(rows(2000..2021, 2), 0);
        assert!(blocking.unwrap_err().error.is_full(), "it does not wait either");
        store.close();
        assert_eq!(assert_distinct(&drain(&mut minibatches)), accepted);
        let stats = store.stats();
        assert_adds_up(&stats);
        assert_eq!((stats.components[0].accepted, stats.components[0].dropped.total()), (accepted.len() as u64, 0));
    });
}

fn ids_of(batch: &activation_store::Batch) -> Vec<usize> {
    batch.to_f32().column(0).iter().map(|&id| id as usize).collect()
}

#[test]
fn drop_oldest_never_waits_and_counts_what_it_drops() {
    watchdog(|| {
        let store = builder(WhenFull::DropOldest).build().unwrap();
        let mut minibatches = store.minibatches();
        for at in (0..5000).step_by(50) {
            // No consumer takes rows, but every write is done.
            let written = store.extend(rows(at..at + 50, 2), 0).unwrap().wait().unwrap();
            assert_eq!(written.first_row, at as u64);
            let stats = store.stats();
            assert_adds_up(&stats);
            assert!(stats.components[0].resident <= 60, "{stats:?}");
        }
        store.close();
        let served = drain(&mut minibatches);
        let distinct = assert_distinct(&served);
        let stats = store.stats();
        assert_adds_up(&stats);
        let component = &stats.components[0];
        assert_eq!((component.accepted, component.served), (5000, distinct.len() as u64));
        assert_eq!(component.dropped.total(), 5000 - distinct.len() as u64);
        // The newest rows are still there. The rows that were ready first are gone.
        assert!(distinct.contains(&4999) && !distinct.iter().any(|&id| id < 4800), "{distinct:?}");
    });
}

#[test]
fn drop_oldest_keeps_components_aligned_and_rows_unique_with_a_slow_consumer() {
    watchdog(|| {
        let store = builder(WhenFull::DropOldest).component("b", 3).build().unwrap();
        let mut minibatches = store.minibatches();
        let writing = thread::spawn(move || {
            for at in (0..20_000).step_by(20) {
                drop(store.extend(rows(at..at + 20, 2), 0).unwrap());
                store.extend_blocking(rows(at..at + 20, 3), 1).unwrap();
            }
            store.close();
            store
        });
        let mut served = Vec::new();
        let mut ordinals = Vec::new();
        for minibatch in minibatches.blocking() {
            let minibatch = minibatch.unwrap();
            assert_eq!(ids(&minibatch, 0), ids(&minibatch, 1));
            served.push(ids(&minibatch, 0));
            ordinals.push(minibatch.ordinal());
            (0..ordinals.len() % 5 * 20).for_each(|_| thread::yield_now());
        }
        let store = writing.join().unwrap();
        let distinct = assert_distinct(&served);
        assert!(ordinals.is_sorted_by(|a, b| a < b), "{ordinals:?}");
        let stats = store.stats();
        assert_adds_up(&stats);
        for component in &stats.components {
            assert_eq!((component.accepted, component.served), (20_000, distinct.len() as u64));
            assert_eq!(component.resident, 0);
        }
    });
}

#[test]
fn drop_oldest_drops_nothing_while_the_consumer_keeps_up() {
    watchdog(|| {
        let store = builder(WhenFull::DropOldest).build().unwrap();
        let mut minibatches = store.minibatches();
        let mut served = Vec::new();
        for at in 0..1000 {
            let _ = store.extend(rows(at..at + 1, 2), 0).unwrap().wait().unwrap();
            while store.stats().frames_ready > 0 {
                served.push(ids(&minibatches.next_timeout(LIMIT).unwrap().unwrap(), 0));
            }
        }
        store.close();
        served.extend(drain(&mut minibatches));
        common::assert_exactly(0..1000, &served);
    });
}
