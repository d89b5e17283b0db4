//! What the writer is asked to do between two plans: to discard everything, to read rows, to start a snapshot.

use ndarray::ArrayD;

use crate::memory::convert::widen;
use crate::ring_store::afterwards::GetReply;
use crate::ring_store::ready::ReadyFrame;
use crate::ring_store::writer::{Phase, Writer};
use crate::rows::index::Index;
use crate::rows::index::IndexError;
use crate::rows::layout::Layout;

impl Writer {
    /// Fulfils the requests. All rows that were handed over before a request are in the queue by now.
    pub(super) fn fulfil(&mut self) {
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
        let rows = match &mut self.phase {
            Phase::Dealing(dealing) => dealing.frames.clear(times),
            Phase::Serving(serving) => serving.leftover.clear(),
            Phase::Discarded => 0,
        };
        let shared = self.shared.clone();
        let reported = shared.change(|state, afterwards| {
            // If the store was aborted meanwhile, the abort has counted everything, and these writes fail.
            if state.status.discards() {
                return false;
            }
            // What is handed over up to now is in the queue, because the mutex is held.
            self.receive();
            self.discard_lanes(state);
            // While rows are dealt again, the ring does not hold the rows that the counts say.
            let rows = state.ledger.end_replay().unwrap_or(rows);
            state.ledger.drop_open(rows, |dropped| &mut dropped.emptied);
            let ready = state.discard_ready(afterwards);
            state.ledger.drop_rows(ready, |dropped| &mut dropped.emptied);
            let turn = if let Phase::Dealing(dealing) = &self.phase { dealing.lanes.turn() } else { None };
            state.note_emptied(times, turn);
            state.wake_producers(afterwards);
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
        match &self.phase {
            Phase::Dealing(dealing) => {
                let rows = dealing.frames.rows();
                // Rows that are dealt again do not count before all of them are dealt.
                let whole = if dealing.again.is_some() { 0 } else { rows.len() };
                self.get_from(ready, index, whole, |n, component| rows.row(n, component))
            }
            Phase::Serving(serving) => {
                let leftover = &serving.leftover;
                self.get_from(ready, index, leftover.len(), |n, component| leftover.row(n, component))
            }
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
}
