//! What the handles, the writer and the consumers share: one mutex, and the sending end of the queue.
//!
//! The mutex is taken once per batch, once per plan of rows, and once per minibatch. Neither rows are copied nor foreign
//! code runs while it is held: wakers, frames and batches that a change sets free leave it in an [`Afterwards`].
//!
//! A producer counts and sends in the same critical section. So order and counts agree, and nothing slips past a close. A
//! change that concerns the writer is noted here and announced by a `Look` message, of which at most one is in the queue.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use ndarray::ArrayD;
use tokio::sync::{Notify, oneshot};

use crate::error::{ClosedBy, IndexError, NoRoom, ReadError, StoreFullError, WriteError};
use crate::memory::frame::Frame;
use crate::memory::pool::{FrameHome, Pool};
use crate::pipeline::config::{Config, Merge, WhenFull};
use crate::pipeline::handle::{WriteHandle, Written};
use crate::pipeline::ledger::Ledger;
use crate::pipeline::queue::{Demand, HandedOver, Message, QueueBound, Write};
use crate::pipeline::stats::{ComponentStats, Stats};
use crate::pipeline::status::{Failure, Status};
use crate::pipeline::wait::lock;
use crate::pipeline::worker::{Panic, Panics};
use crate::rows::index::Index;

/// What a ring store's handles, its writer and its consumers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    state: Mutex<State>,
    queue: Sender<Message>,
    /// Notified when a minibatch is ready, or when none will come any more.
    pub(crate) arrivals: Arc<Notify>,
}

#[derive(Debug)]
pub(crate) struct State {
    status: Status,
    /// The writer has ended: nothing more becomes ready.
    ended: bool,
    lanes: BTreeMap<u64, LaneState>,
    next_lane: u64,
    /// The bound that all lanes share, under [`Merge::Arrival`].
    bound: Option<QueueBound>,
    /// Full frames, oldest first.
    ready: VecDeque<ReadyFrame>,
    ready_rows: usize,
    next_ordinal: u64,
    /// Empty frames.
    pub(crate) pool: Pool,
    lent: usize,
    pub(crate) ledger: Ledger,
    served_rows: u64,
    minibatches_served: u64,
    waits: Waits,
    consumers: usize,
    requests: Requests,
    flushes: Vec<FlushRequest>,
    /// Rows that lost their counterparts, not yet reported by a flush.
    unmatched: VecDeque<WriteError>,
    /// A `Look` is in the queue.
    look_sent: bool,
    /// What the writer waits for.
    writer_waits_for: Option<WaitsFor>,
}

/// What ends the writer's wait, apart from batches and requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitsFor {
    /// A consumer takes a ready minibatch.
    Room,
    /// A consumer drops a minibatch.
    Frame,
}

/// A lane, as its producers see it.
#[derive(Debug)]
struct LaneState {
    /// Rows of each component that were handed over.
    handed: Vec<u64>,
    /// How many of them have been dealt, set aside or discarded.
    settled: Vec<u64>,
    closed: bool,
    /// The bound of this lane alone, under [`Merge::RoundRobin`]: a lane that waits for its turn must not use up the share of another.
    bound: Option<QueueBound>,
}

/// A full frame that waits for a consumer.
#[derive(Debug)]
pub(crate) struct ReadyFrame {
    pub(crate) frame: Frame,
    pub(crate) rows: usize,
    pub(crate) ordinal: u64,
}

/// How long each side has waited for the other.
#[derive(Debug)]
struct Waits {
    for_consumers: Duration,
    for_producers: Duration,
    /// Consumers that have asked for a minibatch and not got one.
    consumers: u32,
    /// Up to when the waits of consumers have been counted.
    counted: Instant,
    /// Since when rows wait for consumers, if they do.
    rows_since: Option<Instant>,
}

/// What the writer is asked to do.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Discard everything that was handed over before.
    pub(crate) empties: Vec<Sender<()>>,
    /// Read rows.
    pub(crate) gets: Vec<(Index, GetReply)>,
    /// Leave the runtime, which is shutting down.
    pub(crate) leave: bool,
}

/// Resolves a flush.
pub(crate) type FlushReply = oneshot::Sender<Result<(), WriteError>>;

pub(crate) type GetReply = Sender<Result<ArrayD<f32>, IndexError>>;

impl Requests {
    pub(crate) fn is_empty(&self) -> bool {
        self.empties.is_empty() && self.gets.is_empty() && !self.leave
    }
}

/// A flush, and the lanes it waits for.
#[derive(Debug)]
struct FlushRequest {
    /// The rows that each lane must have settled; `None` where the lane must have ended.
    lanes: Vec<(u64, Option<Vec<u64>>)>,
    reply: FlushReply,
}

/// What must happen once the mutex is free, since it runs foreign code or frees memory.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Afterwards {
    wakers: Vec<Waker>,
    flushes: Vec<(FlushReply, Result<(), WriteError>)>,
    frames: Vec<Frame>,
    requests: Requests,
    /// A minibatch is ready, or none will come.
    arrival: bool,
}

impl Afterwards {
    /// To be called without the mutex. A waker that panics keeps no other from being woken.
    fn run(&mut self, shared: &Shared) -> Result<(), Panic> {
        self.frames.clear();
        let mut panics = Panics::default();
        if mem::take(&mut self.arrival) {
            // All consumers that wait, since a notified one may have stopped polling.
            panics.catch(|| shared.arrivals.notify_waiters());
        }
        // A caller that no longer waits for its answer does not matter.
        for (reply, outcome) in self.flushes.drain(..) {
            panics.catch(|| drop(reply.send(outcome)));
        }
        for (_, reply) in self.requests.gets.drain(..) {
            let _ = reply.send(Err(shared.why_no_get()));
        }
        for reply in self.requests.empties.drain(..) {
            let _ = reply.send(());
        }
        for waker in self.wakers.drain(..) {
            panics.catch(|| waker.wake());
        }
        panics.first()
    }
}

/// What to do with rows that the queue has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoomThen {
    /// Take them all the same, unless the store is configured to reject them.
    LineUp,
    /// Refuse them.
    Refuse,
    /// Refuse them, also while other callers wait for room.
    RefuseBehindOthers,
}

/// What a consumer finds.
pub(crate) enum Next {
    Minibatch(ReadyFrame),
    Error(ReadError),
    Nothing,
    End,
}

/// What a consumer has been told and not told.
#[derive(Debug, Default)]
pub(crate) struct ConsumerState {
    /// It found no minibatch, and counts as waiting since.
    pub(crate) waiting: bool,
    /// It has got the error that the store was closed with.
    told_failure: bool,
    /// It was made after the store was aborted.
    late: bool,
}

impl Shared {
    pub(crate) fn new(config: Arc<Config>, queue: Sender<Message>, spares: Vec<Frame>) -> Self {
        let components = config.layout.n_components();
        let mut pool = Pool::new(config.spare_frames());
        spares.into_iter().for_each(|frame| pool.put(frame));
        let state = State {
            status: Status::default(),
            ended: false,
            lanes: BTreeMap::from([(0, LaneState::new(&config))]),
            next_lane: 1,
            bound: (config.merge == Merge::Arrival).then(|| QueueBound::new(config.queue_rows, components)),
            ready: VecDeque::with_capacity(config.ready_frames),
            ready_rows: 0,
            next_ordinal: 0,
            pool,
            lent: 0,
            ledger: Ledger::new(components),
            served_rows: 0,
            minibatches_served: 0,
            waits: Waits {
                for_consumers: Duration::ZERO,
                for_producers: Duration::ZERO,
                consumers: 0,
                counted: Instant::now(),
                rows_since: None,
            },
            consumers: 0,
            requests: Requests::default(),
            flushes: Vec::new(),
            unmatched: VecDeque::new(),
            look_sent: false,
            writer_waits_for: None,
        };
        Shared { config, state: Mutex::new(state), queue, arrivals: Arc::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Does what had to wait until the mutex was free.
    ///
    /// # Panics
    /// Panics at the end if a waker did.
    pub(crate) fn run(&self, afterwards: &mut Afterwards) {
        if let Err(panic) = afterwards.run(self) {
            resume_unwind(panic);
        }
    }

    fn why_no_get(&self) -> IndexError {
        match self.lock().status.poison() {
            Some(cause) => IndexError::Poisoned { cause: cause.clone() },
            None => IndexError::Ended,
        }
    }

    /// Makes the writer look at the state. Neither waits nor, in most cases, allocates.
    fn announce(&self, state: &mut State) {
        if !state.look_sent && !state.ended {
            state.look_sent = true;
            // An error means that the writer has ended.
            let _ = self.queue.send(Message::Look);
        }
    }

    // The producers' side.

    /// Opens a lane.
    pub(crate) fn open_lane(&self) -> Result<u64, WriteError> {
        let mut state = self.lock();
        state.status.check()?;
        let lane = state.next_lane;
        state.next_lane += 1;
        state.lanes.insert(lane, LaneState::new(&self.config));
        let _ = self.queue.send(Message::OpenLane(lane));
        Ok(lane)
    }

    /// Ends a lane: it takes no more rows.
    pub(crate) fn close_lane(&self, lane: u64) {
        let mut afterwards = Afterwards::default();
        {
            let mut state = self.lock();
            let Some(open) = state.lanes.get_mut(&lane).filter(|lane| !lane.closed) else { return };
            open.closed = true;
            state.lines().for_each(|line| afterwards.wakers.extend(line.take_line()));
            let _ = self.queue.send(Message::CloseLane(lane));
        }
        self.run(&mut afterwards);
    }

    /// Checks rows, counts them, and sends them to the writer. Gives them back where they are refused.
    pub(crate) fn hand_over(
        &self,
        lane: u64,
        rows: HandedOver,
        no_room: NoRoomThen,
    ) -> Result<WriteHandle, (WriteError, HandedOver)> {
        self.send(lane, rows, |state, demand| state.admit(&self.config, lane, demand, no_room))
    }

    /// As [`hand_over`](Self::hand_over), for rows that room is reserved for.
    pub(crate) fn hand_over_reserved(
        &self,
        lane: u64,
        rows: HandedOver,
    ) -> Result<WriteHandle, (WriteError, HandedOver)> {
        self.send(lane, rows, |state, demand| {
            let first_row = state.check(&self.config, lane, demand)?;
            state.bound_of(lane).into_iter().for_each(|bound| bound.release(demand));
            Ok(first_row)
        })
    }

    fn send(
        &self,
        lane: u64,
        rows: HandedOver,
        admit: impl FnOnce(&mut State, Demand) -> Result<u64, WriteError>,
    ) -> Result<WriteHandle, (WriteError, HandedOver)> {
        let demand = rows.demand();
        let (reply, handle) = WriteHandle::pending();
        let mut state = self.lock();
        let first_row = match admit(&mut state, demand) {
            Ok(first_row) => first_row,
            Err(error) => {
                drop(state);
                return Err((error, rows));
            }
        };
        if demand.rows == 0 {
            drop(state);
            return Ok(WriteHandle::ready(Ok(Written { rows: 0, first_row })));
        }
        // An error means that the writer has ended, and then the status would have refused the rows.
        if let Err(unsent) = self.queue.send(Message::Write(Write { lane, rows, first_row, reply })) {
            let error = state.status.check().err().unwrap_or(WriteError::Closed(ClosedBy::Close));
            drop(state);
            return match unsent.into_inner() {
                Message::Write(write) => Err((error, write.rows)),
                _ => Ok(handle),
            };
        }
        state.count_in(lane, demand);
        Ok(handle)
    }

    /// Takes no more rows; those handed over are served.
    pub(crate) fn close(&self, failure: Option<Failure>) {
        self.end(ClosedBy::Close, failure);
    }

    /// Takes no more rows, and discards those there are.
    pub(crate) fn discard(&self, by: ClosedBy) {
        self.end(by, None);
    }

    fn end(&self, by: ClosedBy, failure: Option<Failure>) {
        let mut afterwards = Afterwards::default();
        let mut unused = None;
        {
            let mut state = self.lock();
            state.count_waits();
            unused = failure.and_then(|failure| state.status.fail(failure).err()).or(unused);
            if state.status.close(by) {
                state.stop(&mut afterwards);
                self.announce(&mut state);
            }
        }
        drop(unused);
        self.run(&mut afterwards);
    }

    /// The writer has panicked.
    pub(crate) fn poison(&self, cause: &str) -> Afterwards {
        let mut afterwards = Afterwards::default();
        let mut state = self.lock();
        state.count_waits();
        state.status.set_poison(cause);
        state.stop(&mut afterwards);
        afterwards
    }

    pub(crate) fn is_closed(&self) -> bool {
        !self.lock().status.is_open()
    }

    /// Resolves `reply` when everything handed over before has been settled.
    pub(crate) fn flush(&self, reply: FlushReply) {
        let mut state = self.lock();
        let lanes = state.unsettled_lanes();
        let outcome = if state.status.discards() { state.status.check() } else { Ok(()) };
        if outcome.is_ok() && !lanes.is_empty() && !state.ended {
            state.flushes.push(FlushRequest { lanes, reply });
            return;
        }
        drop(state);
        // The caller has not looked yet.
        let _ = reply.send(outcome);
    }

    /// Discards everything that was handed over before. Blocks until the writer has done it.
    pub(crate) fn empty(&self) {
        let (reply, emptied) = crossbeam_channel::bounded(1);
        let mut afterwards = Afterwards::default();
        {
            let mut state = self.lock();
            if state.ended || state.status.discards() {
                // Nothing is left but ready minibatches.
                let rows = state.take_ready(&mut afterwards);
                state.ledger.drop_rows(rows, |dropped| &mut dropped.emptied);
                drop(reply);
            } else {
                state.requests.empties.push(reply);
                self.announce(&mut state);
            }
        }
        self.run(&mut afterwards);
        // An error means that there was nothing to wait for.
        let _ = emptied.recv();
    }

    /// Reads rows. Blocks until the writer answers.
    pub(crate) fn get(&self, index: Index) -> Result<ArrayD<f32>, IndexError> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        {
            let mut state = self.lock();
            if state.ended || state.status.discards() {
                // The answer below is that there is none.
                drop(reply);
            } else {
                state.requests.gets.push((index, reply));
                self.announce(&mut state);
            }
        }
        answer.recv().unwrap_or_else(|_| Err(self.why_no_get()))
    }

    /// Makes the writer leave its runtime.
    pub(crate) fn leave(&self) {
        let mut state = self.lock();
        state.requests.leave = true;
        self.announce(&mut state);
    }

    /// Rows in the ring with all their components.
    pub(crate) fn len(&self) -> usize {
        self.lock().whole_rows()
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut state = self.lock();
        state.count_waits();
        let whole = state.whole_rows() as u64;
        let components = self.config.layout.components().iter().zip(&state.ledger.components).enumerate();
        let components = components.map(|(i, (component, counts))| ComponentStats {
            name: component.name.clone(),
            accepted: counts.accepted,
            queued: state.queued(i) as u64,
            resident: counts.set_aside + whole,
            served: state.served_rows,
            dropped: counts.dropped,
        });
        Stats {
            components: components.collect(),
            minibatches_served: state.minibatches_served,
            waited_for_consumers: state.waits.for_consumers,
            waited_for_producers: state.waits.for_producers,
            frames_open: if state.ended { 0 } else { self.config.open_frames },
            frames_ready: state.ready.len(),
            frames_lent: state.lent,
        }
    }

    // The consumers' side.

    pub(crate) fn add_consumer(&self) -> ConsumerState {
        let mut state = self.lock();
        state.consumers += 1;
        ConsumerState { late: state.status.is_aborted(), ..ConsumerState::default() }
    }

    /// Counts a consumer out. Without any, no row could ever be served: the store closes.
    pub(crate) fn remove_consumer(&self, consumer: &mut ConsumerState) {
        self.stop_waiting(consumer);
        let left = {
            let mut state = self.lock();
            state.consumers -= 1;
            state.consumers
        };
        if left == 0 {
            self.discard(ClosedBy::NoConsumers);
        }
    }

    pub(crate) fn has_consumers(&self) -> bool {
        self.lock().consumers > 0
    }

    /// Takes the oldest ready minibatch.
    pub(crate) fn next(&self, consumer: &mut ConsumerState) -> Next {
        let mut state = self.lock();
        state.count_waits();
        let next = state.next(consumer);
        let waits = matches!(next, Next::Nothing);
        state.set_waiting(consumer, waits);
        if matches!(next, Next::Minibatch(_)) && state.writer_waits_for == Some(WaitsFor::Room) {
            state.writer_waits_for = None;
            self.announce(&mut state);
        }
        next
    }

    /// The consumer waits no longer.
    pub(crate) fn stop_waiting(&self, consumer: &mut ConsumerState) {
        if consumer.waiting {
            let mut state = self.lock();
            state.count_waits();
            state.set_waiting(consumer, false);
        }
    }
}

impl FrameHome for Shared {
    fn give_back(&self, frame: Frame) {
        let mut surplus = None;
        {
            let mut state = self.lock();
            state.lent -= 1;
            let waited_for = state.writer_waits_for == Some(WaitsFor::Frame);
            if waited_for || state.keeps_another(&self.config) {
                state.pool.put(frame);
            } else {
                surplus = Some(frame);
            }
            if waited_for {
                state.writer_waits_for = None;
                self.announce(&mut state);
            }
        }
        drop(surplus);
    }
}

impl State {
    pub(crate) fn status(&self) -> &Status {
        &self.status
    }

    // The producers' side.

    /// The bound that holds for a lane; `None` if it went with the lane.
    fn bound_of(&mut self, lane: u64) -> Option<&mut QueueBound> {
        self.lanes.get_mut(&lane).and_then(|lane| lane.bound.as_mut()).or(self.bound.as_mut())
    }

    /// Every bound.
    fn bounds(&mut self) -> impl Iterator<Item = &mut QueueBound> {
        self.lanes.values_mut().filter_map(|lane| lane.bound.as_mut()).chain(&mut self.bound)
    }

    /// Rows of a component that are queued, on all lanes.
    fn queued(&self, component: usize) -> usize {
        let of_lanes = self.lanes.values().filter_map(|lane| lane.bound.as_ref());
        of_lanes.chain(&self.bound).map(|bound| bound.queued(component)).sum()
    }

    /// Checks that rows may be handed over, if there is room; returns the position of the first.
    pub(crate) fn check(&self, config: &Config, lane: u64, demand: Demand) -> Result<u64, WriteError> {
        self.status.check()?;
        let lane = self.lanes.get(&lane).filter(|lane| !lane.closed).ok_or(WriteError::Closed(ClosedBy::Lane))?;
        match demand.component {
            Some(component) => lane.check_skew(config, component, demand.rows)?,
            None => lane.check_even(config)?,
        }
        Ok(lane.handed[demand.component.unwrap_or(0)])
    }

    /// Whether the rows belong to rows of another component that were taken. They never wait, and are never refused for
    /// room: that would leave the others without counterparts.
    fn has_counterparts(&self, lane: u64, demand: Demand) -> bool {
        let (Some(lane), Some(component)) = (self.lanes.get(&lane), demand.component) else { return false };
        lane.handed.iter().any(|&taken| taken >= lane.handed[component] + demand.rows as u64)
    }

    fn admit(&mut self, config: &Config, lane: u64, demand: Demand, no_room: NoRoomThen) -> Result<u64, WriteError> {
        let first_row = self.check(config, lane, demand)?;
        let may_line_up = no_room == NoRoomThen::LineUp && config.when_full != WhenFull::Reject;
        if demand.rows == 0 || may_line_up || self.has_counterparts(lane, demand) {
            return Ok(first_row);
        }
        let Some(bound) = self.bound_of(lane) else { return Ok(first_row) };
        let mut full = bound.no_room_for(demand);
        if full.is_none() && no_room == NoRoomThen::RefuseBehindOthers && bound.has_line() {
            full = demand.components(config.layout.n_components()).next().map(|first| (first, bound.queued(first)));
        }
        let Some((component, held)) = full else { return Ok(first_row) };
        let component = config.layout.name(component);
        Err(StoreFullError::queue(NoRoom { component, rows: demand.rows, held, bound: bound.bound() }).into())
    }

    fn count_in(&mut self, lane: u64, demand: Demand) {
        self.bound_of(lane).into_iter().for_each(|bound| bound.enter(demand));
        if let Some(lane) = self.lanes.get_mut(&lane) {
            demand.components(lane.handed.len()).for_each(|component| lane.handed[component] += demand.rows as u64);
        }
    }

    /// Keeps room for rows if there is room and the caller comes next. `Ok(false)` if it has to wait.
    pub(crate) fn try_reserve(
        &mut self,
        config: &Config,
        lane: u64,
        demand: Demand,
        ticket: Option<u64>,
    ) -> Result<bool, WriteError> {
        self.check(config, lane, demand)?;
        let counterparts = self.has_counterparts(lane, demand);
        let Some(bound) = self.bound_of(lane) else { return Err(WriteError::Closed(ClosedBy::Lane)) };
        let free = counterparts || bound.is_next(ticket) && bound.no_room_for(demand).is_none();
        if free {
            bound.reserve(demand);
        }
        Ok(free)
    }

    /// Puts a caller in line for room; see [`QueueBound::queue_up`].
    pub(crate) fn queue_up(
        &mut self,
        lane: u64,
        ticket: Option<u64>,
        demand: Demand,
        waker: Waker,
    ) -> (u64, Option<Waker>) {
        match self.bound_of(lane) {
            Some(bound) => bound.queue_up(ticket, demand, waker),
            None => (0, Some(waker)),
        }
    }

    /// Takes a caller out of the line, and wakes the next.
    pub(crate) fn leave_line(&mut self, lane: u64, ticket: u64, afterwards: &mut Afterwards) -> Option<Waker> {
        let bound = self.bound_of(lane)?;
        let own = bound.leave_line(ticket);
        afterwards.wakers.extend(bound.take_next());
        own
    }

    /// Gives back room that was kept and not used.
    pub(crate) fn release(&mut self, lane: u64, demand: Demand, afterwards: &mut Afterwards) {
        let Some(bound) = self.bound_of(lane) else { return };
        bound.release(demand);
        afterwards.wakers.extend(bound.take_next());
    }

    /// The bounds that callers wait at.
    fn lines(&mut self) -> impl Iterator<Item = &mut QueueBound> {
        self.bounds().filter(|bound| bound.has_line())
    }

    /// Lanes that have rows to settle, or that are about to end.
    fn unsettled_lanes(&self) -> Vec<(u64, Option<Vec<u64>>)> {
        let ends_all = !self.status.is_open();
        let unsettled = self.lanes.iter().filter_map(|(&id, lane)| {
            if lane.closed || (ends_all && lane.handed.iter().any(|&rows| rows > 0)) {
                return Some((id, None));
            }
            (lane.handed != lane.settled).then(|| (id, Some(lane.handed.clone())))
        });
        unsettled.collect()
    }

    // The writer's side.

    /// The `Look` message has been received: what is noted from now on needs another.
    pub(crate) fn looked(&mut self) {
        self.look_sent = false;
    }

    pub(crate) fn take_requests(&mut self) -> Requests {
        mem::take(&mut self.requests)
    }

    /// Notes how many rows of a lane have been settled since it was opened.
    pub(crate) fn settle(&mut self, id: u64, settled: &[u64]) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let Some(bound) = lane.bound.as_mut().or(self.bound.as_mut()) else { return };
        for (component, (before, &now)) in lane.settled.iter_mut().zip(settled).enumerate() {
            bound.leave(component, (now - *before) as usize);
            *before = now;
        }
    }

    /// Forgets a lane that has ended and holds nothing any more.
    pub(crate) fn remove_lane(&mut self, lane: u64, unmatched: Option<WriteError>) {
        self.lanes.remove(&lane);
        self.unmatched.extend(unmatched);
    }

    /// Wakes the callers that have room now, and resolves the flushes that are done.
    pub(crate) fn tell_producers(&mut self, afterwards: &mut Afterwards) {
        self.lines().for_each(|line| afterwards.wakers.extend(line.take_next()));
        if self.flushes.is_empty() {
            return;
        }
        let lanes = &self.lanes;
        let is_settled = |(id, handed): &(u64, Option<Vec<u64>>)| match (lanes.get(id), handed) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(lane), Some(handed)) => lane.settled.iter().zip(handed).all(|(settled, handed)| settled >= handed),
        };
        let done = self.flushes.extract_if(.., |flush| flush.lanes.iter().all(is_settled));
        for flush in done {
            afterwards.flushes.push((flush.reply, Ok(())));
        }
    }

    /// Rows that lost their counterparts and have not been reported.
    pub(crate) fn take_unmatched(&mut self) -> Option<WriteError> {
        self.unmatched.pop_front()
    }

    /// Whether another full frame may be made ready.
    pub(crate) fn has_room(&self, config: &Config) -> bool {
        self.ready.len() < config.ready_frames
    }

    /// Makes the first `rows` rows of `frame`, until now counted as open, ready for a consumer.
    pub(crate) fn push_ready(&mut self, frame: Frame, rows: usize, ledger: &mut Ledger, afterwards: &mut Afterwards) {
        self.count_waits();
        ledger.open_rows -= rows;
        self.ready_rows += rows;
        self.ready.push_back(ReadyFrame { frame, rows, ordinal: self.next_ordinal });
        self.next_ordinal += 1;
        afterwards.arrival = true;
    }

    /// Discards the oldest ready minibatch, and returns its memory.
    pub(crate) fn take_oldest(&mut self, ledger: &mut Ledger) -> Option<Frame> {
        self.count_waits();
        let oldest = self.ready.pop_front()?;
        self.ready_rows -= oldest.rows;
        ledger.drop_rows(oldest.rows, |dropped| &mut dropped.oldest);
        Some(oldest.frame)
    }

    /// Takes the ready frames out, so that they can be read without the mutex. Consumers wait meanwhile.
    pub(crate) fn borrow_ready(&mut self) -> VecDeque<ReadyFrame> {
        self.count_waits();
        mem::take(&mut self.ready)
    }

    /// Puts the ready frames back, unless they are to be discarded.
    pub(crate) fn return_ready(&mut self, mut ready: VecDeque<ReadyFrame>, afterwards: &mut Afterwards) {
        if self.status.discards() {
            afterwards.frames.extend(ready.drain(..).map(|ready| ready.frame));
        }
        self.count_waits();
        self.ready = ready;
        afterwards.arrival = true;
    }

    /// Takes all ready minibatches out, to be discarded. Returns how many rows they have.
    pub(crate) fn take_ready(&mut self, afterwards: &mut Afterwards) -> usize {
        self.count_waits();
        afterwards.frames.extend(self.ready.drain(..).map(|ready| ready.frame));
        mem::take(&mut self.ready_rows)
    }

    /// The writer waits, for consumers if it says so.
    pub(crate) fn writer_waits(&mut self, waits_for: Option<WaitsFor>) {
        self.count_waits();
        self.writer_waits_for = waits_for;
        let rows_wait = waits_for == Some(WaitsFor::Room) && self.status.is_open();
        self.waits.rows_since = rows_wait.then(|| self.waits.rows_since.unwrap_or(self.waits.counted));
    }

    /// The writer has ended: nothing more becomes ready.
    pub(crate) fn end(&mut self, afterwards: &mut Afterwards) {
        self.count_waits();
        self.ended = true;
        self.waits.rows_since = None;
        afterwards.frames.extend(self.pool.take_all());
        afterwards.requests = self.take_requests();
        afterwards.arrival = true;
        self.tell_producers(afterwards);
        for flush in self.flushes.drain(..) {
            let outcome = if self.status.discards() { self.status.check() } else { Ok(()) };
            afterwards.flushes.push((flush.reply, outcome));
        }
        tracing::info!(
            minibatches_served = self.minibatches_served,
            waited_for_consumers = ?self.waits.for_consumers,
            waited_for_producers = ?self.waits.for_producers,
            "no more minibatches become ready"
        );
    }

    // Both sides.

    /// The store takes no more rows: wakes every caller. If it also discards what it holds, counts that as dropped.
    fn stop(&mut self, afterwards: &mut Afterwards) {
        self.waits.rows_since = None;
        afterwards.arrival = true;
        self.lines().for_each(|line| afterwards.wakers.extend(line.take_line()));
        if !self.status.discards() {
            return;
        }
        self.take_ready(afterwards);
        self.ledger.open_rows = 0;
        for component in &mut self.ledger.components {
            component.set_aside = 0;
            component.dropped.aborted += component.accepted - self.served_rows - component.dropped.total();
        }
        self.bounds().for_each(QueueBound::clear);
        let requests = self.take_requests();
        // The writer, which may be leaving its runtime, still has to.
        self.requests.leave = requests.leave;
        afterwards.requests = Requests { leave: false, ..requests };
        for flush in self.flushes.drain(..) {
            afterwards.flushes.push((flush.reply, self.status.check()));
        }
    }

    /// Whether an empty frame is kept for the writer, or freed.
    fn keeps_another(&self, config: &Config) -> bool {
        !self.ended && !self.status.discards() && self.ready.len() + self.pool.len() < config.spare_frames()
    }

    fn next(&mut self, consumer: &mut ConsumerState) -> Next {
        if let Some(cause) = self.status.poison() {
            return Next::Error(ReadError::Poisoned { cause: cause.clone() });
        }
        if self.status.discards() {
            return if consumer.late { Next::Error(ReadError::Aborted) } else { Next::End };
        }
        if let Some(ready) = self.ready.pop_front() {
            self.ready_rows -= ready.rows;
            self.lent += 1;
            self.minibatches_served += 1;
            self.served_rows += ready.rows as u64;
            return Next::Minibatch(ready);
        }
        if !self.ended {
            return Next::Nothing;
        }
        match self.status.failure() {
            Some(failure) if !consumer.told_failure => {
                consumer.told_failure = true;
                Next::Error(ReadError::Failed(failure.clone()))
            }
            _ => Next::End,
        }
    }

    fn set_waiting(&mut self, consumer: &mut ConsumerState, is: bool) {
        self.waits.consumers = self.waits.consumers + u32::from(is) - u32::from(consumer.waiting);
        consumer.waiting = is;
    }

    /// Counts the waits since this was last called. No consumer waits while a minibatch is ready: it need only be taken.
    ///
    /// To be called before `ready`, `ended` or what waits changes.
    fn count_waits(&mut self) {
        let now = Instant::now();
        let waits = &mut self.waits;
        if self.ready.is_empty() && !self.ended {
            waits.for_producers += (now - waits.counted) * waits.consumers;
        }
        if let Some(since) = &mut waits.rows_since {
            waits.for_consumers += now - *since;
            *since = now;
        }
        waits.counted = now;
    }

    /// Rows that are in the ring with all their components.
    fn whole_rows(&self) -> usize {
        self.ledger.open_rows + self.ready_rows
    }
}

impl LaneState {
    fn new(config: &Config) -> Self {
        let components = config.layout.n_components();
        let own_bound = config.merge == Merge::RoundRobin;
        LaneState {
            handed: vec![0; components],
            settled: vec![0; components],
            closed: false,
            bound: own_bound.then(|| QueueBound::new(config.queue_rows, components)),
        }
    }

    /// The component with the fewest rows, and the one with the most.
    fn extremes(&self) -> (usize, usize) {
        let components = 0..self.handed.len();
        let fewest = components.clone().min_by_key(|&component| self.handed[component]).unwrap_or(0);
        let most = components.max_by_key(|&component| self.handed[component]).unwrap_or(0);
        (fewest, most)
    }

    fn check_skew(&self, config: &Config, component: usize, rows: usize) -> Result<(), WriteError> {
        let (fewest, _) = self.extremes();
        let by = self.handed[component] - self.handed[fewest];
        // One batch may always run ahead, however large it is.
        if by == 0 || by.saturating_add(rows as u64) <= config.max_skew as u64 {
            return Ok(());
        }
        let (ahead, missing) = (config.layout.name(component), config.layout.name(fewest));
        Err(WriteError::Skew { ahead, missing, by, max_skew: config.max_skew })
    }

    fn check_even(&self, config: &Config) -> Result<(), WriteError> {
        let (fewest, most) = self.extremes();
        let by = self.handed[most] - self.handed[fewest];
        if by == 0 {
            return Ok(());
        }
        Err(WriteError::Uneven { ahead: config.layout.name(most), missing: config.layout.name(fewest), by })
    }
}
