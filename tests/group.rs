//! The producers of a group end the stream when all have returned, or when one fails.
#![allow(clippy::unwrap_used)]

mod common;

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use activation_store::{
    Minibatches, ProducerError, ReadError, RefusedPass, RingStore, RingStoreBuilder, SpawnError, WriteError,
};
use common::{LIMIT, assert_adds_up, assert_exactly, drain, ids, rows, watchdog};
use futures::executor::block_on;

type Boxed = Box<dyn Error + Send + Sync>;

fn builder() -> RingStoreBuilder {
    RingStore::builder().component("a", 2).component("b", 1).batch_size(10).window(40).queue_rows(20)
}

fn pass(at: usize, n: usize) -> [(&'static str, ndarray::Array2<f32>); 2] {
    [("b", rows(at..at + n, 1)), ("a", rows(at..at + n, 2))]
}

/// Returns the rows that are served before an error, and the error.
fn drain_to_error(minibatches: &mut Minibatches) -> (Vec<Vec<usize>>, ReadError) {
    let mut served = Vec::new();
    loop {
        match minibatches.next_timeout(LIMIT) {
            Ok(Some(minibatch)) => served.push(ids(&minibatch, 0)),
            Ok(None) => panic!("the stream ended without an error"),
            Err(error) => return (served, error),
        }
    }
}

/// The producer's error, which a consumer got.
fn failed(error: &ReadError) -> &ProducerError {
    let ReadError::Failed(failed) = error else { panic!("{error}") };
    failed.downcast_ref().unwrap()
}

#[test]
fn the_stream_ends_when_all_have_returned_although_clones_of_the_store_live() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let group = store.producers();
        let handles: Vec<_> = (0..4_usize)
            .map(|replica| {
                let produce = move |lane: activation_store::Producer| {
                    (replica * 100..replica * 100 + 100)
                        .step_by(5)
                        .try_for_each(|at| lane.extend_pass_blocking(pass(at, 5)))
                };
                group.spawn(format!("replica {replica}"), produce).unwrap()
            })
            .collect();
        group.close();
        assert_exactly(0..400, &drain(&mut minibatches));
        handles.into_iter().for_each(|handle| handle.join().unwrap());
        assert!(store.is_closed());
    });
}

#[test]
fn the_stream_goes_on_while_the_group_is_open() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let group = store.producers();
        group.spawn("first", |lane| lane.extend_pass_blocking(pass(0, 30))).unwrap().join().unwrap();
        assert!(!store.is_closed());
        group.spawn("second", |lane| lane.extend_pass_blocking(pass(30, 30))).unwrap().join().unwrap();
        drop(group);
        assert_exactly(0..60, &drain(&mut minibatches));
    });
}

#[derive(Debug)]
struct Failure(Boxed);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the replica failed")
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// Hides the type of an error, as some error libraries do, and shows its sources.
#[derive(Debug)]
struct Opaque(Boxed);

impl fmt::Display for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Opaque {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

#[test]
fn an_error_reaches_every_consumer_once_after_the_rows_and_the_join_handle() {
    watchdog(|| {
        for panics in [false, true] {
            let store = builder().drop_last(true).build().unwrap();
            let mut consumers = [store.minibatches(), store.minibatches()];
            let handle = store.spawn_producer("replica 7", move |lane| {
                drop(lane.extend_pass(pass(0, 25))?);
                assert!(!panics, "the model is broken");
                Err::<(), Boxed>(Failure("out of memory".into()).into())
            });
            let (served, error) = drain_to_error(&mut consumers[0]);
            assert_eq!(served.iter().map(Vec::len).collect::<Vec<_>>(), [10, 10]);
            let joined = handle.unwrap().join().unwrap_err();
            assert_eq!(joined.name, "replica 7");
            assert_eq!(error.to_string(), joined.to_string());
            if panics {
                assert!(error.to_string().contains("it panicked: the model is broken"), "{error}");
            } else {
                assert!(failed(&error).error.is::<Failure>());
                assert_eq!(error.to_string(), "producer \"replica 7\" failed: the replica failed");
                assert_eq!(error.source().unwrap().to_string(), "out of memory");
            }
            assert!(consumers[0].next_timeout(LIMIT).unwrap().is_none(), "once");
            let (served, error) = drain_to_error(&mut consumers[1]);
            assert!(served.is_empty() && matches!(error, ReadError::Failed(_)));
            assert_adds_up(&store.stats());
        }
    });
}

/// `Closed` may lie at any depth in the chain of sources.
#[test]
fn the_other_producers_get_closed_and_end_without_an_error() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let group = store.producers();
        let fail = Arc::new(AtomicUsize::new(0));
        let endless = |wrap: fn(RefusedPass) -> Boxed| {
            let fail = fail.clone();
            move |lane: activation_store::Producer| -> Result<(), Boxed> {
                loop {
                    lane.extend_pass_blocking(pass(0, 5)).map_err(wrap)?;
                    fail.fetch_add(1, Ordering::SeqCst);
                }
            }
        };
        let others = [
            group.spawn("plain", endless(|refused| refused.into())).unwrap(),
            group.spawn("as a write error", endless(|refused| WriteError::from(refused).into())).unwrap(),
            group.spawn("hidden", endless(|refused| Opaque(refused.into()).into())).unwrap(),
            group.spawn("deep", endless(|refused| Failure(Failure(refused.into()).into()).into())).unwrap(),
        ];
        let failing = {
            let fail = fail.clone();
            let fails = move |_lane| {
                while fail.load(Ordering::SeqCst) < 20 {
                    thread::yield_now();
                }
                Err::<(), _>("broken")
            };
            group.spawn("fails", fails).unwrap()
        };
        group.close();
        let (_, error) = drain_to_error(&mut minibatches);
        assert_eq!(error.to_string(), "producer \"fails\" failed: broken");
        assert!(failing.join().is_err());
        for other in others {
            other.join().unwrap();
        }
    });
}

#[test]
fn the_others_go_on_without_a_failed_producer_only_if_asked_to() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let group = store.producers().go_on_without_failed();
        let failed = group.spawn("fails", |_lane| Err::<(), _>("broken")).unwrap();
        assert!(failed.join().is_err());
        group.spawn("works", |lane| lane.extend_pass_blocking(pass(0, 35))).unwrap().join().unwrap();
        group.close();
        assert_exactly(0..35, &drain(&mut minibatches));
    });
}

#[test]
fn tasks_are_supervised_as_threads_are() {
    watchdog(|| {
        for fails in [false, true] {
            let store = builder().build().unwrap();
            let mut minibatches = store.minibatches();
            let group = store.producers();
            let capture = group
                .task("task", |lane| async move {
                    for at in (0..100).step_by(5) {
                        lane.extend_pass(pass(at, 5))?.await?;
                    }
                    if fails { Err::<(), Boxed>("broken".into()) } else { Ok(()) }
                })
                .unwrap();
            group.close();
            let train = async {
                let mut served = Vec::new();
                while let Some(minibatch) = minibatches.try_next().await? {
                    served.push(ids(&minibatch, 0));
                }
                assert_exactly(0..100, &served);
                Ok::<(), ReadError>(())
            };
            let (captured, trained) = block_on(async { futures::join!(capture, train) });
            assert_eq!((captured.is_err(), trained.is_err()), (fails, fails));
        }
    });
}

/// Another store, or a recorder, that a producer writes to as well may have ended. The stream must not end as if all were well.
#[test]
fn only_the_end_of_its_own_store_ends_a_producer_without_an_error() {
    /// Writes to something that has ended, and returns its error.
    type Write = Box<dyn Fn() -> Boxed + Send>;
    watchdog(|| {
        let other = |end: fn(&RingStore, Minibatches)| -> Write {
            let store = builder().build().unwrap();
            end(&store, store.minibatches());
            Box::new(move || store.extend_pass_blocking(pass(0, 5)).unwrap_err().into())
        };
        let of_lane: Write = {
            let store = builder().build().unwrap();
            let lane = store.producer().unwrap();
            lane.close();
            Box::new(move || lane.extend_pass_blocking(pass(0, 5)).unwrap_err().into())
        };
        let dir = std::env::temp_dir().join(format!("group-recorder-{}", std::process::id()));
        let of_recorder: Write = {
            let recorder = activation_store::Recorder::builder().component("a", 2).component("b", 1);
            let recorder = recorder.create(&dir).unwrap();
            let half = recorder.extend(rows(0..5, 2), "a").unwrap();
            drop(recorder);
            let lost = half.wait().unwrap_err();
            Box::new(move || lost.clone().into())
        };
        let ended: Vec<(&str, Write)> = vec![
            ("closed", other(|store, _| store.close())),
            ("aborted", other(|store, _| store.abort())),
            ("without a consumer", other(|_, minibatches| drop(minibatches))),
            ("lane", of_lane),
            ("recorder", of_recorder),
        ];
        for (name, write) in ended {
            for wrap in [(|error| error) as fn(Boxed) -> Boxed, |error| Opaque(Failure(error).into()).into()] {
                let error = wrap(write());
                let text = error.to_string();
                let store = builder().build().unwrap();
                let mut minibatches = store.minibatches();
                let producer = store.spawn_producer("eval", move |lane| {
                    lane.extend_pass_blocking(pass(0, 20))?;
                    Err::<(), Boxed>(error)
                });
                let (served, error) = drain_to_error(&mut minibatches);
                assert_exactly(0..20, &served);
                assert_eq!(failed(&error).error.to_string(), text, "{name}");
                assert!(producer.unwrap().join().is_err(), "{name}");
            }
        }
        std::fs::remove_dir_all(dir).unwrap();
    });
}

/// An error that a producer returns counts, even if the producer has dropped the last handle that keeps the store open.
#[test]
fn a_producer_that_drops_its_lane_can_still_fail() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let (monitor, mut minibatches) = (store.monitor(), store.minibatches());
        let (go_on, told) = mpsc::channel::<()>();
        let producer = store.spawn_producer("late", move |lane| {
            told.recv().unwrap();
            drop(lane);
            Err::<(), Boxed>(if monitor.is_closed() { "too late" } else { "broken" }.into())
        });
        drop(store);
        go_on.send(()).unwrap();
        let (_, error) = drain_to_error(&mut minibatches);
        assert_eq!(error.to_string(), "producer \"late\" failed: broken");
        assert!(producer.unwrap().join().is_err());
    });
}

/// Aborts a task that has written ten rows, in one of several ways.
fn abort_task(abort: usize, group: activation_store::ProducerGroup) {
    let (written, waits) = mpsc::channel();
    let task = group
        .task("task", move |lane| async move {
            lane.extend_pass(pass(0, 10))?.await?;
            written.send(()).unwrap();
            std::future::pending::<Result<(), Boxed>>().await
        })
        .unwrap();
    drop(group);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    if abort == 0 {
        return drop(task);
    }
    let task = runtime.spawn(task);
    waits.recv().unwrap();
    if abort == 1 {
        task.abort();
    }
    // The task is gone once this returns.
    drop(runtime);
}

#[test]
fn an_aborted_task_has_failed_unless_the_caller_says_otherwise() {
    watchdog(|| {
        for abort in 0..3 {
            for counts_as_finished in [false, true] {
                let store = builder().build().unwrap();
                let mut minibatches = store.minibatches();
                let group = store.producers();
                // The task has the last handle that keeps the store open.
                drop(store);
                let group = if counts_as_finished { group.count_aborted_as_finished() } else { group };
                abort_task(abort, group);
                let rows = if abort == 0 { 0..0 } else { 0..10 };
                if counts_as_finished {
                    assert_exactly(rows, &drain(&mut minibatches));
                } else {
                    let (served, error) = drain_to_error(&mut minibatches);
                    assert_exactly(rows, &served);
                    let expected = "producer \"task\" failed: its task was aborted, or dropped, before it had finished";
                    assert_eq!(error.to_string(), expected);
                }
            }
        }
    });
}

#[test]
fn an_abort_after_the_end_of_the_store_is_no_error() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let task = store.producers().task("task", |_lane| std::future::pending::<Result<(), Boxed>>()).unwrap();
        minibatches.close();
        drop(task);
        assert!(minibatches.next_timeout(LIMIT).unwrap().is_none());
    });
}

#[test]
fn an_aborted_task_is_left_out_if_the_others_go_on() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let group = store.producers().go_on_without_failed();
        drop(group.task("aborted", |_lane| std::future::pending::<Result<(), Boxed>>()).unwrap());
        group.spawn("works", |lane| lane.extend_pass_blocking(pass(0, 35))).unwrap().join().unwrap();
        group.close();
        assert_exactly(0..35, &drain(&mut minibatches));
    });
}

/// Tests slow and fast trainers and captures. The loop ends in every way.
#[test]
fn a_scope_never_outlives_its_loop() {
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Leave {
        AtTheEnd,
        Break,
        Error,
        Panic,
    }
    for leave in [Leave::AtTheEnd, Leave::Break, Leave::Error, Leave::Panic] {
        for (steps, passes) in [(0, 3), (0, 1000), (3, 1000)] {
            watchdog(move || {
                let store = builder().build().unwrap();
                let texts: Vec<usize> = (0..passes).collect();
                let run = || {
                    store.scope(
                        |producers| {
                            for replica in 0..2 {
                                producers.spawn(format!("replica {replica}"), |lane| {
                                    texts.iter().try_for_each(|_| lane.extend_pass_blocking(pass(0, 5)))
                                })?;
                            }
                            Ok(())
                        },
                        |mut minibatches| {
                            for (step, minibatch) in minibatches.blocking().enumerate() {
                                minibatch?;
                                if step < steps {
                                    continue;
                                }
                                match leave {
                                    Leave::AtTheEnd => {}
                                    Leave::Break => break,
                                    Leave::Error => return Err("enough".into()),
                                    Leave::Panic => panic!("the trainer is broken"),
                                }
                            }
                            Ok::<_, Boxed>(())
                        },
                    )
                };
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                match leave {
                    Leave::AtTheEnd | Leave::Break => outcome.unwrap().unwrap(),
                    Leave::Error => assert_eq!(outcome.unwrap().unwrap_err().to_string(), "enough"),
                    Leave::Panic => assert!(outcome.is_err()),
                }
                assert_adds_up(&store.stats());
            });
        }
    }
}

#[test]
fn a_closed_store_starts_no_producer() {
    watchdog(|| {
        let store = builder().build().unwrap();
        store.close();
        let (sender, receiver) = mpsc::channel::<()>();
        let refused = store.spawn_producer("late", move |_lane| sender.send(()).map_err(|_| "not received"));
        assert!(matches!(refused.unwrap_err(), SpawnError::Store(WriteError::Closed(_))));
        assert!(receiver.recv().is_err(), "it never ran");
    });
}

/// Lanes take turns in the order of the calls. The order in which the threads run does not matter.
#[test]
fn a_producer_that_cannot_be_started_ends_no_stream() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let (go_on, told) = mpsc::channel::<()>();
        let running = store.spawn_producer("a name\0", move |lane| {
            told.recv().unwrap();
            lane.extend_pass_blocking(pass(0, 10))
        });
        let refused = store.spawn_producer("a name\0", |_| Ok::<(), RefusedPass>(())).unwrap_err();
        assert!(matches!(&refused, SpawnError::Store(WriteError::LaneName { .. })), "{refused}");
        assert!(!store.is_closed());
        go_on.send(()).unwrap();
        running.unwrap().join().unwrap();
        assert_exactly(0..10, &drain(&mut minibatches));
    });
}

#[test]
fn groups_repeat_under_round_robin() {
    let run = || {
        let store = builder().merge(activation_store::Merge::RoundRobin).seed(3).build().unwrap();
        let mut minibatches = store.minibatches();
        let group = store.producers();
        for replica in 0..3_usize {
            let produce = move |lane: activation_store::Producer| {
                (replica * 300..replica * 300 + 300)
                    .step_by(15)
                    .try_for_each(|at| lane.extend_pass_blocking(pass(at, 15)))
            };
            group.spawn(format!("replica {replica}"), produce).unwrap();
            // The earlier threads have time to write here.
            (0..replica * 10).for_each(|_| thread::yield_now());
        }
        group.close();
        drain(&mut minibatches)
    };
    watchdog(move || {
        let first = run();
        assert_exactly(0..900, &first);
        for _ in 0..20 {
            assert_eq!(run(), first);
        }
    });
}
