//! A recorder and a tee take the same passes as a ring, refuse the same ones for the same reasons, and give them back.
#![allow(clippy::unwrap_used)]

use activation_store::{ActivationStore, Batch, DType, Recorder, RefusedPass, RingStore, Tee, TensorStore, WriteError};
use ndarray::Array2;
use tempfile::TempDir;

type Pass = Vec<(&'static str, Batch)>;

fn a(rows: usize) -> (&'static str, Batch) {
    ("a", Array2::<f32>::ones((rows, 2)).into())
}

fn id(rows: usize) -> (&'static str, Batch) {
    ("id", Array2::<i64>::ones((rows, 1)).into())
}

fn c(rows: usize) -> (&'static str, Batch) {
    ("c", Array2::<f32>::ones((rows, 3)).into())
}

fn unknown() -> (&'static str, Batch) {
    ("attn", Array2::<f32>::ones((4, 2)).into())
}

fn wide() -> (&'static str, Batch) {
    ("a", Array2::<f32>::ones((4, 5)).into())
}

fn other_type() -> (&'static str, Batch) {
    ("id", Array2::<f32>::ones((4, 1)).into())
}

/// Passes with one fault, and passes with several, in every place where another fault could win.
fn wrong() -> Vec<fn() -> Pass> {
    vec![
        Vec::new,
        || vec![a(4), c(4)],
        || vec![c(4), id(4)],
        || vec![a(4), id(4), c(4), id(4)],
        || vec![c(4), a(4), c(5), id(4)],
        || vec![a(4), id(3), c(4)],
        || vec![id(3), a(4), a(4)],
        || vec![a(4), a(4)],
        || vec![a(0), id(4)],
        || vec![unknown(), a(4)],
        || vec![a(4), a(4), unknown()],
        || vec![a(4), id(5), unknown()],
        || vec![c(3), wide(), id(4)],
        || vec![c(3), id(4), wide()],
        || vec![other_type(), wide()],
        || vec![a(4), wide(), c(4)],
    ]
}

#[test]
fn the_same_error_wins_as_in_a_ring_and_the_batches_come_back_in_order() {
    let dir = TempDir::new().unwrap();
    let ring = || RingStore::builder().component("a", 2).component_of("id", 1, DType::I64).component("c", 3);
    let recorder = |lane: &str| {
        let builder = Recorder::builder().component("a", 2).component_of("id", 1, DType::I64).component("c", 3);
        builder.lane(lane).create(dir.path()).unwrap()
    };
    let store = ring().batch_size(4).window(8).build().unwrap();
    let tensor = TensorStore::builder().component("a", 2).component_of("id", 1, DType::I64).component("c", 3);
    let tensor = tensor.max_items(100).build().unwrap();
    let tee = Tee::new(store.producer().unwrap(), recorder("tee")).unwrap();
    let recorder = recorder("alone");
    for (number, pass) in wrong().into_iter().enumerate() {
        let expected: RefusedPass = store.extend_pass(pass()).unwrap_err();
        let others = [
            ("recorder", recorder.extend_pass(pass())),
            ("tee", tee.extend_pass(pass())),
            ("tensor store", tensor.extend_pass(pass())),
        ];
        for (name, outcome) in others {
            let refused = outcome.unwrap_err();
            assert_eq!(refused.error, expected.error, "pass {number}, {name}");
            let batches = refused.batches.iter().map(|batch| (batch.dtype(), batch.to_f32()));
            let given = pass().into_iter().map(|(_, batch)| (batch.dtype(), batch.to_f32()));
            assert!(batches.eq(given), "pass {number}, {name}");
        }
    }
    // Nothing of them is left.
    assert_eq!(recorder.extend_pass([id(4), c(4), a(4)]).unwrap().wait().unwrap().first_row, 0);
    assert_eq!(tee.extend_pass([c(4), a(4), id(4)]).unwrap().wait().unwrap().first_row, 0);
    assert_eq!(recorder.finish().unwrap().rows, 4);
    assert_eq!(tee.finish().unwrap().rows, 4);
}

#[test]
fn one_component_after_the_other_is_checked_in_the_same_order() {
    let dir = TempDir::new().unwrap();
    let recorder = Recorder::builder().component("a", 2).component("c", 3).create(dir.path()).unwrap();
    let store: &dyn ActivationStore = &recorder;
    let first = store.extend(Array2::<f32>::ones((4, 2)).into(), 0).unwrap();
    let refused = store.extend(Array2::<f32>::ones((3, 2)).into(), 0).unwrap_err();
    assert!(matches!(refused.error, WriteError::PassDoubles { .. }), "{refused}");
    let refused = store.extend(Array2::<f32>::ones((3, 2)).into(), 1).unwrap_err();
    assert!(matches!(refused.error, WriteError::Features { .. }), "{refused}");
    assert_eq!(refused.batch.rows(), 3);
    let refused = store.extend_pass(vec![(0, Array2::<f32>::ones((4, 2)).into())]).unwrap_err();
    assert!(matches!(&refused.error, WriteError::PassLacks { missing } if missing.index == 1), "{refused}");
    drop(store.extend(Array2::<f32>::ones((4, 3)).into(), 1).unwrap());
    assert_eq!(first.wait().unwrap().rows, 4);
    assert_eq!(recorder.finish().unwrap().rows, 4);
}
