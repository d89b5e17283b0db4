//! After a crash, a ring and a recording lack different passes. Each gets every pass exactly once.
#![allow(clippy::unwrap_used)]

mod common;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use activation_store::{
    Batch, CatchUp, ClosedBy, Lacks, Minibatches, Recorder, Recording, ResumePoint, RingStore, RingStoreBuilder,
    Snapshot, Tee, WriteError,
};
use common::watchdog;
use ndarray::Array2;
use tempfile::TempDir;

const PASSES: u64 = 40;
const LANE: &str = "capture";

/// A pass of 0 to 6 rows. Every row is unlike every other.
fn pass(number: u64) -> [(&'static str, Batch); 2] {
    let rows = (number * 5 % 7) as usize;
    let value = |row: usize, column: usize| (number * 100) as f32 + row as f32 + column as f32 / 4.0;
    let a = Array2::from_shape_fn((rows, 2), |(row, column)| value(row, column));
    let b = Array2::from_shape_fn((rows, 1), |(row, _)| -value(row, 0));
    [("b", b.into()), ("a", a.into())]
}

fn ring() -> RingStoreBuilder {
    RingStore::builder().component("a", 2).component("b", 1).batch_size(4).window(16).seed(11)
}

fn recorder(dir: &Path) -> Recorder {
    Recorder::builder().component("a", 2).component("b", 1).shard_rows(20).resume(dir).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to)
        } else {
            fs::copy(entry.path(), to).map(drop).unwrap()
        }
    }
}

/// All rows of a recording, component by component, as bytes. Fails unless the recording is whole.
fn recorded(dir: &Path) -> Vec<Vec<f32>> {
    let recording = Recording::open(dir).unwrap();
    recording.verify(|_, _| ()).unwrap();
    let lane = recording.lanes()["lane"];
    assert_eq!((lane.passes, lane.finished), (PASSES, true));
    let rows: Vec<u64> = (0..recording.rows()).collect();
    ["a", "b"].map(|name| recording.get(name, &rows).unwrap().to_f32().into_iter().collect()).into()
}

fn served(minibatches: &mut Minibatches) -> Vec<Vec<u8>> {
    let bytes = |name: &str, minibatch: &activation_store::Minibatch| minibatch.bytes(name).unwrap().to_vec();
    let all = minibatches.blocking().map(Result::unwrap);
    all.map(|minibatch| [bytes("a", &minibatch), bytes("b", &minibatch)].concat()).collect()
}

/// A capture without a crash: what it serves, the state of the ring at each minibatch, and what is recorded. Also images of the recording,
/// each as it was after so many passes.
struct Whole {
    served: Vec<Vec<u8>>,
    states: Vec<Snapshot>,
    recorded: Vec<Vec<f32>>,
    images: Vec<(u64, PathBuf)>,
}

fn whole(dir: &Path) -> Whole {
    let store = ring().build().unwrap();
    let mut minibatches = store.minibatches();
    let tee = Tee::new(store.producer_named(LANE).unwrap(), recorder(&dir.join("whole"))).unwrap();
    let own = dir.to_owned();
    let capture = thread::spawn(move || {
        let mut images = Vec::new();
        for number in 0..PASSES {
            if number % 13 == 0 {
                let safe = tee.recorder().flush().unwrap();
                let image = own.join(format!("image-{number}"));
                copy(&own.join("whole"), &image);
                images.push((safe.passes, image));
            }
            drop(tee.extend_pass(pass(number)).unwrap());
        }
        tee.finish().unwrap();
        images
    });
    let (mut all, mut states) = (Vec::new(), vec![minibatches.state().unwrap()]);
    drop(store);
    while let Some(minibatch) = minibatches.blocking().next().transpose().unwrap() {
        all.push([minibatch.bytes("a").unwrap(), minibatch.bytes("b").unwrap()].concat());
        drop(minibatch);
        states.push(minibatches.state().unwrap());
    }
    // Only now is it certain that the store has ended.
    *states.last_mut().unwrap() = minibatches.state().unwrap();
    Whole { served: all, states, images: capture.join().unwrap(), recorded: recorded(&dir.join("whole")) }
}

#[test]
fn each_gets_every_pass_once_wherever_both_have_stopped() {
    watchdog(|| {
        let dir = TempDir::new().unwrap();
        let whole = whole(dir.path());
        assert_eq!(whole.images.iter().map(|(passes, _)| *passes).collect::<Vec<_>>(), [0, 13, 26, 39]);
        let (mut seen, mut has_ended) = (BTreeSet::new(), false);
        let last = whole.states.len() - 1;
        for k in (0..last).step_by(7).chain([last]) {
            for (passes, image) in &whole.images {
                let image = {
                    let copied = dir.path().join("resumed");
                    copy(image, &copied);
                    copied
                };
                let store = RingStore::builder().resume_from(&whole.states[k]).unwrap();
                let recorder = recorder(&image);
                let point = store.resume_point(Some(LANE));
                let catch_up = CatchUp::new(point, recorder.resumed());
                let ring_from = match point {
                    ResumePoint::GoesOn(at) => at.passes,
                    ResumePoint::New => 0,
                    ResumePoint::Ended => PASSES,
                };
                assert_eq!(catch_up.first_pass(), ring_from.min(*passes));
                seen.insert(ring_from.cmp(passes));
                let mut minibatches = store.minibatches();
                let capture = match store.producer_named(LANE) {
                    Ok(lane) => thread::spawn(move || {
                        let tee = Tee::new(lane, recorder).unwrap();
                        for number in catch_up.first_pass()..PASSES {
                            tee.catch_up(catch_up.lacks(number), pass(number)).unwrap().wait().unwrap();
                        }
                        tee.finish().unwrap()
                    }),
                    // The store had ended. The recording goes on alone.
                    Err(error) => {
                        assert!(matches!(error, WriteError::Closed(_)) && point == ResumePoint::Ended, "{error}");
                        has_ended = true;
                        thread::spawn(move || {
                            for number in catch_up.first_pass()..PASSES {
                                assert_eq!(catch_up.lacks(number), Lacks { ring: false, recording: true });
                                drop(recorder.extend_pass(pass(number)).unwrap());
                            }
                            recorder.finish().unwrap()
                        })
                    }
                };
                drop(store);
                assert_eq!(served(&mut minibatches), whole.served[k..], "ring from {k}, recording from {passes}");
                assert_eq!(capture.join().unwrap().passes, PASSES);
                assert_eq!(recorded(&image), whole.recorded, "ring from {k}, recording from {passes}");
                fs::remove_dir_all(image).unwrap();
            }
        }
        assert!(seen.contains(&Ordering::Less) && seen.contains(&Ordering::Greater), "either was behind the other");
        assert!(has_ended);
    });
}

#[test]
fn a_pass_goes_to_the_ones_that_lack_it_and_comes_back_if_they_cannot_take_it() {
    let dir = TempDir::new().unwrap();
    let store = ring().build().unwrap();
    let tee = Tee::new(store.producer().unwrap(), recorder(dir.path())).unwrap();
    let held = || (store.stats().components[0].accepted, tee.recorder().flush().unwrap().rows);
    let lacks = |ring, recording| Lacks { ring, recording };
    assert_eq!(tee.catch_up(lacks(false, false), pass(1)).unwrap().wait().unwrap().rows, 0);
    assert_eq!(held(), (0, 0));
    assert_eq!(tee.catch_up(lacks(true, false), pass(1)).unwrap().wait().unwrap().rows, 5);
    assert_eq!(held(), (5, 0));
    assert_eq!(tee.catch_up(lacks(false, true), pass(1)).unwrap().wait().unwrap().first_row, 0);
    assert_eq!(held(), (5, 5));
    assert_eq!(tee.catch_up(lacks(true, true), pass(2)).unwrap().wait().unwrap().first_row, 5);
    assert_eq!(held(), (8, 8));
    for lacks in [lacks(false, false), lacks(true, false), lacks(false, true), lacks(true, true)] {
        let refused = tee.catch_up(lacks, [("a", Array2::<f32>::ones((2, 2)))]).unwrap_err();
        assert!(matches!(refused.error, WriteError::PassLacks { .. }), "{refused}");
        assert_eq!(refused.batches.len(), 1);
    }
    store.close();
    for lacks in [lacks(true, false), lacks(true, true)] {
        let refused = tee.catch_up(lacks, pass(3)).unwrap_err();
        assert_eq!((refused.error.closed_by(), refused.batches.len()), (Some(ClosedBy::Close), 2));
    }
    assert_eq!(held(), (8, 8));
    drop(tee.catch_up(lacks(false, true), pass(3)).unwrap());
    assert_eq!(tee.finish().unwrap().passes, 3);
}
