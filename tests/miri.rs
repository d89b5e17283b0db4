//! Small runs of everything that touches raw memory or crosses threads. They are few enough for Miri.
#![allow(clippy::unwrap_used)]

mod common;

use std::thread;

use activation_store::{Batch, DType, Form, Index, Merge, RingStore, RingStoreBuilder, TensorStore};
use common::{LIMIT, assert_adds_up, assert_exactly, drain, id_rows, ids, long_ids, rows};
use futures::StreamExt;
use futures::executor::block_on;
use ndarray::s;

fn builder() -> RingStoreBuilder {
    RingStore::builder()
        .component("a", 3)
        .component_of("id", 1, DType::I64)
        .batch_size(4)
        .window(8)
        .ready_frames(1)
        .queue_rows(8)
}

#[test]
fn two_producers_a_blocking_and_an_async_consumer() {
    for merge in [Merge::Arrival, Merge::RoundRobin] {
        let store = builder().merge(merge).build().unwrap();
        let (mut blocking, stream) = (store.minibatches(), store.minibatches());
        let lanes = [store.producer().unwrap(), store.producer().unwrap()];
        drop(store);
        let served = thread::scope(|scope| {
            for (lane, producer) in lanes.into_iter().enumerate() {
                scope.spawn(move || {
                    for at in (lane * 20..lane * 20 + 18).step_by(6) {
                        drop(producer.extend(id_rows(at..at + 6), 1).unwrap());
                        producer.extend_blocking(rows(at..at + 6, 3), 0).unwrap();
                    }
                });
            }
            let one = scope.spawn(move || {
                let ids = |minibatch: activation_store::Minibatch| {
                    assert_eq!(ids(&minibatch, 0), long_ids(&minibatch, 1));
                    ids(&minibatch, 0)
                };
                blocking.blocking().map(|minibatch| ids(minibatch.unwrap())).collect::<Vec<_>>()
            });
            let other =
                scope.spawn(move || block_on(stream.map(|minibatch| ids(&minibatch.unwrap(), 0)).collect::<Vec<_>>()));
            [one.join().unwrap(), other.join().unwrap()].concat()
        });
        let mut served = served.concat();
        served.sort_unstable();
        assert_eq!(served, (0..18).chain(20..38).collect::<Vec<_>>());
    }
}

#[test]
fn kept_minibatches_have_memory_of_their_own() {
    let store = builder().build().unwrap();
    let mut minibatches = store.minibatches();
    let writing = thread::spawn(move || {
        for at in (0..40).step_by(5) {
            drop(store.extend(rows(at..at + 5, 3), 0).unwrap());
            store.extend_blocking(id_rows(at..at + 5), 1).unwrap();
        }
    });
    let mut kept: Vec<_> = minibatches.blocking().map(|minibatch| minibatch.unwrap()).collect();
    writing.join().unwrap();
    drop(minibatches);
    kept[1].view_mut::<f32>(0).unwrap().fill(7.0);
    let kept = thread::spawn(move || {
        let served: Vec<_> = kept.iter().map(|minibatch| long_ids(minibatch, 1)).collect();
        assert_exactly(0..40, &served);
        assert_eq!(kept[0].bytes(0).unwrap().len(), 4 * 3 * 4);
        kept
    });
    drop(kept.join().unwrap());
}

#[test]
fn everything_is_dropped_in_some_orders() {
    for order in 0..4 {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let handle = store.extend(rows(0..30, 3), 0).unwrap();
        drop(store.extend(id_rows(0..30), 1).unwrap());
        let minibatch = minibatches.next_timeout(LIMIT).unwrap().unwrap();
        match order {
            0 => drop((store, minibatches, minibatch)),
            1 => drop((minibatch, minibatches, store)),
            2 => {
                store.abort();
                drop((minibatches, minibatch, store));
            }
            _ => {
                store.close();
                drop(drain(&mut minibatches));
                drop((store, minibatch, minibatches));
            }
        }
        let _ = handle.wait();
    }
}

#[test]
fn a_panic_of_the_writer_reaches_the_waiting() {
    struct Bomb(Vec<f32>, thread::ThreadId);
    impl AsRef<[f32]> for Bomb {
        fn as_ref(&self) -> &[f32] {
            assert_eq!(thread::current().id(), self.1, "the bomb was read");
            &self.0
        }
    }
    let bomb = || Batch::from_owner(Bomb(vec![0.0; 6], thread::current().id()), 3).unwrap();
    let store = builder().build().unwrap();
    let mut minibatches = store.minibatches();
    let waiting = thread::spawn(move || minibatches.blocking().next().unwrap().unwrap_err());
    drop(store.extend(id_rows(0..2), 1).unwrap());
    assert!(store.extend(bomb(), 0).unwrap().wait().unwrap_err().is_poisoned());
    assert!(waiting.join().unwrap().to_string().contains("the bomb was read"));
    let store = TensorStore::builder().component("a", 3).max_items(8).build().unwrap();
    assert!(store.extend(bomb(), 0).unwrap().wait().unwrap_err().is_poisoned());
}

#[test]
fn emptied_read_and_gone_on() {
    let store = builder().build().unwrap();
    drop(store.extend(rows(0..7, 3), 0).unwrap());
    drop(store.extend(id_rows(0..9), 1).unwrap());
    store.empty();
    drop(store.extend(rows(7..20, 3), 0).unwrap());
    drop(store.extend(id_rows(9..20), 1).unwrap());
    assert_eq!(store.get(Index::from(s![.., 0, 2])).unwrap().ndim(), 1);
    store.close();
    assert_exactly(9..20, &drain(&mut store.minibatches()));
    assert_adds_up(&store.stats());
}

#[test]
fn two_epochs_of_a_tensor_store() {
    let store =
        TensorStore::builder().component("a", 3).component_of("b", 2, DType::BF16).max_items(10).build().unwrap();
    for at in [0, 4] {
        drop(store.extend(rows(at..at + 4, 3), 0).unwrap());
        drop(store.extend(rows(at..at + 4, 2), 1).unwrap());
    }
    assert!(store.extend(rows(8..11, 3), 0).unwrap_err().error.is_full());
    store.shuffle();
    for _ in 0..2 {
        let served: Vec<_> = store.epoch(3).unwrap().map(|minibatch| ids(&minibatch, 0)).collect();
        assert_exactly(0..8, &served);
    }
    assert_eq!(store.get((2, 1)).unwrap().shape(), [2]);
}

#[test]
fn inside_a_runtime_that_shuts_down() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let inside = runtime.enter();
    let store = builder().build().unwrap();
    drop(inside);
    drop(store.extend(rows(0..6, 3), 0).unwrap());
    let _ = store.extend(id_rows(0..6), 1).unwrap().wait().unwrap();
    drop(runtime);
    drop(store.extend(rows(6..9, 3), 0).unwrap());
    drop(store.extend(id_rows(6..9), 1).unwrap());
    store.close();
    assert_exactly(0..9, &drain(&mut store.minibatches()));
}

#[test]
fn passes_in_every_form() {
    let pass = |ids: std::ops::Range<usize>| [("id", Batch::from(id_rows(ids.clone()))), ("a", rows(ids, 3).into())];
    let store = builder().build().unwrap();
    let mut minibatches = store.minibatches();
    let lanes = [store.producer().unwrap(), store.producer().unwrap()];
    drop(store);
    let served = thread::scope(|scope| {
        for (lane, producer) in lanes.into_iter().enumerate() {
            scope.spawn(move || {
                let at = lane * 20;
                producer.extend_pass_blocking(pass(at..at + 5)).unwrap();
                let mut gathered = producer.begin_pass();
                pass(at + 5..at + 9).into_iter().for_each(|(component, batch)| gathered.put(component, batch).unwrap());
                assert!(gathered.put("a", rows(0..4, 3)).is_err());
                let _ = gathered.commit().unwrap().wait().unwrap();
                let _ = producer.extend_pass(pass(at + 9..at + 14)).unwrap().wait().unwrap();
                drop(producer.begin_pass().put("a", rows(0..4, 3)));
            });
        }
        drain(&mut minibatches).concat()
    });
    let mut served = served;
    served.sort_unstable();
    assert_eq!(served, (0..14).chain(20..34).collect::<Vec<_>>());
}

#[test]
fn room_is_reserved_used_given_up_and_given_back() {
    let store = builder().build().unwrap();
    let mut minibatches = store.minibatches();
    drop(store.extend_pass([("a", Batch::from(rows(0..24, 3))), ("id", id_rows(0..24).into())]).unwrap());
    let waiting = thread::spawn({
        let lane = store.producer().unwrap();
        move || {
            let mut permit = block_on(lane.reserve("a", 6).unwrap()).unwrap();
            drop(permit.extend(rows(24..26, 3)).unwrap());
            drop(permit.extend(rows(26..28, 3)).unwrap());
            drop(permit);
            drop(lane.extend(id_rows(24..28), "id").unwrap());
            lane.reserve_pass(2).wait().map(drop)
        }
    });
    let mut given_up = store.reserve_pass(8);
    let _ = given_up.wait_timeout(std::time::Duration::ZERO).map(drop);
    drop(given_up);
    let mut served: Vec<_> = (0..4).map(|_| ids(&minibatches.next_timeout(LIMIT).unwrap().unwrap(), 0)).collect();
    waiting.join().unwrap().unwrap();
    store.close();
    served.extend(drain(&mut minibatches));
    assert_exactly(0..28, &served);
}

#[test]
fn a_store_is_closed_with_an_error_while_callers_wait() {
    let store = builder().build().unwrap();
    let consumers = [store.minibatches(), store.minibatches()];
    let reading = consumers.map(|mut minibatches| {
        thread::spawn(move || {
            let items: Vec<_> = minibatches.blocking().collect();
            let errors: Vec<String> =
                items.iter().filter_map(|item| item.as_ref().err().map(ToString::to_string)).collect();
            (items.iter().flatten().map(|minibatch| minibatch.rows()).sum::<usize>(), errors)
        })
    });
    let writing = thread::spawn({
        let store = store.clone();
        move || {
            let pass = || [("a", Batch::from(rows(0..5, 3))), ("id", id_rows(0..5).into())];
            let taken = (0..6).take_while(|_| store.extend_pass_blocking(pass()).is_ok()).count();
            5 * taken
        }
    });
    while store.stats().minibatches_served == 0 {
        thread::yield_now();
    }
    store.close_with("the model failed");
    let taken = writing.join().unwrap();
    let read = reading.map(|reading| reading.join().unwrap());
    assert_eq!(read.iter().map(|(rows, _)| rows).sum::<usize>(), taken);
    assert!(read.iter().all(|(_, errors)| errors == &["the model failed"]));
    assert_adds_up(&store.stats());
}

#[test]
fn a_store_that_goes_on_from_a_snapshot() {
    let pass = |store: &RingStore, at: usize| {
        drop(store.extend_pass([(1, id_rows(at..at + 4).into()), (0, Batch::from(rows(at..at + 4, 3)))]).unwrap())
    };
    for form in [Form::Light, Form::Full] {
        let dir = tempfile::tempdir().unwrap();
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        (0..20).step_by(4).for_each(|at| pass(&store, at));
        let first = ids(&minibatches.blocking().next().unwrap().unwrap(), 0);
        let saving = minibatches.snapshot(dir.path(), form).unwrap();
        // The pipeline goes on during this time.
        let second = ids(&minibatches.blocking().next().unwrap().unwrap(), 0);
        let _ = saving.wait().unwrap();
        let resumed = RingStore::builder().resume(dir.path()).unwrap();
        let mut again = resumed.minibatches();
        let from = resumed.resume_at()[0].row as usize;
        (from..20).step_by(4).for_each(|at| pass(&resumed, at));
        resumed.close();
        let rest = drain(&mut again);
        assert_eq!(rest[0], second);
        assert_exactly(0..20, &[vec![first], rest].concat());
    }
}
