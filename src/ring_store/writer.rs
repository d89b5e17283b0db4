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

use crate::dealing::frames::{Leftover, Ring};
use crate::memory::frame::Frame;
use crate::ring_store::afterwards::Afterwards;
use crate::ring_store::builder::{Config, WhenFull};
use crate::ring_store::core::{Requests, Shared, State, WaitsFor};
use crate::ring_store::lane::{Finished, Lanes, Unmatched};
use crate::ring_store::ledger::Ledger;
use crate::ring_store::queue::Message;
use crate::ring_store::snapshot::error::RowsMissing;
use crate::ring_store::snapshot::journal::Segment;
use crate::ring_store::snapshot::saving::Saving;
use crate::rows::error::WriteError;
use crate::rows::values::{Said, ValueCounts};
use crate::waiting::panics::Panics;
use crate::waiting::wait::WORTH_LOGGING;
use crate::waiting::worker::{Exit, Work};

mod ending;
mod requests;

/// The fewest and the most rows of a plan: the rows that the writer deals before it looks at the state again.
const PLAN: std::ops::RangeInclusive<usize> = 4..=4096;

/// If a plan takes longer, the next plan is smaller. Most plans take longer while the ring's memory is new: the first write to each
/// page waits until the operating system provides the page.
const PLAN_TIME: Duration = Duration::from_millis(4);

/// How long the writer waits for a consumer to drop a minibatch before it asks the operating system for memory again.
const RETRY: Duration = Duration::from_millis(100);

pub(crate) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) config: Arc<Config>,
    pub(super) queue: Receiver<Message>,
    pub(super) lanes: Lanes,
    pub(super) ring: Phase,
    /// The writer's own counts. The state has a copy.
    pub(super) ledger: Ledger,
    /// Whether the store is closed: no more rows come.
    pub(super) finishing: bool,
    /// The rows of the next plan.
    pub(super) plan: usize,
    /// Whether a `Look` message has been received since the last step.
    pub(super) looked: bool,
    /// An empty frame for the next use.
    pub(super) spare: Option<Frame>,
    /// The number of the first minibatch of leftover rows, once dealing has ended.
    pub(super) first_leftover: Option<u64>,
    /// The full snapshot that is being written.
    pub(super) saving: Option<Saving>,
    /// The segments dealt since the last report.
    pub(super) dealt: VecDeque<Segment>,
    /// A frame of leftover rows that becomes ready next, and how many rows it has.
    pub(super) filled: Option<(Frame, usize)>,
    /// Since when the writer waits for consumers to make room.
    pub(super) waits_for_room: Option<Instant>,
    /// Whether the writer has warned of rows whose counterparts in another component never came. It warns once.
    warned: Warned,
    /// What has been said about the values of each component.
    pub(super) said: Vec<Said>,
    /// Why the store cannot be resumed, to be logged without the mutex.
    pub(super) gave_up: Option<RowsMissing>,
    pub(super) finished: Finished,
    /// The requests taken from the state and not fulfilled yet.
    pub(super) requests: Requests,
    /// Empty between steps. Kept so that steps reuse its memory.
    pub(super) afterwards: Afterwards,
}

pub(super) enum Phase {
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
            waits_for_room: None,
            warned: Warned::No,
            said: vec![Said::default(); components],
            gave_up: None,
            finished: Finished::default(),
            requests: Requests::default(),
            afterwards: Afterwards::default(),
            shared,
            config,
            queue,
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
            for (component, counts) in self.ledger.components.iter_mut().zip(ring.take_counts()) {
                // The saved store has counted the rows that are dealt again.
                component.values += if again { ValueCounts::default() } else { counts };
            }
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
        self.note_wait(step == Step::Wait(Some(WaitsFor::Room)));
        if let Some(error) = self.gave_up.take() {
            tracing::error!(%error, "the store cannot be resumed");
        }
        if let Warned::Due(error) = &self.warned {
            tracing::warn!(%error, "rows lost their counterparts; stats() counts all of them");
            self.warned = Warned::Yes;
        }
        for ((said, component), counts) in
            self.said.iter_mut().zip(self.config.layout.components()).zip(&self.ledger.components)
        {
            said.note(counts.values).say(component);
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
            state.note_unmatched(unmatched);
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

    fn note_wait(&mut self, waits: bool) {
        if waits {
            self.waits_for_room.get_or_insert_with(Instant::now);
        } else if let Some(since) = self.waits_for_room.take()
            && since.elapsed() >= WORTH_LOGGING
        {
            tracing::debug!(waited = ?since.elapsed(), "the ring was full: producers have waited for consumers");
        }
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
}
