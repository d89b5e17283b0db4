//! No caller is left asleep: every wait ends as soon as what it waits for has come.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use activation_store::{Merge, Minibatches, RingStore, RingStoreBuilder};
use common::{LIMIT, Random, rows, watchdog};

fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", 1).batch_size(10).window(10).ready_frames(1)
}

/// The consumer starts to wait just as a minibatch arrives, over and over.
#[test]
fn no_arrival_is_missed() {
    watchdog(|| {
        let store = builder().batch_size(1).window(1).build().unwrap();
        let taken = Arc::new(AtomicUsize::new(0));
        let (mut minibatches, count) = (store.minibatches(), taken.clone());
        let consumer = thread::spawn(move || {
            let mut random = Random::new(2);
            for minibatch in minibatches.blocking() {
                drop(minibatch.unwrap());
                count.fetch_add(1, Ordering::SeqCst);
                (0..random.below(2000)).for_each(|_| std::hint::spin_loop());
            }
        });
        for sent in 0..5000 {
            while taken.load(Ordering::SeqCst) < sent {
                thread::yield_now();
            }
            drop(store.append(vec![0.0_f32], 0).unwrap());
        }
        store.close();
        consumer.join().unwrap();
    });
}

/// Fewer rows leave the queue than a caller is woken for while the writer works: it is woken once the writer stops.
#[test]
fn a_caller_is_woken_before_the_writer_waits_for_consumers() {
    watchdog(|| {
        let store = builder().queue_rows(800).build().unwrap();
        let mut minibatches = store.minibatches();
        let blocked = thread::spawn({
            let store = store.clone();
            move || {
                store.extend_blocking(rows(0..825, 1), 0).unwrap();
                store.extend_blocking(rows(825..826, 1), 0).unwrap();
            }
        });
        while store.stats().components[0].queued != 805 {
            thread::yield_now();
        }
        drop(minibatches.next_timeout(LIMIT).unwrap().unwrap());
        blocked.join().unwrap();
    });
}

#[test]
fn a_caller_is_woken_before_the_writer_waits_for_another_lane() {
    watchdog(|| {
        let store = builder().window(20_000).queue_rows(4000).merge(Merge::RoundRobin).build().unwrap();
        let _minibatches = store.minibatches();
        let (first, second) = (store.producer().unwrap(), store.producer().unwrap());
        let blocked = thread::spawn(move || {
            second.extend_blocking(rows(0..4010, 1), 0).unwrap();
            second.extend_blocking(rows(0..1, 1), 0).unwrap();
            second
        });
        while store.stats().components[0].queued < 4010 {
            thread::yield_now();
        }
        drop(first.extend(rows(0..64, 1), 0).unwrap());
        drop(blocked.join().unwrap());
    });
}

#[test]
fn a_flush_is_answered_while_the_writer_serves_the_rest() {
    watchdog(|| {
        let store = builder().window(100).build().unwrap();
        let _minibatches = store.minibatches();
        let _ = store.extend(rows(0..40, 1), 0).unwrap().wait().unwrap();
        store.close();
        while store.stats().frames_ready == 0 {
            thread::yield_now();
        }
        for _ in 0..200 {
            store.flush().wait().unwrap();
        }
    });
}

/// The runtime has no thread to spare, so the writer cannot tell anybody.
#[test]
fn callers_are_woken_although_the_writer_has_not_started() {
    let abort = |store: &RingStore, minibatches: Minibatches| {
        store.abort();
        drop(minibatches);
    };
    for end in [abort, |_: &RingStore, minibatches| drop(minibatches)] {
        watchdog(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
            let (free, busy) = mpsc::channel::<()>();
            drop(runtime.spawn_blocking(move || busy.recv()));
            let store = builder().queue_rows(10).runtime(runtime.handle().clone()).build().unwrap();
            let minibatches = store.minibatches();
            let blocked = thread::spawn({
                let store = store.clone();
                move || {
                    store.extend_blocking(rows(0..100, 1), 0)?;
                    store.extend_blocking(rows(0..100, 1), 0)
                }
            });
            while store.stats().components[0].queued < 100 {
                thread::yield_now();
            }
            end(&store, minibatches);
            assert!(blocked.join().unwrap().unwrap_err().error.is_closed());
            drop(free);
        });
    }
}
