//! In the steady state, neither the writer nor the consumer allocates. Only the queue grows by a block for every 31 messages.
//! This test is alone in its file, because it counts the allocations of the process.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use activation_store::{DType, RingStore, RingStoreBuilder};
use ndarray::{ArcArray2, Array2};

/// Counts allocations, except on threads that are excused.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

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
        // SAFETY: the inner method has the same contract, and the caller keeps it.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
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
