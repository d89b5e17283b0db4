//! Code that the tests share.

#![allow(dead_code)]

pub(crate) mod messages;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use activation_store::{Minibatch, Minibatches, RingStore, Stats};
use ndarray::Array2;

/// Far longer than any test takes, also under a sanitizer on a busy machine; only a test that hangs waits for it.
pub(crate) const LIMIT: Duration = Duration::from_secs(150);

/// Rounds of a race: as many as fit into two seconds, and at least a hundred.
pub(crate) fn rounds() -> impl Iterator<Item = usize> {
    let start = Instant::now();
    (0..).take_while(move |&round| round < 100 || start.elapsed() < Duration::from_secs(2))
}

/// Runs `body` on a thread of its own, and fails if `body` does not finish.
pub(crate) fn watchdog<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    watchdog_for("the test", body)
}

/// Does the same as [`watchdog`], with a name for the part that hangs.
pub(crate) fn watchdog_for<T: Send + 'static>(what: &str, body: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, finished) = mpsc::channel();
    let _detached = thread::spawn(move || {
        let _ = done.send(catch_unwind(AssertUnwindSafe(body)));
    });
    match finished.recv_timeout(LIMIT) {
        Ok(Ok(value)) => value,
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => panic!("{what} hangs"),
    }
}

/// Makes rows in which every value is the id of the row.
pub(crate) fn rows(ids: Range<usize>, features: usize) -> Array2<f32> {
    assert!(ids.end <= 1 << 24, "an f32 holds no larger integers exactly");
    Array2::from_shape_fn((ids.len(), features), |(row, _)| (ids.start + row) as f32)
}

/// Makes rows of one `i64`, which is the id of the row.
pub(crate) fn id_rows(ids: Range<usize>) -> Array2<i64> {
    Array2::from_shape_fn((ids.len(), 1), |(row, _)| (ids.start + row) as i64)
}

/// Returns the ids of a minibatch's rows that were made by [`rows`].
pub(crate) fn ids(minibatch: &Minibatch, component: usize) -> Vec<usize> {
    let view = minibatch.view::<f32>(component).expect("an f32 component");
    view.rows()
        .into_iter()
        .map(|row| {
            assert!(row.iter().all(|value| *value == row[0]), "a row is torn: {row}");
            row[0] as usize
        })
        .collect()
}

/// Returns the ids of a minibatch's rows that were made by [`id_rows`].
pub(crate) fn long_ids(minibatch: &Minibatch, component: usize) -> Vec<usize> {
    let view = minibatch.view::<i64>(component).expect("an i64 component");
    view.iter().map(|&id| id as usize).collect()
}

/// Drains a consumer. Returns the ids (component 0) of every minibatch.
pub(crate) fn drain(minibatches: &mut Minibatches) -> Vec<Vec<usize>> {
    minibatches.blocking().map(|minibatch| ids(&minibatch.expect("a minibatch"), 0)).collect()
}

/// Closes the store and drains it.
pub(crate) fn finish(store: &RingStore) -> Vec<Vec<usize>> {
    store.close();
    drain(&mut store.minibatches())
}

/// Fails unless each of the ids came exactly once.
pub(crate) fn assert_exactly(ids: Range<usize>, minibatches: &[Vec<usize>]) {
    let mut served = minibatches.concat();
    served.sort_unstable();
    assert_eq!(served, ids.collect::<Vec<_>>(), "each row is served once");
}

/// Fails unless accepted = resident + served + dropped.
pub(crate) fn assert_adds_up(stats: &Stats) {
    for component in &stats.components {
        assert_eq!(
            component.accepted,
            component.resident + component.served + component.dropped.total(),
            "{component:?}"
        );
    }
}

/// Memory that is lent to a store. It counts when it comes back.
pub(crate) struct Lent {
    pub(crate) values: Vec<f32>,
    pub(crate) returned: Arc<AtomicUsize>,
}

impl AsRef<[f32]> for Lent {
    fn as_ref(&self) -> &[f32] {
        &self.values
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.returned.fetch_add(1, Ordering::SeqCst);
    }
}

/// A small generator for schedules that must repeat: xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns a number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % bound
    }
}

/// Reads a line of a Linux file that counts kibibytes. Returns bytes.
pub(crate) fn bytes(file: &str, key: &str) -> usize {
    let text = std::fs::read_to_string(file).expect("a file of /proc");
    let line = text.lines().find(|line| line.starts_with(key)).expect("such a line");
    let kibibytes: Option<usize> = line.split_whitespace().nth(1).and_then(|number| number.parse().ok());
    kibibytes.expect("a number") << 10
}

/// Returns the resident memory of this process, in bytes.
pub(crate) fn resident() -> usize {
    bytes("/proc/self/status", "VmRSS:")
}
