//! Batches of any memory layout are stored as the rows they show, bit for bit.
#![allow(clippy::unwrap_used)]

mod common;

use activation_store::{Batch, RingStore, TensorStore};
use common::watchdog;
use ndarray::{Array2, Array3, ArrayD, Axis, ShapeBuilder, s};

const ROWS: usize = 24;
const FEATURES: usize = 16;

/// Returns an array of different values, with no special size.
fn plain() -> Array2<f32> {
    Array2::from_shape_fn((ROWS, FEATURES), |(row, feature)| (row * 100 + feature) as f32 + 0.5)
}

/// Returns the same array in many layouts.
fn layouts() -> Vec<(&'static str, Batch)> {
    let plain = plain();
    let fortran = {
        let mut array = Array2::zeros((ROWS, FEATURES).f());
        array.assign(&plain);
        assert!(!array.is_standard_layout());
        array
    };
    let transposed = plain.t().as_standard_layout().into_owned().reversed_axes();
    let mut both_reversed = plain.slice(s![..;-1, ..;-1]).as_standard_layout().into_owned();
    both_reversed.invert_axis(Axis(0));
    both_reversed.invert_axis(Axis(1));
    let mut rows_reversed = plain.slice(s![..;-1, ..]).as_standard_layout().into_owned();
    rows_reversed.invert_axis(Axis(0));
    let padded = {
        let mut array = Array2::from_elem((ROWS + 5, FEATURES + 7), f32::NAN);
        array.slice_mut(s![2..2 + ROWS, 3..3 + FEATURES]).assign(&plain);
        array.slice_move(s![2..2 + ROWS, 3..3 + FEATURES])
    };
    let strided = {
        let mut array = Array2::from_elem((ROWS * 3, FEATURES * 2), f32::NAN);
        array.slice_mut(s![1..;3, ..;2]).assign(&plain);
        array.slice_move(s![1..;3, ..;2])
    };
    let every_other_row = {
        let mut array = Array2::from_elem((ROWS * 2, FEATURES), f32::NAN);
        array.slice_mut(s![..;2, ..]).assign(&plain);
        array.slice_move(s![..;2, ..])
    };
    let shared = plain.to_shared();
    let shared_slice = padded.to_shared().slice_move(s![.., ..]);
    let values: Vec<f32> = plain.iter().copied().collect();
    let dynamic = |shape: &[usize]| ArrayD::from_shape_vec(shape, values.clone()).unwrap();
    let permuted = {
        // [position, batch, feature] in memory, shown as [batch, position, feature].
        let array = Array3::from_shape_fn((6, 4, FEATURES), |(position, batch, feature)| {
            plain[[batch * 6 + position, feature]]
        });
        array.permuted_axes([1, 0, 2]).into_dyn()
    };
    vec![
        ("standard", plain.clone().into()),
        ("Fortran", fortran.into()),
        ("transposed", transposed.into()),
        ("reversed both ways", both_reversed.into()),
        ("rows reversed", rows_reversed.into()),
        ("padded", padded.into()),
        ("strided", strided.into()),
        ("every other row", every_other_row.into()),
        ("shared", shared.clone().into()),
        ("shared slice", shared_slice.into()),
        ("vector", Batch::from_vec(values.clone(), FEATURES).unwrap()),
        ("lent", Batch::from_owner(values.clone(), FEATURES).unwrap()),
        ("three axes", Batch::from_dyn(dynamic(&[2, 12, FEATURES])).unwrap()),
        ("five axes", Batch::from_dyn(dynamic(&[2, 3, 1, 4, FEATURES])).unwrap()),
        ("permuted axes", Batch::from_dyn(permuted).unwrap()),
    ]
}

/// Returns the rows of a store's only component, sorted by their first value.
fn served(store: &RingStore) -> Array2<f32> {
    let mut rows: Vec<Vec<f32>> = Vec::new();
    store.close();
    for minibatch in store.minibatches().blocking() {
        rows.extend(minibatch.unwrap().view::<f32>(0).unwrap().rows().into_iter().map(|row| row.to_vec()));
    }
    rows.sort_by(|a, b| a[0].total_cmp(&b[0]));
    Array2::from_shape_vec((rows.len(), FEATURES), rows.concat()).unwrap()
}

#[test]
fn every_layout_is_stored_as_the_rows_it_shows() {
    watchdog(|| {
        for (name, batch) in layouts() {
            assert_eq!((batch.rows(), batch.features()), (ROWS, FEATURES), "{name}");
            assert_eq!(batch.to_f32(), plain(), "{name}");
            let store = RingStore::builder().component("a", FEATURES).batch_size(5).window(20).build().unwrap();
            drop(store.extend(batch, 0).unwrap());
            assert_eq!(served(&store), plain(), "{name}");
        }
        for (name, batch) in layouts() {
            let store = TensorStore::builder().component("a", FEATURES).max_items(ROWS).build().unwrap();
            drop(store.extend(batch, 0).unwrap());
            let stored = store.get(s![.., 0, ..]).unwrap();
            assert_eq!(stored, plain().into_dyn(), "{name}");
        }
    });
}

/// Tests the same for rows that are converted, because other code copies them.
#[test]
fn every_layout_is_converted_as_the_rows_it_shows() {
    watchdog(|| {
        for (name, batch) in layouts() {
            let store = TensorStore::builder()
                .dtype(activation_store::DType::BF16)
                .component("a", FEATURES)
                .max_items(ROWS)
                .build()
                .unwrap();
            drop(store.extend(batch, 0).unwrap());
            let expected = plain().mapv(|value| half::bf16::from_f32(value).to_f32());
            assert_eq!(store.get(s![.., 0, ..]).unwrap(), expected.into_dyn(), "{name}");
        }
    });
}

#[test]
fn a_shared_array_stays_the_callers() {
    watchdog(|| {
        let store = TensorStore::builder().component("a", FEATURES).max_items(3 * ROWS).build().unwrap();
        let shared = plain().into_shared();
        for _ in 0..3 {
            let _ = store.extend(shared.clone(), 0).unwrap().wait().unwrap();
        }
        assert_eq!(shared, plain());
        // The store has dropped its share, so the array can be taken back without a copy.
        let address = shared.as_ptr();
        assert_eq!(shared.into_owned().as_ptr(), address);
        assert_eq!(store.len(), 3 * ROWS);
    });
}

/// Tests rows of 1 to 200 features, which cover all lengths around the widths of the copy kernels. One ring is large enough for
/// streaming stores, and one is not.
#[test]
fn rows_of_any_width_arrive_whole() {
    for window in [64, 16_384] {
        watchdog(move || {
            for features in (1..=34).chain([47, 48, 63, 64, 65, 96, 128, 200]) {
                let store =
                    RingStore::builder().component("a", features).batch_size(32).window(window).build().unwrap();
                let id = |row: usize, feature: usize| (row * 256 + feature) as f32;
                drop(
                    store.extend(Array2::from_shape_fn((100, features), |(row, feature)| id(row, feature)), 0).unwrap(),
                );
                store.close();
                let mut seen = [false; 100];
                for minibatch in store.minibatches().blocking() {
                    for row in minibatch.unwrap().view::<f32>(0).unwrap().rows() {
                        let number = row[0] as usize / 256;
                        assert!(row.iter().enumerate().all(|(feature, &value)| value == id(number, feature)), "{row}");
                        assert!(!std::mem::replace(&mut seen[number], true));
                    }
                }
                assert_eq!(seen, [true; 100]);
            }
        });
    }
}

#[test]
fn an_owner_may_show_more_than_it_did() {
    struct Growing(std::sync::atomic::AtomicUsize, Vec<f32>);
    impl AsRef<[f32]> for Growing {
        fn as_ref(&self) -> &[f32] {
            let more = self.0.fetch_add(FEATURES, std::sync::atomic::Ordering::SeqCst);
            &self.1[..(ROWS - 4) * FEATURES + more.min(4 * FEATURES)]
        }
    }
    watchdog(|| {
        let values: Vec<f32> = plain().iter().copied().collect();
        let owner = Growing(0.into(), values);
        let store = TensorStore::builder().component("a", FEATURES).max_items(ROWS).build().unwrap();
        let written = store.extend(Batch::from_owner(owner, FEATURES).unwrap(), 0).unwrap().wait().unwrap();
        assert_eq!(written.rows, ROWS - 4);
        assert_eq!(store.get(s![.., 0, ..]).unwrap(), plain().slice(s![..ROWS - 4, ..]).to_owned().into_dyn());
    });
}
