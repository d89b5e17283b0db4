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

    pub(crate) fn open(&mut self, id: u64) {
        self.lanes.insert(id, Lane::new(self.components));
    }

    /// Takes rows from the queue.
    pub(crate) fn push(&mut self, write: Write, ledger: &mut Ledger, finished: &mut Finished) {
        let id = write.lane;
        // The store's own lane opens when it is first written to.
        let lane = self.lanes.entry(id).or_insert_with(|| Lane::new(self.components));
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
        };
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.advance(dealt, ledger, finished);
            self.touch(id);
        }
    }

    /// Reports every lane on which something has changed, after setting aside the rows that only lack other components.
    /// Lanes that have ended, and hold nothing that can be dealt, are reported a last time, with what they lose, and removed.
    pub(crate) fn report(
        &mut self,
        ledger: &mut Ledger,
        finished: &mut Finished,
        mut each: impl FnMut(u64, &[u64], Option<Ending>),
    ) {
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            if lane.available() > 0 {
                each(id, &lane.settled, None);
                continue;
            }
            lane.set_aside(ledger, finished);
            if !lane.ended {
                each(id, &lane.settled, None);
                continue;
            }
            let ending = Ending { unmatched: lane.unmatched() };
            lane.discard(ledger, finished, |component, rows| component.dropped.unmatched += rows);
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
        self.order = Order::new(merge);
        for (&id, lane) in &mut self.lanes {
            lane.discard(ledger, finished, |component, rows| component.dropped.emptied += rows);
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
    columns: Vec<Column>,
    /// Rows of each component that have been dealt, set aside or discarded.
    settled: Vec<u64>,
    /// No more rows come.
    ended: bool,
}

/// The batches of one component of a lane.
#[derive(Default)]
struct Column {
    pending: VecDeque<Pending>,
    /// Rows in `pending`.
    rows: usize,
    /// Rows that ever came.
    received: u64,
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
    fn new(components: usize) -> Self {
        let columns = (0..components).map(|_| Column::default()).collect();
        Lane { columns, settled: vec![0; components], ended: false }
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
            HandedOver::Pass(batches) => {
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
        let rows = batch.rows();
        let skipped = column.skip.min(rows as u64);
        column.received += rows as u64;
        column.skip -= skipped;
        column.rows += rows - skipped as usize;
        self.settled[component] += skipped;
        ledger.components[component].accepted += skipped;
        ledger.components[component].dropped.emptied += skipped;
        let pending = Pending { batch, taken: skipped as usize, set_aside: false, first_row, reply };
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
    /// with them are skipped.
    fn discard(&mut self, ledger: &mut Ledger, finished: &mut Finished, count: fn(&mut ComponentLedger, u64)) {
        let ahead = self.columns.iter().map(|column| column.received).max().unwrap_or(0);
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
            column.skip = ahead - column.received;
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
