#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;

use ndarray::Array2;

use super::*;
use crate::disk::faulty::{Fault, FaultyDisk};
use crate::recording::recording::Recording;

const DIR: &str = "/recording";
const PASSES: u64 = 9;

fn builder() -> RecorderBuilder {
    Recorder::builder().component("a", 3).component_of("id", 1, DType::I64).shard_rows(8)
}

/// Records from the pass that comes next to the end. The last error, if there was one.
fn record(disk: &FaultyDisk) -> Result<Safe, RecordingError> {
    let recorder = builder().start(Arc::new(disk.clone()), Path::new(DIR), true)?;
    for pass in recorder.resumed().passes..PASSES {
        let rows = Batch::from(Array2::<f32>::from_elem((3, 3), pass as f32));
        let ids = Batch::from(Array2::<i64>::from_elem((3, 1), pass as i64));
        drop(recorder.extend_pass([("id", ids), ("a", rows)]).unwrap());
    }
    recorder.finish()
}

/// All that is there must be a prefix of the lane, and right.
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

/// Fails at each operation in turn, restarts the machine, and resumes.
fn fail_everywhere(fault: Fault) {
    let whole = FaultyDisk::default();
    assert_eq!(record(&whole).unwrap(), Safe { passes: PASSES, rows: 3 * PASSES });
    let operations = whole.0.operations();
    assert!(operations > 30);
    for n in 0..operations {
        let disk = FaultyDisk::default();
        disk.0.fail_at(n, fault);
        let failed = record(&disk);
        disk.0.restart();
        let before = check(&disk);
        if let Ok(safe) = failed {
            assert_eq!(safe.rows, before, "operation {n}");
        }
        record(&disk).unwrap();
        assert_eq!(check(&disk), 3 * PASSES, "operation {n}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "records many times")]
fn a_kill_at_any_operation_loses_no_whole_shard() {
    fail_everywhere(Fault::Kill);
}

#[test]
#[cfg_attr(miri, ignore = "records many times")]
fn a_full_disk_at_any_operation_loses_no_whole_shard() {
    fail_everywhere(Fault::Error(ErrorKind::StorageFull));
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
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "records many times")]
fn a_missing_shard_is_named() {
    let disk = FaultyDisk::default();
    record(&disk).unwrap();
    disk.remove_dir_all(&Path::new(DIR).join("lane.000001")).unwrap();
    let error = Recording::open_on(Arc::new(disk), Path::new(DIR)).unwrap_err();
    assert!(matches!(error, RecordingError::Missing { number: 1, .. }), "{error}");
}
