//! A journal of the rows that a store has dealt, as far back as a light snapshot needs it. Plain data.
//!
//! The journal is read and changed under the store's mutex. So it forgets rows as soon as no minibatch needs them, and a clone of it
//! shares its long parts. What takes time for each entry, [`Journal::since`], is done on a clone.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ring_store::snapshot::chunks::Chunks;
use crate::ring_store::snapshot::ended_names::EndedNames;
use crate::ring_store::snapshot::hex;

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
            Some(last) if last.is_continued_by(&self) => last.rows += self.rows,
            _ => segments.push_back(self),
        }
    }

    fn is_continued_by(&self, next: &Segment) -> bool {
        self.lane == next.lane && self.first_row + self.rows == next.first_row
    }
}

/// A segment, and the number of rows that were dealt before it since the ring was last emptied.
#[derive(Clone, Copy, Debug)]
struct Dealt {
    segment: Segment,
    before: u64,
}

/// The rows that were dealt since the ring was last emptied, oldest first, and the passes of these rows. The journal forgets the
/// oldest rows once no minibatch needs them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    /// How often the ring was emptied.
    pub(crate) emptied: u64,
    /// The rows dealt since the ring was last emptied.
    pub(crate) dealt: u64,
    /// How many of the dealt rows are forgotten. The first segment may begin with some of them.
    from: u64,
    segments: Chunks<Dealt>,
    /// The lanes that are open, and the store's own lane, number 0, once it has begun.
    lanes: BTreeMap<u64, Arc<Lane>>,
    /// Other lanes that have ended and may have rows in the segments, in the order in which they ended.
    ended: Chunks<Arc<Ended>>,
    /// The names of the other lanes that have ended.
    ended_names: EndedNames,
    /// The number of lanes without a name that were opened so far. The store's own lane does not count.
    unnamed: u64,
    /// The passes without rows on the store's own lane before its first rows.
    before_own: Option<Passes>,
}

/// What the journal knows about a lane.
#[derive(Clone, Debug, Default)]
struct Lane {
    name: Option<Arc<str>>,
    /// The number of lanes without a name that were opened before this one, if it has none, either.
    unnamed: u64,
    /// The first row that is not forgotten. For a lane that has ended, the first one when it ended.
    start: u64,
    /// The row after the last one that was dealt or discarded.
    end: u64,
    ended: bool,
    /// The number of passes before the first one in `passes`.
    passes_before: u64,
    /// The passes with rows that are not forgotten, and the last pass before these.
    passes: Chunks<Passes>,
}

/// A lane that has ended. Its rows are forgotten with the first `dealt` rows.
#[derive(Debug)]
struct Ended {
    id: u64,
    lane: Lane,
    dealt: u64,
}

/// The part of a journal that a snapshot needs, in the form in which it is written.
#[derive(Debug)]
pub(crate) struct Log {
    /// The number of rows dealt before the first segment.
    pub(crate) from: u64,
    pub(crate) segments: VecDeque<Segment>,
    /// The lanes that are open or have rows in the segments, by number.
    pub(crate) lanes: BTreeMap<u64, LaneLog>,
    /// The names of the other lanes that have ended.
    pub(crate) ended_names: EndedNames,
    /// The number of lanes without a name that were opened so far.
    pub(crate) unnamed: u64,
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
pub(crate) struct Place {
    /// The number of complete passes before this place.
    pub(crate) passes: u64,
    /// The first row to send.
    pub(crate) row: u64,
    /// The value of the last pass before this place.
    pub(crate) value: Option<Arc<[u8]>>,
}

impl LaneLog {
    /// Where the lane goes on if the store has all rows before `row`. If `row` is inside a pass, the whole pass is sent again.
    pub(crate) fn place(&self, row: u64) -> Place {
        let mut place = Place { passes: self.passes_before, row, value: None };
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

impl Lane {
    fn note_pass(&mut self, pass: Passes) {
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
    fn forget_before(&mut self, start: u64) {
        self.start = start;
        while self.passes.get(1).is_some_and(|second| second.complete(start) > 0) {
            self.passes_before += self.passes.get(0).map_or(0, |first| first.passes);
            self.passes.pop_front();
        }
    }

    /// What a snapshot says about the lane if its first row in the segments is `start`.
    fn log(&self, start: u64) -> LaneLog {
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

impl From<LaneLog> for Lane {
    fn from(log: LaneLog) -> Self {
        let mut passes = Chunks::default();
        log.passes.into_iter().for_each(|some| passes.push(some));
        let LaneLog { name, unnamed, start, end, ended, passes_before, .. } = log;
        Lane { name, unnamed, start, end, ended, passes_before, passes }
    }
}

impl Journal {
    /// The journal of a store that goes on from a snapshot.
    pub(crate) fn resumed(emptied: u64, log: Log) -> Self {
        let Log { from, segments, lanes, ended_names, unnamed } = log;
        let mut journal = Journal { emptied, dealt: from, from, ended_names, unnamed, ..Journal::default() };
        segments.into_iter().for_each(|segment| journal.note_segment(segment));
        for (id, lane) in lanes {
            let lane = Lane::from(lane);
            if lane.ended && id > 0 {
                journal.ended.push(Arc::new(Ended { id, lane, dealt: journal.dealt }));
            } else {
                journal.lanes.insert(id, Arc::new(lane));
            }
        }
        journal
    }

    /// Notes that a lane was opened. Its first row has the number 0.
    pub(crate) fn open(&mut self, lane: u64, name: Option<Arc<str>>) {
        let unnamed = self.unnamed;
        if lane > 0 && name.is_none() {
            self.unnamed += 1;
        }
        self.lanes.insert(lane, Arc::new(Lane { name, unnamed, ..Lane::default() }));
    }

    /// Notes that a lane has ended and all its rows are dealt.
    pub(crate) fn end(&mut self, id: u64) {
        let Some(mut lane) = self.lanes.remove(&id) else { return };
        Arc::make_mut(&mut lane).ended = true;
        if id == 0 {
            // If the store's own lane is missing, it has not begun. So an ended one stays.
            self.lanes.insert(id, lane);
        } else if lane.start < lane.end {
            self.ended.push(Arc::new(Ended { id, lane: Arc::unwrap_or_clone(lane), dealt: self.dealt }));
        } else {
            lane.name.iter().for_each(|name| self.ended_names.insert(name));
        }
    }

    /// The name of a lane that is open or may have rows in the segments.
    pub(crate) fn name(&self, id: u64) -> Option<Arc<str>> {
        let ended = || self.ended.iter().find(|ended| ended.id == id).map(|ended| &ended.lane);
        self.lanes.get(&id).map(|lane| &**lane).or_else(ended)?.name.clone()
    }

    /// The lanes that are open or may have rows in the segments: the name of each, the row after the last one dealt, and whether it has
    /// ended.
    pub(crate) fn lanes(&self) -> Vec<(Option<Arc<str>>, u64, bool)> {
        let ended = self.ended.iter().map(|ended| &ended.lane);
        let lanes = self.lanes.values().map(|lane| &**lane).chain(ended);
        lanes.map(|lane| (lane.name.clone(), lane.end, lane.ended)).collect()
    }

    /// The names of the other lanes that have ended.
    pub(crate) fn ended_names(&self) -> &EndedNames {
        &self.ended_names
    }

    /// Notes that rows were handed over on a lane. The store's own lane, number 0, opens with its first rows.
    pub(crate) fn handed_over(&mut self, lane: u64) {
        if lane == 0 && !self.lanes.contains_key(&0) {
            self.open(0, None);
            let before = self.before_own.take();
            before.into_iter().for_each(|passes| self.pass(0, passes));
        }
    }

    /// Notes a pass that was handed over. Ignores a pass that is sent again, because the journal knows it already. A pass without rows does
    /// not open the store's own lane.
    pub(crate) fn pass(&mut self, lane: u64, pass: Passes) {
        match (self.lanes.get_mut(&lane), &mut self.before_own) {
            (Some(lane), _) => Arc::make_mut(lane).note_pass(pass),
            (None, Some(before)) if lane == 0 => before.take(pass),
            (None, before) if lane == 0 => *before = Some(pass),
            (None, _) => {}
        }
    }

    /// Notes rows that were dealt.
    pub(crate) fn dealt(&mut self, segments: impl IntoIterator<Item = Segment>) {
        for segment in segments {
            if let Some(lane) = self.lanes.get_mut(&segment.lane) {
                Arc::make_mut(lane).end = segment.first_row + segment.rows;
            }
            self.note_segment(segment);
        }
    }

    fn note_segment(&mut self, segment: Segment) {
        match self.segments.back_mut() {
            Some(last) if last.segment.is_continued_by(&segment) => last.segment.rows += segment.rows,
            _ => self.segments.push(Dealt { segment, before: self.dealt }),
        }
        self.dealt += segment.rows;
    }

    /// Notes that everything was discarded `times` times. `lanes` has each lane, and the row at which it goes on.
    pub(crate) fn emptied(&mut self, times: u64, lanes: impl Iterator<Item = (u64, u64)>) {
        self.forget_before(self.dealt);
        (self.emptied, self.from, self.dealt) = (self.emptied + times, 0, 0);
        for (lane, row) in lanes {
            if let Some(lane) = self.lanes.get_mut(&lane).map(Arc::make_mut) {
                lane.end = row;
                lane.forget_before(row);
            }
        }
    }

    /// The number of rows, dealt since the ring was last emptied, that are forgotten.
    pub(crate) fn from(&self) -> u64 {
        self.from
    }

    /// Forgets what was dealt before the `dealt`-th row since the ring was last emptied.
    pub(crate) fn forget_before(&mut self, dealt: u64) {
        if dealt <= self.from {
            return;
        }
        self.from = dealt.min(self.dealt);
        while let Some(&Dealt { segment, before }) = self.segments.get(0)
            && before < self.from
        {
            let forgotten = segment.rows.min(self.from - before);
            if let Some(lane) = self.lanes.get_mut(&segment.lane) {
                Arc::make_mut(lane).forget_before(segment.first_row + forgotten);
            }
            if forgotten < segment.rows {
                break;
            }
            self.segments.pop_front();
        }
        while let Some(ended) = self.ended.get(0).filter(|ended| ended.dealt <= self.from) {
            ended.lane.name.iter().for_each(|name| self.ended_names.insert(name));
            self.ended.pop_front();
        }
    }

    /// Returns what is to be dealt again from the `dealt`-th row on. Takes time for each entry.
    pub(crate) fn since(mut self, dealt: u64) -> Log {
        self.forget_before(dealt);
        let mut segments: VecDeque<Segment> = self.segments.iter().map(|dealt| dealt.segment).collect();
        if let (Some(first), Some(dealt)) = (segments.front_mut(), self.segments.get(0)) {
            let forgotten = self.from - dealt.before;
            (first.first_row, first.rows) = (first.first_row + forgotten, first.rows - forgotten);
        }
        let mut lanes: BTreeMap<u64, LaneLog> =
            self.lanes.iter().map(|(&id, lane)| (id, lane.log(lane.start))).collect();
        let mut starts = HashMap::new();
        segments.iter().for_each(|segment| {
            starts.entry(segment.lane).or_insert(segment.first_row);
        });
        for ended in self.ended.iter() {
            match starts.get(&ended.id) {
                Some(&start) => {
                    lanes.insert(ended.id, ended.lane.log(start));
                }
                None => ended.lane.name.iter().for_each(|name| self.ended_names.insert(name)),
            }
        }
        Log { from: self.from, segments, lanes, ended_names: self.ended_names, unnamed: self.unnamed }
    }
}

#[cfg(test)]
mod tests;
