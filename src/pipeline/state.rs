//! The state that the handles, the writer and the consumers share: one mutex, and the sending end of the queue.
//!
//! The mutex is locked once per batch, once per plan of rows, and once per minibatch. While the mutex is held, no rows are copied
//! and no foreign code runs. A change of the state puts wakers, answers and memory to free in an [`Afterwards`], which runs after
//! the mutex is released.
//!
//! A producer counts its rows and sends them in the same critical section. So the order of the rows agrees with the counts, and no
//! rows are sent after a close. A change that concerns the writer is noted in the state. A `Look` message tells the writer to look
//! at the state. At most one `Look` is in the queue.

use std::collections::VecDeque;
use std::mem;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::Waker;
use std::thread;

use crossbeam_channel::{Sender, bounded};
use ndarray::ArrayD;
use tokio::sync::oneshot;

use crate::disk::disk::Disk;
use crate::error::{ClosedBy, IndexError, LaneId, ReadError, SnapshotError, WriteError};
use crate::memory::frame::Frame;
use crate::memory::pool::FrameHome;
use crate::pipeline::admission::{Admission, NoRoomThen, Opened, Unsettled};
use crate::pipeline::afterwards::{Afterwards, EmptyReply, FlushReply, GetReply};
use crate::pipeline::config::Config;
use crate::pipeline::handle::{WriteHandle, Written};
use crate::pipeline::ledger::{ComponentLedger, Ledger};
use crate::pipeline::queue::{Demand, HandedOver, Message, Write};
use crate::pipeline::ready::{Frames, Lent, ReadyFrame};
use crate::pipeline::restart::{check_policy, ledger, restarts_with, resumed_lanes, turn};
use crate::pipeline::saving::{Saved, Saving, SnapshotRequest};
use crate::pipeline::stats::{ComponentStats, Stats};
use crate::pipeline::status::{Failure, Status};
use crate::pipeline::wait::lock;
use crate::pipeline::waits::Waits;
use crate::pipeline::worker::discard;
use crate::rows::index::Index;
use crate::snapshot::body::{
    Body, ComponentStatsBody, ConfigBody, EndedLane, LaneBody, LogBody, PositionBody, StatsBody, TurnBody, Versions,
};
use crate::snapshot::journal::{Journal, LaneJournal, PassEntry, Segment};
use crate::snapshot::snapshot::{Form, ResumeAt, Snapshot};

/// The fewest segments that the journal keeps before it forgets any.
const FORGET_AT: usize = 256;

/// The state that the handles, the writer and the consumers of a ring store share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    /// Where the lanes of a resumed store go on.
    pub(crate) resume_at: Vec<ResumeAt>,
    state: Mutex<State>,
    queue: Sender<Message>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) status: Status,
    /// Whether the writer has ended: then nothing more becomes ready.
    ended: bool,
    pub(crate) admission: Admission,
    pub(crate) frames: Frames,
    waits: Waits,
    ledger: Ledger,
    pub(crate) journal: Journal,
    /// Once the journal has so many segments, it forgets the rows that no minibatch needs.
    forget_at: usize,
    /// The lane whose turn comes after the rows in the journal, and the rows left of its turn. `None` unless lanes take turns.
    turn: Option<(u64, usize)>,
    served_rows: u64,
    minibatches_served: u64,
    consumers: usize,
    next_consumer: u64,
    /// The consumers that wait for a minibatch: the id and the waker of each.
    waiting: Vec<(u64, Waker)>,
    requests: Requests,
    /// Alive while a full snapshot is being written.
    saving: Weak<()>,
    flushes: Vec<(Unsettled, FlushReply)>,
    /// The reports of rows whose counterparts in another component never came. No flush has returned these reports yet.
    pub(crate) unmatched: VecDeque<WriteError>,
    /// Whether a `Look` is in the queue.
    look_sent: bool,
    writer_waits_for: Option<WaitsFor>,
}

/// The event that ends the writer's wait, apart from batches and requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitsFor {
    /// A consumer takes a ready minibatch, so that rows can be dealt.
    Room,
    /// A consumer takes a ready minibatch, so that the full frame becomes ready. No row waits.
    Turn,
    /// A consumer drops a minibatch.
    Frame,
}

/// The requests to the writer.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Requests to discard everything that was handed over before.
    pub(crate) empties: Vec<EmptyReply>,
    /// Requests to read rows.
    pub(crate) gets: Vec<(Index, GetReply)>,
    /// Requests to take a full snapshot.
    pub(crate) snapshots: Vec<SnapshotRequest>,
    /// Whether the writer must leave its runtime, which is shutting down.
    pub(crate) leave: bool,
}

impl Requests {
    pub(crate) fn is_empty(&self) -> bool {
        self.empties.is_empty() && self.gets.is_empty() && self.snapshots.is_empty() && !self.leave
    }
}

/// What a consumer finds.
pub(crate) enum Next {
    Minibatch(Lent),
    Error(ReadError),
    Nothing,
    End,
}

/// What the store knows about a consumer.
#[derive(Debug, Default)]
pub(crate) struct ConsumerState {
    id: u64,
    /// Whether the consumer counts as waiting: it found no minibatch when it last looked.
    pub(crate) waiting: bool,
    /// Whether the consumer has got the error that the store was closed with.
    told_failure: bool,
    /// Whether the consumer was made after the store was aborted.
    late: bool,
}

impl Shared {
    /// Makes the state of a new store or, with a snapshot, of a store that goes on where the saved store stood.
    pub(crate) fn new(
        config: Arc<Config>,
        queue: Sender<Message>,
        empty: Vec<Frame>,
        snapshot: Option<&Snapshot>,
    ) -> Self {
        let mut state = State {
            status: Status::default(),
            ended: false,
            admission: Admission::new(config.clone()),
            frames: Frames::new(&config, empty),
            waits: Waits::new(),
            ledger: Ledger::new(config.layout.n_components()),
            journal: Journal::default(),
            forget_at: FORGET_AT,
            turn: None,
            served_rows: 0,
            minibatches_served: 0,
            consumers: 0,
            next_consumer: 0,
            waiting: Vec::new(),
            requests: Requests::default(),
            saving: Weak::new(),
            flushes: Vec::new(),
            unmatched: VecDeque::new(),
            look_sent: false,
            writer_waits_for: None,
        };
        snapshot.into_iter().for_each(|snapshot| state.resume(&config, &snapshot.body));
        let resume_at = snapshot.map_or_else(Vec::new, Snapshot::resume_at);
        Shared { config, resume_at, state: Mutex::new(state), queue }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes the state, then does the work that the change causes, without the mutex.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State, &mut Afterwards) -> T) -> T {
        let mut afterwards = Afterwards::default();
        let result = change(&mut self.lock(), &mut afterwards);
        self.run(&mut afterwards);
        result
    }

    /// Does the work that a change of the state causes. Call this without the mutex.
    ///
    /// # Panics
    /// Panics at the end if a waker panicked, unless this thread is already panicking.
    pub(crate) fn run(&self, afterwards: &mut Afterwards) {
        if let Err(panic) = afterwards.run() {
            // A second panic during unwinding would abort the process.
            if thread::panicking() {
                discard(panic);
            } else {
                resume_unwind(panic);
            }
        }
    }

    /// Makes the writer look at the state. Does not wait.
    fn announce(&self, state: &mut State) {
        if !state.look_sent && !state.ended {
            state.look_sent = true;
            // An error means that the writer has ended.
            let _ = self.queue.send(Message::Look);
        }
    }

    // The producers' side.

    /// Opens a lane, and returns its number.
    pub(crate) fn open_lane(&self, name: Option<Arc<str>>) -> Result<u64, WriteError> {
        let mut state = self.lock();
        state.status.check()?;
        let Opened { id, resumed } = state.admission.open_lane(name.clone())?;
        if !resumed {
            state.journal.open(id, name);
            let _ = self.queue.send(Message::OpenLane(id));
        }
        Ok(id)
    }

    /// Notes that a lane of a resumed store is sent again from its first row on.
    pub(crate) fn send_again(&self, lane: u64) -> Result<(), WriteError> {
        let mut state = self.lock();
        state.status.check()?;
        state.admission.send_again(lane)?;
        let _ = self.queue.send(Message::SendAgain(lane));
        Ok(())
    }

    /// Ends a lane: the lane takes no more rows.
    pub(crate) fn close_lane(&self, lane: u64) {
        self.change(|state, afterwards| {
            if state.admission.close_lane(lane, &mut afterwards.wakers) {
                let _ = self.queue.send(Message::CloseLane(lane));
            }
        });
    }

    /// Checks rows, counts them, and sends them to the writer. Returns refused rows with the error.
    pub(crate) fn hand_over(
        &self,
        lane: u64,
        rows: HandedOver,
        no_room: NoRoomThen,
    ) -> Result<WriteHandle, (WriteError, HandedOver)> {
        self.send(lane, rows, |admission, demand| admission.admit(lane, demand, no_room))
    }

    /// As [`hand_over`](Self::hand_over), for rows whose room in the queue is reserved.
    pub(crate) fn hand_over_reserved(
        &self,
        lane: u64,
        rows: HandedOver,
    ) -> Result<WriteHandle, (WriteError, HandedOver)> {
        self.send(lane, rows, |admission, demand| {
            let first_row = admission.check(lane, demand)?;
            admission.use_reserved(lane, demand);
            Ok(first_row)
        })
    }

    fn send(
        &self,
        lane: u64,
        mut rows: HandedOver,
        admit: impl FnOnce(&mut Admission, Demand) -> Result<u64, WriteError>,
    ) -> Result<WriteHandle, (WriteError, HandedOver)> {
        let demand = rows.demand();
        let (reply, handle) = WriteHandle::pending();
        let mut state = self.lock();
        let admitted = state.status.check().and_then(|()| admit(&mut state.admission, demand));
        let first_row = match admitted {
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
        state.journal.handed_over(lane);
        if let HandedOver::Pass(_, value) = &mut rows {
            state.journal.pass(lane, PassEntry { first_row, rows: demand.rows as u64, value: value.take() });
        }
        // The writer receives messages as long as the status is open.
        let _ = self.queue.send(Message::Write(Write { lane, rows, first_row, reply }));
        let mut afterwards = Afterwards::default();
        state.admission.count_in(lane, demand, &mut afterwards.wakers);
        drop(state);
        self.run(&mut afterwards);
        Ok(handle)
    }

    /// Resolves `reply` when all rows handed over before are settled: dealt, set aside or discarded.
    pub(crate) fn flush(&self, reply: FlushReply) {
        self.change(|state, afterwards| {
            let unsettled = state.admission.unsettled(!state.status.is_open());
            if state.status.discards() || state.ended || unsettled.is_empty() {
                afterwards.flushes.push((reply, state.flushed()));
            } else {
                state.flushes.push((unsettled, reply));
            }
        });
    }

    /// Discards everything that was handed over before. Blocks until the writer has done this.
    pub(crate) fn empty(&self) {
        let (reply, emptied) = bounded(1);
        self.change(|state, afterwards| {
            if state.ended || state.status.discards() {
                // Only ready minibatches are left.
                let rows = state.discard_ready(afterwards);
                state.ledger.drop_rows(rows, |dropped| &mut dropped.emptied);
                afterwards.empties.push(reply);
            } else {
                state.requests.empties.push(reply);
                self.announce(state);
            }
        });
        // An error means that the writer has ended without an answer.
        let _ = emptied.recv();
    }

    /// Reads rows. Blocks until the writer answers.
    pub(crate) fn get(&self, index: Index) -> Result<ArrayD<f32>, IndexError> {
        let (reply, answer) = bounded(1);
        self.change(|state, afterwards| {
            if state.ended || state.status.discards() {
                afterwards.gets.push((reply, state.why_no_get()));
            } else {
                state.requests.gets.push((index, reply));
                self.announce(state);
            }
        });
        answer.recv().unwrap_or(Err(IndexError::Ended))
    }

    /// Takes a light snapshot.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, SnapshotError> {
        check_policy(&self.config, Form::Light)?;
        let state = self.lock();
        state.check_saveable()?;
        Ok(Snapshot::new(state.body(&self.config, Form::Light)))
    }

    /// Saves a snapshot, and resolves `reply` once it is on disk.
    pub(crate) fn save(
        &self,
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        form: Form,
        reply: oneshot::Sender<Saved>,
    ) -> Result<(), SnapshotError> {
        let request = SnapshotRequest { disk, dir, reply, busy: Arc::default() };
        if form == Form::Light {
            request.write_light(self.snapshot()?);
            return Ok(());
        }
        check_policy(&self.config, form)?;
        let mut state = self.lock();
        state.check_saveable()?;
        if let Some(owed) = state.ledger.owed {
            return Err(SnapshotError::DealsAgain { left: owed as u64 });
        }
        if state.saving.upgrade().is_some() {
            return Err(SnapshotError::InProgress);
        }
        state.saving = Arc::downgrade(&request.busy);
        if state.ended {
            drop(state);
            self.save_ready(request);
        } else {
            state.frames.pin();
            state.requests.snapshots.push(request);
            self.announce(&mut state);
        }
        Ok(())
    }

    /// Saves a store whose writer has ended: only ready frames are left.
    fn save_ready(&self, request: SnapshotRequest) {
        let (body, ready) = {
            let mut state = self.lock();
            (state.body(&self.config, Form::Full), state.borrow_ready())
        };
        Saving::start_with(request, body, &self.config.layout, &ready.iter().collect::<Vec<_>>(), Vec::new());
        self.change(|state, afterwards| state.return_ready(ready, afterwards));
    }

    // Ends.

    /// Takes no more rows. Consumers get the rows that were handed over, and then the error, if there is one.
    pub(crate) fn close(&self, failure: Option<Failure>) {
        let unused = self.change(|state, afterwards| {
            let unused = failure.and_then(|failure| state.status.fail(failure).err());
            self.end(state, ClosedBy::Close, afterwards);
            unused
        });
        drop(unused);
    }

    /// Takes no more rows, and discards the rows in the store.
    pub(crate) fn discard(&self, by: ClosedBy) {
        self.change(|state, afterwards| self.end(state, by, afterwards));
    }

    fn end(&self, state: &mut State, by: ClosedBy, afterwards: &mut Afterwards) {
        // Consumers have taken every row, so the store has ended well, and stays closed as before.
        if by == ClosedBy::NoConsumers && state.ended && state.frames.ready() == 0 {
            return;
        }
        if state.close(by, afterwards) {
            self.announce(state);
        }
    }

    /// Notes that the writer has panicked, and refuses everything.
    pub(crate) fn poison(&self, cause: &str) {
        self.change(|state, afterwards| {
            state.status.set_poison(cause);
            state.stop(afterwards);
        });
    }

    /// Makes the writer leave its runtime.
    pub(crate) fn leave(&self) {
        let mut state = self.lock();
        state.requests.leave = true;
        self.announce(&mut state);
    }

    // The consumers' side.

    pub(crate) fn add_consumer(&self) -> ConsumerState {
        let mut state = self.lock();
        state.consumers += 1;
        state.next_consumer += 1;
        ConsumerState { id: state.next_consumer, late: state.status.is_aborted(), ..ConsumerState::default() }
    }

    /// Removes a consumer. Removing the last one closes the store, because no row could be served any more.
    pub(crate) fn remove_consumer(&self, consumer: &mut ConsumerState) {
        self.change(|state, afterwards| {
            afterwards.dropped.extend(state.stop_waiting(consumer));
            state.consumers -= 1;
            if state.consumers == 0 {
                self.end(state, ClosedBy::NoConsumers, afterwards);
            }
        });
    }

    /// Closes the store, because no handle is left that can write or make a consumer.
    pub(crate) fn remove_producers(&self) {
        self.change(|state, afterwards| {
            let by = if state.consumers > 0 { ClosedBy::Close } else { ClosedBy::NoConsumers };
            self.end(state, by, afterwards);
        });
    }

    /// Takes out the oldest minibatch. If there is none, keeps `waker`, if given, and wakes it when one may be ready.
    pub(crate) fn next(self: &Arc<Self>, consumer: &mut ConsumerState, waker: Option<Waker>) -> Next {
        // Wakers to be dropped without the mutex.
        let mut dropped = [None, None];
        let next = {
            let mut state = self.lock();
            state.count_waits();
            let next = state.next(consumer, self);
            match (&next, waker) {
                (Next::Nothing, Some(waker)) => dropped[0] = state.wait(consumer, waker),
                (Next::Nothing, None) => {}
                (_, unused) => dropped = [unused, state.stop_waiting(consumer)],
            }
            if matches!(next, Next::Minibatch(_)) {
                let _ = self.announce_to_waiting(&mut state, WaitsFor::Room)
                    || self.announce_to_waiting(&mut state, WaitsFor::Turn);
            }
            next
        };
        drop(dropped);
        next
    }

    /// Notes that the consumer waits no longer.
    pub(crate) fn stop_waiting(&self, consumer: &mut ConsumerState) {
        if consumer.waiting {
            let dropped = self.lock().stop_waiting(consumer);
            drop(dropped);
        }
    }

    /// Makes the writer look at the state if it waits for `waits_for`. Returns whether it waits for this.
    fn announce_to_waiting(&self, state: &mut State, waits_for: WaitsFor) -> bool {
        let waits = state.writer_waits_for == Some(waits_for);
        if waits {
            state.writer_waits_for = None;
            self.announce(state);
        }
        waits
    }

    // For looking.

    /// Logs why a producer may wait forever, if there is a reason.
    pub(crate) fn notice_waiting_producer(&self) {
        let state = self.lock();
        let asked = state.minibatches_served > 0 || state.waits.any_consumer();
        if state.consumers == 0 {
            drop(state);
            tracing::warn!(
                "a producer has waited 10 s for room: no consumer (minibatches()) has been made, or none is left"
            );
        } else if !asked {
            drop(state);
            tracing::warn!("a producer has waited 10 s for room: no consumer has ever asked for a minibatch");
        }
    }

    /// Logs why a consumer may wait forever, if there is a reason.
    pub(crate) fn notice_waiting_consumer(&self) {
        let state = self.lock();
        let (lanes, accepted) = (state.admission.open_lanes(), state.ledger.accepted());
        let missing =
            state.admission.missing_lanes().next().map(|(id, name)| LaneId { number: id, name: name.cloned() });
        drop(state);
        if let Some(lane) = missing {
            tracing::warn!(
                "a consumer has waited 10 s for a minibatch: the resumed store waits for {lane}, which was open when it was saved. Open it with \
                 producer() or producer_named(), and send its rows or close it"
            );
        } else if lanes <= 1 && accepted == 0 {
            tracing::warn!("a consumer has waited 10 s for a minibatch: no producer has written a row");
        } else if lanes <= 1 {
            tracing::warn!(
                "a consumer has waited 10 s for a minibatch: no producer() is open, and the store is not closed. It ends with \
                 close(), or when every handle that can write is dropped; a monitor() does not keep it open"
            );
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        !self.lock().status.is_open()
    }

    /// The number of rows in the ring with all their components.
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
            queued: state.admission.queued(i) as u64,
            resident: counts.set_aside + whole,
            served: state.served_rows,
            resent: counts.resent,
            dropped: counts.dropped,
        });
        Stats {
            components: components.collect(),
            minibatches_served: state.minibatches_served,
            waited_for_consumers: state.waits.for_consumers,
            waited_for_producers: state.waits.for_producers,
            frames_open: if state.ended { 0 } else { self.config.open_frames },
            frames_ready: state.frames.ready(),
            frames_lent: state.frames.lent(),
        }
    }
}

impl FrameHome for Shared {
    fn give_back(&self, frame: Frame) {
        let surplus = {
            let mut state = self.lock();
            let wanted = self.announce_to_waiting(&mut state, WaitsFor::Frame);
            state.frames.give_back(frame, wanted)
        };
        drop(surplus);
    }
}

impl State {
    fn resume(&mut self, config: &Config, body: &Body) {
        let ended = body.ended_lanes.iter().map(|ended| (ended.lane, ended.name.as_str().into()));
        let own_ended = body.lanes.iter().any(|lane| lane.lane == 0 && !body.goes_on(&lane.journal));
        self.admission.resume(resumed_lanes(body), ended, body.lanes_opened, own_ended);
        self.journal = body.journal();
        self.turn = turn(body);
        let PositionBody { first_minibatch, next_minibatch, .. } = body.position;
        self.frames.go_on(first_minibatch, restarts_with(config, body), next_minibatch);
        self.ledger = ledger(body);
        (self.served_rows, self.minibatches_served) = (body.stats.served_rows, body.minibatches);
        self.waits.for_consumers = body.stats.waited_for_consumers;
        self.waits.for_producers = body.stats.waited_for_producers;
        if body.position.ended {
            // The ring is empty and takes no more rows, so the writer has nothing to do.
            self.status.close(ClosedBy::Close);
            self.ended = true;
        }
    }

    fn check_saveable(&self) -> Result<(), SnapshotError> {
        if self.status.discards() { self.status.check().map_err(SnapshotError::Ended) } else { Ok(()) }
    }

    /// The content of a snapshot without the rows: the state between two minibatches.
    pub(crate) fn body(&self, config: &Config, form: Form) -> Body {
        let (next_minibatch, first_minibatch) = self.frames.ordinals();
        let served = self.ended && self.frames.ready() == 0;
        // The full form contains the ready frames.
        let ended = served || self.ended && form == Form::Full;
        let journal = self.journal.since(if served { self.journal.dealt } else { self.needed_from() });
        let lane = |(&lane, journal): (&u64, &LaneJournal)| LaneBody { lane, journal: journal.clone() };
        let lanes = if served { Vec::new() } else { journal.lanes.iter().map(lane).collect() };
        let stats = |counts: &ComponentLedger| ComponentStatsBody {
            resent: counts.resent,
            dropped_oldest: counts.dropped.oldest,
            dropped_emptied: counts.dropped.emptied,
            dropped_aborted: counts.dropped.aborted,
            dropped_last: counts.dropped.last,
            dropped_unmatched: counts.dropped.unmatched,
        };
        Body {
            versions: Versions::current(),
            minibatches: self.minibatches_served,
            config: ConfigBody::from(config),
            position: PositionBody {
                emptied: journal.emptied,
                dealt: journal.dealt,
                first_minibatch,
                next_minibatch,
                completing_minibatch: self.frames.next_ordinal(),
                ended,
            },
            turn: self.turn.map(|(lane, rows)| TurnBody { lane, rows: rows as u64 }),
            lanes,
            ended_lanes: journal.ended.iter().map(|(&lane, name)| EndedLane { lane, name: name.to_string() }).collect(),
            lanes_opened: self.admission.lanes_opened(),
            log: LogBody {
                from: journal.from,
                segments: journal.segments.iter().map(|s| [s.lane, s.first_row, s.rows]).collect(),
            },
            stats: StatsBody {
                components: self.ledger.components.iter().map(stats).collect(),
                served_rows: self.served_rows,
                whole_rows: (self.whole_rows() + self.ledger.owed.unwrap_or(0)) as u64,
                waited_for_consumers: self.waits.for_consumers,
                waited_for_producers: self.waits.for_producers,
            },
            saved: None,
        }
    }

    /// Takes no more rows. Consumers get `failure` after the ready minibatches. Returns `failure` if the store has an earlier one.
    pub(crate) fn fail(&mut self, failure: Failure, afterwards: &mut Afterwards) -> Option<Failure> {
        let unused = self.status.fail(failure).err();
        self.close(ClosedBy::Close, afterwards);
        unused
    }

    /// Takes no more rows. Returns whether this changed the status.
    fn close(&mut self, by: ClosedBy, afterwards: &mut Afterwards) -> bool {
        let changed = self.status.close(by);
        if changed {
            self.stop(afterwards);
        }
        changed
    }

    // The writer's side.

    /// Notes that the writer has received the `Look` message. The next change needs another `Look`.
    pub(crate) fn looked(&mut self) {
        self.look_sent = false;
    }

    /// Takes out all requests.
    pub(crate) fn take_requests(&mut self) -> Requests {
        mem::take(&mut self.requests)
    }

    /// Puts back requests that the writer cannot fulfil.
    pub(crate) fn give_back(&mut self, requests: Requests) {
        self.requests.empties.extend(requests.empties);
        self.requests.gets.extend(requests.gets);
        self.requests.snapshots.extend(requests.snapshots);
    }

    /// Notes the rows that the writer has dealt, and the lane that has the next turn.
    pub(crate) fn note_dealt(&mut self, dealt: &mut VecDeque<Segment>, turn: Option<(u64, usize)>) {
        self.turn = turn;
        if dealt.is_empty() {
            return;
        }
        self.journal.dealt(dealt.drain(..));
        if self.journal.segments.len() >= self.forget_at {
            let needed = self.needed_from();
            self.journal.forget_before(needed);
            // The next limit is twice what is needed now. So forgetting takes a constant time for each row.
            self.forget_at = (2 * self.journal.segments.len()).max(FORGET_AT);
        }
    }

    /// The first row that must be dealt again, counted since the ring was last emptied. The frame of the next minibatch began its
    /// fill with the run of this row.
    pub(crate) fn needed_from(&self) -> u64 {
        let config = self.admission.config();
        let runs = config.runs();
        let (next, first) = self.frames.ordinals();
        let frame = ((next - first) / config.minibatches_per_frame()).min(runs.completed(self.journal.dealt));
        runs.rows_before_fill(frame).max(self.journal.from)
    }

    /// Notes that the writer has emptied the lanes and the ring `times` times. `lanes` has each lane, and the row where it goes on.
    pub(crate) fn note_emptied(
        &mut self,
        times: u64,
        lanes: impl Iterator<Item = (u64, u64)>,
        turn: Option<(u64, usize)>,
    ) {
        self.journal.emptied(times, lanes);
        self.frames.emptied();
        self.turn = turn;
    }

    /// Takes over the writer's counts, before the writer starts.
    pub(crate) fn take_over(&mut self, ledger: &Ledger) {
        self.ledger.update(ledger);
    }

    /// Takes over the writer's counts. Wakes the producers that have room now, and resolves the flushes that are done.
    pub(crate) fn report(&mut self, ledger: &Ledger, afterwards: &mut Afterwards) {
        self.ledger.update(ledger);
        self.admission.wake_next(&mut afterwards.wakers);
        if !self.flushes.is_empty() {
            let done = self.flushes.extract_if(.., |(unsettled, _)| self.admission.is_settled(unsettled));
            afterwards.flushes.extend(done.map(|(_, reply)| (reply, Ok(()))));
        }
    }

    /// Makes the first `rows` rows of `frame` ready for consumers. Until now these rows counted as open.
    pub(crate) fn push_ready(&mut self, frame: Frame, rows: usize, ledger: &mut Ledger, afterwards: &mut Afterwards) {
        self.count_waits();
        ledger.make_ready(self.frames.push(frame, rows));
        self.wake_consumers(afterwards);
    }

    /// Discards the oldest ready frame, with all minibatches left in it.
    pub(crate) fn discard_oldest(&mut self, ledger: &mut Ledger, afterwards: &mut Afterwards) {
        self.count_waits();
        let rows = self.frames.discard_oldest(&mut afterwards.parts).unwrap_or(0);
        ledger.drop_rows(rows, |dropped| &mut dropped.oldest);
    }

    /// Takes out the ready frames, so that the caller can read them without the mutex. Consumers wait until they are put back.
    pub(crate) fn borrow_ready(&mut self) -> VecDeque<ReadyFrame> {
        self.count_waits();
        self.frames.borrow_ready()
    }

    /// Puts the borrowed ready frames back, or discards them if the store has been told to discard everything.
    pub(crate) fn return_ready(&mut self, ready: VecDeque<ReadyFrame>, afterwards: &mut Afterwards) {
        self.count_waits();
        self.frames.unpin();
        self.frames.return_ready(ready);
        if self.status.discards() {
            self.frames.discard_ready(&mut afterwards.parts);
            self.frames.dissolve(&mut afterwards.frames);
        }
        self.wake_consumers(afterwards);
    }

    /// Discards all ready minibatches. Returns the number of their rows.
    pub(crate) fn discard_ready(&mut self, afterwards: &mut Afterwards) -> usize {
        self.count_waits();
        self.frames.discard_ready(&mut afterwards.parts)
    }

    /// Notes which action of the consumers the writer waits for, if it waits for one.
    pub(crate) fn writer_waits(&mut self, waits_for: Option<WaitsFor>) {
        self.count_waits();
        self.writer_waits_for = waits_for;
        self.waits.rows_wait(waits_for == Some(WaitsFor::Room) && self.status.is_open());
    }

    /// Notes that the writer has ended: nothing more becomes ready. If a snapshot must be taken first, returns `false` and changes
    /// nothing.
    pub(crate) fn end(&mut self, afterwards: &mut Afterwards) -> bool {
        if !self.requests.snapshots.is_empty() && !self.status.discards() {
            return false;
        }
        self.count_waits();
        self.ended = true;
        self.frames.dissolve(&mut afterwards.frames);
        self.wake_consumers(afterwards);
        self.answer_all(afterwards);
        true
    }

    // Both sides.

    /// Wakes every caller, because the store takes no more rows. If the store also discards the rows in it, counts them as dropped.
    fn stop(&mut self, afterwards: &mut Afterwards) {
        self.count_waits();
        self.waits.rows_wait(false);
        self.wake_consumers(afterwards);
        self.admission.wake_all(&mut afterwards.wakers);
        if !self.status.discards() {
            return;
        }
        // The writer takes no more frames.
        self.writer_waits_for = None;
        self.discard_ready(afterwards);
        self.frames.dissolve(&mut afterwards.frames);
        (self.ledger.open_rows, self.ledger.owed) = (0, None);
        for component in &mut self.ledger.components {
            component.set_aside = 0;
            component.dropped.aborted += component.accepted - self.served_rows - component.dropped.total();
        }
        self.admission.clear();
        self.answer_all(afterwards);
    }

    /// Answers every request and flush, because the writer will not.
    fn answer_all(&mut self, afterwards: &mut Afterwards) {
        afterwards.empties.append(&mut self.requests.empties);
        let why = self.why_no_get();
        afterwards.gets.extend(self.requests.gets.drain(..).map(|(_, reply)| (reply, why.clone())));
        let ended = self.status.check().err().unwrap_or(WriteError::Closed(ClosedBy::Close));
        let snapshots = self.requests.snapshots.drain(..);
        afterwards.snapshots.extend(snapshots.map(|request| (request, SnapshotError::Ended(ended.clone()))));
        self.frames.unpin();
        let flushed = self.flushed();
        afterwards.flushes.extend(self.flushes.drain(..).map(|(_, reply)| (reply, flushed.clone())));
    }

    /// The outcome of a flush that need not wait.
    fn flushed(&self) -> Result<(), WriteError> {
        if self.status.discards() { self.status.check() } else { Ok(()) }
    }

    fn why_no_get(&self) -> IndexError {
        self.status.poison().map_or(IndexError::Ended, |cause| IndexError::Poisoned { cause: cause.clone() })
    }

    fn next(&mut self, consumer: &mut ConsumerState, home: &Arc<Shared>) -> Next {
        if let Some(cause) = self.status.poison() {
            return Next::Error(ReadError::Poisoned { cause: cause.clone() });
        }
        if self.status.discards() {
            return if consumer.late { Next::Error(ReadError::Aborted) } else { Next::End };
        }
        if let Some(lent) = self.frames.lend(home) {
            self.minibatches_served += 1;
            self.served_rows += lent.part.len() as u64;
            return Next::Minibatch(lent);
        }
        match self.status.failure() {
            _ if !self.ended => Next::Nothing,
            Some(failure) if !consumer.told_failure => {
                consumer.told_failure = true;
                Next::Error(ReadError::Failed(failure.clone()))
            }
            _ => Next::End,
        }
    }

    /// Notes that the consumer waits. Returns its earlier waker, to be dropped without the mutex.
    fn wait(&mut self, consumer: &mut ConsumerState, waker: Waker) -> Option<Waker> {
        self.count_waits();
        self.waits.consumer_waits(&mut consumer.waiting, true);
        if let Some((_, before)) = self.waiting.iter_mut().find(|(id, _)| *id == consumer.id) {
            return Some(mem::replace(before, waker));
        }
        self.waiting.push((consumer.id, waker));
        None
    }

    /// Notes that the consumer waits no longer. Returns its waker, to be dropped without the mutex.
    fn stop_waiting(&mut self, consumer: &mut ConsumerState) -> Option<Waker> {
        self.count_waits();
        self.waits.consumer_waits(&mut consumer.waiting, false);
        let place = self.waiting.iter().position(|(id, _)| *id == consumer.id)?;
        Some(self.waiting.swap_remove(place).1)
    }

    /// Wakes all consumers that wait, because a minibatch is ready or none will come. One consumer is not enough: it may have
    /// stopped polling.
    fn wake_consumers(&mut self, afterwards: &mut Afterwards) {
        afterwards.wakers.extend(self.waiting.drain(..).map(|(_, waker)| waker));
    }

    fn count_waits(&mut self) {
        self.waits.count(self.frames.ready() == 0 && !self.ended);
    }

    /// The number of rows in the ring with all their components.
    fn whole_rows(&self) -> usize {
        self.ledger.open_rows + self.frames.ready_rows()
    }
}
