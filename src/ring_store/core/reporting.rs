//! What the writer does with the state: it reports what it has dealt, makes frames ready, takes requests and ends.

use std::collections::VecDeque;
use std::mem;

use crate::memory::frame::Frame;
use crate::ring_store::afterwards::Afterwards;
use crate::ring_store::core::{Requests, State, WaitsFor};
use crate::ring_store::queue::{Dealt, Report};
use crate::ring_store::ready::ReadyFrame;
use crate::rows::values::ValueCounts;

/// The journal forgets rows after so many more rows are dealt, or after one more row for each open frame.
const FORGET_AFTER: u64 = 256;

impl State {
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

    /// Takes over what the writer has dealt, and the lane that has the next turn.
    pub(crate) fn take_report(&mut self, report: &mut Report, turn: Option<(u64, usize)>) {
        self.turn = turn;
        for Dealt { lane, rows, joined_by, again } in report.dealt.drain(..) {
            self.books.dealt(lane, rows, again);
            if !again {
                let _ = self.ledger.end_replay();
            }
            self.ledger.deal(rows, joined_by, again);
        }
        if mem::take(&mut report.has_dealt_again) {
            let _ = self.ledger.end_replay();
        }
        for (component, counts) in self.ledger.components.iter_mut().zip(&mut report.values) {
            self.has_new_values |= *counts != ValueCounts::default();
            component.values += mem::take(counts);
        }
        let dealt = self.books.journal.dealt;
        if dealt >= self.forget_at {
            self.books.forget_before(self.needed_from());
            // To find what is needed takes time for each frame, so it takes a constant time for each row.
            let frames = self.books.config.open_frames as u64;
            self.forget_at = dealt + frames.max(FORGET_AFTER);
        }
    }

    /// The first row that must be dealt again, counted since the ring was last emptied. The frame of the next minibatch began its
    /// fill with the run of this row.
    pub(crate) fn needed_from(&self) -> u64 {
        let config = &self.books.config;
        let runs = config.runs();
        let (next, first) = self.frames.ordinals();
        let frame = ((next - first) / config.minibatches_per_frame()).min(runs.completed(self.books.journal.dealt));
        runs.rows_before_fill(frame).max(self.books.journal.from())
    }

    /// Notes that the writer has emptied the lanes and the ring `times` times.
    pub(crate) fn note_emptied(&mut self, times: u64, turn: Option<(u64, usize)>) {
        self.books.emptied(times);
        self.forget_at = 0;
        self.frames.emptied();
        self.turn = turn;
    }

    /// Wakes the producers that have room now, and resolves the flushes that are done.
    pub(crate) fn wake_producers(&mut self, afterwards: &mut Afterwards) {
        self.books.wake_next(&mut afterwards.wakers);
        if !self.flushes.is_empty() {
            let done = self.flushes.extract_if(.., |(unsettled, _)| self.books.is_settled(unsettled));
            afterwards.flushes.extend(done.map(|(_, reply)| (reply, Ok(()))));
        }
    }

    /// Makes the first `rows` rows of `frame` ready for consumers. Until now these rows counted as open.
    pub(crate) fn push_ready(&mut self, frame: Frame, rows: usize, afterwards: &mut Afterwards) {
        self.count_waits();
        self.ledger.make_ready(self.frames.push(frame, rows));
        self.wake_consumers(afterwards);
    }

    /// Discards the oldest ready frame, with all minibatches left in it.
    pub(crate) fn discard_oldest(&mut self, afterwards: &mut Afterwards) {
        self.count_waits();
        let rows = self.frames.discard_oldest(&mut afterwards.parts).unwrap_or(0);
        self.ledger.drop_rows(rows, |dropped| &mut dropped.oldest);
    }

    /// Takes out the ready frames, so that the caller can read them without the mutex. Consumers wait until they are put back.
    pub(crate) fn borrow_ready(&mut self) -> VecDeque<ReadyFrame> {
        self.count_waits();
        self.frames.borrow_ready()
    }

    /// Puts the ready frames back that a snapshot has copied, and lends them again.
    pub(crate) fn return_saved(&mut self, ready: VecDeque<ReadyFrame>, afterwards: &mut Afterwards) {
        self.frames.unpin();
        self.return_ready(ready, afterwards);
    }

    /// Puts the borrowed ready frames back, or discards them if their rows were discarded meanwhile.
    pub(crate) fn return_ready(&mut self, ready: VecDeque<ReadyFrame>, afterwards: &mut Afterwards) {
        self.count_waits();
        let discarded = self.frames.ready_rows() == 0;
        self.frames.return_ready(ready);
        if discarded {
            self.frames.discard_ready(&mut afterwards.parts);
        }
        if self.status.discards() {
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
}
