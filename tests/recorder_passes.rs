//! A recorder and a tee gather passes, refuse to wait, and give room in line, as a lane of a ring does.
#![allow(clippy::unwrap_used)]

mod common;

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use activation_store::{
    Batch, ClosedBy, Form, Merge, Recorder, RecorderBuilder, RecorderPermit, RecorderReserve, Recording,
    RecordingError, RefusedPass, ResumePoint, RingStore, RingStoreBuilder, Tee, WhenFull, WriteError,
};
use common::watchdog;
use futures::task::noop_waker_ref;
use ndarray::Array2;
use tempfile::TempDir;

fn builder() -> RecorderBuilder {
    Recorder::builder().component("a", 2).component("b", 1).shard_rows(6)
}

fn ring() -> RingStoreBuilder {
    RingStore::builder().component("a", 2).component("b", 1).batch_size(4).window(8)
}

fn a(rows: usize, value: f32) -> Batch {
    Array2::from_elem((rows, 2), value).into()
}

fn b(rows: usize, value: f32) -> Batch {
    Array2::from_elem((rows, 1), -value).into()
}

fn pass(value: f32) -> [(&'static str, Batch); 2] {
    [("b", b(3, value)), ("a", a(3, value))]
}

/// The values of component `a`, row by row. Fails unless `b` has the same with the other sign.
fn recorded(dir: &TempDir) -> Vec<f32> {
    let recording = Recording::open(dir.path()).unwrap();
    recording.verify(|_, _| ()).unwrap();
    let rows: Vec<u64> = (0..recording.rows()).collect();
    let column = |name: &str| recording.get(name, &rows).unwrap().to_f32().column(0).to_vec();
    assert_eq!(column("a"), column("b").into_iter().map(|value| -value).collect::<Vec<_>>());
    column("a")
}

#[test]
fn a_gathered_pass_is_recorded_as_a_whole_or_not_at_all() {
    let dir = TempDir::new().unwrap();
    let recorder = builder().create(dir.path()).unwrap();
    let mut first = recorder.begin_pass();
    // Two passes are gathered at once. The first to be committed comes first.
    let mut second = recorder.begin_pass();
    first.put("b", b(3, 1.0)).unwrap();
    second.put("a", a(3, 0.0)).unwrap();
    let refused = first.put("b", b(3, 5.0)).unwrap_err();
    assert!(matches!(refused.error, WriteError::PassDoubles { .. }), "{refused}");
    let refused = first.put("a", a(2, 5.0)).unwrap_err();
    assert!(matches!(refused.error, WriteError::PassRows { first_rows: 3, rows: 2, .. }), "{refused}");
    assert_eq!(refused.batch.rows(), 2);
    let refused = first.put("c", a(3, 5.0)).unwrap_err();
    assert!(matches!(refused.error, WriteError::Component(_)), "{refused}");
    first.put("a", a(3, 1.0)).unwrap();
    second.put("b", b(3, 0.0)).unwrap();
    assert_eq!(second.commit().unwrap().wait().unwrap().first_row, 0);
    assert_eq!(first.try_commit().unwrap().wait().unwrap().first_row, 3);

    let mut dropped = recorder.begin_pass();
    dropped.put("a", a(3, 9.0)).unwrap();
    drop(dropped);
    let mut lacks = recorder.begin_pass();
    lacks.put("b", b(3, 9.0)).unwrap();
    let refused = lacks.commit().unwrap_err();
    assert!(matches!(&refused.error, WriteError::PassLacks { missing } if missing.index == 0), "{refused}");
    assert_eq!(refused.batches.len(), 1);

    let mut last = recorder.begin_pass();
    last.put("a", a(3, 2.0)).unwrap();
    last.put("b", b(3, 2.0)).unwrap();
    drop(recorder.reserve_pass().wait().unwrap().commit(last).unwrap());
    assert_eq!(recorder.finish().unwrap().passes, 3);
    assert_eq!(recorded(&dir), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
}

#[test]
fn a_gathered_pass_of_a_tee_reaches_both_or_neither_with_its_value() {
    let (dir, snapshots) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = ring().build().unwrap();
    let minibatches = store.minibatches();
    let tee = Tee::new(store.producer_named("capture").unwrap(), builder().create(dir.path()).unwrap()).unwrap();
    let mut whole = tee.begin_pass();
    whole.put("b", b(3, 1.0)).unwrap();
    let refused = whole.put("b", b(3, 1.0)).unwrap_err();
    assert!(matches!(refused.error, WriteError::PassDoubles { .. }), "{refused}");
    let refused = whole.put("a", Array2::<f32>::ones((3, 7))).unwrap_err();
    assert!(matches!(refused.error, WriteError::Features { .. }), "{refused}");
    assert_eq!(refused.batch.features(), 7);
    whole.put("a", a(3, 1.0)).unwrap();
    assert_eq!(whole.commit().unwrap().wait().unwrap().rows, 3);

    let mut dropped = tee.begin_pass();
    dropped.put("a", a(3, 9.0)).unwrap();
    drop(dropped);
    let mut lacks = tee.begin_pass();
    lacks.put("a", a(3, 9.0)).unwrap();
    let refused = lacks.try_commit().unwrap_err();
    assert!(matches!(&refused.error, WriteError::PassLacks { missing } if missing.index == 1), "{refused}");
    assert_eq!(refused.batches.len(), 1);

    let mut second = tee.begin_pass();
    second.put("a", a(3, 2.0)).unwrap();
    second.put("b", b(3, 2.0)).unwrap();
    second.attach(*b"seven");
    second.try_commit().unwrap().wait().unwrap();
    assert_eq!(store.stats().components[0].accepted, 6);
    let _ = minibatches.snapshot(snapshots.path(), Form::Full).unwrap().wait().unwrap();
    assert_eq!(tee.finish().unwrap().passes, 2);
    assert_eq!(recorded(&dir), [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
    let resumed = RingStore::builder().resume(snapshots.path()).unwrap();
    let ResumePoint::GoesOn(at) = resumed.resume_point(Some("capture")) else { panic!("it ended") };
    assert_eq!((at.passes, at.value.as_deref()), (2, Some(&b"seven"[..])));
}

#[test]
fn without_room_a_pass_comes_back_at_once() {
    let dir = TempDir::new().unwrap();
    let recorder = builder().create(dir.path()).unwrap();
    let permits = [recorder.reserve_pass().wait().unwrap(), recorder.reserve_pass().wait().unwrap()];
    let refused = recorder.try_extend_pass(pass(9.0)).unwrap_err();
    assert!(refused.error.is_full() && refused.to_string().contains("two passes wait for the disk"), "{refused}");
    assert_eq!(refused.batches.iter().map(Batch::features).collect::<Vec<_>>(), [1, 2]);
    let mut gathered = recorder.begin_pass();
    pass(9.0).into_iter().for_each(|(name, batch)| gathered.put(name, batch).unwrap());
    assert!(gathered.try_commit().unwrap_err().error.is_full());
    // What is wrong with a pass, and the end of the recorder, come before the missing room.
    let refused = recorder.try_extend_pass([("a", a(3, 1.0))]).unwrap_err();
    assert!(matches!(refused.error, WriteError::PassLacks { .. }), "{refused}");
    drop(permits);
    recorder.try_extend_pass(pass(0.0)).unwrap().wait().unwrap();
    let permits = [recorder.reserve_pass().wait().unwrap(), recorder.reserve_pass().wait().unwrap()];
    recorder.finish().unwrap();
    assert!(recorder.try_extend_pass(pass(9.0)).unwrap_err().error.is_closed());
    drop(permits);
    assert_eq!(recorded(&dir), [0.0; 3]);
}

#[test]
fn a_tee_tries_both_and_gives_to_both_or_to_neither() {
    watchdog(|| {
        let dir = TempDir::new().unwrap();
        let store = ring().queue_rows(3).build().unwrap();
        let mut minibatches = store.minibatches();
        let tee = Tee::new(store.producer().unwrap(), builder().create(dir.path()).unwrap()).unwrap();
        let mut taken = 0;
        let refused = loop {
            match tee.try_extend_pass(pass(taken as f32)) {
                Ok(handle) => {
                    drop(handle);
                    taken += 1;
                }
                // The recorder's thread may not have taken the pass before.
                Err(refused) if refused.to_string().contains("the disk") => drop(tee.recorder().flush().unwrap()),
                Err(refused) => break refused,
            }
        };
        assert!(refused.error.is_full(), "{refused}");
        assert!(refused.to_string().contains("queue"), "{refused}");
        assert_eq!(refused.batches.len(), 2);

        // A caller that waits for the ring goes in once a consumer has taken rows.
        let waiting = thread::spawn(move || {
            tee.extend_pass_blocking(pass(taken as f32)).unwrap();
            let mut gathered = tee.begin_pass();
            pass(taken as f32 + 1.0).into_iter().for_each(|(name, batch)| gathered.put(name, batch).unwrap());
            gathered.commit_blocking().unwrap();
            tee.finish().unwrap()
        });
        drop(store);
        let mut served: Vec<f32> = Vec::new();
        for minibatch in minibatches.blocking() {
            served.extend(minibatch.unwrap().view::<f32>("a").unwrap().column(0));
        }
        let safe = waiting.join().unwrap();
        assert_eq!(safe.passes, taken + 2);
        served.sort_by(f32::total_cmp);
        assert_eq!(served, recorded(&dir));
    });
}

#[test]
fn a_ring_that_rejects_makes_no_caller_of_a_tee_wait() {
    watchdog(|| {
        let dir = TempDir::new().unwrap();
        let store = ring().queue_rows(3).when_full(WhenFull::Reject).build().unwrap();
        let _minibatches = store.minibatches();
        let tee = Tee::new(store.producer().unwrap(), builder().create(dir.path()).unwrap()).unwrap();
        let mut taken = 0;
        let refused = loop {
            match tee.extend_pass_blocking(pass(taken as f32)) {
                Ok(()) => taken += 1,
                Err(refused) => break refused,
            }
        };
        assert!(refused.error.is_full(), "{refused}");
        assert_eq!(tee.finish().unwrap().passes, taken);
    });
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn callers_get_room_in_line_and_one_that_gives_up_passes_it_on() {
    let dir = TempDir::new().unwrap();
    let recorder = builder().create(dir.path()).unwrap();
    let held = [recorder.reserve_pass().wait().unwrap(), recorder.reserve_pass().wait().unwrap()];
    let woken: [Arc<Woken>; 3] = Default::default();
    let wakers = woken.clone().map(Waker::from);
    fn poll<'a>(future: &mut RecorderReserve<'a>, waker: &Waker) -> Option<RecorderPermit<'a>> {
        match Pin::new(future).poll(&mut Context::from_waker(waker)) {
            Poll::Ready(permit) => Some(permit.unwrap()),
            Poll::Pending => None,
        }
    }
    let mut waiting = [recorder.reserve_pass(), recorder.reserve_pass(), recorder.reserve_pass()];
    for (number, future) in waiting.iter_mut().enumerate() {
        assert!(poll(future, &wakers[number]).is_none());
    }
    assert!(recorder.try_extend_pass(pass(9.0)).unwrap_err().error.is_full());
    let woken = |number: usize| woken[number].0.load(Ordering::SeqCst);
    let [first_held, second_held] = held;
    drop(first_held);
    assert_eq!([woken(0), woken(1), woken(2)], [1, 0, 0]);
    // The room is kept for the first caller, who gives up. It goes to the second.
    assert!(recorder.try_extend_pass(pass(9.0)).unwrap_err().error.is_full());
    let [first, mut second, mut third] = waiting;
    drop(first);
    assert_eq!([woken(1), woken(2)], [1, 0]);
    let of_second = poll(&mut second, &wakers[1]).unwrap();
    assert!(poll(&mut third, &wakers[2]).is_none());
    drop(second_held);
    let of_third = poll(&mut third, &wakers[2]).unwrap();
    assert!(recorder.try_extend_pass(pass(9.0)).unwrap_err().error.is_full());
    drop((of_second, of_third));
    drop(recorder.try_extend_pass(pass(9.0)).unwrap());
    assert_eq!(recorder.finish().unwrap().passes, 1);
}

#[test]
fn tasks_await_room_on_any_executor() {
    watchdog(|| {
        let dir = TempDir::new().unwrap();
        let recorder = Arc::new(builder().shard_rows(1000).create(dir.path()).unwrap());
        let record = |recorder: Arc<Recorder>| async move {
            for _ in 0..200 {
                drop(recorder.reserve_pass().await.unwrap().extend_pass(pass(1.0)).unwrap());
            }
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let tasks: Vec<_> = (0..3).map(|_| runtime.spawn(record(recorder.clone()))).collect();
        futures::executor::block_on(record(recorder.clone()));
        // Waits that block in a task of `tokio` end, too, although the task has used up its budget of polls.
        let blocking = recorder.clone();
        let blocked = runtime.spawn(async move {
            (0..500).for_each(|_| drop(blocking.reserve_pass().wait().unwrap().extend_pass(pass(1.0)).unwrap()));
        });
        for task in tasks.into_iter().chain([blocked]) {
            runtime.block_on(task).unwrap();
        }
        assert_eq!(recorder.finish().unwrap().passes, 4 * 200 + 500);
        assert_eq!(recorded(&dir).len(), 3 * 1300);
    });
}

#[test]
fn a_tee_reserves_in_both_and_gives_back_what_it_does_not_use() {
    watchdog(|| {
        let dir = TempDir::new().unwrap();
        let store = ring().queue_rows(6).merge(Merge::RoundRobin).build().unwrap();
        // The other lane has the turn and no rows, so this lane's rows stay in the queue.
        let (other, lane) = (store.producer().unwrap(), store.producer().unwrap());
        let tee = Tee::new(lane, builder().create(dir.path()).unwrap()).unwrap();
        drop(tee.extend_pass([("a", a(5, 1.0)), ("b", b(5, 1.0))]).unwrap());
        tee.recorder().flush().unwrap();
        let mut context = Context::from_waker(noop_waker_ref());
        {
            let mut waiting = pin!(tee.reserve_pass(3));
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            // It has its room in the recorder, and waits for the ring.
            let one = tee.recorder().reserve_pass().wait().unwrap();
            assert!(tee.recorder().reserve_pass().wait_timeout(Duration::ZERO).is_none());
            drop(one);
        }
        let both = [tee.recorder().reserve_pass().wait().unwrap(), tee.recorder().reserve_pass().wait().unwrap()];
        drop(both);

        let permit = tee.reserve_pass(1).wait().unwrap();
        assert_eq!(permit.rows(), 1);
        let refused = permit.extend_pass(pass(2.0)).unwrap_err();
        assert!(refused.error.is_full() && refused.batches.len() == 2, "{refused}");
        drop((tee.reserve_pass(1).wait().unwrap(), tee.recorder().reserve_pass().wait().unwrap()));
        let mut gathered = tee.begin_pass();
        gathered.put("a", a(1, 2.0)).unwrap();
        gathered.put("b", b(1, 2.0)).unwrap();
        drop(tee.reserve_pass(1).wait().unwrap().commit(gathered).unwrap());
        assert_eq!(tee.recorder().flush().unwrap().rows, 6);

        // A caller that waits hears that the store is closed.
        let mut waiting = pin!(tee.reserve_pass(3));
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        store.close();
        let Poll::Ready(Err(closed)) = waiting.as_mut().poll(&mut context) else { panic!("it waits") };
        assert_eq!(closed.closed_by(), Some(ClosedBy::Close));
        drop(other);
    });
}

#[test]
fn a_permit_takes_no_pass_of_another_recorder_or_tee() {
    let dir = TempDir::new().unwrap();
    let store = ring().build().unwrap();
    let tee = |lane| Tee::new(store.producer().unwrap(), builder().lane(lane).create(dir.path()).unwrap()).unwrap();
    let (first, second) = (tee("first"), tee("second"));
    let mut of_first = first.begin_pass();
    pass(1.0).into_iter().for_each(|(name, batch)| of_first.put(name, batch).unwrap());
    let refused = second.reserve_pass(3).wait().unwrap().commit(of_first).unwrap_err();
    assert!(matches!(refused.error, WriteError::Permit { .. }) && refused.batches.len() == 2, "{refused}");
    let mut of_first = first.recorder().begin_pass();
    pass(1.0).into_iter().for_each(|(name, batch)| of_first.put(name, batch).unwrap());
    let refused = second.recorder().reserve_pass().wait().unwrap().commit(of_first).unwrap_err();
    assert!(refused.to_string().contains("a pass of another recorder"), "{refused}");
    assert_eq!((first.finish().unwrap().rows, second.finish().unwrap().rows, store.len()), (0, 0, 0));
}

/// Panics when it is woken.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("woken");
    }
}

#[test]
fn a_waker_that_panics_is_the_error_of_the_recorder() {
    watchdog(|| {
        let dir = TempDir::new().unwrap();
        let recorder = builder().create(dir.path()).unwrap();
        let [first, second] = [recorder.reserve_pass().wait().unwrap(), recorder.reserve_pass().wait().unwrap()];
        let mut waiting = pin!(recorder.reserve_pass());
        let waker = Waker::from(Arc::new(Panics));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(first.extend_pass(pass(0.0)).unwrap());
        match recorder.flush().unwrap_err() {
            RecordingError::Write(error) => assert!(error.is_poisoned() && error.to_string().contains("woken")),
            other => panic!("{other}"),
        }
        drop(second);
        let refused = recorder.reserve_pass().wait().unwrap_err();
        assert!(refused.is_poisoned(), "{refused}");
    });
}

/// Calls the recorder when it is woken.
struct Calls(std::sync::Weak<Recorder>);

impl Wake for Calls {
    fn wake(self: Arc<Self>) {
        if let Some(recorder) = self.0.upgrade() {
            let _ = recorder.is_closed();
        }
    }
}

/// Room that is given back wakes the caller that waits, on every way and never under the mutex.
#[test]
fn a_waker_may_call_the_recorder_that_wakes_it() {
    watchdog(|| {
        let dir = TempDir::new().unwrap();
        let recorder = Arc::new(builder().create(dir.path()).unwrap());
        let waker = Waker::from(Arc::new(Calls(Arc::downgrade(&recorder))));
        let refuse = |_| Err(RefusedPass::new(ClosedBy::Lane.into(), Vec::new()));
        let ways: [&dyn Fn(RecorderPermit<'_>); 4] = [
            &|permit| drop(permit),
            &|permit| drop(permit.extend_pass(pass(0.0)).unwrap().wait()),
            &|permit| drop(permit.extend_pass([("a", a(1, 1.0))]).unwrap_err()),
            &|permit| drop(permit.extend_pass_with(pass(1.0), refuse).unwrap_err()),
        ];
        for way in ways {
            let [permit, _other] = [recorder.reserve_pass().wait().unwrap(), recorder.reserve_pass().wait().unwrap()];
            let mut waiting = pin!(recorder.reserve_pass());
            assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            way(permit);
            assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
        }
        recorder.finish().unwrap();
    });
}
