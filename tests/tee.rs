//! A tee gives each pass to a ring and to a recorder, or to neither.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use activation_store::{Batch, DType, Recorder, Recording, RingStore, RingStoreBuilder, Tee, WhenFull, WriteError};
use ndarray::Array2;
use tempfile::TempDir;

fn ring() -> RingStoreBuilder {
    RingStore::builder().component("a", 2).component("b", 1).batch_size(4).window(8)
}

fn tee(store: &RingStore, dir: &TempDir) -> Tee {
    let recorder = Recorder::builder().component("a", 2).component("b", 1).shard_rows(6).create(dir.path()).unwrap();
    Tee::new(store.producer().unwrap(), recorder).unwrap()
}

fn pass(rows: usize, value: f32) -> [(&'static str, Batch); 2] {
    [("b", Array2::from_elem((rows, 1), -value).into()), ("a", Array2::from_elem((rows, 2), value).into())]
}

/// Counts the owners that were dropped.
struct Counted(Vec<f32>, Arc<AtomicUsize>);

impl AsRef<[f32]> for Counted {
    fn as_ref(&self) -> &[f32] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn both_have_every_row_and_lent_memory_is_released_once() {
    let dir = TempDir::new().unwrap();
    let store = ring().build().unwrap();
    let mut minibatches = store.minibatches();
    let tee = tee(&store, &dir);
    drop(store);
    let gone = Arc::new(AtomicUsize::new(0));
    let (lent, seen) = (gone.clone(), gone.clone());
    let capture = std::thread::spawn(move || {
        for value in 0..20 {
            let a = Batch::from_owner::<f32, _>(Counted(vec![value as f32; 6], lent.clone()), 2).unwrap();
            let b = Array2::from_elem((3, 1), -(value as f32));
            tee.extend_pass([("a", a), ("b", b.into())]).unwrap().wait().unwrap();
            assert_eq!(seen.load(Ordering::SeqCst), value + 1);
        }
        tee.finish().unwrap()
    });
    let mut served: Vec<f32> = Vec::new();
    for minibatch in minibatches.blocking() {
        let minibatch = minibatch.unwrap();
        let a = minibatch.view::<f32>("a").unwrap();
        assert_eq!(a.column(1), minibatch.view::<f32>("b").unwrap().column(0).mapv(|value| -value));
        served.extend(a.column(0));
    }
    served.sort_by(f32::total_cmp);
    assert_eq!(served, (0..60).map(|row| (row / 3) as f32).collect::<Vec<_>>());
    assert_eq!(capture.join().unwrap().rows, 60);
    let recording = Recording::open(dir.path()).unwrap();
    recording.verify(|_, _| ()).unwrap();
    assert!((0..60).all(|row| recording.get("b", &[row]).unwrap().to_f32()[[0, 0]] == -((row / 3) as f32)));
    assert_eq!(gone.load(Ordering::SeqCst), 20);
}

#[test]
fn a_pass_that_the_ring_refuses_is_not_recorded_and_comes_back_as_it_was_given() {
    let dir = TempDir::new().unwrap();
    let store = ring().queue_rows(4).when_full(WhenFull::Reject).build().unwrap();
    let minibatches = store.minibatches();
    let tee = tee(&store, &dir);
    let mut taken = 0;
    let refused = loop {
        match tee.extend_pass(pass(4, taken as f32)) {
            Ok(handle) => {
                drop(handle);
                taken += 1;
            }
            Err(refused) => break refused,
        }
    };
    assert!(refused.error.is_full(), "{refused}");
    assert_eq!(refused.batches.iter().map(Batch::features).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(tee.recorder().flush().unwrap().passes, taken);

    store.close();
    let refused = tee.extend_pass(pass(4, 0.0)).unwrap_err();
    assert!(matches!(refused.error, WriteError::Closed(_)), "{refused}");
    assert_eq!(refused.batches.len(), 2);
    // The recording goes on without the ring.
    let (_, recorder) = tee.into_parts();
    drop(recorder.extend_pass(pass(4, 0.0)).unwrap());
    assert_eq!(recorder.finish().unwrap().passes, taken + 1);
    drop(minibatches);
}

#[test]
fn when_the_recorder_has_failed_the_ring_gets_nothing_until_it_is_alone() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("recording");
    let store = ring().build().unwrap();
    let mut minibatches = store.minibatches();
    let recorder = Recorder::builder().component("a", 2).component("b", 1).shard_rows(2).create(&folder).unwrap();
    let tee = Tee::new(store.producer().unwrap(), recorder).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "a file where the folder was").unwrap();
    let error = tee.extend_pass(pass(2, 1.0)).unwrap().wait().unwrap_err();
    assert!(error.to_string().contains(folder.to_str().unwrap()), "{error}");
    let refused = tee.extend_pass(pass(2, 2.0)).unwrap_err();
    assert!(matches!(refused.error, WriteError::Disk(_)), "{refused}");
    let (ring, recorder) = tee.into_parts();
    assert!(recorder.finish().is_err());
    ring.extend_pass_blocking(pass(2, 3.0)).unwrap();
    drop(ring);
    store.close();
    let mut served: Vec<f32> = Vec::new();
    for minibatch in minibatches.blocking() {
        served.extend(minibatch.unwrap().view::<f32>("a").unwrap().column(0));
    }
    served.sort_by(f32::total_cmp);
    assert_eq!(served, [1.0, 1.0, 3.0, 3.0]);
}

#[test]
fn components_are_the_same_but_for_their_element_types() {
    let dir = TempDir::new().unwrap();
    let store = ring().build().unwrap();
    let recorder = |builder: activation_store::RecorderBuilder, lane| builder.lane(lane).create(dir.path()).unwrap();
    let other = recorder(Recorder::builder().component("b", 1).component("a", 2), "other");
    let error = Tee::new(store.producer().unwrap(), other).unwrap_err();
    assert!(error.to_string().contains(r#""b" with 1 features, "a" with 2"#), "{error}");
    let half = recorder(Recorder::builder().component_of("a", 2, DType::F16).component("b", 1), "half");
    assert!(Tee::new(store.producer().unwrap(), half).is_ok());
}
