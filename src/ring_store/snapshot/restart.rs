//! Finds where each part of a resumed store starts, from the snapshot.

use std::collections::VecDeque;

use crate::dealing::dealer::DealtTo;
use crate::ring_store::books::SavedLanes;
use crate::ring_store::builder::{Config, WhenFull};
use crate::ring_store::lane_book::ResumedLane;
use crate::ring_store::ledger::{ComponentLedger, Ledger};
use crate::ring_store::snapshot::body::{Body, LaneBody, SavedFrame};
use crate::ring_store::snapshot::ended_names::EndedNames;
use crate::ring_store::snapshot::error::SnapshotError;
use crate::ring_store::snapshot::journal::Segment;
use crate::ring_store::snapshot::passes::LaneLog;
use crate::ring_store::snapshot::snapshot::Form;
use crate::ring_store::stats::Dropped;
use crate::rows::values::ValueCounts;

/// The lanes that go on, in the order in which they were opened, with what the snapshot says about each.
pub(crate) fn resumed_lanes(body: &Body) -> impl Iterator<Item = (ResumedLane, &LaneLog)> {
    body.lanes_that_go_on().map(|LaneBody { lane, log }| {
        let needed = body.needed(log);
        let (from, end) = (log.place(needed).row, log.end);
        (ResumedLane { id: *lane, from, needed, end, ended: log.ended }, log)
    })
}

/// The lanes of the saved store that have ended, and how many lanes without a name it had opened.
pub(crate) fn saved_lanes(body: &Body) -> SavedLanes {
    let mut ended_names = body.ended_names.clone();
    let mut own_ended = false;
    for LaneBody { lane, log } in body.lanes.iter().filter(|lane| !body.goes_on(&lane.log)) {
        own_ended |= *lane == 0;
        log.name.iter().for_each(|name| ended_names.insert(name));
    }
    let unnamed = body.lanes_that_go_on().filter(|lane| lane.lane > 0 && lane.log.name.is_none());
    let open = unnamed.map(|LaneBody { lane, log }| (log.unnamed, *lane)).collect();
    SavedLanes { ended_names, own_ended, unnamed: 0..body.unnamed_lanes, open }
}

/// The lanes that ended in the saved store and stay ended. Stays the same while the resumed store opens lanes.
#[derive(Debug, Default)]
pub(crate) struct EndedLanes {
    names: EndedNames,
    own: bool,
    /// Whether the saved store had ended: then it takes no lane.
    all: bool,
}

impl EndedLanes {
    pub(crate) fn new(body: &Body) -> Self {
        let SavedLanes { ended_names: names, own_ended: own, .. } = saved_lanes(body);
        EndedLanes { names, own, all: body.position.ended }
    }

    /// Whether a lane has ended. `None` stands for the store's own lane.
    pub(crate) fn contains(&self, name: Option<&str>) -> bool {
        self.all || name.map_or(self.own, |name| self.names.contains(name))
    }
}

/// The segments that are dealt again.
pub(crate) fn segments(body: &Body) -> VecDeque<Segment> {
    if body.is_full() { VecDeque::new() } else { body.log.segments() }
}

/// The position where dealing starts.
pub(crate) fn position(body: &Body) -> DealtTo {
    let dealt = match body {
        // The ring is empty.
        _ if body.position.ended => 0,
        _ if body.is_full() => body.position.dealt,
        _ => body.log.from,
    };
    DealtTo { emptied: body.position.emptied, dealt }
}

/// The number of the first minibatch that becomes ready.
pub(crate) fn restarts_with(config: &Config, body: &Body) -> u64 {
    if let Some(saved) = &body.saved {
        let first = saved.frames.iter().find_map(|frame| match frame {
            SavedFrame::Ready { first_minibatch, .. } => Some(*first_minibatch),
            SavedFrame::Open { .. } => None,
        });
        return first.unwrap_or(body.position.completing_minibatch);
    }
    if body.position.ended {
        return body.position.completing_minibatch;
    }
    body.position.first_minibatch + config.runs().completed(body.log.from) * config.minibatches_per_frame()
}

/// The lane that has the next turn, and the rows left of its turn, if lanes take turns.
pub(crate) fn turn(body: &Body) -> Option<(u64, usize)> {
    body.turn.map(|turn| (turn.lane, turn.rows as usize))
}

/// The counts. Rows that are dealt again do not count as accepted yet.
pub(crate) fn ledger(body: &Body) -> Ledger {
    let mut ledger = Ledger::new(body.stats.components.len());
    for (counts, saved) in ledger.components.iter_mut().zip(&body.stats.components) {
        let dropped = Dropped {
            oldest: saved.dropped_oldest,
            emptied: saved.dropped_emptied,
            aborted: saved.dropped_aborted,
            last: saved.dropped_last,
            unmatched: saved.dropped_unmatched,
        };
        let accepted = body.stats.served_rows + dropped.total();
        let values = ValueCounts { overflowed: saved.overflowed, not_finite: saved.not_finite };
        *counts = ComponentLedger { accepted, dropped, resent: saved.resent, values, ..ComponentLedger::default() };
    }
    ledger.to_replay = Some(body.stats.whole_rows as usize);
    if segments(body).is_empty() {
        let _ = ledger.end_replay();
    }
    ledger
}

/// Checks that a store with this policy can be resumed from a snapshot of this form.
pub(crate) fn check_policy(config: &Config, form: Form) -> Result<(), SnapshotError> {
    match (config.when_full, form) {
        (WhenFull::DropOldest, _) => Err(SnapshotError::Policy {
            policy: "a store that drops the oldest minibatch cannot be resumed, since what it serves depends on the consumers' pace",
            advice: "use WhenFull::Wait",
        }),
        (WhenFull::Reject, Form::Light) => Err(SnapshotError::Policy {
            policy: "a store that rejects rows cannot be resumed from a light snapshot, since other rows may be rejected when they come again",
            advice: "take a full snapshot, or use WhenFull::Wait",
        }),
        _ => Ok(()),
    }
}
