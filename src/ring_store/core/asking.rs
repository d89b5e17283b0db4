//! What a handle asks of the writer: to settle everything, to discard everything, or to read rows.

use crossbeam_channel::bounded;
use ndarray::ArrayD;

use crate::ring_store::afterwards::FlushReply;
use crate::ring_store::core::{Shared, State};
use crate::rows::error::WriteError;
use crate::rows::index::Index;
use crate::rows::index::IndexError;

impl Shared {
    /// Resolves `reply` when all rows handed over before are settled: dealt, set aside or discarded.
    pub(crate) fn flush(&self, reply: FlushReply) {
        self.change(|state, afterwards| {
            let unsettled = state.books.unsettled(!state.status.is_open());
            if state.status.discards() || state.ended || unsettled.is_empty() {
                afterwards.flushes.push((reply, state.flushed()));
            } else {
                state.flushes.push((unsettled, reply));
            }
        });
    }

    /// Discards everything that was handed over before. Blocks until the writer has done this.
    pub(crate) fn empty(&self) {
        let (reply, emptied) = bounded(1);
        self.change(|state, afterwards| {
            if state.ended || state.status.discards() {
                // Only ready minibatches are left.
                let rows = state.discard_ready(afterwards);
                state.ledger.drop_rows(rows, |dropped| &mut dropped.emptied);
                afterwards.empties.push(reply);
            } else {
                state.requests.empties.push(reply);
                self.announce(state);
            }
        });
        // An error means that the writer has ended without an answer.
        let _ = emptied.recv();
    }

    /// Reads rows. Blocks until the writer answers.
    pub(crate) fn get(&self, index: Index) -> Result<ArrayD<f32>, IndexError> {
        let (reply, answer) = bounded(1);
        self.change(|state, afterwards| {
            if state.ended || state.status.discards() {
                afterwards.gets.push((reply, state.why_no_get()));
            } else {
                state.requests.gets.push((index, reply));
                self.announce(state);
            }
        });
        answer.recv().unwrap_or(Err(IndexError::Ended))
    }
}

impl State {
    /// The outcome of a flush that need not wait.
    pub(super) fn flushed(&self) -> Result<(), WriteError> {
        if self.status.discards() { self.status.check() } else { Ok(()) }
    }

    pub(super) fn why_no_get(&self) -> IndexError {
        self.status.poison().map_or(IndexError::Ended, |cause| IndexError::Poisoned { cause: cause.clone() })
    }
}
