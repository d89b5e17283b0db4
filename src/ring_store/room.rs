//! Room in the queue: the bound on its rows, and the callers that wait in line for room.
//!
//! A pass enters the queue as soon as it is handed over, so dropping its handle loses nothing. If the queue is full, the caller
//! waits, not the pass.

use std::collections::VecDeque;
use std::task::Waker;

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

/// The rows that wait for the writer, their bound, and the callers that wait for room.
#[derive(Debug)]
pub(crate) struct Room {
    bound: usize,
    /// The rows that were handed over, and neither dealt nor discarded yet.
    queued: usize,
    /// The rows of passes that room is reserved for.
    reserved: usize,
    /// The rows of each component that room is reserved for. The rows of different components complete each other.
    reserved_for: Vec<usize>,
    /// The callers that wait for room, in the order in which they came.
    line: VecDeque<Waiting>,
    next_ticket: u64,
}

/// A caller that waits for room.
#[derive(Debug)]
struct Waiting {
    ticket: u64,
    lane: u64,
    /// The component that it waits with. `None` for a pass.
    component: Option<usize>,
    rows: usize,
    /// `None` once the caller has been woken.
    waker: Option<Waker>,
}

impl Room {
    pub(crate) fn new(bound: usize, components: usize) -> Self {
        // No memory holds more rows, and the sum of two such numbers does not overflow.
        let bound = bound.min(isize::MAX as usize);
        let reserved_for = vec![0; components];
        Room { bound, queued: 0, reserved: 0, reserved_for, line: VecDeque::new(), next_ticket: 0 }
    }

    pub(crate) fn bound(&self) -> usize {
        self.bound
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// The rows that are queued or have room reserved, if there is no room for `rows` more, of one component or of a pass. Rows that are
    /// more than the bound have room if nothing else is queued or reserved.
    pub(crate) fn full_for(&self, component: Option<usize>, rows: usize) -> Option<usize> {
        let reserved = match component {
            Some(component) => self.reserved_for[component],
            None => self.reserved_for.iter().copied().max().unwrap_or(0),
        };
        let held = self.queued.saturating_add(self.reserved).saturating_add(reserved);
        (held > 0 && held.saturating_add(rows) > self.bound).then_some(held)
    }

    /// Counts rows as queued.
    pub(crate) fn enter(&mut self, rows: usize) {
        self.queued += rows;
    }

    /// Counts rows as no longer queued.
    pub(crate) fn leave(&mut self, rows: usize) {
        self.queued -= rows;
    }

    /// Whether the number of reserved rows stays a number. It may not if a caller has reserved room for more rows than memory holds.
    pub(crate) fn can_reserve(&self, component: Option<usize>, rows: usize) -> bool {
        let reserved = component.map_or(self.reserved, |component| self.reserved_for[component]);
        reserved.checked_add(rows).is_some()
    }

    /// Reserves room for rows, of one component or of a pass.
    pub(crate) fn reserve(&mut self, component: Option<usize>, rows: usize) {
        *self.reserved_mut(component) += rows;
    }

    /// Gives back reserved room, because rows use it or because it is not needed.
    pub(crate) fn release(&mut self, component: Option<usize>, rows: usize) {
        *self.reserved_mut(component) -= rows;
    }

    fn reserved_mut(&mut self, component: Option<usize>) -> &mut usize {
        match component {
            Some(component) => &mut self.reserved_for[component],
            None => &mut self.reserved,
        }
    }

    /// Whether callers wait in line.
    pub(crate) fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// Whether the caller comes next. `ticket` is its place in line, if it has one.
    pub(crate) fn is_next(&self, ticket: Option<u64>) -> bool {
        match (self.line.front(), ticket) {
            (None, _) => true,
            (Some(first), Some(ticket)) => first.ticket == ticket,
            (Some(_), None) => false,
        }
    }

    /// Puts a caller in line, or keeps its place. Returns the caller's ticket and its earlier waker.
    pub(crate) fn queue_up(
        &mut self,
        ticket: Option<u64>,
        (lane, component, rows): (u64, Option<usize>, usize),
        waker: Waker,
    ) -> (u64, Option<Waker>) {
        if let Some(place) = self.line.iter_mut().find(|waiting| Some(waiting.ticket) == ticket) {
            return (place.ticket, place.waker.replace(waker));
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.line.push_back(Waiting { ticket, lane, component, rows, waker: Some(waker) });
        (ticket, None)
    }

    /// Removes a caller from the line, and returns its waker.
    pub(crate) fn leave_line(&mut self, ticket: u64) -> Option<Waker> {
        let place = self.line.iter().position(|waiting| waiting.ticket == ticket)?;
        self.line.remove(place)?.waker
    }

    /// Takes the waker of the first caller in line, if there is room for that caller now.
    pub(crate) fn take_next(&mut self) -> Option<Waker> {
        let &Waiting { component, rows, .. } = self.line.front()?;
        if self.full_for(component, rows).is_some() {
            return None;
        }
        self.line.front_mut()?.waker.take()
    }

    /// Takes the wakers of the callers of a lane that wait with a component, and may go on from any place in line.
    pub(crate) fn take_some(&mut self, lane: u64, may: impl Fn(usize, usize) -> bool) -> impl Iterator<Item = Waker> {
        let may = move |waiting: &&mut Waiting| {
            waiting.lane == lane && waiting.component.is_some_and(|component| may(component, waiting.rows))
        };
        self.line.iter_mut().filter(may).filter_map(|waiting| waiting.waker.take())
    }

    /// Takes the wakers of all callers in line, who must look at the store again.
    pub(crate) fn take_line(&mut self) -> impl Iterator<Item = Waker> {
        self.line.iter_mut().filter_map(|waiting| waiting.waker.take())
    }

    /// Forgets all queued rows, because they have been discarded.
    pub(crate) fn clear(&mut self) {
        self.queued = 0;
    }
}
