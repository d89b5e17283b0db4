//! The books of all lanes: decides which rows are taken, and knows which were dealt. Plain data, under the store's mutex.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;

use crate::ring_store::builder::{Config, Merge, WhenFull};
use crate::ring_store::error::LaneId;
use crate::ring_store::lane_book::{Arrived, LaneBook, ResumedLane, TakenPass};
use crate::ring_store::room::{NoRoomThen, Room};
use crate::ring_store::snapshot::ended_names::EndedNames;
use crate::ring_store::snapshot::journal::{Copied, Journal, Segment};
use crate::ring_store::snapshot::passes::Record;
use crate::rows::batch::Batch;
use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::rows::full::{NoRoom, StoreFullError};

/// The lanes of a store, and the order in which their rows were dealt.
#[derive(Debug)]
pub(crate) struct Books {
    pub(crate) config: Arc<Config>,
    /// The lanes that have not ended, and the store's own lane, number 0, in any case.
    lanes: BTreeMap<u64, LaneBook>,
    next_lane: u64,
    /// The number of lanes without a name that were opened so far. The store's own lane does not count.
    unnamed: u64,
    /// The lanes of the saved store that go on, and that no producer has opened here.
    unclaimed: BTreeSet<u64>,
    saved: SavedLanes,
    /// The room that all lanes share, under [`Merge::Arrival`].
    room: Option<Room>,
    pub(crate) journal: Journal,
}

/// What a resumed store knows of the lanes of the saved store, apart from the lanes that go on.
#[derive(Debug, Default)]
pub(crate) struct SavedLanes {
    /// The names of lanes that had ended, and that no producer has opened here.
    pub(crate) ended_names: EndedNames,
    /// Whether the store's own lane had ended.
    pub(crate) own_ended: bool,
    /// The lanes without a name that no producer has opened here. They are numbered in the order in which they were opened.
    pub(crate) unnamed: Range<u64>,
    /// The lanes without a name that go on: their places in this order, and their numbers. All others have ended.
    pub(crate) open: BTreeMap<u64, u64>,
}

/// The number of every lane that had ended in the saved store. No lane is open under it, so a write to it is refused.
const ENDED: u64 = u64::MAX;

/// The outcome of opening a lane.
pub(crate) struct Opened {
    pub(crate) id: u64,
    /// Whether this is a lane of the saved store. The writer already knows such a lane, unless it has ended.
    pub(crate) resumed: bool,
}

/// What a flush waits for: for each lane the row before which all must be settled, or `None` if the lane must have ended.
pub(crate) type Unsettled = Vec<(u64, Option<u64>)>;

impl Books {
    /// For a new store. The store's own lane is open.
    pub(crate) fn new(config: Arc<Config>) -> Self {
        let room = (config.merge == Merge::Arrival).then(|| Room::new(config.queue_rows, config.layout.n_components()));
        let mut books = Books {
            config,
            lanes: BTreeMap::new(),
            next_lane: 0,
            unnamed: 0,
            unclaimed: BTreeSet::new(),
            saved: SavedLanes::default(),
            room,
            journal: Journal::default(),
        };
        books.open_new(None);
        books
    }

    /// Takes over the lanes of the saved store. `lanes` go on, each with its record, and all others have ended. The saved store had opened
    /// `opened` lanes, `unnamed` of them without a name. Each lane has room of its own, so a lane that waits until its rows are dealt again
    /// does not take the room of others.
    pub(crate) fn resume(
        &mut self,
        lanes: impl Iterator<Item = (ResumedLane, Record)>,
        own: Option<Record>,
        saved: SavedLanes,
        (opened, unnamed): (u64, u64),
        journal: Journal,
    ) {
        self.room = None;
        self.lanes.clear();
        self.next_lane = 0;
        self.open_new(None);
        if let Some(record) = own.filter(|_| saved.own_ended) {
            let end = record.end;
            let ended = ResumedLane { id: 0, from: end, needed: end, end, ended: true };
            let mut book = LaneBook::resumed(ended, record, self.room_of_lane());
            (book.closed, book.over) = (true, true);
            self.lanes.insert(0, book);
        }
        for (lane, record) in lanes {
            let room = self.room_of_lane();
            self.lanes.insert(lane.id, LaneBook::resumed(lane, record, room));
            if lane.id > 0 {
                self.unclaimed.insert(lane.id);
            }
        }
        (self.saved, self.journal) = (saved, journal);
        (self.next_lane, self.unnamed) = (opened.max(1), unnamed);
    }

    /// Opens a lane. In a resumed store, returns the saved lane of that name. Without a name, returns the next saved lane without a
    /// name.
    pub(crate) fn open_lane(&mut self, name: Option<Arc<str>>) -> Result<Opened, WriteError> {
        let name_of = |id: &u64| self.lanes.get(id).and_then(|book| book.record.name.clone());
        let resumed = match &name {
            // If several saved lanes have the name, takes the one that goes on.
            Some(asked) => {
                let open = self.unclaimed.iter().find(|id| name_of(id) == name).copied();
                open.or_else(|| self.saved.ended_names.take(asked).then_some(ENDED))
            }
            None => self.saved.unnamed.next().map(|place| self.saved.open.get(&place).copied().unwrap_or(ENDED)),
        };
        if let Some(id) = resumed {
            self.unclaimed.remove(&id);
            return Ok(Opened { id, resumed: true });
        }
        let has_name = |book: &LaneBook| !book.closed && name.is_some() && book.record.name == name;
        if let Some(name) = name.clone().filter(|_| self.lanes.values().any(has_name)) {
            return Err(WriteError::LaneName { name });
        }
        Ok(Opened { id: self.open_new(name), resumed: false })
    }

    fn open_new(&mut self, name: Option<Arc<str>>) -> u64 {
        let (id, unnamed) = (self.next_lane, self.unnamed);
        if id > 0 && name.is_none() {
            self.unnamed += 1;
        }
        let mut book = LaneBook::new(name, unnamed, self.room_of_lane());
        // The store's own lane opens with its first rows.
        book.begun = id > 0;
        self.lanes.insert(id, book);
        self.next_lane += 1;
        id
    }

    fn room_of_lane(&self) -> Option<Room> {
        self.room.is_none().then(|| Room::new(self.config.queue_rows, self.config.layout.n_components()))
    }

    /// Notes that a lane of a resumed store is sent again from its first row on.
    pub(crate) fn send_again(&mut self, lane: u64) -> Result<(), WriteError> {
        let lane = self.open_mut(lane)?;
        if lane.written {
            return Err(WriteError::LaneStarted { rows: lane.next_row() });
        }
        lane.send_again();
        Ok(())
    }

    fn open_mut(&mut self, lane: u64) -> Result<&mut LaneBook, WriteError> {
        self.lanes.get_mut(&lane).filter(|lane| !lane.closed).ok_or_else(|| ClosedBy::Lane.into())
    }

    pub(crate) fn get(&self, lane: u64) -> Option<&LaneBook> {
        self.lanes.get(&lane)
    }

    pub(crate) fn get_mut(&mut self, lane: u64) -> Option<&mut LaneBook> {
        self.lanes.get_mut(&lane)
    }

    /// The number of lanes that were ever opened, and how many of them have no name, without the store's own lane.
    pub(crate) fn opened(&self) -> (u64, u64) {
        (self.next_lane, self.unnamed)
    }

    /// The saved lanes that were open, and that no producer has opened here.
    pub(crate) fn missing_lanes(&self) -> impl Iterator<Item = LaneId> {
        self.unclaimed.iter().map(|&id| self.id_of(id))
    }

    /// Names a lane for messages.
    pub(crate) fn id_of(&self, number: u64) -> LaneId {
        let ended = || self.journal.ended().find(|(id, _)| *id == number).map(|(_, record)| record);
        let record = self.lanes.get(&number).map(|book| &*book.record).or_else(ended);
        LaneId { number, name: record.and_then(|record| record.name.clone()) }
    }

    /// Closes a lane: it takes no more rows. Returns whether the lane was open.
    pub(crate) fn close_lane(&mut self, lane: u64, wakers: &mut Vec<Waker>) -> bool {
        let Ok(open) = self.open_mut(lane) else { return false };
        open.closed = true;
        // Callers on other lanes may wait for the same room. They look at the store, and go on waiting.
        self.wake_all(wakers);
        true
    }

    /// The number of lanes that take rows, with the store's own lane.
    pub(crate) fn open_lanes(&self) -> usize {
        self.lanes.values().filter(|lane| !lane.closed).count()
    }

    /// Notes that a lane has ended, and that all its rows are dealt.
    pub(crate) fn end(&mut self, id: u64) {
        if id == 0 {
            // If the store's own lane is not in a snapshot, it has not begun. So an ended one stays.
            if let Some(own) = self.lanes.get_mut(&0) {
                Arc::make_mut(&mut own.record).ended = true;
                (own.closed, own.over) = (true, true);
            }
        } else if let Some(mut book) = self.lanes.remove(&id) {
            Arc::make_mut(&mut book.record).ended = true;
            self.journal.end(id, book.record);
        }
    }

    /// The lanes that have begun and not ended, or may have rows that are dealt again.
    pub(crate) fn listed(&self) -> impl Iterator<Item = &Record> {
        let open = self.lanes.values().filter(|lane| lane.begun).map(|lane| &*lane.record);
        open.chain(self.journal.ended().map(|(_, record)| record))
    }

    // Rows.

    /// Checks that a lane takes rows, of one component or of a pass, apart from room in the queue.
    pub(crate) fn check(&self, lane: u64, component: Option<usize>, rows: usize) -> Result<(), WriteError> {
        let Some(lane) = self.lanes.get(&lane) else { return Err(ClosedBy::Lane.into()) };
        lane.check(&self.config, component, rows)
    }

    /// Checks that a lane takes the rows now.
    pub(crate) fn admit(
        &self,
        lane: u64,
        component: Option<usize>,
        rows: usize,
        no_room: NoRoomThen,
    ) -> Result<(), WriteError> {
        self.check(lane, component, rows)?;
        let lines_up = no_room == NoRoomThen::LineUp && self.config.when_full != WhenFull::Reject;
        if rows == 0 || lines_up || self.has_counterparts(lane, component, rows) {
            return Ok(());
        }
        let Some(room) = self.room_of(lane) else { return Ok(()) };
        let behind_others = no_room == NoRoomThen::RefuseBehindOthers && room.has_line();
        let Some(held) = room.full_for(component, rows).or(behind_others.then(|| room.queued())) else { return Ok(()) };
        let component = self.config.layout.name(component.unwrap_or(0));
        Err(StoreFullError::queue(NoRoom { component, rows, held, bound: room.bound() }).into())
    }

    fn has_counterparts(&self, lane: u64, component: Option<usize>, rows: usize) -> bool {
        let (Some(lane), Some(component)) = (self.lanes.get(&lane), component) else { return false };
        lane.has_counterparts(component, rows)
    }

    /// Takes in a pass that was checked, as [`LaneBook::take_pass`].
    pub(crate) fn take_pass(&mut self, lane: u64, rows: u64, noted: Option<Option<Arc<[u8]>>>) -> Option<TakenPass> {
        let taken = self.lanes.get_mut(&lane)?.take_pass(rows, noted);
        self.enter(rows - taken.resent - taken.discarded);
        Some(taken)
    }

    /// Takes in rows of one component that were checked, as [`LaneBook::take_component`].
    pub(crate) fn take_component(&mut self, lane: u64, component: usize, batch: Batch) -> Option<Arrived> {
        let arrived = self.lanes.get_mut(&lane)?.take_component(component, batch, self.config.layout.n_components());
        self.enter(arrived.queued);
        Some(arrived)
    }

    /// Counts rows as queued in the room that lanes share.
    fn enter(&mut self, rows: u64) {
        if let Some(room) = &mut self.room {
            room.enter(rows as usize);
        }
    }

    /// Wakes the callers of a lane that wait with a component whose counterparts have come: they need not wait any longer.
    pub(crate) fn wake_counterparts(&mut self, lane: u64, wakers: &mut Vec<Waker>) {
        let Books { lanes, room: shared, .. } = self;
        let Some(LaneBook { room: own, .. }) = lanes.get(&lane) else { return };
        if !own.as_ref().or(shared.as_ref()).is_some_and(Room::has_line) {
            return;
        }
        let Some(mut own) = lanes.get_mut(&lane).map(|book| book.room.take()) else { return };
        let Some(book) = lanes.get_mut(&lane) else { return };
        if let Some(room) = own.as_mut().or(shared.as_mut()) {
            wakers.extend(room.take_some(lane, |component, rows| book.has_counterparts(component, rows)));
        }
        book.room = own;
    }

    /// Notes rows that were dealt: the next ones of the lane. `again` says that the saved store had dealt them.
    pub(crate) fn dealt(&mut self, lane: u64, rows: u64, again: bool) {
        let Some(book) = self.lanes.get_mut(&lane) else { return };
        let first_row = book.dealt(rows, again);
        if let Some(room) = &mut self.room {
            room.leave(rows as usize);
        }
        if !again {
            self.journal.note(Segment { lane, first_row, rows });
        }
    }

    /// Forgets what was dealt before the `dealt`-th row since the ring was last emptied.
    pub(crate) fn forget_before(&mut self, dealt: u64) {
        let Books { journal, lanes, .. } = self;
        journal.forget_before(dealt, |lane, row| {
            if let Some(lane) = lanes.get_mut(&lane) {
                Arc::make_mut(&mut lane.record).forget_before(row);
            }
        });
    }

    /// The lanes that are known, also those that have ended and are not forgotten.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.lanes.keys().copied().collect()
    }

    /// Notes that everything that came was discarded, and that the ring was emptied `times` times.
    pub(crate) fn emptied(&mut self, times: u64) {
        self.journal.emptied(times);
        self.clear();
    }

    /// Takes out the rows that wait for other components, on all lanes.
    pub(crate) fn take_waiting(&mut self) -> impl Iterator<Item = (usize, Batch)> {
        self.lanes.values_mut().flat_map(LaneBook::take_waiting)
    }

    /// Forgets all queued rows, because they have been discarded.
    pub(crate) fn clear(&mut self) {
        self.lanes.values_mut().for_each(LaneBook::discard);
        self.room.iter_mut().for_each(Room::clear);
    }

    /// The queued rows, on all lanes: first the rows that are new, then the rows that are sent again to a resumed store.
    pub(crate) fn queued(&self) -> (u64, u64) {
        let of_lanes = self.lanes.values().map(LaneBook::queued);
        of_lanes.fold((0, 0), |(new, again), lane| (new + lane.0, again + lane.1))
    }

    /// The lanes that a flush must wait for: lanes with rows to settle, and lanes that end. In a store that is `closed`, these are all
    /// lanes that have got rows.
    pub(crate) fn unsettled(&self, closed: bool) -> Unsettled {
        let unsettled = self.lanes.iter().filter(|(_, lane)| lane.begun && !lane.over).filter_map(|(&id, lane)| {
            let ends = lane.closed || closed && lane.written;
            let target = if ends { None } else { Some(lane.handed()) };
            (ends || lane.handed() != lane.settled()).then_some((id, target))
        });
        unsettled.collect()
    }

    /// Whether a flush need not wait any longer.
    pub(crate) fn is_settled(&self, unsettled: &Unsettled) -> bool {
        unsettled.iter().all(|(id, handed)| match (self.lanes.get(id), handed) {
            (None, _) => true,
            (Some(lane), _) if lane.over => true,
            (Some(_), None) => false,
            (Some(lane), Some(handed)) => lane.settled() >= *handed,
        })
    }

    // Callers that wait for room.

    /// Reserves room for rows if there is room and the caller comes next. `Ok(false)` if the caller must wait.
    pub(crate) fn try_reserve(
        &mut self,
        lane: u64,
        component: Option<usize>,
        rows: usize,
        ticket: Option<u64>,
    ) -> Result<bool, WriteError> {
        self.check(lane, component, rows)?;
        let has_counterparts = self.has_counterparts(lane, component, rows);
        let Some(room) = self.room_of_mut(lane) else { return Err(ClosedBy::Lane.into()) };
        let free = has_counterparts && room.can_reserve(component, rows)
            || room.is_next(ticket) && room.full_for(component, rows).is_none();
        if free {
            room.reserve(component, rows);
        }
        Ok(free)
    }

    /// Puts a caller in line, as [`Room::queue_up`]. Returns the waker of the caller if the lane is gone.
    pub(crate) fn queue_up(
        &mut self,
        lane: u64,
        ticket: Option<u64>,
        (component, rows): (Option<usize>, usize),
        waker: Waker,
    ) -> (Option<u64>, Option<Waker>) {
        let Some(room) = self.room_of_mut(lane) else { return (None, Some(waker)) };
        let (ticket, before) = room.queue_up(ticket, (lane, component, rows), waker);
        (Some(ticket), before)
    }

    /// Removes a caller from the line, and wakes the next caller. Returns the waker of the removed caller.
    pub(crate) fn leave_line(&mut self, lane: u64, ticket: u64, wakers: &mut Vec<Waker>) -> Option<Waker> {
        let room = self.room_of_mut(lane)?;
        let own = room.leave_line(ticket);
        wakers.extend(room.take_next());
        own
    }

    /// Gives back reserved room, and wakes the next caller.
    pub(crate) fn release(&mut self, lane: u64, component: Option<usize>, rows: usize, wakers: &mut Vec<Waker>) {
        if let Some(room) = self.room_of_mut(lane) {
            room.release(component, rows);
            wakers.extend(room.take_next());
        }
    }

    /// Gives back reserved room, because rows use it now. If they are not all queued, there may be room for the next caller:
    /// [`wake_next_of`](Self::wake_next_of).
    pub(crate) fn use_reserved(&mut self, lane: u64, component: Option<usize>, rows: usize) {
        if let Some(room) = self.room_of_mut(lane) {
            room.release(component, rows);
        }
    }

    /// Wakes the first caller that waits for the room of a lane, if there is room for it now.
    pub(crate) fn wake_next_of(&mut self, lane: u64, wakers: &mut Vec<Waker>) {
        // The room that lanes share is looked at without a look for the lane.
        if self.room.as_ref().is_some_and(|room| !room.has_line()) {
            return;
        }
        if let Some(room) = self.room_of_mut(lane).filter(|room| room.has_line()) {
            wakers.extend(room.take_next());
        }
    }

    /// Wakes all callers that wait for the room of one lane only.
    pub(crate) fn wake_line_of(&mut self, lane: u64, wakers: &mut Vec<Waker>) {
        if let Some(room) = self.lanes.get_mut(&lane).and_then(|lane| lane.room.as_mut()) {
            wakers.extend(room.take_line());
        }
    }

    /// Wakes the first caller in each line, if there is room for it now.
    pub(crate) fn wake_next(&mut self, wakers: &mut Vec<Waker>) {
        self.rooms_mut().filter(|room| room.has_line()).for_each(|room| wakers.extend(room.take_next()));
    }

    /// Wakes every caller.
    pub(crate) fn wake_all(&mut self, wakers: &mut Vec<Waker>) {
        self.rooms_mut().for_each(|room| wakers.extend(room.take_line()));
    }

    fn room_of(&self, lane: u64) -> Option<&Room> {
        self.lanes.get(&lane).and_then(|lane| lane.room.as_ref()).or(self.room.as_ref())
    }

    /// The room of a lane. `None` if the lane had room of its own and is gone.
    fn room_of_mut(&mut self, lane: u64) -> Option<&mut Room> {
        self.lanes.get_mut(&lane).and_then(|lane| lane.room.as_mut()).or(self.room.as_mut())
    }

    fn rooms_mut(&mut self) -> impl Iterator<Item = &mut Room> {
        self.lanes.values_mut().filter_map(|lane| lane.room.as_mut()).chain(&mut self.room)
    }

    // Snapshots.

    /// Copies what a snapshot needs. Shares the long parts.
    pub(crate) fn copy(&self) -> Copied {
        let lanes = self.lanes.iter().filter(|(_, lane)| lane.begun);
        Copied { journal: self.journal.clone(), lanes: lanes.map(|(&id, lane)| (id, lane.record.clone())).collect() }
    }
}

#[cfg(test)]
mod tests;
