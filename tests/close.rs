//! Promise 8: a store ends cleanly in every way that it can end, and no caller is left waiting.
#![allow(clippy::unwrap_used)]

mod common;

use std::thread;
use std::time::Duration;

use activation_store::{ClosedBy, IndexError, ReadError, RingStore, RingStoreBuilder, WriteError};
use common::{LIMIT, assert_adds_up, assert_exactly, drain, finish, ids, rounds, rows, watchdog};
use futures::StreamExt;
use futures::executor::block_on;

fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", 2).batch_size(10).window(40).ready_frames(2).queue_rows(20)
}

fn closed_by(error: &WriteError) -> ClosedBy {
    match error {
        WriteError::Closed(closed) => closed.by,
        other => panic!("not closed but {other}"),
    }
}

#[test]
fn close_serves_what_is_left_then_ends() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let handle = store.extend(rows(0..123, 2), 0).unwrap();
        store.close();
        assert!(store.is_closed());
        let refused = store.extend(rows(0..5, 2), 0).unwrap_err();
        assert_eq!(closed_by(&refused.error), ClosedBy::Close);
        assert_eq!(refused.into_batch().to_f32(), rows(0..5, 2));
        assert_eq!(closed_by(&store.producer().unwrap_err()), ClosedBy::Close);
        let served = drain(&mut minibatches);
        assert_eq!(served.iter().map(Vec::len).collect::<Vec<_>>(), [[10; 12].as_slice(), &[3]].concat());
        assert_exactly(0..123, &served);
        assert_eq!(handle.wait().unwrap().rows, 123);
        // Every consumer gets the end again if it asks again.
        assert!(minibatches.blocking().next().is_none());
        assert!(store.minibatches().blocking().next().is_none());
        assert!(minibatches.next_timeout(Duration::ZERO).unwrap().is_none());
        store.close();
        assert_eq!(store.get(0).unwrap_err(), IndexError::Ended);
        assert!(store.is_empty());
        assert_adds_up(&store.stats());
    });
}

#[test]
fn drop_last_drops_the_partial_minibatch_and_counts_it() {
    watchdog(|| {
        let store = builder().drop_last(true).build().unwrap();
        drop(store.extend(rows(0..123, 2), 0).unwrap());
        let served = finish(&store);
        assert_eq!(served.len(), 12);
        let stats = store.stats();
        assert_eq!((stats.components[0].served, stats.components[0].dropped.total()), (120, 3));
        assert_adds_up(&stats);
    });
}

#[test]
fn ordinals_count_minibatches() {
    watchdog(|| {
        let store = builder().build().unwrap();
        drop(store.extend(rows(0..123, 2), 0).unwrap());
        store.close();
        let ordinals: Vec<u64> = store.minibatches().blocking().map(|minibatch| minibatch.unwrap().ordinal()).collect();
        assert_eq!(ordinals, (0..13).collect::<Vec<_>>());
    });
}

#[test]
fn dropping_the_last_writer_closes() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let producer = store.producer().unwrap();
        let clone = store.clone();
        drop(store.extend(rows(0..50, 2), 0).unwrap());
        drop(store);
        drop(clone);
        // A lane is still open.
        drop(producer.extend(rows(50..77, 2), 0).unwrap());
        drop(producer);
        assert_exactly(0..77, &drain(&mut minibatches));
    });
}

#[test]
fn an_empty_store_ends_at_once() {
    watchdog(|| {
        let store = builder().build().unwrap();
        assert!(finish(&store).is_empty());
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        drop(store);
        assert!(drain(&mut minibatches).is_empty());
    });
}

#[test]
fn flush_resolves_when_everything_handed_over_before_is_in_the_ring() {
    watchdog(|| {
        let store = builder().window(400).build().unwrap();
        store.flush().wait().unwrap();
        for at in (0..150).step_by(5) {
            drop(store.extend(rows(at..at + 5, 2), 0).unwrap());
        }
        store.flush().wait().unwrap();
        assert_eq!(store.len(), 150);
        block_on(store.flush()).unwrap();
    });
}

#[test]
fn flush_waits_while_the_ring_is_full_but_not_longer() {
    watchdog(|| {
        let store = builder().build().unwrap();
        drop(store.extend(rows(0..60, 2), 0).unwrap());
        let mut flush = store.flush();
        drop(store.extend(rows(60..100, 2), 0).unwrap());
        assert_eq!(flush.wait_timeout(Duration::from_millis(10)), None);
        let mut minibatches = store.minibatches();
        let mut taken = 0;
        loop {
            if flush.wait_timeout(Duration::from_millis(1)).is_some() {
                break;
            }
            taken += minibatches.next_timeout(LIMIT).unwrap().unwrap().rows();
        }
        assert!(taken <= 60);
    });
}

#[test]
fn flush_after_close_does_not_wait_for_consumers() {
    watchdog(|| {
        let store = builder().build().unwrap();
        drop(store.extend(rows(0..40, 2), 0).unwrap());
        let mut minibatches = store.minibatches();
        store.close();
        store.flush().wait().unwrap();
        assert_exactly(0..40, &drain(&mut minibatches));
        store.flush().wait().unwrap();
    });
}

#[test]
fn a_flush_may_be_polled_after_it_has_resolved() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut flush = store.flush();
        for _ in 0..3 {
            assert_eq!(flush.wait_timeout(LIMIT), Some(Ok(())));
        }
        store.abort();
        let mut flush = store.flush();
        for _ in 0..3 {
            assert_eq!(closed_by(&flush.wait_timeout(LIMIT).unwrap().unwrap_err()), ClosedBy::Abort);
        }
    });
}

#[test]
fn abort_discards_and_wakes_every_caller() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let first = store.extend(rows(0..10, 2), 0).unwrap();
        assert_eq!(first.wait().unwrap().rows, 10);
        drop(store.extend(rows(10..150, 2), 0).unwrap());
        let pending = store.extend(rows(150..160, 2), 0).unwrap();
        let flush = store.flush();
        while store.stats().frames_ready < 2 {
            thread::yield_now();
        }
        let blocked = thread::spawn({
            let store = store.clone();
            move || store.extend_blocking(rows(160..260, 2), 0)
        });
        let room = thread::spawn({
            let store = store.clone();
            move || store.reserve(0, 1).unwrap().wait().map(drop)
        });
        store.abort();
        assert_eq!(closed_by(&pending.wait().unwrap_err()), ClosedBy::Abort);
        assert_eq!(closed_by(&flush.wait().unwrap_err()), ClosedBy::Abort);
        assert_eq!(closed_by(&room.join().unwrap().unwrap_err()), ClosedBy::Abort);
        if let Err(refused) = blocked.join().unwrap() {
            assert_eq!(closed_by(&refused.error), ClosedBy::Abort);
        }
        // A consumer that was made before the abort gets the end. A consumer that was made after it gets an error.
        assert!(drain(&mut minibatches).is_empty());
        let mut late = store.minibatches();
        assert!(matches!(late.next_timeout(LIMIT), Err(ReadError::Aborted)));
        assert!(matches!(late.blocking().next(), Some(Err(ReadError::Aborted))));
        assert!(late.blocking().next().is_none());
        let stats = store.stats();
        assert_adds_up(&stats);
        let component = &stats.components[0];
        assert_eq!((component.resident, component.queued, component.served), (0, 0, 0), "{stats:?}");
        assert_eq!(component.accepted, component.dropped.total());
        assert_eq!(stats.frames_ready, 0);
        assert!(store.get(0).is_err());
        store.empty();
        store.abort();
        store.close();
    });
}

#[test]
fn a_consumer_that_waits_for_a_minibatch_sees_the_end() {
    watchdog(|| {
        for end in [RingStore::close, RingStore::abort] {
            for _ in 0..50 {
                let store = builder().build().unwrap();
                thread::scope(|scope| {
                    for _ in 0..3 {
                        let mut minibatches = store.minibatches();
                        scope.spawn(move || assert!(drain(&mut minibatches).is_empty()));
                    }
                    end(&store);
                });
            }
        }
    });
}

#[test]
fn abort_after_close_discards_what_is_left() {
    watchdog(|| {
        for _ in 0..200 {
            let store = builder().build().unwrap();
            let mut minibatches = store.minibatches();
            drop(store.extend(rows(0..20, 2), 0).unwrap());
            store.close();
            // The writer may or may not have ended by now: all 20 rows fit the ready frames.
            store.abort();
            while minibatches.blocking().next().is_some() {}
            let stats = store.stats();
            assert_adds_up(&stats);
            assert_eq!((stats.components[0].resident, stats.frames_ready), (0, 0), "{stats:?}");
        }
    });
}

/// An abort must leave nothing behind in any state of the writer, even if the writer is just ending.
#[test]
fn abort_leaves_nothing_whenever_it_comes() {
    watchdog(|| {
        for round in 0..500 {
            let store = builder().build().unwrap();
            let minibatches = store.minibatches();
            drop(store.extend(rows(0..round % 30, 2), 0).unwrap());
            store.close();
            // Wait until the last row is ready, or almost.
            while store.stats().frames_ready < (round % 30).div_ceil(10).min(2) {
                std::hint::spin_loop();
            }
            for _ in 0..round % 64 {
                std::hint::spin_loop();
            }
            if round % 2 == 0 {
                drop(minibatches)
            } else {
                store.abort()
            }
            while !store.is_empty() {
                // The abort is on its way.
                thread::yield_now();
            }
            let stats = store.stats();
            assert_eq!(stats.frames_ready, 0);
            assert_adds_up(&stats);
        }
    });
}

#[test]
fn consumers_gone_producers_get_closed_not_a_hang() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let minibatches = store.minibatches();
        let second = minibatches.clone();
        let pending = store.extend(rows(0..500, 2), 0).unwrap();
        let blocked = thread::spawn({
            let store = store.clone();
            move || {
                let mut at = 500;
                loop {
                    match store.extend_blocking(rows(at..at + 100, 2), 0) {
                        Ok(()) => at += 100,
                        Err(refused) => return refused.error,
                    }
                }
            }
        });
        let awaiting = thread::spawn({
            let producer = store.producer().unwrap();
            move || {
                let mut at = 0;
                loop {
                    let outcome = match producer.extend(rows(at..at + 7, 2), 0) {
                        Ok(handle) => block_on(handle),
                        Err(refused) => Err(refused.error),
                    };
                    match outcome {
                        Ok(_) => at += 7,
                        Err(error) => return error,
                    }
                }
            }
        });
        drop(minibatches);
        assert!(!store.is_closed());
        drop(second);
        assert_eq!(closed_by(&pending.wait().unwrap_err()), ClosedBy::NoConsumers);
        assert_eq!(closed_by(&awaiting.join().unwrap()), ClosedBy::NoConsumers);
        assert_eq!(closed_by(&blocked.join().unwrap()), ClosedBy::NoConsumers);
        let refused = store.extend(rows(0..1, 2), 0).unwrap_err();
        assert!(refused.to_string().contains("no consumer"), "{refused}");
        assert!(store.minibatches().blocking().next().is_none());
        assert_adds_up(&store.stats());
    });
}

#[test]
fn nothing_is_served_once_abort_has_returned() {
    watchdog(|| {
        for round in rounds() {
            let store = builder().build().unwrap();
            let mut minibatches = store.minibatches();
            drop(store.extend(rows(0..100, 2), 0).unwrap());
            (0..round % 50).for_each(|_| thread::yield_now());
            store.abort();
            assert!(drain(&mut minibatches).is_empty());
            let stats = store.stats();
            assert_adds_up(&stats);
            assert_eq!((stats.components[0].served, stats.components[0].resident), (0, 0));
        }
    });
}

#[test]
fn producers_gone_consumers_get_the_end() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let consumers: Vec<_> = (0..3)
            .map(|_| {
                let mut minibatches = store.minibatches();
                thread::spawn(move || drain(&mut minibatches))
            })
            .collect();
        let producers: Vec<_> = (0..3_usize)
            .map(|lane| {
                let producer = store.producer().unwrap();
                thread::spawn(move || {
                    for at in (lane * 300..(lane + 1) * 300).step_by(15) {
                        producer.extend_blocking(rows(at..at + 15, 2), 0).unwrap();
                    }
                })
            })
            .collect();
        drop(store);
        for producer in producers {
            producer.join().unwrap();
        }
        let served: Vec<_> = consumers.into_iter().flat_map(|consumer| consumer.join().unwrap()).collect();
        assert_exactly(0..900, &served);
    });
}

#[test]
fn a_store_without_consumers_can_be_closed_and_dropped() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let pending = store.extend(rows(0..500, 2), 0).unwrap();
        store.close();
        drop(store);
        // No consumer can make room for these rows.
        assert_eq!(closed_by(&pending.wait().unwrap_err()), ClosedBy::NoConsumers);
    });
}

#[test]
fn empty_discards_and_goes_on() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let pending = store.extend(rows(0..500, 2), 0).unwrap();
        store.empty();
        assert_eq!(pending.wait().unwrap().rows, 500);
        assert_eq!(store.len(), 0);
        let stats = store.stats();
        assert_eq!((stats.components[0].accepted, stats.components[0].dropped.total()), (500, 500));
        assert_eq!(stats.frames_ready, 0);
        assert!(matches!(minibatches.next_timeout(Duration::ZERO), Err(ReadError::Timeout(_))));
        drop(store.extend(rows(500..777, 2), 0).unwrap());
        store.close();
        assert_exactly(500..777, &drain(&mut minibatches));
        store.empty();
    });
}

#[test]
fn empty_while_closed_discards_what_was_left() {
    watchdog(|| {
        for rows_left in [5, 35, 95] {
            let store = builder().build().unwrap();
            drop(store.extend(rows(0..rows_left, 2), 0).unwrap());
            store.close();
            store.empty();
            assert!(drain(&mut store.minibatches()).is_empty());
            assert_eq!(store.stats().components[0].dropped.total(), rows_left as u64);
        }
    });
}

#[test]
fn minibatches_outlive_their_store() {
    watchdog(|| {
        let store = builder().build().unwrap();
        drop(store.extend(rows(0..40, 2), 0).unwrap());
        store.close();
        let mut kept: Vec<_> = store.minibatches().blocking().map(|minibatch| minibatch.unwrap()).collect();
        drop(store);
        let served = thread::spawn(move || {
            kept[0].view_mut::<f32>("a").unwrap().mapv_inplace(|value| value + 1000.0);
            let served: Vec<_> = kept.iter().map(|minibatch| ids(minibatch, 0)).collect();
            (served, kept)
        });
        let (mut served, _kept) = served.join().unwrap();
        served[0].iter_mut().for_each(|id| *id -= 1000);
        assert_exactly(0..40, &served);
    });
}

#[test]
fn next_timeout_gives_up_in_time_and_loses_nothing() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let error = minibatches.next_timeout(Duration::from_millis(2)).unwrap_err();
        assert!(error.is_timeout());
        assert_eq!(error.to_string(), "no minibatch was ready within 2ms");
        drop(store.extend(rows(0..40, 2), 0).unwrap());
        let first = minibatches.next_timeout(Duration::MAX).unwrap().unwrap();
        store.close();
        let mut served = drain(&mut minibatches);
        served.push(ids(&first, 0));
        assert_exactly(0..40, &served);
    });
}

#[test]
fn several_consumers_share_each_minibatch_going_to_one() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let minibatches = store.minibatches();
        let consumers: Vec<_> = (0..4)
            .map(|i| {
                let mut minibatches = minibatches.clone();
                thread::spawn(move || {
                    if i % 2 == 0 {
                        drain(&mut minibatches)
                    } else {
                        block_on(minibatches.map(|minibatch| ids(&minibatch.unwrap(), 0)).collect())
                    }
                })
            })
            .collect();
        drop(minibatches);
        for at in (0..3000).step_by(30) {
            store.extend_blocking(rows(at..at + 30, 2), 0).unwrap();
        }
        store.close();
        let served: Vec<_> = consumers.into_iter().flat_map(|consumer| consumer.join().unwrap()).collect();
        assert_eq!(served.len(), 300);
        assert_exactly(0..3000, &served);
        assert_eq!(store.stats().minibatches_served, 300);
    });
}
