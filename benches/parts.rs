//! Measures single parts of the store, for everyday work: `cargo bench --features bench --bench parts`.
#![allow(missing_docs)] // The items that `criterion_group` defines have none.

use std::hint::black_box;

use activation_store::RingStore;
use activation_store::bench_support::{Dealing, copy};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array2;

const ROWS: usize = 4096;

fn copying(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("deal and copy");
    for features in [64, 384, 768, 4096] {
        let width = features * size_of::<f32>();
        let rows = vec![1_u8; ROWS * width];
        let frames = (512 << 20) / rows.len();
        let mut memory = vec![1_u8; frames * rows.len() + 64];
        let start = memory.as_ptr().align_offset(64);
        let mut dealing = Dealing::new(frames, ROWS);
        group.throughput(Throughput::Bytes(rows.len() as u64));
        for (stores, streaming) in [("streaming", true), ("ordinary", false)] {
            group.bench_function(format!("{ROWS} x {features} f32, {stores} stores"), |bencher| {
                bencher.iter(|| {
                    dealing.deal(ROWS);
                    copy(&rows, width, &dealing, ROWS, &mut memory[start..], streaming);
                });
            });
        }
    }
}

fn dealing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("deal");
    group.throughput(Throughput::Elements(ROWS as u64));
    for frames in [1, 2, 4, 8, 16, 64, 512, 2048] {
        let mut dealing = Dealing::new(frames, ROWS);
        group.bench_function(format!("{ROWS} rows to {frames} frames"), |bencher| {
            bencher.iter(|| black_box(dealing.deal(ROWS)));
        });
    }
}

/// Measures handing over batches, until the writer has answered them all.
fn queueing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue");
    let store = RingStore::builder().component("a", 64).batch_size(64).window(4096).build().expect("it is possible");
    let mut minibatches = store.minibatches();
    let consumer = std::thread::spawn(move || minibatches.blocking().for_each(drop));
    let batch = Array2::<f32>::ones((16, 64)).into_shared();
    group.throughput(Throughput::Elements(64));
    group.bench_function("64 batches of 16 x 64, then flush", |bencher| {
        bencher.iter(|| {
            for _ in 0..64 {
                drop(store.extend(batch.clone(), 0).expect("the store is open"));
            }
            store.flush().wait().expect("no write fails");
        });
    });
    store.close();
    consumer.join().expect("the consumer does not panic");
}

criterion_group!(parts, copying, dealing, queueing);
criterion_main!(parts);
