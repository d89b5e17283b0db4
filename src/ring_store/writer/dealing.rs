//! The writer's first phase: rows come, and are dealt to the open frames.

use std::time::{Duration, Instant};

use crate::dealing::frames::OpenFrames;
use crate::ring_store::lanes::{DealAgain, Finished, Lanes};
use crate::ring_store::queue::{Dealt, Report};
use crate::rows::values::ValueCounts;

/// The fewest and the most rows of a plan: the rows that the writer deals before it looks at the state again.
const PLAN_ROWS: std::ops::RangeInclusive<usize> = 4..=4096;

/// If a plan takes longer, the next plan is smaller. Most plans take longer while the ring's memory is new: the first write to each
/// page waits until the operating system provides the page.
const PLAN_TIME: Duration = Duration::from_millis(4);

/// Rows come, and are dealt.
pub(in crate::ring_store) struct Dealing {
    pub(in crate::ring_store) frames: OpenFrames,
    pub(in crate::ring_store) lanes: Lanes,
    /// What a resumed store deals before anything else.
    pub(in crate::ring_store) again: Option<DealAgain>,
    /// The rows of the next plan.
    pub(super) plan: usize,
    /// Whether the store is closed: no more rows come.
    pub(super) finishing: bool,
}

impl Dealing {
    pub(super) fn new(frames: OpenFrames, lanes: Lanes) -> Self {
        Dealing { frames, lanes, again: None, plan: *PLAN_ROWS.start(), finishing: false }
    }

    /// The lane to deal from, and the most rows to deal. `None` if no rows can be dealt.
    pub(super) fn next(&self) -> Option<(u64, usize)> {
        match &self.again {
            Some(again) => again.next(&self.lanes),
            None => self.lanes.next(),
        }
    }

    /// The lane and number of a row that must be dealt again next, if its lane has ended without it.
    pub(super) fn lacks(&self) -> Option<(u64, u64)> {
        self.again.as_ref()?.lacks(&self.lanes).map(|missing| (missing.lane, missing.first_row))
    }

    /// Deals a plan of rows.
    pub(super) fn deal_plan(&mut self, report: &mut Report, finished: &mut Finished) {
        let start = Instant::now();
        let mut left = self.plan;
        while left > 0 && !self.frames.is_full() {
            self.lanes.pass_turn();
            let Some((lane, rows)) = self.next() else { break };
            let Some(queued) = self.lanes.front(lane) else { break };
            let dealt = self.frames.deal(rows.min(left), |component| (queued.pass.batch(component), queued.taken));
            let again = self.again.is_some();
            report.deal(Dealt { lane, rows: dealt as u64, joined_by: queued.joined_by, again });
            for (component, counts) in report.values.iter_mut().zip(self.frames.take_counts()) {
                // The saved store has counted the rows that are dealt again.
                *component += if again { ValueCounts::default() } else { counts };
            }
            match &mut self.again {
                None => self.lanes.dealt(dealt, finished),
                Some(again) => {
                    if again.dealt(dealt, &mut self.lanes, finished) {
                        report.has_dealt_again = true;
                        self.again = None;
                        self.lanes.start_order();
                    }
                }
            }
            left -= dealt;
        }
        if start.elapsed() > PLAN_TIME {
            self.plan = (self.plan / 2).max(*PLAN_ROWS.start());
        } else if left == 0 {
            self.plan = (self.plan * 2).min(*PLAN_ROWS.end());
        }
    }
}
