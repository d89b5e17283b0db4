//! A journal of the rows that a store has dealt, as far back as a light snapshot needs it. Plain data.
//!
//! The journal is read and changed under the store's mutex. So it forgets rows as soon as no minibatch needs them, and a copy of it
//! shares its long parts. What takes time for each entry, [`Copied::since`], is done on the copy.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::ring_store::snapshot::chunks::Chunks;
use crate::ring_store::snapshot::ended_names::EndedNames;
use crate::ring_store::snapshot::passes::{LaneLog, Record};

/// Rows of one lane that were dealt one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) lane: u64,
    pub(crate) first_row: u64,
    pub(crate) rows: u64,
}

impl Segment {
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

/// The rows that were dealt since the ring was last emptied, oldest first. The journal forgets the oldest rows once no minibatch needs
/// them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    /// How often the ring was emptied.
    pub(crate) emptied: u64,
    /// The rows dealt since the ring was last emptied.
    pub(crate) dealt: u64,
    /// How many of the dealt rows are forgotten. The first segment may begin with some of them.
    from: u64,
    segments: Chunks<Dealt>,
    /// Lanes that have ended and may have rows in the segments, in the order in which they ended. Without the store's own lane.
    ended: Chunks<Arc<Ended>>,
    /// The names of the other lanes that have ended.
    ended_names: EndedNames,
}

/// A lane that has ended. Its rows are forgotten with the first `dealt` rows.
#[derive(Debug)]
struct Ended {
    id: u64,
    record: Arc<Record>,
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
}

impl Journal {
    /// The journal of a store that goes on from a snapshot, without its open lanes.
    pub(crate) fn resumed(emptied: u64, log: Log) -> Self {
        let Log { from, segments, lanes, ended_names } = log;
        let mut journal = Journal { emptied, dealt: from, from, ended_names, ..Journal::default() };
        segments.into_iter().for_each(|segment| journal.note(segment));
        for (id, lane) in lanes {
            if lane.ended && id > 0 {
                journal.ended.push(Arc::new(Ended { id, record: Arc::new(lane.into()), dealt: journal.dealt }));
            }
        }
        journal
    }

    /// Notes that a lane has ended, and that all its rows are dealt.
    pub(crate) fn end(&mut self, id: u64, record: Arc<Record>) {
        if record.start < record.end {
            self.ended.push(Arc::new(Ended { id, record, dealt: self.dealt }));
        } else {
            record.name.iter().for_each(|name| self.ended_names.insert(name));
        }
    }

    /// The lanes that have ended and may have rows in the segments.
    pub(crate) fn ended(&self) -> impl Iterator<Item = (u64, &Record)> {
        self.ended.iter().map(|ended| (ended.id, &*ended.record))
    }

    /// The names of the other lanes that have ended.
    pub(crate) fn ended_names(&self) -> &EndedNames {
        &self.ended_names
    }

    /// Notes rows that were dealt.
    pub(crate) fn note(&mut self, segment: Segment) {
        match self.segments.back_mut() {
            Some(last) if last.segment.is_continued_by(&segment) => last.segment.rows += segment.rows,
            _ => self.segments.push(Dealt { segment, before: self.dealt }),
        }
        self.dealt += segment.rows;
    }

    /// Notes that everything was discarded `times` times.
    pub(crate) fn emptied(&mut self, times: u64) {
        self.forget_before(self.dealt, |_, _| {});
        (self.emptied, self.from, self.dealt) = (self.emptied + times, 0, 0);
    }

    /// The number of rows, dealt since the ring was last emptied, that are forgotten.
    pub(crate) fn from(&self) -> u64 {
        self.from
    }

    /// Forgets what was dealt before the `dealt`-th row since the ring was last emptied. Calls `forget` with lanes, and a row of each whose
    /// earlier rows are forgotten.
    pub(crate) fn forget_before(&mut self, dealt: u64, mut forget: impl FnMut(u64, u64)) {
        if dealt <= self.from {
            return;
        }
        self.from = dealt.min(self.dealt);
        while let Some(&Dealt { segment, before }) = self.segments.get(0)
            && before < self.from
        {
            let forgotten = segment.rows.min(self.from - before);
            forget(segment.lane, segment.first_row + forgotten);
            if forgotten < segment.rows {
                break;
            }
            self.segments.pop_front();
        }
        while let Some(ended) = self.ended.get(0).filter(|ended| ended.dealt <= self.from) {
            ended.record.name.iter().for_each(|name| self.ended_names.insert(name));
            self.ended.pop_front();
        }
    }
}

/// A copy of a journal and of the records of the open lanes, which share their long parts with the store's.
#[derive(Clone, Debug)]
pub(crate) struct Copied {
    pub(crate) journal: Journal,
    pub(crate) lanes: BTreeMap<u64, Arc<Record>>,
}

impl Copied {
    /// Returns what is to be dealt again from the `dealt`-th row on. Takes time for each entry.
    pub(crate) fn since(self, dealt: u64) -> Log {
        let Copied { mut journal, mut lanes } = self;
        journal.forget_before(dealt, |lane, row| {
            if let Some(record) = lanes.get_mut(&lane) {
                Arc::make_mut(record).forget_before(row);
            }
        });
        let mut segments: VecDeque<Segment> = journal.segments.iter().map(|dealt| dealt.segment).collect();
        if let (Some(first), Some(dealt)) = (segments.front_mut(), journal.segments.get(0)) {
            let forgotten = journal.from - dealt.before;
            (first.first_row, first.rows) = (first.first_row + forgotten, first.rows - forgotten);
        }
        let mut lanes: BTreeMap<u64, LaneLog> =
            lanes.iter().map(|(&id, record)| (id, record.log(record.start))).collect();
        let mut starts = HashMap::new();
        segments.iter().for_each(|segment| {
            starts.entry(segment.lane).or_insert(segment.first_row);
        });
        let mut ended_names = journal.ended_names;
        for ended in journal.ended.iter() {
            match starts.get(&ended.id) {
                Some(&start) => {
                    lanes.insert(ended.id, ended.record.log(start));
                }
                None => ended.record.name.iter().for_each(|name| ended_names.insert(name)),
            }
        }
        Log { from: journal.from, segments, lanes, ended_names }
    }
}
