//! How the writer ends: with everything served, or with what is left discarded.

use std::sync::Arc;

use crate::error::{ClosedBy, LaneId, RowsMissing, WriteError};
use crate::pipeline::afterwards::Afterwards;
use crate::pipeline::handle::WriteReply;
use crate::pipeline::queue::{HandedOver, Message};
use crate::pipeline::state::State;
use crate::pipeline::stats::Stats;
use crate::pipeline::worker::Panics;
use crate::pipeline::writer::{Phase, Writer};

impl Writer {
    /// Discards what has been dealt again so far: the lane has ended without the row that comes next.
    pub(super) fn give_up(&mut self, lane: u64, row: u64, state: &mut State, afterwards: &mut Afterwards) {
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

    /// Discards everything: the store was aborted, or has no consumer left. The state has counted it.
    pub(super) fn discard(&mut self) {
        let error = self.shared.lock().status.check().err();
        let error = error.unwrap_or(WriteError::Closed(ClosedBy::Abort));
        let mut panics = Panics::default();
        self.refuse_all(&error, &mut panics);
        let _ = self.end();
        if let Err(panic) = panics.first() {
            std::panic::resume_unwind(panic);
        }
    }

    /// Drops what has been handed over, each batch on its own, and tells the callers why.
    pub(super) fn refuse_all(&mut self, error: &WriteError, panics: &mut Panics) {
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
        // All batches of a pass are dropped before its caller is told.
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

    /// Nothing more becomes ready. `false` if there is something to do first.
    pub(super) fn end(&self) -> bool {
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
