//! A tensor store: shuffling it, and an epoch over it against a sequential memcpy of the same bytes.

use std::hint::black_box;
use std::time::Instant;

use activation_store::TensorStore;
use ndarray::Array2;

use crate::Effort;
use crate::pipeline::BATCH;
use crate::report::{Number, median};

const FEATURES: usize = 768;

pub(crate) fn measure(effort: Effort) -> Vec<Number> {
    let rows = effort.bytes / 2 / (FEATURES * size_of::<f32>()) / BATCH * BATCH;
    let store =
        TensorStore::builder().component("a", FEATURES).max_items(rows).build().expect("the configuration is possible");
    let batch = Array2::<f32>::ones((BATCH, FEATURES)).into_shared();
    for _ in 0..rows / BATCH {
        let _written = store.extend(batch.clone(), 0).expect("it fits").wait().expect("no write fails");
    }
    let plain = vec![1.0_f32; rows * FEATURES];
    let mut minibatch = vec![0.0_f32; BATCH * FEATURES];
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

        // Obtaining memory is not part of an epoch's pace.
        let epoch = store.epoch(BATCH).expect("there is memory");
        let start = Instant::now();
        epoch.for_each(|minibatch| drop(black_box(minibatch)));
        let took = start.elapsed().as_secs_f64();
        epochs.push(rows as f64 / took / 1e6);
        ratios.push(sequential / took);
    }
    let number = |name: String, values: &[f64], unit| Number { name, value: median(values), unit, must: None };
    vec![
        number(format!("shuffle of {rows} rows"), &shuffles, "ms"),
        number(format!("epoch over {rows} x {FEATURES}, shuffled"), &epochs, "M rows/s"),
        number("epoch against a sequential memcpy".to_owned(), &ratios, "x"),
    ]
}
