//! `get` takes numbers, ranges and steps for rows, components and features. The result has the right number of axes.
#![allow(clippy::unwrap_used)]

mod common;

use activation_store::{Index, IndexError, RingStore, TensorStore};
use common::watchdog;
use ndarray::{Array3, ArrayD, NewAxis, s};
use proptest::prelude::*;

const ROWS: usize = 10;
const COMPONENTS: usize = 3;
const FEATURES: usize = 4;

/// The contents of the store, as one array.
fn model() -> Array3<f32> {
    Array3::from_shape_fn((ROWS, COMPONENTS, FEATURES), |(row, component, feature)| {
        (row * 100 + component * 10 + feature) as f32
    })
}

fn store() -> TensorStore {
    let builder = TensorStore::builder().component("a", FEATURES).component("b", FEATURES).component("c", FEATURES);
    let store = builder.max_items(20).build().unwrap();
    for component in 0..COMPONENTS {
        drop(store.extend(model().slice(s![.., component, ..]).to_owned(), component).unwrap());
    }
    store
}

#[test]
fn numbers_take_axes_away_and_ranges_keep_them() {
    watchdog(|| {
        let (store, model) = (store(), model());
        let get = |index: Index| store.get(index).unwrap();
        assert_eq!(get(4.into()), model.slice(s![4, .., ..]).into_dyn());
        assert_eq!(get((4, 1).into()), model.slice(s![4, 1, ..]).into_dyn());
        assert_eq!(get((4, 1, 2).into()), ArrayD::from_elem(vec![], model[[4, 1, 2]]));
        assert_eq!(get((2..6).into()), model.slice(s![2..6, .., ..]).into_dyn());
        assert_eq!(get((2..).into()), model.slice(s![2.., .., ..]).into_dyn());
        assert_eq!(get((..6).into()), model.slice(s![..6, .., ..]).into_dyn());
        assert_eq!(get((..).into()), model.clone().into_dyn());
        assert_eq!(get(s![..;3, 1, -2..].into()), model.slice(s![..;3, 1, -2..]).into_dyn());
        assert_eq!(get(s![-1, .., 0].into()), model.slice(s![-1, .., 0]).into_dyn());
        assert_eq!(get(s![.., 2, ..;-1].into()), model.slice(s![.., 2, ..;-1]).into_dyn());
        assert_eq!(get(s![3..3, .., ..].into()).shape(), [0, 3, 4]);
        assert_eq!(get(s![.., 1..1, ..].into()).shape(), [10, 0, 4]);
        assert_eq!(get(s![7].into()), model.slice(s![7, .., ..]).into_dyn());
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ranges_with_steps_are_those_of_ndarray(
        rows in range(ROWS), components in range(COMPONENTS), features in range(FEATURES),
    ) {
        let slices = [rows, components, features];
        let elems = slices.map(ndarray::SliceInfoElem::from);
        let expected = model().slice(s![slices[0], slices[1], slices[2]]).to_owned().into_dyn();
        let got = common::watchdog(move || store().get(&elems[..]).unwrap());
        prop_assert_eq!(got, expected);
    }
}

fn range(len: usize) -> impl Strategy<Value = ndarray::Slice> {
    let len = len as isize;
    let bound = -len..=len;
    (bound.clone(), prop::option::of(bound), prop_oneof![-3_isize..0, 1_isize..4])
        .prop_map(|(start, end, step)| ndarray::Slice { start, end, step })
        .prop_filter("ndarray wants start <= end", move |slice| {
            let from_start = |at: isize| if at < 0 { at + len } else { at };
            from_start(slice.start) <= slice.end.map_or(len, from_start)
        })
}

#[test]
fn past_the_end_is_an_error_never_memory() {
    watchdog(|| {
        let store = store();
        let out_of_range = |index: Index, expected: (&str, isize, usize)| match store.get(index) {
            Err(IndexError::OutOfRange { axis, index, len }) => assert_eq!((axis, index, len), expected),
            other => panic!("{other:?}"),
        };
        out_of_range(10.into(), ("row", 10, 10));
        // This must not be the last row, although -1 would be.
        out_of_range(usize::MAX.into(), ("row", isize::MAX, 10));
        out_of_range((0..usize::MAX).into(), ("row", isize::MAX, 10));
        out_of_range((0, usize::MAX, 0).into(), ("component", isize::MAX, 3));
        out_of_range((0, 3).into(), ("component", 3, 3));
        out_of_range((0, 0, 4).into(), ("feature", 4, 4));
        out_of_range((5..11).into(), ("row", 11, 10));
        out_of_range(s![-11, .., ..].into(), ("row", -11, 10));
        out_of_range(s![-11.., .., ..].into(), ("row", -11, 10));
        out_of_range(s![.., .., 2..5].into(), ("feature", 5, 4));
        assert!(matches!(store.get(s![0, NewAxis, 0]), Err(IndexError::NewAxis)));
        let no_step = ndarray::SliceInfoElem::Slice { start: 0, end: None, step: 0 };
        let error = store.get(&[no_step][..]).unwrap_err();
        assert!(error.to_string().contains("the step of the row range is 0"), "{error}");
        let four = store.get(s![0, 0, 0, 0]).unwrap_err();
        assert_eq!(four.to_string(), "4 indices given; a store has three axes: row, component, feature");
    });
}

#[test]
fn components_of_different_widths_are_got_one_by_one() {
    watchdog(|| {
        let builder = TensorStore::builder().component("a", 2).component("b", 3).component("c", 2);
        let store = builder.max_items(20).build().unwrap();
        for (component, features) in [2, 3, 2].into_iter().enumerate() {
            drop(store.extend(common::rows(0..5, features), component).unwrap());
        }
        let error = store.get(1).unwrap_err();
        assert_eq!(error.to_string(), "components 0 and 1 have 2 and 3 features; select one component");
        assert_eq!(store.get((1, 1)).unwrap().shape(), [3]);
        assert_eq!(store.get(s![.., ..;2, ..]).unwrap().shape(), [5, 2, 2]);
    });
}

/// `get` on a ring shows the rows of ready minibatches first, in the order in which they will be served.
#[test]
fn a_ring_store_shows_what_it_will_serve() {
    watchdog(|| {
        let store = RingStore::builder().component("a", 2).batch_size(4).window(16).build().unwrap();
        let mut minibatches = store.minibatches();
        let _ = store.extend(common::rows(0..14, 2), 0).unwrap().wait().unwrap();
        let stats = store.stats();
        assert_eq!((store.len(), stats.frames_ready), (14, 2));
        let mut shown: Vec<usize> = store.get(s![.., 0, 1]).unwrap().into_iter().map(|id| id as usize).collect();
        let first = common::ids(&minibatches.next_timeout(common::LIMIT).unwrap().unwrap(), 0);
        assert_eq!(shown[..4], first);
        let later: Vec<usize> = store.get(s![.., 0, 1]).unwrap().into_iter().map(|id| id as usize).collect();
        assert_eq!(later, shown[4..]);
        shown.sort_unstable();
        assert_eq!(shown, (0..14).collect::<Vec<_>>());
        store.close();
        // The rows can still be read while the store drains.
        let rest: usize = minibatches.blocking().map(|minibatch| minibatch.unwrap().rows()).sum();
        assert_eq!(rest, 10);
        assert_eq!(store.get(0).unwrap_err(), IndexError::Ended);
    });
}
