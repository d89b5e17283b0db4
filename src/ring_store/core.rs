//! The state that the handles, the writer and the consumers share: one mutex, and the sending end of the queue. This file has the
//! state and what the writer does with it. The files in the folder have what producers, consumers and others do.
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
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::Waker;
use std::thread;

use tokio::sync::mpsc::UnboundedSender;

use crate::memory::frame::Frame;
use crate::ring_store::afterwards::{Afterwards, EmptyReply, FlushReply, GetReply};
use crate::ring_store::books::{Books, Unsettled};
use crate::ring_store::builder::Config;
use crate::ring_store::ledger::Ledger;
use crate::ring_store::queue::Message;
use crate::ring_store::ready::Frames;
use crate::ring_store::snapshot::error::RowsMissing;
use crate::ring_store::snapshot::error::SnapshotError;
use crate::ring_store::snapshot::restart::EndedLanes;
use crate::ring_store::snapshot::saving::SnapshotRequest;
use crate::ring_store::snapshot::snapshot::{ResumeAt, Snapshot};
use crate::ring_store::status::{Failure, Status};
use crate::ring_store::waits::Waits;
use crate::rows::batch::Batch;
use crate::rows::closed::{ClosedBy, StoreId};
use crate::rows::error::WriteError;
use crate::rows::index::Index;
use crate::rows::values::ValueCounts;
use crate::waiting::panics::discard;
use crate::waiting::wait::lock;

mod asking;
pub(crate) mod consuming;
mod looking;
mod producing;
mod reporting;

/// The state that the handles, the writer and the consumers of a ring store share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    /// Where the lanes of a resumed store go on.
    pub(crate) resume_at: Vec<ResumeAt>,
    /// The largest number of minibatches of the snapshots that this store has saved.
    pub(super) saved: Arc<AtomicU64>,
    /// The other lanes of the saved store.
    pub(crate) ended_lanes: EndedLanes,
    pub(super) state: Mutex<State>,
    pub(super) queue: UnboundedSender<Message>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) status: Status,
    /// Whether the writer has ended: then nothing more becomes ready.
    pub(super) ended: bool,
    pub(crate) books: Books,
    pub(crate) frames: Frames,
    pub(super) waits: Waits,
    pub(super) ledger: Ledger,
    /// Once so many rows are dealt, the journal forgets the rows that no minibatch needs.
    pub(super) forget_at: u64,
    /// The lane whose turn comes after the rows in the journal, and the rows left of its turn. `None` unless lanes take turns.
    pub(super) turn: Option<(u64, usize)>,
    pub(super) served_rows: u64,
    pub(super) minibatches_served: u64,
    pub(super) consumers: usize,
    pub(super) next_consumer: u64,
    /// The consumers that wait for a minibatch, in the order in which they came: the id and the waker of each.
    pub(super) waiting: VecDeque<(u64, Waker)>,
    /// The number of consumers that were woken and have not come yet.
    pub(super) woken: usize,
    pub(super) requests: Requests,
    /// Alive while a full snapshot is being written.
    pub(super) saving: Weak<()>,
    pub(super) flushes: Vec<(Unsettled, FlushReply)>,
    /// The reports of rows whose counterparts in another component never came. No flush has returned these reports yet. At most
    /// [`UNMATCHED`], because a program may never flush.
    pub(crate) unmatched: VecDeque<WriteError>,
    /// What the writer is to say, without the mutex.
    pub(crate) warnings: Vec<Warning>,
    /// The row that a resumed store lacks, so that it could not go on.
    pub(crate) lacks: Option<RowsMissing>,
    /// Whether rows whose counterparts never came have been warned of. It is done once.
    warned: bool,
    /// Whether more rows with odd values were counted since the last look.
    has_new_values: bool,
    /// Whether a `Look` is in the queue.
    pub(super) look_sent: bool,
    pub(super) writer_waits_for: Option<WaitsFor>,
}

/// What the writer is to say.
#[derive(Debug)]
pub(crate) enum Warning {
    /// Rows lost their counterparts.
    Unmatched(WriteError),
    /// The store cannot be resumed.
    GaveUp(RowsMissing),
}

/// The most lanes with lost rows that a store keeps for later flushes.
const UNMATCHED: usize = 1024;

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
}

impl Requests {
    pub(crate) fn is_empty(&self) -> bool {
        self.empties.is_empty() && self.gets.is_empty() && self.snapshots.is_empty()
    }
}

impl Shared {
    /// Makes the state of a new store or, with a snapshot, of a store that goes on where the saved store stood.
    pub(crate) fn new(
        config: Arc<Config>,
        queue: UnboundedSender<Message>,
        empty: Vec<Frame>,
        snapshot: Option<&Snapshot>,
    ) -> Self {
        let mut state = State {
            status: Status::new(),
            ended: false,
            books: Books::new(config.clone()),
            frames: Frames::new(&config, empty),
            waits: Waits::new(),
            ledger: Ledger::new(config.layout.n_components()),
            forget_at: 0,
            turn: None,
            served_rows: 0,
            minibatches_served: 0,
            consumers: 0,
            next_consumer: 0,
            waiting: VecDeque::new(),
            woken: 0,
            requests: Requests::default(),
            saving: Weak::new(),
            flushes: Vec::new(),
            unmatched: VecDeque::new(),
            warnings: Vec::new(),
            lacks: None,
            warned: false,
            has_new_values: false,
            look_sent: false,
            writer_waits_for: None,
        };
        snapshot.into_iter().for_each(|snapshot| state.resume(&config, &snapshot.body));
        let resume_at = snapshot.map_or_else(Vec::new, Snapshot::resume_at);
        let ended_lanes = snapshot.map(|snapshot| EndedLanes::new(&snapshot.body)).unwrap_or_default();
        Shared { config, resume_at, saved: Arc::default(), ended_lanes, state: Mutex::new(state), queue }
    }

    /// Named in the errors of this store.
    pub(crate) fn id(&self) -> StoreId {
        self.lock().status.store()
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
    pub(super) fn announce(&self, state: &mut State) {
        if !state.look_sent && !state.ended {
            state.look_sent = true;
            self.tell(Message::Look);
        }
    }

    /// Sends a message to the writer. Does not wait.
    pub(super) fn tell(&self, message: Message) {
        // An error means that the writer has ended.
        let _ = self.queue.send(message);
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
        if by == ClosedBy::NoConsumers && state.ended && state.frames.ready_rows() == 0 {
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
}

impl State {
    /// Keeps a report for a later flush, if there is room. Warns of the first.
    pub(crate) fn note_unmatched(&mut self, report: WriteError) {
        if !mem::replace(&mut self.warned, true) {
            self.warnings.push(Warning::Unmatched(report.clone()));
        }
        if self.unmatched.len() < UNMATCHED {
            self.unmatched.push_back(report);
        }
    }

    /// Takes out what the writer is to say.
    pub(crate) fn take_warnings(&mut self) -> Vec<Warning> {
        mem::take(&mut self.warnings)
    }

    /// The counts of odd values of each component, if they have changed since the last call.
    pub(crate) fn changed_values(&mut self) -> Option<Vec<ValueCounts>> {
        let values = || self.ledger.components.iter().map(|component| component.values).collect();
        mem::take(&mut self.has_new_values).then(values)
    }

    /// Drops and counts the rows of all lanes that wait for other components, because they do not come.
    pub(crate) fn lose_all_unmatched(&mut self) -> Vec<Batch> {
        self.books.numbers().into_iter().flat_map(|lane| self.lose_unmatched(lane)).collect()
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

    /// Wakes every caller, because the store takes no more rows. If the store also discards the rows in it and in the queue, counts them
    /// as dropped.
    fn stop(&mut self, afterwards: &mut Afterwards) {
        self.count_waits();
        self.waits.rows_wait(false);
        self.wake_consumers(afterwards);
        self.books.wake_all(&mut afterwards.wakers);
        if !self.status.discards() {
            return;
        }
        // The writer takes no more frames.
        self.writer_waits_for = None;
        self.discard_ready(afterwards);
        self.frames.dissolve(&mut afterwards.frames);
        // The rows that a resumed store was to deal again count as accepted, and so do the queued rows, so that none is in no count.
        let _ = self.ledger.end_replay();
        self.ledger.open_rows = 0;
        let (new, again) = self.books.queued();
        for component in &mut self.ledger.components {
            let aside = mem::take(&mut component.queued_aside);
            component.accepted += new.saturating_sub(aside);
            component.resent += again - again.min(aside.saturating_sub(new));
            component.set_aside = 0;
            component.dropped.aborted += component.accepted - self.served_rows - component.dropped.total();
        }
        self.books.clear();
        self.answer_all(afterwards);
    }

    /// Answers every request and flush, because the writer will not.
    fn answer_all(&mut self, afterwards: &mut Afterwards) {
        afterwards.empties.append(&mut self.requests.empties);
        let why = self.why_no_get();
        afterwards.gets.extend(self.requests.gets.drain(..).map(|(_, reply)| (reply, why.clone())));
        let ended = self.status.check().err().unwrap_or(ClosedBy::Close.into());
        let snapshots = self.requests.snapshots.drain(..);
        afterwards.snapshots.extend(snapshots.map(|request| (request, SnapshotError::Ended(ended.clone()))));
        self.frames.unpin();
        let flushed = self.flushed();
        afterwards.flushes.extend(self.flushes.drain(..).map(|(_, reply)| (reply, flushed.clone())));
    }

    fn count_waits(&mut self) {
        self.waits.count(self.frames.ready() == 0 && !self.ended);
    }

    /// The number of rows in the ring with all their components.
    pub(super) fn whole_rows(&self) -> usize {
        self.ledger.open_rows + self.frames.ready_rows()
    }
}
