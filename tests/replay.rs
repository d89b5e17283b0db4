//! A replay gives out each row exactly once in each epoch, over all ranks. It can go on from any position.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use activation_store::{Form, Minibatches, Position, Recorder, Recording, Replay, RingStore, Snapshot, WhenFull};
use ndarray::Array2;
use proptest::prelude::*;

/// A folder that is removed with its owner.
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

/// Records with two recorders at once. The rows of lane l are l * 1000, l * 1000 + 1, ...
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
        let rows = rows.unwrap();
        values.extend(rows.pass()[0].1.view::<f32>().unwrap().column(0).iter().copied());
    }
    values
}

#[test]
fn parts_of_a_rank_are_its_rows() {
    let folder = folder("parts");
    let recording = record(&folder, [20, 11], 4);
    for rank in 0..2 {
        // Three epochs, in which this rank has 15, 16 and 15 rows, or 16, 15 and 16.
        let epoch = |epoch: u64| recording.replay().first_epoch(epoch).rank(rank, 2).unwrap();
        for number in 0..3 {
            let whole = values(epoch(number));
            let parts = [0..5, 5..5, 5..12, 12..u64::MAX].map(|part| values(epoch(number).part(part)));
            assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [5, 0, 7, whole.len() - 12]);
            assert_eq!(parts.concat(), whole);
        }
        let rest = recording.replay().epochs(5).rank(rank, 2).unwrap().part(12..u64::MAX);
        let expected: Vec<f32> = (0..5).flat_map(|number| values(epoch(number).part(12..u64::MAX))).collect();
        assert_eq!(values(rest.clone()), expected);

        // A store that a part fills goes on from its snapshot. The snapshot of another part is refused.
        let ring = || RingStore::builder().batch_size(2).window(4);
        let (all, one) = (rest.clone().into_ring(ring()).unwrap(), rest.clone().into_ring(ring()).unwrap());
        let mut served = one.minibatches();
        let first = served.blocking().next().unwrap().unwrap().rows();
        let state = served.state().unwrap();
        let resumed = rest.clone().resume_from(ring(), &state).unwrap();
        let count = |store: &RingStore| store.minibatches().blocking().map(|m| m.unwrap().rows()).sum::<usize>();
        assert_eq!(first + count(&resumed), count(&all));
        assert!(rest.part(11..u64::MAX).resume_from(ring(), &state).is_err());
    }
}

fn sorted(mut values: Vec<f32>) -> Vec<f32> {
    values.sort_by(f32::total_cmp);
    values
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn each_row_comes_once_an_epoch_over_all_ranks(
        first in 4_usize..30, second in 1_usize..30, shard_rows in 1_usize..9, world in 1_u64..5, seed: u64, epochs in 1_u64..6,
    ) {
        let folder = folder("property");
        let recording = record(&folder, [first, second], shard_rows);
        let expected: Vec<f32> = (0..first).chain(1000..1000 + second).map(|row| row as f32).collect();
        let parts: Vec<Vec<f32>> = (0..world)
            .map(|rank| values(recording.replay().seed(seed).epochs(epochs).rank(rank, world).unwrap()))
            .collect();
        let rows = expected.len() as u64;
        let split = |part: u64| (rows * (part + 1) / world - rows * part / world) as usize;
        let mut starts = vec![0; world as usize];
        for epoch in 0..epochs {
            let mut all = Vec::new();
            for (rank, part) in parts.iter().enumerate() {
                let own = split((rank as u64 + epoch) % world);
                all.extend_from_slice(&part[starts[rank]..][..own]);
                starts[rank] += own;
            }
            prop_assert_eq!(sorted(all), expected.clone());
        }
        let lengths: Vec<usize> = parts.iter().map(Vec::len).collect();
        prop_assert_eq!(&lengths, &starts);
        prop_assert!(lengths.iter().max().unwrap() - lengths.iter().min().unwrap() <= 1, "{lengths:?}");
    }

    #[test]
    fn every_rank_gets_as_many_minibatches_and_each_row_comes_once_an_epoch(
        first in 4_usize..40, second in 1_usize..40, shard_rows in 1_usize..9, world in 1_u64..5, epochs in 1_u64..4, batch in 3_usize..7,
    ) {
        let folder = folder("ranks");
        let recording = record(&folder, [first, second], shard_rows);
        let mut counts = Vec::new();
        let mut all = Vec::new();
        for rank in 0..world {
            let replay = recording.replay().seed(1).epochs(epochs).rank(rank, world).unwrap();
            let store = replay.into_ring(RingStore::builder().batch_size(batch).window(3 * batch)).unwrap();
            let minibatches: Vec<_> = store.minibatches().blocking().map(Result::unwrap).collect();
            counts.push(minibatches.len());
            all.extend(minibatches.iter().flat_map(|minibatch| minibatch.view::<f32>("a").unwrap().column(0).to_vec()));
        }
        prop_assert!(counts.iter().all(|&count| count == counts[0]), "{counts:?}");
        let epoch = (0..first).chain(1000..1000 + second).map(|row| row as f32);
        prop_assert_eq!(sorted(all), sorted((0..epochs).flat_map(|_| epoch.clone()).collect()));
    }

    #[test]
    fn a_ring_goes_on_bit_for_bit_from_its_snapshot(k in 0_usize..40, epochs in 1_u64..3, rank in 0_u64..2, seed: u64) {
        let folder = folder("resume");
        let recording = record(&folder, [120, 83], 17);
        let replay = recording.replay().seed(seed).epochs(epochs).rank(rank, 2).unwrap();
        let builder = || RingStore::builder().batch_size(4).window(16).seed(5);
        let rest = |minibatches: &mut Minibatches| -> Vec<Vec<f32>> {
            minibatches.blocking().map(|m| m.unwrap().view::<f32>("a").unwrap().column(0).to_vec()).collect()
        };
        let store = replay.clone().into_ring(builder()).unwrap();
        let mut minibatches = store.minibatches();
        for _ in 0..k {
            if minibatches.blocking().next().is_none() { break; }
        }
        let snapshots = folder.0.join("snapshots");
        let _ = minibatches.snapshot(&snapshots, Form::Light).unwrap().wait().unwrap();
        let expected = rest(&mut minibatches);

        let resumed = replay.resume(builder(), &snapshots).unwrap();
        prop_assert_eq!(rest(&mut resumed.minibatches()), expected);
        let other = recording.replay().seed(seed + 1 - 2 * (seed % 2)).epochs(epochs).rank(rank, 2).unwrap();
        if !resumed.resume_at().is_empty() {
            let refused = other.resume(builder(), &snapshots).unwrap_err().to_string();
            prop_assert!(refused.contains("filled the snapshot's store is another"), "{refused}");
        }
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
        taken += rows.rows();
        assert_eq!(values(replay.clone().starting_at(rows.next())), all[taken..]);
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
fn a_ring_serves_a_chosen_component_and_reads_no_other() {
    let folder = folder("ring");
    let recording = record(&folder, [50, 31], 8);
    for shard in std::fs::read_dir(&folder.0).unwrap() {
        let shard = shard.unwrap().path();
        if shard.is_dir() {
            std::fs::remove_file(shard.join("0.safetensors")).unwrap(); // of component "a"
        }
    }
    let replay = recording.replay().components(["b"]).unwrap();
    let store = replay.into_ring(RingStore::builder().batch_size(4).window(16)).unwrap();
    let mut served = Vec::new();
    for minibatch in store.minibatches().blocking() {
        served.extend(minibatch.unwrap().view::<f32>("b").unwrap().iter().map(|value| -value));
    }
    assert_eq!(sorted(served), (0..50).chain(1000..1031).map(|row| row as f32).collect::<Vec<_>>());
}

#[test]
fn a_shard_that_is_damaged_ends_the_stream_with_an_error_that_names_it() {
    let folder = folder("damaged");
    let recording = record(&folder, [50, 31], 8);
    let path = folder.0.join("rank-0.000003").join("1.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let store = recording.replay().into_ring(RingStore::builder().batch_size(4).window(16)).unwrap();
    let results: Vec<_> =
        store.minibatches().blocking().map(|result| result.map(|minibatch| minibatch.rows())).collect();
    let error = results.last().unwrap().as_ref().unwrap_err().to_string();
    assert!(error.contains("rank-0.000003") && error.contains("1.safetensors"), "{error}");
    assert!(results[..results.len() - 1].iter().all(Result::is_ok));
}

#[test]
fn get_returns_rows_in_any_order() {
    let folder = folder("get");
    let recording = record(&folder, [50, 31], 8);
    let rows = [49_u64, 0, 80, 50, 0, 51];
    let found = recording.get("b", &rows).unwrap();
    let expected: Vec<f32> = rows.iter().map(|&row| -(if row < 50 { row } else { 950 + row } as f32)).collect();
    assert_eq!(found.view::<f32>().unwrap().column(0).to_vec(), expected);
    assert_eq!(recording.get("a", &[]).unwrap().rows(), 0);
    assert!(
        recording.get("a", &[3, 81]).unwrap_err().to_string().contains("row index 81 is out of range: there are 81")
    );
}

#[test]
fn rings_that_could_not_be_fair_are_refused() {
    let folder = folder("unfair");
    let recording = record(&folder, [20, 5], 8);
    let replay = || recording.replay().rank(0, 2).unwrap();
    let refused = |builder: activation_store::RingStoreBuilder| replay().into_ring(builder).unwrap_err().to_string();
    let builder = || RingStore::builder().window(64);
    assert_eq!(
        refused(builder().batch_size(1)),
        "batch_size is 1, with 12 rows on some ranks and 13 on others; it must be 2 or more, so that all ranks get as many minibatches"
    );
    assert!(refused(builder().batch_size(4).window(4)).contains("window is 4, with 12 rows"));
    assert!(refused(builder().batch_size(13).drop_last(true)).contains("drop_last is true"));
    assert!(refused(builder().component("a", 2)).contains("the recording has the components"));
}

#[test]
fn more_ranks_than_rows_and_a_lane_recorded_twice_are_refused() {
    let folder = folder("refused");
    let recording = record(&folder, [2, 1], 1);
    assert!(recording.replay().rank(0, 4).unwrap_err().to_string().contains("at most the 3 rows"));
    let again = Recorder::builder().component("a", 2).component("b", 1).lane("rank-0").create(&folder.0);
    assert!(again.unwrap_err().to_string().contains("resume it"));
}

/// A ring for each epoch, as a loop over epochs makes them.
#[test]
fn rings_of_other_epochs_and_seeds_deal_in_another_order() {
    let folder = folder("one_shard");
    let recording = record(&folder, [200, 0], 200);
    let served = |seed, epoch| -> Vec<f32> {
        let replay = recording.replay().seed(seed).first_epoch(epoch);
        let store = replay.into_ring(RingStore::builder().batch_size(10).window(100)).unwrap();
        let mut minibatches = store.minibatches();
        minibatches.blocking().flat_map(|m| m.unwrap().view::<f32>("a").unwrap().column(0).to_vec()).collect()
    };
    let first = served(0, 0);
    assert_eq!(first, served(0, 0));
    for (seed, epoch) in [(0, 1), (1, 0), (1, 1)] {
        let other = served(seed, epoch);
        assert_ne!(first, other, "seed {seed}, epoch {epoch}");
        assert_eq!(sorted(first.clone()), sorted(other));
    }
}

#[test]
fn a_ring_refuses_what_a_replay_cannot_keep() {
    let folder = folder("refused");
    let recording = record(&folder, [50, 31], 8);
    let ring = || RingStore::builder().batch_size(4).window(16);
    let refused = |replay: Replay, ring| replay.into_ring(ring).unwrap_err().to_string();
    assert!(refused(recording.replay(), ring().when_full(WhenFull::DropOldest)).contains("loses no row"));
    let position = recording.replay().start().unwrap().next().unwrap().unwrap().next();
    assert!(refused(recording.replay().starting_at(position), ring()).contains("starting_at is"));
    assert!(recording.replay().components::<&str>([]).unwrap_err().to_string().contains("one or more of"));

    // A snapshot of a capture, and of a replay whose last row had been sent.
    for form in [Form::Light, Form::Full] {
        let snapshots = folder.0.join(format!("snapshots of a capture, {form:?}"));
        let store = ring().component("a", 2).component("b", 1).build().unwrap();
        let minibatches = store.minibatches();
        let lane = store.producer_named("capture").unwrap();
        let rows = |features| Array2::<f32>::ones((6, features));
        lane.extend_pass([("a", rows(2)), ("b", rows(1))]).unwrap().wait().unwrap();
        let _ = minibatches.snapshot(&snapshots, form).unwrap().wait().unwrap();
        let refused = recording.replay().resume(RingStore::builder(), &snapshots).unwrap_err().to_string();
        assert!(refused.contains("capture"), "{refused}");
    }
    let snapshots = folder.0.join("snapshots");
    let store = recording.replay().into_ring(RingStore::builder().batch_size(4).window(200)).unwrap();
    let mut minibatches = store.minibatches();
    for _ in 0..2 {
        let _ = minibatches.blocking().next().unwrap().unwrap();
    }
    while store.stats().components[0].accepted < 81 || !store.is_closed() {
        std::thread::yield_now();
    }
    let _ = store.flush().wait();
    for form in [Form::Light, Form::Full] {
        let _ = minibatches.snapshot(&snapshots, form).unwrap().wait().unwrap();
        let refused = recording.replay().epochs(3).resume(RingStore::builder(), &snapshots).unwrap_err().to_string();
        assert!(refused.contains("epochs is 3; it must be 1"), "{refused}");
        let resumed = recording.replay().resume(RingStore::builder(), &snapshots).unwrap();
        assert_eq!(resumed.minibatches().blocking().map(|m| m.unwrap().rows()).sum::<usize>(), 81 - 8);
    }
}

#[test]
fn a_snapshot_of_a_store_that_was_closed_before_its_replay_ended_is_refused_with_that_reason() {
    let folder = folder("closed_early");
    let recording = record(&folder, [50, 31], 8);
    let snapshots = folder.0.join("snapshots");
    let store = recording.replay().epochs(2).into_ring(RingStore::builder().batch_size(4).window(16)).unwrap();
    let mut minibatches = store.minibatches();
    let _ = minibatches.blocking().next().unwrap().unwrap();
    let _ = minibatches.snapshot(&snapshots, Form::Light).unwrap().wait().unwrap();
    // The ring is full, so the replay waits in the middle of an epoch.
    store.close();
    let mut flush = store.flush();
    while flush.wait_timeout(Duration::from_millis(1)).is_none() {
        drop(minibatches.blocking().next());
    }
    for form in [Form::Light, Form::Full] {
        let _ = minibatches.snapshot(&snapshots, form).unwrap().wait().unwrap();
        for epochs in [2, 5] {
            let replay = recording.replay().epochs(epochs);
            let refused = replay.resume(RingStore::builder(), &snapshots).unwrap_err().to_string();
            assert!(refused.contains("the snapshot is of a store that was closed after"), "{form:?}: {refused}");
            assert!(refused.contains("before the end of epoch 0") && refused.contains("earlier snapshot"), "{refused}");
        }
    }
    // The earlier snapshot works.
    let resumed = recording.replay().epochs(2).resume(RingStore::builder(), snapshots.join("snapshot-1")).unwrap();
    assert_eq!(resumed.minibatches().blocking().map(|m| m.unwrap().rows()).sum::<usize>(), 2 * 81 - 4);
}

#[test]
fn a_replay_of_fewer_epochs_than_were_sent_is_refused_with_their_number() {
    let folder = folder("fewer_epochs");
    let recording = record(&folder, [50, 31], 8);
    let snapshots = folder.0.join("snapshots");
    let store = recording.replay().epochs(4).into_ring(RingStore::builder().batch_size(4).window(16)).unwrap();
    let mut minibatches = store.minibatches();
    for _ in 0..2 * 81_usize.div_ceil(4) {
        let _ = minibatches.blocking().next().unwrap().unwrap();
    }
    let _ = minibatches.snapshot(&snapshots, Form::Light).unwrap().wait().unwrap();
    let refused = recording.replay().epochs(2).resume(RingStore::builder(), &snapshots).unwrap_err().to_string();
    assert!(refused.contains("epochs is 2; it must be as many as when the snapshot was taken"), "{refused}");
    assert!(refused.contains("and these epochs have 162"), "{refused}");
}

#[test]
fn a_recording_without_rows_gives_none() {
    let folder = folder("no_rows");
    let recorder = Recorder::builder().component("a", 1).create(&folder.0).unwrap();
    drop(recorder.extend_pass([("a", Array2::<f32>::zeros((0, 1)))]).unwrap());
    recorder.finish().unwrap();
    let recording = Recording::open(&folder.0).unwrap();
    assert!(recording.replay().start().unwrap().next().is_none());
    let store = recording.replay().into_ring(RingStore::builder().batch_size(4).window(16)).unwrap();
    assert!(store.minibatches().blocking().next().is_none());
}

/// Epochs near the largest number are all served, or refused.
#[test]
fn epochs_without_a_number_are_refused() {
    let folder = folder("numbers");
    let recording = record(&folder, [2, 1], 5);
    let builder = || RingStore::builder().batch_size(1).window(2);
    for (first, epochs, fits) in [
        (u64::MAX - 3, 3, true),
        (u64::MAX - 2, 3, false),
        (u64::MAX, 1, false),
        (u64::MAX, 0, true),
        (1, u64::MAX, false),
    ] {
        let replay = recording.replay().first_epoch(first).epochs(epochs);
        let rows = replay.clone().start().map(|rows| rows.map(|rows| rows.unwrap().rows() as u64).sum::<u64>());
        let minibatches = replay.into_ring(builder()).map(|store| store.minibatches().blocking().count() as u64);
        if fits {
            assert_eq!((rows.unwrap(), minibatches.unwrap()), (3 * epochs, 3 * epochs), "{first}");
        } else {
            let refused = minibatches.unwrap_err().to_string();
            assert_eq!(rows.err().unwrap().to_string(), refused);
            let most = u64::MAX - first;
            assert!(
                refused.starts_with(&format!("epochs is {epochs}; it must be at most {most} with first_epoch {first}")),
                "{refused}"
            );
        }
    }
    // An endless replay has a ring, which serves as long as somebody takes minibatches.
    let endless = recording.replay().epochs(u64::MAX).into_ring(builder()).unwrap();
    assert_eq!(endless.minibatches().blocking().take(40).count(), 40);
}

#[test]
fn a_place_that_is_not_in_the_replay_is_refused() {
    let folder = folder("places");
    let replay = record(&folder, [2, 1], 5).replay().first_epoch(4).epochs(2);
    let rows = |epoch, row| {
        let rows = replay.clone().starting_at(Position { epoch, row }).start()?;
        rows.map(|rows| rows.map(|rows| rows.rows())).sum::<Result<usize, _>>()
    };
    for (epoch, row, left) in [(4, 0, 6), (4, 2, 4), (4, 3, 3), (5, 1, 2), (6, 0, 0)] {
        assert_eq!(rows(epoch, row).unwrap(), left, "{epoch}, {row}");
    }
    for (epoch, row) in [(3, 0), (4, 4), (6, 1), (7, 0), (u64::MAX, u64::MAX)] {
        let refused = rows(epoch, row).unwrap_err().to_string();
        assert!(
            refused.starts_with(&format!("starting_at is epoch {epoch}, row {row}; it must be a place in")),
            "{refused}"
        );
    }
}

/// If this fails, a snapshot of a replay would go on with other rows: raise the version of the order, and change this test.
#[test]
fn the_order_of_shards_is_what_it_has_always_been() {
    let folder = folder("pinned");
    let recording = record(&folder, [12, 0], 1);
    let order = |seed, epoch| values(recording.replay().seed(seed).first_epoch(epoch));
    assert_eq!(order(0, 0), [2.0, 1.0, 6.0, 9.0, 3.0, 10.0, 4.0, 11.0, 8.0, 5.0, 0.0, 7.0]);
    assert_eq!(order(7, 0), [11.0, 2.0, 0.0, 3.0, 7.0, 10.0, 9.0, 8.0, 6.0, 5.0, 4.0, 1.0]);
    assert_eq!(order(7, 1_000_000), [4.0, 3.0, 5.0, 1.0, 10.0, 8.0, 11.0, 6.0, 7.0, 9.0, 0.0, 2.0]);
}

#[test]
fn a_snapshot_of_a_replay_with_another_order_of_shards_is_refused() {
    let folder = folder("other_order");
    let recording = record(&folder, [12, 0], 1);
    let ring = || RingStore::builder().batch_size(4).window(16);
    // The first version told replays apart by the name of the lane.
    let store = ring().component("a", 2).component("b", 1).build().unwrap();
    let minibatches = store.minibatches();
    let lane = store.producer_named("replay 0123456789abcdef").unwrap();
    let rows = |features| Array2::<f32>::ones((6, features));
    lane.extend_pass([("a", rows(2)), ("b", rows(1))]).unwrap().wait().unwrap();
    let first = minibatches.state().unwrap();
    // A later version.
    let store = recording.replay().into_ring(ring()).unwrap();
    let bytes = String::from_utf8(store.minibatches().state().unwrap().to_bytes()).unwrap();
    let body = bytes.lines().next().unwrap().replace("\"replay\":{\"version\":2", "\"replay\":{\"version\":3");
    let sum = twox_hash::XxHash3_64::oneshot(body.as_bytes());
    let later = Snapshot::from_bytes(format!("{body}\n{{\"xxh3\":\"{sum:016x}\"}}\n").as_bytes()).unwrap();
    for (snapshot, version) in [(first, 1), (later, 3)] {
        let refused = recording.replay().resume_from(RingStore::builder(), &snapshot).unwrap_err().to_string();
        assert!(refused.contains(&format!("order of shards is {version}; it must be 2")), "{refused}");
        assert!(!refused.contains("0123456789abcdef"), "{refused}");
    }
}
