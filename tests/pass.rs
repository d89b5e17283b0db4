//! A pass is taken as a whole or not at all, and its rows stay together.
#![allow(clippy::unwrap_used)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use activation_store::{
    ActivationStore, Batch, ClosedBy, Merge, Minibatch, Minibatches, Pass, Producer, RefusedPass, RingStore,
    RingStoreBuilder, TensorStore, WhenFull, WriteError, WriteHandle,
};
use common::{LIMIT, Lent, assert_adds_up, assert_exactly, id_rows, ids, long_ids, rows, watchdog};
use futures::FutureExt;
use ndarray::Array2;

/// A component's name and its rows.
type Rows = (&'static str, Batch);

fn builder() -> RingStoreBuilder {
    let builder = RingStore::builder().component("a", 2).component_of("id", 1, activation_store::DType::I64);
    builder.component("c", 3).batch_size(10).window(40).ready_frames(2).queue_rows(20)
}

fn pass(ids: std::ops::Range<usize>) -> Vec<Rows> {
    vec![("a", rows(ids.clone(), 2).into()), ("id", id_rows(ids.clone()).into()), ("c", rows(ids, 3).into())]
}

/// Returns the ids of a minibatch's rows. Fails unless all components agree on them.
fn tokens(minibatch: &Minibatch) -> Vec<usize> {
    let tokens = ids(minibatch, 0);
    assert_eq!(tokens, long_ids(minibatch, 1), "misaligned");
    assert_eq!(tokens, ids(minibatch, 2), "misaligned");
    tokens
}

fn drain(minibatches: &mut Minibatches) -> Vec<Vec<usize>> {
    minibatches.blocking().map(|minibatch| tokens(&minibatch.unwrap())).collect()
}

fn finish(store: &RingStore) -> Vec<Vec<usize>> {
    store.close();
    drain(&mut store.minibatches())
}

/// Hands a pass over in one of the possible ways.
type Form = fn(&Producer, Vec<Rows>) -> Result<Option<WriteHandle>, RefusedPass>;

fn gathered(lane: &Producer, pass: Vec<Rows>) -> Pass {
    let mut gathered = lane.begin_pass();
    for (component, batch) in pass {
        gathered.put(component, batch).unwrap();
    }
    gathered
}

/// The ways that take the whole pass in one call.
const AT_ONCE: [(&str, Form); 4] = [
    ("extend_pass", |lane, pass| lane.extend_pass(pass).map(Some)),
    ("try_extend_pass", |lane, pass| lane.try_extend_pass(pass).map(Some)),
    ("extend_pass_blocking", |lane, pass| lane.extend_pass_blocking(pass).map(|()| None)),
    ("Permit::extend_pass", |lane, pass| match lane.reserve_pass(pass[0].1.rows()).wait() {
        Ok(permit) => permit.extend_pass(pass).map(Some),
        Err(error) => Err(RefusedPass::new(error, pass.into_iter().map(|(_, batch)| batch).collect())),
    }),
];

/// The ways that gather the pass first.
const GATHERED: [(&str, Form); 3] = [
    ("commit", |lane, pass| gathered(lane, pass).commit().map(Some)),
    ("try_commit", |lane, pass| gathered(lane, pass).try_commit().map(Some)),
    ("commit_blocking", |lane, pass| gathered(lane, pass).commit_blocking().map(|()| None)),
];

fn forms() -> impl Iterator<Item = (&'static str, Form)> {
    AT_ONCE.into_iter().chain(GATHERED)
}

/// Fails unless the batches are the batches of the pass, in the same order.
fn assert_given_back(batches: &[Batch], given: &[Rows]) {
    assert_eq!(batches.len(), given.len(), "all come back");
    for (batch, (component, given)) in batches.iter().zip(given) {
        assert_eq!((batch.dtype(), batch.to_f32()), (given.dtype(), given.to_f32()), "{component}");
    }
}

#[test]
fn components_may_come_in_any_order() {
    for (name, form) in forms() {
        watchdog(move || {
            let store = builder().build().unwrap();
            let lane = store.producer().unwrap();
            let mut at = 0;
            for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
                let mut given: Vec<_> = pass(at..at + 3).into_iter().map(Some).collect();
                let given = order.map(|component| given[component].take().unwrap());
                if let Some(handle) = form(&lane, given.into()).unwrap() {
                    let written = handle.wait().unwrap();
                    assert_eq!((written.rows, written.first_row), (3, at as u64), "{name}");
                }
                at += 3;
            }
            assert_exactly(0..18, &finish(&store));
        });
    }
}

/// Ways to make a pass of six rows wrong, with words that the message must have.
type Wrong = (fn() -> Vec<Rows>, &'static [&'static str]);

const WRONG: [Wrong; 9] = [
    (|| pass(0..6).drain(..2).collect(), &["no rows of component 2 (\"c\")", "exactly once"]),
    (|| pass(0..6).drain(1..).rev().collect(), &["no rows of component 0 (\"a\")"]),
    (Vec::new, &["no rows of component 0 (\"a\")"]),
    (
        || pass(0..6).into_iter().chain(pass(6..12).drain(1..2)).collect(),
        &["component 1 (\"id\") twice", "exactly once"],
    ),
    (
        || with(2, ("c", rows(0..5, 3).into())),
        &["5 rows of component 2 (\"c\"), but 6 of component 0 (\"a\")", "equally many"],
    ),
    (|| with(1, ("attn", id_rows(0..6).into())), &["no component \"attn\"", "0 (\"a\"), 1 (\"id\"), 2 (\"c\")"]),
    (|| with(0, ("a", rows(0..6, 3).into())), &["0 (\"a\") takes rows of 2 features", "has 3"]),
    (|| with(1, ("id", rows(0..6, 1).into())), &["1 (\"id\") holds i64", "f32"]),
    (|| with(2, ("c", Array2::<u32>::zeros((6, 3)).into())), &["2 (\"c\") holds f32", "u32"]),
];

/// Returns a pass with one entry replaced.
fn with(entry: usize, other: Rows) -> Vec<Rows> {
    let mut pass = pass(0..6);
    pass[entry] = other;
    pass
}

#[test]
fn a_pass_that_is_wrong_comes_back_whole_and_in_order_with_the_reason() {
    watchdog(|| {
        let ring = builder().build().unwrap();
        let lane = ring.producer().unwrap();
        let tensor = TensorStore::builder().component("a", 2).component_of("id", 1, activation_store::DType::I64);
        let tensor = tensor.component("c", 3).max_items(100).build().unwrap();
        for (given, words) in WRONG {
            let check = |name: &str, outcome: Result<(), RefusedPass>| {
                let refused = outcome.unwrap_err();
                let text = refused.to_string();
                assert!(words.iter().all(|word| text.contains(word)), "{name}: {text}");
                assert_given_back(&refused.batches, &given());
            };
            for (name, form) in &AT_ONCE[..3] {
                check(name, form(&lane, given()).map(drop));
            }
            check("RingStore", ring.extend_pass(given()).map(drop));
            check("RingStore::try", ring.try_extend_pass(given()).map(drop));
            check("RingStore, blocking", ring.extend_pass_blocking(given()));
            check("Permit", ring.reserve_pass(6).wait().unwrap().extend_pass(given()).map(drop));
            check("TensorStore", tensor.extend_pass(given()).map(drop));
        }
        // The refused passes left nothing behind and take no room.
        assert_eq!(lane.try_extend_pass(pass(0..20)).unwrap().wait().unwrap().first_row, 0);
        assert_eq!(tensor.extend_pass(pass(0..20)).unwrap().wait().unwrap().first_row, 0);
        assert_exactly(0..20, &finish(&ring));
    });
}

#[test]
fn a_full_queue_refuses_a_pass_as_a_whole() {
    for when_full in [WhenFull::Wait, WhenFull::Reject] {
        watchdog(move || {
            let store = builder().merge(Merge::RoundRobin).when_full(when_full).build().unwrap();
            // The lane whose turn it is has no rows, so the rows of the other lane stay in the queue.
            let (other, lane) = (store.producer().unwrap(), store.producer().unwrap());
            drop(lane.try_extend_pass(pass(0..15)).unwrap());
            // A permit always waits for room, also if the store rejects rows when it is full.
            for (name, form) in forms().filter(|(name, _)| *name != "Permit::extend_pass") {
                if when_full == WhenFull::Wait && !name.starts_with("try") {
                    continue;
                }
                let refused = form(&lane, pass(15..21)).map(drop).unwrap_err();
                let WriteError::Full(full) = &refused.error else { panic!("{name}: {refused}") };
                let no_room = full.no_room.as_ref().unwrap();
                assert_eq!((no_room.component.index, no_room.rows), (0, 6), "{name}");
                assert_eq!((no_room.held, no_room.bound), (15, 20), "{name}");
                let text = "Activation store is full: 6 rows do not fit the queue of component 0 (\"a\"), which holds 15 of 20";
                assert!(full.message.starts_with(text), "{name}: {}", full.message);
                assert_given_back(&refused.batches, &pass(15..21));
            }
            // The lane is even and lacks no rows. The next pass goes where the refused passes would have gone.
            let handle = lane.try_extend_pass(pass(15..20)).unwrap();
            drop(other);
            assert_eq!(handle.wait().unwrap().first_row, 15);
            assert_exactly(0..20, &finish(&store));
        });
    }
}

/// Fills the ring and the queue with whole passes, and returns the number of rows that were taken.
fn fill(lane: &Producer) -> usize {
    drop(lane.extend_pass(pass(0..200)).unwrap());
    200
}

#[test]
fn a_pass_that_waits_for_room_comes_back_when_the_store_closes() {
    for (name, form) in [AT_ONCE[2], GATHERED[2]] {
        watchdog(move || {
            for round in 0..50 {
                let store = builder().build().unwrap();
                let mut minibatches = store.minibatches();
                let lane = store.producer().unwrap();
                let taken = fill(&lane);
                let waiting = thread::spawn(move || form(&lane, pass(taken..taken + 7)).map(drop).unwrap_err());
                (0..round).for_each(|_| thread::yield_now());
                store.close();
                let refused = waiting.join().unwrap();
                assert_eq!(refused.error.closed_by(), Some(ClosedBy::Close), "{name}: {refused}");
                assert_given_back(&refused.batches, &pass(taken..taken + 7));
                assert_exactly(0..taken, &drain(&mut minibatches));
            }
        });
    }
}

#[test]
fn a_pass_that_waits_goes_in_once_there_is_room() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let lane = store.producer().unwrap();
        let taken = fill(&lane);
        let writing = thread::spawn(move || {
            for at in (taken..taken + 400).step_by(8) {
                lane.extend_pass_blocking(pass(at..at + 8)).unwrap();
            }
        });
        drop(store);
        assert_exactly(0..taken + 400, &drain(&mut minibatches));
        writing.join().unwrap();
    });
}

#[test]
fn an_uneven_lane_takes_no_pass_until_it_is_even_again() {
    for (name, form) in forms() {
        watchdog(move || {
            let store = builder().build().unwrap();
            let lane = store.producer().unwrap();
            let other = store.producer().unwrap();
            drop(lane.extend(rows(0..4, 2), "a").unwrap());
            drop(lane.extend(id_rows(0..3), "id").unwrap());
            let refused = form(&lane, pass(4..7)).map(drop).unwrap_err();
            assert!(matches!(&refused.error, WriteError::Uneven { ahead, missing, by: 4 }
                if (ahead.index, missing.index) == (0, 2)));
            let text = refused.to_string();
            for words in ["0 (\"a\") is 4 rows ahead of component 2 (\"c\")", "misaligned", "producer()"] {
                assert!(text.contains(words), "{name}: {text}");
            }
            assert_given_back(&refused.batches, &pass(4..7));
            // Other lanes still take passes.
            let _ = other.extend_pass(pass(100..103)).unwrap().wait().unwrap();
            drop(lane.extend(rows(0..4, 3), "c").unwrap());
            assert!(
                matches!(form(&lane, pass(4..7)), Err(refused) if matches!(refused.error, WriteError::Uneven { by: 1, .. }))
            );
            drop(lane.extend(id_rows(3..4), "id").unwrap());
            assert!(form(&lane, pass(4..7)).is_ok(), "{name}");
            let mut served = finish(&store).concat();
            served.sort_unstable();
            assert_eq!(served, (0..7).chain(100..103).collect::<Vec<_>>(), "{name}");
        });
    }
}

#[test]
fn a_pass_without_rows_is_answered_at_once_even_by_a_full_store() {
    for (name, form) in forms().filter(|(name, _)| *name != "Permit::extend_pass") {
        for when_full in [WhenFull::Wait, WhenFull::Reject] {
            watchdog(move || {
                let store = builder().when_full(when_full).build().unwrap();
                let lane = store.producer().unwrap();
                drop(lane.extend_pass(pass(0..200)).unwrap());
                for _ in 0..100 {
                    if let Some(handle) = form(&lane, pass(0..0)).unwrap() {
                        assert!(handle.is_done(), "{name}");
                        assert_eq!(handle.wait().unwrap().rows, 0);
                    }
                }
                assert_exactly(0..200, &finish(&store));
            });
        }
    }
}

/// `empty` discards all rows. If a pass is written component by component, the store discards its other components when they come.
#[test]
fn after_empty_a_lane_goes_on_where_it_was() {
    watchdog(|| {
        let store = builder().build().unwrap();
        drop(store.extend_pass(pass(0..13)).unwrap());
        store.empty();
        assert_eq!(store.extend_pass(pass(13..20)).unwrap().wait().unwrap().first_row, 13);
        store.empty();
        drop(store.extend(rows(20..25, 2), "a").unwrap());
        drop(store.extend(id_rows(20..23), "id").unwrap());
        store.empty();
        assert!(matches!(store.extend_pass(pass(25..30)).unwrap_err().error, WriteError::Uneven { by: 5, .. }));
        drop(store.extend(id_rows(23..25), "id").unwrap());
        drop(store.extend(rows(20..25, 3), "c").unwrap());
        assert_eq!(store.extend_pass(pass(25..47)).unwrap().wait().unwrap().first_row, 25);
        assert_exactly(25..47, &finish(&store));
        let stats = store.stats();
        assert_adds_up(&stats);
        assert!(stats.components.iter().all(|component| component.dropped.emptied == 25), "{stats:?}");
    });
}

#[test]
fn lanes_do_not_mix_their_passes() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        let lanes: Vec<_> = (0..4).map(|_| store.producer().unwrap()).collect();
        drop(store);
        let served = thread::scope(|scope| {
            for (number, lane) in lanes.into_iter().enumerate() {
                scope.spawn(move || {
                    let mut at = number * 1000;
                    let forms: Vec<_> = forms().filter(|(name, _)| !name.starts_with("try")).collect();
                    for (_, form) in forms.into_iter().cycle() {
                        let to = (at + 7).min(number * 1000 + 1000);
                        if let Some(handle) = form(&lane, pass(at..to)).unwrap() {
                            let written = handle.wait().unwrap();
                            assert_eq!((written.rows, written.first_row), (to - at, (at - number * 1000) as u64));
                        }
                        if to == number * 1000 + 1000 {
                            break;
                        }
                        at = to;
                    }
                });
            }
            drain(&mut minibatches)
        });
        assert_exactly(0..4000, &served);
    });
}

/// Two threads may share a lane if they write whole passes.
#[test]
fn clones_of_a_store_may_write_passes_at_once() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut minibatches = store.minibatches();
        for number in 0..3 {
            let store = store.clone();
            thread::spawn(move || {
                for at in (number * 1000..number * 1000 + 1000).step_by(10) {
                    store.extend_pass_blocking(pass(at..at + 10)).unwrap();
                }
            });
        }
        drop(store);
        assert_exactly(0..3000, &drain(&mut minibatches));
    });
}

#[test]
fn the_handle_resolves_when_all_rows_are_in_and_lent_memory_is_back() {
    watchdog(|| {
        let store = RingStore::builder().component("a", 2).component("b", 3).batch_size(10).window(40).ready_frames(2);
        let store = store.build().unwrap();
        let mut minibatches = store.minibatches();
        let returned = Arc::new(AtomicUsize::new(0));
        let lent = |rows: usize, features: usize| {
            let owner = Lent { values: vec![1.0; rows * features], returned: returned.clone() };
            Batch::from_owner(owner, features).unwrap()
        };
        let _ = store.extend_pass([("b", lent(30, 3)), ("a", lent(30, 2))]).unwrap().wait().unwrap();
        assert_eq!(returned.load(Ordering::SeqCst), 2);
        let handle = store.extend_pass([("b", lent(100, 3)), ("a", lent(100, 2))]).unwrap();
        while store.stats().frames_ready < 2 {
            thread::yield_now();
        }
        assert!(!handle.is_done());
        assert_eq!(returned.load(Ordering::SeqCst), 2);
        let consuming =
            thread::spawn(move || minibatches.blocking().map(|minibatch| minibatch.unwrap().rows()).sum::<usize>());
        assert_eq!(handle.wait().unwrap().rows, 100);
        assert_eq!(returned.load(Ordering::SeqCst), 4);
        // A refused pass belongs to the caller.
        store.close();
        let refused = store.extend_pass([("b", lent(2, 3)), ("a", lent(2, 2))]).unwrap_err();
        assert_eq!(returned.load(Ordering::SeqCst), 4);
        drop(refused);
        assert_eq!(returned.load(Ordering::SeqCst), 6);
        assert_eq!(consuming.join().unwrap(), 130);
    });
}

/// Writes a pass like a model that fails after its first hook.
fn half_a_pass(lane: &Producer, then: impl FnOnce()) -> Result<WriteHandle, WriteError> {
    let mut half = lane.begin_pass();
    half.put("id", id_rows(0..5))?;
    then();
    // This batch has one row too few.
    half.put("a", rows(0..4, 2))?;
    Ok(half.commit()?)
}

#[test]
fn a_pass_that_is_not_committed_leaves_nothing_behind() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let lane = store.producer().unwrap();
        assert!(matches!(half_a_pass(&lane, || ()).unwrap_err(), WriteError::PassRows { first_rows: 5, rows: 4, .. }));
        let panicked = catch_unwind(AssertUnwindSafe(|| half_a_pass(&lane, || panic!("the model fails"))));
        assert!(panicked.is_err());
        let lane = Arc::new(lane);
        let cancelled = async {
            let mut pass = lane.begin_pass();
            pass.put("c", rows(0..5, 3)).unwrap();
            futures::future::pending::<()>().await;
            drop(pass.commit().unwrap());
        };
        assert!(cancelled.now_or_never().is_none());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (began, beginning) = tokio::sync::oneshot::channel();
            let task = tokio::spawn({
                let lane = lane.clone();
                async move {
                    let mut pass = lane.begin_pass();
                    pass.put("c", rows(0..5, 3)).unwrap();
                    let _ = began.send(());
                    futures::future::pending::<()>().await;
                    drop(pass.commit().unwrap());
                }
            });
            beginning.await.unwrap();
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        });
        assert!(store.stats().components.iter().all(|component| component.queued + component.accepted == 0));
        assert_eq!((*lane).extend_pass(pass(0..12)).unwrap().wait().unwrap().first_row, 0);
        assert_exactly(0..12, &finish(&store));
        assert!(store.stats().components.iter().all(|component| component.dropped.total() == 0));
    });
}

#[test]
fn a_refused_component_leaves_the_gathered_pass_as_it_was() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let mut gathered = store.begin_pass();
        gathered.put("c", rows(0..6, 3)).unwrap();
        for (component, batch, words) in [
            ("c", rows(6..12, 3).into(), "component 2 (\"c\") twice"),
            ("a", rows(0..5, 2).into(), "5 rows of component 0 (\"a\"), but 6 of component 2 (\"c\")"),
            ("a", rows(0..6, 4).into(), "2 features"),
            ("id", rows(0..6, 1).into(), "i64"),
            ("b", Batch::from(rows(0..6, 1)), "no component \"b\""),
        ] {
            let expected = batch.to_f32();
            let refused = gathered.put(component, batch).unwrap_err();
            assert!(refused.to_string().contains(words), "{refused}");
            assert_eq!(refused.into_batch().to_f32(), expected);
        }
        gathered.put("id", id_rows(0..6)).unwrap();
        gathered.put("a", rows(0..6, 2)).unwrap();
        assert_eq!(gathered.commit().unwrap().wait().unwrap().rows, 6);
        // An incomplete pass comes back in the order in which its batches were put.
        let mut gathered = store.begin_pass();
        gathered.put("c", rows(6..9, 3)).unwrap();
        gathered.put("a", rows(6..9, 2)).unwrap();
        let refused = gathered.commit().unwrap_err();
        assert!(matches!(&refused.error, WriteError::PassLacks { missing } if missing.index == 1));
        assert_given_back(&refused.batches, &[("c", rows(6..9, 3).into()), ("a", rows(6..9, 2).into())]);
        assert_exactly(0..6, &finish(&store));
    });
}

#[test]
fn a_pass_may_outlive_its_lane_and_its_store() {
    watchdog(|| {
        let store = builder().build().unwrap();
        let lane = store.producer().unwrap();
        let of_lane = [gathered(&lane, pass(0..3)), gathered(&lane, pass(3..6))];
        let mut of_store = Vec::new();
        for (at, commit) in [(6, 0), (9, 1), (12, 2)] {
            let mut gathered = store.begin_pass();
            pass(at..at + 3).into_iter().rev().for_each(|(component, batch)| gathered.put(component, batch).unwrap());
            of_store.push((at, commit, gathered));
        }
        drop(lane);
        let mut minibatches = store.minibatches();
        for pass in of_lane {
            let refused = pass.try_commit().unwrap_err();
            assert_eq!(refused.error.closed_by(), Some(ClosedBy::Lane), "{refused}");
        }
        // A pass does not keep the store open.
        drop(store);
        assert!(drain(&mut minibatches).is_empty());
        for (at, commit, gathered) in of_store {
            let outcome = match commit {
                0 => gathered.commit().map(drop),
                1 => gathered.try_commit().map(drop),
                _ => gathered.commit_blocking(),
            };
            let refused = outcome.unwrap_err();
            assert_eq!(refused.error.closed_by(), Some(ClosedBy::Close), "{refused}");
            assert_given_back(&refused.batches, &pass(at..at + 3).into_iter().rev().collect::<Vec<_>>());
        }
    });
}

#[test]
fn a_tensor_store_takes_a_pass_as_a_whole() {
    watchdog(|| {
        let store = TensorStore::builder().component("a", 2).component_of("id", 1, activation_store::DType::I64);
        let store = store.component("c", 3).max_items(10).build().unwrap();
        let reversed = |ids: std::ops::Range<usize>| pass(ids).into_iter().rev().collect::<Vec<_>>();
        let written = store.extend_pass(reversed(0..6)).unwrap().wait().unwrap();
        assert_eq!((written.rows, written.first_row), (6, 0));
        let refused = store.extend_pass(reversed(6..11)).unwrap_err();
        assert!(refused.error.is_full(), "{refused}");
        assert_given_back(&refused.batches, &reversed(6..11));
        assert_eq!(store.extend_pass(reversed(6..6)).unwrap().wait().unwrap().rows, 0);
        drop(store.extend(id_rows(6..8), "id").unwrap());
        let refused = store.extend_pass(pass(8..9)).unwrap_err();
        assert!(matches!(refused.error, WriteError::Uneven { by: 2, .. }), "{refused}");
        drop(store.extend(rows(6..8, 2), "a").unwrap());
        drop(store.extend(rows(6..8, 3), "c").unwrap());
        assert_eq!(store.extend_pass(pass(8..10)).unwrap().wait().unwrap().first_row, 8);
        let served: Vec<_> = store.epoch(4).unwrap().map(|minibatch| tokens(&minibatch)).collect();
        assert_exactly(0..10, &served);
    });
}

/// A pointer to a store writes a pass as the store does, not as the default method of the trait does.
#[test]
fn pointers_to_a_store_write_passes_as_the_store_does() {
    fn by_reference(store: &impl ActivationStore, pass: Vec<(usize, Batch)>) -> Result<WriteHandle, RefusedPass> {
        store.extend_pass(pass)
    }
    let numbered = |pass: Vec<Rows>| pass.into_iter().enumerate().map(|(i, (_, batch))| (i, batch)).collect::<Vec<_>>();
    watchdog(move || {
        let ring = builder().build().unwrap();
        let tensor = TensorStore::builder().component("a", 2).component_of("id", 1, activation_store::DType::I64);
        let tensor = tensor.component("c", 3).max_items(100).build().unwrap();
        let stores: [Arc<dyn ActivationStore>; 3] =
            [Arc::new(ring.clone()), Arc::new(ring.producer().unwrap()), Arc::new(tensor)];
        for store in stores {
            let boxed: Box<dyn ActivationStore> = Box::new(store.clone());
            let wrong = || numbered(with(2, ("c", rows(0..5, 3).into())));
            for refused in [
                store.extend_pass(wrong()).unwrap_err(),
                boxed.extend_pass(wrong()).unwrap_err(),
                by_reference(&&*store, wrong()).unwrap_err(),
                by_reference(&boxed, wrong()).unwrap_err(),
            ] {
                assert!(matches!(refused.error, WriteError::PassRows { .. }), "{refused}");
                assert_given_back(&refused.batches, &with(2, ("c", rows(0..5, 3).into())));
            }
            // The default would have left rows of two components behind.
            for (first_row, outcome) in [
                (0, store.extend_pass(numbered(pass(0..5)))),
                (5, boxed.extend_pass(numbered(pass(5..10)))),
                (10, by_reference(&&*store, numbered(pass(10..15)))),
            ] {
                assert_eq!(outcome.unwrap().wait().unwrap().first_row, first_row);
            }
        }
        assert_eq!(ring.len(), 30);
        assert!(ring.minibatches().next_timeout(LIMIT).unwrap().is_some());
    });
}

/// Checks how much memory is back at the moment when a handle resolves.
struct Looks {
    returned: Arc<AtomicUsize>,
    seen: Arc<AtomicUsize>,
}

impl std::task::Wake for Looks {
    fn wake(self: Arc<Self>) {
        self.seen.store(self.returned.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
    }
}

#[test]
fn lent_memory_of_a_pass_is_back_when_an_abort_fails_its_handle() {
    watchdog(|| {
        let builder = RingStore::builder().component("a", 2).component("b", 2).batch_size(10).window(40).queue_rows(20);
        let store = builder.build().unwrap();
        let mut minibatches = store.minibatches();
        let full = || [("a", rows(0..200, 2)), ("b", rows(0..200, 2))];
        drop(store.extend_pass(full()).unwrap());
        while store.stats().waited_for_consumers.is_zero() {
            thread::yield_now();
        }
        let returned = Arc::new(AtomicUsize::new(0));
        let lend = |_| {
            let owner = Lent { values: vec![0.0; 10], returned: returned.clone() };
            Batch::from_owner(owner, 2).unwrap()
        };
        let mut handle = store.extend_pass(["a", "b"].map(|name| (name, lend(name)))).unwrap();
        let seen = Arc::new(AtomicUsize::new(0));
        let waker = std::task::Waker::from(Arc::new(Looks { returned: returned.clone(), seen: seen.clone() }));
        assert!(handle.poll_unpin(&mut std::task::Context::from_waker(&waker)).is_pending());
        // If the pass is not in its lane yet, the writer moves it there before it sees the abort.
        let _ = store.get((0, 0));
        store.abort();
        while seen.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        assert_eq!(seen.load(Ordering::SeqCst) - 1, 2, "batches that were back");
        assert!(handle.wait().unwrap_err().is_closed());
        assert!(minibatches.next_timeout(LIMIT).unwrap().is_none());
    });
}

#[test]
fn a_permit_takes_no_pass_that_was_begun_on_another_lane() {
    watchdog(|| {
        let (store, wider) = (builder().build().unwrap(), builder().component("d", 9).build().unwrap());
        let lane = store.producer().unwrap();
        let begun: [Pass; 2] = [gathered(&lane, pass(0..4)), wider.begin_pass()];
        for (components, mut begun) in [3, 4].into_iter().zip(begun) {
            if components == 4 {
                pass(0..4).into_iter().for_each(|(name, batch)| begun.put(name, batch).unwrap());
                begun.put("d", rows(0..4, 9)).unwrap();
            }
            let refused = store.reserve_pass(4).wait().unwrap().commit(begun).unwrap_err();
            assert!(matches!(refused.error, WriteError::Permit { .. }), "{refused}");
            assert_eq!(refused.batches.len(), components);
        }
        assert_eq!((store.len(), store.stats().components[0].queued), (0, 0));
    });
}
