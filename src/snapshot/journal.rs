//! A journal of the rows that a store has dealt, as far back as a light snapshot needs it. Plain data.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::snapshot::hex;

/// Rows of one lane that were dealt one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) lane: u64,
    pub(crate) first_row: u64,
    pub(crate) rows: u64,
}

impl Segment {
    /// Appends the segment to `segments`. If it continues the last segment, the two become one.
    pub(crate) fn append_to(self, segments: &mut VecDeque<Segment>) {
        match segments.back_mut() {
            Some(last) if last.lane == self.lane && last.first_row + last.rows == self.first_row => {
                last.rows += self.rows;
            }
            _ => segments.push_back(self),
        }
    }
}

/// The rows that were dealt since the ring was last emptied, oldest first, and the passes of these rows. The journal forgets the
/// oldest rows once no minibatch needs them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    /// How often the ring was emptied.
    pub(crate) emptied: u64,
    /// The rows dealt between the last emptying of the ring and the first segment.
    pub(crate) from: u64,
    /// The rows dealt since the ring was last emptied.
    pub(crate) dealt: u64,
    pub(crate) segments: VecDeque<Segment>,
    /// The lanes that are open, or have rows in the segments, by number.
    pub(crate) lanes: BTreeMap<u64, LaneJournal>,
    /// The names of the lanes that have ended, here or in the saved store, by number.
    pub(crate) ended: BTreeMap<u64, Arc<str>>,
}

/// What the journal knows about a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LaneJournal {
    pub(crate) name: Option<Arc<str>>,
    /// The lane's first row in the segments. If it has none there, the row that would be its first.
    pub(crate) start: u64,
    /// The row after the last one that was dealt or discarded.
    pub(crate) end: u64,
    /// Whether the lane has ended: no more rows come.
    pub(crate) ended: bool,
    /// The number of passes before the first one in `passes`.
    pub(crate) passes_before: u64,
    /// The passes with rows in the segments or after them, and the last pass before these.
    pub(crate) passes: VecDeque<PassEntry>,
}

/// A pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassEntry {
    pub(crate) first_row: u64,
    pub(crate) rows: u64,
    /// The value that the user attached to the pass.
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
    /// The number of complete passes before this place.
    pub(crate) passes: u64,
    /// The first row to send.
    pub(crate) row: u64,
    /// The value of the last pass before this place.
    pub(crate) value: Option<Box<[u8]>>,
}

impl LaneJournal {
    /// Where the lane goes on if the store has all rows before `row`. If `row` is inside a pass, the whole pass is sent again.
    pub(crate) fn place(&self, row: u64) -> Place {
        let complete = self.passes.partition_point(|pass| pass.end() <= row);
        let cut = self.passes.get(complete).filter(|pass| pass.first_row < row);
        Place {
            passes: self.passes_before + complete as u64,
            row: cut.map_or(row, |pass| pass.first_row),
            value: complete.checked_sub(1).and_then(|last| self.passes[last].value.clone()),
        }
    }

    /// Forgets the passes before `start`, except the last one, because a snapshot returns the value of that pass.
    fn forget_passes(&mut self) {
        while self.passes.get(1).is_some_and(|second| second.end() <= self.start) {
            self.passes.pop_front();
            self.passes_before += 1;
        }
    }
}

impl Journal {
    /// Notes that a lane was opened. Its first row has the number 0.
    pub(crate) fn open(&mut self, lane: u64, name: Option<Arc<str>>) {
        self.lanes.insert(lane, LaneJournal { name, ..LaneJournal::default() });
    }

    /// Notes that a lane has ended and all its rows are dealt.
    pub(crate) fn end(&mut self, lane: u64) {
        let Some(ended) = self.lanes.get_mut(&lane) else { return };
        ended.ended = true;
        if let Some(name) = &ended.name {
            self.ended.insert(lane, name.clone());
        }
        self.forget_ended();
    }

    /// Notes that rows were handed over on a lane. The store's own lane, number 0, opens with its first rows.
    pub(crate) fn handed_over(&mut self, lane: u64) {
        if lane == 0 && !self.lanes.contains_key(&0) {
            self.open(0, None);
        }
    }

    /// Notes a pass that was handed over. Ignores a pass that is sent again, because the journal knows it already.
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

    /// Notes that everything was discarded `times` times. `lanes` has each lane, and the row at which it goes on.
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
        // If another lane is missing here, it has ended. The store's own lane, number 0, is also missing while it has not begun, so
        // an ended one stays.
        self.lanes.retain(|&id, lane| id == 0 || !lane.ended || lane.start < lane.end);
    }

    /// The journal of what is to be dealt again from the `dealt`-th row on.
    pub(crate) fn since(&self, dealt: u64) -> Journal {
        let mut since = self.clone();
        since.forget_before(dealt);
        for lane in since.lanes.values_mut() {
            // A pass without a dealt row is sent again in any case.
            lane.passes.retain(|pass| pass.first_row < lane.end);
        }
        since
    }
}

#[cfg(test)]
mod tests;
