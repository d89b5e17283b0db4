//! What the handles, the writer and the consumers share: one mutex, and the sending end of the queue. What each of them calls is in
//! the files below; here is the state, and what the writer does with it.
//!
//! The mutex is taken once per batch, once per plan of rows, and once per minibatch. Neither rows are copied nor foreign
//! code runs while it is held: what a change sets free leaves it in an [`Afterwards`].
//!
//! A producer counts and sends in the same critical section. So order and counts agree, and nothing slips past a close. A
//! change that concerns the writer is noted here and announced by a `Look` message, of which at most one is in the queue.

use std::collections::VecDeque;
use std::mem;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::Waker;
use std::thread;

use crossbeam_channel::Sender;

use crate::error::{ClosedBy, SnapshotError, WriteError};
use crate::memory::frame::Frame;
use crate::pipeline::admission::{Admission, Unsettled};
use crate::pipeline::afterwards::{Afterwards, EmptyReply, FlushReply, GetReply};
use crate::pipeline::config::Config;
use crate::pipeline::ledger::Ledger;
use crate::pipeline::queue::Message;
use crate::pipeline::ready::{Frames, ReadyFrame};
use crate::pipeline::saving::SnapshotRequest;
use crate::pipeline::status::{Failure, Status};
use crate::pipeline::wait::lock;
use crate::pipeline::waits::Waits;
use crate::pipeline::worker::discard;
use crate::rows::index::Index;
use crate::snapshot::journal::{Journal, Segment};
use crate::snapshot::snapshot::{ResumeAt, Snapshot};

mod asking;
pub(crate) mod consuming;
mod looking;
mod producing;
mod saved;

/// The fewest segments that the journal keeps before it forgets any.
const FORGET_AT: usize = 256;

/// What a ring store's handles, its writer and its consumers share.
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
    /// The writer has ended: nothing more becomes ready.
    ended: bool,
    pub(crate) admission: Admission,
    pub(crate) frames: Frames,
    waits: Waits,
    ledger: Ledger,
    pub(crate) journal: Journal,
    /// The journal forgets what no minibatch needs once it has so many segments.
    forget_at: usize,
    /// If lanes take turns: the lane whose turn comes after the rows in the journal, and the rows left of its turn.
    turn: Option<(u64, usize)>,
    served_rows: u64,
    minibatches_served: u64,
    consumers: usize,
    next_consumer: u64,
    /// Consumers that wait for a minibatch.
    waiting: Vec<(u64, Waker)>,
    requests: Requests,
    /// Held by the full snapshot that is being written, if one is.
    saving: Weak<()>,
    flushes: Vec<(Unsettled, FlushReply)>,
    /// Rows that lost their counterparts, not yet reported by a flush.
    pub(crate) unmatched: VecDeque<WriteError>,
    /// A `Look` is in the queue.
    look_sent: bool,
    writer_waits_for: Option<WaitsFor>,
}

/// What ends the writer's wait, apart from batches and requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitsFor {
    /// A consumer takes a ready minibatch, so that rows can be dealt.
    Room,
    /// A consumer takes a ready minibatch, so that the full frame becomes ready. No row waits.
    Turn,
    /// A consumer drops a minibatch.
    Frame,
}

/// What the writer is asked to do.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Discard everything that was handed over before.
    pub(crate) empties: Vec<EmptyReply>,
    /// Read rows.
    pub(crate) gets: Vec<(Index, GetReply)>,
    /// Take a full snapshot.
    pub(crate) snapshots: Vec<SnapshotRequest>,
    /// Leave the runtime, which is shutting down.
    pub(crate) leave: bool,
}

impl Requests {
    pub(crate) fn is_empty(&self) -> bool {
        self.empties.is_empty() && self.gets.is_empty() && self.snapshots.is_empty() && !self.leave
    }
}

impl Shared {
    /// For a new store, or one that goes on where the store of a snapshot stood.
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

    /// Changes the state, then runs what that set free.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State, &mut Afterwards) -> T) -> T {
        let mut afterwards = Afterwards::default();
        let result = change(&mut self.lock(), &mut afterwards);
        self.run(&mut afterwards);
        result
    }

    /// # Panics
    /// Panics at the end if a waker did, unless this thread is panicking already.
    pub(crate) fn run(&self, afterwards: &mut Afterwards) {
        if let Err(panic) = afterwards.run() {
            // A second panic while this thread unwinds would end the process.
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

    /// Makes the writer look if it waits for this. Returns whether it does.
    fn announce_to_waiting(&self, state: &mut State, waits_for: WaitsFor) -> bool {
        let waits = state.writer_waits_for == Some(waits_for);
        if waits {
            state.writer_waits_for = None;
            self.announce(state);
        }
        waits
    }

    // Ends.

    /// Takes no more rows; those handed over are served, and then the error.
    pub(crate) fn close(&self, failure: Option<Failure>) {
        let unused = self.change(|state, afterwards| {
            let unused = failure.and_then(|failure| state.status.fail(failure).err());
            self.end(state, ClosedBy::Close, afterwards);
            unused
        });
        drop(unused);
    }

    /// Takes no more rows, and discards those there are.
    pub(crate) fn discard(&self, by: ClosedBy) {
        self.change(|state, afterwards| self.end(state, by, afterwards));
    }

    fn end(&self, state: &mut State, by: ClosedBy, afterwards: &mut Afterwards) {
        // Nothing is left that a consumer could have taken: the store has ended well.
        if by == ClosedBy::NoConsumers && state.ended && state.frames.ready() == 0 {
            return;
        }
        if state.close(by, afterwards) {
            self.announce(state);
        }
    }

    /// The writer has panicked.
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
}

impl State {
    /// The store takes no more rows, and consumers get `failure` after what is ready. Returns the failure if there is one already.
    pub(crate) fn fail(&mut self, failure: Failure, afterwards: &mut Afterwards) -> Option<Failure> {
        let unused = self.status.fail(failure).err();
        self.close(ClosedBy::Close, afterwards);
        unused
    }

    /// The store takes no more rows. Returns whether that is new.
    fn close(&mut self, by: ClosedBy, afterwards: &mut Afterwards) -> bool {
        let changed = self.status.close(by);
        if changed {
            self.stop(afterwards);
        }
        changed
    }

    // The writer's side.

    /// The `Look` message has been received: what is noted from now on needs another.
    pub(crate) fn looked(&mut self) {
        self.look_sent = false;
    }

    pub(crate) fn take_requests(&mut self) -> Requests {
        mem::take(&mut self.requests)
    }

    /// Takes back requests that the writer cannot fulfil.
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
            // Twice as many as are needed now: forgetting costs each row a constant time.
            self.forget_at = (2 * self.journal.segments.len()).max(FORGET_AT);
        }
    }

    /// The first row that must be dealt again, counted since the ring was last emptied: the fill of the next minibatch's frame began with
    /// the run of this row.
    pub(crate) fn needed_from(&self) -> u64 {
        let config = self.admission.config();
        let runs = config.runs();
        let (next, first) = self.frames.ordinals();
        let frame = ((next - first) / config.minibatches_per_frame()).min(runs.completed(self.journal.dealt));
        runs.rows_before_fill(frame).max(self.journal.from)
    }

    /// Notes that the writer has emptied the lanes and the ring, so many times; each lane goes on with a row.
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

    /// Takes over the writer's counts, before it starts.
    pub(crate) fn take_over(&mut self, ledger: &Ledger) {
        self.ledger.update(ledger);
    }

    /// Takes over the writer's counts, and tells producers what has changed for them.
    pub(crate) fn report(&mut self, ledger: &Ledger, afterwards: &mut Afterwards) {
        self.ledger.update(ledger);
        self.admission.wake_next(&mut afterwards.wakers);
        if !self.flushes.is_empty() {
            let done = self.flushes.extract_if(.., |(unsettled, _)| self.admission.is_settled(unsettled));
            afterwards.flushes.extend(done.map(|(_, reply)| (reply, Ok(()))));
        }
    }

    /// Makes the first `rows` rows of `frame`, until now counted as open, ready for a consumer.
    pub(crate) fn push_ready(&mut self, frame: Frame, rows: usize, ledger: &mut Ledger, afterwards: &mut Afterwards) {
        self.count_waits();
        ledger.make_ready(self.frames.push(frame, rows));
        self.wake_consumers(afterwards);
    }

    /// Discards the oldest ready minibatch.
    pub(crate) fn discard_oldest(&mut self, ledger: &mut Ledger, afterwards: &mut Afterwards) {
        self.count_waits();
        let rows = self.frames.discard_oldest(&mut afterwards.parts).unwrap_or(0);
        ledger.drop_rows(rows, |dropped| &mut dropped.oldest);
    }

    /// Takes the ready frames out, so that they can be read without the mutex. Consumers wait meanwhile.
    pub(crate) fn borrow_ready(&mut self) -> VecDeque<ReadyFrame> {
        self.count_waits();
        self.frames.borrow_ready()
    }

    /// Puts back the ready frames that were borrowed, unless they are to be discarded.
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

    /// Takes all ready minibatches out, to be discarded. Returns how many rows they have.
    pub(crate) fn discard_ready(&mut self, afterwards: &mut Afterwards) -> usize {
        self.count_waits();
        self.frames.discard_ready(&mut afterwards.parts)
    }

    /// What the writer waits for, if for consumers.
    pub(crate) fn writer_waits(&mut self, waits_for: Option<WaitsFor>) {
        self.count_waits();
        self.writer_waits_for = waits_for;
        self.waits.rows_wait(waits_for == Some(WaitsFor::Room) && self.status.is_open());
    }

    /// The writer has ended: nothing more becomes ready. `false` if it has something to do first.
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

    /// The store takes no more rows: wakes every caller. If it also discards what it holds, counts that as dropped.
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

    /// Answers every request and flush: the writer will not.
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

    /// A minibatch is ready, or none will come. Wakes all consumers that wait, since a woken one may have stopped polling.
    fn wake_consumers(&mut self, afterwards: &mut Afterwards) {
        afterwards.wakers.extend(self.waiting.drain(..).map(|(_, waker)| waker));
    }

    fn count_waits(&mut self) {
        self.waits.count(self.frames.ready() == 0 && !self.ended);
    }

    /// Rows that are in the ring with all their components.
    fn whole_rows(&self) -> usize {
        self.ledger.open_rows + self.frames.ready_rows()
    }
}
