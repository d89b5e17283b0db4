//! Deals the rows of a resumed store again, in the order in which the saved store dealt them.

use std::collections::VecDeque;

use crate::ring_store::lanes::{Finished, Lanes};
use crate::ring_store::snapshot::journal::Segment;

/// What is to be dealt again, oldest first. Has at least one segment.
pub(crate) struct DealAgain(VecDeque<Segment>);

impl DealAgain {
    /// `None` if nothing is to be dealt again.
    pub(crate) fn new(segments: VecDeque<Segment>) -> Option<Self> {
        (!segments.is_empty()).then_some(DealAgain(segments))
    }

    /// The lane to deal from, and the most rows to deal. `None` if these rows have not come yet.
    pub(crate) fn next(&self, lanes: &Lanes) -> Option<(u64, usize)> {
        let Segment { lane, rows, .. } = self.0.front()?;
        lanes.limit(*lane, *rows as usize)
    }

    /// Counts rows of the next lane as dealt. Returns whether nothing more is to be dealt again.
    pub(crate) fn dealt(&mut self, dealt: usize, lanes: &mut Lanes, finished: &mut Finished) -> bool {
        let Some(next) = self.0.front_mut() else { return true };
        lanes.dealt_of(next.lane, dealt, finished);
        next.first_row += dealt as u64;
        next.rows -= dealt as u64;
        if next.rows == 0 {
            self.0.pop_front();
        }
        self.0.is_empty()
    }

    /// The rows that must be dealt next, if their lane has ended without these rows.
    pub(crate) fn lacks(&self, lanes: &Lanes) -> Option<Segment> {
        self.0.front().filter(|next| lanes.is_spent(next.lane)).copied()
    }
}
