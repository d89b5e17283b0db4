//! The writer: the only task that owns the open frames and the passes in the lanes.
//!
//! In each step, the writer receives the messages in the queue, deals a plan of rows, and drops the batches that are finished. Then
//! it settles: under the one mutex, it reports the rows that it has dealt, makes full frames ready, and takes requests. Then it
//! answers callers, and starts the next step. It waits for messages only in `wait`. While it writes a full snapshot, it also waits for
//! the disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{self, Runtime};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use crate::dealing::frames::{Leftover, OpenFrames};
use crate::memory::frame::Frame;
use crate::ring_store::afterwards::Afterwards;
use crate::ring_store::builder::{Config, WhenFull};
use crate::ring_store::core::{Requests, Shared, State, WaitsFor, Warning};
use crate::ring_store::lanes::{Finished, Lanes};
use crate::ring_store::queue::{Message, Report};
use crate::ring_store::snapshot::saving::Saving;
use crate::ring_store::writer::dealing::Dealing;
use crate::rows::error::WriteError;
use crate::rows::values::{Said, ValueCounts};
use crate::waiting::panics::Panics;
use crate::waiting::thread::Work;
use crate::waiting::wait::WORTH_LOGGING;

pub(super) mod dealing;
mod ending;
mod requests;

/// How long the writer waits for a consumer to drop a minibatch before it asks the operating system for memory again.
const RETRY: Duration = Duration::from_millis(100);

/// How long a consumer that was woken may leave its minibatch before all consumers that wait are woken.
const UNCLAIMED: Duration = Duration::from_millis(10);

pub(crate) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) config: Arc<Config>,
    queue: UnboundedReceiver<Message>,
    pub(super) phase: Phase,
    /// Whether a `Look` message has been received since the last step.
    looked: bool,
    /// An empty frame for the next use.
    spare: Option<Frame>,
    /// The full snapshot that is being written.
    pub(super) saving: Option<Saving>,
    pub(super) report: Report,
    finished: Finished,
    /// The requests taken from the state and not fulfilled yet.
    requests: Requests,
    /// Empty between steps. Kept so that steps reuse its memory.
    afterwards: Afterwards,
    /// Since when the writer waits for consumers to make room.
    waits_for_room: Option<Instant>,
    /// Since when consumers that were woken have not come for their minibatches, while others wait.
    unclaimed_since: Option<Instant>,
    /// What has been said about the values of each component.
    pub(super) said: Vec<Said>,
}

/// What the writer does with rows. Phases follow each other in this order, and the last may follow each.
pub(super) enum Phase {
    Dealing(Box<Dealing>),
    Serving(Box<Serving>),
    /// The writer has discarded everything.
    Discarded,
}

/// No more rows come. The writer serves the rows left in the open frames.
pub(super) struct Serving {
    pub(super) leftover: Leftover,
    /// The number of the first minibatch of these rows.
    pub(super) first_minibatch: u64,
    /// A frame of leftover rows that becomes ready next, and how many rows it has.
    filled: Option<(Frame, usize)>,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    // Under the mutex, after which the writer decides again:
    /// Make the full frame ready, and put the empty one in its place.
    MakeReady,
    /// Make the frame of leftover rows ready.
    MakeLeftoverReady,
    /// Discard the oldest ready frame, to make room.
    DropOldest,
    /// Discard the rest of the leftover rows, which are fewer than a minibatch.
    DropLast,
    /// Fail, because a resumed store lacks a row of a lane that has ended.
    GiveUp {
        lane: u64,
        row: u64,
    },
    // Without the mutex:
    /// Deal the rows that are there, or take the last ones out of the queue.
    Deal,
    /// Take the last rows out of the queue, because the store is closed.
    Finish,
    /// Wait for a message: of rows, of room for a ready frame, or of an empty frame.
    Wait(Option<WaitsFor>),
    /// Start to serve the rows left in the open frames.
    Serve,
    /// Fill the spare frame with leftover rows.
    Gather,
    /// Discard everything.
    Discard,
    End,
}

impl Work for Writer {
    /// Works on this thread. A runtime, which has a timer and nothing else, drives the waits for messages. Foreign code (the owner of a
    /// batch, a waker) runs outside of it, because in a runtime it must not block.
    fn run(&mut self) {
        match runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => self.write(&runtime),
            Err(error) => self.fail(&format!("its runtime could not be built: {error}")),
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
    fn write(&mut self, runtime: &Runtime) {
        loop {
            self.receive();
            self.deal();
            self.drop_finished();
            let step = self.settle();
            if step == Step::Discard {
                self.discard();
                return;
            }
            self.answer();
            if !self.requests.is_empty() {
                self.fulfil();
                continue;
            }
            // If there is nothing else to do, the writer waits for the disk.
            let idle = matches!(step, Step::Wait(_) | Step::End);
            if self.save_next(idle) && idle {
                continue;
            }
            match step {
                Step::Finish => self.finish(),
                Step::Wait(waits_for) => self.wait(waits_for, runtime),
                Step::Serve => self.serve_leftover(),
                Step::Gather => self.gather(),
                Step::End if self.end() => return,
                _ => {}
            }
        }
    }

    /// Makes a writer with the open frames: as many as the configuration says.
    pub(crate) fn new(shared: Arc<Shared>, queue: UnboundedReceiver<Message>, open: Vec<Frame>) -> Self {
        let config = shared.config.clone();
        let components = config.layout.n_components();
        let frames = OpenFrames::new(config.layout.clone(), open, config.seed);
        let dealing = Dealing::new(frames, Lanes::new(config.merge));
        Writer {
            phase: Phase::Dealing(Box::new(dealing)),
            looked: false,
            spare: None,
            saving: None,
            report: Report::new(components),
            finished: Finished::default(),
            requests: Requests::default(),
            afterwards: Afterwards::default(),
            waits_for_room: None,
            unclaimed_since: None,
            said: vec![Said::default(); components],
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
    }

    fn take(&mut self, message: Message) {
        match (message, &mut self.phase) {
            (Message::Look, _) => self.looked = true,
            (Message::OpenLane(lane), Phase::Dealing(dealing)) => dealing.lanes.open(lane),
            (Message::Pass(queued), Phase::Dealing(dealing)) => dealing.lanes.push(queued, &mut self.finished),
            (Message::EndLane(lane), Phase::Dealing(dealing)) => dealing.lanes.end(lane),
            (Message::Pass(queued), _) => self.finished.pass(queued),
            (Message::Drop(batches, answer), _) => {
                self.finished.batches.extend(batches);
                self.finished.answers.extend(answer);
            }
            (Message::OpenLane(_) | Message::EndLane(_), _) => {}
        }
    }

    /// Takes the last rows out of the queue, and ends all lanes, because no more rows come.
    fn finish(&mut self) {
        self.receive();
        let lost = self.shared.lock().lose_all_unmatched();
        self.finished.batches.extend(lost);
        if let Phase::Dealing(dealing) = &mut self.phase {
            dealing.finishing = true;
            dealing.lanes.end_all();
        }
    }

    /// Deals a plan of rows. Stops when no rows are left or a frame is full.
    fn deal(&mut self) {
        let Phase::Dealing(dealing) = &mut self.phase else { return };
        if dealing.frames.is_full() {
            return;
        }
        dealing.deal_plan(&mut self.report, &mut self.finished);
        if let Some(frame) = dealing.frames.full() {
            self.save(frame, true);
        }
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
        if let Phase::Dealing(dealing) = &mut self.phase {
            state.take_report(&mut self.report, dealing.lanes.turn());
            dealing.lanes.remove_spent().into_iter().for_each(|lane| state.books.end(lane));
        }
        let step = loop {
            let step = self.next_step(&state);
            if !self.do_locked(step, &mut state, &mut afterwards) {
                break step;
            }
        };
        state.wake_producers(&mut afterwards);
        state.writer_waits(if let Step::Wait(waits_for) = step { waits_for } else { None });
        self.requests = state.take_requests();
        self.wake_for_unclaimed(&mut state, &mut afterwards);
        let (warnings, values) = (state.take_warnings(), state.changed_values());
        drop(state);
        shared.run(&mut afterwards);
        self.afterwards = afterwards;
        self.note_wait(step == Step::Wait(Some(WaitsFor::Room)));
        self.say(warnings, values);
        step
    }

    /// Decides what to do next. Changes nothing.
    fn next_step(&self, state: &State) -> Step {
        match &self.phase {
            Phase::Dealing(dealing) => self.next_step_of_dealing(dealing, state),
            Phase::Serving(serving) => self.next_step_of_serving(serving, state),
            Phase::Discarded => Step::End,
        }
    }

    fn next_step_of_dealing(&self, dealing: &Dealing, state: &State) -> Step {
        if !dealing.finishing && !state.status.is_open() {
            return Step::Finish;
        }
        if let Some((lane, row)) = dealing.lacks() {
            return Step::GiveUp { lane, row };
        }
        let has_rows = dealing.next().is_some();
        if dealing.frames.is_full() {
            return if state.frames.has_room() {
                let has_frame = self.spare.is_some() || state.frames.has_empty();
                if has_frame { Step::MakeReady } else { Step::Wait(Some(WaitsFor::Frame)) }
            } else if !has_rows {
                Step::Wait(Some(WaitsFor::Turn))
            } else if self.config.when_full == WhenFull::DropOldest {
                Step::DropOldest
            } else {
                Step::Wait(Some(WaitsFor::Room))
            };
        }
        if has_rows {
            Step::Deal
        } else if !dealing.finishing {
            Step::Wait(None)
        } else if !dealing.lanes.is_empty() || !self.queue.is_empty() {
            Step::Deal
        } else {
            Step::Serve
        }
    }

    fn next_step_of_serving(&self, serving: &Serving, state: &State) -> Step {
        let left = serving.leftover.len();
        if serving.filled.is_some() {
            Step::MakeLeftoverReady
        } else if left == 0 {
            Step::End
        } else if left < self.config.batch_size && self.config.drop_last {
            Step::DropLast
        } else if !state.frames.has_room() {
            Step::Wait(Some(WaitsFor::Room))
        } else if self.spare.is_some() || state.frames.has_empty() {
            Step::Gather
        } else {
            Step::Wait(Some(WaitsFor::Frame))
        }
    }

    /// Does a step that is done under the mutex. Returns `false`, and does nothing but take a spare frame, for another step.
    fn do_locked(&mut self, step: Step, state: &mut State, afterwards: &mut Afterwards) -> bool {
        match (step, &mut self.phase) {
            (Step::MakeReady, Phase::Dealing(dealing)) => {
                let Some(empty) = self.spare.take().or_else(|| state.frames.take_empty()) else { return false };
                match dealing.frames.take_full(empty) {
                    Ok(full) => state.push_ready(full, self.config.layout.rows(), afterwards),
                    Err(empty) => self.spare = Some(empty),
                }
            }
            (Step::MakeLeftoverReady, Phase::Serving(serving)) => {
                let filled = serving.filled.take();
                filled.into_iter().for_each(|(frame, rows)| state.push_ready(frame, rows, afterwards));
            }
            (Step::DropOldest, _) => state.discard_oldest(afterwards),
            (Step::DropLast, Phase::Serving(serving)) => {
                state.ledger.drop_open(serving.leftover.clear(), |dropped| &mut dropped.last);
            }
            (Step::GiveUp { lane, row }, _) => self.give_up(lane, row, state, afterwards),
            (Step::Gather, _) => {
                if self.spare.is_none() {
                    self.spare = state.frames.take_empty();
                }
                return false;
            }
            (Step::Serve, Phase::Dealing(_)) => return false,
            _ => return false,
        }
        true
    }

    /// Wakes all consumers if one that was woken does not come for its minibatch.
    fn wake_for_unclaimed(&mut self, state: &mut State, afterwards: &mut Afterwards) {
        if !state.has_unclaimed() {
            self.unclaimed_since = None;
        } else if self.unclaimed_since.get_or_insert_with(Instant::now).elapsed() >= UNCLAIMED {
            state.wake_all_consumers(afterwards);
            self.unclaimed_since = None;
        }
    }

    /// Says what the state has to say, without the mutex.
    fn say(&mut self, warnings: Vec<Warning>, values: Option<Vec<ValueCounts>>) {
        warnings.into_iter().for_each(|warning| match warning {
            Warning::Unmatched(error) => {
                tracing::warn!(%error, "rows lost their counterparts; stats() counts all of them");
            }
            Warning::GaveUp(error) => tracing::error!(%error, "the store cannot be resumed"),
        });
        for (counts, (said, component)) in
            values.into_iter().flatten().zip(self.said.iter_mut().zip(self.config.layout.components()))
        {
            said.note(counts).say(component);
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
        while let Some(answer) = self.finished.answers.pop_front() {
            answer.reply.resolve(Ok(answer.written));
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
    fn wait(&mut self, waits_for: Option<WaitsFor>, runtime: &Runtime) {
        let limit = if waits_for == Some(WaitsFor::Frame) {
            // Consumers keep their minibatches. Another frame is allocated, so that consumers never starve the ring.
            match Frame::allocate_one(&self.config.layout, "a minibatch") {
                Ok(frame) => {
                    self.spare = Some(frame);
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "no memory for another minibatch: waiting for a consumer to drop one");
                    Some(RETRY)
                }
            }
        } else {
            self.unclaimed_since.map(|since| UNCLAIMED.saturating_sub(since.elapsed()))
        };
        let message = runtime.block_on(async {
            match limit {
                Some(limit) => timeout(limit, self.queue.recv()).await.unwrap_or(None),
                None => self.queue.recv().await,
            }
        });
        message.into_iter().for_each(|message| self.take(message));
    }

    /// Starts to serve the rows left in the open frames, because no more rows come.
    fn serve_leftover(&mut self) {
        let first_minibatch = self.shared.lock().frames.next_ordinal();
        self.phase = match std::mem::replace(&mut self.phase, Phase::Discarded) {
            Phase::Dealing(dealing) => Phase::Serving(Box::new(Serving {
                leftover: dealing.frames.into_leftover(),
                first_minibatch,
                filled: None,
            })),
            other => other,
        };
    }

    /// Fills the spare frame with the next leftover rows.
    fn gather(&mut self) {
        let Phase::Serving(serving) = &mut self.phase else { return };
        let Some(mut frame) = self.spare.take() else { return };
        let mut rows = serving.leftover.next_rows(self.config.layout.rows());
        if self.config.drop_last {
            // Takes whole minibatches only. The rows left at the end are dropped.
            rows -= rows % self.config.batch_size;
        }
        if self.config.halves_last && rows == serving.leftover.len() && rows.is_multiple_of(self.config.batch_size) {
            rows -= self.config.batch_size / 2;
        }
        serving.leftover.fill(&mut frame, rows);
        serving.filled = Some((frame, rows));
    }
}
