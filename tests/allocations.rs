//! In the steady state, neither the writer nor the consumer allocates. Only the queue grows by a block for every 31 messages. And
//! however long a store runs, it keeps no more memory: not for a pass, not for a lane that has ended, not for an epoch.
//! These tests are alone in their file, and run one after the other, because they count what the process allocates.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use activation_store::{
    DType, Merge, Minibatches, Producer, RingStore, RingStoreBuilder, Snapshot, WhenFull, WriteError,
};
use ndarray::{ArcArray2, Array2};

/// Counts allocations, except on threads that are excused, and the bytes that are allocated now, on all threads.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

static LIVE: AtomicIsize = AtomicIsize::new(0);

/// Held by the test that runs.
static RUNS: Mutex<()> = Mutex::new(());

thread_local! {
    static EXCUSED: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if !EXCUSED.try_with(Cell::get).unwrap_or(true) {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: every call goes to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        LIVE.fetch_add(layout.size() as isize, Ordering::SeqCst);
        // SAFETY: the inner method has the same contract, and the caller keeps it.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        LIVE.fetch_add(size as isize - layout.size() as isize, Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const BATCH: usize = 64;

/// Measures several sequences of `minibatches` minibatches. Returns the fewest allocations of the writer and the consumer in one of
/// them. A list may still grow to its final size in one sequence, but repeated allocations are in all of them.
fn allocations(store: &RingStore, lanes: usize, rows: usize, minibatches: usize) -> usize {
    let components: Vec<usize> = store.components().iter().map(|component| component.features).collect();
    let lanes: Vec<_> = (0..lanes).map(|_| store.producer().unwrap()).collect();
    let mut consumer = store.minibatches();
    thread::scope(|scope| {
        for lane in lanes {
            let batches: Vec<ArcArray2<f32>> =
                components.iter().map(|&features| Array2::ones((rows, features)).into_shared()).collect();
            scope.spawn(move || {
                // The caller allocates a handle, and sometimes a block of the queue.
                EXCUSED.set(true);
                let mut writes = batches.iter().enumerate().cycle();
                writes.all(|(component, batch)| lane.extend_blocking(batch.clone(), component).is_ok())
            });
        }
        let mut period = || {
            let before = ALLOCATIONS.load(Ordering::SeqCst);
            assert_eq!(consumer.blocking().take(minibatches).map(Result::unwrap).count(), minibatches);
            ALLOCATIONS.load(Ordering::SeqCst) - before
        };
        let fewest = (0..10).map(|_| period()).min();
        // Ends the producers.
        drop(consumer);
        fewest.unwrap()
    })
}

fn builder() -> RingStoreBuilder {
    RingStore::builder().batch_size(BATCH).window(16 * BATCH).component("a", 64)
}

#[test]
fn the_steady_state_allocates_nothing() {
    let _runs = RUNS.lock().unwrap_or_else(PoisonError::into_inner);
    for (what, builder, lanes, rows) in [
        ("one component", builder(), 1, BATCH),
        ("single rows", builder(), 1, 1),
        ("batches that end anywhere", builder(), 1, 37),
        ("two components", builder().component("b", 8), 1, BATCH),
        ("converted to bf16", builder().dtype(DType::BF16), 1, BATCH),
        ("four lanes", builder(), 4, BATCH),
    ] {
        let store = builder.build().unwrap();
        // A consumer sends at most one message for each minibatch.
        let blocks = 500_usize.div_ceil(31);
        let allocations = allocations(&store, lanes, rows, 500);
        assert!(allocations <= blocks, "{what}: {allocations} allocations");
    }
}

/// A store whose minibatches a thread takes, and the lanes that are open.
struct Running {
    store: RingStore,
    minibatches: Minibatches,
    lanes: Vec<Producer>,
    consumer: Option<JoinHandle<()>>,
}

impl Running {
    fn new(builder: RingStoreBuilder, lanes: usize) -> Self {
        let store = builder.batch_size(8).window(64).component("a", 2).build().unwrap();
        Running::of(store, lanes)
    }

    fn of(store: RingStore, lanes: usize) -> Self {
        let lanes = (0..lanes).map(|_| store.producer().unwrap()).collect();
        let minibatches = store.minibatches();
        let mut taken = minibatches.clone();
        let consumer = thread::spawn(move || taken.blocking().for_each(|minibatch| drop(minibatch.unwrap())));
        Running { minibatches, store, lanes, consumer: Some(consumer) }
    }

    /// Waits until everything is settled, and all minibatches that are ready are taken.
    fn settle(&self) {
        while let Err(error) = self.store.flush().wait() {
            assert!(matches!(error, WriteError::Unmatched { .. }), "{error}");
        }
        while self.store.stats().frames_ready > 0 {
            thread::yield_now();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.store.abort();
        let _ = self.consumer.take().map(JoinHandle::join);
    }
}

fn rows(rows: usize) -> Array2<f32> {
    Array2::zeros((rows, 2))
}

fn pass(lane: &Producer, number: usize, of: usize, value: bool) {
    let mut pass = lane.begin_pass();
    if value {
        pass.attach(number.to_le_bytes());
    }
    pass.put(0, rows(of)).unwrap();
    drop(pass.commit().unwrap());
}

/// What a store does again and again. `number` says how often it has done so.
type Does = fn(running: &mut Running, number: usize);

/// How often a store does something before it is measured, and then.
const BEFORE: usize = 12 << 8;
const MEASURED: usize = 40 << 8;

/// Does something again and again. Returns by how many bytes the store grows each time.
fn growth(running: &mut Running, does: Does) -> f64 {
    let mut live = 0;
    for number in 0..BEFORE + MEASURED {
        if number % 64 == 0 {
            running.settle();
        }
        if number == BEFORE {
            live = LIVE.load(Ordering::SeqCst);
        }
        does(running, number);
    }
    running.settle();
    (LIVE.load(Ordering::SeqCst) - live) as f64 / MEASURED as f64
}

#[test]
fn a_store_that_runs_on_keeps_no_more_memory() {
    let _runs = RUNS.lock().unwrap_or_else(PoisonError::into_inner);
    let new = RingStore::builder;
    let cases: [(&str, RingStoreBuilder, usize, Does); 16] = [
        ("passes of one row", new(), 1, |to, n| pass(&to.lanes[0], n, 1, false)),
        ("passes of one row on the store's own lane", new(), 0, |to, _| {
            drop(to.store.extend_pass([(0, rows(1))]).unwrap());
        }),
        ("passes of any size", new(), 1, |to, n| pass(&to.lanes[0], n, 1 + n * n % 7, false)),
        ("passes with values", new(), 1, |to, n| pass(&to.lanes[0], n, 1 + n % 7, true)),
        ("passes without rows", new(), 1, |to, n| pass(&to.lanes[0], n, 0, true)),
        ("every fourth pass without rows", new(), 1, |to, n| pass(&to.lanes[0], n, n % 4, true)),
        ("batches", new(), 1, |to, n| drop(to.lanes[0].extend(rows(1 + n % 7), 0).unwrap())),
        ("four lanes", new(), 4, |to, n| pass(&to.lanes[n % 4], n, 1 + n % 5, true)),
        ("four lanes in turn", new().merge(Merge::RoundRobin), 4, |to, n| pass(&to.lanes[n % 4], n, 64, true)),
        ("a store that drops the oldest", new().when_full(WhenFull::DropOldest), 1, |to, n| {
            pass(&to.lanes[0], n, 5, true);
        }),
        ("rows set aside, and lost", new().component("b", 2), 1, |to, n| {
            drop(to.lanes[0].extend(rows(2), 0).unwrap());
            drop(to.lanes[0].extend(rows(if n % 10 == 9 { 1 } else { 2 }), 1).unwrap());
            if n % 10 == 9 {
                to.lanes[0] = to.store.producer().unwrap();
            }
        }),
        ("lanes, one after the other", new(), 1, |to, n| {
            to.lanes[0] = to.store.producer().unwrap();
            pass(&to.lanes[0], n, 3, false);
        }),
        ("lanes beside an open one", new(), 2, |to, n| {
            to.lanes[1] = to.store.producer().unwrap();
            (0..2).for_each(|lane| pass(&to.lanes[lane], n, 3, true));
        }),
        ("lanes without rows", new(), 0, |to, _| drop(to.store.producer().unwrap())),
        ("the same names in each epoch", new(), 1, |to, n| {
            to.lanes.clear();
            to.store.flush().wait().unwrap();
            to.lanes.push(to.store.producer_named(&format!("document {}", n % 50)).unwrap());
            pass(&to.lanes[0], n, 3, false);
        }),
        ("emptying, and snapshots", new(), 1, |to, n| {
            pass(&to.lanes[0], n, 3, true);
            if n % 40 == 0 {
                to.store.empty();
                drop(to.minibatches.state().unwrap_or_else(|error| panic!("{error}")).to_bytes());
            }
        }),
    ];
    for (what, builder, lanes, does) in cases {
        let grown = growth(&mut Running::new(builder, lanes), does);
        // Less than a number for each: a block of the queue, and lists that are freed in pieces.
        assert!(grown < 6.0, "{what}: {grown} bytes each time");
    }
}

#[test]
fn an_ended_lane_costs_nothing_without_a_name_and_few_bytes_with_one() {
    let _runs = RUNS.lock().unwrap_or_else(PoisonError::into_inner);
    let lane_with = |to: &mut Running, name: Option<String>| {
        let lane = name.map_or_else(|| to.store.producer(), |name| to.store.producer_named(&name)).unwrap();
        to.lanes = vec![lane];
        pass(&to.lanes[0], 0, 3, false);
    };
    let named: Does = |to, n| {
        let name = format!("a document with a name that is rather long: number {n}");
        to.lanes = vec![to.store.producer_named(&name).unwrap()];
        pass(&to.lanes[0], n, 3, false);
    };
    let mut running = Running::new(RingStore::builder(), 0);
    let grown = growth(&mut running, named);
    assert!(grown < 32.0, "{grown} bytes each time");
    for n in 0..20_000 {
        lane_with(&mut running, None);
        if n % 50 == 0 {
            running.settle();
        }
    }
    running.settle();
    let bytes = running.minibatches.state().unwrap().to_bytes();
    // 16 digits for each name.
    assert!(bytes.len() < (BEFORE + MEASURED) * 16 + 10_000, "{}", bytes.len());
    let before = LIVE.load(Ordering::SeqCst);
    let mut resumed = Running::of(RingStore::builder().resume_from(&Snapshot::from_bytes(&bytes).unwrap()).unwrap(), 0);
    let grown = LIVE.load(Ordering::SeqCst) - before;
    // The names, and what every store has.
    assert!(grown < (BEFORE + MEASURED) as isize * 32 + 100_000, "{grown} bytes");
    let refused = |lane: Producer| {
        let refused = lane.extend_pass([(0, rows(1))]).unwrap_err();
        assert!(matches!(refused.error, WriteError::Closed(_)), "{}", refused.error);
    };
    // The resumed store knows each lane that has ended, and takes the next one for a new one.
    for n in (0..BEFORE + MEASURED).rev().skip(30).step_by(1_000) {
        let name = format!("a document with a name that is rather long: number {n}");
        refused(resumed.store.producer_named(&name).unwrap());
    }
    for _ in 0..19_900 {
        refused(resumed.store.producer().unwrap());
    }
    lane_with(&mut resumed, Some("another document".to_owned()));
}
