use std::io::ErrorKind;
use std::path::Path;

use ndarray::Array2;
use tempfile::tempdir;

use super::*;
use crate::disk::faulty::{Fault, Faulty, FaultyDisk};
use crate::ring_store::consumer::Minibatches;
use crate::ring_store::ring_store::RingStore;
use crate::ring_store::snapshot::error::SnapshotError;
use crate::ring_store::snapshot::snapshot::Form;

fn store() -> RingStore {
    RingStore::builder().component("a", 3).component("b", 2).batch_size(8).window(32).seed(5).build().unwrap()
}

/// A store with minibatches ready and rows in open frames.
fn filled() -> (RingStore, Minibatches) {
    let store = store();
    let minibatches = store.minibatches();
    for pass in 0..6 {
        let rows = |features| Array2::<f32>::from_elem((6, features), pass as f32);
        store.extend_pass([("a", rows(3)), ("b", rows(2))]).unwrap().wait().unwrap();
    }
    (store, minibatches)
}

fn bits(minibatches: &mut Minibatches) -> Vec<Vec<u8>> {
    let minibatches = minibatches.blocking().map(|minibatch| minibatch.unwrap());
    minibatches.map(|minibatch| [minibatch.bytes("a").unwrap(), minibatch.bytes("b").unwrap()].concat()).collect()
}

fn resume(disk: &FaultyDisk, dir: &Path) -> (RingStore, u64) {
    let store = RingStore::builder().resume_on(disk, dir).unwrap();
    let served = store.stats().minibatches_served;
    (store, served)
}

#[test]
#[cfg_attr(miri, ignore = "runs hundreds of stores")]
fn a_failure_or_a_kill_at_any_operation_leaves_the_old_snapshot_or_the_new_one() {
    let dir = Path::new("/run/checkpoints");
    for form in [Form::Light, Form::Full] {
        let faults = [Fault::Kill, Fault::Error(ErrorKind::StorageFull), Fault::Error(ErrorKind::PermissionDenied)];
        for fault in faults {
            for n in 0.. {
                let disk = FaultyDisk(std::sync::Arc::<Faulty>::default());
                let save = |minibatches: &Minibatches| {
                    // The call itself looks at the snapshots in the folder, and a thread writes.
                    let saving = minibatches.snapshot_on(std::sync::Arc::new(disk.clone()), dir, form);
                    saving.and_then(|saving| saving.wait())
                };
                let (_store, mut minibatches) = filled();
                save(&minibatches).unwrap();
                let _ = minibatches.blocking().next().unwrap().unwrap();
                let before = disk.0.operations();
                disk.0.fail_at(n, fault);
                let saved = save(&minibatches);
                let done = n >= disk.0.operations() - before && saved.is_ok();
                if let Err(error) = &saved {
                    assert!(matches!(error, SnapshotError::Disk(_)), "{error}");
                    assert!(error.to_string().contains("/run/checkpoints"), "{error}");
                }
                disk.0.restart();
                let (resumed, served) = resume(&disk, dir);
                // One that has failed may have got its name; one that has succeeded must have.
                assert!(served == 1 || (served == 0 && saved.is_err()), "{form:?} {fault:?} {n}: {served}");
                drop(resumed);
                // The next one works, whatever the last has left behind.
                let _ = minibatches.blocking().next().unwrap().unwrap();
                save(&minibatches).unwrap();
                assert_eq!(resume(&disk, dir).1, 2);
                prune(&disk, dir, 1).unwrap();
                assert_eq!(list_whole(&disk, dir).unwrap().len(), 1);
                if done {
                    break;
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "runs hundreds of stores")]
fn a_snapshot_that_takes_the_place_of_another_is_there_or_the_other_is() {
    let dir = Path::new("/checkpoints");
    for form in [Form::Light, Form::Full] {
        for fault in [Fault::Kill, Fault::Error(ErrorKind::StorageFull)] {
            for n in 0.. {
                let disk = FaultyDisk(std::sync::Arc::<Faulty>::default());
                let save = |minibatches: &Minibatches| {
                    // The call itself looks at the snapshots in the folder, and a thread writes.
                    let saving = minibatches.snapshot_on(std::sync::Arc::new(disk.clone()), dir, form);
                    saving.and_then(|saving| saving.wait())
                };
                let store = store();
                let minibatches = store.minibatches();
                let write = || {
                    let pass = [("a", Array2::<f32>::ones((6, 3))), ("b", Array2::<f32>::ones((6, 2)))];
                    store.extend_pass(pass).unwrap().wait().unwrap();
                };
                write();
                save(&minibatches).unwrap();
                // No minibatch was served since, but another pass has come.
                write();
                let before = disk.0.operations();
                disk.0.fail_at(n, fault);
                let saved = save(&minibatches);
                let done = n >= disk.0.operations() - before && saved.is_ok();
                disk.0.restart();
                let passes = || RingStore::builder().resume_on(&disk, dir).unwrap().resume_at()[0].passes;
                // A light one needs all passes again.
                let (old, new) = if form == Form::Full { (1, 2) } else { (0, 0) };
                let found = passes();
                assert!(found == new || (found == old && saved.is_err()), "{form:?} {fault:?} {n}: {found}");
                // The next one works, whatever the last has left behind.
                save(&minibatches).unwrap();
                assert_eq!(passes(), new, "{form:?} {fault:?} {n}");
                assert_eq!(list_whole(&disk, dir).unwrap(), [(0, dir.join("snapshot-0"))]);
                if done {
                    break;
                }
            }
        }
    }
}

/// Two processes prune at once: the second runs at every operation of the first, and takes away what the first has not finished, too.
#[test]
#[cfg_attr(miri, ignore = "runs many stores")]
fn what_another_process_has_pruned_meanwhile_is_no_error() {
    let dir = Path::new("/checkpoints");
    let four_snapshots = || {
        let disk = FaultyDisk::default();
        let (_store, mut minibatches) = filled();
        for k in 0..4 {
            let saving = minibatches.snapshot_on(std::sync::Arc::new(disk.clone()), dir, Form::Light);
            saving.and_then(|saving| saving.wait()).unwrap();
            if k < 3 {
                let _ = minibatches.blocking().next().unwrap().unwrap();
            }
        }
        disk
    };
    for n in 0.. {
        let disk = four_snapshots();
        let (before, (sender, by_the_other)) = (disk.0.operations(), std::sync::mpsc::channel());
        let other = disk.clone();
        disk.0.meanwhile(n, move || {
            let pruned = prune(&other, dir, 1).unwrap();
            let all = other.list(dir).unwrap();
            let left = all.iter().filter(|path| path.to_string_lossy().contains(UNFINISHED));
            left.for_each(|path| other.remove(path).unwrap());
            sender.send(pruned).unwrap();
        });
        let pruned = prune(&disk, dir, 1).unwrap_or_else(|error| panic!("operation {n}: {error}"));
        let reached = disk.0.operations() - before > n;
        let mut all = [pruned, by_the_other.try_recv().unwrap_or_default()].concat();
        all.sort();
        assert_eq!(all, [0, 1, 2], "operation {n}: each is removed once");
        assert_eq!(list_whole(&disk, dir).unwrap(), [(3, dir.join("snapshot-3"))]);

        let disk = four_snapshots();
        let other = disk.clone();
        disk.0.meanwhile(n, move || drop(prune(&other, dir, 1).unwrap()));
        let Listed { whole, others } = list(&disk, dir).unwrap();
        assert!(others.is_empty(), "operation {n}: {others:?}");
        assert_eq!(whole.last().unwrap().0, 3);
        if !reached {
            break;
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "lists folders on the disk")]
fn pruning_removes_what_other_processes_left_unfinished() {
    let dir = tempdir().unwrap();
    let (_store, mut minibatches) = filled();
    let _ = minibatches.blocking().next().unwrap().unwrap();
    let newest = minibatches.snapshot(dir.path(), Form::Light).unwrap().wait().unwrap();
    let own = dir.path().join(unfinished("snapshot-2"));
    let of_others = [".unfinished-snapshot-1-0123", ".unfinished-snapshot-gone-0123"].map(|name| dir.path().join(name));
    let foreign = dir.path().join("notes");
    for folder in of_others.iter().chain([&own, &foreign]) {
        std::fs::create_dir(folder).unwrap();
        std::fs::write(folder.join("component-0.safetensors"), "rows").unwrap();
    }
    assert!(prune(&crate::disk::disk::Files, dir.path(), 2).unwrap().is_empty());
    let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    left.sort();
    assert_eq!(left, [own, foreign, newest]);
}

#[test]
#[cfg_attr(miri, ignore = "runs hundreds of stores")]
fn a_flipped_bit_is_found_anywhere() {
    let dir = Path::new("/checkpoints");
    for form in [Form::Light, Form::Full] {
        let disk = FaultyDisk(std::sync::Arc::<Faulty>::default());
        let (store, mut minibatches) = filled();
        for _ in 0..2 {
            let _ = minibatches.blocking().next().unwrap().unwrap();
            minibatches.snapshot_on(std::sync::Arc::new(disk.clone()), dir, form).unwrap().wait().unwrap();
        }
        store.close();
        for (path, length) in disk.0.files() {
            if !path.starts_with(dir.join("snapshot-2")) {
                continue;
            }
            for byte in (0..length).step_by(if length > 4096 { 61 } else { 1 }) {
                // Spaces that pad the header, and numbers in it that nothing depends on.
                let padding = path.extension().is_some_and(|extension| extension == "safetensors") && byte < 4096;
                disk.0.flip(&path, byte);
                match RingStore::builder().resume_on(&disk, dir) {
                    Err(ResumeError::Refused { what, earlier, .. }) => {
                        assert!(what.ends_with("snapshot-2"), "{what}");
                        assert_eq!(earlier, Some(dir.join("snapshot-1")));
                    }
                    Err(other) => panic!("{} {byte}: {other}", path.display()),
                    Ok(_) => assert!(padding, "{} {byte}", path.display()),
                }
                disk.0.flip(&path, byte);
            }
        }
        let (resumed, served) = resume(&disk, dir);
        assert_eq!(served, 2);
        if form == Form::Full {
            resumed.close();
            assert_eq!(bits(&mut resumed.minibatches()), bits(&mut minibatches));
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "parses JSON many times")]
fn a_damaged_or_foreign_snapshot_is_refused_with_the_reason() {
    let dir = tempdir().unwrap();
    let resume = || RingStore::builder().resume(dir.path()).unwrap_err().to_string();
    assert!(resume().contains("has no complete snapshot"), "{}", resume());
    let folder = dir.path().join("snapshot-7");
    std::fs::create_dir(&folder).unwrap();
    assert!(resume().contains("snapshot.jsonl: it is missing"), "{}", resume());
    std::fs::write(folder.join(STATE), "a trainer's notes").unwrap();
    assert!(resume().contains("is not a snapshot of an activation store"), "{}", resume());

    let (_store, minibatches) = filled();
    let bytes = String::from_utf8(minibatches.state().unwrap().to_bytes()).unwrap();
    let resealed = |from: &str, to: &str| {
        let body = bytes.lines().next().unwrap().replace(from, to);
        assert_ne!(body, bytes.lines().next().unwrap());
        format!("{body}\n{{\"xxh3\":\"{}\"}}\n", crate::disk::checksum::checksum(body.as_bytes()))
    };
    for (from, to, says) in [
        ("\"dealing_version\":1", "\"dealing_version\":9", "its dealing version is 9, and this release knows 1"),
        ("\"format_version\":2", "\"format_version\":3", "its format version is 3, and this release knows 2"),
        ("\"dealt\":36", "\"dealt\":35", "the log does not end where dealing stood"),
        ("\"merge\":\"arrival\"", "\"merge\":\"rank\"", "merge is \"rank\", which this release does not know"),
    ] {
        std::fs::write(folder.join(STATE), resealed(from, to)).unwrap();
        assert!(resume().contains(says), "{}", resume());
    }
    std::fs::remove_dir_all(&folder).unwrap();
    let missing = RingStore::builder().resume(dir.path().join("nowhere")).unwrap_err().to_string();
    assert!(missing.contains("nowhere") && missing.contains("does not exist"), "{missing}");
}

#[test]
#[cfg_attr(miri, ignore = "reads a snapshot many times")]
fn an_error_of_the_system_is_not_called_damage() {
    let dir = Path::new("/checkpoints");
    for form in [Form::Light, Form::Full] {
        let disk = FaultyDisk(std::sync::Arc::<Faulty>::default());
        let (_store, minibatches) = filled();
        let save =
            |disk: &FaultyDisk| minibatches.snapshot_on(std::sync::Arc::new(disk.clone()), dir, form).unwrap().wait();
        save(&disk).unwrap();
        for fault in [Fault::Error(ErrorKind::PermissionDenied), Fault::Read(ErrorKind::Other)] {
            for n in 0.. {
                let before = disk.0.operations();
                disk.0.fail_at(n, fault);
                let resumed = RingStore::builder().resume_on(&disk, dir);
                let reached = disk.0.operations() - before > n;
                disk.0.restart();
                match resumed {
                    Ok(_) => {}
                    Err(ResumeError::Disk(error)) => assert!(error.path.starts_with(dir), "{error}"),
                    Err(error) => panic!("{form:?} {fault:?} {n}: {error}"),
                }
                if !reached {
                    break;
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "runs many stores")]
fn a_panic_of_the_thread_that_writes_is_the_error_of_the_snapshot() {
    for form in [Form::Light, Form::Full] {
        // The first operation lists the folder on the calling thread.
        for n in 1.. {
            let disk = FaultyDisk(std::sync::Arc::<Faulty>::default());
            let (_store, minibatches) = filled();
            disk.0.fail_at(n, Fault::Panic);
            let save =
                || minibatches.snapshot_on(std::sync::Arc::new(disk.clone()), Path::new("/run"), form).unwrap().wait();
            let Err(error) = save() else {
                assert!(n > 5, "{n}");
                break;
            };
            assert!(matches!(error, SnapshotError::Panicked { .. }), "{error}");
            assert!(error.to_string().ends_with("panicked: the disk panicked"), "{error}");
            save().unwrap();
        }
    }
}
