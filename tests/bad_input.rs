//! Promise 10, and bad arguments. The error names the value and what would work. The batch comes back, and the store goes on.
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

/// Every call that both stores must refuse, with words that the message must have.
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
    // An array of any other rank becomes rows of features.
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
        assert_eq!(refused.error.closed_by(), Some(ClosedBy::Lane));
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
        // Nothing has changed. When the missing component comes, the other one can go on.
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
        // This is more than the address space.
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

/// Only Linux says how much memory is available.
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

/// A `Vec` is one row. That is wrong if the `Vec` has one value for each of several rows.
#[test]
fn a_list_of_ids_that_is_taken_for_one_row_is_told_how_to_be_several() {
    watchdog(|| {
        let store = ring().build().unwrap();
        let ids = || vec![5_u32, 6, 7];
        let hint = "a Vec is one row; use Batch::from_vec(values, 1) for several";
        for refused in [
            store.extend(ids(), "token").unwrap_err(),
            store.append(ids(), "token").unwrap_err(),
            store.begin_pass().put("token", ids()).unwrap_err(),
            tensor().extend(ids(), "token").unwrap_err(),
        ] {
            let text = refused.to_string();
            assert!(text.contains("1 (\"token\") takes rows of 1 features, but the batch has 3 in one row"), "{text}");
            assert!(text.contains(hint), "{text}");
        }
        let refused = store.extend_pass([("mlp", Batch::from(rows(0..3, 4))), ("token", ids().into())]).unwrap_err();
        assert!(refused.to_string().contains(hint), "{refused}");
        let two = store.extend(vec![0.0_f32; 8], "mlp").unwrap_err();
        assert!(two.to_string().contains("use Batch::from_vec(values, 4) for several"), "{two}");
        // There is no hint if it would not help.
        for refused in [
            store.extend(vec![0.0_f32; 7], "mlp").unwrap_err(),
            store.extend(rows(0..1, 8), "mlp").unwrap_err(),
            store.extend(Batch::from_vec(ids(), 3).unwrap(), "token").unwrap_err(),
        ] {
            assert!(!refused.to_string().contains("from_vec"), "{refused}");
        }
        // The call that the hint names works.
        drop(store.extend(Batch::from_vec(ids(), 1).unwrap(), "token").unwrap());
        drop(store.extend(rows(0..3, 4), "mlp").unwrap());
        store.close();
        let minibatch = store.minibatches().next_timeout(LIMIT).unwrap().unwrap();
        let mut tokens: Vec<u32> = minibatch.view("token").unwrap().iter().copied().collect();
        tokens.sort_unstable();
        assert_eq!(tokens, ids());
    });
}

/// `?` turns the error of making a batch into the error of a store.
#[test]
fn a_shape_error_becomes_a_stores_error() {
    fn hook(store: &RingStore, values: Vec<f32>) -> Result<(), Refused> {
        drop(store.extend(Batch::from_vec(values, 4)?, "mlp")?);
        Ok(())
    }
    fn wait(store: &RingStore, values: Vec<f32>) -> Result<usize, WriteError> {
        Ok(store.extend(Batch::from_vec(values, 4)?, "mlp")?.wait()?.rows)
    }
    watchdog(|| {
        let store = ring().build().unwrap();
        hook(&store, vec![1.0; 8]).unwrap();
        assert_eq!(wait(&store, vec![1.0; 12]), Ok(3));
        let expected = WriteError::Shape(ShapeError::Ragged { len: 7, features: 4 });
        let refused = hook(&store, vec![1.0; 7]).unwrap_err();
        assert_eq!(refused.error, expected);
        assert_eq!(refused.to_string(), "7 values do not divide into rows of 4 features");
        assert_eq!(refused.into_batch().rows(), 0);
        assert_eq!(wait(&store, vec![1.0; 7]), Err(expected));
    });
}

#[test]
fn a_full_store_says_in_numbers_what_it_had_no_room_for() {
    watchdog(|| {
        let store = ring().queue_rows(20).merge(activation_store::Merge::RoundRobin).build().unwrap();
        // The lane whose turn it is has no rows, so the rows of the other lane stay in the queue.
        let (_first, lane) = (store.producer().unwrap(), store.producer().unwrap());
        // The rows are whole. The queue does not count rows that wait only for their other component.
        let whole = [("mlp", Batch::from(rows(0..18, 4))), ("token", Array2::<u32>::zeros((18, 1)).into())];
        drop(lane.extend_pass(whole).unwrap());
        let WriteError::Full(full) = lane.try_extend(Array2::<u32>::zeros((3, 1)), "token").unwrap_err().error else {
            panic!("there is room");
        };
        let no_room = full.no_room.as_ref().unwrap();
        assert_eq!((no_room.component.index, &*no_room.component.name), (1, "token"));
        assert_eq!((no_room.rows, no_room.held, no_room.bound), (3, 18, 20));
        assert!(full.to_string().ends_with("wait for the consumers, or raise queue_rows"), "{full}");
        // A pass needs room for all of its components.
        let pass = [("mlp", Batch::from(rows(18..21, 4))), ("token", Array2::<u32>::zeros((3, 1)).into())];
        let refused = lane.try_extend_pass(pass).unwrap_err();
        assert!(
            matches!(&refused.error, WriteError::Full(full) if full.no_room.as_ref().unwrap().component.index == 0)
        );
        let store = tensor();
        drop(store.extend(rows(0..95, 4), "mlp").unwrap());
        let WriteError::Full(full) = store.extend(rows(0..6, 4), "mlp").unwrap_err().error else {
            panic!("there is room");
        };
        let no_room = full.no_room.as_ref().unwrap();
        assert_eq!((no_room.component.index, no_room.rows, no_room.held, no_room.bound), (0, 6, 95, 100));
        assert_eq!(
            full.to_string(),
            "Activation store is full: component 0 (\"mlp\") holds 95 of 100 rows, so 6 more do not fit"
        );
        assert_eq!(activation_store::StoreFullError::new("mine").no_room, None);
    });
}

#[test]
fn components_go_by_number_or_by_name_in_any_form() {
    watchdog(|| {
        let store = ring().build().unwrap();
        let components = store.components().to_vec();
        let name: String = "mlp".to_owned();
        drop(store.extend(rows(0..2, 4), 0).unwrap());
        drop(store.extend(rows(2..4, 4), "mlp").unwrap());
        drop(store.extend(rows(4..6, 4), &name).unwrap());
        drop(store.extend(rows(6..8, 4), &components[0].name).unwrap());
        drop(store.extend(rows(8..10, 4), &components[0]).unwrap());
        drop(store.extend(Array2::<u32>::zeros((10, 1)), &components[1]).unwrap());
        let pass = components.iter().zip([Batch::from(rows(10..12, 4)), Array2::<u32>::zeros((2, 1)).into()]);
        drop(store.extend_pass(pass).unwrap());
        store.close();
        for minibatch in store.minibatches().blocking() {
            let minibatch = minibatch.unwrap();
            for component in minibatch.components() {
                let bytes = minibatch.bytes(component).unwrap();
                assert_eq!(bytes, minibatch.bytes(&component.name).unwrap());
                assert_eq!(bytes.len(), minibatch.rows() * component.features * component.dtype.size());
            }
            let first = &minibatch.components()[0];
            assert_eq!(minibatch.view::<f32>(&first.name).unwrap(), minibatch.view::<f32>(0).unwrap());
        }
        // A component of another store is found by its name.
        let other = RingStore::builder().component("attn", 4).batch_size(1).window(1).build().unwrap();
        let unknown = other.extend(rows(0..1, 4), &components[0]).unwrap_err().to_string();
        assert!(unknown.contains("mlp") && unknown.contains("this store has 0 (\"attn\")"), "{unknown}");
    });
}

#[test]
fn positions_of_several_texts_are_rows() {
    watchdog(|| {
        let store = ring().build().unwrap();
        let values: Vec<f32> = (0..24).map(|value| value as f32).collect();
        let texts = Array3::from_shape_vec((2, 3, 4), values.clone()).unwrap();
        let batch = Batch::from(texts.clone());
        assert_eq!((batch.rows(), batch.features()), (6, 4));
        assert_eq!(batch.to_f32().into_raw_vec_and_offset().0, values);
        // This also works if the two axes cannot be merged in memory.
        let mut swapped =
            Array3::from_shape_fn((3, 2, 4), |(position, text, feature)| texts[[text, position, feature]]);
        swapped.swap_axes(0, 1);
        assert_eq!(Batch::from(swapped).to_f32(), batch.to_f32());
        assert_eq!(Batch::from(Array3::<f32>::zeros((2, 0, 4))).rows(), 0);
        drop(store.extend(texts, "mlp").unwrap());
        drop(store.extend(Array3::<u32>::zeros((2, 3, 1)), "token").unwrap());
        let refused = store.extend(Array3::<f32>::zeros((2, 3, 5)), "mlp").unwrap_err();
        assert_eq!(refused.into_batch().rows(), 6);
        store.close();
        let minibatch = store.minibatches().next_timeout(LIMIT).unwrap().unwrap();
        assert_eq!(minibatch.rows(), 6);
    });
}

/// With `allow_overcommit`, a store may need more memory than is available now.
#[test]
fn more_memory_than_there_is_may_be_asked_for() {
    let builder = || RingStore::builder().component("a", 1024).batch_size(4096).memory(1 << 45);
    assert!(matches!(builder().build().map(drop), Err(BuildError::Memory { .. } | BuildError::Allocation { .. })));
    // The operating system may still refuse it.
    match builder().allow_overcommit(true).build() {
        Ok(store) => store.abort(),
        Err(error) => assert!(matches!(error, BuildError::Allocation { .. }), "{error}"),
    }
}

#[test]
fn a_permit_is_used_for_what_it_holds() {
    let store = RingStore::builder().component("a", 2).component("b", 2).batch_size(8).window(64).build().unwrap();
    let rows = || Array2::<f32>::zeros((3, 2));
    let refused = store.reserve_pass(3).wait().unwrap().extend(rows()).unwrap_err();
    assert!(refused.to_string().contains("room for a pass; call extend_pass"), "{refused}");
    assert_eq!(refused.batch.rows(), 3);
    let refused =
        store.reserve("a", 3).unwrap().wait().unwrap().extend_pass([("a", rows()), ("b", rows())]).unwrap_err();
    assert!(refused.to_string().contains("room for one component; call extend"), "{refused}");
    assert_eq!(refused.batches.len(), 2);
}

/// Every setting takes the largest numbers or refuses them.
#[test]
fn no_setting_overflows() {
    let builder = || RingStore::builder().component("a", 4).batch_size(8).window(64);
    for most in [usize::MAX, usize::MAX - 1, isize::MAX as usize, u32::MAX as usize + 1, u32::MAX as usize] {
        let settings = [
            ("batch_size", builder().batch_size(most)),
            ("batch_size, window", builder().batch_size(most).window(most)),
            ("window", builder().window(most)),
            ("memory", builder().memory(most)),
            ("ready_frames", builder().ready_frames(most)),
            ("ready_frames, memory", builder().ready_frames(most).memory(most)),
            ("features", RingStore::builder().component("a", most)),
            ("queue_rows", builder().queue_rows(most)),
            ("max_skew", builder().max_skew(most)),
        ];
        for (name, builder) in settings {
            if let Ok(plan) = builder.plan() {
                assert!(!plan.to_string().is_empty() && plan.shared_rows(most) >= 0.99, "{name}: {most}: {plan}");
            }
            // The memory of a store may fit on a large machine.
            let fits = name == "queue_rows" || name == "max_skew";
            if fits || most >= isize::MAX as usize {
                assert_eq!(builder.build().is_ok(), fits, "{name}: {most}");
            }
        }
    }
}
