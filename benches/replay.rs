//! Measures how fast a recording is replayed: `cargo bench --bench replay [-- --quick | -- mixing]`.
//!
//! Compares a replay from the disk with plain reads of the same files, one after the other. Compares a replay from the page cache
//! through a ring with a live pipeline, which fills the same ring from memory. The two sides take turns. Makes its folder in
//! `target`, or in the folder that `RECORDING_BENCH_DIR` names. Reads from the disk need Linux, which can drop a file from its cache.
//!
//! Then measures how well a replay mixes, for shards of several sizes. Counts, for each row of a minibatch, the rows that come from the
//! same sequence, shard or data set, and prints the mean.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use activation_store::{DType, Recorder, Recording, RingStore, RingStoreBuilder};
use ndarray::ArcArray2;

/// Bytes of one plain read.
const READ: usize = 1 << 20;
/// Rows of a pass.
const PASS: usize = 4096;

struct Case {
    name: &'static str,
    width: usize,
    shard_rows: usize,
}

const CASES: [Case; 3] = [
    Case { name: "d=768, shards of 65,536 rows (201 MB)", width: 768, shard_rows: 1 << 16 },
    Case { name: "d=768, shards of 8,192 rows (25 MB)", width: 768, shard_rows: 1 << 13 },
    Case { name: "d=4096, shards of 8,192 rows (134 MB)", width: 4096, shard_rows: 1 << 13 },
];

impl Case {
    fn batch(&self) -> ArcArray2<f32> {
        ArcArray2::from_shape_fn((PASS, self.width), |(row, at)| (row * 31 + at) as f32)
    }

    fn rows(&self, bytes: usize) -> usize {
        (bytes / (self.width * 4)).next_multiple_of(self.shard_rows.max(PASS))
    }

    fn record(&self, dir: &Path, rows: usize) {
        let recorder =
            Recorder::builder().component("mlp", self.width).shard_rows(self.shard_rows).create(dir).unwrap();
        let batch = self.batch();
        for _ in 0..rows / PASS {
            drop(recorder.extend_pass([("mlp", batch.clone())]).unwrap());
        }
        recorder.finish().unwrap();
    }

    /// Configures a window with as many bytes as 131,072 rows of d=768.
    fn ring(&self) -> RingStoreBuilder {
        RingStore::builder().batch_size(4096).window((1 << 17) * 768 / self.width)
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    folders.iter().map(|folder| folder.join("0.safetensors")).collect()
}

/// Makes the operating system drop the files from its cache.
fn forget(files: &[PathBuf]) {
    #[cfg(target_os = "linux")]
    for file in files {
        let file = File::open(file).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    #[cfg(not(target_os = "linux"))]
    let _ = files;
}

fn read_plainly(files: &[PathBuf]) {
    let mut buffer = vec![0; READ];
    for file in files {
        let mut file = File::open(file).unwrap();
        while file.read(&mut buffer).unwrap() > 0 {}
    }
}

fn replay(dir: &Path) {
    for rows in Recording::open(dir).unwrap().replay().start().unwrap() {
        drop(rows.unwrap());
    }
}

fn drain(store: &RingStore) -> usize {
    store.minibatches().blocking().map(|minibatch| minibatch.unwrap().rows()).sum()
}

fn replay_into_ring(case: &Case, dir: &Path, rows: usize) {
    let store = Recording::open(dir).unwrap().replay().into_ring(case.ring()).unwrap();
    assert_eq!(drain(&store), rows);
}

fn live(case: &Case, batch: &ArcArray2<f32>, rows: usize) {
    let store = case.ring().component("mlp", case.width).build().unwrap();
    let batch = batch.clone();
    let capture = store
        .spawn_producer("capture", move |lane| {
            (0..rows / PASS).try_for_each(|_| lane.extend_pass_blocking([("mlp", batch.clone())]))
        })
        .unwrap();
    assert_eq!(drain(&store), rows);
    capture.join().unwrap();
}

/// Rows of the window, of a minibatch and of all data, for the table on mixing.
const WINDOW: usize = 1 << 16;
const BATCH: usize = 4096;
const ALL: usize = 1 << 22;
/// Rows of a sequence of tokens, and of a data set. There are 16 data sets, one after the other.
const SEQUENCE: usize = 512;
const DATA_SET: usize = 1 << 18;

fn numbered() -> RingStoreBuilder {
    RingStore::builder().batch_size(BATCH).window(WINDOW)
}

/// Divides the rows into stretches. Counts, for each row, the rows of its minibatch that come from the same stretch. Returns the mean
/// over the rows for each length in `stretches`.
fn shared<const N: usize>(store: &RingStore, stretches: [usize; N]) -> [f64; N] {
    let (mut sums, mut minibatches) = ([0.0; N], 0);
    // The first and the last window are mixed in another way than the others.
    let steady = WINDOW / BATCH..(ALL - WINDOW) / BATCH;
    for (index, minibatch) in store.minibatches().blocking().enumerate() {
        let minibatch = minibatch.unwrap();
        if steady.contains(&index) {
            minibatches += 1;
            let rows = minibatch.view::<i64>(0).unwrap();
            for (sum, stretch) in sums.iter_mut().zip(stretches) {
                let mut counts: HashMap<i64, usize> = HashMap::new();
                rows.iter().for_each(|row| *counts.entry(row / stretch as i64).or_default() += 1);
                *sum += counts.values().map(|n| n * n).sum::<usize>() as f64 / rows.len() as f64;
            }
        }
    }
    sums.map(|sum| sum / f64::from(minibatches))
}

fn numbers(first: usize) -> ndarray::Array2<i64> {
    ndarray::Array2::from_shape_fn((PASS, 1), |(row, _)| (first + row) as i64)
}

fn mixing(parent: &str) {
    println!(
        "\n| shards | W / S | of a sequence of {SEQUENCE} | of a shard | by `plan` | of a data set of {DATA_SET} |\n|---|---|---|---|---|---|"
    );
    let store = numbered().component_of("row", 1, DType::I64).build().unwrap();
    let capture = store.spawn_producer("capture", |lane| {
        (0..ALL).step_by(PASS).try_for_each(|first| lane.extend_pass_blocking([("row", numbers(first))]))
    });
    let [of_sequence, of_set] = shared(&store, [SEQUENCE, DATA_SET]);
    capture.unwrap().join().unwrap();
    println!("| live, no recording | | {of_sequence:.1} | | | {of_set:.0} |");
    for shard_rows in [1 << 18, 1 << 16, 1 << 15, 1 << 14, 1 << 12] {
        let dir = tempfile::Builder::new().prefix("replay-bench-").tempdir_in(parent).unwrap();
        let recorder = Recorder::builder().component_of("row", 1, DType::I64).shard_rows(shard_rows);
        let recorder = recorder.create(dir.path()).unwrap();
        for first in (0..ALL).step_by(PASS) {
            drop(recorder.extend_pass([("row", numbers(first))]).unwrap());
        }
        recorder.finish().unwrap();
        let store = Recording::open(dir.path()).unwrap().replay().into_ring(numbered()).unwrap();
        let [of_sequence, of_shard, of_set] = shared(&store, [SEQUENCE, shard_rows, DATA_SET]);
        let planned = numbered().component("row", 1).plan().unwrap().shared_rows(shard_rows);
        let ratio = WINDOW as f64 / shard_rows as f64;
        println!("| {shard_rows} rows | {ratio} | {of_sequence:.1} | {of_shard:.0} | {planned:.0} | {of_set:.0} |");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Times two ways in turns. In every other round the second way goes first. Returns the median rates, and the median of their ratios.
fn compare(rounds: usize, work: f64, first: &dyn Fn(), second: &dyn Fn(), prepare: &dyn Fn()) -> [f64; 3] {
    let timed = |way: &dyn Fn()| {
        prepare();
        let start = Instant::now();
        way();
        work / start.elapsed().as_secs_f64()
    };
    let [mut firsts, mut seconds] = [const { Vec::new() }; 2];
    for round in 0..rounds {
        if round % 2 == 0 {
            firsts.push(timed(first));
            seconds.push(timed(second));
        } else {
            seconds.push(timed(second));
            firsts.push(timed(first));
        }
    }
    let ratio = median(seconds.iter().zip(&firsts).map(|(second, first)| second / first).collect());
    [median(firsts), median(seconds), ratio]
}

fn main() {
    let given = |option: &str| std::env::args().any(|argument| argument == option);
    let (bytes, rounds) = if given("--quick") { (1 << 26, 1) } else { (3 << 29, 15) };
    let parent = std::env::var("RECORDING_BENCH_DIR").unwrap_or_else(|_| "target".to_owned());
    if !given("mixing") {
        speed(&parent, bytes, rounds);
    }
    mixing(&parent);
}

fn speed(parent: &str, bytes: usize, rounds: usize) {
    println!(
        "| case | disk: plain reads, GB/s | replay, GB/s | ratio | through a ring, GB/s | ratio | cache: live, rows/s | replay, rows/s | ratio |\n\
         |---|---|---|---|---|---|---|---|---|"
    );
    for case in CASES {
        let dir = tempfile::Builder::new().prefix("replay-bench-").tempdir_in(parent).unwrap();
        let dir = dir.path();
        let rows = case.rows(bytes);
        case.record(dir, rows);
        let files = files(dir);
        let gigabytes = (rows * case.width * 4) as f64 / 1e9;
        let plain = || read_plainly(&files);
        let ring = || replay_into_ring(&case, dir, rows);
        let [disk, replayed, ratio] = compare(rounds, gigabytes, &plain, &|| replay(dir), &|| forget(&files));
        let [_, through, through_ratio] = compare(rounds, gigabytes, &plain, &ring, &|| forget(&files));
        read_plainly(&files);
        let batch = case.batch();
        let live = || live(&case, &batch, rows);
        let [live, cached, cached_ratio] = compare(rounds, rows as f64, &live, &ring, &|| ());
        println!(
            "| {} | {disk:.2} | {replayed:.2} | {ratio:.2} | {through:.2} | {through_ratio:.2} | {:.2} M | {:.2} M | {cached_ratio:.2} |",
            case.name,
            live / 1e6,
            cached / 1e6,
        );
    }
}
