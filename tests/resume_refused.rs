//! A resumed store refuses wrong input and says why. Nothing hangs, and nothing wrong is served.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use activation_store::{
    ClosedBy, DType, Form, IndexError, Merge, Minibatches, ReadError, ResumeError, ResumePoint, RingStore,
    RingStoreBuilder, RowsMissing, Snapshot, SnapshotError, Snapshots, WhenFull,
};
use common::{LIMIT, assert_adds_up, drain, finish, rows, watchdog};

fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", 3).batch_size(8).window(32).ready_frames(4).seed(5)
}

/// Makes a store with rows 0 to 48 on its own lane, in passes of 6, and takes one minibatch.
fn filled(builder: RingStoreBuilder) -> (RingStore, Minibatches) {
    let store = builder.build().unwrap();
    let mut minibatches = store.minibatches();
    for pass in 0..8 {
        drop(store.extend_pass([("a", rows(pass * 6..pass * 6 + 6, 3))]).unwrap());
    }
    store.flush().wait().unwrap();
    let _ = minibatches.blocking().next().unwrap().unwrap();
    (store, minibatches)
}

fn snapshot() -> Snapshot {
    filled(builder()).1.state().unwrap()
}

#[test]
fn a_setting_that_does_not_match_is_named_with_both_values() {
    let snapshot = snapshot();
    let refused = |builder: RingStoreBuilder| builder.resume_from(&snapshot).unwrap_err().to_string();
    let builder = RingStore::builder;
    for (builder, says) in [
        (builder().seed(6), "seed is 6, but the snapshot was taken with 5"),
        (builder().window(64), "window is 64, but the snapshot was taken with 32"),
        (builder().batch_size(4), "batch_size is 4, but the snapshot was taken with 8"),
        (builder().drop_last(true), "drop_last is true, but the snapshot was taken with false"),
        (builder().merge(Merge::RoundRobin), "merge is round_robin, but the snapshot was taken with arrival"),
        (builder().when_full(WhenFull::Reject), "when_full is reject, but the snapshot was taken with wait"),
        (builder().component("b", 3), "components is \"b\": 3 × f32, but the snapshot was taken with \"a\": 3 × f32"),
        (builder().component_of("a", 3, DType::F16), "\"a\": 3 × f16, but the snapshot was taken with \"a\": 3 × f32"),
    ] {
        let said = refused(builder);
        assert!(said.contains(says), "{said}");
    }
    // Settings that do not change the minibatches may differ.
    let same = builder().component("a", 3).seed(5).ready_frames(4).queue_rows(100).allow_overcommit(true);
    assert_eq!(same.resume_from(&snapshot).unwrap().batch_size(), 8);
}

#[test]
fn a_policy_that_loses_rows_cannot_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, minibatches) = filled(builder().when_full(WhenFull::DropOldest));
    for form in [Form::Light, Form::Full] {
        let error = minibatches.snapshot(dir.path(), form).unwrap_err();
        assert!(error.to_string().contains("drops the oldest minibatch"), "{error}");
    }
    let (_store, minibatches) = filled(builder().when_full(WhenFull::Reject).queue_rows(48));
    assert!(minibatches.state().unwrap_err().to_string().contains("take a full snapshot"));
    let _ = minibatches.snapshot(dir.path(), Form::Full).unwrap().wait().unwrap();
    let resumed = RingStore::builder().resume(dir.path()).unwrap();
    assert_eq!(resumed.len(), 40);
}

#[test]
fn a_full_snapshot_needs_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, minibatches) = filled(builder());
    let _ = minibatches.snapshot(dir.path(), Form::Full).unwrap().wait().unwrap();
    let snapshot = Snapshots::new(dir.path()).newest().unwrap();
    assert_eq!((snapshot.form(), snapshot.minibatches()), (Form::Full, 1));
    assert!(matches!(RingStore::builder().resume_from(&snapshot), Err(ResumeError::NeedsFiles)));
}

#[test]
fn a_folder_that_cannot_be_written_is_named_and_the_pipeline_goes_on() {
    watchdog(|| {
        let (store, minibatches) = filled(builder());
        let file = tempfile::NamedTempFile::new().unwrap();
        for form in [Form::Light, Form::Full] {
            let error = minibatches.snapshot(file.path().join("inside"), form).unwrap().wait().unwrap_err();
            assert!(matches!(error, SnapshotError::Disk(_)));
            assert!(error.to_string().contains("inside"), "{error}");
        }
        assert_eq!(finish(&store).concat().len(), 40);
    });
}

#[test]
fn an_aborted_store_has_nothing_to_save() {
    let dir = tempfile::tempdir().unwrap();
    let (store, minibatches) = filled(builder());
    store.abort();
    for form in [Form::Light, Form::Full] {
        let error = minibatches.snapshot(dir.path(), form).unwrap_err();
        assert!(matches!(&error, SnapshotError::Ended(ended) if ended.closed_by() == Some(ClosedBy::Abort)), "{error}");
    }
}

#[test]
fn an_abort_fails_the_snapshot_that_is_being_written() {
    watchdog(|| {
        let dir = tempfile::tempdir().unwrap();
        let (store, minibatches) = filled(builder());
        let handle = minibatches.snapshot(dir.path(), Form::Full).unwrap();
        store.abort();
        // The snapshot may have been faster than the abort.
        match handle.wait() {
            Ok(folder) => assert!(folder.ends_with("snapshot-1")),
            Err(SnapshotError::Ended(_)) => assert!(Snapshots::new(dir.path()).list().unwrap().is_empty()),
            Err(error) => panic!("{error}"),
        }
    });
}

/// As [`snapshot`], with the rows on the lane "replica 0".
fn snapshot_of_a_named_lane() -> Snapshot {
    let store = builder().build().unwrap();
    let mut minibatches = store.minibatches();
    let lane = store.producer_named("replica 0").unwrap();
    for pass in 0..8 {
        drop(lane.extend_pass([("a", rows(pass * 6..pass * 6 + 6, 3))]).unwrap());
    }
    store.flush().wait().unwrap();
    let _ = minibatches.blocking().next().unwrap().unwrap();
    minibatches.state().unwrap()
}

#[test]
fn a_lane_that_ends_without_the_rows_that_are_needed_fails_the_stream() {
    watchdog(|| {
        let snapshot = snapshot_of_a_named_lane();
        for whole_store in [false, true] {
            let resumed = RingStore::builder().resume_from(&snapshot).unwrap();
            let mut minibatches = resumed.minibatches();
            let at = resumed.resume_at()[0].clone();
            assert_eq!((at.lane.number, at.lane.name.as_deref(), at.row, at.passes), (1, Some("replica 0"), 0, 0));
            let lane = resumed.producer_named("replica 0").unwrap();
            drop(lane.extend_pass([("a", rows(0..6, 3))]).unwrap());
            if whole_store {
                resumed.close();
            } else {
                lane.close();
            }
            let error = minibatches.blocking().next().unwrap().unwrap_err();
            let ReadError::Failed(failure) = &error else { panic!("{error}") };
            let missing = failure.downcast_ref::<RowsMissing>().unwrap();
            assert_eq!((missing.lane.to_string().as_str(), missing.row), ("lane \"replica 0\"", 6));
            assert!(minibatches.blocking().next().is_none());
            assert_adds_up(&resumed.stats());
        }
    });
}

/// What such a store holds is not what the saved store held, so no store could go on from it.
#[test]
fn a_store_that_could_not_go_on_is_not_saved() {
    watchdog(|| {
        let resumed = RingStore::builder().resume_from(&snapshot_of_a_named_lane()).unwrap();
        let mut minibatches = resumed.minibatches();
        resumed.producer_named("replica 0").unwrap().close();
        assert!(matches!(minibatches.blocking().next(), Some(Err(ReadError::Failed(_)))));
        let dir = tempfile::tempdir().unwrap();
        for refused in [minibatches.state().map(drop), minibatches.snapshot(&dir, Form::Full).map(drop)] {
            let error = refused.unwrap_err();
            assert!(matches!(error, SnapshotError::RowsMissing(_)), "{error}");
        }
    });
}

/// The lane had ended, so it takes its rows and no more. A caller that waits for room is told.
#[test]
fn a_caller_that_waits_is_told_that_a_resumed_lane_is_complete() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let minibatches = store.minibatches();
        let lane = store.producer_named("replica 0").unwrap();
        drop(lane.extend_pass([("a", rows(0..24, 3))]).unwrap());
        lane.close();
        store.flush().wait().unwrap();
        let snapshot = minibatches.state().unwrap();
        for _ in 0..20 {
            let resumed = RingStore::builder().queue_rows(12).resume_from(&snapshot).unwrap();
            let _minibatches = resumed.minibatches();
            let lane = resumed.producer_named("replica 0").unwrap();
            drop(lane.extend_pass([("a", rows(0..12, 3))]).unwrap());
            let mut permit = lane.reserve_pass(12);
            let early = permit.wait_timeout(Duration::ZERO);
            let waiting = early.is_none().then(|| std::thread::spawn(move || permit.wait_timeout(LIMIT).unwrap()));
            drop(early);
            drop(lane.extend_pass([("a", rows(12..24, 3))]).unwrap());
            // There may be room before the last rows come. The caller must not wait for ever.
            if let Some(Err(error)) = waiting.map(|waiting| waiting.join().unwrap()) {
                assert_eq!(error.closed_by(), Some(ClosedBy::Lane));
            }
        }
    });
}

#[test]
fn names_of_open_lanes_are_unique() {
    let store = builder().build().unwrap();
    let lane = store.producer_named("replica 0").unwrap();
    let error = store.producer_named("replica 0").unwrap_err();
    assert!(error.to_string().contains("\"replica 0\" is open already"), "{error}");
    lane.close();
    assert!(store.producer_named("replica 0").is_ok());
}

/// An ended lane and a new one are both missing in `resume_at`, and a caller must not take one for the other.
#[test]
fn a_lane_that_has_ended_is_told_from_a_new_one() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let minibatches = store.minibatches();
        for name in [None, Some("open"), Some("ended"), Some("other")] {
            assert_eq!(store.resume_point(name), ResumePoint::New);
        }
        let [open, ended] = ["open", "ended"].map(|name| store.producer_named(name).unwrap());
        for lane in [&open, &ended] {
            lane.extend_pass_blocking([("a", rows(0..6, 3))]).unwrap();
        }
        drop(ended);
        store.flush().wait().unwrap();
        let check = |saved: &Snapshot, ends: bool| {
            let resumed = RingStore::builder().resume_from(saved).unwrap();
            let points = || [None, Some("open"), Some("ended"), Some("other")].map(|name| resumed.resume_point(name));
            let before = points();
            let [ResumePoint::New, ResumePoint::GoesOn(open), ended, ResumePoint::New] = before else {
                panic!("{before:?}")
            };
            assert_eq!((open.lane.name.as_deref(), open.ends_at), (Some("open"), None));
            match ended {
                ResumePoint::GoesOn(at) => assert_eq!((at.passes, at.ends_at, ends), (0, Some(6), false)),
                other => assert_eq!((other, ends), (ResumePoint::Ended, true)),
            }
            // The lane is what this says, and the answer stays the same once the lane is open.
            let lane = resumed.producer_named("ended").unwrap();
            assert_eq!(lane.extend_pass([("a", rows(0..6, 3))]).is_err(), ends);
            assert_eq!(points(), before);
        };
        // Its rows are in the ring, and then not any more.
        check(&minibatches.state().unwrap(), false);
        store.empty();
        check(&minibatches.state().unwrap(), true);
        drop(open);
        store.close();
        assert!(finish(&store).is_empty());
        let ended = RingStore::builder().resume_from(&minibatches.state().unwrap()).unwrap();
        assert_eq!([None, Some("open"), Some("other")].map(|name| ended.resume_point(name)), [ResumePoint::Ended; 3]);
    });
}

#[test]
fn a_lane_is_sent_again_from_the_start_only_before_its_first_write() {
    let resumed = RingStore::builder().resume_from(&snapshot()).unwrap();
    drop(resumed.extend_pass([("a", rows(0..6, 3))]).unwrap());
    let error = resumed.send_again().unwrap_err();
    assert!(error.to_string().contains("before the first write"), "{error}");
}

#[test]
fn while_rows_are_dealt_again_only_ready_minibatches_can_be_read() {
    watchdog(|| {
        let resumed = RingStore::builder().resume_from(&snapshot()).unwrap();
        let minibatches = resumed.minibatches();
        drop(resumed.extend_pass([("a", rows(0..6, 3))]).unwrap());
        resumed.flush().wait().unwrap();
        assert_eq!((resumed.len(), resumed.stats().components[0].resent), (0, 6));
        assert!(matches!(resumed.get(0), Err(IndexError::OutOfRange { .. })));
        let dir = tempfile::tempdir().unwrap();
        let error = minibatches.snapshot(dir.path(), Form::Full).unwrap_err();
        assert!(matches!(error, SnapshotError::DealsAgain { left: 40 }), "{error}");
        // A light snapshot has the same contents as the first one.
        assert_eq!(minibatches.state().unwrap().resume_at(), snapshot().resume_at());
    });
}

#[test]
fn emptying_while_rows_are_dealt_again_starts_anew_after_them() {
    watchdog(|| {
        let resumed = RingStore::builder().resume_from(&snapshot()).unwrap();
        let mut minibatches = resumed.minibatches();
        drop(resumed.extend_pass([("a", rows(0..6, 3))]).unwrap());
        resumed.flush().wait().unwrap();
        resumed.empty();
        let stats = resumed.stats();
        assert_adds_up(&stats);
        assert_eq!((stats.components[0].accepted, stats.components[0].dropped.emptied), (48, 40));
        for pass in 1..12 {
            drop(resumed.extend_pass([("a", rows(pass * 6..pass * 6 + 6, 3))]).unwrap());
        }
        resumed.close();
        let mut served = drain(&mut minibatches).concat();
        served.sort_unstable();
        assert_eq!(served, (48..72).collect::<Vec<_>>());
        assert_adds_up(&resumed.stats());
    });
}

#[test]
fn a_snapshot_of_a_store_that_has_served_everything_resumes_as_closed() {
    watchdog(|| {
        for form in [Form::Light, Form::Full] {
            let dir = tempfile::tempdir().unwrap();
            let (store, mut minibatches) = filled(builder());
            store.close();
            assert_eq!(drain(&mut minibatches).concat().len(), 40);
            let _ = minibatches.snapshot(dir.path(), form).unwrap().wait().unwrap();
            let resumed = RingStore::builder().resume(dir.path()).unwrap();
            assert!(resumed.is_closed());
            assert!(resumed.resume_at().is_empty());
            assert_eq!(drain(&mut resumed.minibatches()).len(), 0);
            assert_eq!(resumed.stats().components[0].served, 48);
        }
    });
}

/// The error of a wait says which lane no producer has opened, while the other lane writes.
#[test]
fn a_wait_for_a_lane_that_is_not_opened_names_it() {
    watchdog(|| {
        let dir = tempfile::tempdir().unwrap();
        let builder = || RingStore::builder().component("a", 1).batch_size(4).window(16).queue_rows(1000);
        let store = builder().merge(Merge::RoundRobin).build().unwrap();
        let mut minibatches = store.minibatches();
        let lanes = ["left", "right"].map(|name| store.producer_named(name).unwrap());
        lanes.iter().for_each(|lane| drop(lane.extend(rows(0..100, 1), 0).unwrap()));
        minibatches.next_timeout(LIMIT).unwrap().unwrap();
        minibatches.snapshot(&dir, Form::Light).unwrap().wait().unwrap();

        let resumed = RingStore::builder().resume(&dir).unwrap();
        let mut minibatches = resumed.minibatches();
        let error = minibatches.next_timeout(Duration::ZERO).unwrap_err();
        assert!(error.is_timeout() && error.to_string().contains("waits for lane \"left\""), "{error}");
        let left = resumed.producer_named("left").unwrap();
        drop(left.extend(rows(0..100, 1), 0).unwrap());
        let error = minibatches.next_timeout(Duration::ZERO).unwrap_err();
        assert!(error.is_timeout() && error.to_string().contains("waits for lane \"right\""), "{error}");
        assert_eq!(minibatches.missing_lane().unwrap().name.as_deref(), Some("right"));
        let right = resumed.producer_named("right").unwrap();
        assert_eq!(minibatches.missing_lane(), None);
        drop(right.extend(rows(0..100, 1), 0).unwrap());
        minibatches.next_timeout(LIMIT).unwrap().unwrap();
    });
}
