//! The queue from the producers to the writer: what goes through it, and the bound on the rows in it.
//!
//! A batch that is handed over takes its place in line at once, so that dropping a handle loses nothing. The caller, not
//! the batch, waits for room at the bound.

use std::collections::VecDeque;
use std::task::Waker;

use crate::pipeline::handle::WriteReply;
use crate::rows::batch::Batch;

/// What the writer receives, in order.
#[derive(Debug)]
pub(crate) enum Message {
    /// A lane begins.
    OpenLane(u64),
    Write(Write),
    /// A lane ends.
    CloseLane(u64),
    /// A lane of a resumed store is sent again from its first row on.
    SendAgain(u64),
    /// Something in the shared state has changed: a request, room for a minibatch, a free frame, an end.
    Look,
}

/// Rows on their way.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) lane: u64,
    pub(crate) rows: HandedOver,
    /// The position of the first row in the lane.
    pub(crate) first_row: u64,
    pub(crate) reply: WriteReply,
}

/// What one call hands over; at least one row.
#[derive(Debug)]
pub(crate) enum HandedOver {
    /// A batch of one component.
    Batch(usize, Batch),
    /// A batch of every component, in order, with equally many rows; and what the user attached to them.
    Pass(Vec<Batch>, Option<Box<[u8]>>),
}

impl HandedOver {
    pub(crate) fn demand(&self) -> Demand {
        match self {
            HandedOver::Batch(component, batch) => Demand { component: Some(*component), rows: batch.rows() },
            HandedOver::Pass(batches, _) => Demand { component: None, rows: batches.first().map_or(0, Batch::rows) },
        }
    }
}

/// Rows that a call wants to hand over: of one component, or of all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    pub(crate) component: Option<usize>,
    pub(crate) rows: usize,
}

impl Demand {
    /// The components, of `n`, that it has rows of.
    pub(crate) fn components(self, n: usize) -> std::ops::Range<usize> {
        self.component.map_or(0..n, |component| component..component + 1)
    }
}

/// The rows that wait for the writer, their bound, and the callers that wait for room.
#[derive(Debug)]
pub(crate) struct QueueBound {
    bound: usize,
    /// Rows of each component: handed over and neither dealt nor set aside.
    queued: Vec<usize>,
    /// Rows of each component that a caller may hand over now.
    reserved: Vec<usize>,
    /// In the order in which they came.
    line: VecDeque<Waiting>,
    next_ticket: u64,
}

/// A caller that waits for room.
#[derive(Debug)]
struct Waiting {
    ticket: u64,
    lane: u64,
    demand: Demand,
    /// `None` once woken.
    waker: Option<Waker>,
}

impl QueueBound {
    pub(crate) fn new(bound: usize, components: usize) -> Self {
        QueueBound {
            bound,
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

    /// The component, and the rows it holds, that leave no room. A batch larger than the bound fits when nothing else is
    /// queued.
    pub(crate) fn no_room_for(&self, demand: Demand) -> Option<(usize, usize)> {
        let full = |held: usize| held > 0 && held.saturating_add(demand.rows) > self.bound;
        let held = demand.components(self.queued.len()).map(|component| (component, self.held(component)));
        held.into_iter().find(|&(_, held)| full(held))
    }

    /// Counts rows in.
    pub(crate) fn enter(&mut self, demand: Demand) {
        demand.components(self.queued.len()).for_each(|component| self.queued[component] += demand.rows);
    }

    /// Counts rows of a component out.
    pub(crate) fn leave(&mut self, component: usize, rows: usize) {
        self.queued[component] -= rows;
    }

    /// Keeps room for rows.
    pub(crate) fn reserve(&mut self, demand: Demand) {
        demand.components(self.reserved.len()).for_each(|component| self.reserved[component] += demand.rows);
    }

    /// Gives back room that was kept, to be used or not.
    pub(crate) fn release(&mut self, demand: Demand) {
        demand.components(self.reserved.len()).for_each(|component| self.reserved[component] -= demand.rows);
    }

    /// Whether callers wait.
    pub(crate) fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// Whether the caller with this ticket, if it has one, comes next.
    pub(crate) fn is_next(&self, ticket: Option<u64>) -> bool {
        match (self.line.front(), ticket) {
            (None, _) => true,
            (Some(first), Some(ticket)) => first.ticket == ticket,
            (Some(_), None) => false,
        }
    }

    /// Puts a caller in line, or keeps its place. Returns its ticket, and the waker that it had before.
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

    /// Takes a caller out of the line, and returns its waker.
    pub(crate) fn leave_line(&mut self, ticket: u64) -> Option<Waker> {
        let place = self.line.iter().position(|waiting| waiting.ticket == ticket)?;
        self.line.remove(place)?.waker
    }

    /// The caller to wake, if the first in line has room now.
    pub(crate) fn take_next(&mut self) -> Option<Waker> {
        let demand = self.line.front()?.demand;
        if self.no_room_for(demand).is_some() {
            return None;
        }
        self.line.front_mut()?.waker.take()
    }

    /// The callers of a lane that `may` go on whatever their place.
    pub(crate) fn take_some(&mut self, lane: u64, may: impl Fn(Demand) -> bool) -> impl Iterator<Item = Waker> {
        let of_lane = self.line.iter_mut().filter(move |waiting| waiting.lane == lane && may(waiting.demand));
        of_lane.filter_map(|waiting| waiting.waker.take())
    }

    /// Every caller in line, to be told of an end.
    pub(crate) fn take_line(&mut self) -> impl Iterator<Item = Waker> {
        self.line.iter_mut().filter_map(|waiting| waiting.waker.take())
    }

    /// Forgets all rows: they have been discarded.
    pub(crate) fn clear(&mut self) {
        self.queued.fill(0);
    }
}
