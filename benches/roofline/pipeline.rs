//! Measures the store through its public API, in turns with the floor.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use activation_store::{DType, Minibatch, Minibatches, Producer, RingStore};
use ndarray::{ArcArray2, Array2};

use crate::Effort;
use crate::floor::Floor;

/// Rows of a batch and of a minibatch.
pub(crate) const BATCH: usize = 4096;
/// How many source batches there are. The producers use them in turn.
pub(crate) const SOURCES: usize = 8;

/// One configuration of the store.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) features: usize,
    pub(crate) dtype: DType,
    pub(crate) components: usize,
    pub(crate) producers: usize,
    pub(crate) window_bytes: usize,
    /// The least ratios to the floor that must be reached: for minibatches dropped, and for minibatches read.
    pub(crate) targets: Option<(f64, f64)>,
}

/// One row of the table.
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) features: usize,
    pub(crate) dtype: DType,
    pub(crate) components: usize,
    pub(crate) producers: usize,
    pub(crate) read: bool,
    pub(crate) rows_per_s: Vec<f64>,
    /// Bytes of a stored row of all components.
    pub(crate) row_bytes: usize,
    pub(crate) ratios: Vec<f64>,
    pub(crate) target: Option<f64>,
}

impl Case {
    pub(crate) fn new(name: &'static str, features: usize) -> Self {
        Case { name, features, dtype: DType::F32, components: 1, producers: 1, window_bytes: 512 << 20, targets: None }
    }

    /// Returns the bytes of a row of all components as the producers hand it over.
    fn handed_bytes(&self) -> usize {
        self.components * self.features * size_of::<f32>()
    }

    /// Returns the bytes of a row of all components as the store keeps it.
    fn stored_bytes(&self) -> usize {
        self.components * self.features * self.dtype.size()
    }

    /// Returns the rows of the window.
    pub(crate) fn window(&self) -> usize {
        self.window_bytes / self.stored_bytes()
    }

    pub(crate) fn store(&self) -> RingStore {
        let mut builder = RingStore::builder().dtype(self.dtype).batch_size(BATCH).window(self.window()).seed(1);
        for component in 0..self.components {
            builder = builder.component(component.to_string(), self.features);
        }
        builder.build().expect("the configuration is possible")
    }

    /// Runs `measure` while producers keep the store full from `sources`.
    pub(crate) fn with_producers<T>(&self, sources: &[Vec<f32>], measure: impl FnOnce(&mut Minibatches) -> T) -> T {
        let store = self.store();
        let sources: Vec<ArcArray2<f32>> = sources
            .iter()
            .map(|source| Array2::from_shape_vec((BATCH, self.features), source.clone()))
            .map(|source| source.expect("sources are whole rows").into_shared())
            .collect();
        let lanes: Vec<Producer> = (0..self.producers).map(|_| store.producer().expect("the store is open")).collect();
        thread::scope(|scope| {
            // Dropped before the scope waits for the producers, also in a panic. That closes the store and ends the producers.
            let mut minibatches = store.minibatches();
            for lane in lanes {
                let sources = &sources;
                scope.spawn(move || produce(&lane, sources, self.components));
            }
            measure(&mut minibatches)
        })
    }
}

/// Writes until the store closes.
fn produce(lane: &Producer, sources: &[ArcArray2<f32>], components: usize) {
    for source in sources.iter().cycle() {
        for component in 0..components {
            // The store shares this memory and drops its share. Nothing is allocated or copied here.
            if lane.extend_blocking(source.clone(), component).is_err() {
                return;
            }
        }
    }
}

pub(crate) fn sources(features: usize) -> Vec<Vec<f32>> {
    let source = |s| (0..BATCH * features).map(move |i| ((i * 7 + s) % 1009) as f32 / 1009.0);
    (0..SOURCES).map(|s| source(s).collect()).collect()
}

/// Measures minibatches dropped and minibatches read, in turns with the floor.
pub(crate) fn measure(case: &Case, effort: Effort) -> [Measured; 2] {
    let sources = sources(case.features);
    let mut floor = Floor::new(&sources, case.window_bytes);
    let batches = (effort.bytes / (BATCH * case.handed_bytes())).max(8);
    let mut results = [false, true].map(|read| Measured {
        name: case.name.to_owned(),
        features: case.features,
        dtype: case.dtype,
        components: case.components,
        producers: case.producers,
        read,
        rows_per_s: Vec::new(),
        row_bytes: case.stored_bytes(),
        ratios: Vec::new(),
        target: case.targets.map(|(dropped, of_read)| if read { of_read } else { dropped }),
    });
    case.with_producers(&sources, |minibatches| {
        // After this, every frame that is served was filled evenly from a whole window.
        consume(minibatches, 2 * case.window() / BATCH, false);
        floor.run(1);
        for _ in 0..effort.rounds {
            for result in &mut results {
                let (moved, took) = floor.run(batches * case.components);
                let floor_rows = (moved * BATCH) as f64 / case.components as f64 / took.as_secs_f64();
                // These minibatches became ready while the floor ran, so they do not count.
                consume(minibatches, 8, result.read);
                let took = consume(minibatches, batches, result.read);
                let rows = (batches * BATCH) as f64 / took.as_secs_f64();
                result.rows_per_s.push(rows);
                result.ratios.push(rows / floor_rows);
            }
        }
    });
    results
}

/// Takes `count` minibatches, and reads every element of them if `read`.
pub(crate) fn consume(minibatches: &mut Minibatches, count: usize, read: bool) -> Duration {
    let start = Instant::now();
    for minibatch in minibatches.blocking().take(count) {
        let minibatch = minibatch.expect("no write fails");
        if read {
            black_box(sum(&minibatch));
        }
    }
    start.elapsed()
}

/// Sums every element, in a form that the compiler can vectorise.
fn sum(minibatch: &Minibatch) -> u64 {
    let components = 0..minibatch.components().len();
    let bytes = components.map(|component| minibatch.bytes(component).expect("it exists"));
    bytes.flat_map(bytemuck::cast_slice::<u8, u64>).fold(0, |sum, &word| sum.wrapping_add(word))
}
