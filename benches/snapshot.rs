//! Measures what a snapshot costs while the pipeline runs: `cargo bench --bench snapshot`.
//!
//! A producer writes passes and a consumer takes minibatches, both as fast as they can. They run first without a snapshot, then while
//! one is written. Prints the longest call of each side, the rows per second, and the memory that a snapshot takes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use activation_store::{Batch, Form, RingStore};
use ndarray::ArcArray2;

const WIDTH: usize = 768;
const BATCH: usize = 4096;

/// The longest call of a side, in nanoseconds, since it was last asked for.
#[derive(Default)]
struct Longest(AtomicU64);

impl Longest {
    fn time<T>(&self, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = call();
        self.0.fetch_max(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }

    fn take(&self) -> Duration {
        Duration::from_nanos(self.0.swap(0, Ordering::Relaxed))
    }
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok()).unwrap_or(0) << 10
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let gibibyte = if quick { 1 << 26 } else { 1 << 30 };
    // The open frames hold half a window.
    let window = 2 * gibibyte / (WIDTH * 4) / BATCH * BATCH;
    let rounds = if quick { 1 } else { 5 };
    let dir = tempfile::Builder::new().prefix("snapshot-bench-").tempdir_in("target").unwrap();
    let store = RingStore::builder().component("mlp", WIDTH).batch_size(BATCH).window(window).build().unwrap();
    println!("{}", RingStore::builder().component("mlp", WIDTH).batch_size(BATCH).window(window).plan().unwrap());
    let (stop, taken) = (AtomicBool::new(false), AtomicU64::new(0));
    let [producing, consuming] = [Longest::default(), Longest::default()];
    let mut minibatches = store.minibatches();
    let rows = ArcArray2::<f32>::from_elem((1024, WIDTH), 0.5);
    let (ask, asked) = mpsc::channel::<(Form, mpsc::Sender<_>)>();
    thread::scope(|scope| {
        let (store, stop, taken, producing, consuming, dir) = (store, &stop, &taken, &producing, &consuming, &dir);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let batch = Batch::from(rows.clone());
                if producing.time(|| store.extend_blocking(batch, 0)).is_err() {
                    break;
                }
            }
        });
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if consuming.time(|| minibatches.blocking().next()).is_none() {
                    break;
                }
                taken.fetch_add(BATCH as u64, Ordering::Relaxed);
                if let Ok((form, reply)) = asked.try_recv() {
                    let handle = consuming.time(|| minibatches.snapshot(dir.path(), form)).unwrap();
                    reply.send(handle).unwrap();
                }
            }
        });
        let phase = |name: &str, run: &mut dyn FnMut()| {
            producing.take();
            consuming.take();
            let (start, before) = (Instant::now(), taken.load(Ordering::Relaxed));
            run();
            let seconds = start.elapsed().as_secs_f64();
            let rate = (taken.load(Ordering::Relaxed) - before) as f64 / seconds / 1e6;
            let [producer, consumer] = [producing.take(), consuming.take()].map(|longest| longest.as_secs_f64() * 1e3);
            println!(
                "{name:<12} {seconds:>8.2} s {rate:>8.2} M rows/s   longest call: producer {producer:>7.1} ms, consumer {consumer:>7.1} ms"
            );
            rate
        };
        // After this loop, every page of the ring has been written to.
        while taken.load(Ordering::Relaxed) < 2 * window as u64 {
            thread::yield_now();
        }
        for _ in 0..rounds {
            let mut pause = Duration::from_secs(1);
            let without = phase("none", &mut || thread::sleep(pause));
            for form in [Form::Light, Form::Full] {
                let (before, mut peak) = (resident(), 0);
                let mut folder = None;
                let with = phase(&format!("{form:?}").to_lowercase(), &mut || {
                    let (reply, handle) = mpsc::channel();
                    ask.send((form, reply)).unwrap();
                    let mut handle = handle.recv().unwrap();
                    folder = loop {
                        if let Some(saved) = handle.wait_timeout(Duration::from_millis(2)) {
                            break Some(saved.unwrap());
                        }
                        peak = peak.max(resident());
                    };
                });
                let folder = folder.unwrap();
                let bytes: u64 =
                    std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
                println!(
                    "{:12} {:.1} MB on disk, {:.1} MB more memory, {:.2} of the rate without",
                    "",
                    bytes as f64 / 1e6,
                    peak.saturating_sub(before) as f64 / 1e6,
                    with / without,
                );
                std::fs::remove_dir_all(folder).unwrap();
                pause = Duration::from_secs(1);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}
