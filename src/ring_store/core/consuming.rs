//! Minibatches, as consumers take them and give them back.

use std::mem;
use std::sync::Arc;
use std::task::Waker;

use crate::memory::frame::Frame;
use crate::memory::pool::FrameHome;
use crate::ring_store::core::{Shared, State, WaitsFor};
use crate::ring_store::error::ReadError;
use crate::ring_store::ready::Lent;
use crate::rows::closed::ClosedBy;

/// What a consumer finds.
pub(crate) enum Next {
    Minibatch(Lent),
    Error(ReadError),
    Nothing,
    End,
}

/// What the store knows about a consumer.
#[derive(Debug, Default)]
pub(crate) struct ConsumerState {
    id: u64,
    /// Whether the consumer counts as waiting: it found no minibatch when it last looked.
    pub(crate) waiting: bool,
    /// Whether the consumer has got the error that the store was closed with.
    told_failure: bool,
    /// Whether the consumer was made after the store was aborted.
    late: bool,
}

impl Shared {
    pub(crate) fn add_consumer(&self) -> ConsumerState {
        let mut state = self.lock();
        state.consumers += 1;
        state.next_consumer += 1;
        ConsumerState { id: state.next_consumer, late: state.status.is_aborted(), ..ConsumerState::default() }
    }

    /// Removes a consumer. Removing the last one closes the store, because no row could be served any more.
    pub(crate) fn remove_consumer(&self, consumer: &mut ConsumerState) {
        self.change(|state, afterwards| {
            afterwards.dropped.extend(state.stop_waiting(consumer));
            state.wake_consumers(afterwards);
            state.consumers -= 1;
            if state.consumers == 0 {
                self.end(state, ClosedBy::NoConsumers, afterwards);
            }
        });
    }

    /// Takes out the oldest minibatch. If there is none, keeps `waker`, if given, and wakes it when one may be ready.
    pub(crate) fn next(self: &Arc<Self>, consumer: &mut ConsumerState, waker: Option<Waker>) -> Next {
        // Wakers to be dropped without the mutex.
        let mut dropped = [None, None];
        let next = {
            let mut state = self.lock();
            state.count_waits();
            let next = state.next(consumer, self);
            match (&next, waker) {
                (Next::Nothing, Some(waker)) => dropped[0] = state.wait(consumer, waker),
                (Next::Nothing, None) => {}
                (_, unused) => dropped = [unused, state.stop_waiting(consumer)],
            }
            if matches!(next, Next::Minibatch(_)) {
                let _ = self.announce_to_waiting(&mut state, WaitsFor::Room)
                    || self.announce_to_waiting(&mut state, WaitsFor::Turn);
            }
            next
        };
        drop(dropped);
        next
    }

    /// Notes that the consumer waits no longer.
    pub(crate) fn stop_waiting(&self, consumer: &mut ConsumerState) {
        if consumer.waiting {
            // If the consumer had been woken, another one gets its minibatch.
            let dropped = self.change(|state, afterwards| {
                let dropped = state.stop_waiting(consumer);
                state.wake_consumers(afterwards);
                dropped
            });
            drop(dropped);
        }
    }
}

impl FrameHome for Shared {
    fn give_back(&self, frame: Frame) {
        let surplus = {
            let mut state = self.lock();
            let wanted = self.announce_to_waiting(&mut state, WaitsFor::Frame);
            state.frames.give_back(frame, wanted)
        };
        drop(surplus);
    }
}

impl State {
    fn next(&mut self, consumer: &mut ConsumerState, home: &Arc<Shared>) -> Next {
        if let Some(cause) = self.status.poison() {
            return Next::Error(ReadError::Poisoned { cause: cause.clone() });
        }
        if self.status.discards() {
            return if consumer.late { Next::Error(ReadError::Aborted) } else { Next::End };
        }
        if let Some(lent) = self.frames.lend(home) {
            self.minibatches_served += 1;
            self.served_rows += lent.part.len() as u64;
            return Next::Minibatch(lent);
        }
        match self.status.failure() {
            _ if !self.ended || self.frames.is_pinned() => Next::Nothing,
            Some(failure) if !consumer.told_failure => {
                consumer.told_failure = true;
                Next::Error(ReadError::Failed(failure.clone()))
            }
            _ => Next::End,
        }
    }

    /// Notes that the consumer waits. Returns its earlier waker, to be dropped without the mutex.
    fn wait(&mut self, consumer: &mut ConsumerState, waker: Waker) -> Option<Waker> {
        self.count_waits();
        if let Some((_, before)) = self.waiting.iter_mut().find(|(id, _)| *id == consumer.id) {
            return Some(mem::replace(before, waker));
        }
        self.came(consumer);
        self.waits.consumer_waits(&mut consumer.waiting, true);
        self.waiting.push_back((consumer.id, waker));
        None
    }

    /// Notes that the consumer waits no longer. Returns its waker, to be dropped without the mutex.
    fn stop_waiting(&mut self, consumer: &mut ConsumerState) -> Option<Waker> {
        self.count_waits();
        let place = self.waiting.iter().position(|(id, _)| *id == consumer.id);
        if place.is_none() {
            self.came(consumer);
        }
        self.waits.consumer_waits(&mut consumer.waiting, false);
        Some(self.waiting.remove(place?)?.1)
    }

    /// Notes that a consumer has come. If it waits and is not in line, it had been woken.
    fn came(&mut self, consumer: &ConsumerState) {
        if consumer.waiting {
            self.woken -= 1;
        }
    }
}
