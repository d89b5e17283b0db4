//! What the store knows about one lane: each fact once.

use std::sync::Arc;

use crate::ring_store::builder::Config;
use crate::ring_store::entrance::Entrance;
use crate::ring_store::room::Room;
use crate::ring_store::snapshot::passes::{Passes, Record};
use crate::rows::batch::Batch;
use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::rows::pass::WholePass;

/// A lane. Its rows have numbers, from 0:
///
/// ```text
/// row 0           record.start         settled          handed           end_of(component)
///   └─ forgotten ─────┴── dealt, kept ────┴── queued ──────┴── set aside ───────┘
/// ```
#[derive(Debug)]
pub(crate) struct LaneBook {
    /// The passes, and the rows that were dealt. Snapshots share it.
    pub(crate) record: Arc<Record>,
    entrance: Entrance,
    /// Whether rows have come. The store's own lane opens with its first rows.
    pub(crate) begun: bool,
    /// Whether rows have come since the store was built or resumed.
    pub(crate) written: bool,
    /// Whether it takes no more rows.
    pub(crate) closed: bool,
    /// Whether it has ended, and all its rows are dealt. Other lanes than the store's own are forgotten then.
    pub(crate) over: bool,
    /// The row from which a resumed lane takes no more rows, if it had ended.
    ends_at: Option<u64>,
    /// The rows before this one are not needed: the saved store had dealt them, and they are not dealt again.
    needed: u64,
    /// The rows before this one are not dealt, because their counterparts were discarded.
    discarded: u64,
    /// How many of the rows that the saved store had dealt are still to be dealt again.
    again: u64,
    /// The room of this lane only, under [`Merge::RoundRobin`](crate::Merge::RoundRobin) and in a resumed store. So a lane that waits for
    /// its turn does not take the room of other lanes.
    pub(crate) room: Option<Room>,
}

/// A lane of a resumed store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResumedLane {
    pub(crate) id: u64,
    /// The first row that is sent to the resumed store.
    pub(crate) from: u64,
    /// The first row that the resumed store needs.
    pub(crate) needed: u64,
    /// The row after the last one that the saved store had dealt.
    pub(crate) end: u64,
    /// Whether the lane had ended.
    pub(crate) ended: bool,
}

/// What became of a pass that came in.
#[derive(Debug)]
pub(crate) struct TakenPass {
    /// The number of the first row.
    pub(crate) first_row: u64,
    /// The first rows: the saved store had dealt them, and they are not dealt again.
    pub(crate) resent: u64,
    /// The rows after these whose counterparts were discarded.
    pub(crate) discarded: u64,
    /// Whether these are the first rows of the lane.
    pub(crate) opens: bool,
    /// Whether a resumed lane that had ended has got all its rows.
    pub(crate) completes: bool,
}

/// What became of the rows of one component that came in.
#[derive(Debug)]
pub(crate) struct Arrived {
    /// The number of the first row.
    pub(crate) first_row: u64,
    /// The rows that the saved store had dealt, and that are not dealt again.
    pub(crate) resent: u64,
    /// The rows whose counterparts were discarded.
    pub(crate) discarded: u64,
    /// The rows that are queued now.
    pub(crate) queued: u64,
    /// The rows that wait for other components now.
    pub(crate) aside: u64,
    /// The passes that are queued now.
    pub(crate) passes: Vec<WholePass>,
    /// The batch, or its rows that are not needed.
    pub(crate) skipped: Option<Batch>,
    /// Whether these are the first rows of the lane.
    pub(crate) opens: bool,
    /// Whether a resumed lane that had ended has got all its rows.
    pub(crate) completes: bool,
}

impl LaneBook {
    pub(crate) fn new(name: Option<Arc<str>>, unnamed: u64, room: Option<Room>) -> Self {
        let record = Record { name, unnamed, ..Record::default() };
        LaneBook {
            record: Arc::new(record),
            entrance: Entrance::new(0),
            begun: false,
            written: false,
            closed: false,
            over: false,
            ends_at: None,
            needed: 0,
            discarded: 0,
            again: 0,
            room,
        }
    }

    /// A lane that goes on. Its rows from the first needed one up to the end that the saved store had dealt are dealt again.
    pub(crate) fn resumed(lane: ResumedLane, record: Record, room: Option<Room>) -> Self {
        let ResumedLane { from, needed, end, ended, .. } = lane;
        LaneBook {
            record: Arc::new(record),
            entrance: Entrance::new(from),
            begun: true,
            written: false,
            closed: false,
            over: false,
            ends_at: ended.then_some(end),
            needed,
            discarded: 0,
            again: end - needed,
            room,
        }
    }

    /// The number of the next row of a pass.
    pub(crate) fn next_row(&self) -> u64 {
        self.entrance.even()
    }

    /// The number of the next row of a component.
    pub(crate) fn end_of(&self, component: usize) -> u64 {
        self.entrance.end_of(component)
    }

    /// The rows before this one are dealt or discarded.
    pub(crate) fn settled(&self) -> u64 {
        self.record.end - self.again
    }

    /// The rows before this one were queued or discarded.
    pub(crate) fn handed(&self) -> u64 {
        self.entrance.even().max(self.skipped_before())
    }

    fn skipped_before(&self) -> u64 {
        self.needed.max(self.discarded)
    }

    /// The queued rows: first the rows that are new, then the rows that are dealt again.
    pub(crate) fn queued(&self) -> (u64, u64) {
        let queued = self.handed() - self.settled();
        let again = queued.min(self.again);
        (queued - again, again)
    }

    /// Notes that the lane is sent again from its first row on. Call this before any row has come.
    pub(crate) fn send_again(&mut self) {
        self.entrance = Entrance::new(0);
    }

    /// Whether the store has taken the same rows of another component. Rows with such counterparts never wait, and are never refused
    /// for room, because then the counterparts could not be dealt.
    pub(crate) fn has_counterparts(&self, component: usize, rows: usize) -> bool {
        self.entrance.has_counterparts(component, rows)
    }

    /// Checks that the lane takes the rows, of one component or of a pass, apart from room in the queue.
    pub(crate) fn check(&self, config: &Config, component: Option<usize>, rows: usize) -> Result<(), WriteError> {
        if self.closed {
            return Err(ClosedBy::Lane.into());
        }
        let came = match component {
            Some(component) => {
                self.check_skew(config, component, rows)?;
                self.entrance.end_of(component)
            }
            None => {
                self.check_even(config)?;
                self.next_row()
            }
        };
        let is_past = |end: u64| came.saturating_add(rows as u64) > end;
        if self.ends_at.is_some_and(is_past) { Err(ClosedBy::Lane.into()) } else { Ok(()) }
    }

    fn check_skew(&self, config: &Config, component: usize, rows: usize) -> Result<(), WriteError> {
        let by = self.entrance.end_of(component) - self.entrance.even();
        // One batch may always run ahead, however large it is.
        if by == 0 || by.saturating_add(rows as u64) <= config.max_skew as u64 {
            return Ok(());
        }
        let (_, fewest) = self.entrance.extremes();
        let (ahead, missing) = (config.layout.name(component), config.layout.name(fewest));
        Err(WriteError::Skew { ahead, missing, by, max_skew: config.max_skew })
    }

    fn check_even(&self, config: &Config) -> Result<(), WriteError> {
        if self.entrance.is_even() {
            return Ok(());
        }
        let (most, fewest) = self.entrance.extremes();
        let by = self.entrance.most() - self.entrance.even();
        Err(WriteError::Uneven { ahead: config.layout.name(most), missing: config.layout.name(fewest), by })
    }

    /// Takes in a pass that was checked. Notes it with its value if `noted`.
    pub(crate) fn take_pass(&mut self, rows: u64, noted: Option<Option<Arc<[u8]>>>) -> TakenPass {
        let (first_row, opens) = (self.next_row(), !self.begun && rows > 0);
        self.note_rows(rows);
        if let Some(value) = noted {
            Arc::make_mut(&mut self.record).note_pass(Passes::one(first_row, rows, value));
        }
        self.entrance.pass(rows);
        let resent = self.needed.saturating_sub(first_row).min(rows);
        let skipped = self.skipped_before().saturating_sub(first_row).min(rows);
        self.enter(rows - skipped);
        TakenPass { first_row, resent, discarded: skipped - resent, opens, completes: self.is_complete() }
    }

    /// Takes in rows of one component that were checked.
    pub(crate) fn take_component(&mut self, component: usize, batch: Batch, components: usize) -> Arrived {
        let (first_row, rows) = (self.entrance.end_of(component), batch.rows() as u64);
        let opens = !self.begun && rows > 0;
        self.note_rows(rows);
        let resent = self.needed.saturating_sub(first_row).min(rows);
        let arrival = self.entrance.put(component, batch, self.skipped_before(), components);
        let skipped = arrival.skipped.as_ref().map_or(0, |batch| batch.rows() as u64);
        let queued = arrival.joined_rows;
        self.enter(queued);
        Arrived {
            first_row,
            resent,
            discarded: skipped - resent,
            queued,
            aside: rows - skipped - queued,
            passes: arrival.joined,
            skipped: arrival.skipped,
            opens,
            completes: self.is_complete(),
        }
    }

    fn note_rows(&mut self, rows: u64) {
        self.begun |= rows > 0;
        self.written |= rows > 0;
    }

    fn enter(&mut self, rows: u64) {
        if let Some(room) = &mut self.room {
            room.enter(rows as usize);
        }
    }

    /// Whether a resumed lane that had ended has got all its rows.
    fn is_complete(&self) -> bool {
        self.ends_at.is_some_and(|end| self.next_row() >= end)
    }

    /// Notes that its next rows were dealt. `again` says that the saved store had dealt them. Returns the first one.
    pub(crate) fn dealt(&mut self, rows: u64, again: bool) -> u64 {
        let first_row = self.settled();
        if again {
            self.again -= rows;
        } else {
            Arc::make_mut(&mut self.record).end += rows;
        }
        if let Some(room) = &mut self.room {
            room.leave(rows as usize);
        }
        first_row
    }

    /// Notes that everything that came was discarded, and so is what comes of the components that lack these rows. Rows that were to be
    /// dealt again are not needed any more.
    pub(crate) fn discard(&mut self) {
        if self.again > 0 {
            self.needed = self.needed.max(self.record.end);
            self.again = 0;
        }
        self.discarded = self.discarded.max(self.entrance.most());
        let row = self.handed();
        let record = Arc::make_mut(&mut self.record);
        record.end = row;
        record.forget_before(row);
        self.room.iter_mut().for_each(Room::clear);
    }

    /// Takes out the rows that wait for other components.
    pub(crate) fn take_waiting(&mut self) -> impl Iterator<Item = (usize, Batch)> {
        self.entrance.take_waiting()
    }
}
