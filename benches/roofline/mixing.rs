//! Measures how well minibatches are mixed. Counts, for each row, the rows of its minibatch that come from the same sequence, and
//! returns the mean.
//!
//! Sequences of 512 rows come one after another. The rows hold their numbers, so the consumer can tell the sequence.

use std::collections::HashMap;
use std::thread;

use activation_store::{DType, RingStore, RingStoreBuilder};
use ndarray::Array2;

use crate::Effort;
use crate::pipeline::BATCH;
use crate::report::{Must, Number};

const SEQUENCE: usize = 512;
/// The unit of window size.
pub(crate) const C: usize = 65_536;

pub(crate) fn measure(effort: Effort) -> Vec<Number> {
    (1..=3)
        .map(|multiple| {
            let builder = builder(multiple * C);
            let planned = builder.plan().expect("the configuration is possible").shared_rows(SEQUENCE);
            Number {
                name: format!("rows that share a sequence, window {multiple} x {C} rows"),
                value: score(builder, effort.calls / 200 + 10),
                unit: "rows",
                // The planned value, and 3 % more for chance.
                must: Some(Must::BeAtMost((103.0 * planned).round() / 100.0)),
            }
        })
        .collect()
}

fn builder(window: usize) -> RingStoreBuilder {
    RingStore::builder().component_of("row", 1, DType::I64).batch_size(BATCH).window(window).seed(1)
}

fn score(builder: RingStoreBuilder, minibatches: usize) -> f64 {
    let store = builder.build().expect("the configuration is possible");
    let window = store.window();
    thread::scope(|scope| {
        let mut consumer = store.minibatches();
        let store = &store;
        scope.spawn(move || {
            for first in (0_i64..).step_by(BATCH) {
                let rows = Array2::from_shape_fn((BATCH, 1), |(i, _)| first + i as i64);
                if store.extend_blocking(rows, 0).is_err() {
                    return;
                }
            }
        });
        // The first minibatches come from less than a window.
        let served = consumer.blocking().skip(window / BATCH).take(minibatches);
        let scores = served.map(|minibatch| {
            let minibatch = minibatch.expect("no write fails");
            let rows = minibatch.view::<i64>(0).expect("it holds row numbers");
            shared(rows.iter().copied())
        });
        scores.sum::<f64>() / minibatches as f64
    })
}

/// Counts, for each row, the rows of the same sequence, itself included. Returns the mean.
pub(crate) fn shared(rows: impl ExactSizeIterator<Item = i64>) -> f64 {
    let len = rows.len();
    let mut of_sequence: HashMap<i64, usize> = HashMap::new();
    for row in rows {
        *of_sequence.entry(row / SEQUENCE as i64).or_default() += 1;
    }
    of_sequence.values().map(|&n| n * n).sum::<usize>() as f64 / len as f64
}
