//! Minibatches, as consumers take them and give them back.

use std::mem;
use std::sync::Arc;
use std::task::Waker;

use crate::memory::frame::Frame;
use crate::memory::pool::FrameHome;
use crate::ring_store::afterwards::Afterwards;
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
        self.claim(consumer);
        self.waits.consumer_waits(&mut consumer.waiting, true);
        self.waiting.push_back((consumer.id, waker));
        None
    }

    /// Notes that the consumer waits no longer. Returns its waker, to be dropped without the mutex.
    fn stop_waiting(&mut self, consumer: &mut ConsumerState) -> Option<Waker> {
        self.count_waits();
        let place = self.waiting.iter().position(|(id, _)| *id == consumer.id);
        if place.is_none() {
            self.claim(consumer);
        }
        self.waits.consumer_waits(&mut consumer.waiting, false);
        Some(self.waiting.remove(place?)?.1)
    }

    /// Wakes one consumer for each minibatch that is ready, unless a consumer has been woken for it. Wakes all if none will come.
    pub(super) fn wake_consumers(&mut self, afterwards: &mut Afterwards) {
        if self.ended || self.status.discards() {
            self.wake_all_consumers(afterwards);
            return;
        }
        let unclaimed = self.frames.ready_minibatches().saturating_sub(self.woken);
        let woken = self.waiting.drain(..unclaimed.min(self.waiting.len()));
        self.woken += woken.len();
        afterwards.wakers.extend(woken.map(|(_, waker)| waker));
    }

    /// Wakes all consumers that wait. One may have stopped polling, without a word, after it was woken.
    pub(crate) fn wake_all_consumers(&mut self, afterwards: &mut Afterwards) {
        self.woken += self.waiting.len();
        afterwards.wakers.extend(self.waiting.drain(..).map(|(_, waker)| waker));
    }

    /// Whether a minibatch waits for a consumer that was woken, while other consumers sleep.
    pub(crate) fn has_unclaimed(&self) -> bool {
        self.woken > 0 && !self.waiting.is_empty() && self.frames.ready() > 0
    }

    /// Notes that a consumer looks for its minibatch. If it waits and is not in line, it had been woken.
    fn claim(&mut self, consumer: &ConsumerState) {
        if consumer.waiting {
            self.woken -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::ring_store::builder::RingStoreBuilder;

    #[derive(Default)]
    struct Counts(AtomicUsize);

    impl Wake for Counts {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A store without a writer, and three consumers that wait, each with the number of its wakes.
    fn waiting() -> (Arc<Shared>, Vec<(ConsumerState, Arc<Counts>)>) {
        let config = Arc::new(RingStoreBuilder::default().component("a", 1).batch_size(4).window(8).check().unwrap());
        let shared = Arc::new(Shared::new(config, unbounded_channel().0, Vec::new(), None));
        let consumers = (0..3).map(|_| {
            let (mut consumer, wakes) = (shared.add_consumer(), Arc::new(Counts::default()));
            let next = shared.next(&mut consumer, Some(Waker::from(wakes.clone())));
            assert!(matches!(next, Next::Nothing));
            (consumer, wakes)
        });
        let consumers = consumers.collect();
        (shared, consumers)
    }

    /// Makes a frame of one minibatch ready.
    fn make_ready(shared: &Arc<Shared>) {
        let frame = Frame::allocate_one(&shared.config.layout, "a test").unwrap();
        shared.change(|state, afterwards| {
            state.ledger.open_rows += 4;
            state.push_ready(frame, 4, afterwards);
        });
    }

    fn wakes(consumers: &[(ConsumerState, Arc<Counts>)]) -> Vec<usize> {
        consumers.iter().map(|(_, wakes)| wakes.0.load(Ordering::SeqCst)).collect()
    }

    #[test]
    fn a_ready_minibatch_wakes_the_consumer_that_has_waited_longest() {
        let (shared, mut consumers) = waiting();
        make_ready(&shared);
        assert_eq!(wakes(&consumers), [1, 0, 0]);
        make_ready(&shared);
        assert_eq!(wakes(&consumers), [1, 1, 0]);
        // The first one takes its minibatch, and waits again, behind the third.
        assert!(matches!(shared.next(&mut consumers[0].0, None), Next::Minibatch(_)));
        assert!(matches!(shared.next(&mut consumers[1].0, None), Next::Minibatch(_)));
        let waker = Waker::from(consumers[0].1.clone());
        assert!(matches!(shared.next(&mut consumers[0].0, Some(waker)), Next::Nothing));
        make_ready(&shared);
        assert_eq!(wakes(&consumers), [1, 1, 1]);
    }

    #[test]
    fn a_consumer_that_is_dropped_passes_its_wake_on() {
        let (shared, mut consumers) = waiting();
        make_ready(&shared);
        shared.stop_waiting(&mut consumers[0].0);
        assert_eq!(wakes(&consumers), [1, 1, 0]);
        shared.remove_consumer(&mut consumers[1].0);
        assert_eq!(wakes(&consumers), [1, 1, 1]);
        assert!(matches!(shared.next(&mut consumers[2].0, None), Next::Minibatch(_)));
        // None is woken for the minibatch that is gone.
        shared.stop_waiting(&mut consumers[0].0);
        assert_eq!(shared.lock().woken, 0);
    }

    #[test]
    fn all_are_woken_if_the_one_that_was_woken_does_not_come() {
        let (shared, consumers) = waiting();
        assert!(!shared.lock().has_unclaimed());
        make_ready(&shared);
        assert!(shared.lock().has_unclaimed());
        shared.change(State::wake_all_consumers);
        assert_eq!(wakes(&consumers), [1, 1, 1]);
        assert!(!shared.lock().has_unclaimed());
    }

    /// A snapshot that was asked for has not been taken yet, while the writer reads rows for `get`.
    #[test]
    fn what_a_snapshot_waits_for_is_not_lent_meanwhile() {
        let (shared, mut consumers) = waiting();
        make_ready(&shared);
        shared.lock().frames.pin();
        let ready = shared.lock().borrow_ready();
        shared.change(|state, afterwards| state.return_ready(ready, afterwards));
        assert!(matches!(shared.next(&mut consumers[0].0, None), Next::Nothing));
        let ready = shared.lock().borrow_ready();
        shared.change(|state, afterwards| state.return_saved(ready, afterwards));
        assert!(matches!(shared.next(&mut consumers[0].0, None), Next::Minibatch(_)));
    }
}
