//! Full snapshots: the writer copies the frames, and fills the ring of a resumed store with them.

use crate::memory::frame::Frame;
use crate::ring_store::lanes::DealAgain;
use crate::ring_store::ready::ReadyFrame;
use crate::ring_store::snapshot::body::{Body, SavedFrame};
use crate::ring_store::snapshot::error::{ResumeError, SnapshotError};
use crate::ring_store::snapshot::files::RowsReader;
use crate::ring_store::snapshot::restart::{position, resumed_lanes, segments, turn};
use crate::ring_store::snapshot::saving::{Saving, SnapshotRequest};
use crate::ring_store::snapshot::snapshot::Form;
use crate::ring_store::writer::{Phase, Writer};
use crate::rows::values::ValueCounts;

impl Writer {
    /// Goes on where the saved store stood. Does not restore the rows of a full snapshot.
    pub(crate) fn resume(&mut self, body: &Body) {
        for (said, saved) in self.said.iter_mut().zip(&body.stats.components) {
            // The saved store has warned of these.
            let _ = said.note(ValueCounts { overflowed: saved.overflowed, not_finite: saved.not_finite });
        }
        let Phase::Dealing(dealing) = &mut self.phase else { return };
        resumed_lanes(body).for_each(|(lane, _)| dealing.lanes.open(lane.id));
        dealing.lanes.resume_turn(turn(body));
        dealing.again = DealAgain::new(segments(body));
        dealing.frames.go_to(position(body));
    }

    /// Fills the ring, and the ready frames, with the rows of a full snapshot.
    pub(crate) fn restore(&mut self, body: &Body, rows: &mut RowsReader<'_>) -> Result<(), ResumeError> {
        let Some(saved) = &body.saved else { return Ok(()) };
        let layout = self.config.layout.clone();
        let shared = self.shared.clone();
        let mut state = shared.lock();
        let mut buffer = Frame::allocate_one(&layout, "a snapshot's rows")?;
        let Phase::Dealing(dealing) = &mut self.phase else { return Ok(()) };
        let mut filled = dealing.frames.filled();
        for &frame in &saved.frames {
            match frame {
                SavedFrame::Ready { first_minibatch, rows: n } if first_minibatch == state.frames.next_ordinal() => {
                    let mut ready = match state.frames.take_empty() {
                        Some(empty) => empty,
                        None => Frame::allocate_one(&layout, "a minibatch")?,
                    };
                    rows.read(frame, &mut ready)?;
                    let rows = state.frames.push(ready, n);
                    state.ledger.make_ready(rows);
                }
                SavedFrame::Open { frame: open, rows: n }
                    if filled.get(open).is_some_and(|&filled| filled as usize == n) =>
                {
                    rows.read(frame, &mut buffer)?;
                    dealing.frames.restore(open, n, &buffer);
                    filled[open] = 0;
                }
                _ => return Err(rows.damaged("its list of frames", "it does not fit its position")),
            }
        }
        if filled.iter().any(|&rows| rows > 0) || state.frames.next_ordinal() != body.position.completing_minibatch {
            return Err(rows.damaged("its list of frames", "it lacks one"));
        }
        Ok(())
    }

    /// Starts to save everything that the store holds now.
    pub(crate) fn start_saving(&mut self, request: SnapshotRequest) {
        let shared = self.shared.clone();
        let (taken, ready) = {
            let mut state = shared.lock();
            (state.take(&self.config, Form::Full), state.borrow_ready())
        };
        let mut body = taken.into_body();
        // The snapshot saves leftover rows in their open frames. The resumed store serves them from there.
        let (left, full, first_leftover) = match &self.phase {
            Phase::Dealing(dealing) => (dealing.frames.filled(), dealing.frames.full(), u64::MAX),
            Phase::Serving(serving) => (serving.leftover.filled(), None, serving.first_minibatch),
            Phase::Discarded => (Vec::new(), None, u64::MAX),
        };
        body.position.completing_minibatch = body.position.completing_minibatch.min(first_leftover);
        let mut copied = None;
        if let (Phase::Dealing(dealing), Some(full)) = (&self.phase, full) {
            // The full frame counts as ready.
            match Frame::allocate_one(&self.config.layout, "the copies of a snapshot") {
                Ok(mut copy) => {
                    dealing.frames.save_full(full, &mut copy);
                    copied = Some(ReadyFrame::full(copy, body.position.completing_minibatch));
                    body.position.completing_minibatch += self.config.minibatches_per_frame();
                }
                Err(error) => {
                    request.refuse(SnapshotError::Memory(error));
                    shared.change(|state, afterwards| state.return_saved(ready, afterwards));
                    return;
                }
            }
        }
        let ready_before = ready.iter().filter(|frame| frame.ordinal() < first_leftover);
        let all: Vec<&ReadyFrame> = ready_before.chain(&copied).collect();
        self.saving = Saving::start_with(request, body, &self.config.layout, &all, left);
        shared.change(|state, afterwards| state.return_saved(ready, afterwards));
    }

    /// Saves the next open frame if a buffer is free. With `wait`, waits until one is free. Returns `false` if no frame is left to
    /// save.
    pub(crate) fn save_next(&mut self, wait: bool) -> bool {
        let Some(saving) = &self.saving else { return false };
        match saving.next() {
            Some(frame) => self.save(frame, wait),
            None => self.saving = None,
        }
        self.saving.is_some()
    }

    /// Saves an open frame, unless it is saved already. With `wait`, waits until a buffer is free.
    pub(crate) fn save(&mut self, frame: usize, wait: bool) {
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
        match &self.phase {
            Phase::Dealing(dealing) => dealing.frames.save(frame, rows, &mut buffer),
            Phase::Serving(serving) => serving.leftover.save(frame, rows, &mut buffer),
            Phase::Discarded => return,
        }
        saving.write(SavedFrame::Open { frame, rows }, buffer);
        saving.saved(frame);
    }
}
