//! A recording is replayed exactly once for each epoch, over all ranks, from any position.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::thread;

use activation_store::{Recorder, Recording, Replay, RingStore};
use ndarray::Array2;
use proptest::prelude::*;

/// A folder that goes away with its owner.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn folder(name: &str) -> Folder {
    let path = std::env::temp_dir().join(format!("replay-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    Folder(path)
}

/// Two recorders at once; the rows of lane l are l * 1000, l * 1000 + 1, ...
fn record(folder: &Folder, rows: [usize; 2], shard_rows: usize) -> Recording {
    thread::scope(|scope| {
        for (lane, rows) in rows.into_iter().enumerate() {
            let builder = Recorder::builder().component("a", 2).component("b", 1).shard_rows(shard_rows);
            let recorder = builder.lane(format!("rank-{lane}")).create(&folder.0).unwrap();
            scope.spawn(move || {
                for row in 0..rows {
                    let value = (lane * 1000 + row) as f32;
                    let (a, b) = (Array2::from_elem((1, 2), value), Array2::from_elem((1, 1), -value));
                    drop(recorder.extend_pass([("a", a), ("b", b)]).unwrap());
                }
                recorder.finish().unwrap();
            });
        }
    });
    Recording::open(&folder.0).unwrap()
}

fn values(replay: Replay) -> Vec<f32> {
    let mut values = Vec::new();
    for rows in replay.start().unwrap() {
        let pass = rows.unwrap().pass;
        values.extend(pass[0].1.view::<f32>().unwrap().column(0).iter().copied());
    }
    values
}

fn sorted(mut values: Vec<f32>) -> Vec<f32> {
    values.sort_by(f32::total_cmp);
    values
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn each_row_comes_once_an_epoch_over_all_ranks(
        first in 4_usize..30, second in 1_usize..30, shard_rows in 1_usize..9, world in 1_u64..5, seed: u64, epochs in 1_u64..4,
    ) {
        let folder = folder("property");
        let recording = record(&folder, [first, second], shard_rows);
        let expected: Vec<f32> = (0..first).chain(1000..1000 + second).map(|row| row as f32).collect();
        let parts: Vec<Vec<f32>> = (0..world)
            .map(|rank| values(recording.replay().seed(seed).epochs(epochs).rank(rank, world).unwrap()))
            .collect();
        for epoch in 0..epochs as usize {
            let of_epoch = |part: &Vec<f32>| part[epoch * part.len() / epochs as usize..][..part.len() / epochs as usize].to_vec();
            let all: Vec<f32> = parts.iter().flat_map(of_epoch).collect();
            prop_assert_eq!(sorted(all), expected.clone());
        }
        let lengths: Vec<usize> = parts.iter().map(|part| part.len() / epochs as usize).collect();
        prop_assert!(lengths.iter().max().unwrap() - lengths.iter().min().unwrap() <= 1);
    }
}

#[test]
fn a_replay_goes_on_from_every_position() {
    let folder = folder("position");
    let replay = record(&folder, [23, 14], 5).replay().seed(3).epochs(3).rank(1, 2).unwrap();
    let all = values(replay.clone());
    let mut taken = 0;
    for rows in replay.clone().start().unwrap() {
        let rows = rows.unwrap();
        taken += rows.pass[0].1.rows();
        assert_eq!(values(replay.clone().starting_at(rows.next)), all[taken..]);
    }
    assert_eq!(taken, all.len());
}

#[test]
fn epochs_and_seeds_differ_in_order() {
    let folder = folder("order");
    let recording = record(&folder, [60, 60], 5);
    let two = values(recording.replay().seed(1).epochs(2));
    assert_ne!(two[..120], two[120..]);
    assert_ne!(two[..120], values(recording.replay().seed(2)));
}

#[test]
fn a_ring_store_serves_a_chosen_component_once() {
    let folder = folder("ring");
    let recording = record(&folder, [50, 31], 8);
    let store = RingStore::builder().component("b", 1).batch_size(4).window(16).build().unwrap();
    let mut minibatches = store.minibatches();
    let feeder = thread::spawn(move || {
        for rows in recording.replay().components(["b"]).unwrap().start().unwrap() {
            for (name, batch) in rows.unwrap().pass {
                store.extend_blocking(batch, &name).unwrap();
            }
        }
    });
    let mut served = Vec::new();
    for minibatch in minibatches.blocking() {
        served.extend(minibatch.unwrap().view::<f32>("b").unwrap().iter().map(|value| -value));
    }
    feeder.join().unwrap();
    assert_eq!(sorted(served), (0..50).chain(1000..1031).map(|row| row as f32).collect::<Vec<_>>());
}

#[test]
fn more_ranks_than_rows_and_a_lane_recorded_twice_are_refused() {
    let folder = folder("refused");
    let recording = record(&folder, [2, 1], 1);
    assert!(recording.replay().rank(0, 4).unwrap_err().to_string().contains("at most the 3 rows"));
    let again = Recorder::builder().component("a", 2).component("b", 1).lane("rank-0").create(&folder.0);
    assert!(again.unwrap_err().to_string().contains("resume it"));
}
