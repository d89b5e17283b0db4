//! If frames come back while the trainer lags, the store frees them. It keeps the open frames, the frames that may be ready, and one
//! more. This test is alone in its file, because it looks at the memory of the process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::VecDeque;
use std::thread;

use activation_store::{Index, Minibatch, RingStore};
use common::{LIMIT, Random, watchdog};
use ndarray::{ArcArray2, Array2, s};

/// Bytes of a frame. A frame has a mapping of its own, which is resident when all of its rows have been written.
const FRAME: usize = 16 << 20;
const BATCH: usize = 64;
const FEATURES: usize = FRAME / BATCH / 4;

/// Returns the memory of the process, in frames.
fn resident() -> f64 {
    common::resident() as f64 / FRAME as f64
}

#[test]
fn frames_that_come_back_while_the_trainer_lags_are_freed() {
    watchdog(|| {
        let (open, ready) = (2, 2);
        let store = RingStore::builder().component("a", FEATURES).batch_size(BATCH).window(open * BATCH);
        let store = store.ready_frames(ready).queue_rows(BATCH).build().unwrap();
        let mut minibatches = store.minibatches();
        let rows: ArcArray2<f32> = Array2::ones((BATCH / 4, FEATURES)).into_shared();
        let lane = store.producer().unwrap();
        let before = resident();
        // All batches share the same memory.
        let producing = thread::spawn(move || while lane.extend_blocking(rows.clone(), "a").is_ok() {});
        let settled = |lent: usize| {
            let most = (open + ready + 1 + lent) as f64 + 0.5;
            // The trainer lags. The ring is full, the ready minibatches wait, and rows wait for the writer.
            loop {
                let stats = store.stats();
                let lags = stats.frames_ready == ready && stats.components[0].queued > 0;
                let used = resident() - before;
                if lags && used <= most {
                    return used;
                }
                thread::yield_now();
            }
        };
        let mut take = |n: usize| -> VecDeque<Minibatch> {
            (0..n).map(|_| minibatches.next_timeout(LIMIT).unwrap().unwrap()).collect()
        };
        // The frames that the trainer keeps come on top.
        let mut kept = take(10);
        assert!(settled(10) > 10.0, "the memory is measured");
        kept.drain(..7);
        settled(3);
        kept.clear();
        settled(0);
        // Frames come back again and again, in any order, and also while rows are read.
        let mut random = Random::new(1);
        for _ in 0..6 {
            kept.extend(take(8));
            while kept.len() > 1 {
                kept.swap_remove_back(random.below(kept.len()));
                if kept.len() % 3 == 0 {
                    assert_eq!(store.get(Index::from(s![.., 0, 0])).unwrap()[0], 1.0);
                }
            }
            settled(1);
        }
        store.abort();
        kept.clear();
        producing.join().unwrap();
        drop(minibatches);
        drop(store);
        while resident() - before > 0.5 {
            thread::yield_now();
        }
    });
}
