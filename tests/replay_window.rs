//! A replay warns if the window holds less than two shards. There is only one test, because a subscriber is for the whole process.
#![allow(clippy::unwrap_used)]

mod common;

use activation_store::{Recorder, Recording, RingStore};
use common::messages::Messages;
use common::{drain, rows};

#[test]
fn a_window_of_less_than_two_shards_gives_a_warning() {
    let messages = Messages::of_process();
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::builder().component("a", 1).shard_rows(50).create(dir.path()).unwrap();
    for first in (0..200).step_by(50) {
        drop(recorder.extend_pass([("a", rows(first..first + 50, 1))]).unwrap());
    }
    recorder.finish().unwrap();
    // The last window holds all rows.
    for (window, warnings) in [(100, 0), (90, 1), (200, 1)] {
        let builder = RingStore::builder().batch_size(10).window(window);
        let store = Recording::open(dir.path()).unwrap().replay().into_ring(builder).unwrap();
        drain(&mut store.minibatches());
        assert_eq!(messages.count("a minibatch comes from one or two shards"), warnings, "a window of {window}");
    }
}
