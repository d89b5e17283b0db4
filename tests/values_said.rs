//! `tracing` events say once of each component that values are not finite or overflow. There is only one test, because a subscriber is for
//! the whole process.
#![allow(clippy::unwrap_used)]

mod common;

use activation_store::{DType, Recorder, RingStore, TensorStore};
use common::messages::Messages;
use common::watchdog;
use ndarray::array;

#[test]
fn each_kind_of_values_is_said_once_of_each_component() {
    let messages = Messages::of_process();
    let (large, not_finite) = ("values are too large for f16", "NaN or infinite");
    let said = || (messages.count(large), messages.count(not_finite));
    watchdog({
        let messages = messages.clone();
        move || {
            let store = RingStore::builder().component("a", 2).component("b", 2).dtype(DType::F16);
            let store = store.batch_size(2).window(64).build().unwrap();
            let pass = |a: f32, b: f32| {
                let _ = store.extend_pass([("a", array![[a, 1.0]]), ("b", array![[b, 1.0]])]).unwrap().wait().unwrap();
                // What is said of rows is said before the next rows are dealt.
                let _ = store
                    .extend_pass([("a", array![[0.0_f32, 1.0]]), ("b", array![[0.0, 1.0]])])
                    .unwrap()
                    .wait()
                    .unwrap();
                (messages.count(large), messages.count(not_finite))
            };
            assert_eq!(pass(1.0, 2.0), (0, 0));
            assert_eq!(pass(1e6, 2.0), (1, 0));
            assert_eq!(pass(1e6, 2.0), (1, 0));
            assert_eq!(pass(f32::NAN, 2.0), (1, 1));
            assert_eq!(pass(1e6, 1e6), (2, 1));
            assert_eq!(pass(f32::INFINITY, f32::INFINITY), (2, 2));
        }
    });
    let store = TensorStore::builder().component_of("a", 2, DType::F16).max_items(9).build().unwrap();
    for _ in 0..2 {
        let _ = store.extend_blocking(array![[1e6_f32, f32::NAN]], 0).unwrap();
        let _ = store.extend(array![[1e6_f32, f32::NAN]], 0).unwrap().wait().unwrap();
    }
    assert_eq!(said(), (3, 3));
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::builder().component_of("a", 2, DType::F16).create(dir.path()).unwrap();
    for _ in 0..2 {
        drop(recorder.extend_pass([("a", array![[1e6_f32, f32::NAN]])]).unwrap());
    }
    recorder.finish().unwrap();
    assert_eq!(said(), (4, 4));
}
