//! How a ring store is configured; checked once, when it is built.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::error::BuildError;
use crate::rows::element::DType;
use crate::rows::layout::{Component, Layout};

/// What a store does with rows it has no room for, because its consumers lag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WhenFull {
    /// Handles stay pending and `extend_blocking` blocks until there is room.
    #[default]
    Wait,
    /// A write that finds the queue full fails with [`StoreFullError`](crate::StoreFullError), unless the rows of another
    /// component that belong to its own have been taken. See [`Producer::try_extend`](crate::Producer::try_extend).
    Reject,
    /// The oldest ready minibatch is discarded, and its rows counted as dropped.
    ///
    /// What is served then depends on the consumers' pace.
    DropOldest,
}

/// How the rows of several producers become one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Merge {
    /// As they arrive: no lane ever waits for another.
    #[default]
    Arrival,
    /// In turn, 64 rows from each open lane in the order in which the lanes were opened, so that runs repeat bit for bit
    /// whatever the threads do.
    ///
    /// A lane that falls behind makes the others wait, so a thread that feeds several must hand over to all of them before
    /// it waits for any (for a handle, or a flush). `queue_rows` bounds each lane on its own. Open every producer before
    /// the first write, and write to the store's own lane first or not at all: a lane takes part from when it is opened, the
    /// store's own from its first write.
    RoundRobin,
}

/// Configures a [`RingStore`](crate::RingStore). Made by [`RingStore::builder`](crate::RingStore::builder).
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct RingStoreBuilder {
    components: Vec<(String, usize, Option<DType>)>,
    dtype: DType,
    batch_size: usize,
    window: usize,
    ready_frames: usize,
    queue_rows: Option<usize>,
    max_skew: Option<usize>,
    seed: u64,
    drop_last: bool,
    when_full: WhenFull,
    merge: Merge,
    pub(crate) runtime: Option<Handle>,
}

/// A checked configuration.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) layout: Arc<Layout>,
    pub(crate) open_frames: usize,
    pub(crate) ready_frames: usize,
    pub(crate) queue_rows: usize,
    pub(crate) max_skew: usize,
    pub(crate) seed: u64,
    pub(crate) drop_last: bool,
    pub(crate) when_full: WhenFull,
    pub(crate) merge: Merge,
}

impl Config {
    /// Frames that are neither open nor with a consumer: those that may be ready, and one to work on.
    pub(crate) fn spare_frames(&self) -> usize {
        self.ready_frames + 1
    }
}

impl Default for RingStoreBuilder {
    fn default() -> Self {
        RingStoreBuilder {
            components: Vec::new(),
            dtype: DType::F32,
            batch_size: 4096,
            window: 262_144,
            ready_frames: 2,
            queue_rows: None,
            max_skew: None,
            seed: 0,
            drop_last: false,
            when_full: WhenFull::Wait,
            merge: Merge::Arrival,
            runtime: None,
        }
    }
}

impl RingStoreBuilder {
    /// Adds a component, with rows of `features` values of the store's [`dtype`](Self::dtype). They are numbered from 0.
    pub fn component(mut self, name: impl Into<String>, features: usize) -> Self {
        self.components.push((name.into(), features, None));
        self
    }

    /// Adds a component with an element type of its own, such as token ids or positions beside the activations.
    pub fn component_of(mut self, name: impl Into<String>, features: usize, dtype: DType) -> Self {
        self.components.push((name.into(), features, Some(dtype)));
        self
    }

    /// The element type of components that have none of their own. Default: `f32`.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Rows of a minibatch. Default: 4,096.
    pub fn batch_size(mut self, rows: usize) -> Self {
        self.batch_size = rows;
        self
    }

    /// Rows that a minibatch's rows are spread over, rounded down to whole minibatches. Default: 262,144.
    ///
    /// The ring takes the memory of that many rows.
    pub fn window(mut self, rows: usize) -> Self {
        self.window = rows;
        self
    }

    /// Full minibatches that may wait for a consumer. Default: 2.
    pub fn ready_frames(mut self, frames: usize) -> Self {
        self.ready_frames = frames;
        self
    }

    /// Rows of each component that may wait for the writer before callers wait. Default: two minibatches.
    ///
    /// A batch that is larger than this is still taken when nothing else waits. Rows count until they are dealt, or set aside
    /// until the rows of their other components come.
    pub fn queue_rows(mut self, rows: usize) -> Self {
        self.queue_rows = Some(rows);
        self
    }

    /// Rows that one component may run ahead of another on the same lane. Default: [`queue_rows`](Self::queue_rows).
    ///
    /// One batch may always run ahead, however large it is. Raise this to fill a store component by component.
    pub fn max_skew(mut self, rows: usize) -> Self {
        self.max_skew = Some(rows);
        self
    }

    /// Seeds the shuffling. The same seed and rows give the same minibatches, bit for bit. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Whether to drop the last, partial minibatch instead of serving it. Default: `false`.
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = drop_last;
        self
    }

    /// What happens when the consumers lag. Default: [`WhenFull::Wait`].
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.when_full = when_full;
        self
    }

    /// How the rows of several producers become one sequence. Default: [`Merge::Arrival`].
    pub fn merge(mut self, merge: Merge) -> Self {
        self.merge = merge;
        self
    }

    /// The runtime on whose blocking pool the writer runs. Default: the one `build` is called in, if any; else the
    /// writer has a thread of its own, to which it also moves if the runtime shuts down.
    ///
    /// The writer takes up one blocking thread for as long as the store lives, and starts, and answers, once the pool has one
    /// to spare (of 512, unless configured otherwise). Under tokio's paused test clock that keeps time from advancing by itself; build
    /// the store outside of the runtime there.
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    pub(crate) fn check(self) -> Result<Config, BuildError> {
        let components = components(self.components, self.dtype);
        let queue_rows = self.queue_rows.unwrap_or_else(|| self.batch_size.saturating_mul(2));
        let max_skew = self.max_skew.unwrap_or(queue_rows);
        for (what, value) in [
            ("batch_size", self.batch_size),
            ("window", self.window),
            ("ready_frames", self.ready_frames),
            ("queue_rows", queue_rows),
            ("max_skew", max_skew),
        ] {
            not_zero(what, value)?;
        }
        if self.window < self.batch_size {
            return Err(BuildError::WindowTooSmall { window: self.window, batch_size: self.batch_size });
        }
        let open_frames = self.window / self.batch_size;
        for (what, value) in
            [("batch_size", self.batch_size), ("window / batch_size", open_frames), ("ready_frames", self.ready_frames)]
        {
            // Frames and slots are counted in `u32`s.
            let limit = u32::MAX as usize;
            if value > limit {
                return Err(BuildError::TooMany { what, value, limit });
            }
        }
        Ok(Config {
            layout: Arc::new(Layout::new(&components, self.batch_size)?),
            open_frames,
            ready_frames: self.ready_frames,
            queue_rows,
            max_skew,
            seed: self.seed,
            drop_last: self.drop_last,
            when_full: self.when_full,
            merge: self.merge,
        })
    }
}

pub(crate) fn components(named: Vec<(String, usize, Option<DType>)>, default: DType) -> Vec<Component> {
    let component = |(name, features, dtype): (String, usize, Option<DType>)| Component {
        name: name.into(),
        features,
        dtype: dtype.unwrap_or(default),
    };
    named.into_iter().map(component).collect()
}

pub(crate) fn not_zero(what: &'static str, value: usize) -> Result<(), BuildError> {
    if value == 0 { Err(BuildError::Zero { what: what.into() }) } else { Ok(()) }
}
