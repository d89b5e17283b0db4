//! What a store has dealt, as far back as a light snapshot needs it. Plain data.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::snapshot::hex;

/// Rows of a lane that were dealt in sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) lane: u64,
    pub(crate) first_row: u64,
    pub(crate) rows: u64,
}

impl Segment {
    /// Appends it to `segments`, in one piece with the last where it continues it.
    pub(crate) fn append_to(self, segments: &mut VecDeque<Segment>) {
        match segments.back_mut() {
            Some(last) if last.lane == self.lane && last.first_row + last.rows == self.first_row => {
                last.rows += self.rows;
            }
            _ => segments.push_back(self),
        }
    }
}

/// The rows that were dealt since the ring was last emptied, oldest first, and the passes they came in. The oldest are forgotten
/// once no minibatch needs them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    /// How often the ring was emptied.
    pub(crate) emptied: u64,
    /// Rows dealt before the first segment, since the ring was last emptied.
    pub(crate) from: u64,
    /// Rows dealt since the ring was last emptied.
    pub(crate) dealt: u64,
    pub(crate) segments: VecDeque<Segment>,
    /// The lanes that are open or have rows in the segments, by number.
    pub(crate) lanes: BTreeMap<u64, LaneJournal>,
    /// The names of the lanes that have ended since the store was built.
    pub(crate) ended: BTreeMap<u64, Arc<str>>,
}

/// What is known of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LaneJournal {
    pub(crate) name: Option<Arc<str>>,
    /// The row that comes first in the segments, or would.
    pub(crate) start: u64,
    /// The row behind the last that was dealt or discarded.
    pub(crate) end: u64,
    /// No more rows come.
    pub(crate) ended: bool,
    /// How many passes came before the first in `passes`.
    pub(crate) passes_before: u64,
    /// Those with rows in the segments or behind them, and one more.
    pub(crate) passes: VecDeque<PassEntry>,
}

/// A pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassEntry {
    pub(crate) first_row: u64,
    pub(crate) rows: u64,
    /// What the user attached to it.
    #[serde(with = "hex", default, skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<Box<[u8]>>,
}

impl PassEntry {
    pub(crate) fn end(&self) -> u64 {
        self.first_row + self.rows
    }
}

/// Where a lane goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Complete passes before.
    pub(crate) passes: u64,
    /// The first row to send.
    pub(crate) row: u64,
    /// The value of the last pass before.
    pub(crate) value: Option<Box<[u8]>>,
}

impl LaneJournal {
    /// Where to go on if all rows before `row` are safe: a pass that this cuts is sent again as a whole.
    pub(crate) fn place(&self, row: u64) -> Place {
        let complete = self.passes.partition_point(|pass| pass.end() <= row);
        let cut = self.passes.get(complete).filter(|pass| pass.first_row < row);
        Place {
            passes: self.passes_before + complete as u64,
            row: cut.map_or(row, |pass| pass.first_row),
            value: complete.checked_sub(1).and_then(|last| self.passes[last].value.clone()),
        }
    }

    /// Forgets the passes before `start`, except the last one: a snapshot returns its value.
    fn forget_passes(&mut self) {
        while self.passes.get(1).is_some_and(|second| second.end() <= self.start) {
            self.passes.pop_front();
            self.passes_before += 1;
        }
    }
}

impl Journal {
    /// Notes that a lane was opened, whose first row is number 0.
    pub(crate) fn open(&mut self, lane: u64, name: Option<Arc<str>>) {
        self.lanes.insert(lane, LaneJournal { name, ..LaneJournal::default() });
    }

    /// Notes that a lane has ended, and all its rows are dealt.
    pub(crate) fn end(&mut self, lane: u64) {
        let Some(ended) = self.lanes.get_mut(&lane) else { return };
        ended.ended = true;
        if let Some(name) = &ended.name {
            self.ended.insert(lane, name.clone());
        }
        self.forget_ended();
    }

    /// Notes rows that were handed over. The store's own lane, number 0, opens with the first.
    pub(crate) fn handed_over(&mut self, lane: u64) {
        if lane == 0 && !self.lanes.contains_key(&0) {
            self.open(0, None);
        }
    }

    /// Notes a pass that was handed over. Passes that are sent again are known.
    pub(crate) fn pass(&mut self, lane: u64, pass: PassEntry) {
        let Some(lane) = self.lanes.get_mut(&lane) else { return };
        if lane.passes.back().is_none_or(|last| last.end() <= pass.first_row) && lane.end <= pass.first_row {
            lane.passes.push_back(pass);
        }
    }

    /// Notes rows that were dealt.
    pub(crate) fn dealt(&mut self, segments: impl IntoIterator<Item = Segment>) {
        for segment in segments {
            self.dealt += segment.rows;
            if let Some(lane) = self.lanes.get_mut(&segment.lane) {
                lane.end = segment.first_row + segment.rows;
            }
            segment.append_to(&mut self.segments);
        }
    }

    /// Notes that everything was discarded, `times` times, up to a row of each lane.
    pub(crate) fn emptied(&mut self, times: u64, lanes: impl Iterator<Item = (u64, u64)>) {
        (self.emptied, self.from, self.dealt) = (self.emptied + times, 0, 0);
        self.segments.clear();
        for (lane, row) in lanes {
            if let Some(lane) = self.lanes.get_mut(&lane) {
                (lane.start, lane.end) = (row, row);
                lane.forget_passes();
            }
        }
        self.forget_ended();
    }

    /// Forgets what was dealt before the `dealt`-th row since the ring was last emptied.
    pub(crate) fn forget_before(&mut self, dealt: u64) {
        while self.from < dealt {
            let Some(first) = self.segments.front_mut() else { break };
            let rows = first.rows.min(dealt - self.from);
            first.first_row += rows;
            first.rows -= rows;
            self.from += rows;
            if let Some(lane) = self.lanes.get_mut(&first.lane) {
                lane.start = first.first_row;
                lane.forget_passes();
            }
            if first.rows == 0 {
                self.segments.pop_front();
            }
        }
        self.forget_ended();
    }

    fn forget_ended(&mut self) {
        // Other lanes are known to have ended when they are missing; the store's own may be one that has not begun.
        self.lanes.retain(|&id, lane| id == 0 || !lane.ended || lane.start < lane.end);
    }

    /// What there is to deal again from the `dealt`-th row on.
    pub(crate) fn since(&self, dealt: u64) -> Journal {
        let mut since = self.clone();
        since.forget_before(dealt);
        for lane in since.lanes.values_mut() {
            // Passes of which no row is dealt are sent again anyway.
            lane.passes.retain(|pass| pass.first_row < lane.end);
        }
        since
    }
}

#[cfg(test)]
mod tests;
