//! Callers that wait for room get into the queue one after the other. No caller takes more room than is free.
#![allow(clippy::unwrap_used)]

mod common;

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use activation_store::{Batch, ClosedBy, Merge, Permit, Producer, Reserve, RingStore, RingStoreBuilder, WriteError};
use common::{LIMIT, Lent, assert_adds_up, assert_exactly, drain, finish, rows, watchdog};

fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", 2).batch_size(10).window(40).ready_frames(2).queue_rows(20)
}

/// A lane whose rows stay in the queue, because it is the turn of another lane, which has no rows.
struct Held {
    store: RingStore,
    /// Ends the other lane when dropped. Then the rows go on.
    other: Producer,
    lane: Producer,
}

fn held(builder: RingStoreBuilder) -> Held {
    let store = builder.merge(Merge::RoundRobin).build().unwrap();
    let (other, lane) = (store.producer().unwrap(), store.producer().unwrap());
    Held { store, other, lane }
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A caller in line.
struct Waiting {
    reserve: Reserve,
    woken: Arc<Woken>,
}

impl Waiting {
    fn new(reserve: Reserve) -> Self {
        Waiting { reserve, woken: Arc::default() }
    }

    fn poll(&mut self) -> Poll<Result<Permit, WriteError>> {
        Pin::new(&mut self.reserve).poll(&mut Context::from_waker(&Waker::from(self.woken.clone())))
    }

    /// Returns the permit if there is room now.
    fn permit(&mut self) -> Option<Permit> {
        match self.poll() {
            Poll::Ready(permit) => Some(permit.unwrap()),
            Poll::Pending => None,
        }
    }

    fn times_woken(&self) -> usize {
        self.woken.0.load(Ordering::SeqCst)
    }
}

/// Puts a caller in line for `rows` rows of the first component.
fn wait_for(lane: &Producer, rows: usize) -> Waiting {
    let mut waiting = Waiting::new(lane.reserve(0, rows).unwrap());
    assert!(waiting.permit().is_none(), "there is room for {rows}");
    waiting
}

#[test]
fn callers_that_wait_never_fill_the_queue_by_more_than_one_batch() {
    const THREADS: usize = 16;
    for lanes in [1, THREADS] {
        watchdog(move || {
            let store = RingStore::builder().component("a", 2).batch_size(100).window(400).queue_rows(20);
            let store = store.build().unwrap();
            let mut minibatches = store.minibatches();
            let lanes: Vec<_> = (0..lanes).map(|_| Arc::new(store.producer().unwrap())).collect();
            let (monitor, done) = (store.monitor(), AtomicBool::new(false));
            drop(store);
            thread::scope(|scope| {
                let sampling = scope.spawn(|| {
                    let mut most = 0;
                    while !done.load(Ordering::SeqCst) {
                        let queued = monitor.stats().components[0].queued;
                        assert!(queued <= 1000, "{queued} rows are queued");
                        most = most.max(queued);
                    }
                    most
                });
                for thread in 0..THREADS {
                    let lane = lanes[thread % lanes.len()].clone();
                    scope.spawn(move || {
                        for at in (thread * 10_000..thread * 10_000 + 10_000).step_by(1000) {
                            lane.extend_blocking(rows(at..at + 1000, 2), "a").unwrap();
                        }
                    });
                }
                drop(lanes);
                let served = drain(&mut minibatches);
                done.store(true, Ordering::SeqCst);
                assert!(sampling.join().unwrap() > 0);
                assert_exactly(0..THREADS * 10_000, &served);
            });
        });
    }
}

#[test]
fn callers_are_served_in_the_order_in_which_they_came() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let lane = store.producer().unwrap();
        drop(lane.extend(rows(0..200, 2), 0).unwrap());
        let mut line: Vec<_> = (0..30).map(|i| (i, wait_for(&lane, 1 + i % 7))).collect();
        let mut order = Vec::new();
        let mut at = 200;
        let mut served = Vec::new();
        while !line.is_empty() {
            served.extend(minibatches.next_timeout(Duration::from_millis(1)).ok().flatten());
            // The last caller is polled first. So a caller that could overtake the others would do so.
            for waiting in (0..line.len()).rev() {
                if let Some(mut permit) = line[waiting].1.permit() {
                    order.push(line.remove(waiting).0);
                    let n = permit.rows();
                    drop(permit.extend(rows(at..at + n, 2)).unwrap());
                    at += n;
                }
            }
        }
        assert_eq!(order, (0..30).collect::<Vec<_>>());
        let mut served: Vec<_> = served.iter().map(|minibatch| common::ids(minibatch, 0)).collect();
        drop(lane);
        store.close();
        served.extend(drain(&mut minibatches));
        assert_exactly(0..at, &served);
    });
}

#[test]
fn small_batches_do_not_overtake_a_large_one_that_waits() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let lane = store.producer().unwrap();
        let permit = lane.reserve(0, 5).unwrap().wait().unwrap();
        let mut large = wait_for(&lane, 50);
        let mut small: Vec<_> = (0..5).map(|_| wait_for(&lane, 1)).collect();
        assert!(small.iter_mut().all(|small| small.permit().is_none()), "there is room, but it is not their turn");
        // Only the first caller is woken.
        drop(permit);
        assert_eq!(large.times_woken(), 1);
        assert_eq!(small.iter().map(Waiting::times_woken).sum::<usize>(), 0);
        assert!(small.iter_mut().all(|small| small.permit().is_none()), "it is not their turn");
        let mut permit = large.permit().unwrap();
        drop(permit.extend(rows(0..50, 2)).unwrap());
        drop(small);
        assert_exactly(0..50, &finish(&store));
    });
}

/// Threads with small batches keep on coming.
#[test]
fn a_large_batch_gets_in_while_small_ones_keep_coming() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let done = Arc::new(AtomicBool::new(false));
        for _ in 0..4 {
            let (store, done) = (store.clone(), done.clone());
            thread::spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    store.extend_blocking(rows(0..1, 2), 0).unwrap();
                }
            });
        }
        let large = thread::spawn(move || {
            (0..10).for_each(|_| store.extend_blocking(rows(0..100, 2), 0).unwrap());
            done.store(true, Ordering::SeqCst);
        });
        drain(&mut minibatches);
        large.join().unwrap();
    });
}

#[test]
fn a_caller_that_gives_up_leaves_its_place_to_the_next() {
    watchdog(|| {
        for times_out in [false, true] {
            let Held { store, other, lane } = held(builder());
            drop(lane.extend(rows(0..15, 2), 0).unwrap());
            let mut first = wait_for(&lane, 10);
            let (mut second, third) = (wait_for(&lane, 5), wait_for(&lane, 5));
            if times_out {
                // The caller keeps its place, because it may wait again.
                assert!(first.reserve.wait_timeout(Duration::ZERO).is_none());
                assert!(second.permit().is_none());
            }
            drop(first);
            assert_eq!((second.times_woken(), third.times_woken()), (1, 0));
            let mut permit = second.permit().unwrap();
            drop(permit.extend(rows(15..20, 2)).unwrap());
            assert_eq!(third.times_woken(), 0);
            drop((other, third));
            assert_exactly(0..20, &finish(&store));
        }
    });
}

#[test]
fn a_caller_that_gives_up_once_it_is_woken_wakes_the_next() {
    watchdog(|| {
        let Held { store, lane, other } = held(builder());
        drop(lane.extend(rows(0..15, 2), 0).unwrap());
        let permit = lane.reserve(0, 5).unwrap().wait().unwrap();
        let (first, mut second) = (wait_for(&lane, 5), wait_for(&lane, 5));
        drop(permit);
        assert_eq!((first.times_woken(), second.times_woken()), (1, 0));
        drop(first);
        assert_eq!(second.times_woken(), 1);
        assert_eq!(second.permit().unwrap().rows(), 5);
        drop(other);
        assert_exactly(0..15, &finish(&store));
    });
}

#[test]
fn a_permit_is_used_in_pieces_and_gives_back_what_is_left() {
    watchdog(|| {
        let Held { store, other, lane } = held(builder());
        let mut permit = lane.reserve("a", 15).unwrap().wait().unwrap();
        assert_eq!(permit.rows(), 15);
        // The permit holds this room.
        let refused = lane.try_extend(rows(0..6, 2), 0).unwrap_err();
        let WriteError::Full(full) = refused.error else { panic!("{refused}") };
        let no_room = full.no_room.unwrap();
        assert_eq!((no_room.rows, no_room.held, no_room.bound), (6, 15, 20));
        drop(permit.extend(rows(0..4, 2)).unwrap());
        drop(permit.extend(rows(4..4, 2)).unwrap());
        drop(permit.extend(rows(4..9, 2)).unwrap());
        assert_eq!(permit.rows(), 6);
        // A batch that is wrong, or larger than the room that is left, comes back. Nothing changes.
        let refused = permit.extend(rows(9..16, 2)).unwrap_err();
        assert!(refused.error.is_full(), "{refused}");
        assert_eq!(refused.into_batch().to_f32(), rows(9..16, 2));
        assert!(matches!(permit.extend(rows(9..10, 3)).unwrap_err().error, WriteError::Features { .. }));
        assert_eq!(permit.rows(), 6);
        // Eleven rows are free, but not twelve.
        let mut waiting = wait_for(&lane, 11);
        assert!(lane.try_extend(rows(0..6, 2), 0).unwrap_err().error.is_full());
        drop(permit);
        assert_eq!(waiting.times_woken(), 1);
        let mut permit = waiting.permit().unwrap();
        assert!(lane.try_extend(rows(0..1, 2), 0).unwrap_err().error.is_full());
        let handle = permit.extend(rows(9..20, 2)).unwrap();
        assert_eq!(permit.rows(), 0);
        drop((permit, other));
        assert_eq!(handle.wait().unwrap().first_row, 9);
        assert_exactly(0..20, &finish(&store));
    });
}

#[test]
fn a_permit_for_a_pass_is_used_once_and_gives_back_what_is_left() {
    watchdog(|| {
        let Held { store, other, lane } = held(builder().component("b", 1));
        let pass = |ids: std::ops::Range<usize>| [("b", rows(ids.clone(), 1)), ("a", rows(ids, 2))];
        let permit = lane.reserve_pass(20).wait().unwrap();
        assert!(lane.try_extend_pass(pass(0..1)).unwrap_err().error.is_full());
        let refused = permit.extend_pass(pass(0..21)).unwrap_err();
        assert!(refused.error.is_full(), "{refused}");
        assert_eq!(refused.batches[1].to_f32(), rows(0..21, 2));
        // When the permit is gone, its room is free again.
        let permit = lane.reserve_pass(20).wait().unwrap();
        drop(permit.extend_pass(pass(0..12)).unwrap());
        let mut waiting = Waiting::new(lane.reserve_pass(9));
        assert!(waiting.permit().is_none());
        drop(lane.try_extend_pass(pass(12..20)).unwrap());
        // The permit is for a pass, not for one component.
        let mut permit = lane.reserve_pass(0);
        assert!(Pin::new(&mut permit).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop((waiting, other));
        let mut permit = permit.wait().unwrap();
        assert!(matches!(permit.extend(rows(0..1, 2)).unwrap_err().error, WriteError::Permit { .. }));
        drop(permit);
        assert_exactly(0..20, &finish(&store));
    });
}

#[test]
fn a_permit_may_outlive_its_lane_and_its_store() {
    for merge in [Merge::Arrival, Merge::RoundRobin] {
        watchdog(move || {
            let store = builder().merge(merge).build().unwrap();
            let minibatches = store.minibatches();
            let lane = store.producer().unwrap();
            let other = store.producer().unwrap();
            let mut permits: Vec<_> = (0..4).map(|_| lane.reserve(0, 5).unwrap().wait().unwrap()).collect();
            drop(permits.pop());
            lane.close();
            // Lets the writer forget the lane.
            store.flush().wait().unwrap();
            let closed = |permit: &mut Permit, by| {
                let refused = permit.extend(rows(0..5, 2)).unwrap_err();
                assert_eq!(refused.error.closed_by(), Some(by));
                assert_eq!(refused.into_batch().to_f32(), rows(0..5, 2));
                assert_eq!(permit.rows(), 5);
            };
            closed(&mut permits[0], ClosedBy::Lane);
            drop(permits.pop());
            drop(lane);
            closed(&mut permits[0], ClosedBy::Lane);
            drop(permits.pop());
            closed(&mut permits[0], ClosedBy::Lane);
            drop(permits);
            // All the room is free again.
            drop(other.try_extend(rows(0..20, 2), 0).unwrap());
            store.flush().wait().unwrap();
            let mut permits: Vec<_> = (0..3).map(|_| other.reserve(0, 5).unwrap().wait().unwrap()).collect();
            store.close();
            closed(&mut permits[0], ClosedBy::Close);
            store.abort();
            closed(&mut permits[1], ClosedBy::Abort);
            drop(permits.pop());
            assert_eq!(store.stats().components[0].queued, 0);
            assert_adds_up(&store.stats());
            drop((other, store, minibatches));
            closed(&mut permits[0], ClosedBy::Abort);
        });
    }
}

#[test]
fn try_extend_does_not_cost_a_waiting_caller_its_place() {
    watchdog(|| {
        let Held { store, other, lane } = held(builder());
        drop(lane.extend(rows(0..15, 2), 0).unwrap());
        let mut waiting = wait_for(&lane, 10);
        // The call returns at once, whether it is refused or not, and the bound holds.
        let mut at = 15;
        for _ in 0..10 {
            at += lane.try_extend(rows(at..at + 2, 2), 0).map_or(0, |_| 2);
            assert!(store.stats().components[0].queued <= 20);
        }
        let mut second = wait_for(&lane, 1);
        drop(other);
        store.flush().wait().unwrap();
        assert!(second.permit().is_none());
        drop(waiting.permit().unwrap().extend(rows(at..at + 10, 2)).unwrap());
        drop(second);
        assert_exactly(0..at + 10, &finish(&store));
    });
}

/// If such rows were refused or waited, the rows that were taken would have no counterparts.
#[test]
fn rows_whose_counterparts_were_taken_never_wait() {
    watchdog(|| {
        for full in [false, true] {
            let Held { store, other, lane } = held(builder().component("b", 1).component("c", 1).max_skew(100));
            drop(lane.extend(rows(0..20, 2), "a").unwrap());
            if full {
                drop(lane.extend(rows(0..20, 1), "b").unwrap());
                drop(lane.extend(rows(0..20, 1), "c").unwrap());
                drop(lane.extend(rows(20..50, 2), "a").unwrap());
            }
            let mut line = Waiting::new(lane.reserve(0, 1).unwrap());
            let permit = line.permit();
            // If nothing but rows of "a" is there, the writer may have set them aside by now, so that there is room.
            assert!(permit.is_none() || !full, "there is room");
            // The rows are written in three ways, while a caller is in line and the queue is full.
            let at = if full { 20 } else { 0 };
            lane.extend_blocking(rows(at..at + 4, 1), "b").unwrap();
            drop(lane.try_extend(rows(at + 4..at + 8, 1), "b").unwrap());
            drop(lane.reserve("b", 4).unwrap().wait().unwrap().extend(rows(at + 8..at + 12, 1)).unwrap());
            lane.extend_blocking(rows(at..at + 12, 1), "c").unwrap();
            drop((line, permit, other));
            store.close();
            let mut minibatches = store.minibatches();
            let mut served = Vec::new();
            for minibatch in minibatches.blocking() {
                let minibatch = minibatch.unwrap();
                let ids = common::ids(&minibatch, 0);
                assert!((1..3).all(|component| ids == common::ids(&minibatch, component)), "misaligned");
                served.push(ids);
            }
            assert_exactly(0..at + 12, &served);
        }
    });
}

/// Memory that makes its reader wait.
struct Gate(Vec<f32>, std::sync::Mutex<Option<mpsc::Receiver<()>>>);

impl AsRef<[f32]> for Gate {
    fn as_ref(&self) -> &[f32] {
        if thread::current().name() == Some("activation-store")
            && let Some(gate) = self.1.lock().unwrap().take()
        {
            let _ = gate.recv_timeout(LIMIT);
        }
        &self.0
    }
}

#[test]
fn batches_without_rows_are_answered_at_once_and_do_not_pile_up() {
    watchdog(|| {
        let store = builder().build().unwrap();
        // The writer is held up, and the queue is full.
        let (open, gate) = mpsc::channel();
        let owner = Gate(vec![0.0; 20], std::sync::Mutex::new(Some(gate)));
        drop(store.extend(Batch::from_owner(owner, 2).unwrap(), 0).unwrap());
        drop(store.extend(rows(10..100, 2), 0).unwrap());
        let returned = Arc::new(AtomicUsize::new(0));
        let none = || Batch::from_owner(Lent { values: Vec::new(), returned: returned.clone() }, 2).unwrap();
        for round in 0..1000 {
            let handle = match round % 3 {
                0 => store.extend(none(), 0).unwrap(),
                1 => store.try_extend(none(), 0).unwrap(),
                _ => store.extend_pass([(0, none())]).unwrap(),
            };
            assert!(handle.is_done());
            let written = handle.wait().unwrap();
            assert_eq!((written.rows, written.first_row), (0, 100));
            store.extend_blocking(none(), 0).unwrap();
            assert_eq!(returned.load(Ordering::SeqCst), 2 * round + 2, "the memory is back at once");
        }
        open.send(()).unwrap();
        let served: usize = finish(&store).iter().map(Vec::len).sum();
        assert_eq!(served, 100);
    });
}

/// A caller may ask for more rows than there are numbers. The counts stay right.
#[test]
fn any_number_of_rows_may_be_asked_for() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let lane = store.producer().unwrap();
        // Nothing is queued, so there is room.
        let permit = lane.reserve(0, usize::MAX).unwrap().wait().unwrap();
        assert!(lane.try_extend(rows(0..1, 2), 0).unwrap_err().error.is_full());
        drop(lane.extend(rows(0..5, 2), 0).unwrap());
        assert!(lane.try_extend(rows(5..6, 2), 0).unwrap_err().error.is_full());
        let mut waiting = wait_for(&lane, usize::MAX);
        drop(permit);
        store.flush().wait().unwrap();
        assert_eq!(waiting.permit().unwrap().rows(), usize::MAX);
        assert_exactly(0..5, &finish(&store));
    });
}

/// A bound that means "none" does not overflow.
#[test]
fn a_queue_without_a_bound_takes_reservations_of_any_number() {
    watchdog(|| {
        for most in [usize::MAX, usize::MAX - 1, isize::MAX as usize, isize::MAX as usize + 1] {
            let builder = RingStore::builder().component("a", 2).component("b", 1).batch_size(10).window(40);
            let builder = builder.queue_rows(most).max_skew(most);
            assert!(builder.plan().is_ok());
            let store = builder.build().unwrap();
            let lanes = [store.producer().unwrap(), store.producer().unwrap()];
            let permit = lanes[0].reserve(0, most).unwrap().wait().unwrap();
            let mut others = [usize::MAX, isize::MAX as usize].map(|rows| lanes[1].reserve(0, rows).unwrap());
            assert!(others.iter_mut().all(|other| other.wait_timeout(Duration::ZERO).is_none()));
            // Counterparts need no room.
            drop(lanes[1].extend(rows(0..5, 1), 1).unwrap());
            let mut counterparts = lanes[1].reserve(0, 5).unwrap();
            let early = counterparts.wait_timeout(Duration::ZERO);
            assert_eq!(early.is_some(), most < usize::MAX - 4, "{most}");
            drop((permit, others));
            let mut permit = early.unwrap_or_else(|| counterparts.wait()).unwrap();
            drop(permit.extend(rows(0..5, 2)).unwrap());
            drop(lanes);
            store.flush().wait().unwrap();
            assert_exactly(0..5, &finish(&store));
        }
    });
}

#[test]
fn a_permit_that_is_too_small_says_what_it_has_left() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut permit = store.reserve("a", 3).unwrap().wait().unwrap();
        drop(permit.extend(rows(0..2, 2)).unwrap());
        for left in [1, 0] {
            let refused = permit.extend(rows(2..7, 2)).unwrap_err();
            let expected =
                format!("5 rows of component 0 (\"a\") do not fit the permit, which has {left} rows left of 3");
            assert!(refused.to_string().starts_with(&expected), "{refused}");
            let WriteError::Full(full) = refused.error else { panic!("{}", refused.error) };
            assert_eq!(full.no_room.unwrap().bound, left);
            drop(permit.extend(rows(2..2 + left, 2)).unwrap());
        }
        assert_exactly(0..3, &finish(&store));
    });
}
