//! Lanes: the batches that the writer has taken from the queue but not dealt yet, by lane and component.
//!
//! The writer can deal a row once all its components are there. Until then the batch waits here as it came. So the ring gets only
//! whole rows.

use std::collections::{BTreeMap, VecDeque};

use crate::ring_store::builder::Merge;
use crate::ring_store::ledger::{ComponentLedger, Ledger};
use crate::ring_store::queue::{HandedOver, Write};
use crate::ring_store::snapshot::journal::Segment;
use crate::rows::batch::Batch;
use crate::waiting::handle::{WriteReply, Written};

/// The rows that are dealt from a lane before the next lane has its turn.
const TURN: usize = 64;

/// Batches that are finished, and callers to answer once these batches have been dropped.
#[derive(Default)]
pub(crate) struct Finished {
    pub(crate) batches: Vec<Batch>,
    pub(crate) answers: VecDeque<(WriteReply, Written)>,
}

/// All lanes, and the order in which their rows are dealt.
pub(crate) struct Lanes {
    lanes: BTreeMap<u64, Lane>,
    components: usize,
    order: Order,
    /// The lanes that have changed since the last report.
    touched: Vec<u64>,
}

/// The order in which rows are dealt.
enum Order {
    /// In the order in which the rows became whole: each entry is a lane and a number of rows.
    Arrival(VecDeque<(u64, usize)>),
    /// In turns: the lane whose turn it is, and the rows left of its turn.
    RoundRobin { current: u64, turn: usize },
    /// In the order of the segments, as the saved store dealt them. After that, in the usual order. Has at least one segment.
    Again(VecDeque<Segment>, Box<Order>),
}

/// A lane of a resumed store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResumedLane {
    pub(crate) id: u64,
    /// The first row that is sent to the resumed store.
    pub(crate) from: u64,
    /// The first row that the resumed store needs.
    pub(crate) needed: u64,
    /// The row at which the lane ends, if it had ended.
    pub(crate) ends_at: Option<u64>,
}

impl Order {
    fn new(merge: Merge) -> Self {
        match merge {
            Merge::Arrival => Order::Arrival(VecDeque::new()),
            Merge::RoundRobin => Order::RoundRobin { current: 0, turn: TURN },
        }
    }
}

impl Lanes {
    pub(crate) fn new(merge: Merge, components: usize) -> Self {
        Lanes { lanes: BTreeMap::new(), components, order: Order::new(merge), touched: Vec::new() }
    }

    /// Takes over the lanes of the saved store. The rows of `segments` are dealt again. After that, if lanes take turns, the lane in
    /// `turn` goes on.
    pub(crate) fn resume(&mut self, lanes: &[ResumedLane], segments: VecDeque<Segment>, turn: Option<(u64, usize)>) {
        for lane in lanes {
            self.lanes.insert(lane.id, Lane::resumed(self.components, *lane));
            self.touch(lane.id);
        }
        if let (Order::RoundRobin { current, turn: left }, Some(turn)) = (&mut self.order, turn) {
            (*current, *left) = turn;
        }
        if !segments.is_empty() {
            let usual =
                std::mem::replace(&mut self.order, Order::Again(VecDeque::new(), Box::new(Order::new(Merge::Arrival))));
            self.order = Order::Again(segments, Box::new(usual));
        }
    }

    /// Whether the next rows are rows that the saved store had dealt.
    pub(crate) fn deals_again(&self) -> bool {
        matches!(self.order, Order::Again(..))
    }

    /// The rows that must be dealt again next, if their lane has ended without these rows.
    pub(crate) fn lacks(&self) -> Option<Segment> {
        let Order::Again(segments, _) = &self.order else { return None };
        let next = segments.front()?;
        self.lanes.get(&next.lane).is_none_or(Lane::is_spent).then_some(*next)
    }

    /// The lane whose turn it is, and the rows left of its turn, if lanes take turns.
    pub(crate) fn turn(&self) -> Option<(u64, usize)> {
        match &self.order {
            Order::RoundRobin { current, turn } => Some((*current, *turn)),
            Order::Again(_, usual) => match &**usual {
                Order::RoundRobin { current, turn } => Some((*current, *turn)),
                _ => None,
            },
            Order::Arrival(_) => None,
        }
    }

    /// Each lane, and its first row that is neither dealt nor discarded.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (u64, u64)> {
        self.lanes.values().map(|lane| (lane.id, lane.next_row))
    }

    /// Notes that a lane of a resumed store is sent again from its first row on.
    pub(crate) fn send_again(&mut self, id: u64) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.send_again();
        }
    }

    pub(crate) fn open(&mut self, id: u64) {
        self.lanes.insert(id, Lane::new(id, self.components));
    }

    /// Takes rows from the queue.
    pub(crate) fn push(&mut self, write: Write, ledger: &mut Ledger, finished: &mut Finished) {
        let id = write.lane;
        // The store's own lane opens at the first write to it.
        let lane = self.lanes.entry(id).or_insert_with(|| Lane::new(id, self.components));
        let before = lane.available();
        lane.push(write, ledger, finished);
        let whole = lane.available() - before;
        if let Order::Arrival(order) = &mut self.order {
            match order.back_mut() {
                Some((last, rows)) if *last == id => *rows += whole,
                _ if whole > 0 => order.push_back((id, whole)),
                _ => {}
            }
        }
        self.touch(id);
    }

    /// Notes that no more rows come on a lane.
    pub(crate) fn end(&mut self, id: u64) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.ended = true;
            self.touch(id);
        }
    }

    /// Notes that no more rows come on any lane.
    pub(crate) fn end_all(&mut self) {
        for (&id, lane) in &mut self.lanes {
            lane.ended = true;
            self.touched.push(id);
        }
    }

    fn touch(&mut self, id: u64) {
        if self.touched.last() != Some(&id) {
            self.touched.push(id);
        }
    }

    /// The lane to deal from, and the most rows to deal. `None` if no rows can be dealt.
    pub(crate) fn next(&mut self) -> Option<(&mut Lane, usize)> {
        let (id, rows) = match &mut self.order {
            Order::Arrival(order) => *order.front()?,
            Order::RoundRobin { current, turn } => {
                pass_turn(&self.lanes, current, turn);
                (*current, *turn)
            }
            Order::Again(segments, _) => segments.front().map(|next| (next.lane, next.rows as usize))?,
        };
        let lane = self.lanes.get_mut(&id)?;
        let rows = rows.min(lane.front_rows());
        (rows > 0).then_some((lane, rows))
    }

    /// Counts rows of the next lane as dealt: at most as many as [`next`](Self::next) gave.
    pub(crate) fn dealt(&mut self, dealt: usize, ledger: &mut Ledger, finished: &mut Finished) {
        let id = match &mut self.order {
            Order::Arrival(order) => {
                let Some((id, rows)) = order.front_mut() else { return };
                let id = *id;
                *rows -= dealt;
                if *rows == 0 {
                    order.pop_front();
                }
                id
            }
            Order::RoundRobin { current, turn } => {
                *turn -= dealt;
                *current
            }
            Order::Again(segments, _) => {
                let Some(next) = segments.front_mut() else { return };
                next.first_row += dealt as u64;
                next.rows -= dealt as u64;
                let id = next.lane;
                if next.rows == 0 {
                    segments.pop_front();
                }
                // These rows count as accepted once they are ready, or once all segments have been dealt again.
                for counts in &mut ledger.components {
                    counts.resent += dealt as u64;
                }
                id
            }
        };
        let again = self.deals_again();
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.advance(dealt, ledger, finished);
            if again {
                ledger.components.iter_mut().for_each(|counts| counts.accepted -= dealt as u64);
            }
            self.touch(id);
        }
        self.end_dealing_again(ledger);
    }

    /// Returns to the usual order once all segments have been dealt again.
    fn end_dealing_again(&mut self, ledger: &mut Ledger) {
        let Order::Again(segments, usual) = &mut self.order else { return };
        if !segments.is_empty() {
            return;
        }
        self.order = std::mem::replace(&mut **usual, Order::Arrival(VecDeque::new()));
        if let Order::Arrival(order) = &mut self.order {
            let whole = self.lanes.iter().map(|(&id, lane)| (id, lane.available()));
            order.extend(whole.filter(|&(_, rows)| rows > 0));
        }
        let _ = ledger.settle_debt();
    }

    /// Reports every lane that has changed, in the order of their numbers, after it sets aside the lane's rows that lack rows of another component. A lane that has
    /// ended, and has no rows that can be dealt, is removed after a last report. The last report says which rows the lane loses.
    pub(crate) fn report(
        &mut self,
        ledger: &mut Ledger,
        finished: &mut Finished,
        mut each: impl FnMut(u64, &[u64], Option<Ending>),
    ) {
        let mut touched = std::mem::take(&mut self.touched);
        // As they were touched, a lane that came later could be before one whose rows were dealt just now.
        touched.sort_unstable();
        touched.dedup();
        for id in touched.drain(..) {
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            if lane.available() > 0 {
                each(id, &lane.settled, None);
                continue;
            }
            lane.set_aside(ledger, finished);
            lane.ended |= lane.ends_at.is_some_and(|end| lane.next_row >= end);
            if !lane.ended {
                each(id, &lane.settled, None);
                continue;
            }
            let ending = Ending { unmatched: lane.unmatched() };
            lane.discard(0, ledger, finished, |component, rows| component.dropped.unmatched += rows);
            each(id, &lane.settled, Some(ending));
            self.lanes.remove(&id);
        }
        self.touched = touched;
    }

    /// Whether every lane has ended and has been removed.
    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Discards all batches, and counts their rows as accepted and dropped. Also discards later rows whose counterparts in another
    /// component were discarded here. Turns start again.
    pub(crate) fn empty(&mut self, merge: Merge, ledger: &mut Ledger, finished: &mut Finished) {
        let mut again = BTreeMap::new();
        if let Order::Again(segments, _) = std::mem::replace(&mut self.order, Order::new(merge)) {
            again.extend(segments.into_iter().map(|segment| (segment.lane, segment.first_row + segment.rows)));
        }
        for (&id, lane) in &mut self.lanes {
            // The rows that were to be dealt again are not needed any more.
            let at_least = again.get(&id).copied().unwrap_or(0);
            lane.discard(at_least, ledger, finished, |component, rows| component.dropped.emptied += rows);
            self.touched.push(id);
        }
    }

    /// Takes out all batches that are left, for a store that ends without dealing them.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Batch, Option<WriteReply>)> {
        let columns = self.lanes.values_mut().flat_map(|lane| &mut lane.columns);
        columns.flat_map(|column| column.pending.drain(..).map(|pending| (pending.batch, pending.reply)))
    }
}

/// Passes the turn to the next lane if the current lane has had its turn or has ended.
fn pass_turn(lanes: &BTreeMap<u64, Lane>, current: &mut u64, turn: &mut usize) {
    for _ in 0..=lanes.len() {
        if *turn > 0 && lanes.get(current).is_some_and(|lane| !lane.is_spent()) {
            return;
        }
        let after = lanes.range(*current + 1..).next();
        let Some((&next, _)) = after.or_else(|| lanes.first_key_value()) else { return };
        (*current, *turn) = (next, TURN);
    }
}

/// The last report of a lane that ends.
pub(crate) struct Ending {
    pub(crate) unmatched: Option<Unmatched>,
}

/// Rows whose counterparts in another component never came.
pub(crate) struct Unmatched {
    /// The component with the most rows left.
    pub(crate) present: usize,
    /// The component with the fewest rows left.
    pub(crate) missing: usize,
    pub(crate) rows: u64,
}

/// The batches of one producer.
pub(crate) struct Lane {
    pub(crate) id: u64,
    /// The first row that is neither dealt nor discarded.
    pub(crate) next_row: u64,
    columns: Vec<Column>,
    /// The rows of each component that have been dealt, set aside or discarded.
    settled: Vec<u64>,
    /// Whether no more rows come.
    ended: bool,
    /// The row at which the lane ends, if it had ended when the store was saved.
    ends_at: Option<u64>,
}

/// The batches of one component of a lane.
#[derive(Default)]
struct Column {
    pending: VecDeque<Pending>,
    /// The rows in `pending` that are not dealt yet.
    rows: usize,
    /// The number of the row after the last one that came.
    received: u64,
    /// The number of rows to skip as they come, because the saved store had dealt them. These rows come before the rows that `skip`
    /// counts.
    resent: u64,
    /// The number of rows to discard as they come, because their counterparts were discarded.
    skip: u64,
}

struct Pending {
    batch: Batch,
    /// The rows of the batch that were dealt or discarded.
    taken: usize,
    /// Whether the rows wait for another component, and count as accepted.
    set_aside: bool,
    first_row: u64,
    /// The reply to the caller. In a pass, the first component has it, because all batches of a pass finish together.
    reply: Option<WriteReply>,
}

impl Pending {
    fn left(&self) -> usize {
        self.batch.rows() - self.taken
    }

    fn answer(&mut self, finished: &mut Finished) {
        let written = Written { rows: self.batch.rows(), first_row: self.first_row };
        if let Some(reply) = self.reply.take() {
            finished.answers.push_back((reply, written));
        }
    }

    fn finish(mut self, finished: &mut Finished) {
        self.answer(finished);
        finished.batches.push(self.batch);
    }
}

impl Lane {
    fn new(id: u64, components: usize) -> Self {
        Lane::resumed(components, ResumedLane { id, from: 0, needed: 0, ends_at: None })
    }

    fn resumed(components: usize, ResumedLane { id, from, needed, ends_at }: ResumedLane) -> Self {
        let column = |_| Column { received: from, resent: needed - from, ..Column::default() };
        let columns = (0..components).map(column).collect();
        Lane { id, next_row: needed, columns, settled: vec![from; components], ended: false, ends_at }
    }

    /// Notes that the lane's first row comes next. The lane skips all rows before the first needed one. Call this before any row has
    /// come.
    fn send_again(&mut self) {
        for column in &mut self.columns {
            column.resent += std::mem::take(&mut column.received);
        }
    }

    /// Whether the lane has ended and all its whole rows have been dealt.
    fn is_spent(&self) -> bool {
        self.ended && self.available() == 0
    }

    fn push(&mut self, write: Write, ledger: &mut Ledger, finished: &mut Finished) {
        let Write { rows, first_row, reply, .. } = write;
        match rows {
            HandedOver::Batch(component, batch) => {
                self.push_batch(component, batch, first_row, Some(reply), ledger, finished);
            }
            HandedOver::Pass(pass, _) => {
                let mut reply = Some(reply);
                for (component, batch) in pass.into_batches().into_iter().enumerate() {
                    self.push_batch(component, batch, first_row, reply.take(), ledger, finished);
                }
            }
        }
    }

    fn push_batch(
        &mut self,
        component: usize,
        batch: Batch,
        first_row: u64,
        reply: Option<WriteReply>,
        ledger: &mut Ledger,
        finished: &mut Finished,
    ) {
        let column = &mut self.columns[component];
        let rows = batch.rows() as u64;
        let resent = column.resent.min(rows);
        let skipped = column.skip.min(rows - resent);
        let taken = resent + skipped;
        column.received += rows;
        column.resent -= resent;
        column.skip -= skipped;
        column.rows += (rows - taken) as usize;
        self.settled[component] += taken;
        let counts = &mut ledger.components[component];
        counts.resent += resent;
        counts.accepted += skipped;
        counts.dropped.emptied += skipped;
        let pending = Pending { batch, taken: taken as usize, set_aside: false, first_row, reply };
        if pending.left() == 0 {
            pending.finish(finished);
        } else {
            column.pending.push_back(pending);
        }
    }

    /// The number of whole rows: rows that all components have.
    fn available(&self) -> usize {
        self.columns.iter().map(|column| column.rows).min().unwrap_or(0)
    }

    /// The number of rows that can be dealt before the end of a batch.
    fn front_rows(&self) -> usize {
        self.columns.iter().map(|column| column.pending.front().map_or(0, Pending::left)).min().unwrap_or(0)
    }

    /// The batch that has the component's next row, and the number of that row in the batch.
    ///
    /// # Panics
    /// Panics if the component has no rows to deal.
    pub(crate) fn front(&self, component: usize) -> (&Batch, usize) {
        let pending = &self.columns[component].pending[0];
        (&pending.batch, pending.taken)
    }

    /// Counts `rows` rows as dealt: at most `front_rows()`.
    fn advance(&mut self, rows: usize, ledger: &mut Ledger, finished: &mut Finished) {
        self.next_row += rows as u64;
        let columns = self.columns.iter_mut().zip(&mut self.settled);
        for ((column, settled), counts) in columns.zip(&mut ledger.components) {
            let Some(front) = column.pending.front_mut() else { continue };
            front.taken += rows;
            column.rows -= rows;
            if front.set_aside {
                counts.set_aside -= rows as u64;
            } else {
                counts.accepted += rows as u64;
                *settled += rows as u64;
            }
            if front.left() == 0
                && let Some(front) = column.pending.pop_front()
            {
                front.finish(finished);
            }
        }
    }

    /// Sets aside all batches that are left, because they only lack rows of another component.
    fn set_aside(&mut self, ledger: &mut Ledger, finished: &mut Finished) {
        let columns = self.columns.iter_mut().zip(&mut self.settled);
        for ((column, settled), counts) in columns.zip(&mut ledger.components) {
            // Batches that are set aside already come first.
            let first = column.pending.partition_point(|pending| pending.set_aside);
            for pending in column.pending.range_mut(first..) {
                let rows = pending.left() as u64;
                pending.set_aside = true;
                counts.accepted += rows;
                counts.set_aside += rows;
                *settled += rows;
                pending.answer(finished);
            }
        }
    }

    /// Discards all batches, and counts their rows as accepted and dropped. `count` adds to the reason. Later rows are skipped if
    /// their counterparts were discarded here, or if they come before row `at_least`.
    fn discard(
        &mut self,
        at_least: u64,
        ledger: &mut Ledger,
        finished: &mut Finished,
        count: fn(&mut ComponentLedger, u64),
    ) {
        let received = self.columns.iter().map(|column| column.received).max().unwrap_or(0);
        let again = self.next_row.max(at_least);
        let ahead = received.max(again);
        self.next_row = ahead;
        let columns = self.columns.iter_mut().zip(&mut self.settled);
        for ((column, settled), counts) in columns.zip(&mut ledger.components) {
            for pending in column.pending.drain(..) {
                let rows = pending.left() as u64;
                count(counts, rows);
                if pending.set_aside {
                    counts.set_aside -= rows;
                } else {
                    counts.accepted += rows;
                    *settled += rows;
                }
                pending.finish(finished);
            }
            column.rows = 0;
            // Rows that the saved store had dealt count as sent again.
            column.resent = if at_least > 0 || column.resent > 0 { again.saturating_sub(column.received) } else { 0 };
            column.skip = ahead - column.received - column.resent;
        }
    }

    /// The rows that are left without counterparts. `None` if there are none.
    fn unmatched(&self) -> Option<Unmatched> {
        let components = 0..self.columns.len();
        let present = components.clone().max_by_key(|&component| self.columns[component].rows)?;
        let missing = components.min_by_key(|&component| self.columns[component].rows)?;
        let rows = self.columns[present].rows as u64;
        (rows > 0).then_some(Unmatched { present, missing, rows })
    }
}

#[cfg(test)]
mod tests;
