//! The store of fixed size can be filled, shuffled, indexed and looped over.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use activation_store::{ActivationStore, Batch, DType, StoreFullError, TensorStore, WriteError};
use common::{Lent, id_rows, ids, long_ids, rows, watchdog};
use futures::executor::block_on;
use ndarray::{Array2, s};

fn store(max_items: usize, seed: u64) -> TensorStore {
    let builder = TensorStore::builder().component("a", 3).component_of("id", 1, DType::I64);
    builder.max_items(max_items).seed(seed).build().unwrap()
}

fn fill(store: &TensorStore, n: usize) {
    drop(store.extend(rows(0..n, 3), "a").unwrap());
    drop(store.extend(id_rows(0..n), "id").unwrap());
}

fn epoch(store: &TensorStore, batch_size: usize) -> Vec<Vec<usize>> {
    let minibatches = store.epoch(batch_size).unwrap();
    minibatches
        .map(|minibatch| {
            let served = ids(&minibatch, 0);
            assert_eq!(served, long_ids(&minibatch, 1), "components stay aligned");
            served
        })
        .collect()
}

#[test]
fn past_the_end_is_store_full_with_nothing_changed() {
    watchdog(|| {
        let store = store(10, 0);
        fill(&store, 8);
        let refused = store.extend(rows(8..11, 3), 0).unwrap_err();
        assert!(matches!(refused.error, WriteError::Full(_)));
        assert_eq!(
            refused.to_string(),
            "Activation store is full: component 0 (\"a\") holds 8 of 10 rows, so 3 more do not fit"
        );
        assert_eq!(refused.into_batch().to_f32(), rows(8..11, 3));
        assert_eq!(store.current_activations_stored_per_component(), [8, 8]);
        // A batch that fills the store exactly is taken.
        let written = store.extend(rows(8..10, 3), 0).unwrap().wait().unwrap();
        assert_eq!((written.rows, written.first_row), (2, 8));
        assert!(store.append(vec![0.0_f32; 3], 0).unwrap_err().error.is_full());
        assert_eq!(store.extend(rows(0..0, 3), 0).unwrap().wait().unwrap().rows, 0);
        assert_eq!(StoreFullError::default().to_string(), "Activation store is full");
    });
}

#[test]
fn len_is_the_minimum_over_components() {
    watchdog(|| {
        let store = store(10, 0);
        assert!(store.is_empty());
        drop(store.extend(rows(0..7, 3), "a").unwrap());
        assert_eq!(store.len(), 0);
        drop(store.extend(id_rows(0..4), "id").unwrap());
        assert_eq!(store.len(), 4);
        assert_eq!(store.current_activations_stored_per_component(), [7, 4]);
        assert!(store.get((3, 0)).is_ok());
        // The row has only component 0, so it does not count.
        assert_eq!(store.get((4, 0)).unwrap_err().to_string(), "row index 4 is out of range: there are 4");
        assert_eq!(store.max_items(), 10);
    });
}

#[test]
fn reads_see_every_write_handed_over_before() {
    watchdog(|| {
        let store = store(100_000, 0);
        for at in (0..100_000).step_by(1000) {
            drop(store.extend(rows(at..at + 1000, 3), 0).unwrap());
            drop(store.extend(id_rows(at..at + 1000), 1).unwrap());
            assert_eq!(store.len(), at + 1000);
        }
        assert_eq!(store.get(s![.., 0, 1]).unwrap().len(), 100_000);
    });
}

#[test]
fn blocking_writes_keep_their_place_among_the_others() {
    watchdog(|| {
        let store = store(100_000, 0);
        // Each component has its own thread, which hands over a batch, stores one at once, and hands over another.
        thread::scope(|scope| {
            scope.spawn(|| {
                for at in (0..90_000).step_by(900) {
                    drop(store.extend(rows(at..at + 300, 3), 0).unwrap());
                    let written = store.extend_blocking(rows(at + 300..at + 600, 3), 0).unwrap();
                    assert_eq!((written.rows, written.first_row), (300, at as u64 + 300));
                    drop(store.extend(rows(at + 600..at + 900, 3), 0).unwrap());
                }
            });
            for at in (0..90_000).step_by(450) {
                assert_eq!(store.extend_blocking(id_rows(at..at + 450), 1).unwrap().first_row, at as u64);
            }
        });
        assert_eq!(store.get(s![..90_000, 0, ..]).unwrap(), rows(0..90_000, 3).into_dyn());
        common::assert_exactly(0..90_000, &epoch(&store, 1000));
        store.empty();
        assert_eq!(store.extend_blocking(rows(0..3, 3), "a").unwrap().first_row, 0);
        let refused = store.extend_blocking(rows(0..100_000, 3), "a").unwrap_err();
        assert!(refused.error.is_full());
        assert_eq!(refused.into_batch().rows(), 100_000);
        assert!(store.extend_blocking(rows(0..3, 4), "a").is_err());
    });
}

#[test]
fn gather_gives_the_same_rows_as_get() {
    watchdog(|| {
        // The rows are narrower or wider than the prefetch. There are few rows, or more than fit a cache.
        for (features, n) in [(3, 40), (64, 5000), (1000, 300)] {
            let builder = TensorStore::builder().component("a", features).component("b", features);
            let stored = builder.max_items(n).seed(3).build().unwrap();
            for component in 0..2 {
                let batch = Array2::from_shape_fn((n, features), |(r, f)| (r * 7 + f + component) as f32);
                drop(stored.extend(batch, component).unwrap());
            }
            stored.shuffle();
            let asked: Vec<usize> = (0..n + 5).map(|i| i * 11 % n).collect();
            let mut out = vec![0.0; asked.len() * 2 * features];
            stored.gather(&asked, &mut out).unwrap();
            for (&row, got) in asked.iter().zip(out.chunks_exact(2 * features)) {
                assert_eq!(stored.get(row).unwrap().into_raw_vec_and_offset().0, got);
            }
            let error = stored.gather(&[0, n], &mut vec![0.0; 4 * features]).unwrap_err();
            assert_eq!(error.to_string(), format!("row index {n} is out of range: there are {n}"));
        }
        let halves = TensorStore::builder().component_of("h", 4, DType::BF16).max_items(10).build().unwrap();
        drop(halves.extend(rows(0..10, 4), "h").unwrap());
        let mut out = [0.0; 8];
        halves.gather(&[9, 2], &mut out).unwrap();
        assert_eq!(out[..4], *halves.get(9).unwrap().as_slice().unwrap());
        assert_eq!(out[4..], *halves.get(2).unwrap().as_slice().unwrap());
        let error = store(10, 0).gather(&[], &mut []).unwrap_err();
        assert_eq!(error.to_string(), "components 0 and 1 have 3 and 1 features; select one component");
    });
}

#[test]
fn every_epoch_has_every_row_once_in_another_order() {
    watchdog(|| {
        let store = store(100, 7);
        fill(&store, 90);
        let epochs: Vec<_> = (0..4).map(|_| epoch(&store, 32)).collect();
        for served in &epochs {
            assert_eq!(served.iter().map(Vec::len).collect::<Vec<_>>(), [32, 32, 26]);
            common::assert_exactly(0..90, served);
            assert_ne!(served.concat(), (0..90).collect::<Vec<_>>());
        }
        assert!((1..4).all(|i| epochs[i] != epochs[i - 1]));
        let mut under_way = store.epoch(32).unwrap();
        assert_eq!(under_way.size_hint(), (0, Some(3)));
        drop(under_way.next());
        assert_eq!(under_way.size_hint(), (0, Some(2)));
        let ordinals: Vec<_> = store.epoch(32).unwrap().map(|minibatch| minibatch.ordinal()).collect();
        assert_eq!(ordinals, [0, 1, 2]);
        // A minibatch that is larger than the store has all its rows.
        assert_eq!(epoch(&store, 1000).iter().map(Vec::len).collect::<Vec<_>>(), [90]);
        assert!(store.epoch(0).is_err());
    });
}

#[test]
fn the_seed_decides_the_order() {
    watchdog(|| {
        let orders = |seed, batches: &[usize]| {
            let store = store(60, seed);
            let mut at = 0;
            for &n in batches {
                drop(store.extend(rows(at..at + n, 3), 0).unwrap());
                drop(store.extend(id_rows(at..at + n), 1).unwrap());
                at += n;
            }
            store.shuffle();
            (epoch(&store, 16), store.get(s![.., 0, 0]).unwrap(), epoch(&store, 16))
        };
        assert_eq!(orders(3, &[60]), orders(3, &[1, 20, 39]));
        assert_ne!(orders(3, &[60]), orders(4, &[60]));
    });
}

#[test]
fn shuffle_permutes_whole_rows() {
    watchdog(|| {
        let builder = TensorStore::builder().component("a", 3).component("b", 2);
        let store = builder.max_items(50).seed(1).build().unwrap();
        drop(store.extend(rows(0..50, 3), 0).unwrap());
        drop(store.extend(rows(0..45, 2), 1).unwrap());
        let order = |store: &TensorStore| {
            let a: Vec<f32> = store.get(s![.., 0, 2]).unwrap().into_iter().collect();
            let b: Vec<f32> = store.get(s![.., 1, 0]).unwrap().into_iter().collect();
            assert_eq!(a, b);
            a
        };
        let before = order(&store);
        assert_eq!(before, (0..45).map(|id| id as f32).collect::<Vec<_>>());
        store.shuffle();
        let after = order(&store);
        assert_ne!(before, after);
        let mut sorted = after.clone();
        sorted.sort_by(f32::total_cmp);
        assert_eq!(sorted, before);
        // Later rows are found behind the others.
        drop(store.extend(rows(45..50, 2), 1).unwrap());
        assert_eq!(order(&store)[..45], after);
        assert_eq!(order(&store)[45..], [45.0, 46.0, 47.0, 48.0, 49.0]);
        ActivationStore::shuffle(&store);
        assert_ne!(order(&store)[..45], after);
    });
}

#[test]
fn empty_makes_room_and_ends_epochs() {
    watchdog(|| {
        let store = store(50, 1);
        fill(&store, 50);
        store.shuffle();
        let mut under_way = store.epoch(16).unwrap();
        let kept = under_way.next().unwrap();
        let before = ids(&kept, 0);
        store.empty();
        assert!(under_way.next().is_none());
        assert_eq!(ids(&kept, 0), before);
        assert_eq!(store.len(), 0);
        assert!(store.get(0).is_err());
        assert_eq!(store.epoch(16).unwrap().count(), 0);
        fill(&store, 50);
        common::assert_exactly(0..50, &epoch(&store, 16));
        assert!(under_way.next().is_none());
        assert_eq!(store.get((7, 0, 0)).unwrap().first(), Some(&7.0), "the order starts afresh");
    });
}

#[test]
fn writes_from_many_threads_each_keep_their_place() {
    watchdog(|| {
        let store = TensorStore::builder().component("a", 3).max_items(4000).build().unwrap();
        let firsts: Vec<(usize, u64)> = thread::scope(|scope| {
            let writers: Vec<_> = (0..4_usize)
                .map(|thread| {
                    let store = &store;
                    scope.spawn(move || {
                        let ranges = (thread * 1000..(thread + 1) * 1000).step_by(10);
                        let write = |at| (at, store.extend(rows(at..at + 10, 3), 0).unwrap().wait().unwrap().first_row);
                        ranges.map(write).collect::<Vec<_>>()
                    })
                })
                .collect();
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
        });
        assert_eq!(store.len(), 4000);
        for (at, first) in firsts {
            let first = first as usize;
            let got: Vec<f32> = store.get(s![first..first + 10, 0, 0]).unwrap().into_iter().collect();
            assert_eq!(got, (at..at + 10).map(|id| id as f32).collect::<Vec<_>>());
        }
    });
}

#[test]
fn epochs_and_shuffles_and_writes_may_run_at_once() {
    watchdog(|| {
        let store = store(2000, 5);
        fill(&store, 500);
        thread::scope(|scope| {
            scope.spawn(|| {
                for at in (500..2000).step_by(50) {
                    drop(store.extend(rows(at..at + 50, 3), 0).unwrap());
                    let _ = block_on(store.extend(id_rows(at..at + 50), 1).unwrap()).unwrap();
                }
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        let served = epoch(&store, 64).concat();
                        let distinct: std::collections::HashSet<_> = served.iter().collect();
                        assert_eq!(distinct.len(), served.len());
                        assert!(served.len() >= 500);
                    }
                });
            }
            scope.spawn(|| (0..50).for_each(|_| store.shuffle()));
        });
        common::assert_exactly(0..2000, &epoch(&store, 64));
    });
}

#[test]
fn batches_without_rows_or_features_change_nothing() {
    watchdog(|| {
        let store = store(10, 0);
        fill(&store, 5);
        for empty in [
            Batch::from(Array2::<f32>::zeros((0, 3))),
            Batch::from_vec(Vec::<f32>::new(), 3).unwrap(),
            Batch::from_vec(Vec::<f32>::new(), 0).unwrap(),
            Batch::from_owner(Vec::<f32>::new(), 0).unwrap(),
            // These would be converted if there were any values.
            Batch::from_vec(Vec::<half::f16>::new(), 0).unwrap(),
        ] {
            assert_eq!(store.extend(empty, 0).unwrap().wait().unwrap().rows, 0);
        }
        assert_eq!(store.len(), 5);
    });
}

#[test]
fn lent_memory_is_given_back_and_writes_survive_their_handles() {
    watchdog(|| {
        let returned = Arc::new(AtomicUsize::new(0));
        let store = TensorStore::builder().component("a", 3).max_items(100).build().unwrap();
        for _ in 0..10 {
            let owner = Lent { values: vec![1.0; 30], returned: returned.clone() };
            drop(store.extend(Batch::from_owner(owner, 3).unwrap(), 0).unwrap());
        }
        assert_eq!(store.len(), 100);
        assert_eq!(returned.load(Ordering::SeqCst), 10);
        // Handles outlive the store.
        store.empty();
        let handle = store.extend(rows(0..100, 3), 0).unwrap();
        drop(store);
        assert_eq!(handle.wait().unwrap().rows, 100);
    });
}

#[test]
fn minibatches_kept_from_an_epoch_do_not_run_out() {
    watchdog(|| {
        let store = store(100, 0);
        fill(&store, 100);
        let epoch = store.epoch(10).unwrap();
        let kept: Vec<_> = epoch.collect();
        drop(store);
        let served: Vec<_> = kept.iter().map(|minibatch| ids(minibatch, 0)).collect();
        common::assert_exactly(0..100, &served);
    });
}
