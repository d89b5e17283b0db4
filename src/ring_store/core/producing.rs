//! Lanes and rows, as producers hand them over.

use std::sync::{Arc, MutexGuard};

use crate::ring_store::afterwards::Afterwards;
use crate::ring_store::books::{Books, Opened};
use crate::ring_store::core::{Shared, State};
use crate::ring_store::lane_book::{Arrived, TakenPass};
use crate::ring_store::queue::{Answer, Message, Queued};
use crate::rows::batch::{Batch, Refused};
use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::rows::pass::WholePass;
use crate::waiting::handle::{WriteHandle, Written};

impl Shared {
    /// Opens a lane, and returns its number.
    pub(crate) fn open_lane(&self, name: Option<Arc<str>>) -> Result<u64, WriteError> {
        let mut state = self.lock();
        state.status.check()?;
        let Opened { id, resumed } = state.books.open_lane(name)?;
        if !resumed {
            self.tell(Message::OpenLane(id));
        }
        Ok(id)
    }

    /// Notes that a lane of a resumed store is sent again from its first row on.
    pub(crate) fn send_again(&self, lane: u64) -> Result<(), WriteError> {
        let mut state = self.lock();
        state.status.check()?;
        state.books.send_again(lane)
    }

    /// Ends a lane: the lane takes no more rows. Its rows that wait for other components are dropped and counted.
    pub(crate) fn close_lane(&self, lane: u64) {
        self.change(|state, afterwards| {
            if state.books.close_lane(lane, &mut afterwards.wakers) {
                self.tell(Message::Drop(state.lose_unmatched(lane), None));
                self.tell(Message::EndLane(lane));
            }
        });
    }

    /// Takes a pass in, and sends it to the writer. `admit` checks it. Returns a refused pass with the error.
    pub(crate) fn hand_over(
        &self,
        lane: u64,
        pass: WholePass,
        value: &Option<Arc<[u8]>>,
        admit: impl FnOnce(&mut Books, usize) -> Result<(), WriteError>,
    ) -> Result<WriteHandle, (WriteError, WholePass)> {
        let rows = pass.rows();
        let mut state = self.lock();
        let admitted = state.status.check().and_then(|()| admit(&mut state.books, rows));
        if let Err(error) = admitted {
            drop(state);
            return Err((error, pass));
        }
        Ok(self.send_whole(state, lane, pass, Some(value.clone())))
    }

    /// Sends a pass that was checked to the writer. Notes it with its value if `noted`. Releases the mutex.
    fn send_whole(
        &self,
        mut state: MutexGuard<'_, State>,
        lane: u64,
        pass: WholePass,
        noted: Option<Option<Arc<[u8]>>>,
    ) -> WriteHandle {
        let rows = pass.rows();
        let Some(taken) = state.books.take_pass(lane, rows as u64, noted) else {
            drop(state);
            return WriteHandle::ready(Err(ClosedBy::Lane.into()));
        };
        let TakenPass { first_row, resent, discarded, opens, completes } = taken;
        if rows == 0 {
            drop(state);
            return WriteHandle::ready(Ok(Written { rows, first_row }));
        }
        self.open_own(lane, opens);
        if resent + discarded > 0 {
            state.count_skipped(0..pass.n_components(), resent, discarded);
        }
        let (reply, handle) = WriteHandle::pending();
        let (taken, written) = ((resent + discarded) as usize, Written { rows, first_row });
        // The writer receives messages as long as the status is open.
        self.tell(Message::Pass(Queued {
            lane,
            pass,
            taken,
            joined_by: None,
            answer: Some(Answer { reply, written }),
        }));
        self.finish_taking(state, lane, completes, Afterwards::default());
        handle
    }

    /// Takes in rows of one component. Sends the passes that are whole now to the writer. The others wait in the lane's entrance, and count
    /// as set aside. `admit` checks the rows. Returns a refused batch with the error.
    pub(crate) fn hand_over_component(
        &self,
        lane: u64,
        component: usize,
        batch: Batch,
        admit: impl FnOnce(&mut Books, usize) -> Result<(), WriteError>,
    ) -> Result<WriteHandle, Refused> {
        let rows = batch.rows();
        let mut state = self.lock();
        let admitted = state.status.check().and_then(|()| admit(&mut state.books, rows));
        if let Err(error) = admitted {
            drop(state);
            return Err(Refused { error, batch });
        }
        if rows == 0 {
            let first_row = state.books.get(lane).map_or(0, |book| book.end_of(component));
            // Dropping the batch runs code of its owner.
            drop(state);
            return Ok(WriteHandle::ready(Ok(Written { rows, first_row })));
        }
        if self.config.layout.n_components() == 1 {
            return Ok(self.send_whole(state, lane, WholePass::joined(std::iter::once(batch)), None));
        }
        let Some(arrived) = state.books.take_component(lane, component, batch) else {
            return Ok(WriteHandle::ready(Err(ClosedBy::Lane.into())));
        };
        let Arrived { first_row, resent, discarded, queued, aside, passes, skipped, opens, completes } = arrived;
        self.open_own(lane, opens);
        state.count_skipped(component..component + 1, resent, discarded);
        state.count_aside(component, aside, queued);
        let written = Written { rows, first_row };
        let (mut answer, handle) = if passes.is_empty() && skipped.is_none() {
            (None, WriteHandle::ready(Ok(written)))
        } else {
            let (reply, handle) = WriteHandle::pending();
            (Some(Answer { reply, written }), handle)
        };
        let last = passes.len();
        if let Some(skipped) = skipped {
            self.tell(Message::Drop(vec![skipped], answer.take_if(|_| last == 0)));
        }
        for (number, pass) in passes.into_iter().enumerate() {
            let answer = answer.take_if(|_| number + 1 == last);
            self.tell(Message::Pass(Queued { lane, pass, taken: 0, joined_by: Some(component), answer }));
        }
        let mut afterwards = Afterwards::default();
        state.books.wake_counterparts(lane, &mut afterwards.wakers);
        self.finish_taking(state, lane, completes, afterwards);
        Ok(handle)
    }

    /// Tells the writer of the store's own lane, which opens with its first rows.
    fn open_own(&self, lane: u64, opens: bool) {
        if opens && lane == 0 {
            self.tell(Message::OpenLane(0));
        }
    }

    /// Ends a resumed lane that had ended, if all its rows have come now. Wakes the callers that may go on. Releases the mutex.
    fn finish_taking(&self, mut state: MutexGuard<'_, State>, lane: u64, completes: bool, mut afterwards: Afterwards) {
        if completes {
            // Callers in line get the end, because the lane takes no more rows.
            state.books.wake_line_of(lane, &mut afterwards.wakers);
            self.tell(Message::EndLane(lane));
        }
        // The rows may take less room than was reserved for them.
        state.books.wake_next_of(lane, &mut afterwards.wakers);
        drop(state);
        self.run(&mut afterwards);
    }

    /// Closes the store, because no handle is left that can write or make a consumer.
    pub(crate) fn remove_producers(&self) {
        self.change(|state, afterwards| {
            let by = if state.consumers > 0 { ClosedBy::Close } else { ClosedBy::NoConsumers };
            self.end(state, by, afterwards);
        });
    }
}

impl State {
    /// Counts rows that came and are not dealt: those that come again, and those whose counterparts were discarded.
    fn count_skipped(&mut self, components: std::ops::Range<usize>, resent: u64, discarded: u64) {
        for component in &mut self.ledger.components[components] {
            component.resent += resent;
            component.accepted += discarded;
            component.dropped.emptied += discarded;
        }
    }

    /// Counts rows of a component that wait for others now, and rows of the others that it has made whole.
    fn count_aside(&mut self, component: usize, aside: u64, queued: u64) {
        let counts = &mut self.ledger.components[component];
        counts.accepted += aside;
        counts.set_aside += aside;
        if queued > 0 {
            self.ledger.components.iter_mut().for_each(|counts| counts.queued_aside += queued);
            self.ledger.components[component].queued_aside -= queued;
        }
    }

    /// Drops and counts the rows of a lane that wait for other components, because they do not come. Returns the batches, to be dropped
    /// without the mutex.
    pub(crate) fn lose_unmatched(&mut self, lane: u64) -> Vec<Batch> {
        let layout = self.books.config.layout.clone();
        let Some(book) = self.books.get_mut(lane) else { return Vec::new() };
        let mut rows = vec![0; layout.n_components()];
        let waiting: Vec<Batch> = book
            .take_waiting()
            .map(|(component, batch)| {
                rows[component] += batch.rows() as u64;
                batch
            })
            .collect();
        // After an abort, all rows are counted.
        if waiting.is_empty() || self.status.discards() {
            return waiting;
        }
        for (component, &rows) in rows.iter().enumerate() {
            self.ledger.drop_aside(component, rows, |dropped| &mut dropped.unmatched);
        }
        let most = (0..rows.len()).max_by_key(|&component| rows[component]).unwrap_or(0);
        let fewest = (0..rows.len()).min_by_key(|&component| rows[component]).unwrap_or(0);
        let (present, missing) = (layout.name(most), layout.name(fewest));
        self.note_unmatched(WriteError::Unmatched { present, missing, rows: rows[most] });
        waiting
    }
}
