//! Where full frames wait for consumers, and where the rows are counted.
//!
//! The one lock between the writer and the consumers, taken once per batch and once per minibatch. Because frames and
//! counts change hands under it together, the counts add up at every moment.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use ndarray::ArrayD;
use tokio::sync::Notify;

use crate::error::{IndexError, ReadError};
use crate::memory::frame::Frame;
use crate::memory::pool::Pool;
use crate::pipeline::fate::Fate;
use crate::pipeline::minibatch::Minibatch;
use crate::pipeline::queue::Room;
use crate::pipeline::sync::lock;
use crate::rows::index::Index;

/// What reaches the writer past the queue.
pub(crate) enum Control {
    /// Discard everything that has been handed over.
    Empty(Sender<()>),
    /// Read rows.
    Get(Index, Sender<Result<ArrayD<f32>, IndexError>>),
    /// Discard everything and end.
    Abort,
    /// The runtime is shutting down.
    Leave,
}

/// Full frames on their way from the writer to the consumers.
#[derive(Debug)]
pub(crate) struct Exchange {
    capacity: usize,
    state: Mutex<State>,
    /// Notified when a minibatch is ready, or none will come any more.
    pub(crate) arrivals: Arc<Notify>,
    pub(crate) fate: Arc<Fate>,
    pool: Arc<Pool>,
    room: Arc<Room>,
    control: Sender<Control>,
    nudges: Sender<()>,
}

#[derive(Debug)]
struct State {
    ready: VecDeque<Full>,
    next_ordinal: u64,
    /// Nothing more will become ready.
    ended: bool,
    /// What would become ready is discarded.
    abandoned: bool,
    writer_waits: bool,
    consumers: usize,
    /// Consumers that have asked for a minibatch and not got one.
    waiting: u32,
    /// Up to when their waits have been counted.
    counted: Instant,
    /// Since when the writer waits for them, if it does.
    writer_waits_since: Option<Instant>,
    counts: Counts,
}

/// A full frame.
#[derive(Debug)]
pub(crate) struct Full {
    pub(crate) frame: Frame,
    pub(crate) rows: usize,
    ordinal: u64,
}

/// What has become of the rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) components: Vec<ComponentCounts>,
    /// Rows, of every component, in open frames.
    pub(crate) open_rows: usize,
    /// Rows, of every component, in ready frames.
    pub(crate) ready_rows: usize,
    pub(crate) ready_frames: usize,
    pub(crate) open_frames: usize,
    pub(crate) minibatches_served: u64,
    pub(crate) producer_wait: Duration,
    pub(crate) consumer_wait: Duration,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct ComponentCounts {
    pub(crate) accepted: u64,
    /// Accepted rows that wait for another component.
    pub(crate) staged: u64,
    pub(crate) served: u64,
    pub(crate) dropped: u64,
}

/// What a consumer finds.
pub(crate) enum Next {
    Minibatch(Minibatch),
    Error(ReadError),
    Nothing,
    End,
}

impl Exchange {
    pub(crate) fn new(
        capacity: usize,
        open_frames: usize,
        pool: Arc<Pool>,
        fate: Arc<Fate>,
        room: Arc<Room>,
        control: Sender<Control>,
        nudges: Sender<()>,
    ) -> Self {
        let components = vec![ComponentCounts::default(); pool.layout().n_components()];
        let state = State {
            ready: VecDeque::with_capacity(capacity),
            next_ordinal: 0,
            ended: false,
            abandoned: false,
            writer_waits: false,
            consumers: 0,
            waiting: 0,
            counted: Instant::now(),
            writer_waits_since: None,
            counts: Counts { components, open_frames, ..Counts::default() },
        };
        let arrivals = Arc::new(Notify::new());
        Exchange { capacity, state: Mutex::new(state), arrivals, fate, pool, room, control, nudges }
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Makes a waiting writer look again. Neither waits nor allocates.
    pub(crate) fn nudge(&self) {
        // One that is there already does as well.
        let _ = self.nudges.try_send(());
    }

    // The writer's side.

    /// Changes the counts.
    pub(crate) fn count<T>(&self, change: impl FnOnce(&mut Counts) -> T) -> T {
        change(&mut lock(&self.state).counts)
    }

    /// The counts, with the waits that go on, and what `also` reads at the same moment.
    pub(crate) fn counts<T>(&self, also: impl FnOnce() -> T) -> (Counts, T) {
        let mut state = lock(&self.state);
        state.count_waits();
        let mut counts = state.counts.clone();
        counts.producer_wait += state.writer_waits_since.map_or(Duration::ZERO, |since| since.elapsed());
        (counts, also())
    }

    /// The writer waits for consumers from now on.
    pub(crate) fn writer_waits(&self) {
        lock(&self.state).writer_waits_since = Some(Instant::now());
    }

    /// The writer waits no longer; for how long it has.
    pub(crate) fn writer_goes_on(&self) -> Duration {
        let mut state = lock(&self.state);
        let waited = state.writer_waits_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        state.counts.producer_wait += waited;
        waited
    }

    /// Whether another full frame may be pushed. If not, a nudge will tell when to ask again.
    pub(crate) fn has_room(&self) -> bool {
        let mut state = lock(&self.state);
        let room = state.ready.len() < self.capacity;
        state.writer_waits = !room;
        room
    }

    /// Makes the first `rows` rows of `frame`, until now counted as open, ready for a consumer.
    pub(crate) fn push(&self, frame: Frame, rows: usize) {
        {
            let mut state = lock(&self.state);
            if state.abandoned {
                state.counts.drop_open(rows);
                drop(state);
                return self.pool.put(frame);
            }
            state.count_waits();
            let ordinal = state.next_ordinal;
            state.next_ordinal += 1;
            state.ready.push_back(Full { frame, rows, ordinal });
            state.counts.open_rows -= rows;
            state.counts.ready_rows += rows;
            state.counts.ready_frames += 1;
        }
        // All waiting consumers, since a notified one may have stopped polling.
        self.arrivals.notify_waiters();
    }

    /// Discards the oldest ready minibatch, unless a consumer has made room meanwhile.
    pub(crate) fn make_room(&self) {
        self.discard_oldest_of(self.capacity);
    }

    /// Discards the oldest ready minibatch if there are at least `least`.
    fn discard_oldest_of(&self, least: usize) {
        let full = {
            let mut state = lock(&self.state);
            state.count_waits();
            let full = if state.ready.len() < least { None } else { state.ready.pop_front() };
            state.counts.drop_ready(full.as_ref());
            full
        };
        if let Some(full) = full {
            self.pool.put(full.frame);
        }
    }

    /// Discards all ready minibatches.
    pub(crate) fn discard_all(&self) {
        while self.count(|counts| counts.ready_frames) > 0 {
            self.discard_oldest_of(1);
        }
    }

    /// Reads the ready minibatches, which stay where they are meanwhile.
    pub(crate) fn with_ready<T>(&self, read: impl FnOnce(&VecDeque<Full>) -> T) -> T {
        read(&lock(&self.state).ready)
    }

    /// Nothing more will become ready.
    pub(crate) fn end(&self) {
        {
            let mut state = lock(&self.state);
            state.count_waits();
            state.ended = true;
            state.counts.open_frames = 0;
        }
        let (Counts { minibatches_served, producer_wait, consumer_wait, .. }, ()) = self.counts(|| ());
        tracing::info!(minibatches_served, ?producer_wait, ?consumer_wait, "no more minibatches become ready");
        self.pool.dissolve();
        self.arrivals.notify_waiters();
    }

    // The consumers' side.

    /// Takes the oldest ready minibatch. `waiting` says whether the consumer has been told that there was none, and is
    /// counted as waiting since.
    pub(crate) fn next(&self, waiting: &mut bool) -> Next {
        if let Some(error) = self.fate.read_error() {
            self.stop_waiting(waiting);
            return Next::Error(error);
        }
        let (full, room) = {
            let mut state = lock(&self.state);
            state.count_waits();
            let full = state.ready.pop_front();
            let nothing = full.is_none() && !state.ended;
            state.set_waiting(waiting, nothing);
            let Some(full) = full else {
                if *waiting {
                    return Next::Nothing;
                }
                drop(state);
                // What ended it may have come after the look above.
                return self.fate.read_error().map_or(Next::End, Next::Error);
            };
            let counts = &mut state.counts;
            counts.ready_rows -= full.rows;
            counts.ready_frames -= 1;
            counts.minibatches_served += 1;
            for component in &mut counts.components {
                component.served += full.rows as u64;
            }
            (full, std::mem::take(&mut state.writer_waits))
        };
        if room {
            self.nudge();
        }
        Next::Minibatch(Minibatch::new(full.frame, full.rows, full.ordinal, self.pool.clone()))
    }

    /// The consumer waits no longer.
    pub(crate) fn stop_waiting(&self, waiting: &mut bool) {
        if *waiting {
            let mut state = lock(&self.state);
            state.count_waits();
            state.set_waiting(waiting, false);
        }
    }

    /// Has everything discarded. The store's fate is known to be `Abort` or `NoConsumers`.
    pub(crate) fn abandon(&self) {
        lock(&self.state).abandoned = true;
        let _ = self.control.send(Control::Abort);
        // The writer may not read that for a while, or may have ended, or not have started.
        self.discard_all();
        self.room.look_again();
    }

    pub(crate) fn add_consumer(&self) {
        lock(&self.state).consumers += 1;
    }

    /// Returns how many are left.
    pub(crate) fn remove_consumer(&self) -> usize {
        let mut state = lock(&self.state);
        state.consumers -= 1;
        state.consumers
    }

    pub(crate) fn consumers(&self) -> usize {
        lock(&self.state).consumers
    }
}

impl State {
    /// Counts the waits since this was last called: nobody waits while a minibatch is ready, for it need only be taken.
    ///
    /// To be called before `ready`, `ended` or `waiting` changes.
    fn count_waits(&mut self) {
        let now = Instant::now();
        if self.ready.is_empty() && !self.ended {
            self.counts.consumer_wait += (now - self.counted) * self.waiting;
        }
        self.counted = now;
    }

    fn set_waiting(&mut self, was: &mut bool, is: bool) {
        self.waiting = self.waiting + u32::from(is) - u32::from(*was);
        *was = is;
    }
}

impl Counts {
    fn drop_ready(&mut self, full: Option<&Full>) {
        let Some(full) = full else { return };
        self.ready_rows -= full.rows;
        self.ready_frames -= 1;
        for component in &mut self.components {
            component.dropped += full.rows as u64;
        }
    }

    /// Counts rows of every component that leave the open frames unserved.
    pub(crate) fn drop_open(&mut self, rows: usize) {
        self.open_rows -= rows;
        for component in &mut self.components {
            component.dropped += rows as u64;
        }
    }

    /// Rows that are in the ring with all their components.
    pub(crate) fn whole_rows(&self) -> usize {
        self.open_rows + self.ready_rows
    }
}
