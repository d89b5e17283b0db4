//! Promise 5: row r of every component comes from the same token. The components may come in any order.
#![allow(clippy::unwrap_used)]

mod common;

use std::thread;

use activation_store::{DType, Minibatch, RingStore, RingStoreBuilder, WhenFull, WriteError};
use common::{LIMIT, Random, assert_adds_up, assert_exactly, id_rows, rows, watchdog};
use futures::executor::block_on;
use half::bf16;
use ndarray::{Array2, Axis};

/// Four components of different widths and element types. The values of each row show its token.
fn builder() -> RingStoreBuilder {
    RingStore::builder()
        .component("narrow", 1)
        .component("wide", 37)
        .component_of("half", 5, DType::BF16)
        .component_of("token", 1, DType::I64)
        .batch_size(8)
        .window(64)
        .queue_rows(20)
        .max_skew(64)
}

fn extend(store: &RingStore, component: usize, ids: std::ops::Range<usize>) -> activation_store::WriteHandle {
    match component {
        0 => store.extend(rows(ids, 1), 0),
        1 => store.extend(rows(ids, 37), 1),
        // A bf16 holds integers up to 256.
        2 => store.extend(rows(ids, 5).mapv(|id| bf16::from_f32(id % 256.0)), 2),
        _ => store.extend(id_rows(ids), 3),
    }
    .unwrap()
}

/// Returns the tokens of a minibatch. Fails unless all components agree on them.
fn tokens(minibatch: &Minibatch) -> Vec<usize> {
    let tokens = common::long_ids(minibatch, 3);
    assert_eq!(common::ids(minibatch, 0), tokens);
    assert_eq!(common::ids(minibatch, 1), tokens);
    for (row, token) in minibatch.view::<bf16>("half").unwrap().axis_iter(Axis(0)).zip(&tokens) {
        assert!(row.iter().all(|value| value.to_f32() == (token % 256) as f32), "{row} is not of {token}");
    }
    tokens
}

fn finish(store: &RingStore) -> Vec<Vec<usize>> {
    store.close();
    store.minibatches().blocking().map(|minibatch| tokens(&minibatch.unwrap())).collect()
}

#[test]
fn components_may_come_in_any_order_and_in_any_pieces() {
    for seed in 0..20 {
        watchdog(move || {
            let store = builder().max_skew(1000).build().unwrap();
            let mut random = Random::new(seed);
            let mut at = [0; 4];
            while at != [500; 4] {
                let component = random.below(4);
                let n = random.below(60).min(500 - at[component]);
                drop(extend(&store, component, at[component]..at[component] + n));
                at[component] += n;
            }
            assert_exactly(0..500, &finish(&store));
        });
    }
}

#[test]
fn awaiting_one_component_before_sending_the_next_works() {
    watchdog(|| {
        block_on(async {
            let store = builder().build().unwrap();
            for component in [3, 1, 0, 2] {
                // The batch is larger than the queue, and no consumer takes rows.
                let written = extend(&store, component, 0..36).await.unwrap();
                assert_eq!((written.rows, written.first_row), (36, 0));
                let written = extend(&store, component, 36..40).await.unwrap();
                assert_eq!((written.rows, written.first_row), (4, 36));
            }
            assert_eq!(store.stats().components[3].accepted, 40);
            assert_exactly(0..40, &finish(&store));
        });
    });
}

#[test]
fn rows_wait_for_their_other_components() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        for component in 0..3 {
            let _ = extend(&store, component, 0..64).wait().unwrap();
        }
        store.flush().wait().unwrap();
        assert_eq!(store.len(), 0, "no row is whole");
        let stats = store.stats();
        let resident: Vec<u64> = stats.components.iter().map(|component| component.resident).collect();
        assert_eq!(resident, [64, 64, 64, 0]);
        assert_adds_up(&stats);
        assert!(minibatches.next_timeout(std::time::Duration::ZERO).unwrap_err().is_timeout());
        let _ = extend(&store, 3, 0..40).wait().unwrap();
        // All counterparts of these rows had come, so the handle resolves when the rows are in the ring.
        assert!(minibatches.next_timeout(LIMIT).unwrap().is_some());
    });
}

/// A slow component of one lane holds up neither the other components of the lane nor other lanes.
#[test]
fn a_slow_component_blocks_no_other_writer() {
    watchdog(|| {
        let store = builder().max_skew(10_000).build().unwrap();
        let mut minibatches = store.minibatches();
        let slow = store.producer().unwrap();
        for at in (0..1000).step_by(50) {
            let _ = slow.extend(rows(at..at + 50, 1), 0).unwrap().wait().unwrap();
        }
        let quick = thread::spawn({
            let store = store.clone();
            move || {
                for at in (0..1000).step_by(50) {
                    (0..4).for_each(|component| extend(&store, component, at..at + 50).wait().map(drop).unwrap());
                }
            }
        });
        let mut served = 0;
        while served < 960 {
            served += tokens(&minibatches.next_timeout(LIMIT).unwrap().unwrap()).len();
        }
        quick.join().unwrap();
    });
}

#[test]
fn a_component_that_never_arrives_is_named_not_waited_for() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let error = (0..)
            .map(|batch| batch * 10..batch * 10 + 10)
            .find_map(|ids| {
                for component in [0, 1, 3] {
                    let result = match component {
                        0 => store.extend_blocking(rows(ids.clone(), 1), 0),
                        1 => store.extend_blocking(rows(ids.clone(), 37), 1),
                        _ => store.extend_blocking(id_rows(ids.clone()), 3),
                    };
                    if let Err(refused) = result {
                        assert_eq!(refused.batch.rows(), 10);
                        return Some(refused.error);
                    }
                }
                None
            })
            .unwrap();
        let WriteError::Skew { ahead, missing, by, max_skew } = &error else { panic!("{error}") };
        assert_eq!((ahead.index, &*missing.name, *by, *max_skew), (0, "half", 60, 64));
        // A close drops rows that never became whole. The loop ends without an error, and a flush reports the rows.
        let mut minibatches = store.minibatches();
        store.close();
        assert!(minibatches.next_timeout(LIMIT).unwrap().is_none());
        let error = store.flush().wait().unwrap_err().to_string();
        assert!(error.contains("60 rows") && error.contains("2 (\"half\")"), "{error}");
        let stats = store.stats();
        assert_adds_up(&stats);
        let dropped: Vec<u64> = stats.components.iter().map(|component| component.dropped.total()).collect();
        assert_eq!(dropped, [60, 60, 0, 60]);
    });
}

#[test]
fn concurrent_lanes_do_not_mix_their_rows() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let lanes: Vec<_> = (0..4_usize)
            .map(|lane| {
                let producer = store.producer().unwrap();
                thread::spawn(move || {
                    let mut random = Random::new(lane as u64);
                    let (mut at, end) = (lane * 2000, (lane + 1) * 2000);
                    while at < end {
                        let ids = at..(at + 1 + random.below(30)).min(end);
                        at = ids.end;
                        let mut order = [0, 1, 2, 3];
                        order.rotate_left(random.below(4));
                        for component in order {
                            let batch: activation_store::Batch = match component {
                                0 => rows(ids.clone(), 1).into(),
                                1 => rows(ids.clone(), 37).into(),
                                2 => rows(ids.clone(), 5).mapv(|id| bf16::from_f32(id % 256.0)).into(),
                                _ => id_rows(ids.clone()).into(),
                            };
                            producer.extend_blocking(batch, component).unwrap();
                        }
                    }
                })
            })
            .collect();
        drop(store);
        let served: Vec<_> = minibatches.blocking().map(|minibatch| tokens(&minibatch.unwrap())).collect();
        lanes.into_iter().for_each(|lane| lane.join().unwrap());
        assert_exactly(0..8000, &served);
    });
}

/// Each thread of one lane sends one component, as in a pipeline-parallel model.
#[test]
fn one_thread_per_component_keeps_the_order_of_each() {
    watchdog(|| {
        let store = builder().max_skew(100_000).build().unwrap();
        let mut minibatches = store.minibatches();
        let threads: Vec<_> = (0..4)
            .map(|component| {
                let store = store.clone();
                thread::spawn(move || {
                    for at in (0..3000).step_by(25) {
                        drop(store.reserve(component, 25).unwrap().wait().unwrap());
                        drop(extend(&store, component, at..at + 25));
                    }
                })
            })
            .collect();
        drop(store);
        let served: Vec<_> = minibatches.blocking().map(|minibatch| tokens(&minibatch.unwrap())).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_exactly(0..3000, &served);
    });
}

#[test]
fn emptying_keeps_components_aligned() {
    for seed in 0..30 {
        watchdog(move || {
            let store = builder().max_skew(1000).build().unwrap();
            let mut random = Random::new(seed);
            let mut at = [0; 4];
            let mut most = 0;
            for _ in 0..3 {
                for _ in 0..10 {
                    let (component, n) = (random.below(4), random.below(40));
                    drop(extend(&store, component, at[component]..at[component] + n));
                    at[component] += n;
                }
                most = *at.iter().max().unwrap();
                store.empty();
                assert_eq!(store.len(), 0);
                assert_adds_up(&store.stats());
            }
            // Counterparts of discarded rows are discarded when they come. The rows after them are whole.
            for (component, at) in at.into_iter().enumerate() {
                drop(extend(&store, component, at..most + 100));
            }
            assert_exactly(most..most + 100, &finish(&store));
            let stats = store.stats();
            assert_adds_up(&stats);
            assert!(stats.components.iter().all(|component| component.accepted == most as u64 + 100));
        });
    }
}

#[test]
fn equal_components_stack_without_a_copy() {
    watchdog(|| {
        let builder = RingStore::builder().component("a", 5).component("b", 5).component("c", 5);
        let store = builder.batch_size(8).window(32).build().unwrap();
        for component in 0..3 {
            let batch: Array2<f32> = rows(0..36, 5) * 4.0 + component as f32;
            drop(store.extend(batch, component).unwrap());
        }
        store.close();
        let mut total = 0;
        for minibatch in store.minibatches().blocking() {
            let minibatch = minibatch.unwrap();
            let stacked = minibatch.stacked::<f32>().unwrap();
            assert_eq!(stacked.dim(), (minibatch.rows(), 3, 5));
            assert_eq!(stacked.as_ptr().cast(), minibatch.bytes(0).unwrap().as_ptr());
            for component in 0..3 {
                assert_eq!(stacked.index_axis(Axis(1), component), minibatch.view::<f32>(component).unwrap());
            }
            for row in stacked.axis_iter(Axis(0)) {
                assert_eq!((row[[1, 0]], row[[2, 4]]), (row[[0, 0]] + 1.0, row[[0, 0]] + 2.0));
            }
            total += minibatch.rows();
        }
        assert_eq!(total, 36);
    });
}

/// A hook that finds no room can give up the whole forward pass at its first component. A later component is never refused.
#[test]
fn rows_whose_counterparts_were_taken_are_not_refused() {
    for when_full in [WhenFull::Wait, WhenFull::Reject] {
        watchdog(move || {
            let builder = RingStore::builder().component("a", 1).component("b", 1).batch_size(4).window(8);
            let store = builder.queue_rows(10).when_full(when_full).build().unwrap();
            let mut at = 0;
            let mut pass = || match store.try_extend(rows(at..at + 5, 1), "a") {
                Ok(_) => {
                    drop(store.try_extend(rows(at..at + 5, 1), "b").unwrap());
                    at += 5;
                    true
                }
                Err(refused) => {
                    assert!(refused.error.is_full(), "{refused}");
                    assert!(refused.to_string().contains("of 10; wait for the consumers"), "{refused}");
                    at += 5;
                    false
                }
            };
            // No consumer takes rows, so first the ring and then the queue fill up and stay full.
            while store.stats().waited_for_consumers.is_zero() {
                pass();
            }
            while pass() {}
            if when_full == WhenFull::Wait {
                drop(store.extend(rows(900_000..900_030, 1), "a").unwrap());
                drop(store.try_extend(rows(900_000..900_030, 1), "b").unwrap());
            }
            assert!(store.try_extend(rows(0..5, 1), "b").unwrap_err().error.is_full());
            let mut minibatches = store.minibatches();
            let consumer = thread::spawn(move || {
                for minibatch in minibatches.blocking() {
                    let minibatch = minibatch.unwrap();
                    assert_eq!(common::ids(&minibatch, 0), common::ids(&minibatch, 1));
                }
            });
            // The queue is sometimes full and sometimes empty, depending on how the threads run.
            while (0..5000).filter(|_| pass()).count() < 10 {}
            store.close();
            consumer.join().unwrap();
            assert_adds_up(&store.stats());
        });
    }
}
