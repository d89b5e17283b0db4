//! The counters add up at every moment, and say which side waits for the other.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use activation_store::{Batch, Form, Merge, Minibatch, Minibatches, ReadError, RingStore, RingStoreBuilder, WhenFull};
use common::{LIMIT, assert_adds_up, drain, rows, watchdog};
use futures::{FutureExt, StreamExt};

fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", 2).component("b", 1).batch_size(10).window(40).ready_frames(2).queue_rows(20)
}

#[test]
fn the_counters_add_up_at_every_moment() {
    for when_full in [WhenFull::Wait, WhenFull::Reject, WhenFull::DropOldest] {
        watchdog(move || {
            let store = builder().when_full(when_full).max_skew(100_000).build().unwrap();
            let mut minibatches = store.minibatches();
            let (sampled, done) = (AtomicBool::new(false), AtomicBool::new(false));
            let (store, sampled, done) = (&store, &sampled, &done);
            thread::scope(|scope| {
                let sampling = scope.spawn(move || {
                    let mut before = store.stats();
                    while !done.load(Ordering::SeqCst) {
                        let stats = store.stats();
                        assert_adds_up(&stats);
                        // These counts never go down.
                        for (now, before) in stats.components.iter().zip(&before.components) {
                            assert!(now.accepted >= before.accepted && now.served >= before.served);
                            assert!(now.dropped.total() >= before.dropped.total());
                        }
                        assert!(stats.minibatches_served >= before.minibatches_served);
                        assert!(stats.frames_ready <= 2);
                        before = stats;
                        sampled.store(true, Ordering::SeqCst);
                    }
                });
                let minibatch = |next: Result<Minibatch, ReadError>| match next {
                    Ok(_) => true,
                    Err(error) => panic!("{error}"),
                };
                let consuming = scope.spawn(move || minibatches.blocking().map(minibatch).filter(|&is| is).count());
                let writing: Vec<_> = (0..2_usize)
                    .map(|lane| {
                        scope.spawn(move || {
                            let producer = store.producer().unwrap();
                            while !sampled.load(Ordering::SeqCst) {
                                thread::yield_now();
                            }
                            for at in (lane * 10_000..lane * 10_000 + 3000).step_by(12) {
                                // If rows are rejected, the components are no longer even. That does not matter here.
                                let _ = producer.extend_blocking(rows(at..at + 12, 2), 0);
                                let _ = producer.extend_blocking(rows(at..at + 12, 1), 1);
                            }
                        })
                    })
                    .collect();
                if when_full != WhenFull::Reject {
                    for _ in 0..20 {
                        store.empty();
                        thread::yield_now();
                    }
                }
                writing.into_iter().for_each(|writing| writing.join().unwrap());
                store.close();
                let served = consuming.join().unwrap();
                done.store(true, Ordering::SeqCst);
                sampling.join().unwrap();
                assert_eq!(served as u64, store.stats().minibatches_served);
            });
            assert_adds_up(&store.stats());
        });
    }
}

#[test]
fn each_number_is_what_it_says() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let expect = |accepted: [u64; 2], resident: [u64; 2], served: u64, dropped: [u64; 2]| {
            let stats = store.stats();
            assert_adds_up(&stats);
            for (i, component) in stats.components.iter().enumerate() {
                let name = ["a", "b"][i];
                assert_eq!(&*component.name, name);
                let got = (component.accepted, component.resident, component.served, component.dropped.total());
                assert_eq!(got, (accepted[i], resident[i], served, dropped[i]), "{name}");
                assert_eq!(component.queued, 0);
            }
            stats
        };
        let stats = expect([0; 2], [0; 2], 0, [0; 2]);
        assert_eq!((stats.frames_open, stats.frames_ready, stats.frames_lent), (4, 0, 0));
        let _ = store.extend(rows(0..36, 2), 0).unwrap().wait().unwrap();
        expect([36, 0], [36, 0], 0, [0; 2]);
        let _ = store.extend(rows(0..34, 1), 1).unwrap().wait().unwrap();
        let stats = expect([36, 34], [36, 34], 0, [0; 2]);
        assert_eq!(store.len(), 34);
        assert_eq!(stats.frames_ready, 2);
        let mut minibatches = store.minibatches();
        let kept = minibatches.next_timeout(LIMIT).unwrap().unwrap();
        let stats = expect([36, 34], [26, 24], 10, [0; 2]);
        assert_eq!((stats.frames_ready, stats.frames_lent, stats.minibatches_served), (1, 1, 1));
        drop(kept);
        assert_eq!(store.stats().frames_lent, 0);
        store.empty();
        expect([36, 34], [0, 0], 10, [26, 24]);
        // These are the counterparts of rows that are gone.
        let _ = store.extend(rows(34..36, 1), 1).unwrap().wait().unwrap();
        expect([36, 36], [0, 0], 10, [26, 26]);
        store.close();
        assert!(drain(&mut minibatches).is_empty());
        assert_eq!(expect([36, 36], [0, 0], 10, [26, 26]).frames_open, 0);
    });
}

#[test]
fn queued_rows_are_those_the_store_has_not_taken() {
    watchdog(|| {
        let store = RingStore::builder().component("a", 2).batch_size(10).window(40).ready_frames(1).build().unwrap();
        drop(store.extend(rows(0..30, 2), 0).unwrap());
        drop(store.extend(rows(30..500, 2), 0).unwrap());
        while store.stats().components[0].accepted < 30 {
            thread::yield_now();
        }
        let component = &store.stats().components[0];
        assert_eq!(component.accepted + component.queued, 500);
        assert!(store.stats().components[0].queued > 400);
        store.abort();
        while store.stats().components[0].queued > 0 {
            thread::yield_now();
        }
    });
}

#[test]
fn queued_and_accepted_are_counted_at_the_same_moment() {
    watchdog(|| {
        let store = builder().max_skew(100_000).build().unwrap();
        let mut minibatches = store.minibatches();
        let handed = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| drain(&mut minibatches));
            scope.spawn(|| {
                for at in (0..30_000).step_by(12) {
                    store.extend_blocking(rows(at..at + 12, 2), 0).unwrap();
                    store.extend_blocking(rows(at..at + 12, 1), 1).unwrap();
                    handed.store(at + 12, Ordering::SeqCst);
                }
                store.close();
            });
            while !store.is_closed() {
                let least = handed.load(Ordering::SeqCst) as u64;
                for component in &store.stats().components {
                    assert!(component.accepted + component.queued >= least, "{component:?}: {least} handed over");
                }
            }
        });
    });
}

/// A consumer starts to wait when it finds no minibatch, and stops when there is one. What it does next does not count.
#[test]
fn only_waiting_counts_as_waiting() {
    let moment = Duration::from_millis(20);
    let let_pass = move |since: Instant| {
        while since.elapsed() < moment {
            thread::yield_now();
        }
    };
    watchdog(move || {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        // If the consumer is polled as a stream, it counts as waiting until it is polled again or dropped.
        assert!(minibatches.poll_next_unpin(&mut Context::from_waker(Waker::noop())).is_pending());
        let asked = Instant::now();
        let_pass(asked);
        assert!(store.stats().waited_for_producers >= moment, "while it goes on");
        drop(store.extend(rows(0..100, 1), 1).unwrap());
        drop(store.extend(rows(0..100, 2), 0).unwrap());
        while store.stats().frames_ready == 0 {
            thread::yield_now();
        }
        let waited = store.stats().waited_for_producers;
        assert!(waited >= moment && waited <= asked.elapsed() + moment);
        // The consumer no longer waits.
        let_pass(Instant::now());
        assert_eq!(store.stats().waited_for_producers, waited);
        drop(minibatches.next_timeout(LIMIT).unwrap().unwrap());
        assert_eq!(store.stats().waited_for_producers, waited);
        // The end ends a wait, and so does dropping the consumer.
        let mut second = minibatches.clone();
        store.close();
        drain(&mut minibatches);
        assert!(second.next().now_or_never().unwrap().is_none());
        let waited = store.stats().waited_for_producers;
        let_pass(Instant::now());
        assert_eq!(store.stats().waited_for_producers, waited);
    });
    watchdog(move || {
        let store = builder().build().unwrap();
        let mut another = store.minibatches();
        let mut minibatches = store.minibatches();
        assert!(minibatches.poll_next_unpin(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(minibatches);
        let waited = store.stats().waited_for_producers;
        let_pass(Instant::now());
        assert_eq!(store.stats().waited_for_producers, waited);
        // At the end there is nothing to wait for, even if the consumer has not seen the end.
        let mut minibatches = store.minibatches();
        assert!(minibatches.poll_next_unpin(&mut Context::from_waker(Waker::noop())).is_pending());
        store.close();
        assert!(another.blocking().next().is_none());
        let waited = store.stats().waited_for_producers;
        let_pass(Instant::now());
        assert_eq!(store.stats().waited_for_producers, waited);
    });
}

#[test]
fn waits_are_counted_on_the_side_that_waits() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        assert!(minibatches.next_timeout(Duration::from_millis(20)).is_err());
        let stats = store.stats();
        assert!(stats.waited_for_producers >= Duration::from_millis(19), "{stats:?}");
        assert_eq!(stats.waited_for_consumers, Duration::ZERO);

        drop(store.extend(rows(0..100, 1), 1).unwrap());
        drop(store.extend(rows(0..100, 2), 0).unwrap());
        while store.stats().components[0].accepted < 43 {
            thread::yield_now();
        }
        while store.stats().waited_for_consumers < Duration::from_millis(20) {
            thread::yield_now(); // the wait is counted while it goes on
        }
        let before = store.stats().waited_for_producers;
        store.close();
        drain(&mut minibatches);
        let stats = store.stats();
        assert!(stats.waited_for_consumers >= Duration::from_millis(20), "{stats:?}");
        assert!(stats.waited_for_producers >= before, "{stats:?}");
    });
}

/// If the future of the next minibatch is dropped, it no longer counts as waiting, although the consumer stays.
#[test]
fn a_dropped_future_of_the_next_minibatch_no_longer_counts_as_waiting() {
    let moment = Duration::from_millis(20);
    watchdog(move || {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        for with_try in [false, true] {
            let before = store.stats().waited_for_producers;
            let mut context = Context::from_waker(Waker::noop());
            if with_try {
                let mut next = minibatches.try_next();
                assert!(next.poll_unpin(&mut context).is_pending());
                let asked = Instant::now();
                while asked.elapsed() < moment {
                    thread::yield_now();
                }
            } else {
                let mut next = minibatches.next();
                assert!(next.poll_unpin(&mut context).is_pending());
                let asked = Instant::now();
                while asked.elapsed() < moment {
                    thread::yield_now();
                }
            }
            let waited = store.stats().waited_for_producers;
            assert!(waited - before >= moment);
            let dropped = Instant::now();
            while dropped.elapsed() < moment {
                thread::yield_now();
            }
            assert_eq!(store.stats().waited_for_producers, waited, "no consumer waits");
        }
        // When the consumer is asked again, it waits again and is woken.
        let reading = thread::spawn(move || minibatches.blocking().next().unwrap().unwrap().rows());
        drop(store.extend_pass([("a", rows(0..100, 2)), ("b", rows(0..100, 1))]).unwrap());
        assert_eq!(reading.join().unwrap(), 10);
    });
}

/// The rows that are left in a closed store wait for its consumers, but no producer does.
#[test]
fn no_producer_waits_for_consumers_once_the_store_is_closed() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        drop(store.extend_pass([("a", rows(0..200, 2)), ("b", rows(0..200, 1))]).unwrap());
        while store.stats().waited_for_consumers == Duration::ZERO {
            thread::yield_now();
        }
        store.close();
        let waited = store.stats().waited_for_consumers;
        // The writer goes on and waits for room again and again.
        for _ in 0..10 {
            drop(minibatches.next_timeout(LIMIT).unwrap().unwrap());
            let since = Instant::now();
            while store.stats().frames_ready < 2 || since.elapsed() < Duration::from_millis(1) {
                thread::yield_now();
            }
            assert_eq!(store.stats().waited_for_consumers, waited);
        }
        drain(&mut minibatches);
        assert_eq!(store.stats().waited_for_consumers, waited);
    });
}

#[test]
fn counts_are_shown_in_one_line() {
    use activation_store::{ComponentStats, Stats};
    watchdog(|| {
        let store = builder().drop_last(true).build().unwrap();
        drop(store.extend_pass([("a", rows(0..25, 2)), ("b", rows(0..25, 1))]).unwrap());
        store.flush().wait().unwrap();
        let waits = "; producers waited 0.0 s for consumers, consumers 0.0 s for producers";
        let line = |stats: &Stats| {
            // The test cannot know the times.
            let stats = Stats::clone(stats);
            stats.to_string().split("; producers waited").next().unwrap().to_owned()
        };
        assert_eq!(line(&store.stats()), "25 rows taken, 0 served in 0 minibatches, 25 in the ring, 0 queued");
        store.close();
        drain(&mut store.minibatches());
        let mut stats = store.stats();
        assert_eq!(line(&stats), "25 rows taken, 20 served in 2 minibatches, 0 in the ring, 0 queued, 5 dropped");
        (stats.waited_for_consumers, stats.waited_for_producers) = (Duration::ZERO, Duration::from_millis(40));
        assert!(stats.to_string().ends_with(waits), "{stats}");
        stats.waited_for_producers = Duration::from_millis(1540);
        assert!(stats.to_string().ends_with("consumers 1.5 s for producers"), "{stats}");
        // If the components differ at the moment, the one with the most rows counts.
        let ComponentStats { accepted, .. } = &mut stats.components[1];
        *accepted = 31;
        assert!(stats.to_string().starts_with("31 rows taken, 20 served"), "{stats}");
    });
}

#[test]
fn a_monitor_looks_and_keeps_nothing_open() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let monitor = store.monitor();
        let another = monitor.clone();
        assert_eq!((monitor.batch_size(), monitor.window()), (10, 40));
        assert_eq!(monitor.components(), store.components());
        drop(store.extend_pass([("a", rows(0..25, 2)), ("b", rows(0..25, 1))]).unwrap());
        store.flush().wait().unwrap();
        assert_eq!(monitor.stats().components, store.stats().components);
        assert!(!monitor.is_closed());
        // A monitor cannot write, so the stream ends although the monitor stays.
        let mut minibatches = store.minibatches();
        drop(store);
        assert!(monitor.is_closed());
        assert_eq!(drain(&mut minibatches).concat().len(), 25);
        // A monitor is not a consumer.
        let store = builder().build().unwrap();
        let monitor = store.monitor();
        drop(store.minibatches());
        assert!(monitor.is_closed());
        assert!(store.extend(rows(0..1, 2), 0).unwrap_err().error.is_closed());
        // The numbers stay when everything else is gone.
        drop((minibatches, store));
        assert_eq!(another.stats().components[0].served, 25);
        assert!(format!("{another:?}").contains("served: 25"));
    });
}

/// A trainer that has only a consumer, and no handle of the store, can look at the store and end it.
#[test]
fn a_consumer_looks_and_ends_the_store() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        drop(store.extend_pass([("a", rows(0..25, 2)), ("b", rows(0..25, 1))]).unwrap());
        minibatches.close();
        assert!(store.is_closed());
        assert_eq!(drain(&mut minibatches).concat().len(), 25);
        assert_eq!(minibatches.stats(), store.stats());
        assert_eq!(minibatches.stats().minibatches_served, 3);

        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let handle = store.extend_pass([("a", rows(0..500, 2)), ("b", rows(0..500, 1))]).unwrap();
        minibatches.abort();
        assert_eq!(handle.wait().unwrap_err().to_string(), "the store was aborted");
        assert!(drain(&mut minibatches).is_empty());
        let stats = minibatches.stats();
        assert_adds_up(&stats);
        assert_eq!((stats.components[0].resident, stats.components[0].served), (0, 0));
    });
}

/// Memory that panics when the writer reads it.
struct Unreadable(AtomicBool);

impl AsRef<[f32]> for Unreadable {
    fn as_ref(&self) -> &[f32] {
        // `Batch::from_owner` looks first.
        assert!(!self.0.swap(true, Ordering::SeqCst), "the memory is gone");
        &[0.0; 2]
    }
}

/// The bad row is in the first plan, so every other row is queued or has just been dealt.
#[test]
fn a_panic_of_the_writer_counts_the_queued_rows() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let _minibatches = store.minibatches();
        let bad = Batch::from_owner(Unreadable(AtomicBool::new(false)), 2).unwrap();
        drop(store.extend_pass([("a", bad), ("b", rows(0..1, 1).into())]).unwrap());
        // The writer may have failed before some of these.
        let taken = (0..20).filter(|_| store.extend_pass([("a", rows(0..9, 2)), ("b", rows(0..9, 1))]).is_ok()).count();
        assert!(store.flush().wait().unwrap_err().is_poisoned());
        let stats = store.stats();
        assert_adds_up(&stats);
        for component in &stats.components {
            assert_eq!((component.accepted, component.dropped.total()), (1 + 9 * taken as u64, component.accepted));
        }
    });
}

/// The rows that wait in the queue, past its bound too, are dropped by the end. They are in the counts at once.
#[test]
fn an_end_that_discards_counts_the_queued_rows() {
    type End = fn(&RingStore, Minibatches);
    let ends: [(&str, End); 2] =
        [("abort", |store, _| store.abort()), ("no consumer", |_, minibatches| drop(minibatches))];
    for (name, end) in ends {
        for merge in [Merge::Arrival, Merge::RoundRobin] {
            watchdog(move || {
                let store = builder().merge(merge).build().unwrap();
                let minibatches = store.minibatches();
                let lanes = [store.producer().unwrap(), store.producer().unwrap()];
                let handles: Vec<_> = (0..20)
                    .flat_map(|_| {
                        lanes.iter().map(|lane| lane.extend_pass([("a", rows(0..9, 2)), ("b", rows(0..9, 1))]))
                    })
                    .collect();
                end(&store, minibatches);
                let stats = store.stats();
                assert_adds_up(&stats);
                for component in &stats.components {
                    assert_eq!(component.accepted, 360, "{name}: {component:?}");
                    assert_eq!((component.queued, component.dropped.total()), (0, 360), "{name}: {component:?}");
                }
                drop(handles);
                assert_eq!(store.stats().components, stats.components, "{name}: later");
            });
        }
    }
}

/// Rows that were dealt before the snapshot count as sent again, wherever the abort finds them. Rows after them count as accepted.
#[test]
fn an_abort_of_a_resumed_store_counts_every_row_once() {
    for (merge, form) in [(Merge::Arrival, Form::Light), (Merge::RoundRobin, Form::Light), (Merge::Arrival, Form::Full)]
    {
        for sent in [0, 7, 21, 42, 49, 56, 140] {
            watchdog(move || {
                let dir = tempfile::tempdir().unwrap();
                let pass = |at: usize| [("a", rows(at..at + 7, 2)), ("b", rows(at..at + 7, 1))];
                let store = builder().merge(merge).queue_rows(1000).build().unwrap();
                let mut minibatches = store.minibatches();
                (0..49).step_by(7).for_each(|at| drop(store.extend_pass(pass(at)).unwrap()));
                for _ in 0..3 {
                    minibatches.next_timeout(LIMIT).unwrap().unwrap();
                }
                store.flush().wait().unwrap();
                minibatches.snapshot(&dir, form).unwrap().wait().unwrap();
                let saved = store.stats().components[0].accepted;
                store.abort();

                let resumed = RingStore::builder().queue_rows(1000).resume(&dir).unwrap();
                let _minibatches = resumed.minibatches();
                let from = resumed.resume_at().first().unwrap().row;
                let handed = (from..from + sent).step_by(7).map(|at| {
                    drop(resumed.extend_pass(pass(at as usize)).unwrap());
                    7
                });
                let handed: u64 = handed.sum();
                resumed.abort();
                let stats = resumed.stats();
                assert_adds_up(&stats);
                for component in &stats.components {
                    let again = handed.min(49 - from);
                    let expected = (saved + handed - again, again);
                    assert_eq!(
                        (component.accepted, component.resent),
                        expected,
                        "{merge:?}, {form:?}, {sent}: {component:?}"
                    );
                }
            });
        }
    }
}
