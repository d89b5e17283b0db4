//! A recorder stays with its folder when the process changes its current folder. The test is alone in its file, because it does so.
#![allow(clippy::unwrap_used)]

use activation_store::{Recorder, Recording};
use ndarray::Array2;

#[test]
fn a_recorder_stays_with_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    std::env::set_current_dir(dir.path().join("one")).unwrap();
    let recorder = Recorder::builder().component("a", 1).shard_rows(2).create("recorded").unwrap();
    std::env::set_current_dir(dir.path().join("two")).unwrap();
    for _ in 0..4 {
        drop(recorder.extend_pass([("a", Array2::<f32>::ones((2, 1)))]).unwrap());
    }
    recorder.finish().unwrap();
    assert_eq!(Recording::open(dir.path().join("one/recorded")).unwrap().rows(), 8);
}
