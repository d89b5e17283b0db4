//! Implements the trait for a store of your own, which keeps only sums. A hook that takes any store writes to it.
//!
//! Run with `cargo run --example custom_store`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use activation_store::{ActivationStore, ActivationStoreExt, Batch, Index, IndexError, Refused, TensorStore};
use activation_store::{TestData, UnknownComponent, WriteError, WriteHandle, Written};
use ndarray::{Array1, ArrayD, Axis};

const FEATURES: usize = 16;
const DATA: TestData = TestData { n_batches: 8, batch_size: 16, n_components: 2, input_features: FEATURES };

/// For each component, the number of rows and their sum.
struct MeanStore(Mutex<Vec<(usize, Array1<f32>)>>);

impl MeanStore {
    fn sums(&self) -> MutexGuard<'_, Vec<(usize, Array1<f32>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ActivationStore for MeanStore {
    fn extend(&self, batch: Batch, component: usize) -> Result<WriteHandle, Refused> {
        let mut sums = self.sums();
        let known = format!("{} components", sums.len());
        let Some((rows, sum)) = sums.get_mut(component) else {
            let unknown = UnknownComponent { asked: component.to_string(), known };
            return Err(Refused { error: unknown.into(), batch });
        };
        let written = Written { rows: batch.rows(), first_row: *rows as u64 };
        *sum += &batch.to_f32().sum_axis(Axis(0));
        *rows += batch.rows();
        Ok(WriteHandle::ready(Ok(written)))
    }

    fn empty(&self) {
        self.sums().fill((0, Array1::zeros(FEATURES)));
    }

    fn n_components(&self) -> usize {
        self.sums().len()
    }

    fn current_activations_stored_per_component(&self) -> Vec<usize> {
        self.sums().iter().map(|(rows, _)| *rows).collect()
    }

    /// Returns the mean as the only row.
    fn get(&self, index: Index) -> Result<ArrayD<f32>, IndexError> {
        let sums = self.sums();
        index.select(1, &vec![FEATURES; sums.len()], |_, component, out| {
            let (rows, sum) = &sums[component];
            sum.iter().zip(out).for_each(|(sum, out)| *out = sum / *rows as f32);
            Ok(())
        })
    }
}

/// Takes the place of a hook in a model. It does not know which store it writes to.
fn hook(store: &dyn ActivationStore) -> Result<(), WriteError> {
    store.fill_with_test_data(DATA)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let means = MeanStore(Mutex::new(vec![(0, Array1::zeros(FEATURES)); 2]));
    let rows = TensorStore::builder().component("a", FEATURES).component("b", FEATURES).max_items(1_000).build()?;
    for store in [&means as &dyn ActivationStore, &rows] {
        hook(store)?;
        assert_eq!(store.current_activations_stored_per_component(), [128, 128]);
    }
    let kept = rows.get(..)?.mean_axis(Axis(0)).ok_or("no rows")?;
    let difference = (&means.get(0.into())? - &kept).mapv(f32::abs).sum();
    println!("the means of the two stores differ by {difference:e}");
    assert!(difference < 1e-4);
    Ok(())
}
