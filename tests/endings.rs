//! A run can end in many ways. Every caller comes to its end, rows that were taken are served, and no caller gets the error of another.
#![allow(clippy::unwrap_used)]

mod common;

use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use activation_store::{
    Batch, ClosedBy, Merge, Minibatch, Minibatches, Permit, Producer, ReadError, Refused, RingStore, RingStoreBuilder,
    WriteError,
};
use common::{LIMIT, assert_adds_up, assert_exactly, ids, rounds, rows, watchdog};
use futures::StreamExt;
use futures::executor::{LocalPool, block_on};
use futures::task::LocalSpawnExt;

fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", 2).component("b", 1).batch_size(8).window(64).ready_frames(2).queue_rows(16)
}

/// Returns the ids of a minibatch's rows. Fails unless both components agree on them.
fn tokens(minibatch: &Minibatch) -> Vec<usize> {
    let tokens = ids(minibatch, 0);
    assert_eq!(tokens, ids(minibatch, 1), "misaligned");
    tokens
}

/// A trainer that stops at the first error.
fn train(minibatches: &mut Minibatches) -> Result<Vec<Vec<usize>>, ReadError> {
    block_on(async {
        let mut served = Vec::new();
        while let Some(minibatch) = minibatches.try_next().await? {
            served.push(tokens(&minibatch));
        }
        Ok(served)
    })
}

/// Writes passes of 8 rows from `first` on, until one is refused. Returns how many rows of each component were taken.
fn capture(lane: &Producer, first: usize, by_component: bool) -> ([usize; 2], WriteError) {
    let mut taken = [0; 2];
    loop {
        let at = first + taken[0];
        let (a, b) = (rows(at..at + 8, 2), rows(at..at + 8, 1));
        let outcome = if by_component {
            lane.extend_blocking(a, "a").and_then(|()| {
                taken[0] += 8;
                lane.extend_blocking(b, "b").map(|()| taken[1] += 8)
            })
        } else {
            let outcome = lane.extend_pass_blocking([("a", a), ("b", b)]).map(|()| taken = taken.map(|rows| rows + 8));
            outcome.map_err(|mut refused| Refused { error: refused.error, batch: refused.batches.remove(0) })
        };
        if let Err(refused) = outcome {
            return (taken, refused.error);
        }
    }
}

#[test]
fn a_close_in_the_middle_of_passes_is_no_error_for_the_trainer_and_loses_no_pass() {
    for merge in [Merge::Arrival, Merge::RoundRobin] {
        watchdog(move || {
            for round in 0..100 {
                let store = builder().merge(merge).build().unwrap();
                // The trainer may end before the last replica asks, and its consumer ends with it.
                let (mut minibatches, _kept) = (store.minibatches(), store.minibatches());
                let lanes: Vec<_> = (0..4).map(|_| store.producer().unwrap()).collect();
                let monitor = store.monitor();
                thread::scope(|scope| {
                    let replicas: Vec<_> = (lanes.into_iter().enumerate())
                        .map(|(i, lane)| scope.spawn(move || capture(&lane, i << 16, i % 2 == 0)))
                        .collect();
                    let trainer = scope.spawn(move || train(&mut minibatches));
                    while monitor.stats().minibatches_served < round % 20 {
                        thread::yield_now();
                    }
                    store.close();
                    let mut taken = Vec::new();
                    for (i, replica) in replicas.into_iter().enumerate() {
                        let ([a, b], error) = replica.join().unwrap();
                        assert_eq!(error.closed_by(), Some(ClosedBy::Close));
                        assert!(a - b <= if i % 2 == 0 { 8 } else { 0 });
                        taken.extend((i << 16)..(i << 16) + b);
                    }
                    let mut served = trainer.join().unwrap().expect("no error").concat();
                    served.sort_unstable();
                    assert_eq!(served, taken, "all whole rows are served");
                });
                assert_adds_up(&monitor.stats());
            }
        });
    }
}

#[test]
fn a_replica_that_returns_in_the_middle_of_a_pass_hurts_no_other() {
    for merge in [Merge::Arrival, Merge::RoundRobin] {
        watchdog(move || {
            let store = builder().merge(merge).build().unwrap();
            let (mut minibatches, _kept) = (store.minibatches(), store.minibatches());
            let lanes: Vec<_> = (0..8).map(|_| store.producer().unwrap()).collect();
            let served = thread::scope(|scope| {
                let trainer = scope.spawn(move || train(&mut minibatches));
                let replicas: Vec<_> = (lanes.into_iter().enumerate())
                    .map(|(i, lane)| {
                        scope.spawn(move || -> Result<(), Refused> {
                            for at in (i * 1000..i * 1000 + 800).step_by(8) {
                                lane.extend_blocking(rows(at..at + 8, 2), "a")?;
                                if i == 0 && at == 160 {
                                    return Ok(());
                                }
                                lane.extend_blocking(rows(at..at + 8, 1), "b")?;
                            }
                            Ok(())
                        })
                    })
                    .collect();
                for replica in replicas {
                    replica.join().unwrap().expect("no error");
                }
                store.close();
                trainer.join().unwrap().expect("no error")
            });
            let mut served = served.concat();
            served.sort_unstable();
            let expected = (0..160).chain((1..8).flat_map(|i| i * 1000..i * 1000 + 800));
            assert_eq!(served, expected.collect::<Vec<_>>());
            let stats = store.stats();
            assert_eq!([0, 1].map(|component| stats.components[component].dropped.unmatched), [8, 0]);
            assert!(matches!(store.flush().wait().unwrap_err(), WriteError::Unmatched { rows: 8, .. }));
            store.flush().wait().unwrap();
        });
    }
}

/// Hands over more than the ring and the queue hold.
fn fill(store: &RingStore) {
    drop(store.extend_pass([("a", rows(0..400, 2)), ("b", rows(0..400, 1))]).unwrap());
}

#[test]
fn a_batch_that_waits_for_room_comes_back_when_the_store_closes() {
    watchdog(|| {
        for round in 0..100 {
            let store = builder().build().unwrap();
            let mut minibatches = store.minibatches();
            fill(&store);
            let waiting: Vec<_> = (0..4)
                .map(|i| {
                    let store = store.clone();
                    thread::spawn(move || store.extend_blocking(rows(i..i + 3, 2), "a").unwrap_err())
                })
                .collect();
            (0..round).for_each(|_| thread::yield_now());
            store.close();
            for (i, waiting) in waiting.into_iter().enumerate() {
                let refused = waiting.join().unwrap();
                assert_eq!(refused.error.closed_by(), Some(ClosedBy::Close));
                assert_eq!(refused.into_batch().to_f32(), rows(i..i + 3, 2));
            }
            assert_exactly(0..400, &train(&mut minibatches).unwrap());
        }
    });
}

type Reservation = Pin<Box<dyn Future<Output = Result<Permit, WriteError>> + Send>>;

/// Reservations that wait for room learn of the end, on every kind of executor.
#[test]
fn reservations_that_wait_are_told_of_the_end_on_any_executor() {
    fn close(store: &RingStore, minibatches: Minibatches) -> (ClosedBy, Option<Minibatches>) {
        store.close();
        (ClosedBy::Close, Some(minibatches))
    }
    fn abort(store: &RingStore, minibatches: Minibatches) -> (ClosedBy, Option<Minibatches>) {
        store.abort();
        (ClosedBy::Abort, Some(minibatches))
    }
    fn leave(_: &RingStore, minibatches: Minibatches) -> (ClosedBy, Option<Minibatches>) {
        drop(minibatches);
        (ClosedBy::NoConsumers, None)
    }
    let one_thread = || tokio::runtime::Builder::new_current_thread().build().unwrap();
    let threads = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let on_tokio = |runtime: tokio::runtime::Runtime, reservations: Vec<Reservation>, end: Box<dyn FnOnce() + Send>| {
        runtime.block_on(async {
            let tasks: Vec<_> = reservations.into_iter().map(tokio::spawn).collect();
            tokio::task::yield_now().await;
            end();
            let mut outcomes = Vec::new();
            for task in tasks {
                outcomes.push(task.await.unwrap());
            }
            outcomes
        })
    };
    for end in [close, abort, leave] {
        for executor in 0..4 {
            watchdog(move || {
                let store = builder().build().unwrap();
                let minibatches = store.minibatches();
                fill(&store);
                let reservations: Vec<Reservation> = (0..8)
                    .map(|i| -> Reservation {
                        let mut reservation =
                            if i % 2 == 0 { store.reserve_pass(i + 1) } else { store.reserve("b", i).unwrap() };
                        // From here on, the reservation is in line.
                        let mut context = Context::from_waker(Waker::noop());
                        assert!(Pin::new(&mut reservation).poll(&mut context).is_pending());
                        Box::pin(reservation)
                    })
                    .collect();
                let (said, by) = mpsc::channel();
                let ends: Box<dyn FnOnce() + Send> = Box::new(move || said.send(end(&store, minibatches)).unwrap());
                let outcomes = match executor {
                    0 => on_tokio(one_thread(), reservations, ends),
                    1 => on_tokio(threads(), reservations, ends),
                    2 => {
                        let mut pool = LocalPool::new();
                        let tasks: Vec<_> = (reservations.into_iter())
                            .map(|reservation| pool.spawner().spawn_local_with_handle(reservation).unwrap())
                            .collect();
                        pool.run_until_stalled();
                        let ending = thread::spawn(ends);
                        let outcomes = pool.run_until(futures::future::join_all(tasks));
                        ending.join().unwrap();
                        outcomes
                    }
                    _ => {
                        let waiting: Vec<_> = (reservations.into_iter())
                            .map(|reservation| thread::spawn(move || block_on(reservation)))
                            .collect();
                        ends();
                        waiting.into_iter().map(|waiting| waiting.join().unwrap()).collect()
                    }
                };
                let (by, _kept) = by.recv().unwrap();
                for outcome in outcomes {
                    assert_eq!(outcome.map(drop).unwrap_err().closed_by(), Some(by));
                }
            });
        }
    }
}

/// The reason why a trainer stops after a few minibatches.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    Break,
    Error,
    Panic,
    Return,
}

fn leave_training(mut minibatches: Minibatches, after: usize, leaves: Leaves, slow: bool) -> Result<(), String> {
    for (taken, minibatch) in minibatches.blocking().enumerate() {
        let minibatch = minibatch.unwrap();
        if slow {
            (0..2000).for_each(|_| thread::yield_now());
        }
        if taken < after {
            continue;
        }
        match leaves {
            Leaves::Break => break,
            Leaves::Error => Err(format!("the loss of minibatch {} is not a number", minibatch.ordinal()))?,
            Leaves::Panic => panic!("the trainer fails"),
            Leaves::Return => return Ok(()),
        }
    }
    Ok(())
}

#[test]
fn capture_ends_however_the_trainer_leaves() {
    type Capture = fn(&Producer, usize) -> Result<(), WriteError>;
    let captures: [Capture; 5] = [
        |lane, at| Ok(lane.extend_pass_blocking([("a", rows(at..at + 8, 2)), ("b", rows(at..at + 8, 1))])?),
        |lane, at| {
            lane.extend_blocking(rows(at..at + 8, 2), "a")?;
            Ok(lane.extend_blocking(rows(at..at + 8, 1), "b")?)
        },
        |lane, at| {
            let pass = [("a", rows(at..at + 8, 2)), ("b", rows(at..at + 8, 1))];
            lane.extend_pass(pass)?.wait().map(drop)
        },
        |lane, at| {
            let handle = lane.extend(rows(at..at + 8, 2), "a")?;
            let _ = block_on(lane.extend(rows(at..at + 8, 1), "b")?)?;
            block_on(handle).map(drop)
        },
        |lane, at| {
            let permit = lane.reserve_pass(8).wait()?;
            drop(permit.extend_pass([("a", rows(at..at + 8, 2)), ("b", rows(at..at + 8, 1))])?);
            Ok(())
        },
    ];
    for leaves in [Leaves::Break, Leaves::Error, Leaves::Panic, Leaves::Return] {
        for (after, slow) in [(0, false), (30, false), (5, true)] {
            watchdog(move || {
                let store = builder().build().unwrap();
                let minibatches = store.minibatches();
                let capturing: Vec<_> = captures
                    .map(|capture| {
                        let lane = store.producer().unwrap();
                        thread::spawn(move || (0..).step_by(8).find_map(|at| capture(&lane, at % 4096).err()).unwrap())
                    })
                    .into();
                let left = catch_unwind(AssertUnwindSafe(|| leave_training(minibatches, after, leaves, slow)));
                assert_eq!(left.is_err(), matches!(leaves, Leaves::Panic));
                for capturing in capturing {
                    assert_eq!(capturing.join().unwrap().closed_by(), Some(ClosedBy::NoConsumers), "{leaves:?}");
                }
                assert_adds_up(&store.stats());
            });
        }
    }
}

/// An error with a cause of its own.
#[derive(Debug)]
struct Failure(&'static str, std::io::Error);

impl Failure {
    fn new(text: &'static str) -> Self {
        Failure(text, std::io::Error::other("the disk is full"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.1)
    }
}

/// Drains a consumer in one of several ways. Returns the rows and the errors.
fn items(mut minibatches: Minibatches, way: usize) -> (usize, Vec<ReadError>) {
    let items: Vec<Result<Minibatch, ReadError>> = match way {
        0 => minibatches.blocking().collect(),
        1 => block_on(minibatches.collect()),
        2 => block_on(async {
            let mut items = Vec::new();
            while let Some(item) = minibatches.next().await {
                items.push(item);
            }
            items
        }),
        3 => std::iter::from_fn(|| minibatches.next_timeout(LIMIT).transpose()).collect(),
        _ => block_on(async {
            let mut items = Vec::new();
            loop {
                match minibatches.try_next().await {
                    Ok(Some(minibatch)) => items.push(Ok(minibatch)),
                    Ok(None) => return items,
                    Err(error) => items.push(Err(error)),
                }
            }
        }),
    };
    let rows = items.iter().flatten().map(Minibatch::rows).sum();
    let last = items.iter().rposition(Result::is_ok).map_or(0, |last| last + 1);
    let errors: Vec<_> = items.into_iter().skip(last).map(Result::unwrap_err).collect();
    (rows, errors)
}

fn assert_failed(errors: &[ReadError], text: &str) {
    let [ReadError::Failed(failure)] = errors else { panic!("not one failure but {errors:?}") };
    assert_eq!(failure.to_string(), text);
    assert_eq!(errors[0].to_string(), text);
    assert!(failure.downcast_ref::<Failure>().is_some());
    // The whole chain of causes is there.
    assert_eq!(errors[0].source().unwrap().to_string(), "the disk is full");
}

#[test]
fn every_consumer_gets_the_error_once_after_the_last_minibatch() {
    for drop_last in [false, true] {
        for way in 0..5 {
            watchdog(move || {
                let store = builder().drop_last(drop_last).build().unwrap();
                let consumer = store.minibatches();
                let consumers = [consumer.clone(), consumer.clone(), consumer.clone()];
                let waiting = consumers.map(|consumer| thread::spawn(move || items(consumer, way)));
                fill(&store);
                drop(store.extend_pass([("a", rows(0..5, 2)), ("b", rows(0..5, 1))]).unwrap());
                store.close_with(Failure::new("the model failed"));
                let mut total = 0;
                for waiting in waiting {
                    let (rows, errors) = waiting.join().unwrap();
                    assert_failed(&errors, "the model failed");
                    total += rows;
                }
                assert_eq!(total, if drop_last { 400 } else { 405 });
                // A consumer that is made late gets it, too.
                let (rows, errors) = items(store.minibatches(), way);
                assert_eq!(rows, 0);
                assert_failed(&errors, "the model failed");
                assert_adds_up(&store.stats());
            });
        }
    }
}

#[test]
fn writers_learn_that_the_store_is_closed() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        fill(&store);
        let waiting = thread::spawn({
            let store = store.clone();
            move || store.extend_blocking(rows(0..3, 2), "a").unwrap_err()
        });
        store.close_with("the model failed");
        let refused = waiting.join().unwrap();
        assert_eq!(refused.error.closed_by(), Some(ClosedBy::Close));
        assert_eq!(refused.into_batch().to_f32(), rows(0..3, 2));
        assert!(store.is_closed());
        assert!(matches!(train(&mut minibatches), Err(ReadError::Failed(_))));
        store.flush().wait().unwrap();
    });
}

#[test]
fn the_first_error_wins_also_after_a_close() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let (mut early, _kept) = (store.minibatches(), store.minibatches());
        store.close();
        // This consumer has seen the end already, and still gets the error.
        assert!(early.blocking().next().is_none());
        store.close_with(Failure::new("the first"));
        store.close_with(Failure::new("the second"));
        store.close();
        assert_failed(&items(early, 0).1, "the first");
        assert_failed(&items(store.minibatches(), 1).1, "the first");
    });
    watchdog(|| {
        for _ in 0..200 {
            let store = builder().build().unwrap();
            let (consumers, _kept) = ([store.minibatches(), store.minibatches()], store.minibatches());
            thread::scope(|scope| {
                scope.spawn(|| store.close_with(Failure::new("one")));
                scope.spawn(|| store.close_with(Failure::new("other")));
                scope.spawn(|| store.close());
            });
            // Either error may be first, but both consumers get the same one.
            let texts = consumers.map(|consumer| {
                let errors = items(consumer, 0).1;
                assert_eq!(errors.len(), 1);
                errors[0].to_string()
            });
            assert_eq!(texts[0], texts[1]);
        }
    });
}

#[test]
fn abort_discards_the_error() {
    watchdog(|| {
        for before in [false, true] {
            let store = builder().build().unwrap();
            let consumer = store.minibatches();
            fill(&store);
            if before {
                store.close_with(Failure::new("the model failed"));
                store.abort();
            } else {
                store.abort();
                store.close_with(Failure::new("the model failed"));
            }
            let late = consumer.clone();
            let (rows, errors) = items(consumer, 0);
            assert_eq!((rows, errors.len()), (0, 0), "{errors:?}");
            assert!(matches!(&items(late, 0).1[..], [ReadError::Aborted]));
        }
    });
}

#[test]
fn a_consumer_made_after_an_abort_gets_an_error_and_one_made_before_ends() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let (before, mut polled) = (store.minibatches(), store.minibatches());
        assert!(polled.poll_next_unpin(&mut Context::from_waker(Waker::noop())).is_pending());
        fill(&store);
        store.close();
        // A consumer that is made between a close and the abort was made before the abort.
        let between = store.minibatches();
        store.abort();
        store.abort();
        store.close();
        let after = before.clone();
        for consumer in [before, polled, between] {
            assert!(items(consumer, 0).1.is_empty());
        }
        for (way, mut consumer) in [after, store.minibatches(), store.minibatches()].into_iter().enumerate() {
            // With a time limit, the consumer gets the error each time.
            assert!(matches!(consumer.next_timeout(Duration::ZERO), Err(ReadError::Aborted)));
            assert!(matches!(consumer.next_timeout(LIMIT), Err(ReadError::Aborted)));
            let errors = items(consumer, way % 3).1;
            assert!(matches!(errors[..], [ReadError::Aborted]), "{errors:?}");
        }
        // Without consumers, a store is closed but not aborted.
        let store = builder().build().unwrap();
        drop(store.minibatches());
        assert!(items(store.minibatches(), 0).1.is_empty());
    });
}

/// A lane that ends with half a pass loses rows. That is no error if the store is aborted at the same moment.
#[test]
fn an_abort_that_races_with_the_end_of_a_lane_is_never_an_error() {
    watchdog(|| {
        let (hand, ends) = mpsc::channel::<Producer>();
        let ending = thread::spawn(move || ends.into_iter().for_each(drop));
        for round in rounds() {
            let store = builder().batch_size(4).window(4).build().unwrap();
            let mut minibatches = store.minibatches();
            let lane = store.producer().unwrap();
            drop(lane.extend(rows(0..6, 2), "a").unwrap());
            if round % 2 == 0 {
                drop(lane.extend(rows(0..round % 6, 1), "b").unwrap());
            }
            hand.send(lane).unwrap();
            (0..round % 7).for_each(|_| thread::yield_now());
            store.abort();
            assert!(minibatches.next_timeout(LIMIT).expect("no error").is_none());
            assert_eq!(store.flush().wait().unwrap_err().closed_by(), Some(ClosedBy::Abort));
            assert_adds_up(&store.stats());
        }
        drop(hand);
        ending.join().unwrap();
    });
}

#[test]
fn rows_that_are_never_served_are_counted_by_reason() {
    use activation_store::{Dropped, WhenFull};
    fn dropped(store: &RingStore, component: usize) -> Dropped {
        let stats = store.stats();
        assert_adds_up(&stats);
        stats.components[component].dropped
    }
    let only = |reason: fn(&mut Dropped) -> &mut u64, rows: u64| {
        let mut dropped = Dropped::default();
        *reason(&mut dropped) = rows;
        dropped
    };
    watchdog(move || {
        let pass = |n: usize| [("a", rows(0..n, 2)), ("b", rows(0..n, 1))];
        let store = builder().build().unwrap();
        drop(store.extend_pass(pass(10)).unwrap());
        store.empty();
        assert_eq!(dropped(&store, 1), only(|dropped| &mut dropped.emptied, 10));

        let store = builder().build().unwrap();
        let _ = store.extend_pass(pass(10)).unwrap().wait().unwrap();
        store.abort();
        assert_eq!(dropped(&store, 1), only(|dropped| &mut dropped.aborted, 10));

        let store = builder().drop_last(true).build().unwrap();
        drop(store.extend_pass(pass(13)).unwrap());
        store.close();
        assert_eq!(train(&mut store.minibatches()).unwrap().concat().len(), 8);
        assert_eq!(dropped(&store, 1), only(|dropped| &mut dropped.last, 5));

        let store = builder().build().unwrap();
        drop(store.extend(rows(0..7, 1), "b").unwrap());
        drop(store.extend(rows(0..3, 2), "a").unwrap());
        store.close();
        assert_eq!(train(&mut store.minibatches()).unwrap().concat().len(), 3);
        assert_eq!(dropped(&store, 1), only(|dropped| &mut dropped.unmatched, 4));
        assert_eq!(dropped(&store, 0), Dropped::default());

        let store = builder().when_full(WhenFull::DropOldest).build().unwrap();
        let _ = store.extend_pass(pass(400)).unwrap().wait().unwrap();
        store.close();
        let served = train(&mut store.minibatches()).unwrap().concat().len() as u64;
        assert_eq!(dropped(&store, 1), only(|dropped| &mut dropped.oldest, 400 - served));
        assert!(served < 400);
    });
}

#[test]
fn a_batch_that_comes_back_can_be_handed_to_another_store() {
    watchdog(|| {
        let (closed, open) = (builder().build().unwrap(), builder().build().unwrap());
        closed.close();
        let refused = closed.extend_pass([("b", rows(0..9, 1)), ("a", rows(0..9, 2))]).unwrap_err();
        let again: Vec<(&str, Batch)> = ["b", "a"].into_iter().zip(refused.batches).collect();
        drop(open.extend_pass(again).unwrap());
        open.close();
        assert_exactly(0..9, &train(&mut open.minibatches()).unwrap());
    });
}

/// Lanes open, write and end while the store is aborted. Under `RoundRobin`, each lane has a bound of its own.
#[test]
fn an_abort_while_lanes_come_and_go_leaves_the_counters_right() {
    for merge in [Merge::Arrival, Merge::RoundRobin] {
        watchdog(move || {
            for round in 0..60 {
                let store = builder().merge(merge).build().unwrap();
                let mut minibatches = store.minibatches();
                let silent = store.producer().unwrap();
                let queued = store.producer().unwrap();
                drop(queued.extend_pass([("a", rows(0..100, 2)), ("b", rows(0..100, 1))]).unwrap());
                let monitor = store.monitor();
                thread::scope(|scope| {
                    for _ in 0..2 {
                        scope.spawn(|| {
                            while let Ok(lane) = store.producer() {
                                let _ = lane.extend(rows(0..5, 2), "a").map(drop);
                                let _ = lane.reserve("b", 3).unwrap().wait_timeout(Duration::ZERO).map(drop);
                                let _ = lane.extend(rows(0..3, 1), "b").map(drop);
                            }
                        });
                    }
                    scope.spawn(|| {
                        while !monitor.is_closed() {
                            let stats = monitor.stats();
                            assert!(stats.components.iter().all(|component| component.queued < 1 << 32), "{stats:?}");
                            assert_adds_up(&stats);
                        }
                    });
                    (0..round % 40).for_each(|_| thread::yield_now());
                    store.abort();
                });
                assert!(minibatches.next_timeout(LIMIT).unwrap().is_none());
                let stats = monitor.stats();
                assert_adds_up(&stats);
                assert!(
                    stats.components.iter().all(|component| component.queued + component.resident == 0),
                    "{stats:?}"
                );
                // The writer ends without a panic.
                drop((queued, silent));
                assert_eq!(store.flush().wait().unwrap_err().closed_by(), Some(ClosedBy::Abort));
            }
        });
    }
}

/// A run that has ended in order stays in order when its consumers are dropped.
#[test]
fn dropping_the_consumers_of_a_drained_store_changes_nothing() {
    watchdog(|| {
        let store = builder().build().unwrap();
        drop(store.extend(rows(0..9, 2), "a").unwrap());
        drop(store.extend(rows(0..5, 1), "b").unwrap());
        store.close_with(Failure::new("the model failed"));
        let (rows, errors) = items(store.minibatches(), 0);
        assert_eq!(rows, 5);
        assert_failed(&errors, "the model failed");
        // The only consumer is gone.
        let (rows, errors) = items(store.minibatches(), 0);
        assert_eq!(rows, 0);
        assert_failed(&errors, "the model failed");
        assert_eq!(store.extend(common::rows(9..10, 2), "a").unwrap_err().error.closed_by(), Some(ClosedBy::Close));
        assert!(matches!(store.flush().wait().unwrap_err(), WriteError::Unmatched { rows: 4, .. }));
        store.flush().wait().unwrap();
    });
}
