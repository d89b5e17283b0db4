//! Promise 6: the same configuration, seed and rows give the same minibatches, bit for bit.
#![allow(clippy::unwrap_used)]

mod common;

use std::thread;
use std::time::Duration;

use activation_store::{DType, Merge, Minibatches, Producer, RingStore, RingStoreBuilder};
use common::{Random, watchdog};
use ndarray::{Array2, s};

const ROWS: usize = 3000;

fn builder(seed: u64) -> RingStoreBuilder {
    RingStore::builder()
        .component("a", 3)
        .component_of("id", 1, DType::I64)
        .batch_size(16)
        .window(200)
        .queue_rows(64)
        .seed(seed)
}

/// Bits of all kinds, NaNs among them.
fn activations(rows: usize, salt: u64) -> Array2<f32> {
    let mut random = Random::new(salt);
    Array2::from_shape_simple_fn((rows, 3), || f32::from_bits(random.below(u32::MAX as usize) as u32))
}

fn positions(rows: usize, salt: u64) -> Array2<i64> {
    Array2::from_shape_fn((rows, 1), |(row, _)| row as i64 + ((salt as i64) << 32))
}

/// Returns all bytes of all minibatches.
type Bits = Vec<(Vec<u8>, Vec<u8>)>;

fn bits(minibatches: &mut Minibatches, pace: &mut Random) -> Bits {
    let mut kept = Vec::new();
    let mut bits = Vec::new();
    for minibatch in minibatches.blocking() {
        let minibatch = minibatch.unwrap();
        bits.push((minibatch.bytes(0).unwrap().to_vec(), minibatch.bytes("id").unwrap().to_vec()));
        match pace.below(8) {
            0 => thread::sleep(Duration::from_micros(200)),
            1 => kept.push(minibatch),
            2 => kept.clear(),
            _ => {}
        }
    }
    bits
}

/// Writes both components in pieces, in any order.
fn write(producer: &Producer, salt: u64, cuts: &mut Random, most: usize) {
    let (a, ids) = (activations(ROWS, salt), positions(ROWS, salt));
    let mut at = [0; 2];
    while at != [ROWS; 2] {
        // The components stay close together, within the bound on the skew.
        let component = if at[0] == ROWS || at[1] < ROWS && at[1] <= at[0] { 1 } else { 0 };
        let n = (1 + cuts.below(most)).min(ROWS - at[component]);
        let range = s![at[component]..at[component] + n, ..];
        match component {
            0 => producer.extend_blocking(a.slice(range).to_owned(), 0),
            _ => producer.extend_blocking(ids.slice(range).to_owned(), 1),
        }
        .unwrap();
        at[component] += n;
    }
}

fn one_lane(seed: u64, cuts: u64, most: usize, ready_frames: usize) -> Bits {
    watchdog(move || {
        let store = builder(seed).ready_frames(ready_frames).build().unwrap();
        let mut minibatches = store.minibatches();
        let producer = store.producer().unwrap();
        drop(store);
        let writing = thread::spawn(move || write(&producer, 1, &mut Random::new(cuts), most));
        let bits = bits(&mut minibatches, &mut Random::new(cuts + 100));
        writing.join().unwrap();
        bits
    })
}

#[test]
fn the_sizes_of_batches_the_pace_and_ready_frames_change_nothing() {
    let reference = one_lane(7, 0, 1, 1);
    assert_eq!(reference.len(), ROWS.div_ceil(16));
    for (cuts, most, ready_frames) in [(1, 10, 1), (2, 100, 2), (3, ROWS, 5), (4, 33, 3)] {
        assert!(one_lane(7, cuts, most, ready_frames) == reference, "cuts of up to {most}");
    }
}

#[test]
fn another_seed_gives_other_minibatches() {
    assert!(one_lane(7, 1, 100, 2) != one_lane(8, 1, 100, 2));
}

/// `threads` threads share the lanes of a round-robin store.
fn round_robin(seed: u64, lanes: u64, threads: usize, cuts: u64) -> Bits {
    watchdog(move || {
        let store = builder(seed).merge(Merge::RoundRobin).build().unwrap();
        let mut minibatches = store.minibatches();
        let producers: Vec<Producer> = (0..lanes).map(|_| store.producer().unwrap()).collect();
        drop(store);
        let mut shares: Vec<Vec<(u64, Producer)>> = (0..threads).map(|_| Vec::new()).collect();
        for (lane, producer) in (0..lanes).zip(producers) {
            shares[lane as usize % threads].push((lane, producer));
        }
        let writing: Vec<_> = shares
            .into_iter()
            .map(|share| {
                thread::spawn(move || {
                    let mut cuts = Random::new(cuts + share.len() as u64);
                    let mut at = vec![0; share.len()];
                    // A thread goes from lane to lane. If it waited for one lane, the turn of its other lanes would never come.
                    while at.iter().any(|&at| at < ROWS) {
                        for (at, (lane, producer)) in at.iter_mut().zip(&share) {
                            let n = (1 + cuts.below(50)).min(ROWS - *at);
                            let (a, ids) = (activations(ROWS, *lane), positions(ROWS, *lane));
                            let range = s![*at..*at + n, ..];
                            drop(producer.extend(ids.slice(range).to_owned(), 1).unwrap());
                            drop(producer.extend(a.slice(range).to_owned(), 0).unwrap());
                            *at += n;
                            if cuts.below(4) == 0 {
                                thread::yield_now();
                            }
                        }
                    }
                })
            })
            .collect();
        let bits = bits(&mut minibatches, &mut Random::new(cuts));
        writing.into_iter().for_each(|writing| writing.join().unwrap());
        bits
    })
}

#[test]
fn the_number_of_threads_changes_nothing_where_lanes_take_turns() {
    let reference = round_robin(3, 4, 1, 0);
    assert_eq!(reference.len(), (4 * ROWS).div_ceil(16));
    for (threads, cuts) in [(1, 1), (2, 2), (4, 3), (4, 4)] {
        assert!(round_robin(3, 4, threads, cuts) == reference, "{threads} threads");
    }
    assert!(round_robin(4, 4, 4, 3) != reference);
}

#[test]
fn lanes_of_different_lengths_still_repeat() {
    let run = |threads: bool| {
        watchdog(move || {
            let store = RingStore::builder()
                .component("a", 2)
                .batch_size(10)
                .window(100)
                .merge(Merge::RoundRobin)
                .build()
                .unwrap();
            let mut minibatches = store.minibatches();
            let lanes = [(0, 130), (1000, 1500), (2000, 2000), (3000, 3064), (4000, 4001)];
            let lanes: Vec<_> = lanes.into_iter().map(|lane| (lane, store.producer().unwrap())).collect();
            drop(store);
            let write = |((from, to), producer): ((usize, usize), Producer)| {
                for at in (from..to).step_by(7) {
                    drop(producer.extend(common::rows(at..(at + 7).min(to), 2), 0).unwrap());
                }
            };
            if threads {
                thread::scope(|scope| lanes.into_iter().for_each(|lane| drop(scope.spawn(move || write(lane)))));
            } else {
                lanes.into_iter().for_each(write);
            }
            common::drain(&mut minibatches)
        })
    };
    let reference = run(false);
    assert_eq!(reference.concat().len(), 130 + 500 + 64 + 1);
    for _ in 0..10 {
        assert_eq!(run(true), reference);
    }
}

/// The result does not depend on how far the writer was when the store was emptied, or on which lane had the turn.
#[test]
fn emptying_repeats() {
    let run = |merge: Merge, dawdle: usize| {
        let store = builder(3).merge(merge).queue_rows(4000).max_skew(4000).build().unwrap();
        let mut minibatches = store.minibatches();
        let lanes = [store.producer().unwrap(), store.producer().unwrap()];
        let pass = |salt| [("a", activations(90, salt).into()), ("id", activations_ids(salt))];
        for round in 0..2 {
            for lane in &lanes {
                drop(lane.extend_pass(pass(round)).unwrap());
            }
            (0..dawdle).for_each(|_| thread::yield_now());
            store.empty();
        }
        for salt in 10..20 {
            // The lanes write one after the other. Under `Merge::Arrival`, this is the order of their rows.
            for (lane, salt) in lanes.iter().zip([salt, salt + 100]) {
                drop(lane.extend_pass(pass(salt)).unwrap());
            }
        }
        store.close();
        bits(&mut minibatches, &mut Random::new(1))
    };
    for merge in [Merge::Arrival, Merge::RoundRobin] {
        watchdog(move || {
            let reference = run(merge, 0);
            assert_eq!(reference.iter().map(|(_, ids)| ids.len()).sum::<usize>(), 20 * 90 * 8);
            for dawdle in 1..20 {
                assert!(run(merge, dawdle * 10) == reference, "{merge:?}, after {dawdle}");
            }
        });
    }
}

fn activations_ids(salt: u64) -> activation_store::Batch {
    positions(90, salt).into()
}
