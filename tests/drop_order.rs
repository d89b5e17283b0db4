//! Promise 8: parts of a store can be dropped in any order. Nothing hangs, every handle gets its outcome, and all memory comes back.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use activation_store::{
    Batch, Epoch, Flush, Minibatch, Minibatches, Producer, RingStore, TensorStore, WriteError, WriteHandle,
};
use common::{LIMIT, Lent, rows, watchdog_for};
use tokio::runtime::Runtime;

/// The parts that a program may hold. The test takes the fields one by one.
#[derive(Default)]
struct Held {
    store: Option<RingStore>,
    producer: Option<Producer>,
    minibatches: Option<Minibatches>,
    minibatch: Option<Minibatch>,
    handles: Vec<WriteHandle>,
    flush: Option<Flush>,
    runtime: Option<Runtime>,
}

const PARTS: [&str; 7] = ["store", "producer", "minibatches", "minibatch", "handles", "flush", "runtime"];

impl Held {
    fn drop_part(&mut self, part: usize) {
        match part {
            0 => drop(self.store.take()),
            1 => drop(self.producer.take()),
            2 => drop(self.minibatches.take()),
            3 => drop(self.minibatch.take()),
            4 => self.handles.clear(),
            5 => drop(self.flush.take()),
            _ => drop(self.runtime.take()),
        }
    }
}

/// Returns all orders of `parts` things.
fn permutations(parts: usize) -> Vec<Vec<usize>> {
    if parts == 0 {
        return vec![Vec::new()];
    }
    let with_last = |order: Vec<usize>| {
        (0..parts).map(move |at| {
            let mut order = order.clone();
            order.insert(at, parts - 1);
            order
        })
    };
    permutations(parts - 1).into_iter().flat_map(with_last).collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Where {
    Own,
    CurrentThreadRuntime,
    MultiThreadRuntime,
}

fn runtime(place: Where) -> Option<Runtime> {
    match place {
        Where::Own => None,
        Where::CurrentThreadRuntime => Some(tokio::runtime::Builder::new_current_thread().build().unwrap()),
        Where::MultiThreadRuntime => {
            Some(tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap())
        }
    }
}

/// Makes a store at work. One minibatch is out, two are ready, the queue is over its bound, and a flush is pending.
fn at_work(place: Where, returned: &Arc<AtomicUsize>) -> Held {
    let runtime = runtime(place);
    let builder = RingStore::builder().component("a", 2).batch_size(4).window(16).ready_frames(2).queue_rows(8);
    let inside = runtime.as_ref().map(Runtime::enter);
    let store = builder.build().unwrap();
    drop(inside);
    let producer = store.producer().unwrap();
    let mut minibatches = store.minibatches();
    let lend = |n: usize| {
        let owner = Lent { values: vec![0.0; 2 * n], returned: returned.clone() };
        Batch::from_owner(owner, 2).unwrap()
    };
    let mut handles = vec![store.extend(lend(12), 0).unwrap()];
    let minibatch = minibatches.next_timeout(LIMIT).unwrap();
    for _ in 0..3 {
        handles.push(store.extend(lend(9), 0).unwrap());
        handles.push(producer.extend(lend(9), 0).unwrap());
    }
    let flush = store.flush();
    Held {
        store: Some(store),
        producer: Some(producer),
        minibatches: Some(minibatches),
        minibatch,
        handles,
        flush: Some(flush),
        runtime,
    }
}

/// Waits until the memory of all batches is back. The writer gives it back when it is done with the batches.
fn wait_for(returned: &AtomicUsize, batches: usize) {
    while returned.load(Ordering::SeqCst) < batches {
        thread::yield_now();
    }
}

#[test]
fn everything_may_be_dropped_in_any_order() {
    for place in [Where::Own, Where::CurrentThreadRuntime, Where::MultiThreadRuntime] {
        let parts = if place == Where::Own { 6 } else { 7 };
        // Runtimes start slowly, so only every fifth order is tested. With seven parts, that is over a thousand.
        let step = if place == Where::Own { 1 } else { 5 };
        for order in permutations(parts).into_iter().step_by(step) {
            let names: Vec<_> = order.iter().map(|&part| PARTS[part]).collect();
            watchdog_for(&format!("{place:?}: dropping {names:?}"), move || {
                let returned = Arc::new(AtomicUsize::new(0));
                let mut held = at_work(place, &returned);
                order.into_iter().for_each(|part| held.drop_part(part));
                wait_for(&returned, 7);
            });
        }
    }
}

/// The test keeps the handles and the flush to the end. Each of them must have an outcome then.
#[test]
fn no_handle_is_lost_in_any_drop_order_of_the_other_parts() {
    for place in [Where::Own, Where::CurrentThreadRuntime, Where::MultiThreadRuntime] {
        for order in permutations(4) {
            watchdog_for(&format!("{place:?}: dropping {order:?}"), move || {
                let returned = Arc::new(AtomicUsize::new(0));
                let mut held = at_work(place, &returned);
                for part in order {
                    held.drop_part(part);
                }
                drop(held.runtime.take());
                for handle in held.handles {
                    match handle.wait() {
                        Ok(written) => assert!(written.rows == 12 || written.rows == 9),
                        Err(WriteError::Closed(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                let _ = held.flush.take().unwrap().wait();
                wait_for(&returned, 7);
            });
        }
    }
}

/// The store ends while threads produce and consume. All threads come back.
#[test]
fn threads_at_work_come_back_however_the_store_ends() {
    let ends: [fn(&RingStore); 4] = [RingStore::close, RingStore::abort, RingStore::empty, |_| {}];
    for (i, end) in ends.into_iter().enumerate() {
        for consumers in 0..3 {
            watchdog_for(&format!("end {i} with {consumers} consumers"), move || {
                let store =
                    RingStore::builder().component("a", 2).batch_size(4).window(16).queue_rows(8).build().unwrap();
                let mut threads = Vec::new();
                for _ in 0..2 {
                    let producer = store.producer().unwrap();
                    threads.push(thread::spawn(move || {
                        for _ in 0..100 {
                            if producer.extend_blocking(rows(0..10, 2), 0).is_err() {
                                break;
                            }
                        }
                    }));
                }
                for i in 0..consumers {
                    let mut minibatches = store.minibatches();
                    threads.push(thread::spawn(move || {
                        // One consumer leaves early.
                        let enough = if i == 0 { 3 } else { usize::MAX };
                        minibatches.blocking().take(enough).for_each(|minibatch| drop(minibatch.unwrap()));
                    }));
                }
                thread::yield_now();
                end(&store);
                if consumers == 0 {
                    // No consumer makes room, so only the end frees the producers.
                    store.abort();
                }
                drop(store);
                threads.into_iter().for_each(|thread| thread.join().unwrap());
            });
        }
    }
}

#[test]
fn a_tensor_store_may_be_dropped_in_any_order() {
    struct Held(Option<TensorStore>, Option<WriteHandle>, Option<Epoch>, Option<Minibatch>, Option<Runtime>);
    for place in [Where::Own, Where::CurrentThreadRuntime, Where::MultiThreadRuntime] {
        for order in permutations(5) {
            watchdog_for(&format!("{place:?}: dropping {order:?}"), move || {
                let returned = Arc::new(AtomicUsize::new(0));
                let runtime = runtime(place);
                let builder = TensorStore::builder().component("a", 2).max_items(100);
                let inside = runtime.as_ref().map(Runtime::enter);
                let store = builder.build().unwrap();
                drop(inside);
                let lend = || {
                    let owner = Lent { values: vec![0.0; 40], returned: returned.clone() };
                    Batch::from_owner(owner, 2).unwrap()
                };
                drop(store.extend(lend(), 0).unwrap());
                let mut epoch = store.epoch(6).unwrap();
                let minibatch = epoch.next();
                let handle = store.extend(lend(), 0).unwrap();
                let mut held = Held(Some(store), Some(handle), Some(epoch), minibatch, runtime);
                for part in order {
                    match part {
                        0 => drop(held.0.take()),
                        1 => drop(held.1.take().unwrap().wait().unwrap()),
                        2 => drop(held.2.take()),
                        3 => drop(held.3.take()),
                        _ => drop(held.4.take()),
                    }
                }
                wait_for(&returned, 2);
            });
        }
    }
}

/// A batch may own its store. Then the writer itself drops the last handle.
#[test]
fn the_writer_may_drop_the_last_handle_of_its_own_store() {
    struct Owner(Vec<f32>, #[expect(dead_code, reason = "held")] RingStore, Arc<AtomicUsize>);
    impl AsRef<[f32]> for Owner {
        fn as_ref(&self) -> &[f32] {
            &self.0
        }
    }
    impl Drop for Owner {
        fn drop(&mut self) {
            self.2.fetch_add(1, Ordering::SeqCst);
        }
    }
    for consume in [false, true] {
        watchdog_for("a batch that owns its store", move || {
            let returned = Arc::new(AtomicUsize::new(0));
            let store = RingStore::builder().component("a", 2).batch_size(4).window(16).build().unwrap();
            let minibatches = consume.then(|| store.minibatches());
            let owner = Owner(vec![1.0; 24], store.clone(), returned.clone());
            let handle = store.extend(Batch::from_owner(owner, 2).unwrap(), 0).unwrap();
            drop(store);
            if let Some(mut minibatches) = minibatches {
                assert_eq!(common::drain(&mut minibatches).concat().len(), 12);
            }
            match handle.wait() {
                Ok(written) => assert_eq!(written.rows, 12),
                // The handle of the store went with the batch, so no consumer can be made any more.
                Err(error) => assert!(!consume && error.is_closed(), "{error}"),
            }
            wait_for(&returned, 1);
        });
    }
}
