//! How a recorder ends: what is recorded is kept, and only a recorder that is finished says that its lane is.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak, mpsc};
use std::thread;
use std::time::Duration;

use activation_store::{Batch, ClosedBy, Recorder, Recording, RecordingError, RefusedPass, RingStore, Tee, WriteError};
use ndarray::Array2;
use tempfile::TempDir;

fn recorder(dir: &TempDir) -> Recorder {
    Recorder::builder().component("a", 2).shard_rows(5).resume(dir.path()).unwrap()
}

fn pass(value: f32) -> [(&'static str, Batch); 1] {
    [("a", Array2::from_elem((3, 2), value).into())]
}

/// The rows that are recorded, and whether the lane is finished.
fn found(dir: &TempDir) -> (u64, bool) {
    (Recording::open(dir.path()).unwrap().rows(), dir.path().join("lane.end.json").exists())
}

#[test]
fn a_recorder_that_is_dropped_or_closed_keeps_its_passes_and_does_not_finish_the_lane() {
    let dir = TempDir::new().unwrap();
    let dropped = recorder(&dir);
    (0..3).for_each(|value| drop(dropped.extend_pass(pass(value as f32)).unwrap()));
    drop(dropped);
    assert_eq!(found(&dir), (9, false));

    let closed = recorder(&dir);
    drop(closed.extend_pass(pass(3.0)).unwrap());
    assert_eq!(closed.close().unwrap().rows, 12);
    assert_eq!(found(&dir), (12, false));

    // As when an error or a panic leaves the scope of the recorder.
    let unwound = thread::spawn({
        let recorder = recorder(&dir);
        move || {
            drop(recorder.extend_pass(pass(4.0)).unwrap());
            std::panic::resume_unwind(Box::new(recorder));
        }
    });
    drop(unwound.join().unwrap_err());
    assert_eq!(found(&dir), (15, false));

    let finished = recorder(&dir);
    assert_eq!(finished.resumed().passes, 5);
    assert_eq!(finished.finish().unwrap().rows, 15);
    assert_eq!(found(&dir), (15, true));
}

#[test]
fn a_recorder_that_has_ended_says_so() {
    let dir = TempDir::new().unwrap();
    let recorder = recorder(&dir);
    assert!(!recorder.is_closed());
    recorder.finish().unwrap();
    assert!(recorder.is_closed());
    let closed = |error: WriteError| {
        assert!(matches!(error, WriteError::Closed(_)), "{error}");
        assert!(error.to_string().contains("the recorder is closed"), "{error}");
    };
    let refused = recorder.extend_pass(pass(1.0)).unwrap_err();
    assert_eq!(refused.batches.len(), 1);
    closed(refused.error);
    closed(recorder.extend(Array2::<f32>::ones((3, 2)), 0).unwrap_err().error);
    for ended in [recorder.flush(), recorder.finish(), recorder.close()] {
        match ended.unwrap_err() {
            RecordingError::Write(error) => closed(error),
            other => panic!("{other}"),
        }
    }
    assert_eq!(
        ClosedBy::Recorder.to_string(),
        "the recorder is closed; resume the lane with another recorder to go on"
    );
}

#[test]
fn a_recorder_that_has_ended_after_an_error_of_the_disk_says_the_error() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("recording");
    let recorder = Recorder::builder().component("a", 2).create(&folder).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let first = recorder.extend_pass(pass(1.0)).unwrap().wait().unwrap_err().to_string();
    assert!(first.contains(folder.to_str().unwrap()), "{first}");
    assert!(!recorder.is_closed());
    assert_eq!(recorder.close().unwrap_err().to_string(), first);
    assert!(recorder.is_closed());
    assert_eq!(recorder.flush().unwrap_err().to_string(), first);
    assert_eq!(recorder.extend_pass(pass(2.0)).unwrap_err().error.to_string(), first);
}

/// Calls the recorder when it is dropped, as the owner of a user's memory may.
struct CallsBack(Vec<f32>, Weak<Recorder>);

impl AsRef<[f32]> for CallsBack {
    fn as_ref(&self) -> &[f32] {
        &self.0
    }
}

impl Drop for CallsBack {
    fn drop(&mut self) {
        if let Some(recorder) = self.1.upgrade() {
            let _ = recorder.is_closed();
        }
    }
}

#[test]
fn the_owner_of_rows_that_a_recorder_forgets_may_call_the_recorder() {
    let dir = TempDir::new().unwrap();
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        let builder = Recorder::builder().component("a", 1).component("b", 1);
        let recorder = Arc::new(builder.create(dir.path()).unwrap());
        let rows = || Batch::from_owner::<f32, _>(CallsBack(vec![0.0], Arc::downgrade(&recorder)), 1).unwrap();
        let emptied = recorder.extend(rows(), 0).unwrap();
        recorder.empty();
        let finished = recorder.extend(rows(), 0).unwrap();
        recorder.finish().unwrap();
        done.send([emptied.wait(), finished.wait()]).unwrap();
    });
    for lost in ended.recv_timeout(Duration::from_secs(30)).unwrap() {
        assert!(matches!(lost, Err(WriteError::Closed(_))));
    }
}

/// The ring of `extend_pass_with` may be code of yours: it may drop the batches, and it may panic.
#[test]
fn the_owner_of_rows_that_a_ring_drops_or_panics_with_may_call_the_recorder() {
    let dir = TempDir::new().unwrap();
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        let recorder = Arc::new(Recorder::builder().component("a", 1).create(dir.path()).unwrap());
        let rows = || Batch::from_owner::<f32, _>(CallsBack(vec![0.0], Arc::downgrade(&recorder)), 1).unwrap();
        let permit = || recorder.reserve_pass().wait_timeout(Duration::ZERO).unwrap().unwrap();
        let refused = permit().extend_pass_with([("a", rows())], |pass| {
            drop(pass);
            Err(RefusedPass::new(ClosedBy::Lane.into(), Vec::new()))
        });
        assert_eq!(refused.unwrap_err().error.closed_by(), Some(ClosedBy::Lane));
        let panicking = AssertUnwindSafe(|| {
            permit().extend_pass_with([("a", rows())], |pass| {
                drop(pass);
                panic!("in the ring")
            })
        });
        assert!(catch_unwind(panicking).is_err());
        done.send(recorder.finish().unwrap().rows).unwrap();
    });
    assert_eq!(ended.recv_timeout(Duration::from_secs(30)).unwrap(), 0);
}

#[test]
fn a_recorder_that_is_closed_while_a_pass_waits_for_it_takes_the_pass_or_gives_it_back() {
    let dir = TempDir::new().unwrap();
    let recorder = recorder(&dir);
    let permits = [
        recorder.reserve_pass().wait_timeout(Duration::ZERO).unwrap().unwrap(),
        recorder.reserve_pass().wait_timeout(Duration::ZERO).unwrap().unwrap(),
    ];
    assert!(recorder.reserve_pass().wait_timeout(Duration::ZERO).is_none());
    let store = RingStore::builder().component("a", 2).batch_size(3).window(6).build().unwrap();
    let mut ring_was_asked = false;
    let [first, second] = permits;
    drop(first.extend_pass_with(pass(1.0), |pass| store.extend_pass(pass)).unwrap());
    recorder.close().unwrap();
    let refused = second.extend_pass_with(pass(2.0), |pass| {
        ring_was_asked = true;
        store.extend_pass(pass)
    });
    let refused = refused.unwrap_err();
    assert!(matches!(refused.error, WriteError::Closed(_)), "{refused}");
    assert_eq!((refused.batches.len(), ring_was_asked), (1, false));
    // A recorder that is closed makes no caller wait.
    let closed = recorder.reserve_pass().wait_timeout(Duration::ZERO).unwrap().unwrap_err();
    assert_eq!(closed.closed_by(), Some(ClosedBy::Recorder));
    assert_eq!(found(&dir), (3, false));

    let tee = Tee::new(store.producer().unwrap(), recorder).unwrap();
    assert!(matches!(tee.extend_pass(pass(3.0)).unwrap_err().error, WriteError::Closed(_)));
    store.close();
    let served: usize = store.minibatches().blocking().map(|minibatch| minibatch.unwrap().rows()).sum();
    assert_eq!(served, 3);
}
