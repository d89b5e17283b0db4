//! A waker, like a batch's owner, is foreign code: it may call back into the store, and it may panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use activation_store::{Batch, Minibatches, RingStore, RingStoreBuilder};
use common::{LIMIT, assert_adds_up, drain, rows, watchdog};
use futures::StreamExt;

fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", 2).component("b", 1).batch_size(8).window(64).ready_frames(2).queue_rows(16)
}

fn pass(n: usize) -> [(&'static str, Batch); 2] {
    [("a", rows(0..n, 2).into()), ("b", rows(0..n, 1).into())]
}

#[derive(Default)]
struct Counts(AtomicUsize);

impl Wake for Counts {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Counts {
    fn until(&self, count: usize) {
        while self.0.load(Ordering::SeqCst) < count {
            thread::yield_now();
        }
    }
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("this waker panics");
    }
}

/// Polls a future once, with this waker.
fn poll<F: Future + Unpin>(future: &mut F, waker: &Waker) -> bool {
    Pin::new(future).poll(&mut Context::from_waker(waker)).is_ready()
}

fn poll_next(minibatches: &mut Minibatches, waker: &Waker) -> bool {
    minibatches.poll_next_unpin(&mut Context::from_waker(waker)).is_ready()
}

fn assert_poisoned(store: &RingStore) {
    while !store.is_closed() {
        thread::yield_now();
    }
    let error = store.extend(rows(0..1, 2), "a").unwrap_err().error;
    assert_eq!(error.to_string(), "the store's writer panicked: this waker panics");
}

#[test]
fn a_consumers_waker_that_panics_leaves_no_other_asleep() {
    for panics in 0..5 {
        watchdog(move || {
            let store = builder().build().unwrap();
            let woken = Arc::new(Counts::default());
            let mut consumers: Vec<_> = (0..5).map(|_| store.minibatches()).collect();
            for (i, consumer) in consumers.iter_mut().enumerate() {
                let waker = if i == panics { Waker::from(Arc::new(Panics)) } else { Waker::from(woken.clone()) };
                assert!(!poll_next(consumer, &waker));
            }
            drop(store.extend_pass(pass(200)).unwrap());
            assert_poisoned(&store);
            woken.until(4);
            for mut consumer in consumers {
                assert!(consumer.next_timeout(LIMIT).unwrap_err().is_poisoned());
            }
        });
    }
}

#[test]
fn a_writers_waker_that_panics_leaves_no_other_asleep() {
    for panics in 0..4 {
        watchdog(move || {
            let store = builder().build().unwrap();
            let mut minibatches = store.minibatches();
            let woken = Arc::new(Counts::default());
            let waker = |i| if i == panics { Waker::from(Arc::new(Panics)) } else { Waker::from(woken.clone()) };
            let mut first = store.extend_pass(pass(200)).unwrap();
            let mut second = store.extend_pass(pass(10)).unwrap();
            let mut flush = store.flush();
            let mut room = store.reserve_pass(5);
            assert!(!poll(&mut first, &waker(0)));
            assert!(!poll(&mut second, &waker(1)));
            assert!(!poll(&mut flush, &waker(2)));
            assert!(!poll(&mut room, &waker(3)));
            while let Ok(Some(_)) = minibatches.next_timeout(LIMIT) {}
            assert_poisoned(&store);
            woken.until(3);
            assert!(room.wait().unwrap_err().is_poisoned());
            let _ = (first.wait(), second.wait(), flush.wait());
        });
    }
}

/// The panic comes out of the call that woke the waker. The other wakers are still woken.
#[test]
fn a_waker_that_panics_in_a_callers_thread_leaves_no_other_asleep() {
    for end in [RingStore::close, RingStore::abort] {
        for panics in 0..3 {
            watchdog(move || {
                let store = builder().build().unwrap();
                let mut minibatches = store.minibatches();
                drop(store.extend_pass(pass(200)).unwrap());
                let woken = Arc::new(Counts::default());
                let mut waiting: Vec<_> = (0..3).map(|_| store.reserve_pass(5)).collect();
                for (i, room) in waiting.iter_mut().enumerate() {
                    let waker = if i == panics { Waker::from(Arc::new(Panics)) } else { Waker::from(woken.clone()) };
                    assert!(!poll(room, &waker));
                }
                let _ = catch_unwind(AssertUnwindSafe(|| end(&store)));
                woken.until(2);
                for room in waiting {
                    assert!(room.wait().unwrap_err().is_closed());
                }
                // The store ends as it should.
                drain(&mut minibatches);
                assert_adds_up(&store.stats());
            });
        }
    }
}

/// Both callers in line get the counterparts that they need. The waker of the first one panics.
#[test]
fn a_waker_that_panics_in_a_hand_over_leaves_no_other_asleep() {
    watchdog(|| {
        let store = builder().max_skew(1000).build().unwrap();
        let mut minibatches = store.minibatches();
        // First the ring, then the queue fills up.
        while store.stats().waited_for_consumers.is_zero() {
            drop(store.extend_pass(pass(20)).unwrap());
        }
        let lane = store.producer().unwrap();
        let woken = Arc::new(Counts::default());
        let mut waiting = [lane.reserve("b", 2).unwrap(), lane.reserve("b", 3).unwrap()];
        assert!(!poll(&mut waiting[0], &Waker::from(Arc::new(Panics))));
        assert!(!poll(&mut waiting[1], &Waker::from(woken.clone())));
        assert!(catch_unwind(AssertUnwindSafe(|| lane.extend(rows(0..5, 2), "a").map(drop))).is_err());
        woken.until(1);
        for room in waiting {
            drop(room.wait().unwrap());
        }
        drop(lane);
        store.close();
        drain(&mut minibatches);
        assert_adds_up(&store.stats());
    });
}

/// The writer takes the request in the step in which a waker panics.
#[test]
fn a_get_gets_the_panic_of_a_waker() {
    for _ in 0..50 {
        watchdog(|| {
            let store = builder().build().unwrap();
            let mut minibatches = store.minibatches();
            while store.stats().waited_for_consumers.is_zero() {
                drop(store.extend_pass(pass(20)).unwrap());
            }
            let mut flush = store.flush();
            assert!(!poll(&mut flush, &Waker::from(Arc::new(Panics))));
            let asking = thread::spawn({
                let store = store.clone();
                move || {
                    loop {
                        if let Err(error) = store.get((0, 1)) {
                            return error;
                        }
                    }
                }
            });
            while let Ok(Some(_)) = minibatches.next_timeout(LIMIT) {}
            assert!(matches!(asking.join().unwrap(), activation_store::IndexError::Poisoned { .. }));
        });
    }
}

/// Calls everything that foreign code may call: all methods that do not wait for the store.
fn call_back(store: &RingStore) {
    let _ = (store.stats(), store.len(), store.is_closed(), store.components().len());
    let _ = format!("{store:?} {:?} {}", store.monitor(), store.stats());
    let _ = store.extend_pass(pass(1)).map(drop);
    let _ = store.try_extend_pass(pass(0)).map(drop);
    let _ = store.try_extend(rows(0..1, 2), "a").map(drop);
    let _ = store.extend(rows(0..1, 1), "b").map(drop);
    let mut room = store.reserve_pass(1);
    let _ = poll(&mut room, Waker::noop());
    let _ = poll(&mut store.flush(), Waker::noop());
    let mut consumer = store.minibatches();
    let _ = poll_next(&mut consumer, Waker::noop());
    let _ = consumer.stats();
    if let Ok(lane) = store.producer() {
        let _ = lane.extend_pass(pass(1)).map(drop);
    }
}

type Call = fn(&RingStore);

const CALLS: [(&str, Call); 4] = [
    ("looks", call_back),
    ("closes", |store| {
        store.close();
        call_back(store);
    }),
    ("closes with an error", |store| {
        store.close_with("closed by a waker");
        call_back(store);
    }),
    ("aborts", |store| {
        call_back(store);
        store.abort();
        call_back(store);
    }),
];

/// Calls back once: when it is first woken, or when it is first read or dropped as the owner of a batch.
struct CallsBack {
    store: Mutex<Option<RingStore>>,
    call: Call,
    done: Arc<AtomicUsize>,
    values: Vec<f32>,
    when_read: bool,
}

impl CallsBack {
    fn new(store: &RingStore, call: Call, done: &Arc<AtomicUsize>, when_read: bool) -> Self {
        let store = Mutex::new(Some(store.clone()));
        CallsBack { store, call, done: done.clone(), values: vec![1.0; 20], when_read }
    }

    fn run(&self) {
        let store = self.store.lock().unwrap().take();
        if let Some(store) = store {
            (self.call)(&store);
            self.done.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Wake for CallsBack {
    fn wake(self: Arc<Self>) {
        self.run();
    }
}

impl AsRef<[f32]> for CallsBack {
    fn as_ref(&self) -> &[f32] {
        if self.when_read && thread::current().name() == Some("activation-store") {
            self.run();
        }
        &self.values
    }
}

impl Drop for CallsBack {
    fn drop(&mut self) {
        self.run();
    }
}

#[test]
fn wakers_may_call_back_into_the_store() {
    for (what, call) in CALLS {
        // The waker is used by a consumer, a handle, a flush and a reservation.
        for waits in 0..4 {
            common::watchdog_for(&format!("waiting in way {waits}, a waker that {what}"), move || {
                let store = builder().build().unwrap();
                let mut minibatches = store.minibatches();
                let done = Arc::new(AtomicUsize::new(0));
                let waker = Waker::from(Arc::new(CallsBack::new(&store, call, &done, false)));
                if waits == 0 {
                    assert!(!poll_next(&mut minibatches, &waker));
                }
                let mut handle = store.extend_pass(pass(200)).unwrap();
                let mut flush = store.flush();
                let mut room = store.reserve_pass(9);
                match waits {
                    1 => assert!(!poll(&mut handle, &waker)),
                    2 => assert!(!poll(&mut flush, &waker)),
                    3 => assert!(!poll(&mut room, &waker)),
                    _ => {}
                }
                drop(waker);
                while done.load(Ordering::SeqCst) == 0 {
                    let _ = minibatches.next_timeout(Duration::from_millis(1));
                }
                drop(room);
                store.close();
                drain_to_the_end(&mut minibatches);
                assert_adds_up(&store.stats());
            });
        }
    }
}

#[test]
fn a_batchs_owner_may_call_back_into_the_store() {
    for (what, call) in CALLS {
        for when_read in [false, true] {
            common::watchdog_for(&format!("an owner that {what}, read: {when_read}"), move || {
                let store = builder().build().unwrap();
                let mut minibatches = store.minibatches();
                let done = Arc::new(AtomicUsize::new(0));
                let owner = |features| {
                    let owner = CallsBack::new(&store, call, &done, when_read);
                    Batch::from_owner(owner, features).unwrap()
                };
                drop(store.extend(owner(2), "a").unwrap());
                drop(store.extend(rows(0..10, 1), "b").unwrap());
                while done.load(Ordering::SeqCst) == 0 {
                    let _ = minibatches.next_timeout(Duration::from_millis(1));
                }
                store.close();
                drain_to_the_end(&mut minibatches);
                assert_adds_up(&store.stats());
            });
        }
    }
}

fn drain_to_the_end(minibatches: &mut Minibatches) {
    while let Some(item) = minibatches.blocking().next() {
        if let Err(error) = item {
            assert_eq!(error.to_string(), "closed by a waker");
        }
    }
}

/// Calls a store when it is dropped.
struct Calls {
    values: Vec<f32>,
    store: RingStore,
    called: Arc<AtomicUsize>,
}

impl AsRef<[f32]> for Calls {
    fn as_ref(&self) -> &[f32] {
        &self.values
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        let _ = self.store.stats();
        self.called.fetch_add(1, Ordering::SeqCst);
    }
}

/// A mask may leave no row.
#[test]
fn the_owner_of_a_batch_without_rows_may_call_the_store() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let called = Arc::new(AtomicUsize::new(0));
        let empty = || {
            let owner = Calls { values: Vec::new(), store: store.clone(), called: called.clone() };
            Batch::from_owner(owner, 2).unwrap()
        };
        let _ = store.extend(empty(), "a").unwrap().wait().unwrap();
        let _ = store.extend_pass([("a", empty()), ("b", rows(0..0, 1).into())]).unwrap().wait().unwrap();
        assert_eq!(called.load(Ordering::SeqCst), 2);
    });
}

/// Gives its memory back through a bounded channel of tokio, which must not be done in a runtime.
#[test]
fn the_owner_of_a_batch_may_block_as_on_any_thread() {
    struct Returns(Vec<f32>, tokio::sync::mpsc::Sender<()>);
    impl AsRef<[f32]> for Returns {
        fn as_ref(&self) -> &[f32] {
            &self.0
        }
    }
    impl Drop for Returns {
        fn drop(&mut self) {
            assert!(tokio::runtime::Handle::try_current().is_err(), "the writer's own runtime is not for others");
            self.1.blocking_send(()).unwrap();
        }
    }
    watchdog(|| {
        let store = builder().build().unwrap();
        let (back, mut returned) = tokio::sync::mpsc::channel(4);
        let lend = |features| Batch::from_owner(Returns(vec![0.0; 3 * features], back.clone()), features).unwrap();
        let _ = store.extend_pass([("a", lend(2)), ("b", lend(1))]).unwrap().wait().unwrap();
        returned.blocking_recv().unwrap();
        returned.blocking_recv().unwrap();
    });
}
