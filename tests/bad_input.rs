//! Promise 10 and bad arguments: a clear error that names the value and what would work; the batch comes back; the
//! store goes on working.
#![allow(clippy::unwrap_used)]

mod common;

use activation_store::{
    ActivationStore, Batch, BuildError, ClosedBy, DType, Refused, RingStore, RingStoreBuilder, ShapeError, TensorStore,
    ViewError, WriteError, WriteHandle,
};
use common::{LIMIT, assert_exactly, finish, rows, watchdog};
use half::f16;
use ndarray::{Array2, Array3, ArrayD, arr0};

fn ring() -> RingStoreBuilder {
    RingStore::builder().component("mlp", 4).component_of("token", 1, DType::U32).batch_size(8).window(32)
}

fn tensor() -> TensorStore {
    let builder = TensorStore::builder().component("mlp", 4).component_of("token", 1, DType::U32);
    builder.max_items(100).build().unwrap()
}

/// Every call that both stores should refuse, with words that its message must have.
type Call = (&'static str, fn() -> Batch, usize, &'static [&'static str]);

const REFUSED: &[Call] = &[
    ("extend", || rows(0..6, 5).into(), 0, &["0 (\"mlp\")", "4 features", "has 5"]),
    ("extend", || rows(0..6, 3).into(), 0, &["4 features", "has 3"]),
    ("extend", || Array2::<f32>::zeros((6, 0)).into(), 0, &["4 features", "has 0"]),
    ("extend", || rows(0..0, 5).into(), 0, &["4 features", "has 5"]),
    ("extend", || rows(0..6, 4).into(), 2, &["no component 2", "0 (\"mlp\"), 1 (\"token\")"]),
    ("extend", || rows(0..6, 4).into(), usize::MAX, &["no component 18446744073709551615"]),
    ("extend", || rows(0..6, 1).into(), 1, &["1 (\"token\")", "u32", "f32"]),
    ("extend", || Array2::<u32>::zeros((6, 4)).into(), 0, &["0 (\"mlp\")", "f32", "u32"]),
    ("extend", || Array2::<i64>::zeros((6, 1)).into(), 1, &["u32", "i64"]),
    ("append", || rows(0..2, 4).into(), 0, &["one row", "got 2", "extend"]),
    ("append", || rows(0..0, 4).into(), 0, &["one row", "got 0"]),
    ("append", || vec![1.0_f32; 5].into(), 0, &["4 features", "has 5"]),
];

fn call(store: &dyn ActivationStore, name: &str, batch: Batch, component: usize) -> Result<WriteHandle, Refused> {
    match name {
        "append" => store.append(batch, component),
        _ => store.extend(batch, component),
    }
}

#[test]
fn a_refused_batch_comes_back_with_a_reason_and_the_store_goes_on() {
    watchdog(|| {
        let ring = ring().build().unwrap();
        let producer = ring.producer().unwrap();
        let tensor = tensor();
        for store in [&ring as &dyn ActivationStore, &tensor] {
            for (name, batch, component, words) in REFUSED {
                let refused = call(store, name, batch(), *component).unwrap_err();
                let text = refused.to_string();
                assert!(words.iter().all(|word| text.contains(word)), "{text}");
                let back = refused.into_batch();
                assert_eq!(back.dtype(), batch().dtype());
                assert_eq!(back.to_f32(), batch().to_f32());
            }
        }
        for (_, batch, component, words) in &REFUSED[..9] {
            for refused in [
                producer.extend(batch(), *component).unwrap_err(),
                producer.try_extend(batch(), *component).unwrap_err(),
                producer.extend_blocking(batch(), *component).unwrap_err(),
                ring.try_extend(batch(), *component).unwrap_err(),
                ring.extend_blocking(batch(), *component).unwrap_err(),
            ] {
                let text = refused.to_string();
                assert!(words.iter().all(|word| text.contains(word)), "{text}");
            }
        }
        let unknown = ring.extend(rows(0..6, 4), "attn").unwrap_err();
        assert_eq!(unknown.to_string(), "there is no component \"attn\"; this store has 0 (\"mlp\"), 1 (\"token\")");
        assert!(matches!(unknown.error, WriteError::Component(_)));
        for store in [&ring as &dyn ActivationStore, &tensor] {
            drop(store.extend(rows(0..40, 4).into(), 0).unwrap());
            drop(store.extend(Array2::<u32>::zeros((40, 1)).into(), 1).unwrap());
        }
        assert_eq!(tensor.len(), 40);
        assert_exactly(0..40, &finish(&ring));
    });
}

#[test]
fn values_that_are_no_rows_are_no_batch() {
    assert_eq!(Batch::from_vec(vec![1.0_f32; 7], 3).unwrap_err(), ShapeError::Ragged { len: 7, features: 3 });
    assert_eq!(Batch::from_vec(vec![1.0_f32; 7], 0).unwrap_err(), ShapeError::Ragged { len: 7, features: 0 });
    let error = Batch::from_owner(vec![f16::ZERO; 7], 2).unwrap_err();
    assert_eq!(error.to_string(), "7 values do not divide into rows of 2 features");
    let scalar = Batch::from_dyn(arr0(1.0_f32).into_dyn()).unwrap_err();
    assert_eq!(scalar, ShapeError::NoAxes);
    assert!(scalar.to_string().contains("a single number"));
    // Any other rank is rows of features.
    assert_eq!(Batch::from_dyn(ArrayD::<f32>::zeros(vec![5])).unwrap().rows(), 1);
    assert_eq!(Batch::from_dyn(Array3::<f32>::zeros((2, 3, 4)).into_dyn()).unwrap().rows(), 6);
    let none = Batch::from_dyn(Array3::<f32>::zeros((2, 0, 4)).into_dyn()).unwrap();
    assert_eq!((none.rows(), none.features()), (0, 4));
}

#[test]
fn a_closed_lane_says_so_and_the_store_goes_on() {
    watchdog(|| {
        let store = RingStore::builder().component("a", 4).batch_size(8).window(32).build().unwrap();
        let producer = store.producer().unwrap();
        drop(producer.extend(rows(0..10, 4), 0).unwrap());
        producer.close();
        producer.close();
        let refused = producer.extend(rows(0..3, 4), 0).unwrap_err();
        assert!(matches!(refused.error, WriteError::Closed(ClosedBy::Lane)));
        assert!(refused.to_string().contains("producer()"), "{refused}");
        assert_eq!(refused.into_batch().rows(), 3);
        assert!(!store.is_closed());
        drop(store.producer().unwrap().extend(rows(10..25, 4), 0).unwrap());
        assert_exactly(0..25, &finish(&store));
        let refused = store.extend(rows(0..3, 4), 0).unwrap_err();
        assert!(refused.error.is_closed());
        assert_eq!(refused.into_batch().rows(), 3);
    });
}

#[test]
fn a_component_that_runs_ahead_is_refused_naming_the_missing_one() {
    watchdog(|| {
        let store = ring().max_skew(20).build().unwrap();
        drop(store.extend(rows(0..12, 4), 0).unwrap());
        drop(store.extend(rows(12..20, 4), 0).unwrap());
        let refused = store.extend(rows(20..21, 4), 0).unwrap_err();
        let text = refused.to_string();
        assert!(matches!(refused.error, WriteError::Skew { by: 20, max_skew: 20, .. }));
        assert!(text.contains("0 (\"mlp\") is 20 rows ahead of component 1 (\"token\")"), "{text}");
        // Nothing has changed: the missing one may still come, and then there is room again.
        drop(store.extend(Array2::<u32>::zeros((20, 1)), 1).unwrap());
        drop(store.extend(refused.into_batch(), 0).unwrap());
        drop(store.extend(Array2::<u32>::zeros((1, 1)), 1).unwrap());
        assert_exactly(0..21, &finish(&store));
    });
}

#[test]
fn a_minibatch_is_viewed_as_what_it_is() {
    watchdog(|| {
        let store = ring().build().unwrap();
        drop(store.extend(rows(0..8, 4), 0).unwrap());
        drop(store.extend(Array2::<u32>::zeros((8, 1)), 1).unwrap());
        store.close();
        let mut minibatch = store.minibatches().next_timeout(LIMIT).unwrap().unwrap();
        let error = minibatch.view::<f32>("token").unwrap_err();
        assert_eq!(error.to_string(), "component 1 (\"token\") holds u32, not f32; view it as u32");
        assert!(matches!(minibatch.view::<f32>(2), Err(ViewError::Component(_))));
        assert!(matches!(minibatch.view_mut::<f16>("mlp"), Err(ViewError::Elements { .. })));
        assert!(matches!(minibatch.bytes("attn"), Err(ViewError::Component(_))));
        let error = minibatch.stacked::<f32>().unwrap_err();
        assert!(error.to_string().contains("4 × f32") && error.to_string().contains("1 × u32"), "{error}");
        assert_eq!(minibatch.view::<f32>("mlp").unwrap().dim(), (8, 4));
    });
}

fn build(change: impl FnOnce(RingStoreBuilder) -> RingStoreBuilder) -> BuildError {
    change(ring()).build().map(|_| ()).unwrap_err()
}

#[test]
fn impossible_ring_stores_are_refused_at_construction() {
    for (error, words) in [
        (build(|b| b.batch_size(0)), &["batch_size is 0", "at least 1"][..]),
        (build(|b| b.window(0)), &["window is 0"]),
        (build(|b| b.ready_frames(0)), &["ready_frames is 0"]),
        (build(|b| b.queue_rows(0)), &["queue_rows is 0"]),
        (build(|b| b.max_skew(0)), &["max_skew is 0"]),
        (build(|b| b.component("none", 0)), &["\"none\"", "is 0"]),
        (build(|b| b.component("mlp", 3)), &["two components", "\"mlp\""]),
        (build(|b| b.batch_size(33)), &["window is 32", "minibatch of 33", "at least 33"]),
        (build(|b| b.batch_size(usize::MAX).window(usize::MAX)), &["at most 4294967295"]),
        (build(|b| b.batch_size(1).window(usize::MAX)), &["window / batch_size", "at most 4294967295"]),
        (build(|b| b.ready_frames(usize::MAX)), &["ready_frames", "at most"]),
        (build(|b| b.component("wide", usize::MAX)), &["overflows"]),
        (build(|b| b.component("wide", usize::MAX / 32)), &["overflows"]),
        (build(|b| b.component("wide", 1 << 58)), &["overflows"]),
        // More than there are addresses.
        (
            build(|b| b.component("wide", 1 << 40).allow_overcommit(true)),
            &["rows of 4398046511", "cannot be allocated", "fewer rows"],
        ),
        (RingStore::builder().build().map(|_| ()).unwrap_err(), &["no component", ".component("]),
    ] {
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}

/// Linux says how much memory there is.
#[test]
#[cfg(target_os = "linux")]
fn a_window_larger_than_the_memory_there_is_is_refused_with_the_largest_that_fits() {
    let builder = RingStore::builder().component("a", 1 << 20).batch_size(1 << 10);
    // 64 TiB.
    let error = builder.window(1 << 24).build().map(|_| ()).unwrap_err();
    let text = error.to_string();
    let BuildError::Memory { window, needed, available, largest_window } = error else {
        panic!("{error:?}");
    };
    assert_eq!(window, 1 << 24);
    assert_eq!(needed, ((1 << 14) + 3) << 32);
    assert!(available < needed);
    assert_eq!(largest_window, (available >> 32).saturating_sub(3) << 10);
    assert!(text.contains("16777216 rows needs 65548.00 GiB"), "{text}");
    assert!(text.contains("allow_overcommit(true)"), "{text}");
    let advice = if largest_window == 0 { "smaller batch_size".into() } else { format!("{largest_window} rows") };
    assert!(text.contains(&advice), "{text}");
}

#[test]
fn impossible_tensor_stores_are_refused_at_construction() {
    let build = |max_items, features| {
        let builder = TensorStore::builder().component("a", features).max_items(max_items);
        builder.build().map(|_| ()).unwrap_err().to_string()
    };
    assert!(build(0, 3).contains("max_items is 0"));
    assert!(build(3, 0).contains("\"a\" is 0"));
    assert!(build(usize::MAX, 3).contains("at most 4294967295"));
    assert!(build(1 << 31, 1 << 60).contains("overflows"));
    assert!(build(1 << 31, 1 << 20).contains("cannot be allocated"));
    let error = TensorStore::builder().max_items(3).build().map(|_| ()).unwrap_err();
    assert_eq!(error, BuildError::NoComponents);
    let twice = TensorStore::builder().component("a", 1).component("a", 2).max_items(3).build();
    assert!(matches!(twice, Err(BuildError::DuplicateName { .. })));
    let store = tensor();
    assert!(store.epoch(0).map(|_| ()).unwrap_err().to_string().contains("batch_size is 0"));
    assert_eq!(store.epoch(usize::MAX).unwrap().count(), 0);
}

#[test]
fn element_types_have_names() {
    for name in ["f32", "f16", "bf16", "u32", "i64"] {
        assert_eq!(name.parse::<DType>().unwrap().to_string(), name);
    }
    let error = "f64".parse::<DType>().unwrap_err();
    assert_eq!(error.to_string(), "unknown dtype \"f64\"; use one of f32, f16, bf16, u32, i64");
}
