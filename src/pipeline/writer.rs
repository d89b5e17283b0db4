//! The writer: the only task that owns the ring and the lanes.
//!
//! In each step, the writer receives the messages in the queue, deals a plan of rows, and drops the batches that are finished. Then
//! it settles: under the one lock, it reports the rows that it has dealt, makes a full frame ready, and takes requests. Then it
//! answers callers, and starts the next step. The writer waits for messages only in `wait`. While it writes a full snapshot, it
//! also waits for the disk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use ndarray::ArrayD;

use crate::error::{ClosedBy, IndexError, LaneId, ResumeError, RowsMissing, SnapshotError, WriteError};
use crate::memory::convert::widen;
use crate::memory::frame::Frame;
use crate::pipeline::afterwards::{Afterwards, GetReply};
use crate::pipeline::config::{Config, WhenFull};
use crate::pipeline::handle::WriteReply;
use crate::pipeline::lane::{Finished, Lanes, ResumedLane, Unmatched};
use crate::pipeline::ledger::Ledger;
use crate::pipeline::queue::{HandedOver, Message};
use crate::pipeline::ready::ReadyFrame;
use crate::pipeline::restart::{ledger, position, resumed_lanes, segments, turn};
use crate::pipeline::saving::{Saving, SnapshotRequest};
use crate::pipeline::state::{Requests, Shared, State, WaitsFor};
use crate::pipeline::stats::Stats;
use crate::pipeline::worker::{Exit, Panics, Work};
use crate::ring::ring::{Leftover, Ring};
use crate::rows::index::Index;
use crate::rows::layout::Layout;
use crate::snapshot::body::{Body, SavedFrame};
use crate::snapshot::files::RowsReader;
use crate::snapshot::journal::Segment;
use crate::snapshot::snapshot::Form;

/// The fewest and the most rows of a plan: the rows that the writer deals before it looks at the state again.
const PLAN: std::ops::RangeInclusive<usize> = 4..=4096;

/// If a plan takes longer, the next plan is smaller. Most plans take longer while the ring's memory is new: the first write to each
/// page waits until the operating system provides the page.
const PLAN_TIME: Duration = Duration::from_millis(4);

/// How long the writer waits for a consumer to drop a minibatch before it asks the operating system for memory again.
const RETRY: Duration = Duration::from_millis(100);

pub(crate) struct Writer {
    shared: Arc<Shared>,
    config: Arc<Config>,
    queue: Receiver<Message>,
    lanes: Lanes,
    ring: Phase,
    /// The writer's own counts. The state has a copy.
    ledger: Ledger,
    /// Whether the store is closed: no more rows come.
    finishing: bool,
    /// The rows of the next plan.
    plan: usize,
    /// Whether a `Look` message has been received since the last step.
    looked: bool,
    /// An empty frame for the next use.
    spare: Option<Frame>,
    /// The number of the first minibatch of leftover rows, once dealing has ended.
    first_leftover: Option<u64>,
    /// The full snapshot that is being written.
    saving: Option<Saving>,
    /// The segments dealt since the last report.
    dealt: VecDeque<Segment>,
    /// A frame of leftover rows that becomes ready next, and how many rows it has.
    filled: Option<(Frame, usize)>,
    /// Whether the writer has announced a wait for consumers that still goes on.
    waits_for_room: bool,
    /// Whether the writer has warned of rows whose counterparts in another component never came. It warns once.
    warned: Warned,
    /// Why the store cannot be resumed, to be logged without the mutex.
    gave_up: Option<RowsMissing>,
    finished: Finished,
    /// The requests taken from the state and not fulfilled yet.
    requests: Requests,
    /// Empty between steps. Kept so that steps reuse its memory.
    afterwards: Afterwards,
}

enum Phase {
    Dealing(Box<Ring>),
    /// No more rows come. The writer serves the rows left in the ring.
    Serving(Box<Leftover>),
    /// The writer has discarded everything.
    Discarded,
}

#[derive(Debug, PartialEq)]
enum Warned {
    No,
    /// The warning is due, without the mutex.
    Due(WriteError),
    Yes,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Again,
    /// Wait for a message: of rows, of room for a ready frame, or of an empty frame.
    Wait(Option<WaitsFor>),
    /// Fill the spare frame with leftover rows.
    Gather,
    /// Start to serve the rows left in the ring.
    ServeLeftover,
    /// Discard everything.
    Discard,
    Done,
}

impl Work for Writer {
    fn run(&mut self) -> Exit {
        loop {
            self.receive();
            self.deal();
            self.drop_finished();
            let step = self.settle();
            if step != Step::Discard {
                self.answer();
            }
            if !self.requests.is_empty() {
                self.fulfil();
                if std::mem::take(&mut self.requests.leave) {
                    return Exit::Leave;
                }
                continue;
            }
            // If there is nothing else to do, the writer waits for the disk.
            let idle = matches!(step, Step::Wait(_) | Step::Done);
            if self.save_next(idle) && idle {
                continue;
            }
            match step {
                Step::Again => {}
                Step::Wait(waits_for) => self.wait(waits_for),
                Step::Gather => self.gather(),
                Step::ServeLeftover => self.serve_leftover(),
                Step::Discard => {
                    self.discard();
                    return Exit::Done;
                }
                Step::Done => {
                    if self.end() {
                        return Exit::Done;
                    }
                }
            }
        }
    }

    fn fail(&mut self, cause: &str) {
        let mut panics = Panics::default();
        // Returns the requests, so that `poison` answers them with the cause.
        self.shared.lock().give_back(std::mem::take(&mut self.requests));
        panics.catch(|| self.shared.poison(cause));
        self.refuse_all(&WriteError::Poisoned { cause: cause.into() }, &mut panics);
        // This runs foreign code, too: a subscriber may panic.
        panics.catch(|| tracing::error!(cause, "the writer panicked"));
        panics.catch(|| {
            let _ = self.end();
        });
    }
}

impl Writer {
    /// Makes a writer with a ring of `frames`: as many open frames as the configuration says.
    pub(crate) fn new(shared: Arc<Shared>, queue: Receiver<Message>, frames: Vec<Frame>) -> Self {
        let config = shared.config.clone();
        let components = config.layout.n_components();
        Writer {
            lanes: Lanes::new(config.merge, components),
            ring: Phase::Dealing(Box::new(Ring::new(config.layout.clone(), frames, config.seed))),
            ledger: Ledger::new(components),
            finishing: false,
            plan: *PLAN.start(),
            looked: false,
            spare: None,
            first_leftover: None,
            saving: None,
            dealt: VecDeque::new(),
            filled: None,
            waits_for_room: false,
            warned: Warned::No,
            gave_up: None,
            finished: Finished::default(),
            requests: Requests::default(),
            afterwards: Afterwards::default(),
            shared,
            config,
            queue,
        }
    }

    /// Goes on where the saved store stood. Does not restore the rows of a full snapshot.
    pub(crate) fn resume(&mut self, body: &Body) {
        let lanes: Vec<ResumedLane> = resumed_lanes(body).map(|(lane, _)| lane).collect();
        self.lanes.resume(&lanes, segments(body), turn(body));
        self.ledger = ledger(body);
        if let Phase::Dealing(ring) = &mut self.ring {
            ring.go_to(position(body));
        }
    }

    /// Takes all messages out of the queue. Does not wait.
    fn receive(&mut self) {
        // Takes only the messages that are there now, because producers that never stop must not keep the writer from dealing.
        for _ in 0..self.queue.len() {
            let Ok(message) = self.queue.try_recv() else { break };
            self.take(message);
        }
        if self.finishing {
            self.lanes.end_all();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::OpenLane(lane) => self.lanes.open(lane),
            Message::Write(write) => self.lanes.push(write, &mut self.ledger, &mut self.finished),
            Message::CloseLane(lane) => self.lanes.end(lane),
            Message::SendAgain(lane) => self.lanes.send_again(lane),
            Message::Look => self.looked = true,
        }
    }

    /// Deals a plan of rows. Stops when no rows are left or a frame is full.
    fn deal(&mut self) {
        let Phase::Dealing(ring) = &mut self.ring else { return };
        if ring.is_full() {
            return;
        }
        let start = Instant::now();
        let mut left = self.plan;
        while left > 0 && !ring.is_full() {
            let again = self.lanes.deals_again();
            let Some((lane, rows)) = self.lanes.next() else { break };
            let dealt = ring.deal(rows.min(left), |component| lane.front(component));
            self.ledger.deal(dealt);
            if !again {
                Segment { lane: lane.id, first_row: lane.next_row, rows: dealt as u64 }.append_to(&mut self.dealt);
            }
            self.lanes.dealt(dealt, &mut self.ledger, &mut self.finished);
            left -= dealt;
        }
        let full = ring.full();
        if start.elapsed() > PLAN_TIME {
            self.plan = (self.plan / 2).max(*PLAN.start());
        } else if left == 0 {
            self.plan = (self.plan * 2).min(*PLAN.end());
        }
        full.into_iter().for_each(|frame| self.save(frame, true));
    }

    // A full snapshot.

    /// Starts to save everything that the store holds now.
    fn start_saving(&mut self, request: SnapshotRequest) {
        let shared = self.shared.clone();
        let (mut body, ready) = {
            let mut state = shared.lock();
            (state.body(&self.config, Form::Full), state.borrow_ready())
        };
        let (left, full) = match &self.ring {
            Phase::Dealing(ring) => (ring.filled(), ring.full()),
            Phase::Serving(leftover) => (leftover.filled(), None),
            Phase::Discarded => (Vec::new(), None),
        };
        // The snapshot saves leftover rows in their open frames. The resumed store serves them from there.
        let first_leftover = self.first_leftover.unwrap_or(u64::MAX);
        body.position.completing_minibatch = body.position.completing_minibatch.min(first_leftover);
        let mut copied = None;
        if let (Phase::Dealing(ring), Some(full)) = (&self.ring, full) {
            // The full frame counts as ready.
            match Frame::allocate_one(&self.config.layout, "the copies of a snapshot") {
                Ok(mut copy) => {
                    ring.save_full(full, &mut copy);
                    copied = Some(ReadyFrame::full(copy, body.position.completing_minibatch));
                    body.position.completing_minibatch += self.config.minibatches_per_frame();
                }
                Err(error) => {
                    request.refuse(SnapshotError::Memory(error));
                    shared.change(|state, afterwards| state.return_ready(ready, afterwards));
                    return;
                }
            }
        }
        let ready_before = ready.iter().filter(|frame| frame.ordinal() < first_leftover);
        let all: Vec<&ReadyFrame> = ready_before.chain(&copied).collect();
        self.saving = Saving::start_with(request, body, &self.config.layout, &all, left);
        shared.change(|state, afterwards| state.return_ready(ready, afterwards));
    }

    /// Saves the next open frame if a buffer is free. With `wait`, waits until one is free. Returns `false` if no frame is left to
    /// save.
    fn save_next(&mut self, wait: bool) -> bool {
        let Some(saving) = &self.saving else { return false };
        match saving.next() {
            Some(frame) => self.save(frame, wait),
            None => self.saving = None,
        }
        self.saving.is_some()
    }

    /// Saves an open frame, unless it is saved already. With `wait`, waits until a buffer is free.
    fn save(&mut self, frame: usize, wait: bool) {
        let Some(saving) = &mut self.saving else { return };
        let rows = saving.left(frame);
        if rows == 0 {
            return;
        }
        let Some(mut buffer) = saving.buffer(wait) else {
            if wait {
                // The snapshot has failed.
                self.saving = None;
            }
            return;
        };
        match &self.ring {
            Phase::Dealing(ring) => ring.save(frame, rows, &mut buffer),
            Phase::Serving(leftover) => leftover.save(frame, rows, &mut buffer),
            Phase::Discarded => return,
        }
        saving.write(SavedFrame::Open { frame, rows }, buffer);
        saving.saved(frame);
    }

    /// Fills the ring, and the ready frames, with the rows of a full snapshot.
    pub(crate) fn restore(&mut self, body: &Body, rows: &mut RowsReader<'_>) -> Result<(), ResumeError> {
        let Some(saved) = &body.saved else { return Ok(()) };
        let layout = self.config.layout.clone();
        let shared = self.shared.clone();
        let mut state = shared.lock();
        let mut buffer = Frame::allocate_one(&layout, "a snapshot's rows")?;
        let mut filled = match &self.ring {
            Phase::Dealing(ring) => ring.filled(),
            _ => Vec::new(),
        };
        for &frame in &saved.frames {
            match (frame, &mut self.ring) {
                (SavedFrame::Ready { first_minibatch, rows: n }, _)
                    if first_minibatch == state.frames.next_ordinal() =>
                {
                    let mut ready = match state.frames.take_empty() {
                        Some(empty) => empty,
                        None => Frame::allocate_one(&layout, "a minibatch")?,
                    };
                    rows.read(frame, &mut ready)?;
                    self.ledger.make_ready(state.frames.push(ready, n));
                }
                (SavedFrame::Open { frame: open, rows: n }, Phase::Dealing(ring))
                    if filled.get(open).is_some_and(|&filled| filled as usize == n) =>
                {
                    rows.read(frame, &mut buffer)?;
                    ring.restore(open, n, &buffer);
                    filled[open] = 0;
                }
                _ => return Err(rows.damaged("its list of frames", "it does not fit its position")),
            }
        }
        if filled.iter().any(|&rows| rows > 0) || state.frames.next_ordinal() != body.position.completing_minibatch {
            return Err(rows.damaged("its list of frames", "it lacks one"));
        }
        state.take_over(&self.ledger);
        Ok(())
    }

    /// Reports to the state what has happened, and decides the next step. This is the only critical section of a step.
    fn settle(&mut self) -> Step {
        let shared = self.shared.clone();
        let mut afterwards = std::mem::take(&mut self.afterwards);
        let mut state = shared.lock();
        if std::mem::take(&mut self.looked) {
            state.looked();
        }
        if state.status.discards() {
            return Step::Discard;
        }
        state.note_dealt(&mut self.dealt, self.lanes.turn());
        self.report_lanes(&mut state);
        let step = self.next_step(&mut state, &mut afterwards);
        state.report(&self.ledger, &mut afterwards);
        state.writer_waits(if let Step::Wait(waits_for) = step { waits_for } else { None });
        self.requests = state.take_requests();
        drop(state);
        shared.run(&mut afterwards);
        self.afterwards = afterwards;
        self.announce_wait(step == Step::Wait(Some(WaitsFor::Room)));
        if let Some(error) = self.gave_up.take() {
            tracing::error!(%error, "the store cannot be resumed");
        }
        if let Warned::Due(error) = &self.warned {
            tracing::warn!(%error, "rows lost their counterparts; stats() counts all of them");
            self.warned = Warned::Yes;
        }
        step
    }

    /// Reports the rows that lanes have settled, and the lanes that have ended.
    fn report_lanes(&mut self, state: &mut State) {
        let Writer { lanes, ledger, finished, config, warned, .. } = self;
        lanes.report(ledger, finished, |lane, settled, ending| {
            state.admission.settle(lane, settled);
            let Some(ending) = ending else { return };
            let unmatched = ending.unmatched.map(|Unmatched { present, missing, rows }| {
                let (present, missing) = (config.layout.name(present), config.layout.name(missing));
                WriteError::Unmatched { present, missing, rows }
            });
            if *warned == Warned::No {
                *warned = unmatched.clone().map_or(Warned::No, Warned::Due);
            }
            state.admission.remove_lane(lane);
            state.journal.end(lane);
            state.unmatched.extend(unmatched);
        });
    }

    fn next_step(&mut self, state: &mut State, afterwards: &mut Afterwards) -> Step {
        if let Some((frame, rows)) = self.filled.take() {
            state.push_ready(frame, rows, &mut self.ledger, afterwards);
        }
        if !self.finishing && !state.status.is_open() {
            // All rows that were handed over before the close are in the queue by now.
            self.finishing = true;
            return Step::Again;
        }
        if let Some(Segment { lane, first_row: row, .. }) = self.lanes.lacks() {
            self.give_up(lane, row, state, afterwards);
            return Step::Again;
        }
        match &mut self.ring {
            Phase::Dealing(ring) if ring.is_full() => {
                if state.frames.has_room() {
                    let Some(empty) = self.spare.take().or_else(|| state.frames.take_empty()) else {
                        return Step::Wait(Some(WaitsFor::Frame));
                    };
                    match ring.take_full(empty) {
                        Ok(full) => state.push_ready(full, self.config.layout.rows(), &mut self.ledger, afterwards),
                        Err(empty) => self.spare = Some(empty),
                    }
                    Step::Again
                } else if self.lanes.next().is_some() {
                    if self.config.when_full != WhenFull::DropOldest {
                        return Step::Wait(Some(WaitsFor::Room));
                    }
                    state.discard_oldest(&mut self.ledger, afterwards);
                    Step::Again
                } else {
                    Step::Wait(Some(WaitsFor::Turn))
                }
            }
            Phase::Dealing(_) if self.lanes.next().is_some() => Step::Again,
            Phase::Dealing(_) if !self.finishing => Step::Wait(None),
            Phase::Dealing(_) if !self.lanes.is_empty() || !self.queue.is_empty() => Step::Again,
            Phase::Dealing(_) => {
                self.first_leftover = Some(state.frames.next_ordinal());
                Step::ServeLeftover
            }
            Phase::Serving(leftover) => {
                if leftover.len() < self.config.batch_size && self.config.drop_last {
                    self.ledger.drop_open(leftover.clear(), |dropped| &mut dropped.last);
                }
                if leftover.len() == 0 {
                    return Step::Done;
                }
                if !state.frames.has_room() {
                    return Step::Wait(Some(WaitsFor::Room));
                }
                if self.spare.is_none() {
                    self.spare = state.frames.take_empty();
                }
                if self.spare.is_some() { Step::Gather } else { Step::Wait(Some(WaitsFor::Frame)) }
            }
            Phase::Discarded => Step::Done,
        }
    }

    /// Discards the rows dealt again so far, because the lane has ended without the row that must be dealt next.
    fn give_up(&mut self, lane: u64, row: u64, state: &mut State, afterwards: &mut Afterwards) {
        let name = state.journal.lanes.get(&lane).and_then(|lane| lane.name.clone());
        let error = RowsMissing { lane: LaneId { number: lane, name }, row };
        self.gave_up = Some(error.clone());
        drop(state.fail(Arc::new(error), afterwards));
        self.lanes.empty(self.config.merge, &mut self.ledger, &mut self.finished);
        if let Phase::Dealing(ring) = &mut self.ring {
            ring.clear(1);
        }
        if let Some(owed) = self.ledger.settle_debt() {
            self.ledger.drop_open(owed, |dropped| &mut dropped.aborted);
        }
        self.finishing = true;
        self.lanes.end_all();
    }

    /// Drops the batches that are finished.
    fn drop_finished(&mut self) {
        let mut panics = Panics::default();
        for batch in self.finished.batches.drain(..) {
            panics.catch(|| drop(batch));
        }
        if let Err(panic) = panics.first() {
            // `fail` tells the callers why.
            std::panic::resume_unwind(panic);
        }
    }

    /// Answers the callers whose rows the store holds. Before that, drops the memory that they lent with finished batches.
    fn answer(&mut self) {
        self.drop_finished();
        while let Some((reply, written)) = self.finished.answers.pop_front() {
            reply.resolve(Ok(written));
        }
    }

    fn announce_wait(&mut self, waits: bool) {
        if waits && !self.waits_for_room {
            tracing::debug!("the ring is full: producers wait for consumers");
        } else if !waits && self.waits_for_room {
            tracing::debug!("the writer goes on");
        }
        self.waits_for_room = waits;
    }

    /// Waits for a message.
    fn wait(&mut self, waits_for: Option<WaitsFor>) {
        let message = if waits_for == Some(WaitsFor::Frame) {
            // Consumers keep their minibatches. Another frame is allocated, so that consumers never starve the ring.
            match Frame::allocate_one(&self.config.layout, "a minibatch") {
                Ok(frame) => {
                    self.spare = Some(frame);
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "no memory for another minibatch: waiting for a consumer to drop one");
                    self.queue.recv_timeout(RETRY).ok()
                }
            }
        } else {
            self.queue.recv().ok()
        };
        message.into_iter().for_each(|message| self.take(message));
    }

    /// Starts to serve the rows left in the ring, because no more rows come.
    fn serve_leftover(&mut self) {
        self.ring = match std::mem::replace(&mut self.ring, Phase::Discarded) {
            Phase::Dealing(ring) => Phase::Serving(Box::new(ring.into_leftover())),
            other => other,
        };
    }

    /// Fills the spare frame with the next leftover rows.
    fn gather(&mut self) {
        let Phase::Serving(leftover) = &mut self.ring else { return };
        let Some(mut frame) = self.spare.take() else { return };
        let mut rows = leftover.next_rows(self.config.layout.rows());
        if self.config.drop_last {
            // Takes whole minibatches only. The rows left at the end are dropped.
            rows -= rows % self.config.batch_size;
        }
        if self.config.halves_last && rows == leftover.len() && rows.is_multiple_of(self.config.batch_size) {
            rows -= self.config.batch_size / 2;
        }
        leftover.fill(&mut frame, rows);
        self.filled = Some((frame, rows));
    }

    /// Fulfils the requests. All rows that were handed over before a request are in the queue by now.
    fn fulfil(&mut self) {
        self.receive();
        if !self.requests.empties.is_empty() {
            self.empty(self.requests.empties.len() as u64);
            for reply in self.requests.empties.drain(..) {
                // The caller blocks until this answer comes.
                let _ = reply.send(());
            }
        }
        if !self.requests.gets.is_empty() {
            let gets = std::mem::take(&mut self.requests.gets);
            self.get_all(gets);
        }
        for request in std::mem::take(&mut self.requests.snapshots) {
            self.start_saving(request);
        }
    }

    /// Discards all rows that were handed over. Their writes succeed, because they came before the request.
    fn empty(&mut self, times: u64) {
        while self.save_next(true) {}
        self.lanes.empty(self.config.merge, &mut self.ledger, &mut self.finished);
        let rows = match &mut self.ring {
            Phase::Dealing(ring) => ring.clear(times),
            Phase::Serving(leftover) => leftover.clear(),
            Phase::Discarded => 0,
        };
        // While rows are dealt again, the ring does not hold the rows that the counts say.
        let rows = self.ledger.settle_debt().unwrap_or(rows);
        let shared = self.shared.clone();
        let reported = shared.change(|state, afterwards| {
            // If the store was aborted meanwhile, the abort has counted everything, and these writes fail.
            if state.status.discards() {
                return false;
            }
            self.ledger.drop_open(rows, |dropped| &mut dropped.emptied);
            self.ledger.drop_rows(state.discard_ready(afterwards), |dropped| &mut dropped.emptied);
            state.note_emptied(times, self.lanes.rows(), self.lanes.turn());
            self.report_lanes(state);
            state.report(&self.ledger, afterwards);
            true
        });
        if reported {
            self.answer();
        }
    }

    /// Answers all `get` requests. Row numbers count the rows of the ready frames first, then the rows of the open frames.
    fn get_all(&mut self, gets: Vec<(Index, GetReply)>) {
        let ready = self.shared.lock().borrow_ready();
        let answers: Vec<_> = gets.into_iter().map(|(index, reply)| (self.get(&ready, &index), reply)).collect();
        self.shared.change(|state, afterwards| state.return_ready(ready, afterwards));
        for (answer, reply) in answers {
            // The caller blocks until this answer comes.
            let _ = reply.send(answer);
        }
    }

    fn get<'a>(
        &self,
        ready: impl IntoIterator<Item = &'a ReadyFrame> + Clone,
        index: &Index,
    ) -> Result<ArrayD<f32>, IndexError> {
        match &self.ring {
            Phase::Dealing(ring) => {
                let rows = ring.rows();
                // Rows that are dealt again do not count before all of them are dealt.
                let whole = if self.lanes.deals_again() { 0 } else { rows.len() };
                self.get_from(ready, index, whole, |n, component| rows.row(n, component))
            }
            Phase::Serving(rest) => self.get_from(ready, index, rest.len(), |n, component| rest.row(n, component)),
            Phase::Discarded => Err(IndexError::Ended),
        }
    }

    fn get_from<'a, 'b>(
        &self,
        ready: impl IntoIterator<Item = &'a ReadyFrame> + Clone,
        index: &Index,
        open_rows: usize,
        open_row: impl Fn(usize, usize) -> &'b [u8],
    ) -> Result<ArrayD<f32>, IndexError> {
        let layout: &Layout = &self.config.layout;
        let ready_rows: usize = ready.clone().into_iter().map(ReadyFrame::rows).sum();
        index.select(ready_rows + open_rows, &layout.widths(), |mut row, component, out| {
            let dtype = layout.components()[component].dtype;
            for ready in ready.clone() {
                if row < ready.rows() {
                    return widen(ready.row(component, row), component, dtype, out);
                }
                row -= ready.rows();
            }
            widen(open_row(row, component), component, dtype, out)
        })
    }

    /// Discards everything, because the store was aborted or has no consumer left. The state has already counted the rows.
    fn discard(&mut self) {
        let error = self.shared.lock().status.check().err();
        let error = error.unwrap_or(WriteError::Closed(ClosedBy::Abort));
        let mut panics = Panics::default();
        self.refuse_all(&error, &mut panics);
        let _ = self.end();
        if let Err(panic) = panics.first() {
            std::panic::resume_unwind(panic);
        }
    }

    /// Drops all batches that were handed over, one by one, and answers their callers with `error`.
    fn refuse_all(&mut self, error: &WriteError, panics: &mut Panics) {
        self.ring = Phase::Discarded;
        self.saving = None;
        (self.spare, self.filled) = (None, None);
        let Writer { lanes, queue, finished, .. } = self;
        for batch in finished.batches.drain(..) {
            panics.catch(|| drop(batch));
        }
        let mut refuse = |batch, reply: Option<WriteReply>| {
            panics.catch(|| drop(batch));
            panics.catch(|| reply.into_iter().for_each(|reply| reply.resolve(Err(error.clone()))));
        };
        // All batches of a pass are dropped before its caller gets the answer.
        let mut replies = Vec::new();
        for (batch, reply) in lanes.drain() {
            refuse(Some(batch), None);
            replies.extend(reply);
        }
        replies.into_iter().for_each(|reply| refuse(None, Some(reply)));
        for message in queue.try_iter() {
            let Message::Write(write) = message else { continue };
            let mut reply = Some(write.reply);
            match write.rows {
                HandedOver::Batch(_, batch) => refuse(Some(batch), reply),
                HandedOver::Pass(batches, _) => {
                    batches.into_iter().for_each(|batch| refuse(Some(batch), None));
                    refuse(None, reply.take());
                }
            }
        }
        finished.answers.drain(..).for_each(|(reply, _)| refuse(None, Some(reply)));
    }

    /// Notes that nothing more becomes ready. Returns `false` if a snapshot must be taken first.
    fn end(&self) -> bool {
        let Stats { minibatches_served, waited_for_consumers, waited_for_producers, .. } = self.shared.stats();
        let mut panics = Panics::default();
        panics.catch(|| {
            tracing::info!(
                minibatches_served,
                ?waited_for_consumers,
                ?waited_for_producers,
                "no more minibatches become ready"
            );
        });
        let ended = self.shared.change(State::end);
        if let Err(panic) = panics.first() {
            std::panic::resume_unwind(panic);
        }
        ended
    }
}
