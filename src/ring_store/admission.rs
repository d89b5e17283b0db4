//! Decides which rows are taken, from the position of each lane and component and the number of queued rows.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;

use crate::ring_store::builder::{Config, Merge, WhenFull};
use crate::ring_store::lane::ResumedLane;
use crate::ring_store::queue::{Demand, QueueBound};
use crate::ring_store::snapshot::ended_names::EndedNames;
use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::rows::full::{NoRoom, StoreFullError};

/// What to do with rows that the queue has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoomThen {
    /// Take them anyway, unless the store is configured to reject them.
    LineUp,
    /// Refuse them.
    Refuse,
    /// Refuse them. Also refuse rows that have room while other callers wait for room.
    RefuseBehindOthers,
}

/// The rows that producers have handed over, and the rows that they may hand over. Plain data.
#[derive(Debug)]
pub(crate) struct Admission {
    config: Arc<Config>,
    lanes: BTreeMap<u64, LaneRows>,
    next_lane: u64,
    /// The lanes of the saved store that go on, and that no producer has opened here: the name of each, if it has one.
    unclaimed: BTreeMap<u64, Option<Arc<str>>>,
    saved: SavedLanes,
    /// The bound that all lanes share, under [`Merge::Arrival`].
    bound: Option<QueueBound>,
}

/// A lane, as its producers see it.
#[derive(Debug)]
struct LaneRows {
    /// The rows of each component that were handed over.
    handed: Vec<u64>,
    /// The rows of each component that have been dealt, set aside or discarded.
    settled: Vec<u64>,
    closed: bool,
    /// Whether rows have been handed over.
    written: bool,
    /// The saved store had dealt the rows before this one, so they count as sent again. 0 in a new lane.
    again_until: u64,
    /// How far the counts are ahead of the row numbers. 0 unless a resumed lane is sent again from its first row on.
    ahead: u64,
    name: Option<Arc<str>>,
    /// The row from which a resumed lane takes no more rows, if the lane had ended.
    ends_at: Option<u64>,
    /// The bound of this lane only, under [`Merge::RoundRobin`] and in a resumed store. So a lane that waits for its turn does not take
    /// the room of other lanes.
    bound: Option<QueueBound>,
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

/// What a flush waits for: for each lane the rows that must be settled, or `None` if the lane must have ended.
pub(crate) type Unsettled = Vec<(u64, Option<Vec<u64>>)>;

impl Admission {
    /// For a new store. The store's own lane, number 0, is open.
    pub(crate) fn new(config: Arc<Config>) -> Self {
        let shared = config.merge == Merge::Arrival;
        let bound = shared.then(|| QueueBound::new(config.queue_rows, config.layout.n_components()));
        let mut admission = Admission {
            config,
            lanes: BTreeMap::new(),
            next_lane: 0,
            unclaimed: BTreeMap::new(),
            saved: SavedLanes::default(),
            bound,
        };
        admission.open_new(None, 0, None, 0);
        admission
    }

    /// Takes over the lanes of the saved store. `lanes` go on, and all others have ended. With each lane comes the row up to which rows are
    /// sent again. The saved store had opened `opened` lanes. Each lane has a bound of its own, so a lane that waits until its rows are
    /// dealt again does not take the room of others.
    pub(crate) fn resume(
        &mut self,
        lanes: impl Iterator<Item = (ResumedLane, Option<Arc<str>>, u64)>,
        saved: SavedLanes,
        opened: u64,
    ) {
        self.bound = None;
        (self.next_lane, self.lanes) = (0, BTreeMap::new());
        self.open_new(None, 0, None, 0);
        self.lanes.values_mut().for_each(|own| own.closed = saved.own_ended);
        for (ResumedLane { id, from, ends_at, .. }, name, again_until) in lanes {
            self.next_lane = id;
            self.open_new(name.clone(), from, ends_at, again_until);
            if id > 0 {
                self.unclaimed.insert(id, name);
            }
        }
        self.saved = saved;
        self.next_lane = opened.max(1);
    }

    /// Opens a lane. In a resumed store, returns the saved lane of that name. Without a name, returns the next saved lane without a
    /// name.
    pub(crate) fn open_lane(&mut self, name: Option<Arc<str>>) -> Result<Opened, WriteError> {
        let resumed = match &name {
            // If several saved lanes have the name, takes the one that goes on.
            Some(_) => {
                let open = self.unclaimed.iter().find(|(_, other)| **other == name).map(|(&id, _)| id);
                open.or_else(|| name.as_ref().filter(|name| self.saved.ended_names.take(name)).map(|_| ENDED))
            }
            None => self.saved.unnamed.next().map(|place| self.saved.open.get(&place).copied().unwrap_or(ENDED)),
        };
        if let Some(id) = resumed {
            self.unclaimed.remove(&id);
            return Ok(Opened { id, resumed: true });
        }
        if let Some(name) = name
            .as_ref()
            .filter(|&name| self.lanes.values().any(|lane| !lane.closed && lane.name.as_ref() == Some(name)))
        {
            return Err(WriteError::LaneName { name: name.clone() });
        }
        Ok(Opened { id: self.open_new(name, 0, None, 0), resumed: false })
    }

    fn open_new(&mut self, name: Option<Arc<str>>, from: u64, ends_at: Option<u64>, again_until: u64) -> u64 {
        let components = self.config.layout.n_components();
        let bound = self.bound.is_none().then(|| QueueBound::new(self.config.queue_rows, components));
        let (handed, settled) = (vec![from; components], vec![from; components]);
        self.lanes.insert(
            self.next_lane,
            LaneRows { handed, settled, closed: false, written: false, again_until, ahead: 0, name, ends_at, bound },
        );
        self.next_lane += 1;
        self.next_lane - 1
    }

    /// Notes that a lane of a resumed store is sent again from its first row on.
    pub(crate) fn send_again(&mut self, lane: u64) -> Result<(), WriteError> {
        let lane = self.lanes.get_mut(&lane).filter(|lane| !lane.closed).ok_or(ClosedBy::Lane)?;
        if lane.written {
            return Err(WriteError::LaneStarted { rows: lane.handed[0] - lane.ahead });
        }
        // The counts stay as they are, so that they fit the writer's next reports.
        lane.ahead = lane.handed[0];
        Ok(())
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The number of lanes that were ever opened.
    pub(crate) fn lanes_opened(&self) -> u64 {
        self.next_lane
    }

    /// The saved lanes that were open, and that no producer has opened here: the number and name of each.
    pub(crate) fn missing_lanes(&self) -> impl Iterator<Item = (u64, Option<&Arc<str>>)> {
        self.unclaimed.iter().map(|(&id, name)| (id, name.as_ref()))
    }

    /// Closes a lane: it takes no more rows. Returns whether the lane was open.
    pub(crate) fn close_lane(&mut self, lane: u64, wakers: &mut Vec<Waker>) -> bool {
        let Some(open) = self.lanes.get_mut(&lane).filter(|lane| !lane.closed) else { return false };
        open.closed = true;
        // Callers on other lanes may wait at the same bound. They look at the store, and go on waiting.
        self.wake_all(wakers);
        true
    }

    /// The number of lanes that take rows, with the store's own lane.
    pub(crate) fn open_lanes(&self) -> usize {
        self.lanes.values().filter(|lane| !lane.closed).count()
    }

    /// Forgets a lane that has ended.
    pub(crate) fn remove_lane(&mut self, lane: u64) {
        self.lanes.remove(&lane);
    }

    // Rows.

    /// Checks that the lane takes the rows, apart from room in the queue. Returns the number of the first row.
    pub(crate) fn check(&self, lane: u64, demand: Demand) -> Result<u64, WriteError> {
        let lane = self.lanes.get(&lane).filter(|lane| !lane.closed).ok_or(ClosedBy::Lane)?;
        match demand.component {
            Some(component) => lane.check_skew(&self.config, component, demand.rows)?,
            None => lane.check_even(&self.config)?,
        }
        lane.check_end(demand)?;
        Ok(lane.handed[demand.component.unwrap_or(0)] - lane.ahead)
    }

    /// Checks that the lane takes the rows now. Returns the number of the first row.
    pub(crate) fn admit(&mut self, lane: u64, demand: Demand, no_room: NoRoomThen) -> Result<u64, WriteError> {
        let first_row = self.check(lane, demand)?;
        let lines_up = no_room == NoRoomThen::LineUp && self.config.when_full != WhenFull::Reject;
        if demand.rows == 0 || lines_up || self.has_counterparts(lane, demand) {
            return Ok(first_row);
        }
        let Some(bound) = self.bound_of(lane) else { return Ok(first_row) };
        let behind_others = no_room == NoRoomThen::RefuseBehindOthers && bound.has_line();
        let first = demand.component.unwrap_or(0);
        let full = bound.no_room_for(demand).or(behind_others.then(|| (first, bound.queued(first))));
        let Some((component, held)) = full else { return Ok(first_row) };
        let bound = bound.bound();
        let component = self.config.layout.name(component);
        Err(StoreFullError::queue(NoRoom { component, rows: demand.rows, held, bound }).into())
    }

    /// Whether the store has taken the same rows of another component. Rows with such counterparts never wait, and are never refused
    /// for room, because then the counterparts could not be dealt.
    fn has_counterparts(&self, lane: u64, demand: Demand) -> bool {
        let (Some(lane), Some(component)) = (self.lanes.get(&lane), demand.component) else { return false };
        lane.has_counterparts(component, demand.rows)
    }

    /// Counts rows as handed over.
    pub(crate) fn count_in(&mut self, lane: u64, demand: Demand, wakers: &mut Vec<Waker>) {
        if let Some(bound) = self.bound_of(lane) {
            bound.enter(demand);
        }
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.written = true;
            demand.components(lane.handed.len()).for_each(|component| lane.handed[component] += demand.rows as u64);
        }
        // These rows may be the counterparts of the rows of a caller in line. Then the caller need not wait any longer.
        if demand.component.is_some() {
            let Admission { lanes, bound, .. } = self;
            let Some(of_lane) = lanes.get_mut(&lane) else { return };
            let LaneRows { handed, bound: own, .. } = of_lane;
            let Some(bound) = own.as_mut().or(bound.as_mut()) else { return };
            let may = |waiting: Demand| waiting.component.is_some_and(|c| has_counterparts(handed, c, waiting.rows));
            wakers.extend(bound.take_some(lane, may));
        }
    }

    /// Notes the rows of each component of a lane that have been settled since the lane was opened.
    pub(crate) fn settle(&mut self, lane: u64, settled: &[u64]) {
        let Some(lane) = self.lanes.get_mut(&lane) else { return };
        let Some(bound) = lane.bound.as_mut().or(self.bound.as_mut()) else { return };
        for (component, (before, &now)) in lane.settled.iter_mut().zip(settled).enumerate() {
            bound.leave(component, (now - *before) as usize);
            *before = now;
        }
    }

    /// Forgets all queued rows, because they have been discarded.
    pub(crate) fn clear(&mut self) {
        self.lanes.values_mut().for_each(|lane| lane.settled.clone_from(&lane.handed));
        self.bounds_mut().for_each(QueueBound::clear);
    }

    /// The queued rows of a component, on all lanes: first the rows that are new, then the rows that are sent again to a resumed store.
    pub(crate) fn queued_as(&self, component: usize) -> (u64, u64) {
        let of_lanes = self.lanes.values().map(|lane| {
            let row = |counts: &[u64]| counts[component] - lane.ahead.min(counts[component]);
            let (first, end) = (row(&lane.settled), row(&lane.handed));
            let again = end.min(lane.again_until).saturating_sub(first);
            (end - first - again, again)
        });
        of_lanes.fold((0, 0), |(new, again), lane| (new + lane.0, again + lane.1))
    }

    /// The queued rows of a component, on all lanes.
    pub(crate) fn queued(&self, component: usize) -> usize {
        let of_lanes = self.lanes.values().filter_map(|lane| lane.bound.as_ref());
        of_lanes.chain(&self.bound).map(|bound| bound.queued(component)).sum()
    }

    /// The lanes that a flush must wait for: lanes with rows to settle, and lanes that end. In a store that is `closed`, these are all
    /// lanes that have got rows.
    pub(crate) fn unsettled(&self, closed: bool) -> Unsettled {
        let unsettled = self.lanes.iter().filter_map(|(&id, lane)| {
            let ends = lane.closed || closed && lane.handed.iter().any(|&rows| rows > 0);
            let target = if ends { None } else { Some(lane.handed.clone()) };
            (ends || lane.handed != lane.settled).then_some((id, target))
        });
        unsettled.collect()
    }

    /// Whether a flush need not wait any longer.
    pub(crate) fn is_settled(&self, unsettled: &Unsettled) -> bool {
        unsettled.iter().all(|(id, handed)| match (self.lanes.get(id), handed) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(lane), Some(handed)) => lane.settled.iter().zip(handed).all(|(settled, handed)| settled >= handed),
        })
    }

    // Callers that wait for room.

    /// Reserves room for rows if there is room and the caller comes next. `Ok(false)` if the caller must wait.
    pub(crate) fn try_reserve(&mut self, lane: u64, demand: Demand, ticket: Option<u64>) -> Result<bool, WriteError> {
        self.check(lane, demand)?;
        let has_counterparts = self.has_counterparts(lane, demand);
        let Some(bound) = self.bound_of(lane) else { return Err(ClosedBy::Lane.into()) };
        let free = has_counterparts && bound.can_reserve(demand)
            || bound.is_next(ticket) && bound.no_room_for(demand).is_none();
        if free {
            bound.reserve(demand);
        }
        Ok(free)
    }

    /// Puts a caller in line, as [`QueueBound::queue_up`]. Returns the waker of the caller if the lane is gone.
    pub(crate) fn queue_up(
        &mut self,
        lane: u64,
        ticket: Option<u64>,
        demand: Demand,
        waker: Waker,
    ) -> (Option<u64>, Option<Waker>) {
        let Some(bound) = self.bound_of(lane) else { return (None, Some(waker)) };
        let (ticket, before) = bound.queue_up(lane, ticket, demand, waker);
        (Some(ticket), before)
    }

    /// Removes a caller from the line, and wakes the next caller. Returns the waker of the removed caller.
    pub(crate) fn leave_line(&mut self, lane: u64, ticket: u64, wakers: &mut Vec<Waker>) -> Option<Waker> {
        let bound = self.bound_of(lane)?;
        let own = bound.leave_line(ticket);
        wakers.extend(bound.take_next());
        own
    }

    /// Gives back reserved room, and wakes the next caller.
    pub(crate) fn release(&mut self, lane: u64, demand: Demand, wakers: &mut Vec<Waker>) {
        if let Some(bound) = self.bound_of(lane) {
            bound.release(demand);
            wakers.extend(bound.take_next());
        }
    }

    /// Gives back reserved room, because rows use it now.
    pub(crate) fn use_reserved(&mut self, lane: u64, demand: Demand) {
        if let Some(bound) = self.bound_of(lane) {
            bound.release(demand);
        }
    }

    /// Wakes the first caller in each line, if there is room for it now.
    pub(crate) fn wake_next(&mut self, wakers: &mut Vec<Waker>) {
        self.bounds_mut().filter(|bound| bound.has_line()).for_each(|bound| wakers.extend(bound.take_next()));
    }

    /// Wakes every caller.
    pub(crate) fn wake_all(&mut self, wakers: &mut Vec<Waker>) {
        self.bounds_mut().for_each(|bound| wakers.extend(bound.take_line()));
    }

    /// The bound of a lane. `None` if the lane had a bound of its own and is gone.
    fn bound_of(&mut self, lane: u64) -> Option<&mut QueueBound> {
        self.lanes.get_mut(&lane).and_then(|lane| lane.bound.as_mut()).or(self.bound.as_mut())
    }

    fn bounds_mut(&mut self) -> impl Iterator<Item = &mut QueueBound> {
        self.lanes.values_mut().filter_map(|lane| lane.bound.as_mut()).chain(&mut self.bound)
    }
}

/// Whether another component is at least `rows` rows ahead of `component`.
fn has_counterparts(handed: &[u64], component: usize, rows: usize) -> bool {
    handed.iter().any(|taken| taken.saturating_sub(handed[component]) >= rows as u64)
}

impl LaneRows {
    fn has_counterparts(&self, component: usize, rows: usize) -> bool {
        has_counterparts(&self.handed, component, rows)
    }

    /// The component with the fewest rows, and the component with the most.
    fn extremes(&self) -> (usize, usize) {
        let components = 0..self.handed.len();
        let fewest = components.clone().min_by_key(|&component| self.handed[component]).unwrap_or(0);
        let most = components.max_by_key(|&component| self.handed[component]).unwrap_or(0);
        (fewest, most)
    }

    fn check_skew(&self, config: &Config, component: usize, rows: usize) -> Result<(), WriteError> {
        let (fewest, _) = self.extremes();
        let by = self.handed[component] - self.handed[fewest];
        // One batch may always run ahead, however large it is.
        if by == 0 || by.saturating_add(rows as u64) <= config.max_skew as u64 {
            return Ok(());
        }
        let (ahead, missing) = (config.layout.name(component), config.layout.name(fewest));
        Err(WriteError::Skew { ahead, missing, by, max_skew: config.max_skew })
    }

    fn check_end(&self, demand: Demand) -> Result<(), WriteError> {
        let mut components = demand.components(self.handed.len());
        let behind = |end| {
            components.any(|component| (self.handed[component] - self.ahead).saturating_add(demand.rows as u64) > end)
        };
        if self.ends_at.is_some_and(behind) { Err(ClosedBy::Lane.into()) } else { Ok(()) }
    }

    fn check_even(&self, config: &Config) -> Result<(), WriteError> {
        let (fewest, most) = self.extremes();
        let by = self.handed[most] - self.handed[fewest];
        if by == 0 {
            return Ok(());
        }
        Err(WriteError::Uneven { ahead: config.layout.name(most), missing: config.layout.name(fewest), by })
    }
}
