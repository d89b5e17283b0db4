//! Several threads use one store at random: they write, read, take minibatches and snapshots, empty it, and end it. No row is served
//! twice, the counts add up, and everything ends. Runs for two seconds, or as many as RANDOM_USE_SECONDS says.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use activation_store::{Form, Merge, Minibatches, Producer, RingStore, WhenFull, WriteError};
use common::{LIMIT, assert_adds_up, id_rows, rows, watchdog_for};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// Lanes number their rows from a multiple of this on.
const ROWS_OF_A_LANE: usize = 100_000;

fn store(random: &mut Xoshiro256PlusPlus) -> RingStore {
    let batch_size = random.random_range(1..13);
    RingStore::builder()
        .component("a", 3)
        .component_of("id", 1, activation_store::DType::I64)
        .batch_size(batch_size)
        .window(batch_size * random.random_range(1..13))
        .ready_frames(random.random_range(1..4))
        .queue_rows(random.random_range(1..61))
        .when_full([WhenFull::Wait, WhenFull::Wait, WhenFull::DropOldest, WhenFull::Reject][random.random_range(0..4)])
        .merge([Merge::Arrival, Merge::RoundRobin][random.random_range(0..2)])
        .drop_last(random.random_bool(0.25))
        .seed(random.random())
        .build()
        .unwrap()
}

/// Writes passes in every way, until the store is closed.
fn produce(lane: &Producer, number: usize, random: &mut Xoshiro256PlusPlus) {
    let mut at = number * ROWS_OF_A_LANE;
    for _ in 0..40 {
        let n = random.random_range(0..15);
        let (a, id) = (rows(at..at + n, 3), id_rows(at..at + n));
        let written = match random.random_range(0..5) {
            0 => lane
                .extend_pass([("a", a.into()), ("id", activation_store::Batch::from(id))])
                .map_err(|refused| refused.error)
                .map(drop),
            1 => lane
                .extend_pass_blocking([("id", activation_store::Batch::from(id)), ("a", a.into())])
                .map_err(|refused| refused.error),
            2 => lane.extend(a, "a").map_err(|refused| refused.error).and_then(|first| {
                drop(first);
                // Its counterparts were taken, so it is not refused for room.
                lane.try_extend(id, "id").map(drop).map_err(|refused| {
                    assert!(!refused.error.is_full(), "{}", refused.error);
                    refused.error
                })
            }),
            3 => {
                let mut pass = lane.begin_pass();
                pass.put("a", a).unwrap();
                continue; // dropped: nothing of it is written
            }
            _ => {
                let mut pass = lane.begin_pass();
                pass.put("id", id).unwrap();
                pass.put("a", a).unwrap();
                pass.commit_blocking().map(drop).map_err(|refused| refused.error)
            }
        };
        match written {
            Ok(()) => at += n,
            Err(WriteError::Closed(_)) => return,
            Err(error) => assert!(error.is_full(), "{error}"),
        }
    }
}

/// Takes minibatches until the stream ends, or for a while, and snapshots between them. Keeps some minibatches.
fn consume(mut minibatches: Minibatches, dir: &Path, served: &Mutex<Vec<i64>>, random: &mut Xoshiro256PlusPlus) {
    let mut kept = Vec::new();
    let leaves_early = random.random_bool(0.1);
    for taken in 0.. {
        if leaves_early && taken > 20 {
            return;
        }
        if random.random_bool(0.1) {
            let _ = minibatches.state();
        }
        if random.random_bool(0.15) {
            let form = [Form::Light, Form::Full][random.random_range(0..2)];
            match minibatches.snapshot(dir, form) {
                Ok(saving) if random.random_bool(0.5) => drop(saving.wait()),
                _ => {}
            }
        }
        if random.random_bool(0.05) {
            kept.clear();
        }
        let patience = if random.random_bool(0.5) { Duration::from_millis(random.random_range(0..3)) } else { LIMIT };
        match minibatches.next_timeout(patience) {
            Ok(Some(minibatch)) => {
                let (a, ids) = (minibatch.view::<f32>("a").unwrap(), minibatch.view::<i64>("id").unwrap());
                assert!(a.rows().into_iter().zip(ids).all(|(row, &id)| row.iter().all(|&value| value as i64 == id)));
                served.lock().unwrap().extend(ids);
                if random.random_bool(0.25) {
                    kept.push(minibatch);
                }
            }
            Ok(None) => return,
            Err(error) if error.is_timeout() => {}
            Err(error) => {
                assert_eq!(error.to_string(), "it was to end", "the only error that the store was closed with");
                return;
            }
        }
    }
}

/// Looks at the store, empties it and, rarely, ends it.
fn meddle(store: &RingStore, done: &AtomicBool, random: &mut Xoshiro256PlusPlus) {
    while !done.load(Ordering::SeqCst) {
        match random.random_range(0..4000) {
            0..60 => store.empty(),
            60..180 => drop(store.get(0..3)),
            180..240 => drop(store.flush().wait()),
            240..300 => assert_adds_up(&store.stats()),
            300..302 => store.close(),
            302 => store.close_with("it was to end"),
            303 => store.abort(),
            _ => thread::yield_now(),
        }
    }
}

fn use_a_store(seed: u64, dir: &Path) {
    let random = |purpose: u64| Xoshiro256PlusPlus::seed_from_u64((seed << 8) + purpose);
    let store = store(&mut random(0));
    let (lanes, consumers) = (random(1).random_range(1..4), random(2).random_range(1..3));
    let consumers: Vec<_> = (0..consumers).map(|number| (store.minibatches(), random(10 + number))).collect();
    let lanes: Vec<_> = (0..lanes).map(|number| (number, store.producer().unwrap())).collect();
    let served = Mutex::new(Vec::new());
    let done = AtomicBool::new(false);
    thread::scope(|threads| {
        let meddling = threads.spawn(|| meddle(&store, &done, &mut random(3)));
        let consuming: Vec<_> = consumers
            .into_iter()
            .map(|(minibatches, mut random)| {
                let served = &served;
                threads.spawn(move || consume(minibatches, dir, served, &mut random))
            })
            .collect();
        let producing: Vec<_> = lanes
            .into_iter()
            .map(|(number, lane)| {
                let mut random = random(50 + number as u64);
                threads.spawn(move || produce(&lane, number, &mut random))
            })
            .collect();
        producing.into_iter().for_each(|thread| thread.join().unwrap());
        store.close();
        consuming.into_iter().for_each(|thread| thread.join().unwrap());
        done.store(true, Ordering::SeqCst);
        meddling.join().unwrap();
    });
    assert_adds_up(&store.stats());
    let mut ids = served.into_inner().unwrap();
    assert_eq!(ids.len() as u64, store.stats().components[0].served);
    ids.sort_unstable();
    assert!(ids.windows(2).all(|two| two[0] != two[1]), "a row was served twice");
}

#[test]
fn however_a_store_is_used_no_row_comes_twice_and_it_ends() {
    let seconds = std::env::var("RANDOM_USE_SECONDS").map_or(2, |seconds| seconds.parse().unwrap());
    let start = Instant::now();
    // Other seeds each time.
    let first = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    for seed in first * 1000.. {
        if start.elapsed() > Duration::from_secs(seconds) {
            break;
        }
        let dir = tempfile::tempdir().unwrap();
        watchdog_for(&format!("seed {seed}"), move || use_a_store(seed, dir.path()));
    }
}
