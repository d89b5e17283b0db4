//! The passes of a lane, as far back as a snapshot needs them. Plain data.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ring_store::snapshot::chunks::Chunks;
use crate::ring_store::snapshot::hex;

/// What the store knows about a lane for its snapshots. A snapshot shares it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    pub(crate) name: Option<Arc<str>>,
    /// The number of lanes without a name that were opened before this one, if it has none, either.
    pub(crate) unnamed: u64,
    /// The first row that is not forgotten. For a lane that has ended, the first one when it ended.
    pub(crate) start: u64,
    /// The row after the last one that was dealt or discarded.
    pub(crate) end: u64,
    pub(crate) ended: bool,
    /// The number of passes before the first one in `passes`.
    pub(crate) passes_before: u64,
    /// The passes with rows that are not forgotten, and the last pass before these.
    pub(crate) passes: Chunks<Passes>,
}

impl Record {
    pub(crate) fn note_pass(&mut self, pass: Passes) {
        let end = self.passes.back_mut().and_then(|last| last.end()).unwrap_or(0);
        if pass.first_row < end.max(self.end) {
            // The pass is sent again. The journal knows it already.
            return;
        }
        match self.passes.back_mut() {
            Some(last) if last.takes(&pass) => last.take(pass),
            _ => self.passes.push(pass),
        }
    }

    /// Forgets the rows before `start`, and the passes before it except the last one, because a snapshot returns the value of that
    /// pass.
    pub(crate) fn forget_before(&mut self, start: u64) {
        self.start = start;
        while self.passes.get(1).is_some_and(|second| second.complete(start) > 0) {
            self.passes_before += self.passes.get(0).map_or(0, |first| first.passes);
            self.passes.pop_front();
        }
    }

    /// What a snapshot says about the lane if its first row in the segments is `start`.
    pub(crate) fn log(&self, start: u64) -> LaneLog {
        let mut before = self.passes_before;
        let mut listed: Vec<Passes> = Vec::new();
        for passes in self.passes.iter() {
            let mut passes = passes.clone();
            // A pass without a dealt row is sent again in any case.
            passes.passes = passes.begun(self.end);
            if passes.passes == 0 {
                break;
            }
            let complete = passes.complete(start);
            if complete > 0 {
                before += listed.drain(..).map(|passes| passes.passes).sum::<u64>() + complete - 1;
                passes.skip(complete - 1);
            }
            listed.push(passes);
        }
        LaneLog {
            name: self.name.clone(),
            unnamed: self.unnamed,
            start,
            end: self.end,
            ended: self.ended,
            passes_before: before,
            passes: listed,
        }
    }
}

impl From<LaneLog> for Record {
    fn from(log: LaneLog) -> Self {
        let mut passes = Chunks::default();
        log.passes.into_iter().for_each(|some| passes.push(some));
        let LaneLog { name, unnamed, start, end, ended, passes_before, .. } = log;
        Record { name, unnamed, start, end, ended, passes_before, passes }
    }
}

/// What a snapshot says about a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LaneLog {
    pub(crate) name: Option<Arc<str>>,
    /// The number of lanes without a name that were opened before this one, if it has none, either.
    #[serde(default)]
    pub(crate) unnamed: u64,
    /// The lane's first row in the segments. If it has none there, the row that would be its first.
    pub(crate) start: u64,
    /// The row after the last one that was dealt or discarded.
    pub(crate) end: u64,
    /// Whether the lane has ended: no more rows come.
    pub(crate) ended: bool,
    /// The number of passes before the first one in `passes`.
    pub(crate) passes_before: u64,
    /// The passes with rows in the segments, and the last pass before these.
    pub(crate) passes: Vec<Passes>,
}

/// A pass, or several that followed each other, with equally many rows and without a value. Passes without rows have the value of the last
/// one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Passes {
    pub(crate) first_row: u64,
    /// The rows of each pass.
    pub(crate) rows: u64,
    /// The number of passes.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(crate) passes: u64,
    /// The value that the user attached to the pass.
    #[serde(with = "hex", default, skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<Arc<[u8]>>,
}

fn one() -> u64 {
    1
}

fn is_one(passes: &u64) -> bool {
    *passes == 1
}

impl Passes {
    pub(crate) fn one(first_row: u64, rows: u64, value: Option<Arc<[u8]>>) -> Self {
        Passes { first_row, rows, passes: 1, value }
    }

    /// The first row after the passes. `None` if there is no such number.
    pub(crate) fn end(&self) -> Option<u64> {
        self.rows.checked_mul(self.passes)?.checked_add(self.first_row)
    }

    /// How many of the passes end at `row` or before it. Passes without rows are complete only if a row after them is before `row`, so that
    /// it does not matter whether they were handed over before a snapshot or after it.
    fn complete(&self, row: u64) -> u64 {
        let rows = row.saturating_sub(self.first_row);
        rows.checked_div(self.rows).unwrap_or_else(|| self.begun(row)).min(self.passes)
    }

    /// How many of the passes begin before `row`.
    fn begun(&self, row: u64) -> u64 {
        let rows = row.saturating_sub(self.first_row);
        if self.rows == 0 && rows > 0 { self.passes } else { rows.div_ceil(self.rows.max(1)).min(self.passes) }
    }

    /// Whether `next`, which follows these passes, joins them in one entry.
    fn takes(&self, next: &Passes) -> bool {
        let without_rows = self.rows == 0 && next.rows == 0;
        let equal = self.rows == next.rows && self.value.is_none() && next.value.is_none();
        (equal || without_rows) && self.end() == Some(next.first_row)
    }

    /// Takes in a pass that [`takes`](Self::takes) allows.
    fn take(&mut self, next: Passes) {
        self.passes += next.passes;
        self.value = next.value;
    }

    /// Leaves out the first passes.
    fn skip(&mut self, passes: u64) {
        self.first_row += passes * self.rows;
        self.passes -= passes;
    }
}

/// Where a lane goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GoesOn {
    /// The number of complete passes before this place.
    pub(crate) passes: u64,
    /// The first row to send.
    pub(crate) row: u64,
    /// The value of the last pass before this place.
    pub(crate) value: Option<Arc<[u8]>>,
}

impl LaneLog {
    /// Where the lane goes on if the store has all rows before `row`. If `row` is inside a pass, the whole pass is sent again.
    pub(crate) fn place(&self, row: u64) -> GoesOn {
        let mut place = GoesOn { passes: self.passes_before, row, value: None };
        for passes in &self.passes {
            let complete = passes.complete(row);
            place.passes += complete;
            if complete > 0 {
                place.value = passes.value.clone();
            }
            if complete < passes.passes {
                place.row = row.min(passes.first_row + complete * passes.rows);
                break;
            }
        }
        place
    }

    /// Says what is wrong with the passes. `None` if nothing is.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        let wrong = |passes: &Passes| passes.passes == 0 || passes.end().is_none();
        if self.passes.iter().any(wrong) { Some("a list of passes is empty, or has too many rows") } else { None }
    }
}
