//! Looking at the state: counts, and warnings of waits that may never end.

use crate::ring_store::builder::Merge;
use crate::ring_store::core::{Shared, State};
use crate::ring_store::error::LaneId;
use crate::ring_store::stats::{ComponentStats, Stats};

impl Shared {
    /// Logs why a producer may wait forever, if there is a reason.
    pub(crate) fn notice_waiting_producer(&self) {
        let state = self.lock();
        let asked = state.minibatches_served > 0 || state.waits.any_consumer();
        if state.consumers == 0 {
            drop(state);
            tracing::warn!(
                "a producer has waited 10 s for room: no consumer (minibatches()) has been made, or none is left"
            );
        } else if !asked {
            drop(state);
            tracing::warn!("a producer has waited 10 s for room: no consumer has ever asked for a minibatch");
        }
    }

    /// Logs why a consumer may wait forever, if there is a reason.
    pub(crate) fn notice_waiting_consumer(&self) {
        let state = self.lock();
        let (lanes, accepted, missing) =
            (state.books.open_lanes(), state.ledger.accepted(), state.missing_lane(self.config.merge));
        drop(state);
        if let Some(lane) = missing {
            tracing::warn!(
                "a consumer has waited 10 s for a minibatch: the resumed store waits for {lane}, which was open when it was saved. Open it with \
                 producer() or producer_named(), and send its rows or close it"
            );
        } else if lanes <= 1 && accepted == 0 {
            tracing::warn!("a consumer has waited 10 s for a minibatch: no producer has written a row");
        } else if lanes <= 1 {
            tracing::warn!(
                "a consumer has waited 10 s for a minibatch: no producer() is open, and the store is not closed. It ends with \
                 close(), or when every handle that can write is dropped; a monitor() does not keep it open"
            );
        }
    }

    /// The lane that a resumed store waits for, if no producer has opened it.
    pub(crate) fn missing_lane(&self) -> Option<LaneId> {
        self.lock().missing_lane(self.config.merge)
    }

    pub(crate) fn is_closed(&self) -> bool {
        !self.lock().status.is_open()
    }

    /// The number of rows in the ring with all their components.
    pub(crate) fn len(&self) -> usize {
        self.lock().whole_rows()
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut state = self.lock();
        state.count_waits();
        let whole = state.whole_rows() as u64;
        let (new, again) = state.books.queued();
        let components = self.config.layout.components().iter().zip(&state.ledger.components);
        let components = components.map(|(component, counts)| ComponentStats {
            name: component.name.clone(),
            accepted: counts.accepted,
            queued: new + again - counts.queued_aside,
            resident: counts.set_aside + whole,
            served: state.served_rows,
            resent: counts.resent,
            dropped: counts.dropped,
            overflowed: counts.values.overflowed,
            not_finite: counts.values.not_finite,
        });
        Stats {
            components: components.collect(),
            minibatches_served: state.minibatches_served,
            waited_for_consumers: state.waits.for_consumers,
            waited_for_producers: state.waits.for_producers,
            frames_open: if state.ended { 0 } else { self.config.open_frames },
            frames_ready: state.frames.ready(),
            frames_lent: state.frames.lent(),
        }
    }
}

impl State {
    /// A lane that is not open yet holds up the store while rows are dealt again, and whenever lanes take turns.
    fn missing_lane(&self, merge: Merge) -> Option<LaneId> {
        if !self.status.is_open() || self.ledger.to_replay.is_none() && merge != Merge::RoundRobin {
            return None;
        }
        self.books.missing_lanes().next()
    }
}
