//! Every store has the same trait. It works as an object, shared between hooks, and filled with test data.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Arc, Mutex};
use std::thread;

use activation_store::{
    ActivationStore, ActivationStoreExt, Batch, Index, IndexError, Refused, RingStore, StoreFullError, TensorStore,
    TestData, WriteError, WriteHandle, Written,
};
use common::{rows, watchdog};
use ndarray::{ArrayD, s};

/// A store that implements only the required methods.
#[derive(Default)]
struct ListStore(Mutex<Vec<Vec<f32>>>);

impl ActivationStore for ListStore {
    fn extend(&self, batch: Batch, _component: usize) -> Result<WriteHandle, Refused> {
        let mut list = self.0.lock().unwrap();
        if list.len() + batch.rows() > 1000 {
            return Err(Refused { error: StoreFullError::new("the list is long enough").into(), batch });
        }
        let written = Written { rows: batch.rows(), first_row: list.len() as u64 };
        list.extend(batch.to_f32().rows().into_iter().map(|row| row.to_vec()));
        Ok(WriteHandle::ready(Ok(written)))
    }

    fn empty(&self) {
        self.0.lock().unwrap().clear();
    }

    fn n_components(&self) -> usize {
        1
    }

    fn current_activations_stored_per_component(&self) -> Vec<usize> {
        vec![self.0.lock().unwrap().len()]
    }

    fn get(&self, index: Index) -> Result<ArrayD<f32>, IndexError> {
        let list = self.0.lock().unwrap();
        index.select(list.len(), &[list.first().map_or(0, Vec::len)], |row, _, out| {
            out.copy_from_slice(&list[row]);
            Ok(())
        })
    }
}

fn stores() -> Vec<Arc<dyn ActivationStore>> {
    let ring = || RingStore::builder().component("a", 4).batch_size(10).window(1000).build().unwrap();
    let lane = ring().producer().unwrap();
    let tensor = TensorStore::builder().component("a", 4).max_items(1000).build().unwrap();
    vec![Arc::new(ListStore::default()), Arc::new(tensor), Arc::new(ring()), Arc::new(lane)]
}

#[test]
fn every_store_does_what_the_trait_says() {
    watchdog(|| {
        for store in stores() {
            assert!(store.is_empty());
            let hooks: Vec<_> = (0..3_usize)
                .map(|hook| {
                    let store = store.clone();
                    thread::spawn(move || {
                        for at in (hook * 100..(hook + 1) * 100).step_by(20) {
                            assert_eq!(store.extend(rows(at..at + 20, 4).into(), 0).unwrap().wait().unwrap().rows, 20);
                        }
                        assert_eq!(store.append(vec![1e6_f32; 4].into(), 0).unwrap().wait().unwrap().rows, 1);
                    })
                })
                .collect();
            hooks.into_iter().for_each(|hook| hook.join().unwrap());
            let refused = store.append(rows(0..2, 4).into(), 0).unwrap_err();
            assert!(matches!(refused.error, WriteError::NotOneRow { rows: 2 }));
            assert_eq!((store.len(), store.n_components()), (303, 1));
            assert_eq!(store.current_activations_stored_per_component(), [303]);
            let all = store.get(s![.., 0, ..].into()).unwrap();
            assert_eq!(all.shape(), [303, 4]);
            let mut ids: Vec<usize> =
                all.outer_iter().map(|row| row[0] as usize).filter(|&id| id < 1_000_000).collect();
            ids.sort_unstable();
            assert_eq!(ids, (0..300).collect::<Vec<_>>());
            assert_eq!(store.get(303.into()).unwrap_err().to_string(), "row index 303 is out of range: there are 303");
            store.shuffle();
            assert_eq!(store.len(), 303);
            store.empty();
            assert!(store.is_empty());
            assert!(store.get(0.into()).is_err());
        }
    });
}

#[test]
fn test_data_is_uniform_and_the_same_each_time() {
    watchdog(|| {
        let data = TestData { n_batches: 3, batch_size: 20, n_components: 1, input_features: 4 };
        let mut first: Option<Vec<f32>> = None;
        for store in stores().into_iter().take(2) {
            store.fill_with_test_data(data).unwrap();
            assert_eq!(store.len(), 60);
            let values: Vec<f32> = store.get((..).into()).unwrap().into_iter().collect();
            assert_eq!(values.len(), 240);
            assert!(values.iter().all(|value| (0.0..1.0).contains(value)));
            let mean = values.iter().sum::<f32>() / 240.0;
            assert!((0.4..0.6).contains(&mean), "{mean}");
            assert_eq!(&values, first.get_or_insert(values.clone()));
        }
        let defaults = TestData::default();
        assert_eq!(
            (defaults.n_batches, defaults.batch_size, defaults.n_components, defaults.input_features),
            (1, 16, 1, 256)
        );
    });
}

#[test]
fn filling_a_store_that_is_too_small_says_so() {
    watchdog(|| {
        let store = TensorStore::builder().component("a", 4).max_items(50).build().unwrap();
        let data = TestData { n_batches: 3, batch_size: 20, n_components: 1, input_features: 4 };
        assert!(store.fill_with_test_data(data).unwrap_err().is_full());
        assert_eq!(store.len(), 40);
        let list = ListStore::default();
        let error = list.fill_with_test_data(TestData { n_batches: 100, ..data }).unwrap_err();
        assert_eq!(error.to_string(), "the list is long enough");
        assert!(store.fill_with_test_data(TestData { input_features: 5, ..data }).is_err());
    });
}

/// Two lists. Each list takes a limited number of rows.
struct TwoLists(Mutex<[usize; 2]>, usize);

impl ActivationStore for TwoLists {
    fn extend(&self, batch: Batch, component: usize) -> Result<WriteHandle, Refused> {
        let mut rows = self.0.lock().unwrap();
        if rows[component] + batch.rows() > self.1 {
            return Err(Refused { error: StoreFullError::new("the list is long enough").into(), batch });
        }
        let written = Written { rows: batch.rows(), first_row: rows[component] as u64 };
        rows[component] += batch.rows();
        Ok(WriteHandle::ready(Ok(written)))
    }

    fn empty(&self) {
        *self.0.lock().unwrap() = [0; 2];
    }

    fn n_components(&self) -> usize {
        2
    }

    fn current_activations_stored_per_component(&self) -> Vec<usize> {
        self.0.lock().unwrap().to_vec()
    }

    fn get(&self, _: Index) -> Result<ArrayD<f32>, IndexError> {
        Err(IndexError::Ended)
    }
}

/// A store that does not implement `extend_pass` takes one component after the other.
#[test]
fn a_store_takes_passes_component_by_component_by_default() {
    let pass = |n| vec![(1, Batch::from(rows(0..n, 3))), (0, rows(0..n, 4).into())];
    let store: Arc<dyn ActivationStore> = Arc::new(TwoLists(Mutex::new([5, 0]), 20));
    let written = store.extend_pass(pass(10)).unwrap().wait().unwrap();
    assert_eq!((written.rows, written.first_row), (10, 0), "as the first");
    assert_eq!(store.current_activations_stored_per_component(), [15, 10]);
    // The first component is taken, and the other one comes back.
    let refused = store.extend_pass(pass(6)).unwrap_err();
    assert_eq!(refused.to_string(), "the list is long enough");
    assert_eq!(refused.batches.len(), 1);
    assert_eq!(refused.batches[0].to_f32(), rows(0..6, 4));
    assert_eq!(store.current_activations_stored_per_component(), [15, 16]);
    // The first component is refused, so both come back, in order.
    let refused = store.extend_pass(pass(5)).unwrap_err();
    assert_eq!(refused.batches.iter().map(Batch::features).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(store.extend_pass(Vec::new()).unwrap().wait().unwrap().rows, 0);
}
