//! The writer: the one task that owns the ring.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError, select};
use ndarray::ArrayD;
use tokio::sync::oneshot;

use crate::error::{IndexError, WriteError};
use crate::memory::convert::widen;
use crate::memory::frame::Frame;
use crate::pipeline::config::{Config, WhenFull};
use crate::pipeline::exchange::{Control, Exchange};
use crate::pipeline::host::{Exit, Task, drain_quietly, drop_quietly};
use crate::pipeline::lane::{Answer, Finished, Lane, Lanes};
use crate::pipeline::queue::{Budget, Job, Room, Write};
use crate::ring::ring::{Rest, Ring};
use crate::rows::index::Index;
use crate::rows::layout::Layout;

/// What reaches the writer.
pub(crate) struct Inbox {
    pub(crate) jobs: Receiver<Job>,
    /// What must not wait in the queue. Unbounded: a bounded channel keeps what its receiver left unread, and whoever waits
    /// for the answer would wait for ever.
    pub(crate) control: Receiver<Control>,
    /// Says to look again, for a minibatch has been taken or somebody flushes.
    pub(crate) nudges: Receiver<()>,
}

pub(crate) struct Writer {
    inbox: Inbox,
    exchange: Arc<Exchange>,
    room: Arc<Room>,
    config: Arc<Config>,
    stage: Stage,
    lanes: Lanes,
    /// The budget of the store's own lane, which opens when it is first written to.
    budget: Arc<Budget>,
    /// No more jobs come.
    finishing: bool,
    next_ticket: u64,
    /// Writes taken from the queue and not answered yet.
    unanswered: usize,
    flushes: Vec<Flush>,
    /// Emptied in each step; kept for their memory.
    finished: Vec<Finished>,
    answers: Vec<Answer>,
}

enum Stage {
    /// All frames, not touched yet.
    Starting(Vec<Frame>),
    Dealing(Ring),
    /// No more rows come; the ring's last rows are being served.
    Draining(Rest),
}

/// Somebody waits until the `left` unanswered writes with tickets below `ticket` are answered.
struct Flush {
    ticket: u64,
    left: usize,
    done: oneshot::Sender<()>,
}

/// What to do next.
enum Step {
    Again,
    WaitForRoom,
    WaitForMemory,
    WaitForJobs,
    Done,
}

impl Task for Writer {
    fn run(&mut self) -> Exit {
        self.start();
        loop {
            let exit = match self.inbox.control.try_recv() {
                Ok(control) => self.control(control),
                Err(_) => match self.step() {
                    Step::Again => None,
                    Step::WaitForRoom => self.wait_for_room(),
                    Step::WaitForMemory => self.wait_for_memory(),
                    Step::WaitForJobs => self.wait_for_jobs(),
                    Step::Done => Some(Exit::Done),
                },
            };
            if let Some(exit) = exit {
                if exit == Exit::Done {
                    self.exchange.end();
                    self.room.look_again();
                }
                return exit;
            }
        }
    }

    fn fail(&mut self, cause: &str) {
        tracing::error!(cause, "the writer panicked");
        self.exchange.fate.poison(cause);
        drain_quietly(&self.inbox.jobs);
        self.lanes.all().for_each(|lane| lane.drain().for_each(drop_quietly));
        self.finished.drain(..).for_each(drop_quietly);
        self.exchange.end();
        self.room.look_again();
    }
}

impl Writer {
    pub(crate) fn new(
        config: Arc<Config>,
        memory: Vec<Frame>,
        exchange: Arc<Exchange>,
        room: Arc<Room>,
        budget: Arc<Budget>,
        inbox: Inbox,
    ) -> Self {
        Writer {
            inbox,
            exchange,
            room,
            lanes: Lanes::new(config.merge),
            config,
            stage: Stage::Starting(memory),
            budget,
            finishing: false,
            next_ticket: 0,
            unanswered: 0,
            flushes: Vec::new(),
            finished: Vec::new(),
            answers: Vec::new(),
        }
    }

    fn start(&mut self) {
        if let Stage::Starting(frames) = &mut self.stage {
            let mut frames = std::mem::take(frames);
            frames.iter_mut().for_each(|frame| _ = frame.touch(0, usize::MAX));
            for spare in frames.drain(self.config.open_frames..) {
                self.exchange.pool().put(spare);
            }
            let Config { layout, seed, writer_threads, .. } = &*self.config;
            self.stage = Stage::Dealing(Ring::new(layout.clone(), frames, *seed, *writer_threads));
        }
    }

    /// Does the next piece of work there is.
    fn step(&mut self) -> Step {
        if self.finishing {
            // No batches any more, but somebody may still want to flush.
            while let Ok(job) = self.inbox.jobs.try_recv() {
                self.job(job);
            }
        }
        match &mut self.stage {
            Stage::Starting(_) => self.start(),
            Stage::Dealing(ring) if ring.is_full() && self.exchange.has_room() => return self.hand_over(),
            Stage::Dealing(ring) => {
                let full = ring.is_full();
                if self.lanes.next().is_some() {
                    if !full {
                        self.deal();
                    } else if self.config.when_full == WhenFull::DropOldest {
                        self.exchange.make_room();
                    } else {
                        return Step::WaitForRoom;
                    }
                } else {
                    self.accept_incomplete();
                    if !self.finishing {
                        return Step::WaitForJobs;
                    }
                    if full {
                        return Step::WaitForRoom;
                    }
                    self.drain();
                }
            }
            Stage::Draining(rest) => {
                let rows = rest.next_rows(self.config.layout.rows());
                if rows == 0 {
                    return Step::Done;
                }
                if rows < self.config.layout.rows() && self.config.drop_last {
                    self.exchange.count(|counts| counts.drop_open(rows));
                    return Step::Done;
                }
                if !self.exchange.has_room() {
                    return Step::WaitForRoom;
                }
                let Ok(mut frame) = self.exchange.pool().take() else {
                    return Step::WaitForMemory;
                };
                rest.fill(&mut frame);
                self.exchange.push(frame, rows);
            }
        }
        Step::Again
    }

    /// Hands the full frame to the consumers; there is room.
    fn hand_over(&mut self) -> Step {
        let Stage::Dealing(ring) = &mut self.stage else {
            return Step::Again;
        };
        let Ok(empty) = self.exchange.pool().take() else {
            return Step::WaitForMemory;
        };
        match ring.take_full(empty) {
            Ok(full) => self.exchange.push(full, self.config.layout.rows()),
            Err(empty) => self.exchange.pool().put(empty),
        }
        Step::Again
    }

    fn deal(&mut self) {
        let Stage::Dealing(ring) = &mut self.stage else { return };
        let Some((lane, rows)) = self.lanes.next() else { return };
        let dealt = ring.deal(rows.min(lane.front_rows()), |component| lane.front(component));
        self.exchange.count(|counts| {
            counts.open_rows += dealt;
            lane.advance(dealt, counts, &mut self.finished);
        });
        self.lanes.dealt(dealt);
        self.finish_writes();
    }

    /// Accepts batches that only lack other components, and lets go of lanes that have ended.
    fn accept_incomplete(&mut self) {
        while let Some(id) = self.lanes.next_touched() {
            if let Some(lane) = self.lanes.lane(id).filter(|lane| lane.available() == 0) {
                self.exchange.count(|counts| lane.accept(counts, &mut self.answers));
            }
            if let Some(lane) = self.lanes.remove_spent(id) {
                self.part_with(lane);
            }
        }
        self.finish_writes();
    }

    /// Drops, and reports, what an ended lane has left.
    fn part_with(&mut self, mut lane: Lane) {
        let layout = &self.config.layout;
        if let Some((present, missing, rows)) = lane.unmatched() {
            let (present, missing) = (layout.name(present), layout.name(missing));
            self.exchange.fate.report(WriteError::Unmatched { present, missing, rows });
            self.exchange.arrivals.notify_waiters();
        }
        self.exchange.count(|counts| lane.discard(counts, &mut self.finished));
        self.finish_writes();
    }

    /// Drops what is done with, and only then answers: whoever lent memory has it back by then.
    fn finish_writes(&mut self) {
        // Foreign memory may panic when dropped; the answers are lost only once the cause is known.
        self.answers.extend(self.finished.iter_mut().filter_map(|(_, answer)| answer.take()));
        while let Some(done_with) = self.finished.pop() {
            drop(done_with);
        }
        // Part of a batch may have left the queue, too.
        self.room.tell(self.config.queue_rows / 8);
        if self.answers.is_empty() {
            return;
        }
        for Answer { reply, written, ticket } in self.answers.drain(..) {
            reply.done(written);
            self.unanswered -= 1;
            for flush in self.flushes.iter_mut().filter(|flush| flush.ticket > ticket) {
                flush.left -= 1;
            }
        }
        for flush in self.flushes.extract_if(.., |flush| flush.left == 0) {
            let _ = flush.done.send(());
        }
    }

    /// No more rows come: turns to serving those in the ring.
    fn drain(&mut self) {
        self.room.tell(0);
        let stage = std::mem::replace(&mut self.stage, Stage::Starting(Vec::new()));
        self.stage = match stage {
            Stage::Dealing(ring) => Stage::Draining(ring.into_rest()),
            other => other,
        };
    }

    fn job(&mut self, job: Job) {
        match job {
            Job::Open(lane, budget) => self.lanes.open(lane, self.config.layout.n_components(), budget),
            Job::Write(write) => {
                let lane = write.lane;
                self.take(write);
                self.lanes.touch(lane);
                self.finish_writes();
            }
            Job::Close(lane) => {
                if let Some(ending) = self.lanes.lane(lane) {
                    ending.ended = true;
                    self.lanes.touch(lane);
                }
            }
            Job::Flush(done) if self.unanswered == 0 => {
                let _ = done.send(());
            }
            Job::Flush(done) => self.flushes.push(Flush { ticket: self.next_ticket, left: self.unanswered, done }),
            Job::Finish => {
                self.finishing = true;
                self.lanes.end_all();
            }
        }
    }

    fn take(&mut self, write: Write) {
        if self.lanes.lane(write.lane).is_none() {
            self.lanes.open(write.lane, self.config.layout.n_components(), self.budget.clone());
        }
        if let Some(lane) = self.lanes.lane(write.lane) {
            let ticket = self.next_ticket;
            self.next_ticket += 1;
            self.unanswered += 1;
            self.exchange.count(|counts| lane.push(write, ticket, counts, &mut self.finished));
        }
    }

    fn wait_for_jobs(&mut self) -> Option<Exit> {
        let job = match self.inbox.jobs.try_recv() {
            Ok(job) => job,
            Err(TryRecvError::Disconnected) => Job::Finish,
            Err(TryRecvError::Empty) => {
                self.room.tell(0);
                select! {
                    recv(self.inbox.control) -> control => return control.ok().and_then(|control| self.control(control)),
                    recv(self.inbox.nudges) -> _ => return None,
                    recv(self.inbox.jobs) -> job => job.unwrap_or(Job::Finish),
                }
            }
        };
        self.job(job);
        None
    }

    fn wait_for_room(&mut self) -> Option<Exit> {
        self.room.tell(0);
        tracing::debug!("the ring is full: producers wait for consumers");
        self.exchange.writer_waits();
        let control = select! {
            recv(self.inbox.control) -> control => control.ok(),
            recv(self.inbox.nudges) -> _ => None,
        };
        let waited = self.exchange.writer_goes_on();
        tracing::debug!(?waited, "the writer goes on");
        control.and_then(|control| self.control(control))
    }

    /// The consumers keep their minibatches, and there is no memory for another: looks again when one may have come back.
    fn wait_for_memory(&mut self) -> Option<Exit> {
        self.room.tell(0);
        tracing::warn!("no memory for another minibatch: waiting for a consumer to drop one");
        let control = self.inbox.control.recv_timeout(Duration::from_millis(10));
        control.ok().and_then(|control| self.control(control))
    }

    fn control(&mut self, control: Control) -> Option<Exit> {
        match control {
            Control::Leave => Some(Exit::Leave),
            Control::Get(index, answer) => {
                let _ = answer.send(self.get(&index));
                None
            }
            Control::Empty(done) => {
                self.empty();
                let _ = done.send(());
                None
            }
            Control::Abort => {
                self.abort();
                Some(Exit::Done)
            }
        }
    }

    /// Discards everything that has been handed over. Its writes have succeeded: they came before.
    fn empty(&mut self) {
        for _ in 0..self.inbox.jobs.len() {
            match self.inbox.jobs.try_recv() {
                Ok(Job::Write(write)) => self.take(write),
                Ok(job) => self.job(job),
                Err(_) => break,
            }
        }
        for lane in self.lanes.all() {
            self.exchange.count(|counts| lane.discard(counts, &mut self.finished));
        }
        self.discard_ring();
        self.finish_writes();
    }

    /// Discards everything that has been accepted; writes that have not been fail.
    fn abort(&mut self) {
        for lane in self.lanes.all() {
            lane.refuse();
            self.exchange.count(|counts| lane.discard(counts, &mut self.finished));
        }
        self.discard_ring();
        while let Ok(job) = self.inbox.jobs.try_recv() {
            if let Job::Write(write) = job {
                let budget = self.lanes.lane(write.lane).map_or(&*self.budget, |lane| lane.budget());
                budget.leave(write.component, write.batch.rows());
            }
        }
        self.finish_writes();
        self.flushes.clear();
    }

    fn discard_ring(&mut self) {
        self.exchange.discard_all();
        let rows = match &mut self.stage {
            Stage::Starting(_) => 0,
            Stage::Dealing(ring) => ring.clear(),
            Stage::Draining(rest) => rest.clear(),
        };
        self.exchange.count(|counts| counts.drop_open(rows));
    }

    /// Reads whole rows, in the order: ready minibatches, then open frames.
    fn get(&self, index: &Index) -> Result<ArrayD<f32>, IndexError> {
        match &self.stage {
            Stage::Starting(_) => self.get_from(index, 0, |_, _| &[]),
            Stage::Dealing(ring) => {
                let rows = ring.rows();
                self.get_from(index, rows.len(), |n, component| rows.row(n, component))
            }
            Stage::Draining(rest) => self.get_from(index, rest.len(), |n, component| rest.row(n, component)),
        }
    }

    fn get_from<'a>(
        &self,
        index: &Index,
        open_rows: usize,
        open_row: impl Fn(usize, usize) -> &'a [u8],
    ) -> Result<ArrayD<f32>, IndexError> {
        let layout: &Layout = &self.config.layout;
        self.exchange.with_ready(|ready| {
            let ready_rows: usize = ready.iter().map(|full| full.rows).sum();
            index.select(ready_rows + open_rows, &layout.widths(), |mut row, component, out| {
                let dtype = layout.components()[component].dtype;
                for full in ready {
                    if row < full.rows {
                        return widen(full.frame.row(component, row), component, dtype, out);
                    }
                    row -= full.rows;
                }
                widen(open_row(row, component), component, dtype, out)
            })
        })
    }
}
