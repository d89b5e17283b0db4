//! The queue from the producers to the writer: its messages, and the bound on the rows in it.
//!
//! A batch enters the queue as soon as it is handed over, so dropping its handle loses nothing. If the queue is full, the caller
//! waits, not the batch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use crate::rows::batch::Batch;
use crate::rows::pass::WholePass;
use crate::waiting::handle::WriteReply;

/// A message to the writer. The writer receives messages in order.
#[derive(Debug)]
pub(crate) enum Message {
    /// A lane has been opened.
    OpenLane(u64),
    /// Rows have been handed over.
    Write(Write),
    /// A lane has been closed.
    CloseLane(u64),
    /// A lane of a resumed store is sent again from its first row on.
    SendAgain(u64),
    /// The shared state has changed, so the writer must look at it: a request, room for a ready frame, a free frame, or an end.
    Look,
}

/// Rows on their way to the writer.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) lane: u64,
    pub(crate) rows: HandedOver,
    /// The position of the first row in the lane.
    pub(crate) first_row: u64,
    pub(crate) reply: WriteReply,
}

/// The rows that one call hands over.
#[derive(Debug)]
pub(crate) enum HandedOver {
    /// A batch of one component.
    Batch(usize, Batch),
    /// A pass, and the value that the user attached to it.
    Pass(WholePass, Option<Arc<[u8]>>),
}

impl HandedOver {
    pub(crate) fn demand(&self) -> Demand {
        match self {
            HandedOver::Batch(component, batch) => Demand { component: Some(*component), rows: batch.rows() },
            HandedOver::Pass(pass, _) => Demand { component: None, rows: pass.rows() },
        }
    }
}

/// The rows that a call wants to hand over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    /// The component. `None` for a pass, which has rows of every component.
    pub(crate) component: Option<usize>,
    pub(crate) rows: usize,
}

impl Demand {
    /// The components that the demand has rows of. The store has `n` components.
    pub(crate) fn components(self, n: usize) -> std::ops::Range<usize> {
        self.component.map_or(0..n, |component| component..component + 1)
    }
}

/// The rows that wait for the writer, their bound, and the callers that wait for room.
#[derive(Debug)]
pub(crate) struct QueueBound {
    bound: usize,
    /// The rows of each component that were handed over, and were neither dealt nor set aside nor discarded yet.
    queued: Vec<usize>,
    /// The rows of each component that room is reserved for.
    reserved: Vec<usize>,
    /// The callers that wait for room, in the order in which they came.
    line: VecDeque<Waiting>,
    next_ticket: u64,
}

/// A caller that waits for room.
#[derive(Debug)]
struct Waiting {
    ticket: u64,
    lane: u64,
    demand: Demand,
    /// `None` once the caller has been woken.
    waker: Option<Waker>,
}

impl QueueBound {
    pub(crate) fn new(bound: usize, components: usize) -> Self {
        QueueBound {
            // No memory holds more rows, and the sum of two such numbers does not overflow.
            bound: bound.min(isize::MAX as usize),
            queued: vec![0; components],
            reserved: vec![0; components],
            line: VecDeque::new(),
            next_ticket: 0,
        }
    }

    pub(crate) fn bound(&self) -> usize {
        self.bound
    }

    pub(crate) fn queued(&self, component: usize) -> usize {
        self.queued[component]
    }

    fn held(&self, component: usize) -> usize {
        self.queued[component].saturating_add(self.reserved[component])
    }

    /// Finds a component that has no room for the demand. Returns the component, and the rows that it holds. A batch that is larger
    /// than the bound has room if nothing else is queued or reserved.
    pub(crate) fn no_room_for(&self, demand: Demand) -> Option<(usize, usize)> {
        let full = |held: usize| held > 0 && held.saturating_add(demand.rows) > self.bound;
        let held = demand.components(self.queued.len()).map(|component| (component, self.held(component)));
        held.into_iter().find(|&(_, held)| full(held))
    }

    /// Counts rows as queued.
    pub(crate) fn enter(&mut self, demand: Demand) {
        demand.components(self.queued.len()).for_each(|component| self.queued[component] += demand.rows);
    }

    /// Counts rows of a component as no longer queued.
    pub(crate) fn leave(&mut self, component: usize, rows: usize) {
        self.queued[component] -= rows;
    }

    /// Whether the number of reserved rows stays a number. It may not if a caller has reserved room for more rows than memory holds.
    pub(crate) fn can_reserve(&self, demand: Demand) -> bool {
        let mut reserved = demand.components(self.reserved.len()).map(|component| self.reserved[component]);
        reserved.all(|reserved| reserved.checked_add(demand.rows).is_some())
    }

    /// Reserves room for rows.
    pub(crate) fn reserve(&mut self, demand: Demand) {
        demand.components(self.reserved.len()).for_each(|component| self.reserved[component] += demand.rows);
    }

    /// Gives back reserved room, because rows use it or because it is not needed.
    pub(crate) fn release(&mut self, demand: Demand) {
        demand.components(self.reserved.len()).for_each(|component| self.reserved[component] -= demand.rows);
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
        lane: u64,
        ticket: Option<u64>,
        demand: Demand,
        waker: Waker,
    ) -> (u64, Option<Waker>) {
        if let Some(place) = self.line.iter_mut().find(|waiting| Some(waiting.ticket) == ticket) {
            return (place.ticket, place.waker.replace(waker));
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.line.push_back(Waiting { ticket, lane, demand, waker: Some(waker) });
        (ticket, None)
    }

    /// Removes a caller from the line, and returns its waker.
    pub(crate) fn leave_line(&mut self, ticket: u64) -> Option<Waker> {
        let place = self.line.iter().position(|waiting| waiting.ticket == ticket)?;
        self.line.remove(place)?.waker
    }

    /// Takes the waker of the first caller in line, if there is room for that caller now.
    pub(crate) fn take_next(&mut self) -> Option<Waker> {
        let demand = self.line.front()?.demand;
        if self.no_room_for(demand).is_some() {
            return None;
        }
        self.line.front_mut()?.waker.take()
    }

    /// Takes the wakers of the callers of a lane that may go on from any place in line. `may` selects these callers.
    pub(crate) fn take_some(&mut self, lane: u64, may: impl Fn(Demand) -> bool) -> impl Iterator<Item = Waker> {
        let of_lane = self.line.iter_mut().filter(move |waiting| waiting.lane == lane && may(waiting.demand));
        of_lane.filter_map(|waiting| waiting.waker.take())
    }

    /// Takes the wakers of all callers in line, who must look at the store again.
    pub(crate) fn take_line(&mut self) -> impl Iterator<Item = Waker> {
        self.line.iter_mut().filter_map(|waiting| waiting.waker.take())
    }

    /// Forgets all queued rows, because they have been discarded.
    pub(crate) fn clear(&mut self) {
        self.queued.fill(0);
    }
}
