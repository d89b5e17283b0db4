//! Batches that the writer has taken from the queue but not dealt yet: per lane, per component.
//!
//! A row can be dealt once all its components are there. Until then the batch waits here as it came, so the ring only
//! ever sees whole rows.

use std::collections::{BTreeMap, VecDeque};

use crate::pipeline::config::Merge;
use crate::pipeline::handle::{WriteReply, Written};
use crate::pipeline::ledger::{ComponentLedger, Ledger};
use crate::pipeline::queue::{HandedOver, Write};
use crate::rows::batch::Batch;
use crate::snapshot::journal::Segment;

/// Rows that a lane deals before the next has its turn.
const TURN: usize = 64;

/// Batches that are done with, and callers to answer once those batches have been dropped.
#[derive(Default)]
pub(crate) struct Finished {
    pub(crate) batches: Vec<Batch>,
    pub(crate) answers: VecDeque<(WriteReply, Written)>,
}

/// All lanes, and what is dealt next.
pub(crate) struct Lanes {
    lanes: BTreeMap<u64, Lane>,
    components: usize,
    order: Order,
    /// Lanes on which something has changed since the last report.
    touched: Vec<u64>,
}

/// Whose rows are dealt next.
enum Order {
    /// Whole rows, in the order in which they became whole: a lane and how many.
    Arrival(VecDeque<(u64, usize)>),
    /// The lane whose turn it is, and the rows left of its turn.
    RoundRobin { current: u64, turn: usize },
    /// As they were dealt before the store was resumed; never empty. Then in the usual order.
    Again(VecDeque<Segment>, Box<Order>),
}

/// A lane of a resumed store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResumedLane {
    pub(crate) id: u64,
    /// The first row that is sent.
    pub(crate) from: u64,
    /// The first row that is needed.
    pub(crate) needed: u64,
    /// It ends there.
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

    /// Takes over the lanes of the saved store. Deals the rows of `segments` again. Then, if lanes take turns, goes on with the lane in
    /// `turn`.
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

    /// Whether rows are dealt again that were dealt before the store was resumed.
    pub(crate) fn deals_again(&self) -> bool {
        matches!(self.order, Order::Again(..))
    }

    /// The rows that must be dealt again next, if their lane has ended without them.
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

    /// A lane of a resumed store is sent again from its first row on.
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
        // The store's own lane opens when it is first written to.
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

    /// No more rows come on a lane.
    pub(crate) fn end(&mut self, id: u64) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.ended = true;
            self.touch(id);
        }
    }

    /// No more rows come on any lane.
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

    /// The lane to deal from and how many rows at most, if any can be dealt.
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

    /// Counts rows of the next lane, no more than [`next`](Self::next) said, as dealt.
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
                // They are accepted once they are ready, or all have been dealt again.
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

    /// Turns to the usual order once everything has been dealt again.
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

    /// Reports every lane on which something has changed, the oldest first, after setting aside the rows that only lack other components.
    /// Lanes that have ended, and hold nothing that can be dealt, are reported a last time, with what they lose, and removed.
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

    /// Whether every lane has ended and been removed.
    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Discards all batches, as taken and then dropped. Later rows whose counterparts went with them will be, too. Turns
    /// start again.
    pub(crate) fn empty(&mut self, merge: Merge, ledger: &mut Ledger, finished: &mut Finished) {
        let mut again = BTreeMap::new();
        if let Order::Again(segments, _) = std::mem::replace(&mut self.order, Order::new(merge)) {
            again.extend(segments.into_iter().map(|segment| (segment.lane, segment.first_row + segment.rows)));
        }
        for (&id, lane) in &mut self.lanes {
            // What would have been dealt again is not needed any more.
            let at_least = again.get(&id).copied().unwrap_or(0);
            lane.discard(at_least, ledger, finished, |component, rows| component.dropped.emptied += rows);
            self.touched.push(id);
        }
    }

    /// Takes everything that is left, for a store that ends without dealing it.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Batch, Option<WriteReply>)> {
        let columns = self.lanes.values_mut().flat_map(|lane| &mut lane.columns);
        columns.flat_map(|column| column.pending.drain(..).map(|pending| (pending.batch, pending.reply)))
    }
}

/// Moves on to the next lane where the current one has had its turn, or has ended.
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

/// What a lane loses when it ends.
pub(crate) struct Ending {
    pub(crate) unmatched: Option<Unmatched>,
}

/// Rows without counterparts.
pub(crate) struct Unmatched {
    /// The component with the most rows left.
    pub(crate) present: usize,
    /// The component with the fewest.
    pub(crate) missing: usize,
    pub(crate) rows: u64,
}

/// The batches of one producer.
pub(crate) struct Lane {
    pub(crate) id: u64,
    /// The first row that is neither dealt nor discarded.
    pub(crate) next_row: u64,
    columns: Vec<Column>,
    /// Rows of each component that have been dealt, set aside or discarded.
    settled: Vec<u64>,
    /// No more rows come.
    ended: bool,
    /// The lane ends at this row: it had ended when the store was saved.
    ends_at: Option<u64>,
}

/// The batches of one component of a lane.
#[derive(Default)]
struct Column {
    pending: VecDeque<Pending>,
    /// Rows in `pending`.
    rows: usize,
    /// Rows that ever came.
    received: u64,
    /// Rows to skip as they come, because they were dealt before the store was resumed. The column skips them first, and then
    /// discards the rows that `skip` counts.
    resent: u64,
    /// Rows to discard as they come, because their counterparts were discarded.
    skip: u64,
}

struct Pending {
    batch: Batch,
    /// Rows dealt or discarded.
    taken: usize,
    /// The rows wait for another component, and count as accepted.
    set_aside: bool,
    first_row: u64,
    /// Of a pass, the first component has the reply. All its batches are finished at once.
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

    /// Its first row comes next, and all rows up to the one needed are skipped. Before any has come.
    fn send_again(&mut self) {
        for column in &mut self.columns {
            column.resent += std::mem::take(&mut column.received);
        }
    }

    /// Whether it has ended and all its whole rows have been dealt.
    fn is_spent(&self) -> bool {
        self.ended && self.available() == 0
    }

    fn push(&mut self, write: Write, ledger: &mut Ledger, finished: &mut Finished) {
        let Write { rows, first_row, reply, .. } = write;
        match rows {
            HandedOver::Batch(component, batch) => {
                self.push_batch(component, batch, first_row, Some(reply), ledger, finished);
            }
            HandedOver::Pass(batches, _) => {
                let mut reply = Some(reply);
                for (component, batch) in batches.into_iter().enumerate() {
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

    /// Rows that all components have.
    fn available(&self) -> usize {
        self.columns.iter().map(|column| column.rows).min().unwrap_or(0)
    }

    /// Rows that can be dealt without crossing the end of a batch.
    fn front_rows(&self) -> usize {
        self.columns.iter().map(|column| column.pending.front().map_or(0, Pending::left)).min().unwrap_or(0)
    }

    /// The batch that has the component's next row, and which of its rows that is. Only while there are rows to deal.
    pub(crate) fn front(&self, component: usize) -> (&Batch, usize) {
        let pending = &self.columns[component].pending[0];
        (&pending.batch, pending.taken)
    }

    /// Counts `rows` rows, no more than `front_rows()`, as dealt.
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

    /// Sets aside all batches that are left: nothing but rows of another component is missing to deal them.
    fn set_aside(&mut self, ledger: &mut Ledger, finished: &mut Finished) {
        let columns = self.columns.iter_mut().zip(&mut self.settled);
        for ((column, settled), counts) in columns.zip(&mut ledger.components) {
            // Those set aside come first.
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

    /// Discards all batches, as accepted and dropped for the reason that `count` adds to. Later rows whose counterparts went
    /// with them are skipped, and so are rows up to `at_least`.
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
            // Those that another store has dealt count as sent again.
            column.resent = if at_least > 0 || column.resent > 0 { again.saturating_sub(column.received) } else { 0 };
            column.skip = ahead - column.received - column.resent;
        }
    }

    /// What is left without counterparts.
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
