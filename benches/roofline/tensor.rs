//! Measures a tensor store: how long a shuffle takes, and an epoch compared with a sequential memcpy of the same bytes.

use std::hint::black_box;
use std::time::Instant;

use activation_store::TensorStore;
use ndarray::Array2;

use crate::Effort;
use crate::pipeline::BATCH;
use crate::report::{Must, Number, median};

/// Features of a row, and the least ratio to the memcpy that must be reached.
const WIDTHS: [(usize, Option<f64>); 3] = [(64, None), (768, Some(0.7)), (4096, None)];

pub(crate) fn measure(effort: Effort) -> Vec<Number> {
    WIDTHS.into_iter().flat_map(|(features, least)| of_width(features, least, effort)).collect()
}

fn of_width(features: usize, least: Option<f64>, effort: Effort) -> [Number; 3] {
    let rows = effort.bytes / 2 / (features * size_of::<f32>()) / BATCH * BATCH;
    let store =
        TensorStore::builder().component("a", features).max_items(rows).build().expect("the configuration is possible");
    let batch = Array2::<f32>::ones((BATCH, features)).into_shared();
    for _ in 0..rows / BATCH {
        let _written = store.extend(batch.clone(), 0).expect("it fits").wait().expect("no write fails");
    }
    let plain = vec![1.0_f32; rows * features];
    let mut minibatch = vec![0.0_f32; BATCH * features];
    let (mut shuffles, mut epochs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let start = Instant::now();
        store.shuffle();
        shuffles.push(start.elapsed().as_secs_f64() * 1e3);

        let start = Instant::now();
        for part in plain.chunks_exact(minibatch.len()) {
            minibatch.copy_from_slice(part);
            black_box(&mut minibatch);
        }
        let sequential = start.elapsed().as_secs_f64();

        // The time to obtain memory does not count.
        let epoch = store.epoch(BATCH).expect("there is memory");
        let start = Instant::now();
        epoch.for_each(|minibatch| drop(black_box(minibatch)));
        let took = start.elapsed().as_secs_f64();
        epochs.push(rows as f64 / took / 1e6);
        ratios.push(sequential / took);
    }
    let number = |name: String, values: &[f64], unit, must| Number { name, value: median(values), unit, must };
    [
        number(format!("shuffle of {rows} rows"), &shuffles, "ms", None),
        number(format!("epoch over {rows} x {features}, shuffled"), &epochs, "M rows/s", None),
        number(format!("epoch at d={features} against a sequential memcpy"), &ratios, "x", least.map(Must::BeAtLeast)),
    ]
}
