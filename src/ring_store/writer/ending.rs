//! How the writer ends: with everything served, or with what is left discarded.

use std::sync::Arc;

use crate::ring_store::afterwards::Afterwards;
use crate::ring_store::core::State;
use crate::ring_store::error::LaneId;
use crate::ring_store::queue::{HandedOver, Message};
use crate::ring_store::snapshot::error::RowsMissing;
use crate::ring_store::stats::Stats;
use crate::ring_store::writer::{Phase, Writer};
use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::waiting::handle::WriteReply;
use crate::waiting::panics::Panics;

impl Writer {
    /// Discards the rows dealt again so far, because the lane has ended without the row that must be dealt next.
    pub(super) fn give_up(&mut self, lane: u64, row: u64, state: &mut State, afterwards: &mut Afterwards) {
        let name = state.journal.name(lane);
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

    /// Discards everything, because the store was aborted or has no consumer left. The state has already counted the rows.
    pub(super) fn discard(&mut self) {
        let error = self.shared.lock().status.check().err();
        let error = error.unwrap_or(ClosedBy::Abort.into());
        let mut panics = Panics::default();
        self.refuse_all(&error, &mut panics);
        let _ = self.end();
        if let Err(panic) = panics.first() {
            std::panic::resume_unwind(panic);
        }
    }

    /// Drops all batches that were handed over, one by one, and answers their callers with `error`.
    pub(super) fn refuse_all(&mut self, error: &WriteError, panics: &mut Panics) {
        self.ring = Phase::Discarded;
        self.saving.take().into_iter().for_each(|saving| saving.fail(error.clone()));
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
                HandedOver::Pass(pass, _) => {
                    pass.into_batches().into_iter().for_each(|batch| refuse(Some(batch), None));
                    refuse(None, reply.take());
                }
            }
        }
        finished.answers.drain(..).for_each(|(reply, _)| refuse(None, Some(reply)));
    }

    /// Notes that nothing more becomes ready. Returns `false` if a snapshot must be taken first.
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
