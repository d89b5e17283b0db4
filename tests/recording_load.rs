//! A recording is loaded into memory whole and in order.
#![allow(clippy::unwrap_used)]

use activation_store::{DType, Recorder, Recording};
use ndarray::{Array2, s};

#[test]
fn row_n_of_the_store_is_row_n_of_the_recording() {
    let dir = tempfile::tempdir().unwrap();
    let rows = |first: usize, features| Array2::from_shape_fn((30, features), |(row, x)| (first + row * 2 + x) as f32);
    for (lane, first) in [("a", 0), ("b", 100)] {
        let recorder = Recorder::builder().component("mlp", 3).component_of("attn", 2, DType::BF16);
        let recorder = recorder.lane(lane).shard_rows(50).create(dir.path()).unwrap();
        for pass in 0..4 {
            let first = first + 10 * pass;
            drop(recorder.extend_pass([("mlp", rows(first, 3)), ("attn", rows(first, 2))]).unwrap());
        }
        recorder.finish().unwrap();
    }
    let recording = Recording::open(dir.path()).unwrap();
    let store = recording.load(1).unwrap();
    assert_eq!((store.len(), store.max_items()), (240, 240));
    for (name, component, features) in [("mlp", 0, 3), ("attn", 1, 2)] {
        let expected = recording.get(name, &(0..240).collect::<Vec<_>>()).unwrap().to_f32();
        assert_eq!(expected.slice(s![120..150, ..]), rows(100, features));
        for row in [0, 29, 30, 119, 120, 239] {
            let found = store.get((row, component)).unwrap();
            assert_eq!(found.into_dimensionality::<ndarray::Ix1>().unwrap(), expected.row(row));
        }
    }
}
