//! A store can open and close thousands of lanes. Each lane has its own rows. Lanes are merged by arrival or in turn.
#![allow(clippy::unwrap_used)]

mod common;

use std::thread;

use activation_store::{Batch, Merge, RingStore, RingStoreBuilder, WriteError};
use common::{LIMIT, assert_adds_up, assert_exactly, drain, rows, watchdog};
use ndarray::Array2;

fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", 2).batch_size(16).window(128).queue_rows(64)
}

#[test]
fn thousands_of_lanes_come_and_go() {
    for merge in [Merge::Arrival, Merge::RoundRobin] {
        watchdog(move || {
            let store = builder().merge(merge).build().unwrap();
            let mut minibatches = store.minibatches();
            let writing = thread::spawn(move || {
                for lane in 0..5000 {
                    let producer = store.producer().unwrap();
                    producer.extend_blocking(rows(lane * 3..lane * 3 + 3, 2), 0).unwrap();
                    if lane % 3 == 0 {
                        producer.close();
                    }
                }
            });
            let served = drain(&mut minibatches);
            writing.join().unwrap();
            assert_exactly(0..15_000, &served);
        });
    }
}

#[test]
fn thousands_of_lanes_are_open_at_once() {
    for merge in [Merge::Arrival, Merge::RoundRobin] {
        watchdog(move || {
            let store = builder().merge(merge).build().unwrap();
            let mut minibatches = store.minibatches();
            let lanes: Vec<_> = (0..3000).map(|_| store.producer().unwrap()).collect();
            drop(store);
            for (lane, producer) in lanes.iter().enumerate() {
                drop(producer.extend(rows(lane * 5..lane * 5 + 5, 2), 0).unwrap());
            }
            // The lanes are written in another order than they were opened in.
            let ending = thread::spawn(move || lanes.into_iter().rev().for_each(drop));
            assert_exactly(0..15_000, &drain(&mut minibatches));
            ending.join().unwrap();
        });
    }
}

#[test]
fn lanes_that_were_never_written_to_hold_no_other_lane_up() {
    for merge in [Merge::Arrival, Merge::RoundRobin] {
        watchdog(move || {
            let store = builder().merge(merge).build().unwrap();
            let mut minibatches = store.minibatches();
            drop((0..1000).map(|_| store.producer().unwrap()).collect::<Vec<_>>());
            drop(store.extend(rows(0..200, 2), 0).unwrap());
            let _never_used = store.producer().unwrap();
            store.close();
            assert_exactly(0..200, &drain(&mut minibatches));
        });
    }
}

#[test]
fn lanes_take_turns_where_asked_to() {
    watchdog(|| {
        let store = builder().merge(Merge::RoundRobin).window(2048).build().unwrap();
        let (first, second) = (store.producer().unwrap(), store.producer().unwrap());
        let ahead = first.extend(rows(0..200, 2), 0).unwrap();
        // After 64 rows, it is the turn of the other lane.
        while store.len() < 64 {
            thread::yield_now();
        }
        assert!(!ahead.is_done());
        let _ = second.extend(rows(1000..1064, 2), 0).unwrap().wait().unwrap();
        while store.len() < 64 + 64 + 64 {
            thread::yield_now();
        }
        assert!(!ahead.is_done());
        // A lane that has ended holds up no other lane.
        drop(second);
        assert_eq!(ahead.wait().unwrap().rows, 200);
        assert_eq!(store.len(), 264);
    });
}

#[test]
fn a_lane_over_its_bound_leaves_the_others_theirs_where_lanes_take_turns() {
    watchdog(|| {
        let store = builder().merge(Merge::RoundRobin).build().unwrap();
        let (greedy, other) = (store.producer().unwrap(), store.producer().unwrap());
        drop(greedy.extend(rows(0..1000, 2), 0).unwrap());
        assert!(greedy.try_extend(rows(0..1, 2), 0).unwrap_err().error.is_full());
        drop(other.try_extend(rows(1000..1064, 2), 0).unwrap());
        let mut minibatches = store.minibatches();
        drop((greedy, other, store));
        assert_exactly(0..1064, &drain(&mut minibatches));
    });
}

#[test]
fn positions_are_per_lane_and_component() {
    watchdog(|| {
        let store = builder().component("b", 1).window(1024).build().unwrap();
        let lanes = [store.producer().unwrap(), store.producer().unwrap()];
        for batch in 0..3 {
            for lane in &lanes {
                for component in 0..2 {
                    let features = 2 - component;
                    let written = lane.extend(Array2::<f32>::zeros((7, features)), component).unwrap().wait().unwrap();
                    assert_eq!((written.rows, written.first_row), (7, batch * 7));
                }
            }
        }
    });
}

#[test]
fn batches_without_rows_are_fine_everywhere() {
    for merge in [Merge::Arrival, Merge::RoundRobin] {
        watchdog(move || {
            let store = builder().component("b", 3).merge(merge).build().unwrap();
            let mut minibatches = store.minibatches();
            let producer = store.producer().unwrap();
            let nothing = || -> Vec<Batch> {
                vec![
                    Array2::<f32>::zeros((0, 2)).into(),
                    Batch::from_vec(Vec::<f32>::new(), 2).unwrap(),
                    Batch::from_vec(Vec::<f32>::new(), 0).unwrap(),
                    Batch::from_owner(Vec::<f32>::new(), 0).unwrap(),
                ]
            };
            for at in 0..50 {
                for batch in nothing() {
                    let written = producer.extend(batch, "a").unwrap().wait().unwrap();
                    assert_eq!((written.rows, written.first_row), (0, at));
                }
                drop(producer.try_extend(vec![at as f32; 2], "a").unwrap());
                producer.extend_blocking(vec![at as f32; 3], "b").unwrap();
            }
            store.flush().wait().unwrap();
            // There are only batches without rows, so there is no minibatch.
            store.producer().unwrap().extend(Array2::<f32>::zeros((0, 2)), 0).map(drop).unwrap();
            drop((store, producer));
            assert_exactly(0..50, &drain(&mut minibatches));
            assert!(minibatches.next_timeout(LIMIT).unwrap().is_none());
        });
    }
}

#[test]
fn each_lane_reports_its_own_unmatched_rows() {
    watchdog(|| {
        let store = builder().component("b", 2).build().unwrap();
        let mut minibatches = store.minibatches();
        let lanes: Vec<_> = (0..20).map(|_| store.producer().unwrap()).collect();
        for (i, lane) in lanes.iter().enumerate() {
            drop(lane.extend(rows(i * 10..i * 10 + 10, 2), 0).unwrap());
            drop(lane.extend(rows(i * 10..i * 10 + i.min(10), 2), 1).unwrap());
        }
        drop(lanes);
        store.close();
        let served: usize = minibatches.blocking().map(|minibatch| minibatch.unwrap().rows()).sum();
        let mut missing = Vec::new();
        while let Err(WriteError::Unmatched { rows, .. }) = store.flush().wait() {
            missing.push(rows);
        }
        missing.sort_unstable();
        assert_eq!(missing, (1..=10).collect::<Vec<_>>());
        assert_eq!(served, 200 - 55);
    });
}

/// A program that never flushes keeps no report for each of its lanes.
#[test]
fn a_store_keeps_the_reports_of_1024_lanes_and_counts_what_the_others_lose() {
    watchdog(|| {
        let store = builder().component("b", 2).build().unwrap();
        let _minibatches = store.minibatches();
        let lose = |rows_lost: usize| {
            let lane = store.producer().unwrap();
            lane.extend(rows(0..rows_lost, 2), 0).unwrap().wait().unwrap();
        };
        let reported = || -> Vec<u64> {
            let report = || match store.flush().wait() {
                Err(WriteError::Unmatched { rows, .. }) => Some(rows),
                other => other.map(|()| None).unwrap(),
            };
            std::iter::from_fn(report).collect()
        };
        (0..1500).for_each(|lane| lose(lane % 5 + 1));
        // The flush itself waits until the writer has ended all lanes.
        assert_eq!(reported(), (0..1024).map(|lane| lane % 5 + 1).collect::<Vec<_>>(), "the oldest lanes");
        assert_eq!(store.stats().components[0].dropped.unmatched, 1500 * 3);
        // Once they are reported, there is room for later lanes.
        lose(7);
        assert_eq!(reported(), [7]);
    });
}

#[test]
fn many_threads_may_share_one_lane() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let producer = store.producer().unwrap();
        thread::scope(|scope| {
            let producer = &producer;
            let writers: Vec<_> = (0..4_usize)
                .map(|thread| {
                    scope.spawn(move || {
                        (thread * 500..(thread + 1) * 500)
                            .step_by(5)
                            .map(|at| producer.extend(rows(at..at + 5, 2), 0).unwrap())
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            let serving = scope.spawn(move || drain(&mut minibatches));
            // Each write has its own position.
            let mut firsts: Vec<u64> = writers
                .into_iter()
                .flat_map(|writer| writer.join().unwrap())
                .map(|handle| handle.wait().unwrap().first_row)
                .collect();
            firsts.sort_unstable();
            assert_eq!(firsts, (0..2000).step_by(5).collect::<Vec<_>>());
            store.close();
            assert_exactly(0..2000, &serving.join().unwrap());
        });
        assert_adds_up(&store.stats());
    });
}
