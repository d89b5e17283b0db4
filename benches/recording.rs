//! Compares the speed of a recorder with plain writes of the same files: `cargo bench --bench recording`.
//!
//! The plain writes go to the same disk, one file after the other, with the same checksum and the same syncs. Both write the same
//! batches from memory, in turns. Prints the medians of GB/s and their ratio. Makes its folder in `target`, or in the folder that
//! `RECORDING_BENCH_DIR` names.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, File};
use std::hash::Hasher;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use activation_store::{Recorder, SyncPolicy};
use ndarray::ArcArray2;
use twox_hash::XxHash3_64;

/// Bytes of one plain write.
const WRITE: usize = 1 << 20;

struct Case {
    name: &'static str,
    widths: &'static [usize],
    /// Rows of a pass.
    rows: usize,
    shard_rows: usize,
}

const CASES: [Case; 5] = [
    Case { name: "d=768, passes of 4,096 rows", widths: &[768], rows: 4096, shard_rows: 1 << 16 },
    Case { name: "d=768, 4,096 rows, shards of 16,384", widths: &[768], rows: 4096, shard_rows: 1 << 14 },
    Case { name: "d=768, passes of 64 rows", widths: &[768], rows: 64, shard_rows: 1 << 16 },
    Case { name: "d=4096, passes of 1,024 rows", widths: &[4096], rows: 1024, shard_rows: 1 << 13 },
    Case { name: "4 components, d=768, 1,024 rows", widths: &[768; 4], rows: 1024, shard_rows: 1 << 14 },
];

impl Case {
    fn batches(&self) -> Vec<ArcArray2<f32>> {
        let rows = |&width: &usize| ArcArray2::from_shape_fn((self.rows, width), |(row, at)| (row * 31 + at) as f32);
        self.widths.iter().map(rows).collect()
    }

    fn passes(&self, bytes: usize) -> usize {
        let passes = bytes / (self.rows * self.widths.iter().sum::<usize>() * 4);
        // The passes fill whole shards.
        passes.next_multiple_of(self.shard_rows / self.rows)
    }

    fn record(&self, dir: &Path, batches: &[ArcArray2<f32>], passes: usize, policy: SyncPolicy) {
        let mut builder = Recorder::builder().shard_rows(self.shard_rows).sync(policy);
        for (number, &width) in self.widths.iter().enumerate() {
            builder = builder.component(format!("layer-{number}"), width);
        }
        let recorder = builder.create(dir).unwrap();
        for _ in 0..passes {
            drop(recorder.extend_pass(batches.iter().cloned().enumerate()).unwrap());
        }
        recorder.finish().unwrap();
    }

    /// Writes the same shards file by file, and syncs each file.
    fn write_plainly(&self, dir: &Path, batches: &[ArcArray2<f32>], passes: usize) {
        let per_shard = self.shard_rows / self.rows;
        for shard in 0..passes / per_shard {
            let folder = dir.join(shard.to_string());
            fs::create_dir_all(&folder).unwrap();
            for (number, batch) in batches.iter().enumerate() {
                let mut file = File::create(folder.join(number.to_string())).unwrap();
                let mut sum = XxHash3_64::new();
                let bytes: &[u8] = bytemuck::cast_slice(batch.as_slice().unwrap());
                let mut gathered = Vec::with_capacity(WRITE);
                for piece in (0..per_shard).flat_map(|_| bytes.chunks(WRITE)) {
                    if gathered.len() + piece.len() > WRITE {
                        sum.write(&gathered);
                        file.write_all(&gathered).unwrap();
                        gathered.clear();
                    }
                    if piece.len() == WRITE {
                        sum.write(piece);
                        file.write_all(piece).unwrap();
                    } else {
                        gathered.extend_from_slice(piece);
                    }
                }
                sum.write(&gathered);
                file.write_all(&gathered).unwrap();
                std::hint::black_box(sum.finish());
                file.sync_all().unwrap();
            }
            File::open(&folder).unwrap().sync_all().unwrap();
            File::open(dir).unwrap().sync_all().unwrap();
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (bytes, rounds) = if quick { (1 << 26, 1) } else { (3 << 29, 6) };
    let parent = std::env::var("RECORDING_BENCH_DIR").unwrap_or_else(|_| "target".to_owned());
    let dir = tempfile::Builder::new().prefix("recording-bench-").tempdir_in(parent).unwrap();
    println!(
        "| case | plain writes, GB/s | recorder, GB/s | ratio | syncs at flush, GB/s | ratio |\n|---|---|---|---|---|---|"
    );
    for case in CASES {
        let batches = case.batches();
        let passes = case.passes(bytes);
        let total = (passes * case.rows * case.widths.iter().sum::<usize>() * 4) as f64;
        let timed = |write: &dyn Fn(&Path)| {
            let folder = dir.path().join("one");
            let start = Instant::now();
            write(&folder);
            let rate = total / start.elapsed().as_secs_f64() / 1e9;
            fs::remove_dir_all(&folder).unwrap();
            File::open(dir.path()).unwrap().sync_all().unwrap();
            rate
        };
        let ways: [&dyn Fn(&Path); 3] = [
            &|folder| case.write_plainly(folder, &batches, passes),
            &|folder| case.record(folder, &batches, passes, SyncPolicy::EachShard),
            &|folder| case.record(folder, &batches, passes, SyncPolicy::AtFlush),
        ];
        let mut rates = [const { Vec::new() }; 3];
        for round in 0..rounds {
            // Six rounds go through all six orders, because earlier writes slow down later ones.
            for turn in 0..3 {
                let way = (round / 2 + if round % 2 == 0 { turn } else { 3 - turn }) % 3;
                rates[way].push(timed(ways[way]));
            }
        }
        let [plain, each, flush] = rates;
        let ratio = |rates: &[f64]| median(rates.iter().zip(&plain).map(|(rate, plain)| rate / plain).collect());
        println!(
            "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
            case.name,
            median(plain.clone()),
            median(each.clone()),
            ratio(&each),
            median(flush.clone()),
            ratio(&flush)
        );
    }
}
