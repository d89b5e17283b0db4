//! Promise 2: a future can be dropped at any point. That cancels no write and loses no row.
#![allow(clippy::unwrap_used)]

mod common;

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use activation_store::{RingStore, RingStoreBuilder, WriteHandle};
use common::{LIMIT, Random, assert_exactly, drain, ids, rows, watchdog};
use futures::executor::block_on;
use futures::future::{Either, select};

fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", 2).batch_size(10).window(40).queue_rows(20)
}

/// Polls a future once.
fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn handles_may_be_dropped_before_or_after_any_poll() {
    for polls in 0..3 {
        watchdog(move || {
            let store = builder().build().unwrap();
            let mut minibatches = store.minibatches();
            for at in (0..300).step_by(10) {
                let mut handle = store.extend(rows(at..at + 10, 2), 0).unwrap();
                (0..polls).for_each(|_| drop(poll_once(&mut handle)));
            }
            store.close();
            assert_exactly(0..300, &drain(&mut minibatches));
        });
    }
}

#[test]
fn a_handle_that_gave_up_waiting_still_gets_the_outcome_later() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut handle = store.extend(rows(0..200, 2), 0).unwrap();
        assert!(!handle.is_done());
        assert_eq!(handle.wait_timeout(Duration::ZERO), None);
        assert_eq!(handle.wait_timeout(Duration::from_millis(1)), None);
        assert!(poll_once(&mut handle).is_pending());
        store.close();
        assert_exactly(0..200, &drain(&mut store.minibatches()));
        let written = handle.wait_timeout(LIMIT).unwrap().unwrap();
        assert_eq!((written.rows, written.first_row), (200, 0));
        assert!(handle.is_done());
    });
}

#[test]
fn a_handle_may_be_polled_after_it_has_resolved() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut handle = store.extend(rows(0..5, 2), 0).unwrap();
        let first = handle.wait_timeout(LIMIT).unwrap();
        assert_eq!(poll_once(&mut handle), Poll::Ready(first.clone()));
        assert_eq!(block_on(&mut handle), first);
        assert_eq!(handle.wait_timeout(Duration::ZERO), Some(first.clone()));
        assert!(handle.is_done());
        assert_eq!(format!("{handle:?}"), "WriteHandle(done)");
        assert_eq!(handle.wait(), first);
        let mut ready = WriteHandle::ready(first.clone());
        assert!(ready.is_done());
        assert_eq!(poll_once(&mut ready), Poll::Ready(first));
    });
}

/// `is_done` becomes true without a poll.
#[test]
fn is_done_needs_no_poll() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let handle = store.extend(rows(0..5, 2), 0).unwrap();
        while !handle.is_done() {
            std::thread::yield_now();
        }
        let lost = store.extend(rows(5..500, 2), 0).unwrap();
        assert!(!lost.is_done());
        store.abort();
        while !lost.is_done() {
            std::thread::yield_now();
        }
        assert!(lost.wait().unwrap_err().is_closed());
    });
}

/// Only the waker of the last poll counts.
#[test]
fn a_handle_may_move_between_tasks() {
    watchdog(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let store = builder().build().unwrap();
            let mut minibatches = store.minibatches();
            let mut handle = store.extend(rows(0..200, 2), 0).unwrap();
            assert!(poll_once(&mut handle).is_pending());
            let (polled, was_polled) = tokio::sync::oneshot::channel();
            let moved = tokio::spawn(async move {
                assert!(poll_once(&mut handle).is_pending());
                polled.send(()).unwrap();
                tokio::spawn(handle).await.unwrap()
            });
            // The handle resolves once minibatches are taken, so none is taken before.
            was_polled.await.unwrap();
            store.close();
            let mut served = Vec::new();
            while let Some(minibatch) = minibatches.next().await {
                served.push(ids(&minibatch.unwrap(), 0));
            }
            assert_exactly(0..200, &served);
            assert_eq!(moved.await.unwrap().unwrap().rows, 200);
        });
    });
}

#[test]
fn a_future_of_the_next_minibatch_may_be_dropped_after_any_poll() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let mut served = Vec::new();
        let mut take = |poll| {
            if let Poll::Ready(Some(minibatch)) = poll {
                let minibatch: Result<activation_store::Minibatch, _> = minibatch;
                served.push(ids(&minibatch.unwrap(), 0));
            }
        };
        for at in 0..400 {
            drop(store.extend(rows(at..at + 1, 2), 0).unwrap());
            for _ in 0..at % 3 {
                take(poll_once(&mut minibatches.next()));
            }
        }
        store.close();
        served.extend(drain(&mut minibatches));
        assert_exactly(0..400, &served);
    });
}

/// `select` drops the future that loses, again and again.
#[test]
fn select_loses_nothing() {
    for flavour in 0..2 {
        watchdog(move || {
            let runtime = match flavour {
                0 => tokio::runtime::Builder::new_current_thread().enable_time().build(),
                _ => tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build(),
            };
            runtime.unwrap().block_on(async {
                let store = builder().build().unwrap();
                let mut minibatches = store.minibatches();
                let producing = tokio::spawn(async move {
                    for at in (0..2000).step_by(10) {
                        let handle = store.extend(rows(at..at + 10, 2), 0).unwrap();
                        match at % 3 {
                            0 => drop(tokio::time::timeout(Duration::from_micros(50), handle).await),
                            1 => drop(select(handle, pin!(tokio::task::yield_now())).await),
                            _ => drop(handle.await.unwrap()),
                        }
                    }
                });
                let mut served = Vec::new();
                loop {
                    let first = match select(minibatches.next(), pin!(tokio::task::yield_now())).await {
                        Either::Left((next, _)) => Some(next),
                        Either::Right(_) => None,
                    };
                    let next = match first {
                        Some(next) => next,
                        None => match tokio::time::timeout(Duration::from_micros(100), minibatches.next()).await {
                            Ok(next) => next,
                            Err(_) => continue,
                        },
                    };
                    let Some(minibatch) = next else { break };
                    served.push(ids(&minibatch.unwrap(), 0));
                }
                producing.await.unwrap();
                assert_exactly(0..2000, &served);
            });
        });
    }
}

/// A consumer that is woken but does not look any more must not keep the minibatch from the others.
#[test]
fn a_consumer_that_stops_polling_keeps_nothing_from_the_others() {
    watchdog(|| {
        for _ in 0..100 {
            let store = builder().build().unwrap();
            let mut idle: Vec<_> = (0..3).map(|_| store.minibatches()).collect();
            for minibatches in &mut idle {
                // This consumer registers its waker and then never polls again.
                assert!(poll_once(&mut minibatches.next()).is_pending());
            }
            let mut minibatches = store.minibatches();
            let serving = std::thread::spawn(move || drain(&mut minibatches));
            drop(store.extend(rows(0..200, 2), 0).unwrap());
            store.close();
            assert_exactly(0..200, &serving.join().unwrap());
        }
    });
}

#[test]
fn aborted_tasks_leave_the_store_in_order() {
    watchdog(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let store = builder().build().unwrap();
            let mut minibatches = store.minibatches();
            let mut random = Random::new(3);
            let mut handed = 0;
            let mut tasks = Vec::new();
            for _ in 0..50 {
                let handle = store.extend(rows(handed..handed + 10, 2), 0).unwrap();
                handed += 10;
                tasks.push(tokio::spawn(handle));
                let mut consumer = minibatches.clone();
                // The task takes nothing if it is aborted in time. Otherwise its minibatches are counted.
                let task = tokio::spawn(async move { pin!(consumer.next()).await.map(drop) });
                if random.below(2) == 0 {
                    tokio::task::yield_now().await;
                }
                task.abort();
                let _ = task.await;
            }
            tasks.iter().step_by(2).for_each(|task| task.abort());
            store.close();
            while let Some(minibatch) = minibatches.next().await {
                drop(minibatch.unwrap());
            }
            let stats = store.stats();
            common::assert_adds_up(&stats);
            assert_eq!((stats.components[0].served, stats.frames_lent), (handed as u64, 0));
        });
    });
}

#[test]
fn a_dropped_flush_disturbs_nothing() {
    watchdog(|| {
        let store = builder().build().unwrap();
        for at in (0..100).step_by(10) {
            drop(store.extend(rows(at..at + 10, 2), 0).unwrap());
            let mut flush = store.flush();
            let _ = poll_once(&mut flush);
            drop(flush);
        }
        assert_exactly(0..100, &common::finish(&store));
    });
}
