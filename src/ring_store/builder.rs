//! The configuration of a ring store. It is checked once, when the store is built.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::dealing::dealer::{Runs, frame_rows};
use crate::disk::folder::random_name;
use crate::ring_store::snapshot::body::{ComponentBody, ConfigBody, ReplayBody};
use crate::ring_store::snapshot::error::ResumeError;
use crate::rows::build_error::BuildError;
use crate::rows::element::DType;
use crate::rows::layout::{Component, Layout};

/// What a store does with rows that it has no room for, because its consumers lag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WhenFull {
    /// The rows wait: handles stay pending, and `extend_blocking` blocks, until there is room.
    #[default]
    Wait,
    /// A write fails with [`StoreFullError`](crate::StoreFullError) if the queue is full. It does not fail if the store has already
    /// taken the same rows of another component. See [`RingStore::try_extend`](crate::RingStore::try_extend).
    Reject,
    /// The store discards its oldest ready frame: a minibatch or, if minibatches share frames, the minibatches left in the frame. The
    /// store counts their rows as dropped.
    ///
    /// With this policy, the pace of the consumers decides which rows are served.
    DropOldest,
}

/// How the rows of several producers become one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Merge {
    /// Rows are dealt as they arrive. No lane waits for another lane.
    #[default]
    Arrival,
    /// Lanes take turns, in the order in which they were opened: 64 rows from each open lane. So runs repeat bit for bit, and the
    /// timing of the threads does not matter.
    ///
    /// A lane that falls behind makes the other lanes wait. So a thread that feeds several lanes must hand over rows to all of them
    /// before it waits for one of them (for a handle or a flush). `queue_rows` bounds each lane separately. A lane takes part as
    /// soon as it is opened. The store's own lane takes part as soon as you write to it. So open every producer before the first
    /// write, and write to the store's own lane first or not at all.
    RoundRobin,
}

/// Configures a [`RingStore`](crate::RingStore). Made by [`RingStore::builder`](crate::RingStore::builder).
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct RingStoreBuilder {
    components: Vec<(String, usize, Option<DType>)>,
    // A setting that is `None` has its default or, in a resumed store, the snapshot's value.
    dtype: Option<DType>,
    batch_size: Option<usize>,
    window: Option<Window>,
    ready_frames: Option<usize>,
    queue_rows: Option<usize>,
    max_skew: Option<usize>,
    seed: Option<u64>,
    drop_last: Option<bool>,
    when_full: Option<WhenFull>,
    merge: Option<Merge>,
    allow_overcommit: bool,
    halves_last: bool,
    replay: Option<ReplayBody>,
}

/// The form in which the window was given.
#[derive(Clone, Copy, Debug)]
enum Window {
    Rows(usize),
    /// The largest window that fits in so many bytes.
    Memory(usize),
}

/// A checked configuration.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) layout: Arc<Layout>,
    /// The rows of a minibatch. The rows of a frame are a multiple of this.
    pub(crate) batch_size: usize,
    pub(crate) open_frames: usize,
    pub(crate) ready_frames: usize,
    pub(crate) queue_rows: usize,
    pub(crate) max_skew: usize,
    pub(crate) seed: u64,
    pub(crate) drop_last: bool,
    pub(crate) when_full: WhenFull,
    pub(crate) merge: Merge,
    pub(crate) allow_overcommit: bool,
    /// Whether the last minibatch is served in two parts if it is full.
    pub(crate) halves_last: bool,
    /// What the run is known by in its snapshots.
    pub(crate) run: String,
    /// The replay that fills the store, if one does.
    pub(crate) replay: Option<ReplayBody>,
}

impl Config {
    /// The number of frames beside the open frames: the ready frames, and one frame that a consumer works on.
    pub(crate) fn spare_frames(&self) -> usize {
        spare_frames(self.ready_frames)
    }

    /// The rows of the window: whole frames.
    pub(crate) fn window(&self) -> usize {
        self.open_frames.saturating_mul(self.layout.rows())
    }

    /// The number of minibatches that share a frame.
    pub(crate) fn minibatches_per_frame(&self) -> u64 {
        (self.layout.rows() / self.batch_size) as u64
    }

    /// Computes when frames complete.
    pub(crate) fn runs(&self) -> Runs {
        Runs::new(self.open_frames, self.layout.rows())
    }

    /// The number of all frames.
    pub(crate) fn frames(&self) -> usize {
        self.open_frames.saturating_add(self.spare_frames())
    }

    /// Refuses a store that needs more than nine tenths of the `available` bytes, because the rest of the process needs memory, too.
    pub(crate) fn check_memory(&self, available: Option<usize>) -> Result<(), BuildError> {
        let Some(available) = available else { return Ok(()) };
        let available = available - available / 10;
        let rows = self.layout.rows();
        match self.layout.bytes().checked_mul(self.frames()) {
            Some(needed) if needed > available => Err(BuildError::Memory {
                window: self.window(),
                needed,
                available,
                largest_window: open_frames_in(available, &self.layout, self.ready_frames).saturating_mul(rows),
            }),
            // If the product overflows, the allocation fails with an error.
            _ => Ok(()),
        }
    }
}

fn spare_frames(ready_frames: usize) -> usize {
    ready_frames.saturating_add(1)
}

/// The largest window, in rows, of a store of so many bytes.
fn window_in(bytes: usize, layout: &Layout, ready_frames: usize) -> Result<usize, BuildError> {
    match open_frames_in(bytes, layout, ready_frames) {
        0 => Err(BuildError::MemoryTooSmall {
            memory: bytes,
            batch_size: layout.rows(),
            needed: layout.bytes().saturating_mul(spare_frames(ready_frames).saturating_add(1)),
        }),
        frames => Ok(frames.saturating_mul(layout.rows())),
    }
}

/// The number of open frames that a store of so many bytes can have.
fn open_frames_in(bytes: usize, layout: &Layout, ready_frames: usize) -> usize {
    (bytes / layout.bytes()).saturating_sub(spare_frames(ready_frames))
}

const BATCH_SIZE: usize = 4096;
const WINDOW: usize = 262_144;
const READY_FRAMES: usize = 2;

impl RingStoreBuilder {
    /// Adds a component, with rows of `features` values of the store's [`dtype`](Self::dtype). Components are numbered from 0.
    pub fn component(mut self, name: impl Into<String>, features: usize) -> Self {
        self.components.push((name.into(), features, None));
        self
    }

    /// Adds a component with an element type of its own, for example for token ids or positions beside the activations.
    pub fn component_of(mut self, name: impl Into<String>, features: usize, dtype: DType) -> Self {
        self.components.push((name.into(), features, Some(dtype)));
        self
    }

    /// Sets the element type of the components that have no element type of their own. Default: `f32`.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Sets the rows of a minibatch. Default: 4,096.
    pub fn batch_size(mut self, rows: usize) -> Self {
        self.batch_size = Some(rows);
        self
    }

    /// Sets the window: the rows that a minibatch's rows are spread over. The store rounds it down to whole frames. Default: 262,144.
    ///
    /// A frame is a minibatch, or several small ones: [`Plan::frame_rows`](crate::Plan::frame_rows).
    ///
    /// A larger window mixes minibatches better, but training starts later:
    ///
    /// * The ring takes the memory of so many rows. The operating system provides this memory while the first window of rows comes.
    ///   This takes about 0.1 s for each GiB, and longer if a virtual machine must first get the memory from its host.
    /// * The first minibatch is ready after about half a window of rows.
    /// * The store holds about half a window of rows, plus the ready minibatches, before a consumer must take a minibatch.
    ///
    /// [`plan`](Self::plan) computes these figures. [`memory`](Self::memory) sets the window by its memory.
    pub fn window(mut self, rows: usize) -> Self {
        self.window = Some(Window::Rows(rows));
        self
    }

    /// Sets the [`window`](Self::window) to the largest one that fits in `bytes`. These bytes hold the frames of the window, the ready
    /// frames, and one frame that a consumer works on. They do not hold the batches in the queue, which are memory of the callers.
    ///
    /// If you call both `window` and `memory`, the later call counts.
    pub fn memory(mut self, bytes: usize) -> Self {
        self.window = Some(Window::Memory(bytes));
        self
    }

    /// Sets how many full frames may wait for a consumer. A frame is a minibatch, or several small ones. Default: 2.
    pub fn ready_frames(mut self, frames: usize) -> Self {
        self.ready_frames = Some(frames);
        self
    }

    /// Sets how many rows of each component may wait for the writer before callers wait. Default: two minibatches.
    ///
    /// The store takes a larger batch if nothing else waits. Rows count until the store deals them, or sets them aside until the rows
    /// of the other components come.
    pub fn queue_rows(mut self, rows: usize) -> Self {
        self.queue_rows = Some(rows);
        self
    }

    /// Sets how many rows one component may run ahead of another on the same lane. Default: [`queue_rows`](Self::queue_rows).
    ///
    /// One batch of any size may always run ahead. Raise this bound to fill a store component by component.
    pub fn max_skew(mut self, rows: usize) -> Self {
        self.max_skew = Some(rows);
        self
    }

    /// Sets the seed of the shuffling. The same seed and rows give the same minibatches, bit for bit. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets whether to drop the last, partial minibatch instead of serving it. Default: `false`.
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = Some(drop_last);
        self
    }

    /// Sets what the store does when its consumers lag. Default: [`WhenFull::Wait`].
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.when_full = Some(when_full);
        self
    }

    /// Sets how the rows of several producers become one sequence. Default: [`Merge::Arrival`].
    pub fn merge(mut self, merge: Merge) -> Self {
        self.merge = Some(merge);
        self
    }

    /// Sets whether to build a store that needs more than nine tenths of the memory that is available now. Default: `false`: `build`
    /// refuses such a store with [`BuildError::Memory`](crate::BuildError::Memory).
    ///
    /// Use this if the memory will be free when the store needs it, or if the machine may swap. On Linux, memory is available if the
    /// machine has it and the control groups of the process (the limit of a container or a job) allow it. On other systems the
    /// store does not check. Memory that another store has obtained but not used yet counts as available.
    pub fn allow_overcommit(mut self, allow: bool) -> Self {
        self.allow_overcommit = allow;
        self
    }

    /// The name of the first component. `None` if there is no component.
    pub(crate) fn first_component(&self) -> Option<&str> {
        self.components.first().map(|(name, ..)| name.as_str())
    }

    /// Takes out the seed, if it is set.
    pub(crate) fn take_seed(&mut self) -> Option<u64> {
        self.seed.take()
    }

    /// Sets whether the last minibatch is served in two parts if it is full.
    pub(crate) fn halves_last(mut self, halves_last: bool) -> Self {
        self.halves_last = halves_last;
        self
    }

    /// Sets the replay that fills the store.
    pub(crate) fn filled_by(mut self, replay: ReplayBody) -> Self {
        self.replay = Some(replay);
        self
    }

    /// Checks the configuration of a new store.
    pub(crate) fn check(self) -> Result<Config, BuildError> {
        let components = components(self.components, self.dtype.unwrap_or_default());
        let batch_size = self.batch_size.unwrap_or(BATCH_SIZE);
        let ready_frames = self.ready_frames.unwrap_or(READY_FRAMES);
        let queue_rows = self.queue_rows.unwrap_or_else(|| batch_size.saturating_mul(2));
        for (what, value) in [("batch_size", batch_size), ("ready_frames", ready_frames), ("queue_rows", queue_rows)] {
            not_zero(what, value)?;
        }
        // Frames and slots are counted in `u32`s.
        let limit = u32::MAX as usize;
        at_most(limit, "batch_size", batch_size)?;
        at_most(limit, "ready_frames", ready_frames)?;
        let layout = |window| Layout::new(&components, frame_rows(batch_size, window));
        let window = match self.window.unwrap_or(Window::Rows(WINDOW)) {
            Window::Rows(rows) => rows,
            Window::Memory(bytes) => {
                let window = window_in(bytes, &Layout::new(&components, batch_size)?, ready_frames)?;
                // If minibatches share frames, a smaller window fits.
                window_in(bytes, &layout(window)?, ready_frames)?
            }
        };
        let max_skew = self.max_skew.unwrap_or(queue_rows);
        not_zero("window", window)?;
        not_zero("max_skew", max_skew)?;
        if window < batch_size {
            return Err(BuildError::WindowTooSmall { window, batch_size });
        }
        let layout = Arc::new(layout(window)?);
        let open_frames = window / layout.rows();
        at_most(limit, "window / batch_size", open_frames)?;
        Ok(Config {
            layout,
            batch_size,
            open_frames,
            ready_frames,
            queue_rows,
            max_skew,
            seed: self.seed.unwrap_or_default(),
            drop_last: self.drop_last.unwrap_or_default(),
            when_full: self.when_full.unwrap_or_default(),
            merge: self.merge.unwrap_or_default(),
            allow_overcommit: self.allow_overcommit,
            halves_last: self.halves_last,
            run: random_name(),
            replay: self.replay,
        })
    }

    /// Checks the configuration of a resumed store. A setting that is not set here comes from the snapshot. A setting that is set must
    /// match the snapshot, except `ready_frames`, `queue_rows` and `allow_overcommit`.
    pub(crate) fn check_over(self, saved: &ConfigBody) -> Result<Config, ResumeError> {
        let unknown = |what: &'static str, value: &str| ResumeError::Unknown { what, value: value.to_owned() };
        let component = |component: &ComponentBody| {
            let dtype = component.dtype().ok_or_else(|| unknown("dtype", &component.dtype))?;
            Ok((component.name.clone(), component.features, Some(dtype)))
        };
        let base = RingStoreBuilder {
            components: saved.components.iter().map(component).collect::<Result<_, ResumeError>>()?,
            batch_size: Some(saved.batch_size),
            window: Some(Window::Rows(saved.window)),
            ready_frames: Some(self.ready_frames.unwrap_or(saved.ready_frames)),
            queue_rows: Some(self.queue_rows.unwrap_or(saved.queue_rows)),
            max_skew: Some(saved.max_skew),
            seed: Some(saved.seed),
            drop_last: Some(saved.drop_last),
            when_full: Some(named(&saved.when_full).ok_or_else(|| unknown("when_full", &saved.when_full))?),
            merge: Some(named(&saved.merge).ok_or_else(|| unknown("merge", &saved.merge))?),
            ..self.clone()
        };
        let given = RingStoreBuilder {
            components: if self.components.is_empty() { base.components.clone() } else { self.components },
            dtype: self.dtype,
            batch_size: self.batch_size.or(base.batch_size),
            window: self.window.or(base.window),
            max_skew: self.max_skew.or(base.max_skew),
            seed: self.seed.or(base.seed),
            drop_last: self.drop_last.or(base.drop_last),
            when_full: self.when_full.or(base.when_full),
            merge: self.merge.or(base.merge),
            ..base.clone()
        };
        let (base, given) = (base.check()?, given.check()?);
        match ConfigBody::from(&given).differs_from(&ConfigBody::from(&base)) {
            Some((setting, [given, saved])) => Err(ResumeError::Mismatch { setting, given, saved }),
            None => Ok(base),
        }
    }
}

impl From<&Config> for ConfigBody {
    fn from(config: &Config) -> Self {
        ConfigBody {
            components: config.layout.components().iter().map(ComponentBody::from).collect(),
            batch_size: config.batch_size,
            window: config.window(),
            ready_frames: config.ready_frames,
            queue_rows: config.queue_rows,
            max_skew: config.max_skew,
            seed: config.seed,
            drop_last: config.drop_last,
            when_full: name(config.when_full),
            merge: name(config.merge),
        }
    }
}

/// The name of a setting's value in a snapshot.
fn name(value: impl Serialize) -> String {
    // The values are names, so this never fails.
    serde_json::to_value(value).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The value of that name.
fn named<T: DeserializeOwned>(name: &str) -> Option<T> {
    serde_json::from_value(name.into()).ok()
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

fn at_most(limit: usize, what: &'static str, value: usize) -> Result<(), BuildError> {
    if value > limit { Err(BuildError::TooMany { what, value, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten open frames of 128 rows, of 4 × 4 bytes each, two ready and one more: 26,624 bytes.
    fn config(change: impl Fn(RingStoreBuilder) -> RingStoreBuilder) -> Config {
        let builder = RingStoreBuilder::default().component("a", 4).batch_size(128).window(1280);
        change(builder).check().unwrap()
    }

    #[test]
    fn a_store_may_take_nine_tenths_of_what_is_available() {
        let config = config(|builder| builder);
        assert_eq!(config.check_memory(None), Ok(()));
        assert_eq!(config.check_memory(Some(29_582)), Ok(()));
        let refused = BuildError::Memory { window: 1280, needed: 26_624, available: 26_623, largest_window: 1152 };
        assert_eq!(config.check_memory(Some(29_581)), Err(refused));
    }

    #[test]
    fn the_largest_window_that_fits_does_and_a_larger_one_does_not() {
        for available in (0..64_000).step_by(113) {
            let largest = match config(|builder| builder.window(128_000)).check_memory(Some(available)) {
                Err(BuildError::Memory { largest_window, .. }) => largest_window,
                other => panic!("{other:?}"),
            };
            let fits = |rows| config(|builder| builder.window(rows)).check_memory(Some(available)).is_ok();
            assert!(largest == 0 || fits(largest), "{largest} rows in {available} bytes");
            assert!(!fits(largest + 128), "{largest} rows in {available} bytes");
        }
    }
}
