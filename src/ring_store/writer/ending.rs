//! How the writer ends: with everything served, or with what is left discarded.

use std::sync::Arc;

use crate::ring_store::afterwards::Afterwards;
use crate::ring_store::core::{State, Warning};
use crate::ring_store::queue::{Answer, Message};
use crate::ring_store::snapshot::error::RowsMissing;
use crate::ring_store::stats::Stats;
use crate::ring_store::writer::{Phase, Writer};
use crate::rows::batch::Batch;
use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::waiting::panics::Panics;

impl Writer {
    /// Discards the rows dealt again so far, because the lane has ended without the row that must be dealt next.
    pub(super) fn give_up(&mut self, lane: u64, row: u64, state: &mut State, afterwards: &mut Afterwards) {
        let error = RowsMissing { lane: state.books.id_of(lane), row };
        state.warnings.push(Warning::GaveUp(error.clone()));
        state.lacks = Some(error.clone());
        drop(state.fail(Arc::new(error), afterwards));
        self.discard_lanes(state);
        state.books.clear();
        if let Phase::Dealing(dealing) = &mut self.phase {
            dealing.frames.clear(1);
        }
        if let Some(to_replay) = state.ledger.end_replay() {
            state.ledger.drop_open(to_replay, |dropped| &mut dropped.aborted);
        }
    }

    /// Discards everything that was handed over and is not dealt, and counts it. The books must be cleared, too.
    pub(super) fn discard_lanes(&mut self, state: &mut State) {
        for (component, batch) in state.books.take_waiting() {
            state.ledger.drop_aside(component, batch.rows() as u64, |dropped| &mut dropped.emptied);
            self.finished.batches.push(batch);
        }
        let Phase::Dealing(dealing) = &mut self.phase else { return };
        dealing.again = None;
        for queued in dealing.lanes.clear(self.config.merge) {
            state.ledger.discard_queued(queued.left() as u64, queued.joined_by);
            self.finished.pass(queued);
        }
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
        let phase = std::mem::replace(&mut self.phase, Phase::Discarded);
        self.saving.take().into_iter().for_each(|saving| saving.fail(error.clone()));
        self.spare = None;
        let waiting: Vec<Batch> = self.shared.lock().books.take_waiting().map(|(_, batch)| batch).collect();
        let mut answers: Vec<Answer> = Vec::new();
        let mut drop_all = |batches: Vec<Batch>| batches.into_iter().for_each(|batch| panics.catch(|| drop(batch)));
        drop_all(self.finished.batches.drain(..).collect());
        drop_all(waiting);
        if let Phase::Dealing(mut dealing) = phase {
            for queued in dealing.lanes.clear(self.config.merge) {
                drop_all(queued.pass.into_batches());
                answers.extend(queued.answer);
            }
        }
        while let Ok(message) = self.queue.try_recv() {
            let (batches, answer) = match message {
                Message::Pass(queued) => (queued.pass.into_batches(), queued.answer),
                Message::Drop(batches, answer) => (batches, answer),
                Message::OpenLane(_) | Message::EndLane(_) | Message::Look => continue,
            };
            drop_all(batches);
            answers.extend(answer);
        }
        answers.extend(self.finished.answers.drain(..));
        // All batches of a pass are dropped before its caller gets the answer.
        answers.into_iter().for_each(|answer| panics.catch(|| answer.reply.resolve(Err(error.clone()))));
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
