//! The same store runs under tokio's two flavours, under another executor, and without a runtime.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use activation_store::{RingStore, RingStoreBuilder, TensorStore};
use common::{Lent, assert_exactly, drain, ids, rows, watchdog};
use futures::StreamExt;
use futures::executor::block_on;
use tokio::runtime::{Builder, Runtime};

fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", 3).batch_size(8).window(32).seed(3)
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn multi_thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// One task writes and awaits, the other drains.
async fn pipeline() {
    let store = builder().build().unwrap();
    let mut minibatches = store.minibatches();
    let producer = async move {
        for batch in 0..40 {
            let written = store.extend(rows(batch * 5..batch * 5 + 5, 3), 0).unwrap().await.unwrap();
            assert_eq!((written.rows, written.first_row), (5, batch as u64 * 5));
        }
    };
    let consumer = async move {
        let mut served = Vec::new();
        while let Some(minibatch) = minibatches.next().await {
            served.push(ids(&minibatch.unwrap(), 0));
        }
        served
    };
    let ((), served) = futures::join!(producer, consumer);
    assert_exactly(0..200, &served);
}

#[test]
fn current_thread_tokio() {
    watchdog(|| current_thread().block_on(pipeline()));
}

#[test]
fn multi_thread_tokio() {
    watchdog(|| multi_thread().block_on(async { tokio::spawn(pipeline()).await.unwrap() }));
}

#[test]
fn futures_executor() {
    watchdog(|| block_on(pipeline()));
}

#[test]
fn plain_threads() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let producer = std::thread::spawn(move || {
            for batch in 0..40 {
                store.extend_blocking(rows(batch * 5..batch * 5 + 5, 3), "a").unwrap();
            }
        });
        assert_exactly(0..200, &drain(&mut minibatches));
        producer.join().unwrap();
    });
}

#[test]
fn an_executor_may_poll_from_many_threads_at_once() {
    watchdog(|| {
        multi_thread().block_on(async {
            let store = builder().queue_rows(8).build().unwrap();
            let consumers: Vec<_> = (0..3).map(|_| store.minibatches()).collect();
            let consumers: Vec<_> = consumers
                .into_iter()
                .map(|consumer| tokio::spawn(consumer.map(|minibatch| ids(&minibatch.unwrap(), 0)).collect::<Vec<_>>()))
                .collect();
            let producers: Vec<_> = (0..4_usize)
                .map(|lane| {
                    let producer = store.producer().unwrap();
                    tokio::spawn(async move {
                        for at in (lane * 1000..(lane + 1) * 1000).step_by(20) {
                            let _ = producer.extend(rows(at..at + 20, 3), 0).unwrap().await.unwrap();
                        }
                    })
                })
                .collect();
            for producer in producers {
                producer.await.unwrap();
            }
            drop(store);
            let mut served = Vec::new();
            for consumer in consumers {
                served.extend(consumer.await.unwrap());
            }
            assert_exactly(0..4000, &served);
        });
    });
}

/// A task that blocks never returns to tokio. When its budget of polls is used up, tokio tells it to wait for its next turn, which would
/// never come.
#[test]
fn thousands_of_waits_in_one_task_do_not_hang() {
    for runtime in [current_thread, multi_thread] {
        watchdog(move || {
            runtime().block_on(async {
                let store = builder().window(4096).build().unwrap();
                for row in 0..1000 {
                    let _ = store.append(vec![row as f32; 3], 0).unwrap().wait().unwrap();
                    store.flush().wait().unwrap();
                }
                assert_eq!(store.len(), 1000);
            });
        });
        watchdog(move || {
            runtime().block_on(async {
                tokio::spawn(async {
                    let store = builder().window(4096).build().unwrap();
                    for row in 0..1000 {
                        let _ = block_on(store.append(vec![row as f32; 3], 0).unwrap()).unwrap();
                        block_on(store.flush()).unwrap();
                    }
                    store.close();
                    let mut minibatches = store.minibatches();
                    let mut served = 0;
                    while let Some(minibatch) = block_on(minibatches.next()) {
                        served += minibatch.unwrap().rows();
                    }
                    assert_eq!(served, 1000);
                })
                .await
                .unwrap();
            });
        });
    }
}

#[test]
fn a_store_outlives_its_runtime() {
    for runtime in [current_thread, multi_thread] {
        watchdog(move || {
            let runtime = runtime();
            let store = {
                let _inside = runtime.enter();
                builder().queue_rows(8).build().unwrap()
            };
            let mut minibatches = store.minibatches();
            let _ = store.extend(rows(0..20, 3), 0).unwrap().wait().unwrap();
            drop(runtime); // does not wait for ever
            let producer = std::thread::spawn(move || {
                for batch in 4..40 {
                    store.extend_blocking(rows(batch * 5..batch * 5 + 5, 3), 0).unwrap();
                }
            });
            assert_exactly(0..200, &drain(&mut minibatches));
            producer.join().unwrap();
        });
    }
}

#[test]
fn a_runtime_shuts_down_while_the_ring_is_full() {
    for runtime in [current_thread, multi_thread] {
        watchdog(move || {
            let runtime = runtime();
            let inside = runtime.enter();
            let store = builder().build().unwrap();
            drop(inside);
            let handle = store.extend(rows(0..200, 3), 0).unwrap();
            while store.stats().frames_ready < 2 {
                std::thread::yield_now();
            }
            drop(runtime);
            assert!(!handle.is_done());
            store.close();
            assert_exactly(0..200, &drain(&mut store.minibatches()));
            assert_eq!(handle.wait().unwrap().rows, 200);
        });
    }
}

#[test]
fn a_runtime_that_is_already_gone_will_do() {
    watchdog(|| {
        for make in [current_thread, multi_thread] {
            let runtime = make();
            let handle = runtime.handle().clone();
            drop(runtime);
            let inside = handle.enter();
            let store = builder().build().unwrap();
            let _ = store.extend(rows(0..20, 3), 0).unwrap().wait().unwrap();
            assert_exactly(0..20, &common::finish(&store));
            let store = TensorStore::builder().component("a", 3).max_items(20).build().unwrap();
            drop(inside);
            let _ = store.extend(rows(0..20, 3), 0).unwrap().wait().unwrap();
            assert_eq!(store.len(), 20);
        }
    });
}

#[test]
fn a_tensor_store_outlives_its_runtime() {
    for runtime in [current_thread, multi_thread] {
        watchdog(move || {
            let runtime = runtime();
            let inside = runtime.enter();
            let store = TensorStore::builder().component("a", 3).max_items(50).build().unwrap();
            drop(inside);
            let _ = store.extend(rows(0..20, 3), 0).unwrap().wait().unwrap();
            drop(runtime);
            let _ = store.extend(rows(20..50, 3), 0).unwrap().wait().unwrap();
            assert_eq!(store.epoch(16).unwrap().map(|minibatch| minibatch.rows()).sum::<usize>(), 50);
        });
    }
}

/// If a writer did not end, it would keep its lent memory and its thread, and the shutdown would wait for the thread.
#[test]
fn writers_end_with_their_stores() {
    for runtime in [current_thread, multi_thread] {
        watchdog(move || {
            let runtime = runtime();
            let returned = Arc::new(AtomicUsize::new(0));
            let lend = || {
                let values = vec![0.0; 3 * 500];
                let owner = Lent { values, returned: returned.clone() };
                activation_store::Batch::from_owner(owner, 3).unwrap()
            };
            for leave_full in [false, true] {
                let inside = runtime.enter();
                let store = builder().build().unwrap();
                let tensor = TensorStore::builder().component("a", 3).max_items(500).build().unwrap();
                drop(inside);
                drop(tensor.extend(lend(), 0).unwrap());
                if leave_full {
                    drop(store.extend(lend(), 0).unwrap());
                }
            }
            // This returns only if both writers on the blocking pool of the runtime end.
            let (done, shut_down) = mpsc::channel();
            std::thread::spawn(move || {
                drop(runtime);
                let _ = done.send(());
            });
            shut_down.recv_timeout(common::LIMIT).unwrap();
            while returned.load(Ordering::SeqCst) < 3 {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
}

#[test]
fn the_blocking_consumer_works_inside_a_runtime() {
    watchdog(|| {
        multi_thread().block_on(async {
            let store = builder().build().unwrap();
            drop(store.extend(rows(0..1000, 3), 0).unwrap());
            store.close();
            let served = tokio::task::spawn_blocking(move || drain(&mut store.minibatches())).await.unwrap();
            assert_exactly(0..1000, &served);
        });
    });
}

/// A store has a thread of its own, so it takes none of the runtime's.
#[test]
fn the_blocking_pool_of_the_runtime_stays_free() {
    watchdog(|| {
        let one =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).max_blocking_threads(1).build().unwrap();
        one.block_on(async {
            let stores: Vec<_> = (0..3).map(|_| builder().build().unwrap()).collect();
            let tensor = TensorStore::builder().component("a", 3).max_items(20).build().unwrap();
            for store in &stores {
                let _ = store.extend(rows(0..20, 3), 0).unwrap().await.unwrap();
            }
            let _ = tensor.extend(rows(0..20, 3), 0).unwrap().await.unwrap();
            assert_eq!(tokio::task::spawn_blocking(|| 7).await.unwrap(), 7);
            for store in &stores {
                let served = store.clone();
                let drained = tokio::task::spawn_blocking(move || common::finish(&served));
                assert_exactly(0..20, &drained.await.unwrap());
            }
        });
    });
}

/// The stacks are so large that the operating system refuses every thread of the runtime.
#[cfg(target_os = "linux")]
#[test]
fn a_runtime_that_cannot_start_a_thread_will_do() {
    watchdog(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().thread_stack_size(1 << 46).build().unwrap();
        let _inside = runtime.enter();
        let store = builder().build().unwrap();
        let _ = store.extend(rows(0..20, 3), 0).unwrap().wait().unwrap();
        assert_exactly(0..20, &common::finish(&store));
    });
}

/// The request or the shutdown may come first, or the writer may see both at once.
#[test]
fn requests_are_fulfilled_although_the_runtime_shuts_down_at_the_same_time() {
    for round in 0..200 {
        watchdog(move || {
            let runtime = multi_thread();
            let inside = runtime.enter();
            let store = builder().queue_rows(1000).build().unwrap();
            drop(inside);
            let minibatches = store.minibatches();
            drop(store.extend(rows(0..20, 3), 0).unwrap());
            let emptying = std::thread::spawn({
                let store = store.clone();
                move || {
                    (0..round % 20).for_each(|_| std::hint::spin_loop());
                    store.empty();
                    let left = store.len();
                    let got = store.get(..).map(|rows| rows.shape()[0]);
                    (left, got)
                }
            });
            runtime.shutdown_background();
            assert_eq!(emptying.join().unwrap(), (0, Ok(0)));
            drop(minibatches);
        });
    }
}
