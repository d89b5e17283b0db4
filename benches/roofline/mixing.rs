//! How well minibatches are mixed: how many rows of a minibatch share a row's sequence, on average over the rows.
//!
//! Sequences of 512 rows come one after another. What arrives is counted, through the store, by row number.

use std::collections::HashMap;
use std::thread;

use activation_store::{DType, RingStore};
use ndarray::Array2;

use crate::Effort;
use crate::pipeline::BATCH;
use crate::report::{Must, Number};

const SEQUENCE: usize = 512;
/// The design's unit of window size.
const C: usize = 65_536;

pub(crate) fn measure(effort: Effort) -> Vec<Number> {
    // The design's figures, as simulated, and some room for chance.
    [(1, 33.0), (2, 17.0), (3, 12.0)]
        .into_iter()
        .map(|(multiple, simulated)| Number {
            name: format!("rows that share a sequence, window {multiple} x {C} rows"),
            value: score(multiple * C, effort.calls / 200 + 10),
            unit: "rows",
            must: Some(Must::BeAtMost(simulated + 0.5)),
        })
        .collect()
}

fn score(window: usize, minibatches: usize) -> f64 {
    let store = RingStore::builder()
        .component_of("row", 1, DType::I64)
        .batch_size(BATCH)
        .window(window)
        .seed(1)
        .build()
        .expect("the configuration is possible");
    thread::scope(|scope| {
        let mut consumer = store.minibatches();
        let store = &store;
        scope.spawn(move || {
            for first in (0_i64..).step_by(BATCH) {
                let rows = Array2::from_shape_fn((BATCH, 1), |(i, _)| first + i as i64);
                if store.extend_blocking(rows, 0).map(drop).is_err() {
                    return;
                }
            }
        });
        // The first ones come from half a window and more.
        let served = consumer.blocking().skip(window / BATCH).take(minibatches);
        let scores = served.map(|minibatch| {
            let minibatch = minibatch.expect("no write fails");
            let rows = minibatch.view::<i64>(0).expect("it holds row numbers");
            let mut of_sequence: HashMap<i64, usize> = HashMap::new();
            for row in rows {
                *of_sequence.entry(row / SEQUENCE as i64).or_default() += 1;
            }
            // Each row counts the others of its sequence and itself.
            of_sequence.values().map(|&n| n * n).sum::<usize>() as f64 / rows.nrows() as f64
        });
        scores.sum::<f64>() / minibatches as f64
    })
}
