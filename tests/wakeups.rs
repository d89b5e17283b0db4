//! No caller is left asleep. Every wait ends as soon as its event has come.
#![allow(clippy::unwrap_used)]

mod common;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use activation_store::{Merge, Minibatches, RingStore, RingStoreBuilder, WhenFull};
use common::{LIMIT, Random, rows, watchdog};

fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", 1).batch_size(10).window(10).ready_frames(1)
}

/// The consumer starts to wait just when a minibatch arrives, again and again.
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

/// So few rows leave the queue that the working writer does not wake the caller. The caller is woken when the writer stops.
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

/// No row is queued that could push the frame out.
#[test]
fn a_full_frame_is_handed_over_once_a_minibatch_is_taken() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        // One minibatch is ready, and one is full.
        let _ = store.extend(rows(0..20, 1), 0).unwrap().wait().unwrap();
        for _ in 0..2 {
            drop(minibatches.next_timeout(LIMIT / 2).expect("a minibatch is ready"));
        }
        // The writer has no row to deal, so this does not count as waiting for consumers.
        assert_eq!(store.stats().waited_for_consumers, Duration::ZERO);
    });
}

/// The caller waits because the queue is full. Another thread writes the other component of its pass.
#[test]
fn a_caller_is_woken_once_the_counterparts_of_its_rows_are_taken() {
    watchdog(|| {
        for waits_behind_another in [false, true] {
            let store = builder().component("b", 1).queue_rows(20).build().unwrap();
            let lane = store.producer().unwrap();
            drop(store.extend_pass([("a", rows(0..200, 1)), ("b", rows(0..200, 1))]).unwrap());
            let mut first = Box::pin(store.reserve_pass(1));
            if waits_behind_another {
                assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            }
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(woken.clone());
            let mut waiting = Box::pin(lane.reserve("a", 5).unwrap());
            assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            drop(lane.extend(rows(0..5, 1), "b").unwrap());
            assert_eq!(woken.0.load(Ordering::SeqCst), 1);
            assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
        }
    });
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A consumer asks once, and is never polled again, although it is woken. The others get its minibatches.
#[test]
fn a_consumer_that_stops_polling_holds_up_no_other() {
    for ready in [1, 4] {
        watchdog(move || {
            let store = builder().ready_frames(ready).build().unwrap();
            let mut forgetful = store.minibatches();
            let mut asked = forgetful.next();
            assert!(Pin::new(&mut asked).poll(&mut Context::from_waker(Waker::noop())).is_pending());
            let mut minibatches = store.minibatches();
            let consumer =
                thread::spawn(move || minibatches.blocking().map(|minibatch| minibatch.unwrap().rows()).sum());
            for batch in 0..20 {
                store.extend_blocking(rows(batch * 10..batch * 10 + 10, 1), 0).unwrap();
                while store.stats().minibatches_served < batch as u64 {
                    thread::yield_now();
                }
            }
            store.close();
            let served: usize = consumer.join().unwrap();
            assert_eq!(served, 200);
        });
    }
}

/// Consumers ask and give up again and again, so that many wakes go to consumers that are gone.
#[test]
fn no_wake_is_lost_with_a_dropped_future() {
    watchdog(|| {
        let store = builder().batch_size(1).window(1).ready_frames(2).queue_rows(4).build().unwrap();
        let consumers: Vec<_> = (0..4)
            .map(|seed| {
                let mut minibatches = store.minibatches();
                thread::spawn(move || {
                    let (mut random, mut served) = (Random::new(seed), 0);
                    loop {
                        if random.below(2) == 0 {
                            let waker = Waker::noop();
                            match Pin::new(&mut minibatches.next()).poll(&mut Context::from_waker(waker)) {
                                Poll::Ready(None) => return served,
                                Poll::Ready(Some(minibatch)) => served += minibatch.unwrap().rows(),
                                Poll::Pending => {}
                            }
                        } else {
                            match minibatches.blocking().next() {
                                None => return served,
                                Some(minibatch) => served += minibatch.unwrap().rows(),
                            }
                        }
                    }
                })
            })
            .collect();
        for row in 0..5000 {
            store.extend_blocking(rows(row..row + 1, 1), 0).unwrap();
        }
        store.close();
        assert_eq!(consumers.into_iter().map(|consumer| consumer.join().unwrap()).sum::<usize>(), 5000);
    });
}

/// The writer waits for consumers, so it cannot wake any caller.
#[test]
fn callers_are_woken_although_the_writer_waits() {
    let abort = |store: &RingStore, minibatches: Minibatches| {
        store.abort();
        drop(minibatches);
    };
    for end in [abort, |_: &RingStore, minibatches| drop(minibatches)] {
        watchdog(move || {
            let store = builder().queue_rows(10).build().unwrap();
            let minibatches = store.minibatches();
            let blocked = thread::spawn({
                let store = store.clone();
                move || (0..).try_for_each(|_| store.extend_blocking(rows(0..100, 1), 0))
            });
            while store.stats().waited_for_consumers.is_zero() {
                thread::yield_now();
            }
            end(&store, minibatches);
            assert!(blocked.join().unwrap().unwrap_err().error.is_closed());
        });
    }
}

fn two() -> RingStoreBuilder {
    RingStore::builder().component("a", 1).component("b", 1).batch_size(4).window(16).queue_rows(8)
}

/// The rows of a permit wait for another component, so they take no room in the queue.
#[test]
fn a_caller_is_woken_once_the_rows_before_it_wait_for_another_component() {
    watchdog(|| {
        let store = two().build().unwrap();
        let (first, second) = (store.producer().unwrap(), store.producer().unwrap());
        let mut permit = first.reserve("a", 8).unwrap().wait().unwrap();
        let mut next = second.reserve("a", 8).unwrap();
        assert!(next.wait_timeout(Duration::ZERO).is_none());
        let waiting = thread::spawn(move || next.wait_timeout(LIMIT).unwrap().unwrap().rows());
        let _ = permit.extend(rows(0..8, 1)).unwrap().wait().unwrap();
        assert_eq!(waiting.join().unwrap(), 8);
    });
}

/// The rows of different components complete each other, so they do not take each other's room.
#[test]
fn permits_for_the_components_of_a_pass_do_not_wait_for_each_other() {
    watchdog(|| {
        let store = two().build().unwrap();
        let mut a = store.reserve("a", 6).unwrap().wait().unwrap();
        let mut b = store.reserve("b", 6).unwrap().wait().unwrap();
        store.reserve_pass(6).wait_timeout(Duration::ZERO).ok_or(()).unwrap_err();
        let _ = a.extend(rows(0..6, 1)).unwrap().wait().unwrap();
        let _ = b.extend(rows(0..6, 1)).unwrap().wait().unwrap();
        assert_eq!(store.len(), 6);
    });
}

/// One consumer never comes again, and the producer never pauses.
#[test]
fn a_consumer_that_stops_polling_holds_up_no_other_while_rows_keep_coming() {
    watchdog(|| {
        let store = builder().when_full(WhenFull::DropOldest).build().unwrap();
        let mut forgetful = store.minibatches();
        let mut asked = forgetful.next();
        assert!(Pin::new(&mut asked).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let mut minibatches = store.minibatches();
        let producer = thread::spawn({
            let store = store.clone();
            move || while store.extend_blocking(rows(0..1, 1), 0).is_ok() {}
        });
        for _ in 0..3 {
            assert_eq!(minibatches.blocking().next().unwrap().unwrap().rows(), 10);
        }
        store.close();
        producer.join().unwrap();
    });
}
