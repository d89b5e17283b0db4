//! Measures what single calls cost: `extend`, `append`, and `try_extend` on a full queue.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use activation_store::{Batch, RingStore};
use ndarray::{ArcArray2, Array2};

use crate::Effort;
use crate::pipeline::{BATCH, Case};
use crate::report::{Must, Number, median, percentile};

pub(crate) fn measure(effort: Effort) -> Vec<Number> {
    let mut numbers = Vec::new();
    for rows in [16, 4096] {
        let microseconds = draining(&case(768), |store| extend(store, rows, effort));
        for percent in [50, 99] {
            numbers.push(Number {
                name: format!("extend of {rows} x 768, p{percent}"),
                value: percentile(&microseconds, percent),
                unit: "us",
                must: (percent == 50).then_some(Must::BeAtMost(3.0)),
            });
        }
    }
    let appended = draining(&case(64), |store| append(store, effort));
    let assigned = assign(effort);
    numbers.extend([
        Number {
            name: "append at d=64".to_owned(),
            value: median(&appended) / 1e6,
            unit: "M rows/s",
            must: Some(Must::BeAtLeast(1.0)),
        },
        Number {
            name: "assigning rows of 64 to a plain Array2".to_owned(),
            value: median(&assigned) / 1e6,
            unit: "M rows/s",
            must: None,
        },
        Number {
            name: "try_extend of 16 x 768 on a full queue".to_owned(),
            value: refuse(effort),
            unit: "us",
            must: None,
        },
    ]);
    numbers
}

fn case(features: usize) -> Case {
    Case { window_bytes: 128 << 20, ..Case::new("calls", features) }
}

/// Runs `call` while another thread takes minibatches and drops them.
fn draining<T>(case: &Case, call: impl FnOnce(&RingStore) -> T) -> T {
    let store = case.store();
    let mut minibatches = store.minibatches();
    thread::scope(|scope| {
        scope.spawn(move || minibatches.blocking().for_each(drop));
        let result = call(&store);
        store.close();
        result
    })
}

fn extend(store: &RingStore, rows: usize, effort: Effort) -> Vec<f64> {
    let batch: ArcArray2<f32> = Array2::ones((rows, 768)).into_shared();
    let call = || {
        let batch = batch.clone();
        let start = Instant::now();
        let handle = store.extend(batch, 0).expect("the store is open");
        let took = start.elapsed();
        drop(handle);
        drop(store.reserve(0, rows).expect("the component exists").wait());
        took.as_secs_f64() * 1e6
    };
    (0..effort.calls).map(|_| call()).collect()
}

/// Returns the rows per second, until all rows are in the ring.
fn append(store: &RingStore, effort: Effort) -> Vec<f64> {
    let rows = Array2::<f32>::ones((BATCH, 64));
    let round = || {
        let start = Instant::now();
        for _ in 0..64 {
            for row in rows.rows() {
                store.extend_blocking(row.to_owned(), 0).expect("the store is open");
            }
        }
        store.flush().wait().expect("no write fails");
        (64 * BATCH) as f64 / start.elapsed().as_secs_f64()
    };
    (0..effort.rounds).map(|_| round()).collect()
}

fn assign(effort: Effort) -> Vec<f64> {
    let rows = Array2::<f32>::ones((BATCH, 64));
    let mut tensor = Array2::<f32>::zeros((64 * BATCH, 64));
    let mut round = || {
        let start = Instant::now();
        for (i, mut to) in tensor.rows_mut().into_iter().enumerate() {
            to.assign(&rows.row(i % BATCH));
        }
        black_box(&mut tensor);
        (64 * BATCH) as f64 / start.elapsed().as_secs_f64()
    };
    (0..effort.rounds).map(|_| round()).collect()
}

/// Returns how many microseconds a refused `try_extend` takes.
fn refuse(effort: Effort) -> f64 {
    let store = case(768).store();
    let _minibatches = store.minibatches();
    // The writer stops when a frame is full and no consumer takes it. After ten refusals in a row, the store takes nothing more.
    let mut refused = 0;
    while refused < 10 {
        match store.try_extend(Array2::<f32>::ones((16, 768)), 0) {
            Ok(handle) => {
                drop(handle);
                refused = 0;
            }
            Err(_) => {
                refused += 1;
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
    let mut small = Batch::from(Array2::<f32>::ones((16, 768)));
    let mut call = || {
        let start = Instant::now();
        let refused = store.try_extend(std::mem::replace(&mut small, Batch::from(vec![0.0_f32; 0])), 0);
        let took = start.elapsed();
        small = refused.expect_err("the queue is full").into_batch();
        took.as_secs_f64() * 1e6
    };
    let calls: Vec<f64> = (0..effort.calls).map(|_| call()).collect();
    median(&calls)
}
