#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::path::Path;

use ndarray::Array2;

use super::*;
use crate::disk::faulty::{Fault, FaultyDisk};
use crate::recording::recorder_builder::RecorderBuilder;
use crate::recording::recording::Recording;
use crate::recording::sealer::SyncPolicy;
use crate::rows::element::DType;
use crate::waiting::handle::Written;

const DIR: &str = "/recording";
const PASSES: u64 = 9;
const POLICIES: [SyncPolicy; 2] = [SyncPolicy::EachShard, SyncPolicy::AtFlush];

fn builder() -> RecorderBuilder {
    Recorder::builder().component("a", 3).component_of("id", 1, DType::I64).shard_rows(8)
}

/// Resumes the lane and records it to the end. Returns what is safe, or the error.
fn record(disk: &FaultyDisk) -> Result<Safe, RecordingError> {
    record_until(disk, PASSES, SyncPolicy::EachShard)
}

fn record_until(disk: &FaultyDisk, passes: u64, policy: SyncPolicy) -> Result<Safe, RecordingError> {
    let recorder = builder().sync(policy).start(Arc::new(disk.clone()), Path::new(DIR), true)?;
    for pass in recorder.resumed().passes..passes {
        let rows = Batch::from(Array2::<f32>::from_elem((3, 3), pass as f32));
        let ids = Batch::from(Array2::<i64>::from_elem((3, 1), pass as i64));
        if recorder.extend_pass([("id", ids), ("a", rows)]).is_err() {
            break;
        }
    }
    recorder.finish()
}

/// Fails unless the recording is a prefix of the lane with the right rows. Returns the number of its rows.
fn check(disk: &FaultyDisk) -> u64 {
    let recording = match Recording::open_on(Arc::new(disk.clone()), Path::new(DIR)) {
        Ok(recording) => recording,
        Err(RecordingError::Empty { .. }) => return 0,
        // The folder was never made.
        Err(RecordingError::Disk(error)) if error.path == Path::new(DIR) => return 0,
        Err(error) => panic!("{error}"),
    };
    recording.verify(|_, _| ()).unwrap();
    for row in 0..recording.rows() {
        assert_eq!(recording.get("a", &[row]).unwrap().to_f32()[[0, 2]], (row / 3) as f32);
    }
    recording.rows()
}

/// Records a lane that is finished and goes on. Fails at each operation, restarts the machine, and resumes.
fn fail_everywhere(fault: Fault, policy: SyncPolicy) {
    let twice = |disk: &FaultyDisk| {
        record_until(disk, 4, policy)?;
        record_until(disk, PASSES, policy)
    };
    let whole = FaultyDisk::default();
    assert_eq!(twice(&whole).unwrap(), Safe { passes: PASSES, rows: 3 * PASSES });
    let operations = whole.0.operations();
    assert!(operations > 60);
    for n in 0..operations {
        let disk = FaultyDisk::default();
        disk.0.fail_at(n, fault);
        let failed = twice(&disk);
        disk.0.restart();
        let before = check(&disk);
        if let Ok(safe) = failed {
            assert_eq!(safe.rows, before, "operation {n}");
        }
        record_until(&disk, PASSES, policy).unwrap();
        assert_eq!(check(&disk), 3 * PASSES, "operation {n}");
        let names = disk.0.files().into_iter().map(|(path, _)| path);
        let left: Vec<_> = names.filter(|path| path.to_string_lossy().contains(".unfinished")).collect();
        assert!(left.is_empty(), "operation {n} left {left:?}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "records many times")]
fn a_kill_at_any_operation_loses_no_whole_shard() {
    for policy in POLICIES {
        fail_everywhere(Fault::Kill, policy);
    }
}

#[test]
#[cfg_attr(miri, ignore = "records many times")]
fn a_full_disk_at_any_operation_loses_no_whole_shard() {
    for policy in POLICIES {
        fail_everywhere(Fault::Error(ErrorKind::StorageFull), policy);
    }
}

#[test]
#[cfg_attr(miri, ignore = "records many times")]
fn a_flipped_bit_in_any_file_is_found_and_the_file_is_named() {
    let whole = FaultyDisk::default();
    record(&whole).unwrap();
    for (path, length) in whole.0.files() {
        for byte in [0, length / 2, length - 1] {
            let disk = FaultyDisk::default();
            record(&disk).unwrap();
            disk.0.flip(&path, byte);
            let opened = Recording::open_on(Arc::new(disk.clone()), Path::new(DIR));
            let error = opened.and_then(|recording| recording.verify(|_, _| ())).unwrap_err();
            assert!(error.to_string().contains(path.to_str().unwrap()), "byte {byte} of {path:?}: {error}");
            let (rest, lost) = Recording::salvage_on(Arc::new(disk), Path::new(DIR), |_, _| ()).unwrap();
            rest.verify(|_, _| ()).unwrap();
            assert_eq!((rest.shards() + usize::from(!path.ends_with("lane.end.json")), lost.len()), (3, 1), "{lost:?}");
            assert!(lost[0].to_string().contains(path.to_str().unwrap()), "byte {byte} of {path:?}: {}", lost[0]);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "records many times")]
fn a_shard_that_is_missing_anywhere_in_a_finished_lane_is_named() {
    for lost in 0..3 {
        let disk = FaultyDisk::default();
        record(&disk).unwrap();
        disk.remove(&Path::new(DIR).join(format!("lane.00000{lost}"))).unwrap();
        for error in [
            Recording::open_on(Arc::new(disk.clone()), Path::new(DIR)).unwrap_err(),
            builder().start(Arc::new(disk.clone()), Path::new(DIR), true).unwrap_err(),
        ] {
            assert!(matches!(error, RecordingError::Missing { number, .. } if number == lost), "{lost}: {error}");
        }
        let (rest, left_out) = Recording::salvage_on(Arc::new(disk), Path::new(DIR), |_, _| ()).unwrap();
        assert_eq!((rest.shards(), left_out.len()), (2, 1));
        assert!(matches!(left_out[0], RecordingError::Missing { number, .. } if number == lost));
    }
}

#[test]
fn the_end_of_a_lane_goes_when_the_lane_goes_on_and_comes_again() {
    let end = |disk: &FaultyDisk| disk.0.files().iter().any(|(path, _)| path.ends_with("lane.end.json"));
    let disk = FaultyDisk::default();
    record_until(&disk, 4, SyncPolicy::EachShard).unwrap();
    assert!(end(&disk));
    let recorder = builder().start(Arc::new(disk.clone()), Path::new(DIR), true).unwrap();
    assert!(end(&disk), "nothing was recorded yet");
    let pass = [("a", Batch::from(Array2::<f32>::zeros((3, 3)))), ("id", Array2::<i64>::zeros((3, 1)).into())];
    drop(recorder.extend_pass(pass).unwrap());
    assert_eq!(recorder.flush().unwrap().passes, 5);
    assert!(!end(&disk));
    recorder.finish().unwrap();
    assert!(end(&disk));
    assert_eq!(Recording::open_on(Arc::new(disk), Path::new(DIR)).unwrap().rows(), 15);
}

#[test]
fn rows_come_at_the_next_flush_if_the_policy_says_so() {
    let disk = FaultyDisk::default();
    let recorder = builder().sync(SyncPolicy::AtFlush).start(Arc::new(disk.clone()), Path::new(DIR), true).unwrap();
    for pass in 0..6 {
        let rows = Batch::from(Array2::<f32>::from_elem((4, 3), pass as f32));
        let handle = recorder.extend_pass([("a", rows), ("id", Array2::<i64>::zeros((4, 1)).into())]).unwrap();
        assert_eq!(handle.wait().unwrap().first_row, 4 * pass);
        assert_eq!(recorder.safe(), Safe::default());
    }
    assert_eq!(recorder.flush().unwrap(), Safe { passes: 6, rows: 24 });
    assert_eq!(recorder.safe(), Safe { passes: 6, rows: 24 });
}

#[test]
#[cfg_attr(miri, ignore = "reads a recording many times")]
fn an_error_of_the_system_is_not_called_damage() {
    let disk = FaultyDisk::default();
    record(&disk).unwrap();
    let dir = Path::new(DIR);
    let open = || Recording::open_on(Arc::new(disk.clone()), dir);
    let uses: [&dyn Fn() -> Result<(), RecordingError>; 5] = [
        &|| open()?.verify(|_, _| ()),
        &|| open()?.check_files(),
        &|| open()?.get("a", &[0, 9]).map(drop),
        &|| Recording::salvage_on(Arc::new(disk.clone()), dir, |_, _| ()).map(drop),
        &|| builder().start(Arc::new(disk.clone()), dir, true).map(drop),
    ];
    for (number, act) in uses.into_iter().enumerate() {
        for fault in [Fault::Error(ErrorKind::PermissionDenied), Fault::Read(ErrorKind::Other)] {
            for n in 0.. {
                let before = disk.0.operations();
                disk.0.fail_at(n, fault);
                let done = act();
                let reached = disk.0.operations() - before > n;
                disk.0.restart();
                match done {
                    Ok(()) => {}
                    Err(RecordingError::Disk(error)) => assert!(!RecordingError::Disk(error).is_damage()),
                    Err(error) => panic!("use {number}, {fault:?} at {n}: {error}"),
                }
                if !reached {
                    break;
                }
            }
        }
    }
}

fn pass(number: u64) -> [(&'static str, Batch); 2] {
    let rows = Batch::from(Array2::<f32>::from_elem((3, 3), number as f32));
    [("id", Array2::<i64>::from_elem((3, 1), number as i64).into()), ("a", rows)]
}

const PANIC: &str = "the disk panicked (on a thread of the recorder)";

/// A panic on either thread, at any operation, is the error of the calls that come later. The lane can be resumed.
#[test]
#[cfg_attr(miri, ignore = "runs many recorders")]
fn a_panic_of_a_thread_is_the_error_of_the_recorder() {
    for policy in POLICIES {
        for n in 0.. {
            let disk = FaultyDisk::default();
            let recorder = builder().sync(policy).start(Arc::new(disk.clone()), Path::new(DIR), true).unwrap();
            let before = disk.0.operations();
            disk.0.fail_at(n, Fault::Panic);
            let handles: Vec<_> = (0..PASSES).map(|number| recorder.extend_pass(pass(number))).collect();
            let flushed = recorder.flush();
            if let Err(error) = &flushed {
                assert!(error.to_string().ends_with(PANIC), "{error}");
                assert!(recorder.extend_pass(pass(PASSES)).unwrap_err().error.is_poisoned());
                assert!(recorder.failure().unwrap().is_poisoned());
            }
            for handle in handles {
                let outcome = handle.map_err(|refused| refused.error).and_then(WriteHandle::wait);
                assert!(
                    outcome.as_ref().map_or_else(WriteError::is_poisoned, |written| written.rows == 3),
                    "{outcome:?}"
                );
            }
            let finished = recorder.finish();
            if n >= disk.0.operations() - before {
                assert_eq!(finished.unwrap().passes, PASSES);
                break;
            }
            assert!(finished.unwrap_err().to_string().ends_with(PANIC));
            record(&disk).unwrap();
            assert_eq!(check(&disk), 3 * PASSES, "{n}");
        }
    }
}

/// The end of a thread that reads must not look like the end of the data.
#[test]
#[cfg_attr(miri, ignore = "runs many replays")]
fn a_panic_of_a_thread_that_reads_ends_a_replay_with_an_error() {
    let disk = FaultyDisk::default();
    record(&disk).unwrap();
    for n in 0.. {
        let replay = Recording::open_on(Arc::new(disk.clone()), Path::new(DIR)).unwrap().replay();
        disk.0.fail_at(n, Fault::Panic);
        let served: Result<Vec<usize>, _> = replay.start().unwrap().map(|rows| rows.map(|rows| rows.rows())).collect();
        match served {
            Ok(served) => {
                assert_eq!(served.iter().sum::<usize>() as u64, 3 * PASSES);
                disk.0.restart();
                break;
            }
            Err(error) => {
                assert_eq!(error.to_string(), "a thread that reads the recording panicked: the disk panicked")
            }
        }
    }
    let replay = Recording::open_on(Arc::new(disk.clone()), Path::new(DIR)).unwrap().replay();
    disk.0.fail_at(3, Fault::Panic);
    let store = replay.into_ring(crate::RingStore::builder().batch_size(2).window(8)).unwrap();
    let error = store.minibatches().blocking().find_map(Result::err).unwrap();
    assert!(error.to_string().contains("the disk panicked"), "{error}");
}

/// Calls the recorder when it is dropped.
struct CallsBack(Vec<f32>, std::sync::Weak<Recorder>);

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

/// The recorder's thread has ended, so what is handed over is dropped. That runs the owner's code, outside the mutex.
#[test]
fn the_owner_of_rows_that_no_thread_takes_may_call_the_recorder() {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let disk = Arc::new(FaultyDisk::default());
        let recorder = Recorder::builder().component("a", 1).start(disk, Path::new(DIR), true).unwrap();
        let (to_no_thread, _) = crossbeam_channel::unbounded();
        recorder.enter().sender = Some(to_no_thread);
        let recorder = Arc::new(recorder);
        let rows = || Batch::from_owner::<f32, _>(CallsBack(vec![0.0], Arc::downgrade(&recorder)), 1).unwrap();
        drop(recorder.extend_pass([(0, rows())]).unwrap_err());
        let alone = recorder.extend(rows(), 0).unwrap().wait();
        let permit = recorder.reserve_pass().wait().unwrap();
        let both = permit.extend_pass_with([(0, rows())], |pass| {
            drop(pass);
            Ok(WriteHandle::ready(Ok(Written { rows: 1, first_row: 0 })))
        });
        done.send([alone, both.unwrap().wait()]).unwrap();
    });
    for lost in ended.recv_timeout(std::time::Duration::from_secs(30)).unwrap() {
        assert!(matches!(lost, Err(WriteError::Closed(_))), "{lost:?}");
    }
}
