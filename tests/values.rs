//! Rows whose values are not finite, or overflow in the component's element type, are kept, counted, and said once.
#![allow(clippy::unwrap_used)]

mod common;

use activation_store::{
    Batch, DType, Element, Form, Merge, Recorder, RingStore, RingStoreBuilder, TensorStore, ValueCounts,
};
use common::watchdog;
use half::{bf16, f16};
use ndarray::{ArcArray2, Array2, s};

/// What a row has, besides small numbers.
#[derive(Clone, Copy, PartialEq)]
enum Odd {
    No,
    Large,
    Infinite,
    Nan,
    LargeAndNan,
}

const ODD: [Odd; 7] = [Odd::No, Odd::Large, Odd::No, Odd::Infinite, Odd::Nan, Odd::LargeAndNan, Odd::No];

/// `rows` rows. Where they are odd, the odd values are at changing places.
fn rows_with(rows: usize, features: usize, large: f32) -> Array2<f32> {
    let mut out = Array2::from_shape_fn((rows, features), |(row, feature)| (row % 17) as f32 - feature as f32 / 64.0);
    for (row, mut values) in out.rows_mut().into_iter().enumerate() {
        let (at, other) = (row * 31 % features, (row * 31 + 1) % features);
        match ODD[row % ODD.len()] {
            Odd::No => {}
            Odd::Large => values[at] = -large,
            Odd::Infinite => values[at] = f32::NEG_INFINITY,
            Odd::Nan => values[at] = f32::NAN,
            Odd::LargeAndNan => {
                values[at] = large;
                values[other] = f32::NAN;
            }
        }
    }
    out
}

fn counts(overflowed: u64, not_finite: u64) -> ValueCounts {
    let mut counts = ValueCounts::default();
    (counts.overflowed, counts.not_finite) = (overflowed, not_finite);
    counts
}

/// What `rows_with` has in so many rows, if `large` overflows.
fn expected(rows: usize) -> ValueCounts {
    let of = |is: fn(Odd) -> bool| (0..rows).filter(|row| is(ODD[row % ODD.len()])).count() as u64;
    counts(of(|odd| matches!(odd, Odd::Large | Odd::LargeAndNan)), of(|odd| !matches!(odd, Odd::No | Odd::Large)))
}

fn ring(features: usize, dtype: DType, window: usize) -> RingStoreBuilder {
    RingStore::builder().component("odd", features).dtype(dtype).batch_size(64).window(window).ready_frames(1000)
}

/// The counts of a ring that has dealt a batch.
fn in_ring(store: &RingStore, batch: impl Into<Batch>) -> ValueCounts {
    let _ = store.extend(batch, "odd").unwrap().wait().unwrap();
    let stats = store.stats();
    counts(stats.components[0].overflowed, stats.components[0].not_finite)
}

fn converted<T: Element>(rows: &Array2<f32>, convert: fn(f32) -> T) -> Array2<T> {
    rows.mapv(convert)
}

#[test]
fn rows_that_overflow_or_are_not_finite_are_counted() {
    watchdog(|| {
        const ROWS: usize = 500;
        // Narrow and wide, whole cache lines and not; in a ring that stays in the cache, and in one that is written past it.
        for features in [2, 33, 64, 300] {
            for window in [64, 1 << 16] {
                let rows = rows_with(ROWS, features, 70_000.0);
                let check = |dtype, batch: Batch, expected| {
                    let from = batch.dtype();
                    let counted = in_ring(&ring(features, dtype, window).build().unwrap(), batch);
                    assert_eq!(counted, expected, "{features} features, a window of {window}, {from} to {dtype}");
                };
                let all = expected(ROWS);
                let only_not_finite = counts(0, all.not_finite);
                check(DType::F16, rows.clone().into(), all);
                check(DType::BF16, rows.clone().into(), only_not_finite);
                check(DType::F32, rows.clone().into(), only_not_finite);
                check(DType::F16, converted(&rows, bf16::from_f32).into(), all);
                check(DType::BF16, converted(&rows, bf16::from_f32).into(), only_not_finite);
                check(DType::F32, converted(&rows, bf16::from_f32).into(), only_not_finite);
                let half = rows_with(ROWS, features, 60_000.0);
                check(DType::F16, converted(&half, f16::from_f32).into(), only_not_finite);
                check(DType::BF16, converted(&half, f16::from_f32).into(), only_not_finite);
                check(DType::BF16, rows_with(ROWS, features, f32::MAX).into(), all);
                // Rows that lie apart, and rows whose values do.
                let wide = rows_with(ROWS, features, 70_000.0);
                let mut apart = Array2::zeros((ROWS, features + 3));
                apart.slice_mut(s![.., ..features]).assign(&wide);
                let shared: ArcArray2<f32> = apart.into_shared().slice_move(s![.., ..features]);
                check(DType::F16, shared.clone().into(), all);
                check(DType::F32, shared.into(), only_not_finite);
                let mut turned = Array2::zeros((features, ROWS)).reversed_axes();
                turned.assign(&wide);
                check(DType::F16, turned.into(), all);
            }
        }
    });
}

#[test]
fn integers_and_ordinary_rows_are_never_counted() {
    watchdog(|| {
        let store = RingStore::builder().component_of("odd", 4, DType::I64).batch_size(64).window(128).build().unwrap();
        assert_eq!(in_ring(&store, Array2::from_elem((50, 4), i64::MIN)), ValueCounts::default());
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let store = ring(4, dtype, 128).build().unwrap();
            assert_eq!(in_ring(&store, Array2::from_elem((50, 4), 65_504.0_f32)), ValueCounts::default());
            assert!(!store.stats().to_string().contains("finite"), "{}", store.stats());
        }
    });
}

#[test]
fn a_line_of_counts_names_them_where_there_are_any() {
    watchdog(|| {
        let store = ring(64, DType::F16, 128).build().unwrap();
        let counted = in_ring(&store, rows_with(70, 64, 70_000.0));
        let line = store.stats().to_string();
        let part = format!(", {} overflowed, {} not finite;", counted.overflowed, counted.not_finite);
        assert!(line.contains(&part), "{line}");
    });
}

#[test]
fn each_component_has_counts_of_its_own() {
    watchdog(|| {
        let store = RingStore::builder().component("a", 8).component_of("b", 8, DType::F16).batch_size(8).window(64);
        let store = store.build().unwrap();
        let rows = rows_with(14, 8, 70_000.0);
        let _ = store.extend_pass([("a", Array2::zeros((14, 8))), ("b", rows)]).unwrap().wait().unwrap();
        let stats = store.stats();
        assert_eq!((stats.components[0].overflowed, stats.components[0].not_finite), (0, 0));
        assert_eq!((stats.components[1].overflowed, stats.components[1].not_finite), (4, 6));
    });
}

#[test]
fn a_resumed_store_goes_on_counting() {
    watchdog(|| {
        for form in [Form::Light, Form::Full] {
            let dir = tempfile::tempdir().unwrap();
            let build = || ring(8, DType::F16, 256).merge(Merge::Arrival);
            let store = build().build().unwrap();
            let mut minibatches = store.minibatches();
            let before = in_ring(&store, rows_with(700, 8, 70_000.0));
            drop(minibatches.blocking().next().unwrap().unwrap());
            let _ = minibatches.snapshot(dir.path(), form).unwrap().wait().unwrap();
            drop((store, minibatches));
            assert_eq!(before, expected(700));

            let store = build().resume(dir.path()).unwrap();
            // Rows that the saved store has dealt are not counted again.
            let at = store.resume_at()[0].row as usize;
            let rows = rows_with(1400, 8, 70_000.0);
            assert_eq!(in_ring(&store, rows.slice(s![at.., ..]).to_owned()), expected(1400), "{form:?}");
        }
    });
}

#[test]
fn a_store_of_fixed_size_counts() {
    watchdog(|| {
        let build =
            || TensorStore::builder().component("even", 8).component_of("odd", 8, DType::F16).max_items(100).build();
        let rows = rows_with(70, 8, 70_000.0);
        let store = build().unwrap();
        drop(store.extend(rows.clone(), "odd").unwrap());
        assert_eq!(store.value_counts(), [ValueCounts::default(), expected(70)]);
        let store = build().unwrap();
        let _ = store.extend_blocking(rows, "odd").unwrap();
        assert_eq!(store.value_counts(), [ValueCounts::default(), expected(70)]);
    });
}

#[test]
fn a_recorder_counts() {
    watchdog(|| {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder::builder().component("even", 8).component_of("odd", 8, DType::F16);
        let recorder = recorder.create(dir.path()).unwrap();
        for _ in 0..2 {
            let pass = [("even", Array2::zeros((70, 8))), ("odd", rows_with(70, 8, 70_000.0))];
            drop(recorder.extend_pass(pass).unwrap());
        }
        recorder.flush().unwrap();
        let ValueCounts { overflowed, not_finite, .. } = expected(70);
        assert_eq!(recorder.value_counts(), [ValueCounts::default(), counts(2 * overflowed, 2 * not_finite)]);
    });
}
